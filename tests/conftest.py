"""Settings for many fast compilations. Tests check values, so the compiler need not optimise much."""

import gc
import os

# Must be set before jax is imported; on a CPU these make compilation about three times faster.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
).strip()

import pytest
from jaxtyping import install_import_hook

# Only tests check the shapes and types of arrays at each call.
CHECKED = (
    "attention.alternatives", "attention.attend", "attention.block_step", "attention.memories.armt",
    "attention.memories.base", "attention.memories.deltanet", "attention.memories.infini",
    "attention.memories.retrieval", "attention.memories.rmt", "attention.memories.sinks",
    "attention.observe", "attention.ring", "attention.streaming", "nn.appended", "nn.layer", "nn.model", "nn.segments",
)  # fmt: skip
install_import_hook([f"famjax.{name}" for name in CHECKED], "beartype.beartype")

from famjax.process import libtpu, progress  # noqa: E402

libtpu.hide_without_tpu()  # as the command line does

# On a loaded machine quick work is slow; tests that hold standard error against a text want no lines of progress in it.
progress.FIRST_SECONDS = 1e9


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """Caches compiled programs for the test session."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="module", autouse=True)
def let_programs_go():
    """Frees compiled programs after each file. Each takes memory mappings, of which Linux allows a process 65,530;
    beyond that the compiler crashes."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
