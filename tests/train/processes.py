"""`famjax train` in child processes, with models so small that start-up takes most of the time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Seconds after which a process hangs, however busy the machine is.
LIMIT = 900.0

# Losses are averages over 7 steps, with checkpoints in between; random state passing carries FAM from step to step.
GIN = """
include 'gin/experiments/tiny_fam.gin'
BLOCK_SIZE = 32
FAM_LENGTH = 2
TASK_FEATURE_LENGTHS = {'targets': 320}
BATCH_SIZE = 2
LOG_PERIOD = 7
CHECKPOINT_PERIOD = 5
ModelConfig.num_layers = 1
ModelConfig.d_model = 16
ModelConfig.d_ff = 16
ModelConfig.head_dim = 8
MemoryConfig.random_state_passing = 0.5
PassKeyConfig.stages = (1,)
OptimizerConfig.warmup_steps = 2
"""


def command(model_dir: Path, **macros: object) -> list[str]:
    """Returns the command that trains into a directory, after writing its settings next to it."""
    gin = model_dir.parent / "tiny.gin"
    gin.write_text(GIN)
    bindings = {"MODEL_DIR": str(model_dir)} | macros
    return ["train", "--gin_file", str(gin), *(f"--gin.{name}={value!r}" for name, value in bindings.items())]


def environment(cache: Path) -> dict[str, str]:
    """Returns an environment in which programs are compiled once and then read from `cache`."""
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | compiled | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def hearing() -> Iterator[None]:
    """Inside, child processes get the default SIGINT, even if a shell has started these tests in the background, and so
    with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def start(words: list[str], cache: Path, before: str = "") -> subprocess.Popen:
    """Starts `famjax`; `before` is Python code that its process runs first."""
    program = f"import sys\n{before}\nfrom famjax.cli.main import main\nsys.exit(main())"
    how = ["-c", program] if before else ["-m", "famjax"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with hearing():
        return subprocess.Popen([sys.executable, *how, *words], cwd=ROOT, env=environment(cache), **pipes)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Waits for a process; returns (exit code, standard output, standard error)."""
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def lines(model_dir: Path) -> list[dict]:
    """Returns the logged lines, without an incomplete one."""
    path = model_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def wait_for_step(model_dir: Path, step: int, process: subprocess.Popen) -> None:
    """Waits until step `step` or a later one is logged, or the process has ended."""
    deadline = time.monotonic() + LIMIT
    while process.poll() is None and not any(line["step"] >= step for line in lines(model_dir)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
