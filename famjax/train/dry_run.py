"""`famjax train --dry-run`: checks everything that can fail before the first step, without running it.

Writes no files and initialises no weights. If the mesh's devices are available, the step is compiled for them, and the
compiler reports the memory that it needs per device.
"""

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh

from famjax.config import MESH_AXES, ConfigError, TrainConfig
from famjax.data.batch import Batch, Task
from famjax.mesh import sharding
from famjax.mesh.devices import make_mesh
from famjax.nn.weights import parameter_shapes
from famjax.process import memory
from famjax.storage import arrays, checkpoint
from famjax.train import initial, optim
from famjax.train import state as states
from famjax.train.start import make_task, progress_of
from famjax.train.step import jit_step
from famjax.train.watching.flops import flops_per_token
from famjax.train.watching.summary import data_size, summary


def dry_run(config: TrainConfig) -> None:
    """Checks a training run and prints what it is. Raises `ConfigError` on the first problem that would stop it."""
    config.validate()
    writable(config.model_dir)
    mesh = mesh_or_its_shape(config)
    tx = optim.optimizer(config.optimizer, config.steps)
    optim.check_patterns(config.tuning, parameter_shapes(config.model))
    print(summary(config, tx, mesh))
    task = make_task(config, np.arange(config.batch_size))
    print("start         " + start_of(config, states.abstract(config, tx, mesh), task))
    batch = first_batch(config, task)
    print("first batch   " + describe(batch, config))
    flops = flops_per_token(config, batch.targets.shape[1])
    per_step = flops * config.batch_size * config.sequence_length
    print(f"work          {flops:.3g} FLOPs a token, {per_step:.3g} a step (model FLOPs, docs/training.md)")
    print("checkpoint    " + disk(config, tx, mesh))
    if isinstance(mesh, Mesh):
        print("memory        " + compiled_memory(config, tx, mesh, batch))
    else:
        need = math.prod(config.mesh_sizes)
        print(f"memory        not compiled: the mesh has {need} devices, but {len(jax.devices())} are available. "
              f"Simulate them on a CPU:\n              JAX_PLATFORMS=cpu "
              f"XLA_FLAGS=--xla_force_host_platform_device_count={need} famjax train --dry-run ...\n"
              f"              famjax plan compiles it for a TPU slice, on any machine")  # fmt: skip
    print("dry run: nothing was trained, nothing was written")


def mesh_or_its_shape(config: TrainConfig) -> Mesh | AbstractMesh:
    """Returns the mesh, or an abstract mesh if there are too few devices, which is enough for shapes and shardings."""
    if math.prod(config.mesh_sizes) <= len(jax.devices()):
        return make_mesh(config.mesh_sizes)
    return AbstractMesh(config.mesh_sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def writable(model_dir: str) -> None:
    """Raises `ConfigError` unless MODEL_DIR can be written or created."""
    path = Path(model_dir).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"MODEL_DIR {model_dir} cannot be written: {there} is not writable; name another directory")


def start_of(config: TrainConfig, state: states.TrainState, task: Task) -> str:
    """Describes the weights that the run would start from. Raises `ConfigError` if they do not fit the model, or if the
    run cannot be resumed with these settings."""
    found = checkpoint.resumable(config.model_dir, states.to_save(state))
    if found is not None:
        step, saved = found
        progress_of(config, task, step, saved)
        done = ", the last one: nothing is left to train" if step >= config.steps else ""
        return f"resumes {config.model_dir} from step {step} of {config.steps}{done}"
    if not config.initial_checkpoint:
        return f"random weights, seed {config.seed}"
    return initial.check(config.initial_checkpoint, config.model)


def first_batch(config: TrainConfig, task: Task) -> Batch:
    """Returns the global batch of the first step. Raises `ConfigError` if a token is not below `vocab_size`."""
    batch, _ = task.batch(0, task.start())
    largest = int(max(batch.tokens.max(), batch.targets.max()))
    if largest >= config.model.vocab_size:
        raise ConfigError(f"the data has the token {largest}, but vocab_size is {config.model.vocab_size}; "
                          f"use at least {largest + 1}")  # fmt: skip
    return batch


def describe(batch: Batch, config: TrainConfig) -> str:
    """Describes a batch in one line."""
    B, T = batch.tokens.shape
    filled, weighed = int(batch.count.sum()), int((batch.weights > 0).sum())
    return (
        f"{B} rows of {T} tokens, filled to {filled / (B * T):.0%}; {int(batch.starts.sum())} memories start; "
        f"loss at {weighed:,} tokens, weights sum to {batch.weights.sum():.4g} ({config.task})"
    )


def disk(config: TrainConfig, tx: optax.GradientTransformation, mesh: Any) -> str:
    """Describes the size of a checkpoint and the free disk space. Raises `ConfigError` if there is too little."""
    state = states.abstract(config, tx, mesh)
    params = states.own_weights(config, state.params) if config.saves_a_part else state.params
    size = arrays.size_of((params, states.to_save(state)))
    path = Path(config.model_dir).absolute()
    free = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
    text = f"{data_size(size)}, {data_size(free)} are free"
    if free >= 2 * size:  # a new checkpoint is written before the old one is deleted
        return text
    if isinstance(mesh, Mesh):
        raise ConfigError(f"a checkpoint takes {data_size(size)}, and two exist while one is written, but only "
                          f"{data_size(free)} are free for {config.model_dir}; free some space")  # fmt: skip
    return text + " here, too little for two of them if the run uses this disk"


def compiled_memory(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh, batch: Batch) -> str:
    """Describes a step's bytes per device, as the compiler reports them. Raises `ConfigError` if they do not fit."""
    rows = sharding.by_rows(mesh)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), batch)
    began = time.perf_counter()
    program = jit_step(config, tx, mesh).lower(states.abstract(config, tx, mesh), shapes).compile()
    seconds, found = time.perf_counter() - began, program.memory_analysis()
    assert found is not None, "XLA's own compilers all report it"
    state = found.argument_size_in_bytes
    new = max(found.output_size_in_bytes - found.alias_size_in_bytes, 0)
    total = state + new + found.temp_size_in_bytes
    device = mesh.devices.flat[0]
    has = memory.capacity_bytes()
    text = (
        f"{data_size(total)} a device: state and batch {data_size(state)}, activations, gradients and other "
        f"temporaries {data_size(found.temp_size_in_bytes)}, new results {data_size(new)}\n              reported by "
        f"the compiler for {device.device_kind} ({mesh.size} of them), compiled in {seconds:.0f} s"
    )
    if device.platform == "cpu":
        return text + "; an accelerator's compiler uses other layouts: take it as an order of magnitude"
    if has is not None and total > has:
        raise ConfigError(f"a step needs {data_size(total)} a device, which has {data_size(has)}; raise MICROBATCHES, "
                          f"use ModelConfig.remat='full' (of a checkpoint's model: model_of_checkpoint.remat), or more "
                          f"devices along fsdp")  # fmt: skip
    return text + (f"; a device has {data_size(has)}" if has is not None else "")
