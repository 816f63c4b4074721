"""From a model directory to a model that is ready to read and write."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

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
    """The model of a directory, with other memory settings where some are given.

    LoRA is merged, weights have the type that they are multiplied in, and layers are unstacked.
    None of this changes a number that the model computes, but for LoRA's rounding.

    Args:
      model_dir: what `famjax train` wrote.
      mesh: devices along `data`, `fsdp` and `tensor`. Weights are read straight to their places there, and what the
        model is asked for is computed there, by the rules of training (`mesh/sharding.py`). None is one device.
      dtype: compute dtype, `float32` or `bfloat16`. None is the model's own, except that a model of bfloat16 computes
        in float32 on a CPU, which has slow products or none of bfloat16; that is printed.
      memory: `block_size`, `memory_segments`, `fam_length`; None changes nothing.

    Raises:
      ConfigError: see `storage.checkpoint.load_model`; more devices are asked for than there are.
    """
    sizes = mesh_sizes(dict(mesh or {}))
    devices = make_mesh(sizes) if sizes != (1, 1, 1) else None
    shapes = parameter_shapes if devices is None else functools.partial(_placed_shapes, mesh=devices)
    config, params = load_model(model_dir, shapes, **memory)
    params, config = merge(params, config)
    if devices is not None:  # what was merged lies where its parts did
        params = jax.device_put(params, sharding.shardings(parameter_axes(config), params, devices))
    # A kernel that was asked for where it was trained need not run here.
    config = dataclasses.replace(config, attention_kernel="auto", dtype=dtype or _compute_dtype(model_dir, config))
    kept = (FAM, "memory")  # float32 in any case
    params = {name: part if name in kept else _rounded(part, config.dtype, name) for name, part in params.items()}
    execution = Execution.of(config, None if devices is None else placement(devices))
    _say_if_shut(model_dir, params)
    model: Transformer = nnx.merge(structure(config, execution), params)
    return unstacked(model)


def _compute_dtype(model_dir: str | Path, config: ModelConfig) -> str:
    """The model's own, or float32 instead of bfloat16 on a CPU."""
    if config.dtype != "bfloat16" or jax.default_backend() != "cpu":
        return config.dtype
    if is_primary():
        print(f"{model_dir}: computes in float32 on a CPU; --dtype bfloat16 takes half of the memory and is slower",
              file=sys.stderr)  # fmt: skip
    return "float32"


def _say_if_shut(model_dir: str | Path, params: dict[str, Any]) -> None:
    """A model that was given a memory and not yet trained reads as if it had none: nobody shall take that for FAM."""
    gate = params.get(FAM, {}).get(GATE)
    if gate is not None and not gate.any() and is_primary():
        print(f"{model_dir}: its memory is shut, FAM changes nothing yet; training opens it (docs/finetuning.md)",
              file=sys.stderr)  # fmt: skip


def _placed_shapes(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    shapes = parameter_shapes(config)
    return sharding.with_shardings(shapes, sharding.shardings(parameter_axes(config), shapes, mesh))


def _rounded(part: Any, dtype: str, name: str) -> Any:
    """Matrices in the compute dtype, which every product rounds them to anyway; norms work in float32."""
    axes_of_norm = 2 if name == "layers" else 1
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > axes_of_norm else x, part)
