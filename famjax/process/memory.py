"""Memory in use: of the devices if their runtime reports it, else of this process."""

import resource
import sys
from pathlib import Path

import jax

GIB = 2**30


def used() -> dict[str, float]:
    """Returns `device_memory_gib`, the peak of the fullest local device, or `host_memory_gib`, what is resident now.

    The CPU runtime reports nothing; its arrays are part of the process.
    """
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    peaks = [value for stat in stats if (value := stat.get("peak_bytes_in_use", stat.get("bytes_in_use"))) is not None]
    if peaks:
        return {"device_memory_gib": round(max(peaks) / GIB, 3)}
    return {"host_memory_gib": round(resident_bytes() / GIB, 3)}


def resident_bytes() -> int:
    """Returns the memory of this process: on Linux what is resident now, elsewhere the peak."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def capacity_bytes() -> int | None:
    """Returns the memory of one local device, if its runtime reports it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")
