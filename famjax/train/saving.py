"""Decides when a training saves, and ends it: at its last step, on a signal, or on an error."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from famjax.config import ConfigError, TrainConfig
from famjax.jobs import distributed
from famjax.process import interrupts
from famjax.storage import lock
from famjax.storage.base import Base
from famjax.storage.writer import Keep, Writer, is_disk_error
from famjax.train import state as states
from famjax.train.state import TrainState

now = time.monotonic  # a name of this module, so that tests can replace this clock alone


@contextlib.contextmanager
def only_training(model_dir: str | Path) -> Iterator[None]:
    """Locks a model directory against other trainings; in a multi-process job, process 0 holds the lock. Raises
    `ConfigError` if another training holds it, the directory cannot be written, or the disk is full."""
    with lock.held(model_dir) if jax.process_index() == 0 else contextlib.nullcontext():
        try:
            yield
        except OSError as error:
            if not is_disk_error(error):
                raise
            raise ConfigError(f"{error.filename or model_dir} cannot be written: {error.strerror}") from error


class Saver:
    """Decides when to save, saves in the background, and reports at the end what is on disk.

    A context manager around the training loop. Every process of a job must call each method, at the same steps.

    Attributes:
      stopping: SIGTERM was received, by this or another process, and the step is saved; the loop must end.
    """

    def __init__(self, config: TrainConfig, first_step: int, base: Base | None = None):
        """`first_step`: steps already done; `base`: the model with the frozen weights, None: save all weights."""
        self.config, self.stopping = config, False
        best = (config.keep_best_metric, config.keep_best, config.keep_best_mode)
        keep = Keep(config.keep_checkpoints, config.keep_period, *best)
        self.writer = Writer(config.model_dir, config.model, keep, first_step or None, base)
        self._done, self._saved_at, self._metric_missed = first_step, now(), False

    def due(self, done: int) -> bool:
        """Whether to save now, after `done` steps. Raises the error of the previous save if it failed."""
        self.writer.check()
        self._done = done
        config = self.config
        minutes = config.checkpoint_minutes and now() - self._saved_at >= 60 * config.checkpoint_minutes
        timed, self.stopping = distributed.in_any_process(bool(minutes), interrupts.requested() == signal.SIGTERM)
        periodic = config.checkpoint_period and done % config.checkpoint_period == 0
        return bool(done == config.steps or periodic or timed or self.stopping)

    def save(self, state: TrainState, progress: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Starts to save a state. Its arrays may be donated afterwards.

        Args:
          state: the state after the number of steps that was last passed to `due`.
          progress: the JSON state of the training, the same in every process.
          metrics: metrics of the last logged step, by name.
        """
        self._saved_at = now()
        self._look_for_metric(metrics)
        params = state.params if self.writer.base is None else states.own_weights(self.config, state.params)
        self.writer.save(self._done, params, states.to_save(state), progress, metrics)

    def _look_for_metric(self, metrics: dict[str, Any]) -> None:
        wanted = self.config.keep_best_metric
        if wanted and wanted not in metrics and not self._metric_missed and jax.process_index() == 0:
            self._metric_missed = True
            there = ", ".join(sorted(name for name, value in metrics.items() if isinstance(value, (int, float))))
            print(f"step {self._done} has no metric {wanted!r}, so it cannot be the best; it has {there or 'none'}",
                  file=sys.stderr)  # fmt: skip

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.writer.close()
            return
        try:
            self.writer.close()
        except Exception as second:
            raise second from error
        if is_disk_error(error):
            raise self.writer.explained(error) from error
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted after step {self._done}; {self.saved()}") from error
        if isinstance(error, FloatingPointError):
            step = self.writer.saved
            kept = "no step of this run is saved yet" if step is None else f"the checkpoint of step {step} is untouched"
            raise FloatingPointError(f"{error}; {kept}") from error

    def saved(self) -> str:
        """Returns a line for the user on the newest saved step."""
        step = self.writer.saved
        if step is None:
            return f"nothing is saved in {self.config.model_dir}"
        return f"step {step} is saved in {self.config.model_dir}; run the same command to resume"
