"""Keeps a training going on this machine: starts it again after a failure, a preemption or a hang.

A training resumes by itself from its last checkpoint, so to start it again is to give the same command again. In a
job of several hosts each host has its own supervisor: when one process dies the others leave too (jobs/peers.py),
every supervisor starts its own again, and they meet as at the first time.
"""

import dataclasses
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from famjax.config import ConfigError
from famjax.config.checks import at_least
from famjax.jobs import liveness
from famjax.launch.commands import say
from famjax.launch.processes import Attempt
from famjax.storage.model_dir import write_text
from famjax.storage.steps import latest_step

# The exit code of a job that was told to stop before its last step: the same command again would go on.
UNFINISHED = 75
MISTAKE, INTERRUPTED = 2, 130
STACKS = "stacks"
LONGEST_BACKOFF = 300.0
# Other hosts' supervisors notice a hang within a step of each other; so long each one waits before it ends its
# processes, since that ends the others' too, and with them their stacks.
OTHERS_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Supervision:
    """When a job is started again.

    Attributes:
      restarts: so often without progress; an attempt that came further than all before counts anew.
      hang_seconds: a job that makes no step for so long hangs; 0 never looks.
      start_seconds: the same up to an attempt's first step, which waits for other hosts, reads and compiles.
      backoff_seconds: before the first restart; doubles with each one that brought no progress, up to 300 s.
    """

    restarts: int = 10
    hang_seconds: float = 1800.0
    start_seconds: float = 3600.0
    backoff_seconds: float = 10.0

    def validate(self) -> None:
        """Raises `ConfigError` on a number that cannot work."""
        for name in ("restarts", "hang_seconds", "start_seconds", "backoff_seconds"):
            at_least(f"--{name.replace('_', '-')}", getattr(self, name), 0)
        if 0 < self.hang_seconds < 1:
            raise ConfigError("--hang-seconds is less than a second; steps are told twice a second; use 0 for no limit")


class Supervisor:
    """The attempts at one job.

    Args:
      start: begins an attempt, whose processes note what they tell in the folder that is given.
      model_dir: of the training; stacks of a job that hung go to `stacks/` there.
      settings: when to start again.
    """

    def __init__(self, start: Callable[[Path], Attempt], model_dir: str, settings: Supervision):
        self.start, self.model_dir, self.settings = start, model_dir, settings
        self.attempt: Attempt | None = None
        self._told: Attempt | None = None
        self._number = signal.SIGTERM
        self._stopped = threading.Event()
        self._hung = ""
        self._seen: dict[int, tuple[int, float, bool]] = {}

    def stop(self, number: int) -> None:
        """Passes a signal on; afterwards nothing is started again. For a signal handler."""
        self._number = signal.Signals(number)
        self._stopped.set()
        if self.attempt is not None:
            self._told = self.attempt
            self.attempt.send(number)

    def run(self) -> int:
        """Attempts until the training is finished, or starting again cannot help.

        Returns:
          0 where the training is finished, `UNFINISHED` where it was told to stop before, else the last attempt's
          exit code.
        """
        furthest, failures, restarts = -1, 0, 0
        while True:
            with tempfile.TemporaryDirectory(prefix="famjax-") as notes:
                code, progress = self._try(Path(notes))
            finished = code == 0 and (progress is None or progress.step >= progress.steps)
            if finished or (not self._hung and code in (MISTAKE, INTERRUPTED)):
                return code
            if self._stopped.is_set():
                return UNFINISHED if code in (0, 128 + signal.SIGTERM) else code
            step = -1 if progress is None else progress.step
            failures = 1 if step > furthest else failures + 1
            furthest = max(furthest, step)
            what = self._hung or (f"ended with exit code {code}" if code else "was told to stop")
            at = "before its first step" if progress is None else f"at step {step} of {progress.steps}"
            if failures > self.settings.restarts:
                say(f"the job {what} {at}; {failures} attempts came no further, so it is not started again")
                return code or UNFINISHED
            pause = min(self.settings.backoff_seconds * 2 ** (failures - 1), LONGEST_BACKOFF)
            restarts += 1
            say(f"the job {what} {at}; restart {restarts} in {pause:g} s, {self._from()}")
            if self._stopped.wait(pause):
                return UNFINISHED

    def _try(self, notes: Path) -> tuple[int, liveness.Progress | None]:
        """One attempt: its exit code, and how far it came."""
        self._hung, self._seen, self.attempt = "", {}, None
        self.attempt = attempt = self.start(notes)
        if self._stopped.is_set() and self._told is not attempt:  # it came while the processes were started
            attempt.send(self._number)
        code = attempt.wait(self._look)
        told = [liveness.read(attempt.progress_file(i)) for i in range(attempt.count)]
        return code, max((progress for progress in told if progress is not None), default=None)

    def _from(self) -> str:
        step = latest_step(self.model_dir)
        return f"from the checkpoint of step {step}" if step is not None else "from its start: nothing is saved yet"

    # --- a job that stands still --------------------------------------------------------------------

    def _look(self) -> None:
        """Ends an attempt that makes no step any more."""
        attempt, settings = self.attempt, self.settings
        if attempt is None or not settings.hang_seconds or self._hung or self._stopped.is_set():
            return
        for i, process in enumerate(attempt.processes):
            age, stepping = self._still(i)
            limit = settings.hang_seconds if stepping else settings.start_seconds
            if limit and age > limit and process.poll() is None:
                self._hung = f"made no step for {limit:g} s"
                break
        if self._hung:
            path = self._save_stacks(attempt)
            say(f"the job {self._hung}; every thread's stack is in {path}")
            self._stopped.wait(OTHERS_SECONDS)
            attempt.send(signal.SIGKILL)

    def _still(self, i: int) -> tuple[float, bool]:
        """For how many seconds process i has told nothing new, and whether it has made a step."""
        assert self.attempt is not None
        now, path = time.monotonic(), self.attempt.progress_file(i)
        written, since, stepping = self._seen.get(i, (0, self.attempt.began, False))
        if path.exists() and (latest := path.stat().st_mtime_ns) != written:
            written, since, stepping = latest, now, True
        self._seen[i] = written, since, stepping
        return now - since, stepping

    def _save_stacks(self, attempt: Attempt) -> Path:
        parts = [f"--- process {i} (pid {attempt.processes[i].pid}) ---\n{text}"
                 for i, text in attempt.stacks().items()]  # fmt: skip
        # A host may have several supervisors (Slurm starts one a GPU).
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}.txt"
        path = Path(self.model_dir) / STACKS / name
        write_text(path, f"{self._hung}\n\n" + "\n".join(parts))
        return path
