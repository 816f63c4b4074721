"""How much memory is in use: the devices' where their runtime tells, else this process's."""

import resource
import sys
from pathlib import Path

import jax

GIB = 2**30


def used() -> dict[str, float]:
    """`device_memory_gib`, the peak of the fullest device of this process, or `host_memory_gib`, what is resident now.

    A CPU's runtime tells nothing of devices; there the arrays are part of the process.
    """
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    peaks = [value for stat in stats if (value := stat.get("peak_bytes_in_use", stat.get("bytes_in_use"))) is not None]
    if peaks:
        return {"device_memory_gib": round(max(peaks) / GIB, 3)}
    return {"host_memory_gib": round(resident_bytes() / GIB, 3)}


def resident_bytes() -> int:
    """Memory of this process: what is resident now on Linux, elsewhere the most that ever was."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def capacity_bytes() -> int | None:
    """Of one device of this process, where its runtime tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")
