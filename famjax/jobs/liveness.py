"""Reports the progress of a process to its supervisor and, on request, the stacks of its threads.

A supervisor (`famjax/launch/supervisor.py`) names two files in the environment. A training writes its step into the
first, so that a hang is detected; on SIGUSR1 the stacks of all threads are written into the second. Without these
variables no file is written, and stacks go to standard error. Imports nothing heavy.
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
# Minimum seconds between progress reports; steps may be shorter.
EVERY_SECONDS = 0.5


class Progress(NamedTuple):
    """Progress of a training.

    Attributes:
      step: steps done.
      steps: steps of the whole training; it is finished if both are equal.
    """

    step: int
    steps: int


def answer(environment: Mapping[str, str] = os.environ) -> None:
    """Installs a handler that writes the stacks of all threads on SIGUSR1, also while compiled code runs."""
    path = environment.get(STACKS)
    # Never closed: the handler writes to its descriptor, and cannot open files.
    file = open(path, "w", encoding="utf-8") if path else sys.__stderr__  # noqa: SIM115
    if file is not None:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


class Beat:
    """Reports progress, at most every `EVERY_SECONDS`, and at the last step."""

    def __init__(self, steps: int, environment: Mapping[str, str] = os.environ):
        self.path, self.steps = environment.get(PROGRESS), steps
        self._reported = 0.0

    def step(self, step: int) -> None:
        """Reports that `step` steps are done."""
        if self.path is None or (time.monotonic() - self._reported < EVERY_SECONDS and step < self.steps):
            return
        self._reported = time.monotonic()
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(f"{step} {self.steps}\n")


def read(path: Path) -> Progress | None:
    """Returns the last report; None before the first step, or while it is being written."""
    try:
        step, steps = path.read_text(encoding="utf-8").split()
        return Progress(int(step), int(steps))
    except (OSError, ValueError):
        return None
