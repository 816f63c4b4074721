"""The training: batches in, model directory out. Read it from top to bottom."""

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from famjax.config import ConfigError, ModelConfig, TrainConfig
from famjax.data.batch import Task
from famjax.data.passkey import PassKeyTask
from famjax.nn.model import parameter_axes, parameter_shapes
from famjax.runtime import checkpoint, sharding
from famjax.runtime.mesh import make_mesh
from famjax.runtime.model_dir import CONFIG_GIN, write_text
from famjax.train import optim
from famjax.train import state as states
from famjax.train.metrics import MetricsLog, ProgressLine
from famjax.train.state import TrainState
from famjax.train.step import compilations, jit_step


def make_task(config: TrainConfig) -> Task:
    """The task that `config.task` names."""
    task = PassKeyTask(
        config.passkey, config.sequence_length, config.model.memory.block_size, config.batch_size,
        config.model.vocab_size, config.seed,
    )  # fmt: skip
    if task.stages != config.passkey.stages:
        print(f"rows of {config.sequence_length} tokens hold at most {task.stages[-1]} blocks of filler; "
              f"later stages are left out")  # fmt: skip
    return task


def train(config: TrainConfig, config_text: str) -> None:
    """Trains, from the newest checkpoint in `config.model_dir` where there is one.

    Args:
      config: the run.
      config_text: its gin settings, kept as `config.gin` in the model directory.

    Raises:
      ConfigError: a setting that cannot work, before anything is written.
      FloatingPointError: the loss is no number; the last checkpoint stays as it is.
    """
    config.validate()
    mesh = make_mesh(config.mesh_sizes)
    task = make_task(config)
    tx = optim.optimizer(config.optimizer, config.steps)
    state, progress = _start(config, tx, mesh, task)
    first_step = int(state.step)
    if first_step >= config.steps:
        print(f"{config.model_dir} is trained already: {first_step} steps")
        return
    write_text(Path(config.model_dir) / CONFIG_GIN, config_text)
    log = MetricsLog(config.model_dir, first_step)
    rates = optim.schedule(config.optimizer, config.steps)
    step_fn = jit_step(config, tx, mesh)
    began = time.perf_counter()
    meter = _Meter(first_step)
    with ProgressLine(Path(config.model_dir).name, first_step, config.steps) as line:
        for step in range(first_step, config.steps):
            batch = task.batch(step, progress)
            state, metrics = step_fn(state, batch)
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {step + 1}; lower LEARNING_RATE")
            progress = task.observe(progress, batch, np.asarray(metrics["correct"]))
            meter.add(int(batch.count.sum()), loss)
            done = step + 1
            if done % config.log_period == 0 or done == config.steps:
                values = meter.read(done) | task.report(progress)
                line.show(done, values)
                more = {name: float(metrics[name]) for name in ("z_loss", "gradient_norm") if name in metrics}
                more |= {"learning_rate": float(rates(step)), "compilations": compilations(step_fn)}
                log.write(done, values | more | {"seconds": round(time.perf_counter() - began, 3)})
            if done == config.steps or (config.checkpoint_period and done % config.checkpoint_period == 0):
                _save(config, state, progress)
    minutes = (time.perf_counter() - began) / 60
    print(f"trained {config.steps - first_step} steps in {minutes:.1f} minutes; the model is in {config.model_dir}")
    print(f"next: famjax eval --model {config.model_dir}")


class _Meter:
    """Loss averaged, and tokens a second, since the last reading. Compiling counts, so the first is slow."""

    def __init__(self, first_step: int):
        self.first_step = first_step
        self._reset()

    def _reset(self) -> None:
        self.began, self.tokens, self.losses = time.perf_counter(), 0, []

    def add(self, tokens: int, loss: float) -> None:
        self.tokens += tokens
        self.losses.append(loss)

    def read(self, step: int) -> dict[str, Any]:
        rate = self.tokens / (time.perf_counter() - self.began)
        values = {"loss": float(np.mean(self.losses)), "tokens_per_second": round(rate, 1)}
        self._reset()
        return values


def _start(
    config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh, task: Task
) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint of this run, else other weights to start from, else random ones.

    What is read goes straight to where it belongs on the mesh, whatever mesh it was written from.
    """
    shapes = functools.partial(sharded_shapes, mesh=mesh)
    optim.check_patterns(config.optimizer, shapes(config.model))
    where = states.abstract(config, tx, mesh)
    found = checkpoint.load_training(config.model_dir, _rest(where))
    if found is not None:
        step, rest, progress = found
        model, params = checkpoint.load_model(config.model_dir, shapes)
        if model != config.model:
            raise ConfigError(f"{config.model_dir} holds a model of other settings; choose an empty MODEL_DIR")
        print(f"continuing {config.model_dir} from step {step}")
        zeros = lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        no_fam = {"passed_fam": zeros(where.passed_fam), "passed_updates": zeros(where.passed_updates)}
        rest = {"step": jax.device_put(np.int32(step), where.step.sharding)} | no_fam | rest
        return TrainState(params=params, **rest), progress
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


def _rest(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds beside the weights. Orbax stores no empty array, so no FAM of length 0."""
    passed = {"passed_fam": state.passed_fam, "passed_updates": state.passed_updates} if state.passed_fam.size else {}
    return {"opt_state": state.opt_state, **passed}


def _save(config: TrainConfig, state: TrainState, progress: dict[str, Any]) -> None:
    checkpoint.save_model(
        config.model_dir, config.model, state.params, step=int(state.step), training=_rest(state), progress=progress
    )
