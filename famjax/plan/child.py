"""Runs the compiler in a process of its own, shows how long it has been at it, and keeps its noise away."""

import contextlib
import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from famjax.config import ConfigError

RESULT_JSON = "result.json"
LOG = "log.txt"
MISTAKE = 2
INSTALL = "pip install libtpu==0.0.52"


def library() -> str:
    """Where libtpu is. Raises `ConfigError` with the command that installs it."""
    found = importlib.machinery.PathFinder.find_spec("libtpu")
    path = Path(found.origin).parent / "libtpu.so" if found and found.origin else None
    if path is None or not path.is_file():
        raise ConfigError(f"famjax plan compiles with libtpu, which is not installed (it needs no TPU): {INSTALL}")
    return str(path)


def libtpu_version() -> str:
    """Of the installed libtpu; empty where it tells none."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("libtpu")
    return ""


def environment(folder: Path) -> dict[str, str]:
    """Variables of the child: jax on the CPU, libtpu for compiling only, its text dumped into the folder."""
    modules = "|".join(("step", "read_window", "decode", "score_window"))
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


def run(
    command: Callable[[Path], Sequence[str]], tell: Callable[[float], None], keep: Path | None = None
) -> dict[str, Any]:
    """Runs a child and returns what it wrote to `RESULT_JSON`.

    Args:
      command: its words, given the folder that it writes to.
      tell: called every second or so with the seconds since it began.
      keep: a folder that gets all that the compiler wrote; None leaves nothing.

    Raises:
      ConfigError: the child found a mistake of the user's; its line.
      RuntimeError: the compiler failed; its last lines.
    """
    with _folder(keep) as folder:
        (folder / RESULT_JSON).unlink(missing_ok=True)
        with (folder / LOG).open("w", encoding="utf-8") as log:
            child = subprocess.Popen(list(command(folder)), env=environment(folder), stdin=subprocess.DEVNULL,
                                     stdout=log, stderr=log)  # fmt: skip
            try:
                _wait(child, tell)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if child.returncode == 0:
            result: dict[str, Any] = json.loads((folder / RESULT_JSON).read_text(encoding="utf-8"))
            return result
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1] if lines else f"exit code {child.returncode}"
    if child.returncode == MISTAKE:
        raise ConfigError(last.split(": ", 1)[-1])
    if child.returncode < 0:
        last = f"it was killed by signal {-child.returncode}; a compiler of large models needs 2 to 4 GB of memory"
    raise RuntimeError(f"the TPU compiler failed: {last}")


def _wait(child: "subprocess.Popen[bytes]", tell: Callable[[float], None]) -> None:
    began = time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=1)
            return
        tell(time.monotonic() - began)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for old in keep.glob("module_*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="famjax-plan-") as name:
        yield Path(name)


def python(*words: str) -> list[str]:
    """This Python with these words."""
    return [sys.executable, *words]
