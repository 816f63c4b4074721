"""What a person sees of a training, and what is left of it in `metrics.jsonl`."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from famjax.runtime import distributed
from famjax.runtime.model_dir import METRICS_JSONL, write_text

# Without a terminal, a line so many seconds apart.
PLAIN_SECONDS = 10.0


class MetricsLog:
    """`metrics.jsonl`: one JSON object a logged step. Lines behind `first_step` are from a run that
    was stopped before it could save that step; they are dropped, and that part is trained again."""

    def __init__(self, model_dir: str | Path, first_step: int):
        self.path = Path(model_dir) / METRICS_JSONL
        if not distributed.is_primary():
            return
        old = self.path.read_text(encoding="utf-8").splitlines() if first_step and self.path.exists() else []
        kept = [line for line in old if _step(line) <= first_step]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line; only the first process of a job does."""
        if not distributed.is_primary():
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off while it was written


class ProgressLine:
    """Step, loss, tokens/s and time left: one live line on a terminal, else a line now and then."""

    def __init__(self, name: str, first_step: int, steps: int):
        self.name, self.first_step, self.steps = name, first_step, steps
        self.began, self.printed = time.perf_counter(), -PLAIN_SECONDS
        self.live = sys.stderr.isatty() and distributed.is_primary()

    def show(self, step: int, values: dict[str, Any]) -> None:
        """Shows the values of a step."""
        if not distributed.is_primary():
            return
        elapsed = time.perf_counter() - self.began
        if not self.live and step < self.steps and elapsed - self.printed < PLAIN_SECONDS:
            return
        self.printed = elapsed
        left = elapsed / max(step - self.first_step, 1) * (self.steps - step)
        shown = "  ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in values.items())
        text = f"{self.name}  step {step}/{self.steps}  {shown}  {_clock(left)} left"
        print(f"\r\033[K{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            print(file=sys.stderr)


def _short(value: Any) -> str:
    if isinstance(value, int) or (isinstance(value, float) and value >= 1000):
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
