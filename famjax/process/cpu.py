"""Set-up of a process that computes on CPU cores.

XLA allocates a step's temporary arrays with malloc and frees them after each step. glibc returns such large areas to
the kernel at once, so the kernel clears every page again in the next step. This takes a third of a small model's
training step.
"""

import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Mapping

# glibc's malloc.h: M_TRIM_THRESHOLD (-1: never; the largest int is 2 GiB, less than a step of a real model needs),
# M_MMAP_MAX, M_ARENA_MAX.
_MALLOC_OPTIONS = ((-1, -1), (-4, 0), (-8, 1))
_TUNABLES = (
    "glibc.malloc.hugetlb=1",
    "glibc.malloc.mmap_max=0",
    "glibc.malloc.trim_threshold=1099511627776",
    "glibc.malloc.arena_max=1",
)
# Arrays are reused soon after they are freed, while they are still in the CPU's cache.
_SCHEDULER = "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory in this process. Returns whether it could. Call it before JAX starts threads."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in _MALLOC_OPTIONS)


def xla_flags(given: str) -> str:
    """Returns `XLA_FLAGS` with the memory-optimised scheduler, unless one is given or jaxlib is not version 0.10."""
    if "xla_cpu_scheduler_type" in given or not importlib.metadata.version("jaxlib").startswith("0.10."):
        return given
    return f"{given} {_SCHEDULER}".strip()


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment for a process that trains on CPU cores: `base`, JAX on the CPU, `xla_flags`, and malloc
    settings that keep freed memory, in huge pages."""
    tunables = ":".join(filter(None, (base.get("GLIBC_TUNABLES"), *_TUNABLES)))
    flags = xla_flags(base.get("XLA_FLAGS", ""))
    return dict(base) | {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": tunables, "XLA_FLAGS": flags}


def cores() -> list[int]:
    """Returns the indices of the CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
