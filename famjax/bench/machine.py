"""Where figures were measured: processor, cores, versions."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path

PACKAGES = ("famjax", "jax", "jaxlib", "flax", "optax", "torch", "transformers", "block-recurrent-transformer-pytorch",
            "infini-transformer-pytorch", "recurrent-memory-transformer-pytorch")  # fmt: skip


def processor() -> str:
    """The processor's name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(cores: int) -> dict[str, object]:
    """What `bench.json` says of the machine. `load_before`: processes that wanted a core in the last minute."""
    import jax

    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "processor": processor(), "cores": cores, "system": platform.platform(),
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "versions": versions(), "load_before": load, "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""), "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
    }  # fmt: skip
