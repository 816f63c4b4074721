"""How a training comes into being: from its own newest checkpoint, from another model's weights, or at random."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from famjax.config import ConfigError, ModelConfig, TrainConfig
from famjax.data.batch import Progress, Task
from famjax.data.passkey import PassKeyTask
from famjax.nn.model import parameter_axes, parameter_shapes
from famjax.runtime import checkpoint, distributed, sharding
from famjax.train import optim
from famjax.train import state as states
from famjax.train.state import TrainState


def make_task(config: TrainConfig, rows: np.ndarray) -> Task:
    """The task that `config.task` names, for a process that brings these rows of the global batch."""
    task = PassKeyTask(
        config.passkey, config.sequence_length, config.model.memory.block_size, config.batch_size,
        config.model.vocab_size, config.seed,
    )  # fmt: skip
    if task.stages != config.passkey.stages:
        print(f"rows of {config.sequence_length} tokens hold at most {task.stages[-1]} blocks of filler; "
              f"later stages are left out")  # fmt: skip
    return task


def start(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh, task: Task) -> tuple[TrainState, Progress]:
    """The newest checkpoint of this run, else other weights to start from, else random ones.

    What is read goes straight to where it belongs on the mesh, whatever mesh it was written from.
    """
    shapes = functools.partial(sharded_shapes, mesh=mesh)
    optim.check_patterns(config.optimizer, shapes(config.model))
    distributed.require_same(
        f"the newest step in {config.model_dir}", checkpoint.latest_step(config.model_dir),
        "MODEL_DIR must be a directory that all hosts share",
    )  # fmt: skip
    where = states.abstract(config, tx, mesh)
    found = checkpoint.load_training(config.model_dir, states.to_save(where))
    if found is not None:
        step, saved, progress = found
        model, params = checkpoint.load_model(config.model_dir, shapes)
        if model != config.model:
            raise ConfigError(f"{config.model_dir} holds a model of other settings; choose an empty MODEL_DIR")
        print(f"continuing {config.model_dir} from step {step}")
        return states.from_saved(step, params, saved, where), progress
    state = states.create(config, tx, mesh)
    if config.initial_checkpoint:
        _, params = checkpoint.load_model(config.initial_checkpoint, shapes)
        state = dataclasses.replace(state, params=_start_from(params, state.params, config.initial_checkpoint))
    return state, task.start()


def sharded_shapes(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The weights' shapes, each with its place on the mesh."""
    shapes = parameter_shapes(config)
    return sharding.with_shardings(shapes, sharding.shardings(parameter_axes(config), shapes, mesh))


def _start_from(found: dict[str, Any], fresh: dict[str, Any], source: str) -> dict[str, Any]:
    """Weights of another model; a FAM prompt that it lacks stays new, one that is not asked for is left."""
    merged = {name: found.get(name, fresh[name]) for name in fresh}
    shapes = [jax.tree.map(np.shape, tree) for tree in (merged, fresh)]
    if shapes[0] != shapes[1] or set(fresh) - set(found) - {"fam"}:
        raise ConfigError(f"the weights in {source} have other shapes than the model; use its settings")
    new = "; the FAM prompt is new" if "fam" in set(fresh) - set(found) else ""
    print(f"starting from the weights in {source}{new}")
    return merged
