"""Progress of a training on standard error, live on a terminal."""

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
# Formats of the values shown, in this order, by their names in metrics.jsonl.
SAID = {
    "loss": "loss {:.4g}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "device_memory_gib": "{:.1f} GiB of the device",
    "host_memory_gib": "{:.1f} GiB",
    "exact_match": "exact match {:.2f}",
    "filler_blocks": "up to {:.0f} blocks",
}
# Number of other values of a task that are shown, with a default format.
MOST_OTHERS = 3


class ProgressLine:
    """Shows step, loss, tokens/s, time left, and further values that are known."""

    def __init__(self, name: str, first_step: int, steps: int, silent: bool = False):
        self.name, self.first_step, self.steps, self.silent = name, first_step, steps, silent
        self._began = self._learned = time.perf_counter()
        self._learned_at = first_step
        self._printed = -math.inf
        console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        if console.is_terminal and not silent:
            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
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
        """Shows the values of a logged step, and those that the task reports."""
        if self.silent:
            return
        now = time.perf_counter()
        if self._bar is None and step < self.steps and now - self._printed < PLAIN_SECONDS:
            return
        said = say(values | task) + others(task) + [f"{clock(self.seconds_left(step))} left"] * (step < self.steps)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, said="  ".join(said))
        else:
            self._printed = now
            print("  ".join([self.name, f"step {step}/{self.steps}", *said]), file=sys.stderr, flush=True)

    def seconds_left(self, step: int) -> float:
        """Estimates the time left from the steps after the first one, including everything between them."""
        since, done = (self._learned, step - self._learned_at)
        if done <= 0:
            since, done = self._began, max(step - self.first_step, 1)
        return (time.perf_counter() - since) / done * (self.steps - step)


def say(values: dict[str, Any]) -> list[str]:
    """Formats the values that have a format."""
    return [words.format(values[name]) for name, words in SAID.items() if values.get(name) is not None]


def others(task: dict[str, Any]) -> list[str]:
    """Formats values of a task that have none."""
    more = [(name, value) for name, value in task.items() if name not in SAID and isinstance(value, (int, float))]
    return [f"{name.replace('_', ' ')} {value:.4g}" for name, value in more[:MOST_OTHERS]]
