"""The training: batches in, model directory out. Read it from top to bottom."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from famjax.config import TrainConfig
from famjax.data.batch import Progress
from famjax.runtime import checkpoint, distributed, sharding
from famjax.runtime.mesh import make_mesh
from famjax.runtime.model_dir import CONFIG_GIN, write_text
from famjax.train import optim
from famjax.train import state as states
from famjax.train.feed import Feed
from famjax.train.metrics import MetricsLog, ProgressLine
from famjax.train.start import make_task, start
from famjax.train.state import TrainState
from famjax.train.step import compilations, jit_step


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
    task = make_task(config, sharding.local_rows(mesh, config.batch_size))
    tx = optim.optimizer(config.optimizer, config.steps)
    state, progress = start(config, tx, mesh, task)
    first_step = int(state.step)
    if first_step >= config.steps:
        print(f"{config.model_dir} is trained already: {first_step} steps")
        return
    if distributed.is_primary():
        write_text(Path(config.model_dir) / CONFIG_GIN, config_text)
    log = MetricsLog(config.model_dir, first_step)
    rates = optim.schedule(config.optimizer, config.steps)
    step_fn = jit_step(config, tx, mesh)
    began = time.perf_counter()
    meter = _Meter(first_step)
    line = ProgressLine(Path(config.model_dir).name, first_step, config.steps)
    with line, Feed(task, mesh, config.batch_size, first_step, progress) as feed:
        for step in range(first_step, config.steps):
            batch = feed.next()
            state, metrics = step_fn(state, batch.arrays)
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {step + 1}; lower LEARNING_RATE")
            if task.observes:
                feed.observe(metrics["correct"])
            meter.add(int(metrics["tokens"]), loss)
            done = step + 1
            if done % config.log_period == 0 or done == config.steps:
                values = meter.read(done) | task.report(feed.progress)
                line.show(done, values)
                more = {name: float(metrics[name]) for name in ("z_loss", "gradient_norm") if name in metrics}
                more |= {"learning_rate": float(rates(step)), "compilations": compilations(step_fn)}
                log.write(done, values | more | {"seconds": round(time.perf_counter() - began, 3)})
            if done == config.steps or (config.checkpoint_period and done % config.checkpoint_period == 0):
                _save(config, state, feed.progress)
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


def _save(config: TrainConfig, state: TrainState, progress: Progress) -> None:
    checkpoint.save_model(
        config.model_dir, config.model, state.params, step=int(state.step), training=states.to_save(state),
        progress=distributed.merge_progress(progress),
    )  # fmt: skip
