"""Runs one attempt at a job as several processes on this machine, which start and end together.

Each process gets the coordinator's address and its index (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID),
and one of the GPUs, if there are any (JAX_LOCAL_DEVICE_IDS). A single process gets none of these: it may be part of a
larger job, which it then detects itself. Output lines are prefixed with the process index.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from famjax.jobs import liveness
from famjax.jobs.distributed import COORDINATOR, LOCAL_DEVICES, NUM_PROCESSES, PROCESS_ID

FAMJAX = (sys.executable, "-m", "famjax")
GRACE = 60.0  # seconds for processes to exit after one has failed
POLL = 0.1
# Seconds to wait for requested stacks to be written.
STACK_SECONDS = 2.0


class Attempt:
    """One run of `famjax` in several processes, which starts at construction.

    Args:
      words: arguments after `program`.
      count: number of processes.
      port: port of the coordinator; 0: a free one.
      notes: folder for progress reports and stacks (`jobs/liveness.py`); None disables them.
      program: `famjax`, or a replacement in tests.

    Attributes:
      processes: the processes by index.
    """

    def __init__(
        self, words: Sequence[str], count: int, port: int = 0, notes: Path | None = None,
        program: Sequence[str] = FAMJAX,
    ):  # fmt: skip
        self.count, self.notes = count, notes
        self.began = time.monotonic()
        self.coordinator = f"127.0.0.1:{port or free_port()}"
        self.processes = [self._start(i, [*program, *words]) for i in range(count)]
        self._printers = [threading.Thread(target=self._show, args=(i, p.stdout)) for i, p in enumerate(self.processes)]
        for printer in self._printers:
            printer.start()

    def __str__(self) -> str:
        pids = ", ".join(str(process.pid) for process in self.processes)
        if self.count == 1:
            return f"1 process; its pid is {pids}"
        return f"{self.count} processes meet at {self.coordinator}; their pids are {pids}"

    def _start(self, i: int, words: list[str]) -> "subprocess.Popen[str]":
        """Starts process i in a new session, so that Ctrl-C reaches it only once, from here."""
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        if self.count > 1:
            environment |= environment_of(i, self.count, self.coordinator)
        if self.notes is not None:
            environment |= {liveness.PROGRESS: str(self.progress_file(i)), liveness.STACKS: str(self.stack_file(i))}
        return subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip

    def _show(self, i: int, lines: IO[str] | None) -> None:
        """Prints the lines of a process, prefixed with its index if there are several."""
        mark = f"[{i}] " if self.count > 1 else ""
        for line in lines or ():
            print(f"{mark}{line}", end="", flush=True)

    def progress_file(self, i: int) -> Path:
        """Returns the file in which process i reports its step."""
        assert self.notes is not None
        return self.notes / f"progress-{i}"

    def stack_file(self, i: int) -> Path:
        """Returns the file to which process i writes its stacks."""
        assert self.notes is not None
        return self.notes / f"stacks-{i}"

    def send(self, number: int) -> None:
        """Sends a signal to all running processes."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def stacks(self) -> dict[int, str]:
        """Returns by index the stacks of all threads of each running process, after `STACK_SECONDS`."""
        running = [i for i, process in enumerate(self.processes) if process.poll() is None]
        for i in running:
            # The file exists once the process handles the signal, which would otherwise kill it.
            if self.stack_file(i).exists():
                self.processes[i].send_signal(signal.SIGUSR1)
        time.sleep(STACK_SECONDS)
        found = {}
        for i in running:
            text = self.stack_file(i).read_text(encoding="utf-8") if self.stack_file(i).exists() else ""
            found[i] = text or "no stack: the process is still starting, or is stopped\n"
        return found

    def wait(self, look: Callable[[], None] = lambda: None) -> int:
        """Waits for all processes, and calls `look` ten times per second meanwhile, in this thread.

        After a failure the others have `GRACE` seconds to exit, then get SIGTERM, and SIGKILL `GRACE` seconds later.

        Returns:
          The exit code of the first process that was killed (128 + the signal's number), else of the first that
          failed, or 0.
        """
        ended: queue.Queue[int] = queue.Queue()
        for process in self.processes:
            threading.Thread(target=lambda process=process: ended.put(process.wait()), daemon=True).start()
        codes: list[int] = []
        failed_at, sent = 0.0, 0
        for _ in self.processes:
            while True:
                try:
                    code = ended.get(timeout=POLL)
                    break
                except queue.Empty:
                    look()
                    if failed_at and time.monotonic() - failed_at > GRACE * (sent + 1):
                        self.send((signal.SIGTERM, signal.SIGKILL)[min(sent, 1)])
                        sent += 1
            if code and not sent:
                codes.append(code)
                failed_at = failed_at or time.monotonic()
        for printer in self._printers:
            printer.join()
        # A killed process is the cause; the others exit because of it, often at the same moment.
        return exit_code(next((code for code in codes if code < 0), codes[0])) if codes else 0


def environment_of(i: int, count: int, coordinator: str) -> dict[str, str]:
    """Returns the environment variables from which process i of several joins the job, and takes its GPU."""
    return {COORDINATOR: coordinator, NUM_PROCESSES: str(count), PROCESS_ID: str(i), LOCAL_DEVICES: str(i)}


def free_port() -> int:
    """Returns a currently unused port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def exit_code(returned: int) -> int:
    """Converts `Popen.returncode` to a shell's exit code: 128 + N for signal N."""
    return returned if returned > 0 else 128 - returned
