"""Shows the progress of a training on standard error: a live bar on a terminal, else a line at intervals."""

import math
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from famjax.process.progress import clock

# Seconds between lines without a terminal.
PLAIN_SECONDS = 10.0
# Seconds without a line after which a step that is not logged is shown, too.
SILENT_SECONDS = 30.0
# Formats of the values shown, in this order, by name in metrics.jsonl.
SAID = {
    "loss": "loss {:.4g}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "device_memory_gib": "{:.1f} GiB of the device",
    "host_memory_gib": "{:.1f} GiB",
    "exact_match": "exact match {:.2f}",
    "filler_blocks": "up to {:.0f} blocks",
}
# Maximum number of further values of a task that are shown, in a default format.
MOST_OTHERS = 3


class ProgressLine:
    """Shows step, loss, tokens/s, time left, and further values. A context manager; prints nothing if `silent`."""

    def __init__(self, name: str, first_step: int, steps: int, silent: bool = False):
        self.name, self.first_step, self.steps, self.silent = name, first_step, steps, silent
        self._learned = self._printed = time.perf_counter()  # `_printed`: when a step was last shown
        self._learned_at = first_step
        self._logged = -math.inf  # when a logged step was last shown
        console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        if console.is_terminal and not silent:
            columns = (
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn(),
                TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            )  # fmt: skip
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(name, total=steps, completed=first_step, said="compiling")

    def __enter__(self) -> "ProgressLine":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tick(self, step: int) -> None:
        """Counts a step. The first one, which compiles, is left out of the estimate of the time left."""
        if self._learned_at == self.first_step:
            self._learned, self._learned_at = time.perf_counter(), step
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, values: dict[str, Any], task: dict[str, Any]) -> None:
        """Shows `values` of a logged step, and the values that the task reports."""
        if self.silent:
            return
        now = time.perf_counter()
        if self._bar is None and step < self.steps and now - self._logged < PLAIN_SECONDS:
            return
        self._logged = now
        self._say(step, say(values | task) + others(task))

    def between(self, step: int, loss: float) -> None:
        """Shows a step between logged ones if these are far apart, as the steps of a large model are."""
        if not self.silent and time.perf_counter() - self._printed >= SILENT_SECONDS:
            self._say(step, say({"loss": loss}))

    def _say(self, step: int, said: list[str]) -> None:
        # After the first step only the time of its compilation is known.
        if self._learned_at < step < self.steps:
            said = [*said, f"{clock(self.seconds_left(step))} left"]
        self._printed = time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, completed=step, said="  ".join(said))
        else:
            print("  ".join([self.name, f"step {step}/{self.steps}", *said]), file=sys.stderr, flush=True)

    def seconds_left(self, step: int) -> float:
        """Estimates the seconds left from the time per step since the first one, with evaluation and saving."""
        return (time.perf_counter() - self._learned) / (step - self._learned_at) * (self.steps - step)


def say(values: dict[str, Any]) -> list[str]:
    """Returns the values of `SAID` that are present, each formatted."""
    return [words.format(values[name]) for name, words in SAID.items() if values.get(name) is not None]


def others(task: dict[str, Any]) -> list[str]:
    """Returns up to `MOST_OTHERS` numbers that are not in `SAID`, each formatted."""
    more = [(name, value) for name, value in task.items() if name not in SAID and isinstance(value, (int, float))]
    return [f"{name.replace('_', ' ')} {value:.4g}" for name, value in more[:MOST_OTHERS]]
