"""Loads a model directory for inference."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from famjax.config import ModelConfig, mesh_sizes
from famjax.jobs.distributed import is_primary
from famjax.mesh import sharding
from famjax.mesh.devices import make_mesh
from famjax.mesh.on_mesh import placement
from famjax.nn.execution import Execution
from famjax.nn.lora import merge
from famjax.nn.model import Transformer
from famjax.nn.weights import parameter_axes, parameter_shapes, structure, unstacked
from famjax.storage.checkpoint import FAM, GATE, load_model


def load(
    model_dir: str | Path, mesh: Mapping[str, int] | None = None, dtype: str | None = None, **memory: int | None
) -> Transformer:
    """Returns the model of a directory, optionally with other memory settings.

    LoRA is merged, weights are cast to the compute dtype, layers are unstacked, and a fully open gate on FAM's
    attention is removed: it would attend twice for the same result. None of this changes the model's outputs, except
    for rounding of the merged LoRA.

    Args:
      model_dir: model directory, or one of its checkpoints.
      mesh: number of devices along `data`, `fsdp` and `tensor`. Weights are loaded directly into their shards, and
        computation is sharded as in training (`mesh/sharding.py`). None is one device.
      dtype: compute dtype, `float32` or `bfloat16`. None is the model's own, except that a bfloat16 model computes in
        float32 on a CPU, where bfloat16 products are slow; a note is printed.
      memory: overrides of `block_size`, `memory_segments`, `fam_length`; None keeps the model's.

    Raises:
      ConfigError: see `storage.checkpoint.load_model`; or if the mesh has more devices than are available.
    """
    sizes = mesh_sizes(dict(mesh or {}))
    devices = make_mesh(sizes) if sizes != (1, 1, 1) else None

    def shapes(config: ModelConfig) -> dict[str, Any]:
        plain = parameter_shapes(config)
        if devices is None:
            return plain
        return sharding.with_shardings(plain, sharding.shardings(parameter_axes(config), plain, devices))

    config, params = load_model(model_dir, shapes, **memory)
    params, config = without_open_gate(*merge(params, config))
    if devices is not None:  # merged weights have the shardings that result from the sums
        params = jax.device_put(params, sharding.shardings(parameter_axes(config), params, devices))
    # The attention kernel configured for training may not run on this platform.
    config = dataclasses.replace(config, attention_kernel="auto", dtype=dtype or _compute_dtype(model_dir, config))
    kept = (FAM, "memory")  # these stay in float32
    params = {name: part if name in kept else _rounded(part, config.dtype, name) for name, part in params.items()}
    execution = Execution.of(config, None if devices is None else placement(devices))
    gate = params.get(FAM, {}).get(GATE)
    if gate is not None and not gate.any() and is_primary():  # of an imported model that was not yet trained
        print(f"{model_dir}: its FAM gate is closed, so FAM has no effect; training opens it (docs/finetuning.md)",
              file=sys.stderr)  # fmt: skip
    model: Transformer = nnx.merge(structure(config, execution), params)
    return unstacked(model)


def without_open_gate(params: dict[str, Any], config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """Returns weights and configuration without FAM's gate if it is 1 in all layers with FAM: then the model is the
    paper's."""
    gate = params.get(FAM, {}).get(GATE)
    if gate is None or not (gate[np.array(config.layers_with_fam)] == 1).all():
        return params, config
    fam = {name: array for name, array in params[FAM].items() if name != GATE}
    return params | {FAM: fam}, config.with_memory(fam_gate=False)


def _compute_dtype(model_dir: str | Path, config: ModelConfig) -> str:
    """Returns the model's compute dtype, or float32 instead of bfloat16 on a CPU."""
    if config.dtype != "bfloat16" or jax.default_backend() != "cpu":
        return config.dtype
    if is_primary():
        print(f"{model_dir}: computes in float32 on a CPU; --dtype bfloat16 takes half of the memory and is slower",
              file=sys.stderr)  # fmt: skip
    return "float32"


def _rounded(part: Any, dtype: str, name: str) -> Any:
    """Casts matrices to the compute dtype, as every product would; norm scales stay in float32."""
    axes_of_norm = 2 if name == "layers" else 1
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > axes_of_norm else x, part)
