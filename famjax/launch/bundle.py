"""What is copied to machines that have nothing: famjax's code, gin files, scripts, pinned requirements, and the job."""

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from famjax.launch.job import Training
from famjax.launch.shipped import PACKAGE, find
from famjax.launch.supervisor import Supervision

RUN_GIN, WORDS, REQUIREMENTS = "job/run.gin", "job/words", "job/requirements.txt"


def worker_words(gin: str, supervision: Supervision) -> list[str]:
    """What runs on each host: its part of the job, supervised. It finds out itself which part that is."""
    s = supervision
    return [
        "launch", "--target", "local", "--processes", "1", "--supervise", "--restarts", str(s.restarts),
        "--hang-seconds", f"{s.hang_seconds:g}", "--start-seconds", f"{s.start_seconds:g}",
        "--backoff-seconds", f"{s.backoff_seconds:g}", "--gin_file", gin,
    ]  # fmt: skip


def contents(training: Training, words: Sequence[str], requirements: str = "") -> dict[str, bytes]:
    """By their paths, all files of the bundle.

    The words lie in a file, each ended by a zero byte: so no shell between here and there ever reads them.

    Args:
      training: its settings go along, and modules of the current directory that register its tasks.
      words: what runs there, behind `famjax`.
      requirements: a file of packages to install beside famjax's own; empty is none.
    """
    files = {f"famjax/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in PACKAGE.rglob("*.py")}
    for folder, pattern in (("gin", "*.gin"), ("launch", "*.sh")):
        root = find(folder)
        files |= {f"{folder}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in root.rglob(pattern)}
    files |= {name: find(name).read_bytes() for name in ("requirements.txt", "requirements-tpu.txt")}
    files[RUN_GIN] = training.gin.encode()
    files[WORDS] = b"".join(word.encode() + b"\0" for word in words)
    for path in (path for name in training.config.data.modules for path in _module(name)):
        files[path.as_posix()] = path.read_bytes()
    if requirements:
        files[REQUIREMENTS] = Path(requirements).read_bytes()
    return dict(sorted(files.items()))


def _module(name: str) -> list[Path]:
    """Files of a module that lies in the current directory, where famjax seeks it; else it is an installed one's."""
    top = Path(name.partition(".")[0])
    return [path for path in (top.with_suffix(".py"), *top.rglob("*.py")) if path.is_file()]


def write(path: Path, files: dict[str, bytes]) -> None:
    """A .tar.gz of these files; the same files give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))
