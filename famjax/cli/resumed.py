"""Compares the settings of a training with those in the `config.gin` of its directory, from which it would resume."""

import dataclasses
from pathlib import Path
from typing import Any

from famjax.config import ConfigError, TrainConfig
from famjax.storage.model_dir import CONFIG_GIN

# Settings that do not change what is trained.
AROUND = (
    "model_dir", "log_period", "checkpoint_period", "checkpoint_minutes", "keep_checkpoints", "keep_period",
    "keep_best", "keep_best_metric", "keep_best_mode", "eval_period",
    "evaluation", "diagnostics_period", "profile_steps", "mesh",
)  # fmt: skip


def changed(config: TrainConfig) -> list[str]:
    """Returns the settings in which the training in `config.model_dir` differed, as "optimizer.learning_rate 0.1, was
    0.2"; none if nothing was trained there, or a version with other settings wrote its `config.gin`."""
    from famjax.cli.gin_config import load_train_config

    path = Path(config.model_dir) / CONFIG_GIN
    if not path.is_file():
        return []
    try:
        before, _ = load_train_config([str(path)])
    except ConfigError:
        return []
    ours, theirs = flat(config), flat(before)
    return [
        f"{name} {ours.get(name)}, was {theirs.get(name)}"
        for name in ours | theirs
        if ours.get(name) != theirs.get(name)
    ]


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns all settings but `AROUND`, by their dotted names."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if name in AROUND:
            continue
        found |= flat(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found
