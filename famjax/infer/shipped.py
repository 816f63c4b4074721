"""Trained models shipped with famjax, each as one safetensors file with its `model.json` as metadata."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from famjax.config import ConfigError, ModelConfig
from famjax.nn.weights import parameter_shapes
from famjax.storage import arrays
from famjax.storage.checkpoint import load_model, save_model
from famjax.storage.model_dir import MODEL_JSON, read_config, write_bytes
from famjax.storage.steps import latest_step

FOLDER = Path(__file__).parents[1] / "shipped"
# The model of gin/experiments/tiny_fam.gin, seed 0; `launch/studies/ship_passkey.py` trains and packs it.
SHA256 = {"passkey": "bedcb9ae8171d3c3d9125334c169fa7d005bf3f86bb8b6f0bb495eca214135ab"}


def pack(model_dir: str | Path, path: str | Path) -> str:
    """Writes weights and configuration of a model directory to one file; returns its SHA-256."""
    config, params = load_model(model_dir, parameter_shapes)
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in arrays.leaves(params).items()}
    content = safetensors.numpy.save(tensors, metadata={MODEL_JSON: config.to_json()})
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def unpack(name: str, model_dir: str | Path) -> None:
    """Writes the shipped model `name` (a key of `SHA256`) to a model directory, unless it is already there. Raises
    `ConfigError` if the shipped file is missing or damaged, or the directory has a model with another configuration."""
    path = FOLDER / f"{name}.safetensors"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise ConfigError(f"{path} is missing or damaged; install famjax again")
    with safetensors.safe_open(path, "numpy") as file:
        config = ModelConfig.from_json(file.metadata()[MODEL_JSON])
    if latest_step(model_dir) is not None:
        if read_config(model_dir) != config:
            raise ConfigError(f"{model_dir} holds another model; choose another directory")
        return
    params: dict[str, Any] = {}
    for key, value in safetensors.numpy.load(content).items():
        *parents, leaf = key.split("/")
        place = params
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    save_model(model_dir, config, params)
