"""Describes the machine of a benchmark: processor, cores, versions."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path

PACKAGES = ("famjax", "jax", "jaxlib", "flax", "optax", "torch", "transformers", "block-recurrent-transformer-pytorch",
            "infini-transformer-pytorch", "recurrent-memory-transformer-pytorch")  # fmt: skip


def processor() -> str:
    """Returns the processor's name, as far as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages in `PACKAGES`."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(cores: int) -> dict[str, object]:
    """Returns the machine's entry in `bench.json`. `load_before` is the one-minute load average."""
    import jax

    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "processor": processor(), "cores": cores, "system": platform.platform(),
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "versions": versions(), "load_before": load, "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""), "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
    }  # fmt: skip
