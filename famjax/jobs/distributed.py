"""Joins this process to a multi-process job, usually one process per host, and communicates with the others.

    with joined(job, same, hint):     # does nothing if `job` is None, for a job of one process
        ...                           # jax.devices() are those of all processes

Only process 0 prints and writes unsharded files (`is_primary`). Functions here that communicate must be called
by all processes, at the same point of the program.

JAX is imported inside functions, since the job must be determined before JAX is loaded.
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

# The flags of `famjax train` as environment variables, for launchers that start all processes with one command.
COORDINATOR, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"
START_SECONDS = 300.0
TPU_VM = "a TPU VM"
# JAX's own failure detection is slower than that of `Peers`, which it backs up.
HEARTBEAT_SECONDS = 100
# After an error, wait this long for a report that another process was lost, which may be the cause.
VERDICT_SECONDS = 5.0
# When process 0 dies, JAX prints and aborts in the others. famjax prints its line after that, as the last one. If
# process 0 stops on an error, it exits after the others have printed theirs.
SETTLE_SECONDS = 0.5


# --- joining --------------------------------------------------------------------------------------


def find_job(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Job | None:  # fmt: skip
    """Returns the job of this process, or None for a job of one process.

    It is given by the arguments, else by the environment, else by JAX's detection of schedulers.

    Raises:
      ConfigError: the job is incomplete or invalid.
    """

    def number(name: str, given: int | None) -> int | None:
        text = environment.get(name)
        if given is not None or not text:
            return given
        if not text.isdecimal():
            raise ConfigError(f"{name}={text} is not a process number; give 0, 1, 2 ...")
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
    if local and not all(part.strip().isdecimal() for part in local.split(",")):
        raise ConfigError(f"{LOCAL_DEVICES}={local} is no list of device numbers; give 0,1 or leave it out")
    job = Job(address, processes, process, tuple(map(int, local.split(","))) if local else None)
    job.validate()
    return job


def scheduler(environment: Mapping[str, str]) -> str:
    """Returns the scheduler that started this process as one of several, or "". Does not import JAX."""

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
    # A TPU VM is recognised by its chips; JAX asks the cloud for the number of hosts.
    if "TPU_SKIP_MDS_QUERY" not in environment and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0"))):
        return TPU_VM
    return ""


def detect(environment: Mapping[str, str] = os.environ) -> Job | None:
    """Returns the job that `jax.distributed.initialize` would detect, or None for one process. Raises `ConfigError` if
    a scheduler has started several processes, but JAX cannot determine the job."""
    if not (name := scheduler(environment)):
        return None
    # The first step of `initialize` without arguments. `Peers` needs its result before that.
    from jax._src.clusters import ClusterEnv

    unknown = lambda why: ConfigError(
        f"this process seems to be one of several started by {name}, but JAX {why}; give --coordinator, "
        f"--num-processes and --process-id (--num-processes 1 to run it alone)"
    )
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(START_SECONDS))
    except Exception as error:
        raise unknown(f"cannot determine which ({error})") from error
    coordinator, processes, process, local = found
    if coordinator is None or processes is None or process is None:
        if name == TPU_VM:
            return None
        raise unknown("does not support that scheduler here")
    if processes == 1:
        return None
    return Job(coordinator, processes, process, None if local is None else tuple(local))


@contextlib.contextmanager
def joined(
    job: Job | None, same: dict[str, str], hint: Callable[[], str], *, prog: str = "famjax",
    exit_code: Callable[[BaseException], int] = lambda error: 1, seconds: float = START_SECONDS,
) -> Iterator[None]:  # fmt: skip
    """Joins this process to a job for the duration of the context. Enter it before JAX computes anything.

    Standard output is discarded, except that of process 0. If another process dies, this one reports it in one line and
    exits with code 1, even in the middle of a computation. If this one fails, the others report the reason and exit
    with its code.

    Args:
      job: from `find_job`.
      same: values that must be equal in all processes, by name.
      hint: returns advice to the user, for the end of the line that reports a death.
      prog: the beginning of that line.
      exit_code: maps an error to the exit code of this process.
      seconds: time limit in which all processes must connect.

    Raises:
      ConfigError: not all processes connected in time, or they differ in a value of `same`.
    """
    if job is None:
        yield
        return
    import jax

    peers = Peers(job, same, seconds)
    peers.call()

    def lost(loss: Loss) -> None:
        time.sleep(SETTLE_SECONDS if job.process_id else 2 * SETTLE_SECONDS)
        # Evaluated as late as possible: a checkpoint that all processes have written may have become complete.
        advice = ""
        with contextlib.suppress(Exception):  # the process must exit in any case
            advice = "" if loss.code else f"; {hint()}"
        print(f"{prog}: {loss.message}{advice}", file=sys.stderr, flush=True)
        leave(loss.code or 1)

    peers.watch(lost)
    _hear_aborts(peers)
    # famjax handles SIGTERM; JAX's preemption service would intercept it.
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
            jax.distributed.shutdown()  # waits for the others, which may still write
    except BaseException as error:
        if exit_code(error) == 1 and peers.verdict.wait(VERDICT_SECONDS):
            _wait_for_the_end()  # the error was caused by the loss of another process
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        peers.fail(" ".join(f"{kind}{error}".split())[:300], exit_code(error))
        # JAX would wait for all processes before it lets this one exit.
        atexit.register(leave, exit_code(error))
        if job.process_id == 0:
            time.sleep(2 * SETTLE_SECONDS)
        raise
    peers.leave()


def _wait_for_the_end() -> None:
    """Blocks until the thread that reports the loss of a process has ended this process."""
    threading.Event().wait(HEARTBEAT_SECONDS)


def _hear_aborts(peers: Peers) -> None:
    """Delays the abort of JAX, in a C++ thread, when the coordinator dies, so that `Peers`, which has lost its
    connection at the same moment, can report which process died."""
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)

    def handler(_: int) -> None:
        if peers.verdict.wait(2.0):
            _wait_for_the_end()

    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, handler_type), ctypes.c_void_p
    peers.on_abort = handler_type(handler)  # keeps it alive as long as it may be called
    libc.signal(signal.SIGABRT, peers.on_abort)


# --- communication --------------------------------------------------------------------------------


def is_primary() -> bool:
    """Whether this is process 0, which prints and writes the files that are not sharded over processes."""
    import jax

    return jax.process_index() == 0


def gather_json(value: Any) -> list[Any]:
    """Returns the JSON `value` of every process, by process index. The values may differ in size."""
    import jax

    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).reshape(-1)
    room = 1 << int(sizes.max() - 1).bit_length()  # a power of 2, for few distinct programs
    padded = np.zeros(room, np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, room)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def merge_progress(progress: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the merged progress of all processes (`Progress` in `data/batch.py`).

    Entries of rows and lanes, whose names start with a digit, may exist in some processes only. All other entries must
    exist in every process.

    Raises:
      RuntimeError: two processes differ in an entry, or a process lacks one that another has.
    """
    merged: dict[str, Any] = {}
    parts = gather_json(progress)
    for process, part in enumerate(parts):
        for name, value in part.items():
            if merged.setdefault(name, value) != value:
                raise RuntimeError(f"process {process} has {name} {value} in its progress, others {merged[name]}")
    for process, part in enumerate(parts):
        if lacking := sorted(name for name in merged.keys() - part.keys() if not name[:1].isdigit()):
            raise RuntimeError(f"process {process} has no {lacking[0]} in its progress")
    return merged


def require_same(what: str, value: Any, advice: str) -> None:
    """Raises `ConfigError` in every process if a value is not the same in all of them."""
    values = gather_json(value)
    other = next((i for i, found in enumerate(values) if found != values[0]), None)
    if other is not None:
        raise ConfigError(f"{what} is {values[0]} for process 0, but {values[other]} for process {other}; {advice}")


def in_any_process(*flags: bool) -> list[bool]:
    """Returns for each flag whether it is set in any process, so that all processes act on it at the same step.

    This is a small collective, except in a job of one process.
    """
    import jax

    if jax.process_count() == 1:
        return list(flags)
    import numpy as np
    from jax.experimental import multihost_utils

    found = np.asarray(multihost_utils.process_allgather(np.array(flags))).reshape(-1, len(flags))
    return [bool(found[:, i].any()) for i in range(len(flags))]


def whole(array: Any) -> Any:
    """Returns a global array as a NumPy array in every process; a collective if it is sharded over processes."""
    import numpy as np

    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)
