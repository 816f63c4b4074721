"""Writes the steps of a training in the background, with Orbax. `steps.py` describes the files of a step.

Orbax copies the arrays to the host before `save` returns and writes them from threads, so the next training step may
donate them. A step is written under a temporary name (`N.orbax-checkpoint-tmp`) and renamed when it is complete; only
then are old steps deleted. So a kill at any time leaves the last complete step.

In a job of several processes all of them call every method, and each writes its own shards. Only the first one creates
folders, renames, deletes and writes the records.
"""

import contextlib
import copy
import dataclasses
import errno
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from famjax.config import ConfigError, ModelConfig
from famjax.storage import arrays, steps
from famjax.storage import base as bases
from famjax.storage.base import Base
from famjax.storage.model_dir import BASE_JSON, BEST_JSON, CHECKPOINTS, MODEL_JSON, write_text
from famjax.storage.quiet import quiet
from famjax.storage.steps import PROGRESS, TRAINING, WEIGHTS


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which steps to keep: the union of these rules.

    Attributes:
      last: number of newest steps to keep.
      period: steps that are multiples of it are kept permanently; 0: none.
      metric: name of the metric whose best steps are kept; empty: none.
      best: number of best steps to keep.
      mode: whether the lowest (`min`) or the highest (`max`) value is best.
    """

    last: int = 1
    period: int = 0
    metric: str = ""
    best: int = 1
    mode: str = "min"

    def value(self, metrics: Mapping[str, Any] | None) -> float:
        """Returns the watched metric, or NaN if it is missing."""
        value = (metrics or {}).get(self.metric)
        return float(value) if isinstance(value, (int, float)) else math.nan

    def ranked(self, values: Mapping[int, float]) -> list[int]:
        """Returns the steps with finite values, the best first and, among equal values, the later one first."""
        sign = 1 if self.mode == "min" else -1
        finite = [step for step, value in values.items() if math.isfinite(value)]
        return sorted(finite, key=lambda step: (sign * values[step], -step))


class Writer:
    """Writes the steps of one training, or of one import. It is a context manager; close it after errors, too.

    If a save in the background fails, the next call of any method raises its error, converted by `explained`.

    Attributes:
      saved: the newest step that is known to be complete, or None.
    """

    def __init__(
        self, model_dir: str | Path, config: ModelConfig, keep: Keep, saved: int | None = None, base: Base | None = None
    ):
        """Opens a model directory.

        Args:
          model_dir: created if it does not exist.
          config: written to `model.json` with the first step.
          keep: which steps to keep.
          saved: the step that the training resumes from. Later ones are damaged and are deleted before the next save.
            None: existing steps are left alone.
          base: the base that has the weights not given to `save`; None: `save` gets all weights.

        Raises:
          ConfigError: the directory cannot be written.
        """
        self.root, self.config, self.keep, self.saved = Path(model_dir).absolute(), config, keep, saved
        self.base = base
        self._damaged = [] if saved is None else [step for step in steps.all_steps(self.root) if step > saved]
        self._pending: int | None = None
        self._expected: dict[str, Any] = {}  # shapes and types of the step being saved, by part
        self._dropped: int | None = None
        self._began = False
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(quiet())
        kept: list[Any] = [policies.LatestN(keep.last)]
        if keep.period:
            kept.append(policies.EveryNSteps(keep.period))
        if keep.metric:
            kept.append(_Best(keep))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=keep.value,  # makes Orbax store metrics with each step
            best_mode=keep.mode,
            cleanup_tmp_directories=True,
            # Called in the first process when all have written, before the step is renamed.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._record),
        )
        try:
            self._manager = ocp.CheckpointManager((self.root / CHECKPOINTS).as_posix(), options=options)
        except Exception as error:
            self._stack.close()
            raise self.explained(error) from error

    def save(
        self, step: int, params: Any, training: Any = None, progress: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Waits for the previous save, then starts to save a step.

        Args:
          step: number of steps trained, greater than that of the last save.
          params: the weights, as returned by `nn.weights.parameters`, or those that the base does not have.
          training: any other tree of arrays.
          progress: any small JSON object.
          metrics: numbers by name; other values are dropped.

        Raises:
          ConfigError, RuntimeError: this step or the previous one could not be written.
        """
        items: dict[str, Any] = {WEIGHTS: ocp.args.StandardSave(params)}
        expected = {WEIGHTS: arrays.types(params)}
        if training is not None:
            items[TRAINING] = ocp.args.PyTreeSave(training)
            expected[TRAINING] = arrays.types(training)
        if progress is not None:
            items[PROGRESS] = ocp.args.JsonSave(copy.deepcopy(progress))  # a thread writes it later
        numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, (int, float))}
        self.wait()
        try:
            self._begin()
            self._pending, self._expected = step, expected
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=numbers or None, force=True)
        except Exception as error:
            self._drop(step)
            raise self.explained(error) from error

    def check(self) -> None:
        """Raises the error of a save in the background, if it has failed; never waits."""
        if self._pending is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the step being saved is complete; raises its error if it fails."""
        if self._pending is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            failed, self._pending = self._pending, None
            self._drop(failed)
            raise self.explained(error, failed) from error
        self.saved, self._pending = self._pending, None
        self._write_best()

    def close(self) -> None:
        """Waits for the save in progress and frees resources. Raises its error."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # `wait` has already raised its error
                self._manager.close()
            if self._dropped is not None:  # threads may have continued to write
                self._drop(self._dropped)
            self._stack.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def explained(self, error: BaseException, step: int | None = None) -> Exception:
        """Converts an error to one whose one-line message states what could not be written, why, and which step is
        intact: a `ConfigError` if the user can fix it, else a `RuntimeError`."""
        step = self._pending if step is None else step
        what = f"{self.root} cannot be written" if step is None else f"step {step} could not be saved in {self.root}"
        whole = f"step {self.saved} is intact" if self.saved is not None else "no step was saved before"
        reason = _reason(error)
        if reason in (errno.ENOSPC, errno.EDQUOT):
            return ConfigError(f"the disk is full: {what}{self._room()}; {whole}. Free some space, then start again")
        if reason == errno.EFBIG:
            return ConfigError(f"a file exceeds the size limit (ulimit -f): {what}; {whole}. Raise the limit")
        if reason is not None:
            why = "it is read-only" if reason == errno.EROFS else "permission denied"
            return ConfigError(f"{what}: {why}; {whole}. Make it writable, then start again")
        return RuntimeError(f"{what} ({first_line(error)}); {whole}")

    # --- private methods ------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Writes the configuration and deletes damaged steps, before the first save only."""
        if self._began:
            return
        if _first_process():
            if self.base is not None:
                bases.write(self.root, self.base)
            elif not steps.all_steps(self.root):  # of a training that was killed in its first save
                (self.root / BASE_JSON).unlink(missing_ok=True)
            write_text(self.root / MODEL_JSON, self.config.to_json())
        for step in self._damaged:
            self._manager.delete(step)
        self._began = True

    def _record(self) -> None:
        """Checks that a step is readable and writes its records, before it is renamed. Runs in Orbax's thread. Raises
        `RuntimeError` if the files differ from what was saved; then the step is not renamed."""
        assert self._pending is not None
        final = steps.step_dir(self.root, self._pending)
        written = [final, *final.parent.glob(f"{final.name}.orbax-checkpoint-tmp*")]
        folder = next(folder for folder in reversed(written) if folder.is_dir())
        for part, expected in self._expected.items():
            if difference := arrays.difference(expected, arrays.types(arrays.stored(folder / part))):
                raise RuntimeError(f"what was written cannot be read back: {part}/{difference}")
        steps.record_step(folder)

    def _drop(self, step: int) -> None:
        """Deletes the files of a step that could not be written. The next start removes the rest."""
        self._dropped = step
        if _first_process():
            for folder in (self.root / CHECKPOINTS).glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(folder, ignore_errors=True)

    def _write_best(self) -> None:
        if not self.keep.metric or not _first_process():
            return
        found = {step: self.keep.value(steps.recorded_metrics(self.root, step)) for step in steps.all_steps(self.root)}
        best = [{"step": step, self.keep.metric: found[step]} for step in self.keep.ranked(found)[: self.keep.best]]
        content = {"metric": self.keep.metric, "mode": self.keep.mode, "checkpoints": best}
        try:
            write_text(self.root / BEST_JSON, json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise self.explained(error) from error

    def _room(self) -> str:
        """Describes the free disk space and, if a step was saved, its size; empty if they are unknown."""
        try:
            there = shutil.disk_usage(self.root).free
            takes = 0 if self.saved is None else steps.size_of(steps.step_dir(self.root, self.saved))
        except OSError:
            return ""
        return f" (a step takes {_bytes(takes)}, {_bytes(there)} are free)" if takes else f" ({_bytes(there)} are free)"


@dataclasses.dataclass
class _Best:
    """Like Orbax's `BestN`, except that NaN is never best, and with the order of `best.json`."""

    keep: Keep

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        found = {info.step: self.keep.value(info.metrics) for info in checkpoints}
        best = set(self.keep.ranked(found)[: self.keep.best])
        return [info.step in best for info in checkpoints]


def _first_process() -> bool:
    return jax.process_index() == 0


# Errors that the user can fix, with the words of their messages, since tensorstore reports no errno.
_WORDS = {
    errno.ENOSPC: "No space left on device", errno.EDQUOT: "quota exceeded", errno.EROFS: "Read-only file system",
    errno.EACCES: "Permission denied", errno.EPERM: "Operation not permitted", errno.EFBIG: "File too large",
}  # fmt: skip


def _reason(error: BaseException) -> int | None:
    """Returns the errno of an error, or the one that its message describes, if it is in `_WORDS`; else None."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _WORDS else None
    return next((number for number, words in _WORDS.items() if re.search(words, str(error), re.IGNORECASE)), None)


def is_disk_error(error: BaseException) -> bool:
    """Whether the operating system refused to write: no space, a quota, a read-only disk, or a file too large."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def first_line(error: BaseException) -> str:
    """Formats an error as its type and at most 120 characters of its message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _bytes(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
