"""Versions of packages, compiler flags and famjax's code, which must be equal in all processes of a job."""

import functools
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import famjax

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy", "tensorstore")
# Compiler flags: programs compiled with different ones may not match in their collectives.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")


def versions(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns by name the versions, compiler flags and code digest that determine the compiled programs."""
    found = {"version of Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[f"version of {name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[f"version of {name}"] = "none"
    found |= {f"variable {name}": environment.get(name, "") for name in VARIABLES}
    return found | {"version of famjax": famjax.__version__, "code of famjax": code()}


@functools.cache
def code() -> str:
    """Returns a digest of famjax's files, since two checkouts of one version may differ."""
    root = Path(famjax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
