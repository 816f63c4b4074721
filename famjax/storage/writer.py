"""Steps to disk while a training goes on, in Orbax. `steps.py` says what a step is.

Orbax copies the arrays to the host before `save` returns and writes them from threads; so the next training step
may take the arrays' memory (donation). A step is written beside the others (`N.orbax-checkpoint-tmp`) and renamed
when it is whole, and only then are old ones deleted: whoever is killed on the way leaves the last whole step.

In a job of several processes each calls everything here, and writes its own parts of the arrays; the first one
alone makes folders, renames, deletes and writes the records.
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
from famjax.storage.model_dir import BEST_JSON, CHECKPOINTS, MODEL_JSON, write_text
from famjax.storage.quiet import quiet
from famjax.storage.steps import PROGRESS, TRAINING, WEIGHTS


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which steps stay; all that any of these keeps.

    Attributes:
      last: so many of the newest.
      period: steps that are multiples of it stay for ever; 0 keeps none.
      metric: name of the metric whose best steps stay; empty keeps none.
      best: so many of them.
      mode: `min` or `max`, which of them is best.
    """

    last: int = 1
    period: int = 0
    metric: str = ""
    best: int = 1
    mode: str = "min"

    def value(self, metrics: Mapping[str, Any] | None) -> float:
        """The watched metric, or NaN where it is not there."""
        value = (metrics or {}).get(self.metric)
        return float(value) if isinstance(value, (int, float)) else math.nan

    def ranked(self, values: Mapping[int, float]) -> list[int]:
        """Steps, the best first; of equal ones the later. Steps without a value are left out."""
        sign = 1 if self.mode == "min" else -1
        finite = [step for step, value in values.items() if math.isfinite(value)]
        return sorted(finite, key=lambda step: (sign * values[step], -step))


class Writer:
    """Writes the steps of one training, or of one import. Close it, also after errors: it is a context manager.

    What goes wrong in the background is raised by the next call, whichever that is, as what `explained` makes of it.

    Attributes:
      saved: the newest step that is known to be whole, or None.
    """

    def __init__(
        self, model_dir: str | Path, config: ModelConfig, keep: Keep, saved: int | None = None,
        base: Base | None = None,
    ):  # fmt: skip
        """Opens a model directory.

        Args:
          model_dir: made where there is none.
          config: goes into `model.json`, with the first step.
          keep: which steps stay.
          saved: the step that the training goes on from. Later ones are damaged; they are deleted as soon as
            a new one is saved. None leaves all that there are.
          base: where the weights are that `save` is not given; None where it is given all.

        Raises:
          ConfigError: the directory cannot be written.
        """
        self.root, self.config, self.keep, self.saved = Path(model_dir).absolute(), config, keep, saved
        self.base = base
        self._behind = [] if saved is None else [step for step in steps.all_steps(self.root) if step > saved]
        self._pending: int | None = None
        self._expected: dict[str, Any] = {}  # shapes and types of the step that is being saved, by part
        self._dropped: int | None = None
        self._began = False
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(quiet())
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(_policies(keep)),
            best_fn=keep.value,  # makes Orbax store metrics with each step
            best_mode=keep.mode,
            cleanup_tmp_directories=True,
            # Called by the first process when all have written, before the step gets its name.
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
        """Starts to save a step; waits for the one before, if that is not written yet.

        Args:
          step: steps trained, more than at the last save.
          params: the weights, as `nn.weights.parameters` gives them, or those that the base has not.
          training: any other tree of arrays.
          progress: any small JSON object.
          metrics: numbers by name; of what is not a number nothing is kept.

        Raises:
          ConfigError, RuntimeError: this step, or the one before, could not be written.
        """
        items: dict[str, Any] = {WEIGHTS: ocp.args.StandardSave(params)}
        if training is not None:
            items[TRAINING] = ocp.args.PyTreeSave(training)
        if progress is not None:
            items[PROGRESS] = ocp.args.JsonSave(copy.deepcopy(progress))  # a thread writes it, later
        numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, (int, float))}
        self.wait()
        try:
            self._begin()
            self._pending = step
            self._expected = {WEIGHTS: arrays.types(params)}
            self._expected |= {} if training is None else {TRAINING: arrays.types(training)}
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=numbers or None, force=True)
        except Exception as error:
            self._drop(step)
            raise self.explained(error) from error

    def check(self) -> None:
        """Raises what went wrong in the background, if anything did; never waits for it."""
        if self._pending is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when the step that is being saved is whole; raises what went wrong."""
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
        """Waits for what is being saved and frees what is held. Raises what went wrong."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # what it raises, `wait` has raised
                self._manager.close()
            if self._dropped is not None:  # threads may have written on
                self._drop(self._dropped)
            self._stack.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def explained(self, error: BaseException, step: int | None = None) -> Exception:
        """An error of one line: what could not be written, why, and what is still there."""
        step = self._pending if step is None else step
        what = f"{self.root} cannot be written" if step is None else f"step {step} could not be saved in {self.root}"
        whole = f"step {self.saved} is whole" if self.saved is not None else "no step was saved before"
        reason = _reason(error)
        if reason in (errno.ENOSPC, errno.EDQUOT):
            return ConfigError(f"the disk is full: {what}{self._room()}; {whole}. Make room, then start again")
        if reason == errno.EFBIG:
            return ConfigError(f"a file grew past what is allowed (ulimit -f): {what}; {whole}. Raise the limit")
        if reason is not None:
            why = "it is read-only" if reason == errno.EROFS else "permission denied"
            return ConfigError(f"{what}: {why}; {whole}. Make it writable, then start again")
        return RuntimeError(f"{what} ({first_line(error)}); {whole}")

    # --- the rest is for this class -------------------------------------------------------------------

    def _begin(self) -> None:
        """Before the first step of this writer: the configuration, and away with what is damaged."""
        if self._began:
            return
        if _first_process():
            if self.base is not None:
                bases.write(self.root, self.base)
            write_text(self.root / MODEL_JSON, self.config.to_json())
        for step in self._behind:
            self._manager.delete(step)
        self._began = True

    def _record(self) -> None:
        """In Orbax's thread: the records of a step that is about to get its name, once it is known to be readable.

        Raises:
          RuntimeError: what lies there is not what was saved; then it gets no name.
        """
        assert self._pending is not None
        final = steps.step_dir(self.root, self._pending)
        written = [final, *final.parent.glob(f"{final.name}.orbax-checkpoint-tmp*")]
        folder = next(folder for folder in reversed(written) if folder.is_dir())
        for part, expected in self._expected.items():
            if difference := arrays.difference(expected, arrays.types(arrays.stored(folder / part))):
                raise RuntimeError(f"what was written cannot be read back: {part}/{difference}")
        steps.record_step(folder)

    def _drop(self, step: int) -> None:
        """Gives back the room that a step took which could not be written; what is left the next start removes."""
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
        """How much a step takes and how much there is, where both can be told."""
        try:
            there = shutil.disk_usage(self.root).free
            takes = 0 if self.saved is None else steps.size_of(steps.step_dir(self.root, self.saved))
        except OSError:
            return ""
        return f" (a step takes {_bytes(takes)}, {_bytes(there)} are free)" if takes else f" ({_bytes(there)} are free)"


def _policies(keep: Keep) -> list[Any]:
    """`Keep` in Orbax's words."""
    found: list[Any] = [policies.LatestN(keep.last)]
    if keep.period:
        found.append(policies.EveryNSteps(keep.period))
    if keep.metric:
        found.append(_Best(keep))
    return found


@dataclasses.dataclass
class _Best:
    """Orbax's `BestN`, but for NaN, which is never best, and for being the order that `best.json` has."""

    keep: Keep

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        found = {info.step: self.keep.value(info.metrics) for info in checkpoints}
        best = set(self.keep.ranked(found)[: self.keep.best])
        return [info.step in best for info in checkpoints]


def _first_process() -> bool:
    return jax.process_index() == 0


# Errors that whoever runs the training can put right. tensorstore tells them in words alone.
_WORDS = {
    errno.ENOSPC: "No space left on device", errno.EDQUOT: "quota exceeded", errno.EROFS: "Read-only file system",
    errno.EACCES: "Permission denied", errno.EPERM: "Operation not permitted", errno.EFBIG: "File too large",
}  # fmt: skip


def _reason(error: BaseException) -> int | None:
    """The number of the operating system's error behind this one, where it is one of `_WORDS`."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _WORDS else None
    return next((number for number, words in _WORDS.items() if re.search(words, str(error), re.IGNORECASE)), None)


def is_disk_error(error: BaseException) -> bool:
    """The operating system refused to write, for want of room or of a disk that takes it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def first_line(error: BaseException) -> str:
    """An error in 120 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _bytes(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
