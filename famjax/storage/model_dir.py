"""Names of the files in a model directory, and `model.json`. Imports nothing heavy.

DIR/model.json          the full `ModelConfig`
DIR/config.gin          after training: the operative settings
DIR/metrics.jsonl       after training: one object per logged step
DIR/base.json           after fine-tuning a part of the weights: path of the others (`storage/base.py`)
DIR/best.json           the best checkpoints, if a metric is watched
DIR/summary.txt         after training: weights, shardings, bytes per device
DIR/tensorboard/        after training: the values of metrics.jsonl for TensorBoard
DIR/profile/            with PROFILE_STEPS: a profile of the devices, step by step
DIR/stacks/             after a hang: the stacks of all threads of every host
DIR/launch/             under Slurm: the batch script, its settings, its logs
DIR/checkpoints/N/      the weights, and what a training needs to resume, after N steps

Functions that read a model also accept one of its checkpoints: DIR/checkpoints/N, or DIR/checkpoints/best.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from famjax.config import ConfigError, ModelConfig
from famjax.config.text import read_text
from famjax.process import interrupts

MODEL_JSON = "model.json"
CONFIG_GIN = "config.gin"
METRICS_JSONL = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
BEST_JSON, BEST = "best.json", "best"
BASE_JSON = "base.json"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
SUMMARY_TXT = "summary.txt"


def read_config(model_dir: str | Path) -> ModelConfig:
    """Returns the configuration of a model directory. Raises `ConfigError` if it is missing or damaged."""
    if not str(model_dir):
        raise ConfigError("the model directory's name is empty; name a directory that has a model.json")
    path, _ = split_step(model_dir)
    if not path.exists():
        raise ConfigError(f"{path} does not exist; name a directory that `famjax train` wrote")
    if not (path / MODEL_JSON).is_file():
        kind = "has no model.json" if path.is_dir() else "is a file"
        raise ConfigError(f"{path} is not a model directory: it {kind}; name a directory that `famjax train` wrote")
    text = read_text(path / MODEL_JSON)
    try:
        return ModelConfig.from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{path / MODEL_JSON}: {error}") from error


def check_same_model(model_dir: str | Path, config: ModelConfig) -> None:
    """Raises `ConfigError` if the directory holds a model with other settings; its message names the first of them."""
    path = Path(model_dir)
    if not (path / MODEL_JSON).exists():
        return
    there, asked = (_flat(dataclasses.asdict(model)) for model in (read_config(path), config))
    for name in there:
        if there[name] != asked[name]:
            raise ConfigError(
                f"MODEL_DIR {path} holds a model with {name} {there[name]}, not {asked[name]}; "
                f"use an empty directory, or the model's own settings"
            )


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in fields.items() if name not in ("memory", "lora")}
    return plain | fields["memory"] | {f"LoRA's {name}": value for name, value in fields["lora"].items()}


def is_step(name: str) -> bool:
    """Whether a folder's name is a number of steps: decimal digits, and no others of Unicode's such as ²."""
    return name.isascii() and name.isdigit()


def split_step(model_dir: str | Path) -> tuple[Path, int | None]:
    """Returns the model directory and the step in a path: (runs/a, 400) for "runs/a/checkpoints/400", else step None.
    Raises `ConfigError` if the path is "runs/a/checkpoints/best", but `best.json` names no checkpoint."""
    path = Path(model_dir)
    root = path.parent.parent
    if path.parent.name != CHECKPOINTS or not (root / MODEL_JSON).is_file():
        return path, None
    if is_step(path.name):
        return root, int(path.name)
    if path.name != BEST:
        return path, None
    try:
        return root, int(json.loads((root / BEST_JSON).read_text(encoding="utf-8"))["checkpoints"][0]["step"])
    except (OSError, ValueError, LookupError, TypeError):
        raise ConfigError(
            f"{root / BEST_JSON} names no best checkpoint; train with TrainConfig.keep_best_metric, or name a step"
        ) from None


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file atomically, see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file atomically: a reader sees the old content or the new one. A symbolic link stays one."""
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with interrupts.held():
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
