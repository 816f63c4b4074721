"""How the tests compile: much and quickly. They check values, so the compiler need not work hard."""

import gc
import os

# Before jax is imported anywhere; on a CPU these make compilation about three times faster.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
).strip()

import pytest
from jaxtyping import install_import_hook

# Shapes and types of arrays are checked where functions are called, in tests alone.
CHECKED = (
    "attention.attend", "attention.block_step", "attention.memories.base", "attention.memories.deltanet",
    "attention.memories.infini",
    "attention.memories.sinks",
    "attention.observe", "attention.streaming", "nn.layer", "nn.model", "nn.segments",
)  # fmt: skip
install_import_hook([f"famjax.{name}" for name in CHECKED], "beartype.beartype")

from famjax.runtime import progress  # noqa: E402

# On a loaded machine quick work is slow; tests that hold standard error against a text want no lines of progress in it.
progress.FIRST_SECONDS = 1e9


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """A program that one test session compiles twice is compiled once."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="module", autouse=True)
def let_programs_go():
    """Compiled programs leave with the file that made them. Each takes mappings of memory, of which Linux gives a
    process 65,530, and where these are gone the compiler crashes."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
