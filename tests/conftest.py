"""Settings for many fast compilations. Tests check values, so the compiler need not optimise much."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

# Must be set before jax is imported; on a CPU these make compilation about four times faster.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
).strip()

# No test reads the Python tracebacks that JAX writes into each operation of a program. Without them, and with fewer
# garbage collections, of which tracing causes many, tests take one seventh less time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import pytest
from jaxtyping import install_import_hook

gc.set_threshold(200_000, 50, 100)

# Only tests check the shapes and types of arrays at each call.
CHECKED = (
    "attention.alternatives", "attention.attend", "attention.block_step", "attention.memories.armt",
    "attention.memories.base", "attention.memories.deltanet", "attention.memories.infini",
    "attention.memories.retrieval", "attention.memories.rmt", "attention.memories.sinks",
    "attention.observe", "attention.ring", "attention.streaming", "nn.appended", "nn.layer", "nn.model", "nn.segments",
)  # fmt: skip
install_import_hook([f"famjax.{name}" for name in CHECKED], "beartype.beartype")

# One cache of compiled programs for the whole run: of all workers, which inherit these variables, of commands that run
# in a test's process, which would otherwise fill the user's cache, and of child processes.
CACHE = "JAX_COMPILATION_CACHE_DIR"
OWN_CACHE = CACHE not in os.environ
if OWN_CACHE:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="famjax-compiled-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

from famjax.process import libtpu, progress  # noqa: E402
from tests import slow  # noqa: E402

libtpu.hide_without_tpu()  # as the command line does

# On a loaded machine quick work is slow; tests that hold standard error against a text want no lines of progress in it.
progress.FIRST_SECONDS = 1e9


# The files that take longest, which start first, so that no worker ends with one of them alone.
LONGEST = ("train/test_kills.py", "train/test_sharding.py", "integration/test_processes.py", "train/test_loop.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session, config, items):
    chosen = config.args_source is pytest.Config.ArgsSource.ARGS or any(
        config.getoption(name, None) for name in ("lf", "ignore", "ignore_glob", "deselect")
    )
    slow.mark(items, everything=not chosen and not session.testsfailed)
    place = {name: number for number, name in enumerate(LONGEST)}
    rank = lambda item: place.get(item.nodeid.split("::")[0].removeprefix("tests/"), len(place))
    items.sort(key=rank)


def pytest_unconfigure():
    if OWN_CACHE:
        shutil.rmtree(os.environ[CACHE], ignore_errors=True)


# Each compiled program takes memory mappings, of which Linux allows a process 65,530; beyond that the compiler crashes.
MAPPINGS = 20_000


@pytest.fixture(scope="module", autouse=True)
def let_programs_go():
    """Frees compiled programs after a file if there are many. Else the next files use them too."""
    yield
    if mappings() > MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture
def collected():
    """Frees the arrays that other tests have left, for a test that counts live bytes."""
    gc.collect()


def mappings() -> int:
    """Returns the number of memory mappings of this process, 0 if the system does not tell."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0
