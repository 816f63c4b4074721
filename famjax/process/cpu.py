"""How a process that computes on CPU cores is best started and set up.

XLA takes a step's temporary arrays from malloc and gives them back after each step. glibc returns
such large areas to the kernel at once, which then clears every page again at the next step: a third
of the time of a small model's training step.
"""

import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Mapping

# glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX.
_MALLOC_OPTIONS = ((-1, 2**31 - 1), (-4, 0), (-8, 1))
_TUNABLES = (
    "glibc.malloc.hugetlb=1",
    "glibc.malloc.mmap_max=0",
    "glibc.malloc.trim_threshold=1099511627776",
    "glibc.malloc.arena_max=1",
)
# Arrays are used again soon after they were freed, while they are still in the cache.
_SCHEDULER = "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"


def keep_freed_memory() -> bool:
    """Tells malloc of this process to keep what is freed; True if it did. Call it before JAX starts threads."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in _MALLOC_OPTIONS)


def xla_flags(given: str) -> str:
    """`XLA_FLAGS` with the scheduler that saves memory, unless one is given or this jaxlib has none to choose."""
    if "xla_cpu_scheduler_type" in given or not importlib.metadata.version("jaxlib").startswith("0.10."):
        return given
    return f"{given} {_SCHEDULER}".strip()


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that trains on CPU cores: `base`, JAX on the CPU, and `xla_flags`;
    freed memory is kept, in huge pages."""
    tunables = ":".join(filter(None, (base.get("GLIBC_TUNABLES"), *_TUNABLES)))
    flags = xla_flags(base.get("XLA_FLAGS", ""))
    return dict(base) | {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": tunables, "XLA_FLAGS": flags}


def cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
