"""Target `local`: a job as several processes on this machine, for real (`jax.distributed` over loopback)."""

import dataclasses
import math
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from famjax.config import ConfigError
from famjax.config.checks import at_least
from famjax.launch.commands import Command, shown
from famjax.launch.job import Training
from famjax.launch.processes import Attempt
from famjax.launch.supervisor import Supervision, Supervisor


@dataclasses.dataclass(frozen=True)
class Options:
    """How a job runs on this machine.

    Attributes:
      processes: how many. 1 may be this host's part of a larger job, which a scheduler has started.
      port: where the first one listens; 0 takes a free one.
      supervise: start it again after a failure or a hang.
      supervision: when.
    """

    processes: int = 1
    port: int = 0
    supervise: bool = False
    supervision: Supervision = dataclasses.field(default_factory=Supervision)

    def validate(self, training: Training) -> None:
        """Raises `ConfigError` where the mesh is not for the devices of so many processes."""
        at_least("--processes", self.processes, 1)
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port {self.port} is no port; use 1024 to 65535, or 0 for a free one")
        self.supervision.validate()
        there = self.processes * simulated_devices(os.environ.get("XLA_FLAGS", ""))
        asked = math.prod(training.config.mesh_sizes)
        if self.processes > 1 and asked != there:
            raise ConfigError(
                f"MESH asks for {asked} devices, but {self.processes} processes with a device each are {there}; set "
                f"--processes {asked}, or --gin.MESH='{{\"data\": {there}}}'"
            )


def simulated_devices(flags: str) -> int:
    """CPU devices of a process, as `XLA_FLAGS` has it."""
    found = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    return int(found[-1]) if found else 1


def show(training: Training, options: Options) -> str:
    """What `run` would do."""
    words = [sys.executable, "-m", "famjax", *training.words]
    if options.processes == 1:
        lines = [shown(Command(words, "on this machine, one process"))]
    else:
        port = options.port or "PORT"
        lines = [
            shown(Command(
                ["env", f"JAX_COORDINATOR_ADDRESS=127.0.0.1:{port}", f"JAX_NUM_PROCESSES={options.processes}",
                 f"JAX_PROCESS_ID={i}", f"JAX_LOCAL_DEVICE_IDS={i}", *words],
                f"process {i}",
            ))
            for i in range(options.processes)
        ]  # fmt: skip
    if options.supervise:
        s = options.supervision
        lines.append(f"# started again after a failure, up to {s.restarts} times without progress, first after "
                     f"{s.backoff_seconds:g} s; after {s.hang_seconds:g} s without a step, or {s.start_seconds:g} s "
                     f"without the first one, stacks are kept and it is started again")  # fmt: skip
    return "\n".join(lines)


def run(training: Training, options: Options) -> int:
    """Starts the processes and waits for them; SIGTERM and SIGINT are passed on. Returns the job's exit code."""
    if not options.supervise:
        return attempt_once(training.words, options.processes, options.port)

    def start(notes: Path) -> Attempt:
        attempt = Attempt(training.words, options.processes, options.port, notes)
        print(attempt, file=sys.stderr, flush=True)
        return attempt

    supervisor = Supervisor(start, training.config.model_dir, options.supervision)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: supervisor.stop(received))
    return supervisor.run()


def attempt_once(words: Sequence[str], processes: int, port: int = 0) -> int:
    """`famjax WORDS` in so many processes, once."""
    attempt = Attempt(words, processes, port)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: attempt.send(received))
    print(attempt, file=sys.stderr, flush=True)
    return attempt.wait()
