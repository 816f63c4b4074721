"""Restarts a training on this machine after a failure, a preemption or a hang.

The same command resumes a training from its last checkpoint, so a restart repeats the command. In a multi-host job
each host has its own supervisor: if one process dies, the others exit too (jobs/peers.py), every supervisor restarts
its own processes, and they connect as at the first start.
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
from famjax.config.checks import at_least, flag_of
from famjax.jobs import liveness
from famjax.launch.commands import say
from famjax.launch.processes import Attempt
from famjax.storage.model_dir import write_text
from famjax.storage.steps import latest_step

# Exit code of a job that was stopped by a signal before its last step: the same command would resume it.
UNFINISHED = 75
MISTAKE, INTERRUPTED = 2, 130
STACKS = "stacks"
LONGEST_BACKOFF = 300.0
# Supervisors of other hosts detect a hang at about the same time. If one kills its processes, those of the others end
# too. Each waits this long before it does, so that all can save their stacks first.
OTHERS_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Supervision:
    """Settings of restarts and hang detection.

    Attributes:
      restarts: maximum restarts without progress; an attempt that reaches a new latest step resets the count.
      hang_seconds: time without a step after which a job counts as hung; 0: never.
      start_seconds: the same until the first step of an attempt, which includes loading and compiling; 0: never.
      backoff_seconds: seconds before the first restart; doubles with each restart without progress, up to 300.
    """

    restarts: int = 10
    hang_seconds: float = 1800.0
    start_seconds: float = 3600.0
    backoff_seconds: float = 10.0

    def validate(self) -> None:
        """Raises `ConfigError` for an invalid number."""
        for name in ("restarts", "hang_seconds", "start_seconds", "backoff_seconds"):
            at_least(flag_of(name), getattr(self, name), 0)
        if 0 < self.hang_seconds < 1:
            raise ConfigError(
                "--hang-seconds is less than 1, but steps are reported twice a second; use 0 for no limit"
            )

    def pause(self, failures: int) -> float:
        """Returns the seconds before a restart after `failures` failures, at least one, without progress."""
        return min(self.backoff_seconds * 2 ** (failures - 1), LONGEST_BACKOFF)


class Supervisor:
    """Runs a job in as many attempts as it needs.

    `start` starts an attempt, whose processes report their progress in the folder that is passed to it. The stacks of a
    hung job are saved in `stacks/` of `model_dir`, the MODEL_DIR of the training.
    """

    def __init__(self, start: Callable[[Path], Attempt], model_dir: str, settings: Supervision):
        self.start, self.model_dir, self.settings = start, model_dir, settings
        self.attempt: Attempt | None = None
        self._signalled: Attempt | None = None
        self._number = signal.SIGTERM
        self._stopped = threading.Event()
        self._hung = ""
        self._seen: dict[int, tuple[int, float, bool]] = {}

    def stop(self, number: int) -> None:
        """Forwards a signal to the processes and disables restarts. Call it from a signal handler."""
        self._number = signal.Signals(number)
        self._stopped.set()
        if self.attempt is not None:
            self._signalled = self.attempt
            self.attempt.send(number)

    def run(self) -> int:
        """Runs attempts until the training is finished, a signal stops it, or a restart cannot help.

        Returns:
          0 if the training is finished, `UNFINISHED` if it was stopped by a signal before, else the last attempt's
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
            what = self._hung or (f"ended with exit code {code}" if code else "was stopped")
            at = "before its first step" if progress is None else f"at step {step} of {progress.steps}"
            if failures > self.settings.restarts:
                say(f"the job {what} {at}; {failures} attempts made no progress, so it is not restarted")
                return code or UNFINISHED
            pause = self.settings.pause(failures)
            restarts += 1
            saved = latest_step(self.model_dir)
            start = "its start: nothing is saved yet" if saved is None else f"the checkpoint of step {saved}"
            say(f"the job {what} {at}; restart {restarts} in {pause:g} s, from {start}")
            if self._stopped.wait(pause):
                return UNFINISHED

    def _try(self, notes: Path) -> tuple[int, liveness.Progress | None]:
        """Runs one attempt. Returns its exit code, and the progress of its furthest process (None: no step)."""
        self._hung, self._seen, self.attempt = "", {}, None
        self.attempt = attempt = self.start(notes)
        if self._stopped.is_set() and self._signalled is not attempt:  # the signal came during the start
            attempt.send(self._number)
        code = attempt.wait(self._check_for_hang)
        reported = [liveness.read(attempt.progress_file(i)) for i in range(attempt.count)]
        return code, max((progress for progress in reported if progress is not None), default=None)

    # --- hang detection -----------------------------------------------------------------------------

    def _check_for_hang(self) -> None:
        """Saves the stacks of an attempt that hangs, and kills it."""
        attempt, settings = self.attempt, self.settings
        if attempt is None or self._hung or self._stopped.is_set():
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
        """Returns the seconds since the last progress report of process i, and whether it has made a step."""
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
        # A host may have several supervisors (Slurm starts one per GPU).
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}.txt"
        path = Path(self.model_dir) / STACKS / name
        write_text(path, f"{self._hung}\n\n" + "\n".join(parts))
        return path
