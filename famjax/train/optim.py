"""Optimizers, learning rate schedules, and settings by weight."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from famjax.config import ConfigError, OptimizerConfig
from famjax.dims import Array, Float, Int, Tree, Weights
from famjax.storage.arrays import leaves, path_of

# Adafactor factors a weight's second moment into rows and columns only if both axes have at least this size.
FACTORED_FROM = 128


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step: linear warm-up, then `config.schedule`."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, max(steps - 1, 1))
    rest = max(steps - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "rsqrt": lambda: lambda step: peak * (max(warmup, 1) / (step + warmup + 1)) ** 0.5,
    }[config.schedule]()
    if not config.warmup_steps:
        return after
    # The warm-up counts from 1, so that the first step has a learning rate above 0.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), after], [warmup])


# --- weights by path ------------------------------------------------------------------------------


def _by_path(one: Callable[..., Any], params: Weights, *rest: Tree) -> Weights:
    """Returns a tree of `one(path, leaf, ...)`."""
    return jax.tree_util.tree_map_with_path(lambda keys, *leaves: one(path_of(keys), *leaves), params, *rest)


def check_patterns(config: OptimizerConfig, params: Weights) -> None:
    """Raises `ConfigError` if a pattern of `config.parameters` matches no weight, or if all weights are frozen."""
    paths = list(leaves(params))
    for pattern in config.parameters:
        only = OptimizerConfig(parameters={pattern: {"frozen": True}})
        if not any(only.settings_of(path)["frozen"] for path in paths):
            raise ConfigError(f"parameters: no weight matches {pattern!r}; there are {', '.join(paths)}")
    if all(config.settings_of(path)["frozen"] for path in paths):
        raise ConfigError("parameters: every weight is frozen; leave some to train")


def split_frozen(config: OptimizerConfig, params: Weights) -> tuple[Weights, Weights]:
    """Splits a tree of weights into (trained, frozen), both with None in place of the other's leaves.

    None is not a leaf for JAX, so trees derived from the trained weights (gradients, moments) have no entries for
    frozen ones, which then take no memory.
    """
    frozen = lambda path: config.settings_of(path)["frozen"]
    return (
        _by_path(lambda path, leaf: None if frozen(path) else leaf, params),
        _by_path(lambda path, leaf: leaf if frozen(path) else None, params),
    )


def join_frozen(trained: Weights, frozen: Weights) -> Weights:
    """Returns the whole tree of weights; the inverse of `split_frozen`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None)


# --- optimizers -----------------------------------------------------------------------------------


def optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of the trained weights, with gradient clipping first, for a run of `steps` steps.

    All of them compute update = -rate * multiple * (direction + weight_decay * weight). Each weight's multiple, and
    whether it decays, are set in `OptimizerConfig.parameters`.

    adamw: direction = mean / (sqrt(mean of squares) + 1e-8), both means bias-corrected.

    adafactor: direction = gradient / sqrt(second moment). The second moment is factored over the two longest axes if
      both are at least 128; its decay beta2 is bias-corrected as Adam's (0.99, not Adafactor's 1 - t^-0.8). Updates
      are clipped to an RMS of 1 (each layer of a stack separately), then averaged with momentum beta1, if above 0, in
      float32. The rate is absolute, not relative to the size of the weights.

    lion: direction = sign(beta1 * mean + (1 - beta1) * gradient); the mean decays with beta2. Its rate is usually 3 to
      10 times lower than AdamW's, with a weight decay higher by the same factor.
    """
    # A part of its own in either case, so that a run can be resumed with or without clipping.
    parts = [optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()]
    parts += {
        "adamw": lambda: [optax.scale_by_adam(config.beta1, config.beta2)],
        "adafactor": lambda: _adafactor(config),
        "lion": lambda: [optax.scale_by_lion(config.beta1, config.beta2)],
    }[config.name]()
    decayed = lambda params: _by_path(lambda path, _: config.settings_of(path)["weight_decay"], params)
    parts += [
        optax.add_decayed_weights(config.weight_decay, decayed),
        _scale_by_table(config),
        optax.scale_by_learning_rate(schedule(config, steps)),
    ]
    return optax.chain(*parts)


def updates_done(opt_state: Tree) -> Int[Array, ""]:
    """Returns the number of updates of an optimizer state, which its learning rate is a function of."""
    count: Int[Array, ""] = opt_state[-1].count
    return count


def _adafactor(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    parts = [
        optax.scale_by_factored_rms(
            decay_rate=config.beta2, min_dim_size_to_factor=FACTORED_FROM, decay_rate_fn=_corrected_decay
        ),
        _clip_update_rms(1.0),
    ]
    if config.beta1:
        parts.append(optax.ema(config.beta1, debias=False, accumulator_dtype=jnp.float32))
    return parts


def _corrected_decay(step: Int[Array, ""], beta2: float) -> Float[Array, ""]:
    """Returns the decay at a step that makes a plain moving average equal to the bias-corrected one."""
    done = jnp.asarray(step, jnp.float32)
    return beta2 * (1 - beta2**done) / (1 - beta2 ** (done + 1))


def _clip_update_rms(threshold: float) -> optax.GradientTransformation:
    """Scales each update down to an RMS of at most `threshold`, each layer of a stack separately."""

    def clip(path: str, update: Float[Array, "..."]) -> Float[Array, "..."]:
        axes = tuple(range(1 if path.startswith("layers/") else 0, update.ndim))
        rms = jnp.sqrt(jnp.mean(jnp.square(update), axis=axes, keepdims=True))
        return update / jnp.maximum(1.0, rms / threshold)

    return optax.stateless(lambda updates, params: _by_path(clip, updates))


def _scale_by_table(config: OptimizerConfig) -> optax.GradientTransformation:
    """Multiplies each weight's update by its multiple of the learning rate."""

    def scale(path: str, update: Float[Array, "..."]) -> Float[Array, "..."]:
        multiple = config.settings_of(path)["learning_rate"]
        return update if multiple == 1 else update * multiple

    return optax.stateless(lambda updates, params: _by_path(scale, updates))
