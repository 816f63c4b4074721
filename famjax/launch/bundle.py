"""Bundles famjax for machines that lack it: its code, gin files, scripts, pinned requirements, and the job."""

import gzip
import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from famjax.launch.job import Training
from famjax.launch.shipped import PACKAGE, find
from famjax.launch.supervisor import Supervision

RUN_GIN, WORDS, REQUIREMENTS = "job/run.gin", "job/words", "job/requirements.txt"


def worker_words(gin: str, supervision: Supervision) -> list[str]:
    """Returns the arguments of `famjax` on each host: one supervised process, which detects its index in the job."""
    s = supervision
    return [
        "launch", "--target", "local", "--processes", "1", "--supervise", "--restarts", str(s.restarts),
        "--hang-seconds", f"{s.hang_seconds:g}", "--start-seconds", f"{s.start_seconds:g}",
        "--backoff-seconds", f"{s.backoff_seconds:g}", "--gin_file", gin,
    ]  # fmt: skip


def contents(training: Training, words: Sequence[str], requirements: str = "") -> dict[str, bytes]:
    """Returns all files of the bundle by path, including modules of the current directory that register tasks.

    `words`, the arguments of `famjax` on the workers, are stored in a file, each terminated by a zero byte, so no shell
    parses them. `requirements`, if given, is a file to install in addition to famjax's own.
    """
    files = {f"famjax/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in PACKAGE.rglob("*.py")}
    for folder, pattern in (("gin", "*.gin"), ("launch", "*.sh")):
        root = find(folder)
        files |= {f"{folder}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in root.rglob(pattern)}
    files |= {name: find(name).read_bytes() for name in ("requirements.txt", "requirements-tpu.txt")}
    files[RUN_GIN] = training.gin.encode()
    files[WORDS] = b"".join(word.encode() + b"\0" for word in words)
    imported = re.findall(r"^(?:import|from) ([\w.]+)", training.gin, re.MULTILINE)  # by the gin files
    for path in (path for name in (*training.config.data.modules, *imported) for path in _module(name)):
        files[path.as_posix()] = path.read_bytes()
    if requirements:
        files[REQUIREMENTS] = Path(requirements).read_bytes()
    return dict(sorted(files.items()))


def _module(name: str) -> list[Path]:
    """Returns the files of a module in the current directory; empty if the module is an installed one."""
    top = Path(name.partition(".")[0])
    return [path for path in (top.with_suffix(".py"), *top.rglob("*.py")) if path.is_file()]


def write(path: Path, files: dict[str, bytes]) -> None:
    """Writes a .tar.gz of these files; it is byte-identical for equal files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))
