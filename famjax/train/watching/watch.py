"""Reports of a training, and its guard against NaN. The loop calls it at every step.

All processes of a job run the same programs here; process 0 prints and writes.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from famjax.config import TrainConfig
from famjax.data.batch import Batch
from famjax.jobs.liveness import Beat
from famjax.process import memory
from famjax.process.progress import clock
from famjax.storage.model_dir import PROFILE
from famjax.train.state import TrainState
from famjax.train.watching import guard, norms
from famjax.train.watching.diagnostics import jit_diagnostics
from famjax.train.watching.flops import flops_per_token, peak_flops
from famjax.train.watching.metrics import MetricsLog, TensorBoard
from famjax.train.watching.progress_line import ProgressLine

EMPTY: Mapping[str, Any] = {}
# The metrics that the loop waits for after each step.
AWAITED = ("loss", "gradient_norm", "update_norm", "tokens")
# The metrics that a line has as they are.
LOGGED = ("z_loss", "fam_growth_loss", "distillation_loss", "fam_gate", "gradient_norm", "accuracy", "learning_rate")


class Watch:
    """Runs the progress line, `metrics.jsonl`, TensorBoard, memory diagnostics, the profile, and the guard against NaN.

    A context manager. Steps are counted from 1: checkpoint n is the state after step n.

    Attributes:
      last: values of the last logged step, by name.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh, first_step: int, logged: Mapping[str, Any] = EMPTY):
        """`first_step`: steps already done; `logged`: `to_save` of the checkpoint that the run resumes from."""
        primary = jax.process_index() == 0
        self.config, self.mesh, self.first_step, self.primary = config, mesh, first_step, primary
        self._line = ProgressLine(Path(config.model_dir).name, first_step, config.steps, silent=not primary)
        self._log = MetricsLog(config.model_dir, first_step) if primary else None
        self._board = TensorBoard(config.model_dir, first_step) if primary else None
        self._diagnose = jit_diagnostics(config, mesh)
        self._peak = peak_flops(mesh.devices.flat)
        self._beat = Beat(config.steps)
        self._losses: list[float] = list(logged.get("losses", ()))
        self.last: dict[str, Any] = dict(logged.get("last", {}))
        self._more: dict[str, Any] = {}
        self._bad: int = logged.get("bad", 0)  # older checkpoints have neither
        if skipped := logged.get("bad_steps", 0):
            self._more["bad_steps"] = skipped
        self._flops, self._tokens, self._all_tokens = 0.0, 0, 0
        self._trace: Any = None
        self._began = self._since = time.perf_counter()

    def __enter__(self) -> "Watch":
        self._line.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop_profile()
        self._line.__exit__(kind, error, trace)
        if self._board is not None:
            self._board.close()

    # --- a step -----------------------------------------------------------------------------------

    def before(self, step: int, state: TrainState, batch: Batch) -> None:
        """Runs diagnostics and starts the profile, if due. Call it before the step, which donates `state`."""
        if not self._flops:
            self._flops = flops_per_token(self.config, batch.targets.shape[1])
        if self.config.diagnoses(step):
            with self._aside():
                self._more |= self._diagnose(state, batch)
        self._start_profile(step)

    def after(self, step: int, metrics: dict[str, Any], state: TrainState, batch: Batch) -> bool:
        """Waits for the metrics of a step and records them. Returns False if the step is bad and was skipped.

        Raises:
          FloatingPointError: the loss, gradient or update is not finite; the message locates the cause.
        """
        found = {name: float(value) for name, value in jax.device_get({n: metrics[n] for n in AWAITED}).items()}
        self._stop_profile(step)
        bad = [name for name in AWAITED if not math.isfinite(found[name])]
        if bad:
            self._bad += 1
            # A bad update has already been applied. After a bad loss or gradient the step has kept the old weights.
            if bad == ["update_norm"] or self._bad > self.config.skip_bad_steps:
                raise FloatingPointError(self._explain(step, bad[0], found, metrics, state, batch))
            self._more["bad_steps"] = self._more.get("bad_steps", 0) + 1
        else:
            self._bad = 0
            self._losses.append(found["loss"])
        self._tokens += int(found["tokens"])
        self._all_tokens += int(found["tokens"])
        self._line.tick(step)
        if not self.config.logs(step):
            self._line.between(step, found["loss"])
        self._beat.step(step)
        return not bad

    def log(self, step: int, metrics: dict[str, Any], task: dict[str, Any], compilations: int) -> None:
        """Logs a step to the progress line, `metrics.jsonl` and TensorBoard.

        `metrics` are those of `make_step`, `task` the values that the task reports, `compilations` the number of
        programs compiled for the step so far.
        """
        rate = self._tokens / max(time.perf_counter() - self._since, 1e-9)
        loss = float(np.mean(self._losses)) if self._losses else None
        values: dict[str, Any] = {"loss": loss, "tokens_per_second": round(rate, 1)}
        if self._peak:
            values["mfu"] = round(rate * self._flops / self._peak, 4)
        values |= memory.used()
        sums = jax.device_get(metrics["squares"])
        more: dict[str, Any] = {name: float(metrics[name]) for name in LOGGED if name in metrics}
        for name in ("gradient", "update", "weight"):
            more |= {f"{name}_norm/{group}": norm for group, norm in norms.group_norms(sums[name]).items()}
        more |= self._more | {"compilations": compilations, "seconds": round(time.perf_counter() - self._began, 3)}
        # JSON has no NaN; a step that was skipped may have some.
        finite = lambda value: value if not isinstance(value, float) or math.isfinite(value) else None
        self.last = {name: finite(value) for name, value in (values | task | more).items()}
        self._line.show(step, values, task)
        if self._log is not None and self._board is not None:
            for writer in (self._log, self._board):
                writer.write(step, self.last)
        self._losses, self._more, self._tokens, self._since = [], {}, 0, time.perf_counter()

    def evaluate(self, call: Callable[[Any, int], dict[str, float]], model: Any, step: int) -> None:
        """Adds the results of `call` to the next log line as `eval/...`; its time does not count as training."""
        with self._aside():
            self._more |= {f"eval/{name}": value for name, value in call(model, step).items()}

    def to_save(self) -> dict[str, Any]:
        """Returns the values that a resumed run needs to log and to stop as an uninterrupted one: the losses and the
        number of skipped steps since the last line, the number of steps that were skipped in a row, and `last`."""
        skipped = self._more.get("bad_steps", 0)
        return {"losses": self._losses, "last": self.last, "bad": self._bad, "bad_steps": skipped}

    def finish(self) -> None:
        """Prints what was trained, how long it took, where the model is, and a next command."""
        if not self.primary:
            return
        config, seconds = self.config, time.perf_counter() - self._began
        new = config.steps - self.first_step
        print(f"trained {new} steps of {config.batch_size} rows in {seconds / 60:.1f} minutes ({clock(seconds)}), "
              f"{self._all_tokens:,} tokens; the model is in {config.model_dir}")  # fmt: skip
        print(f"metrics: {config.model_dir}/metrics.jsonl, or tensorboard --logdir {config.model_dir}")
        print(f"next: famjax eval --model {config.model_dir}")

    # --- parts ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Excludes the time within the context from tokens per second."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def _explain(
        self, step: int, name: str, found: dict[str, float], metrics: dict[str, Any], state: TrainState, batch: Batch
    ) -> str:
        try:
            squares = jax.device_get(metrics["squares"])
            where = guard.explain(self.config, self.mesh, state, batch, found["loss"], squares)
        except Exception as error:  # the run must still stop with its reason
            where = f"the cause could not be located ({type(error).__name__})"
        what = {"loss": "loss", "gradient_norm": "gradient's norm", "update_norm": "update's norm"}[name]
        return f"the {what} is {found[name]} at step {step}: {where}; lower LEARNING_RATE, or look at the data"

    def _start_profile(self, step: int) -> None:
        first, last = self.config.profile_steps or (0, -1)
        if not first <= step <= last:
            return
        if self._trace is None:
            jax.profiler.start_trace(str(Path(self.config.model_dir) / PROFILE))
        self._trace = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._trace.__enter__()

    def _stop_profile(self, step: int | None = None) -> None:
        """Ends the profile of a step; after the last profiled step, or at the end of the run, writes the profile."""
        if self._trace is None:
            return
        self._trace.__exit__(None, None, None)
        if step is None or step >= self.config.profile_steps[1]:
            jax.profiler.stop_trace()
            self._trace = None
