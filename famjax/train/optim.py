"""Optimizers, schedules, and which weights are treated apart."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from famjax.config import ConfigError, OptimizerConfig
from famjax.dims import Array, Float, Int, Tree, Weights

# Adafactor keeps rows and columns of a weight's second moment only where both are at least so long.
FACTORED_FROM = 128


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate against step: linear warm-up, then as `config.schedule` says."""
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
    # The first step already learns: the warm-up counts from 1.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), after], [warmup])


# --- weights by path ------------------------------------------------------------------------------


def path_of(keys: tuple[Any, ...]) -> str:
    """`layers/attention/query`, from a path of jax's."""
    return "/".join(str(key.key) for key in keys)


def _by_path(one: Callable[..., Any], params: Weights, *rest: Tree) -> Weights:
    """A tree of `one(path, leaf, ...)`."""
    return jax.tree_util.tree_map_with_path(lambda keys, *leaves: one(path_of(keys), *leaves), params, *rest)


def check_patterns(config: OptimizerConfig, params: Weights) -> None:
    """Raises `ConfigError` if a pattern of `config.parameters` fits no weight, or none is left to train."""
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in config.parameters:
        only = OptimizerConfig(parameters={pattern: {"frozen": True}})
        if not any(only.settings_of(path)["frozen"] for path in paths):
            raise ConfigError(f"parameters: no weight fits {pattern!r}; there are {', '.join(paths)}")
    if all(config.settings_of(path)["frozen"] for path in paths):
        raise ConfigError("parameters: every weight is frozen; leave some to train")


def split_frozen(config: OptimizerConfig, params: Weights) -> tuple[Weights, Weights]:
    """(trained, frozen): both the tree of weights, with None for those of the other.

    None is no leaf for jax, so whatever is made for the trained weights (gradients, moments) has no
    place for frozen ones: they cost nothing.
    """
    frozen = lambda path: config.settings_of(path)["frozen"]
    return (
        _by_path(lambda path, leaf: None if frozen(path) else leaf, params),
        _by_path(lambda path, leaf: leaf if frozen(path) else None, params),
    )


def join_frozen(trained: Weights, frozen: Weights) -> Weights:
    """The whole tree again."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None)


# --- optimizers -----------------------------------------------------------------------------------


def optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer, behind gradient clipping, for a run of so many steps and the weights that are trained.

    All of them: update = -rate * multiple * (direction + weight_decay * weight), with the multiple and the
    decay of each weight from `OptimizerConfig.parameters`.

    adamw: the direction is mean / (sqrt(mean of squares) + 1e-8), both means corrected for their start.

    adafactor: as the paper uses it. On: a second moment kept as means over rows and columns (over the two
      longest axes, from 128 on; whole for smaller weights), its decay beta2 corrected for the start as
      Adam's is (with 0.99; not Adafactor's own 1 - t^-0.8), updates clipped to an RMS of 1 (each layer of
      a stack by itself), momentum beta1 behind that, in float32. Off: learning rates relative to the
      weights' size; the rate is absolute.

    lion: the direction is sign(beta1 * mean + (1 - beta1) * gradient); the mean decays with beta2. Its
      rate is usually three to ten times lower than AdamW's, with as much more weight decay.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
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
    """The decay with which a plain moving average is the one corrected for its start, step by step."""
    done = jnp.asarray(step, jnp.float32)
    return beta2 * (1 - beta2**done) / (1 - beta2 ** (done + 1))


def _clip_update_rms(threshold: float) -> optax.GradientTransformation:
    """Updates with an RMS above the threshold are scaled down to it; a stack of layers one by one."""

    def clip(path: str, update: Float[Array, "..."]) -> Float[Array, "..."]:
        axes = tuple(range(1 if path.startswith("layers/") else 0, update.ndim))
        rms = jnp.sqrt(jnp.mean(jnp.square(update), axis=axes, keepdims=True))
        return update / jnp.maximum(1.0, rms / threshold)

    return optax.stateless(lambda updates, params: _by_path(clip, updates))


def _scale_by_table(config: OptimizerConfig) -> optax.GradientTransformation:
    """Each weight's multiple of the learning rate."""

    def scale(path: str, update: Float[Array, "..."]) -> Float[Array, "..."]:
        multiple = config.settings_of(path)["learning_rate"]
        return update if multiple == 1 else update * multiple

    return optax.stateless(lambda updates, params: _by_path(scale, updates))
