"""Runs the TPU compiler in a child process and captures the compiler's output."""

import contextlib
import importlib.machinery
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from famjax.config import ConfigError
from famjax.plan import dump
from famjax.process import interrupts

GIVEN_JSON, RESULT_JSON = "given.json", "result.json"
LOG = "log.txt"
# Exit code of a user error.
MISTAKE = 2
INSTALL = "pip install libtpu==0.0.52"


def library() -> str:
    """Returns the path of libtpu. Raises `ConfigError` with the command that installs it."""
    found = importlib.machinery.PathFinder.find_spec("libtpu")
    path = Path(found.origin).parent / "libtpu.so" if found and found.origin else None
    if path is None or not path.is_file():
        raise ConfigError(f"famjax plan compiles with libtpu, which is not installed (it needs no TPU): {INSTALL}")
    return str(path)


def libtpu_version() -> str:
    """Returns the version of the installed libtpu; empty if unknown."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("libtpu")
    return ""


def environment(folder: Path) -> dict[str, str]:
    """Returns the child's environment: jax on the CPU, libtpu for compilation only, its HLO dumped into the folder."""
    modules = "step|read_window|decode|score_window"
    changed = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LIBRARY_PATH": library(),
        "XLA_FLAGS": f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*({modules}).*",
    }
    dropped = ("LIBTPU_INIT_ARGS", "JAX_COMPILATION_CACHE_DIR")
    return {name: value for name, value in os.environ.items() if name not in dropped} | changed


def run(command: Callable[[Path], Sequence[str]], keep: Path | None = None, quick: bool = False) -> dict[str, Any]:
    """Runs a child and returns the raw numbers of the compiled program (`compile.py`).

    Args:
      command: maps the output folder to the child's command line.
      keep: folder for the compiler's dump; None keeps nothing.
      quick: stop after buffer assignment, before code generation: no cycles, a tenth of the time.

    Raises:
      ConfigError: the child's line, if it reported a user error.
      RuntimeError: the last line of the output, if the compiler failed.
    """
    with interrupts.held(), _folder(keep) as folder:
        with (folder / LOG).open("w", encoding="utf-8") as log:
            child = subprocess.Popen(list(command(folder)), env=environment(folder), stdin=subprocess.DEVNULL,
                                     stdout=log, stderr=log)  # fmt: skip
            try:
                began = time.monotonic()
                if not _wait(child, (lambda: dump.laid_out(folder)) if quick else lambda: False):
                    seconds, given = time.monotonic() - began, _read(folder / GIVEN_JSON)
                    done = {"memory": dump.memory(folder), "compile_seconds": seconds - given["lower_seconds"]}
                    return given | done | dump.read(folder, given)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if child.returncode == 0:
            return _read(folder / RESULT_JSON)
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1] if lines else f"exit code {child.returncode}"
    last = last.removeprefix("famjax plan: ").removesuffix(" (--debug shows the traceback)")
    if child.returncode == MISTAKE:
        raise ConfigError(last)
    if child.returncode < 0:
        last = f"it was killed by signal {-child.returncode}; a compiler of large models needs 2 to 4 GB of memory"
    raise RuntimeError(f"the TPU compiler failed: {last}")


def _wait(child: "subprocess.Popen[bytes]", enough: Callable[[], bool]) -> bool:
    """Returns True when the child has exited, or False as soon as `enough` is true."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=1)
            return True
        if enough():
            return False
        interrupts.check()


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for old in (*keep.glob("module_*"), *keep.glob("*.json")):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="famjax-plan-") as name:
        yield Path(name)
