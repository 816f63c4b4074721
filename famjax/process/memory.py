"""Memory in use by the devices if their runtime reports it, else by this process."""

import resource
import sys
from pathlib import Path

import jax

GIB = 2**30


def used() -> dict[str, float]:
    """Returns `device_memory_gib`, the highest peak of a local device, or `host_memory_gib`, the resident memory now.

    The latter is returned on CPUs, whose runtime reports nothing: their arrays are in the process's memory.
    """
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    peaks = [value for stat in stats if (value := stat.get("peak_bytes_in_use", stat.get("bytes_in_use"))) is not None]
    if peaks:
        return {"device_memory_gib": round(max(peaks) / GIB, 3)}
    return {"host_memory_gib": round(resident_bytes() / GIB, 3)}


def resident_bytes() -> int:
    """Returns the resident memory of this process in bytes: on Linux the current one, elsewhere the peak."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def capacity_bytes() -> int | None:
    """Returns the memory size of one local device in bytes, or None if its runtime does not report it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")
