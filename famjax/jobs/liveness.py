"""What a process tells the supervisor that started it: how far it is, and on request where it stands.

A supervisor (`famjax/launch/supervisor.py`) names two files in the environment. Into the first a training writes
its step, so that a job that stands still is noticed; into the second every thread's stack goes when SIGUSR1 comes.
Without these variables nothing is written, and stacks go to standard error. Imports nothing heavy.
"""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PROGRESS, STACKS = "FAMJAX_PROGRESS_FILE", "FAMJAX_STACKS_FILE"
# Steps may be shorter than what a supervisor would ever notice.
EVERY_SECONDS = 0.5


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
      step: done.
      steps: of the whole training; it is finished where both are equal.
    """

    step: int
    steps: int


def answer(environment: Mapping[str, str] = os.environ) -> None:
    """From now on SIGUSR1 writes the stacks of all threads, also while the process waits in compiled code."""
    path = environment.get(STACKS)
    # Kept open for good: the handler writes to its descriptor, and may not open anything.
    file = open(path, "w", encoding="utf-8") if path else sys.__stderr__  # noqa: SIM115
    if file is not None:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


class Beat:
    """Tells how far a training is, at most every `EVERY_SECONDS`, and at its last step."""

    def __init__(self, steps: int, environment: Mapping[str, str] = os.environ):
        self.path, self.steps = environment.get(PROGRESS), steps
        self._told = 0.0

    def step(self, step: int) -> None:
        """A step is done."""
        if self.path is None or (time.monotonic() - self._told < EVERY_SECONDS and step < self.steps):
            return
        self._told = time.monotonic()
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(f"{step} {self.steps}\n")


def read(path: Path) -> Progress | None:
    """What a process told last; None before its first step, and in the moment in which it writes."""
    try:
        step, steps = path.read_text(encoding="utf-8").split()
        return Progress(int(step), int(steps))
    except (OSError, ValueError):
        return None
