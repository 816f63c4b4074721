"""Target `local`: runs a job as several processes on this machine (`jax.distributed` over loopback)."""

import dataclasses
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from famjax.config import ConfigError
from famjax.config.checks import at_least
from famjax.launch.commands import Command, shown
from famjax.launch.job import Training
from famjax.launch.processes import Attempt, environment_of
from famjax.launch.supervisor import Supervision, Supervisor


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of target `local`.

    Attributes:
      processes: number of processes. A single one may be this host's part of a larger job started by a scheduler.
      port: port of the coordinator; 0: a free one.
      supervise: restart after a failure or a hang.
      supervision: settings of restarts and hang detection.
    """

    processes: int = 1
    port: int = 0
    supervise: bool = False
    supervision: Supervision = dataclasses.field(default_factory=Supervision)

    def validate(self, training: Training) -> None:
        """Raises `ConfigError` for invalid options, or if the mesh does not match the devices of all processes."""
        at_least("--processes", self.processes, 1)
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port {self.port} is not a port; use 1024 to 65535, or 0 for a free one")
        if self.port and self.processes == 1:
            raise ConfigError("--port has no effect with one process; leave it out")
        self.supervision.validate()
        there = self.processes * simulated_devices(os.environ.get("XLA_FLAGS", ""))
        asked = math.prod(training.config.mesh_sizes)
        if self.processes > 1 and asked != there:
            raise ConfigError(
                f"MESH needs {asked} devices, but {self.processes} processes with one device each have {there}; set "
                f"--processes {asked}, or --gin.MESH='{{\"data\": {there}}}'"
            )


def simulated_devices(flags: str) -> int:
    """Returns the number of CPU devices per process that `XLA_FLAGS` sets; 1 if it sets none."""
    found = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    return int(found[-1]) if found else 1


def show(training: Training, options: Options) -> str:
    """Returns the commands that `run` would start, as text."""
    words = [sys.executable, "-m", "famjax", *training.words]
    if options.processes == 1:
        lines = [shown(Command(words, "on this machine, one process"))]
    else:
        coordinator = f"127.0.0.1:{options.port or 'PORT'}"
        lines = []
        for i in range(options.processes):
            variables = environment_of(i, options.processes, coordinator).items()
            own = [f"{name}={value}" for name, value in variables]
            lines.append(shown(Command(["env", *own, *words], f"process {i}")))
    if options.supervise:
        s = options.supervision
        limits = ((s.hang_seconds, "a step"), (s.start_seconds, "the first step"))
        hung = " or ".join(f"{seconds:g} s without {what}" for seconds, what in limits if seconds)
        then = f"; after {hung}, stacks are saved and it is restarted" if hung else ""
        lines.append(f"# restarted after a failure, up to {s.restarts} times without progress, first after "
                     f"{s.backoff_seconds:g} s{then}")  # fmt: skip
    return "\n".join(lines)


def run(training: Training, options: Options) -> int:
    """Starts the processes and waits for them; forwards SIGTERM and SIGINT. Returns the job's exit code."""
    if not options.supervise:
        return attempt_once(training.words, options.processes, options.port)

    def start(notes: Path) -> Attempt:
        attempt = Attempt(training.words, options.processes, options.port, notes)
        print(attempt, file=sys.stderr, flush=True)
        return attempt

    supervisor = Supervisor(start, training.config.model_dir, options.supervision)
    _forward_signals(supervisor.stop)
    return supervisor.run()


def attempt_once(words: Sequence[str], processes: int, port: int = 0) -> int:
    """Runs `famjax WORDS` once in `processes` processes; forwards SIGTERM and SIGINT. Returns the job's exit code."""
    attempt = Attempt(words, processes, port)
    _forward_signals(attempt.send)
    print(attempt, file=sys.stderr, flush=True)
    return attempt.wait()


def _forward_signals(to: Callable[[int], None]) -> None:
    """Calls `to` with the number of each SIGTERM and SIGINT, which then do not end this process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: to(received))
