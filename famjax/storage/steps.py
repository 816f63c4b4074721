"""The steps below a model directory as files: which there are, and which are as they were written.

    checkpoints/N/weights/     the weights
    checkpoints/N/training/    optional: the rest of a training's state
    checkpoints/N/progress/    optional: what of it is JSON
    checkpoints/N/metrics/     optional: the metrics of that step, JSON

Each folder has a FILES.json with sizes and checksums of the files beside it. It is written before a step gets its
name, so a step that was saved whole has it. Imports nothing heavy.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from famjax.storage.model_dir import CHECKPOINTS, write_text

WEIGHTS, TRAINING, PROGRESS, METRICS = "weights", "training", "progress", "metrics"

# What was written below a folder; of files up to so many bytes the content is checked too.
FILES, CHECKED_BYTES = "FILES.json", 2**26
_CHUNK = 2**20


def step_dir(root: Path, step: int) -> Path:
    """Where a step is."""
    return root / CHECKPOINTS / str(step)


def all_steps(model_dir: str | Path) -> list[int]:
    """The steps below a model directory, rising. One that is still being written has another name."""
    folder = Path(model_dir) / CHECKPOINTS
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit() and path.is_dir())


def latest_step(model_dir: str | Path) -> int | None:
    """The newest step below a model directory, or None."""
    return max(all_steps(model_dir), default=None)


def record_files(folder: Path) -> None:
    """Notes what was written, so that damage is found before Orbax is asked to read it.

    Orbax reads all arrays side by side; on damage each of them prints a traceback, from threads.
    """
    write_text(folder / FILES, json.dumps(_fingerprints(folder)))


def recorded_files(folder: Path) -> dict[str, list[int]]:
    """What the record of a folder says, by file; where there is none, what it would say."""
    if not (folder / FILES).is_file():
        return _fingerprints(folder)
    try:
        recorded: dict[str, list[int]] = json.loads((folder / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # `damage` has more to say of it
    return recorded


def record_step(folder: Path) -> None:
    """`record_files` for each part of a step."""
    for name in (WEIGHTS, TRAINING, PROGRESS, METRICS):
        if (folder / name).is_dir():
            record_files(folder / name)


def damage(root: Path, step: int, parts: Iterable[str]) -> str:
    """The first file of these parts of a step that is not as it was written, in words, or nothing.

    A part without a record, such as one that another program wrote, is taken as whole.
    """
    for part in parts:
        if file := _damaged(step_dir(root, step) / part):
            return f"{file} is missing or damaged"
    return ""


def recorded_metrics(root: Path, step: int) -> dict[str, Any]:
    """The metrics that were saved with a step; empty where there are none."""
    try:
        found = json.loads((step_dir(root, step) / METRICS / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _fingerprints(folder: Path) -> dict[str, list[int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILES)
    return {str(path.relative_to(folder)): _fingerprint(path) for path in files}


def _fingerprint(path: Path) -> list[int]:
    """[bytes, CRC32], the second only of files that are read in a moment."""
    size = path.stat().st_size
    if size > CHECKED_BYTES:
        return [size]
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return [size, checksum]


def _damaged(folder: Path) -> str:
    """The first file that is not as it was written, or nothing."""
    if not (folder / FILES).is_file():
        return "" if folder.is_dir() else str(folder)
    try:
        recorded = json.loads((folder / FILES).read_text(encoding="utf-8"))
        for name, fingerprint in recorded.items():
            if not (folder / name).is_file() or _fingerprint(folder / name) != fingerprint:
                return str(folder / name)
    except (ValueError, AttributeError):
        return str(folder / FILES)
    except FileNotFoundError:  # a training has just deleted this step
        return str(folder)
    return ""
