"""A job of several processes, usually one a host: how it comes together, what its processes tell each other, its end.

    with joined(job, same, hint):     # None for a job of one process, where nothing here does anything
        ...                           # jax.devices() are those of all processes

Only the first process prints and writes files of its own (`is_primary`). Every function here that tells the
processes something about each other must be called by all of them, at the same point of the program.

jax is imported where it is used: which job this is, is known before it is loaded.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from famjax.config import ConfigError
from famjax.jobs.peers import Job, Loss, Peers
from famjax.process.interrupts import leave

# The flags of `famjax train` as environment variables, for launchers that start every process with one command.
COORDINATOR, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"
START_SECONDS = 300.0
TPU_VM = "a TPU VM"
# jax's own watch over its processes stands behind `Peers`, and is slower.
HEARTBEAT_SECONDS = 100
# What went wrong may have done so because another process is gone; so long it is waited to hear of that.
VERDICT_SECONDS = 5.0
# When process 0 is gone jax prints and aborts in the others. What famjax says comes behind that, to be the last
# line; and where process 0 leaves by itself it does so when the others have said it.
SETTLE_SECONDS = 0.5


# --- coming together ------------------------------------------------------------------------------


def find_job(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Job | None:  # fmt: skip
    """The job that this process is part of: as it is told, else as the environment says, else as jax finds it
    out from a scheduler; None for a process of its own.

    Raises:
      ConfigError: it is told in part, or as it cannot be.
    """

    def number(name: str, given: int | None) -> int | None:
        text = environment.get(name)
        if given is not None or not text:
            return given
        if not text.isdigit():
            raise ConfigError(f"{name}={text} is no number of a process; give 0, 1, 2 ...")
        return int(text)

    address = coordinator or environment.get(COORDINATOR)
    processes, process = number(NUM_PROCESSES, num_processes), number(PROCESS_ID, process_id)
    if address is None and processes is None and process is None:
        return detect(environment)
    if processes == 1:
        return None
    if address is None or processes is None or process is None:
        raise ConfigError(
            "a job of several processes needs all three: --coordinator HOST:PORT, --num-processes N and "
            f"--process-id I (or {COORDINATOR}, {NUM_PROCESSES} and {PROCESS_ID})"
        )
    local = environment.get(LOCAL_DEVICES)
    job = Job(address, processes, process, tuple(map(int, local.split(","))) if local else None)
    job.validate()
    return job


def scheduler(environment: Mapping[str, str]) -> str:
    """Which scheduler has started this process as one of several, or nothing. Looks at the environment alone."""

    def several(name: str) -> bool:
        return environment.get(name, "").isdigit() and int(environment[name]) > 1

    if several("SLURM_NTASKS") and "SLURM_PROCID" in environment:
        return "Slurm"
    if several("OMPI_COMM_WORLD_SIZE"):
        return "Open MPI"
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or several("MEGASCALE_NUM_SLICES"):
        return "a TPU pod"
    if "JOB_COMPLETION_INDEX" in environment and "KUBERNETES_SERVICE_HOST" in environment:
        return "Kubernetes"
    # A TPU VM is told by its chips; how many hosts it has, jax asks the cloud.
    if "TPU_SKIP_MDS_QUERY" not in environment and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0"))):
        return TPU_VM
    return ""


def detect(environment: Mapping[str, str] = os.environ) -> Job | None:
    """The job that a scheduler has started, as `jax.distributed.initialize` finds it out by itself."""
    if not (name := scheduler(environment)):
        return None
    # What `initialize` does first when it is told nothing. The roll is called before, so it is done here.
    from jax._src.clusters import ClusterEnv

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(START_SECONDS))
    except Exception as error:
        raise ConfigError(
            f"this process seems to be one of several of {name}, but jax does not find out which ({error}); "
            f"give --coordinator, --num-processes and --process-id (--num-processes 1 for a process of its own)"
        ) from error
    coordinator, processes, process, local = found
    if coordinator is None or processes is None or process is None:
        if name == TPU_VM:
            return None
        raise ConfigError(
            f"this process seems to be one of several of {name}, but jax does not know that scheduler here; "
            f"give --coordinator, --num-processes and --process-id (--num-processes 1 for a process of its own)"
        )
    if processes == 1:
        return None
    return Job(coordinator, processes, process, None if local is None else tuple(local))


@contextlib.contextmanager
def joined(
    job: Job | None, same: dict[str, str], hint: Callable[[], str], *, prog: str = "famjax",
    exit_code: Callable[[BaseException], int] = lambda error: 1, seconds: float = START_SECONDS,
) -> Iterator[None]:  # fmt: skip
    """This process is part of the job inside of it; call it before jax computes anything.

    Standard output of all but the first process is silent. If another process dies, this one says so in one
    line, and leaves with exit code 1, whatever it is doing. If this one fails, the others are told why, and
    leave with its exit code.

    Args:
      job: from `find_job`.
      same: what must be the same in every process, by its name.
      hint: what a person does after a death, for the end of that line.
      prog: begins that line.
      exit_code: the code with which this process will leave on an error.
      seconds: how long the processes are waited for.

    Raises:
      ConfigError: not all came, or they do not agree on what must be the same.
    """
    if job is None:
        yield
        return
    import jax

    peers = Peers(job, same, seconds)
    peers.call()

    def lost(loss: Loss) -> None:
        time.sleep(SETTLE_SECONDS if job.process_id else 2 * SETTLE_SECONDS)
        # Asked for at the last moment: a checkpoint of which all have written their parts may have become whole since.
        advice = ""
        with contextlib.suppress(Exception):  # nothing may keep this process from leaving
            advice = "" if loss.code else f"; {hint()}"
        print(f"{prog}: {loss.message}{advice}", file=sys.stderr, flush=True)
        leave(loss.code or 1)

    peers.watch(lost)
    _hear_aborts(peers)
    # A SIGTERM is famjax's to handle: jax would take it and stop for nobody.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            job.coordinator, job.num_processes, job.process_id, job.local_devices,
            cluster_detection_method="deactivate", heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            if job.process_id:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield
            jax.distributed.shutdown()  # waits for the others, who may still write
    except BaseException as error:
        if exit_code(error) == 1 and peers.verdict.wait(VERDICT_SECONDS):
            _wait_for_the_end()  # it went wrong here because another process is gone
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        peers.fail(" ".join(f"{kind}{error}".split())[:300], exit_code(error))
        # jax would wait for all processes before it lets this one go.
        atexit.register(leave, exit_code(error))
        if job.process_id == 0:
            time.sleep(2 * SETTLE_SECONDS)
        raise
    peers.leave()


def _wait_for_the_end() -> None:
    """There is a verdict, and the thread that has it ends this process."""
    threading.Event().wait(HEARTBEAT_SECONDS)


def _hear_aborts(peers: Peers) -> None:
    """When the coordinator's process dies, jax aborts all others from a thread of its own, in C++. This gives
    `Peers`, who has lost its connection at the same moment, the time to say who it was."""
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)

    def handler(_: int) -> None:
        if peers.verdict.wait(2.0):
            _wait_for_the_end()

    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, handler_type), ctypes.c_void_p
    peers.on_abort = handler_type(handler)  # kept alive as long as it may be called
    libc.signal(signal.SIGABRT, peers.on_abort)


# --- what processes tell each other ---------------------------------------------------------------


def is_primary() -> bool:
    """True in the one process of a job that prints, and that writes files which are not cut over processes."""
    import jax

    return jax.process_index() == 0


def gather_json(value: Any) -> list[Any]:
    """`value` of every process, by their numbers; anything that JSON holds, of any size."""
    import jax

    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).reshape(-1)
    room = 1 << int(sizes.max() - 1).bit_length()  # few distinct programs
    padded = np.zeros(room, np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, room)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def merge_progress(progress: Mapping[str, Any]) -> dict[str, Any]:
    """Where the task stands as a whole (`data/batch.py` `Progress`): entries of lanes, whose names start with a
    digit, from the processes that have them; all others are the same everywhere.

    Raises:
      RuntimeError: two processes say different things of the same.
    """
    merged: dict[str, Any] = {}
    for process, part in enumerate(gather_json(progress)):
        for name, value in part.items():
            if merged.setdefault(name, value) != value:
                raise RuntimeError(f"process {process} has {name} {value} in its progress, others {merged[name]}")
        if process and (lacking := sorted(name for name in merged.keys() - part.keys() if not name[:1].isdigit())):
            raise RuntimeError(f"process {process} has no {lacking[0]} in its progress")
    return merged


def require_same(what: str, value: Any, advice: str) -> None:
    """Raises `ConfigError`, in every process alike, where a value is not the same in all of them."""
    values = gather_json(value)
    other = next((i for i, found in enumerate(values) if found != values[0]), None)
    if other is not None:
        raise ConfigError(f"{what} is {values[0]} for process 0, but {values[other]} for process {other}; {advice}")


def in_any_process(*flags: bool) -> list[bool]:
    """Each flag, if it is set in any process of the job, so that all do the same at the same step. Costs a small
    collective; nothing in a job of one process."""
    import jax

    if jax.process_count() == 1:
        return list(flags)
    import numpy as np
    from jax.experimental import multihost_utils

    found = np.asarray(multihost_utils.process_allgather(np.array(flags))).reshape(-1, len(flags))
    return [bool(found[:, i].any()) for i in range(len(flags))]


def barrier(name: str, seconds: float = 600.0) -> None:
    """Waits until every process is here. `name` must be new each time. Raises `JaxRuntimeError` after so long."""
    import jax

    if jax.process_count() > 1:
        # The client is what Orbax takes too; jax offers no other barrier with a limit.
        from jax._src.distributed import global_state

        assert global_state.client is not None
        global_state.client.wait_at_barrier(f"famjax {name}", int(seconds * 1000))


def whole(array: Any) -> Any:
    """A global array as a NumPy array, in every process; a collective where it is cut over processes."""
    import numpy as np

    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)
