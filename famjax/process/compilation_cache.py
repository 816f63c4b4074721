"""JAX's persistent compilation cache, so that the second start of a job does not compile again."""

import os
from pathlib import Path


def enable() -> None:
    """Points JAX at a folder in the user's cache, unless JAX_COMPILATION_CACHE_DIR names another."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(Path(base) / "famjax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
