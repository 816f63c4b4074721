"""The optimizer: AdamW, its schedule, and which weights are treated apart."""

from typing import Any

import jax
import optax

from famjax.config import OptimizerConfig


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate against step: linear warm-up, then as `config.schedule` says."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, max(steps - 1, 1))
    rest = max(steps - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
    }[config.schedule]()
    if not config.warmup_steps:
        return after
    # The first step already learns: the warm-up counts from 1.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), after], [warmup])


def _path(keys: Any) -> tuple[str, ...]:
    return tuple(str(key.key) for key in keys)


def is_fam(path: tuple[str, ...]) -> bool:
    """The FAM prompt or prefix: a new weight beside pretrained ones."""
    return path[0] == "fam"


def is_decayed(path: tuple[str, ...]) -> bool:
    """Weight decay pulls at matrices only: not at norms, not at the FAM prompt."""
    return path[-1] != "scale" and not is_fam(path)


def _mask(choose: Any) -> Any:
    return lambda params: jax.tree_util.tree_map_with_path(lambda keys, _: choose(_path(keys)), params)


def optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW behind gradient clipping, for a run of so many steps."""
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts += [
        optax.scale_by_adam(config.beta1, config.beta2),
        optax.add_decayed_weights(config.weight_decay, _mask(is_decayed)),
        optax.masked(optax.scale(config.prompt_learning_rate), _mask(is_fam)),
        optax.scale_by_learning_rate(schedule(config, steps)),
    ]
    return optax.chain(*parts)
