"""When a training saves, and how it ends: at its last step, by a signal, or on an error."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax

from famjax.config import ConfigError, TrainConfig
from famjax.runtime import distributed, lock
from famjax.runtime.base import Base
from famjax.runtime.writer import Keep, Writer, is_disk_error
from famjax.train import state as states
from famjax.train.state import TrainState

now = time.monotonic  # of its own name, so that tests can turn this clock alone


@contextlib.contextmanager
def only_training(model_dir: str | Path) -> Iterator[None]:
    """While no other training writes into a directory; in a job of several processes the first one sees to it.

    Raises:
      ConfigError: another one does, or the directory cannot be written, or the disk is full.
    """
    with lock.held(model_dir) if jax.process_index() == 0 else contextlib.nullcontext():
        try:
            yield
        except OSError as error:
            if not is_disk_error(error):
                raise
            raise ConfigError(f"{error.filename or model_dir} cannot be written: {error.strerror}") from error


class StopSignal:
    """SIGTERM as a wish: the step that is being computed is finished and saved. A second signal ends at once.

    Schedulers send SIGTERM some seconds to minutes before they kill (preemption, `kubectl delete`, `scancel`).
    Ctrl-C (SIGINT) stays what it is in Python until then. Signals reach Python's main thread between two of
    its instructions, so while a step or the compiler runs they wait.
    """

    def __init__(self) -> None:
        self.wished = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._first)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.wished = True
        _say("SIGTERM: this step is finished and saved, then the training ends; a second signal ends it at once")
        self.at_once()

    def at_once(self) -> None:
        """From now on SIGTERM and SIGINT end the process, whatever it does, with 128 + their number."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before = signal.signal(number, _leave)
                self._before.setdefault(number, before)


def _leave(number: int, frame: FrameType | None) -> None:
    _say("ended at once; what was being saved is lost, the checkpoint before it is whole")
    os._exit(128 + number)


def _say(line: str) -> None:
    """Not `print`, which a signal may have interrupted."""
    os.write(2, f"{line}\n".encode())


class Saver:
    """Decides when to save, saves in the background, and says at the end what is on disk.

    A context manager around the loop. All its methods are called by every process of a job, at the same steps.

    Attributes:
      stopping: SIGTERM has come, here or in another process, and the step is saved: leave the loop.
    """

    def __init__(self, config: TrainConfig, first_step: int, stop: StopSignal, base: Base | None = None):
        """`base` has the weights that are not trained; None saves all of them."""
        self.config, self.stop, self.stopping = config, stop, False
        best = {"metric": config.keep_best_metric, "best": config.keep_best, "mode": config.keep_best_mode}
        keep = Keep(config.keep_checkpoints, config.keep_period, **best)
        self.writer = Writer(config.model_dir, config.model, keep, first_step or None, base)
        self._done, self._saved_at, self._metric_missed = first_step, now(), False

    def due(self, done: int) -> bool:
        """Whether to save now, after `done` steps. Raises what went wrong with the save before."""
        self.writer.check()
        self._done = done
        config = self.config
        minutes = config.checkpoint_minutes and now() - self._saved_at >= 60 * config.checkpoint_minutes
        timed, self.stopping = distributed.in_any_process(bool(minutes), self.stop.wished)
        periodic = config.checkpoint_period and done % config.checkpoint_period == 0
        return bool(done == config.steps or periodic or timed or self.stopping)

    def save(self, state: TrainState, progress: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Starts to save a state; the arrays may be donated afterwards.

        Args:
          state: after `due`'s steps.
          progress: all of the training that is JSON, the same in every process.
          metrics: the last ones that were logged.
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
            try:
                self.writer.close()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"interrupted while step {self._done} was being saved; {self.saved()}"
                ) from None
            return
        self.stop.at_once()  # the wait below may be long
        try:
            self.writer.close()
        except Exception as second:
            raise second from error
        if is_disk_error(error):
            raise self.writer.explained(error) from error
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted in step {self._done + 1}; {self.saved()}") from error

    def saved(self) -> str:
        """What is on disk, in words."""
        step = self.writer.saved
        if step is None:
            return f"nothing is saved in {self.config.model_dir}"
        return f"step {step} is saved in {self.config.model_dir}; the same command goes on from there"
