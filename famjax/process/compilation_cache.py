"""JAX's persistent compilation cache, so that a job compiles its programs only at its first start."""

import os
from pathlib import Path


def enable() -> None:
    """Enables the cache, in `~/.cache/famjax/compiled` (or XDG_CACHE_HOME) unless JAX_COMPILATION_CACHE_DIR is set."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(Path(base) / "famjax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
