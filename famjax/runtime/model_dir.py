"""A model directory without its weights: where things are, and `model.json`. Imports nothing heavy.

DIR/model.json          the full `ModelConfig`
DIR/config.gin          after training: the settings as they were used
DIR/metrics.jsonl       after training: one object a logged step
DIR/summary.txt         after training: the weights, where they lie, what they cost
DIR/tensorboard/        after training: the numbers of metrics.jsonl for TensorBoard
DIR/profile/            where PROFILE_STEPS asked for it: what the devices did, step by step
DIR/checkpoints/N/      the weights, and what a training needs to go on, after N steps
"""

import os
from pathlib import Path

from famjax.config import ConfigError, ModelConfig

MODEL_JSON = "model.json"
CONFIG_GIN = "config.gin"
METRICS_JSONL = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
SUMMARY_TXT = "summary.txt"


def read_config(model_dir: str | Path) -> ModelConfig:
    """The model of a directory. Raises `ConfigError` where there is none, or a damaged one."""
    if not str(model_dir):
        raise ConfigError("the model directory's name is empty; name a directory that has a model.json")
    path = Path(model_dir)
    if not path.exists():
        raise ConfigError(f"{path} does not exist; name a directory that `famjax train` wrote")
    if not (path / MODEL_JSON).is_file():
        kind = "has no model.json" if path.is_dir() else "is a file"
        raise ConfigError(f"{path} is no model directory: it {kind}; name a directory that `famjax train` wrote")
    try:
        return ModelConfig.from_json((path / MODEL_JSON).read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{path / MODEL_JSON}: {error}") from error


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file whole or not at all, see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all: a reader sees the old content or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
