"""Set-up of processes on CPU cores: the user's own settings are kept, ours are added."""

import os
import subprocess
import sys

from famjax.process import cpu


def test_the_users_settings_stay() -> None:
    """Flags that are already set keep their values; a scheduler chosen by the user is not replaced."""
    mine = {
        "XLA_FLAGS": "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_DEFAULT",
        "GLIBC_TUNABLES": "glibc.malloc.check=0",
    }
    result = cpu.environment(mine | {"HOME": "/home/me"})
    assert result["XLA_FLAGS"] == mine["XLA_FLAGS"]
    assert result["GLIBC_TUNABLES"].startswith("glibc.malloc.check=0:glibc.malloc.hugetlb=1:")
    assert result["HOME"] == "/home/me"
    assert mine == {name: mine[name] for name in ("XLA_FLAGS", "GLIBC_TUNABLES")}


def test_jax_starts_with_the_flags() -> None:
    """The installed jaxlib accepts every flag: it computes in a process started with them."""
    code = "import jax.numpy as jnp; print(float(jnp.ones(3).sum()))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=cpu.environment(os.environ), capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "3.0", result.stderr


def test_freed_memory_is_kept() -> None:
    """Arrays that are repeatedly allocated and freed cause page faults once, not each time."""
    code = """
import resource
from famjax.process import cpu
kept = cpu.keep_freed_memory()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 << 20)
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print("none" if not kept else "kept" if faults[-1] < faults[0] / 10 else faults)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() in ("kept", "none"), result.stderr


def test_an_area_of_more_than_2_gib_is_kept() -> None:
    """The heap does not shrink when one is freed. Its pages are not touched, so the test needs no such memory."""
    code = """
import ctypes
from famjax.process import cpu
kept = cpu.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
area = libc.malloc(3 << 30)
end = libc.sbrk(0)
libc.free(area)
print("none" if not kept or not area else "kept" if libc.sbrk(0) == end else "returned")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() in ("kept", "none"), result.stderr
