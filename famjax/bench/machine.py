"""Describes the machine of a benchmark: processor, cores, versions."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("famjax", "jax", "jaxlib", "flax", "optax", "torch", "transformers", "block-recurrent-transformer-pytorch",
            "infini-transformer-pytorch", "recurrent-memory-transformer-pytorch")  # fmt: skip

# Versions in the report's line about the machine; `bench.json` has all.
SHOWN = ("python", "famjax", "jax", "torch", "transformers")
LOADS = (("load_before", "before"), ("load_after", "after"))


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


def load() -> float | None:
    """Returns the one-minute load average, as far as the system reports it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def summary(machine: Mapping[str, Any]) -> str:
    """Returns one line: cores, processor, load average, and the versions of `SHOWN`."""
    versions = [f"{name} {machine['versions'][name]}" for name in SHOWN if name in machine["versions"]]
    loads = [f"{machine[key]:.2f} {when}" for key, when in LOADS if machine.get(key) is not None]
    busy = f"; load average {', '.join(loads)}" if loads else ""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    return f"{cores} of {machine['processor']}{busy}; {', '.join(versions)}"


def describe(cores: int) -> dict[str, Any]:
    """Returns the machine's entry in `bench.json`. `load_before` is the one-minute load average at this time."""
    import jax

    return {
        "processor": processor(), "cores": cores, "system": platform.platform(),
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "versions": versions(), "load_before": load(), "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""), "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
    }  # fmt: skip
