"""The steps in a model directory as files: which ones exist, and whether they are intact.

    checkpoints/N/weights/     the weights
    checkpoints/N/training/    optional: the other arrays of a training's state
    checkpoints/N/progress/    optional: the JSON of a training's state
    checkpoints/N/metrics/     optional: the metrics of that step, JSON

Each folder has a FILES.json with sizes and checksums of its other files. It is written before the step is renamed to
its final name, so every completely saved step has it. Imports nothing heavy.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from famjax.storage.model_dir import CHECKPOINTS, is_step, write_text

WEIGHTS, TRAINING, PROGRESS, METRICS = "weights", "training", "progress", "metrics"

# The record of a folder's files. It has checksums of files of up to this many bytes, and sizes of all files.
FILES, CHECKED_BYTES = "FILES.json", 2**26
_CHUNK = 2**20


def step_dir(root: Path, step: int) -> Path:
    """Returns the folder of a step."""
    return root / CHECKPOINTS / str(step)


def all_steps(model_dir: str | Path) -> list[int]:
    """Returns the steps in a model directory, in ascending order, without one that is still being written."""
    folder = Path(model_dir) / CHECKPOINTS
    return sorted(int(path.name) for path in folder.glob("*") if is_step(path.name) and path.is_dir())


def newest_first(root: Path, named: int | None) -> list[int]:
    """Returns the steps to read a model from: all of them, the newest first, or the one that is named."""
    return all_steps(root)[::-1] if named is None else [named]


def no_step(root: Path, step: int) -> str:
    """Describes that a model directory does not have a step, and which ones it has."""
    return f"{root} has no step {step}; its steps: {', '.join(map(str, all_steps(root))) or 'none'}"


def latest_step(model_dir: str | Path) -> int | None:
    """Returns the newest step in a model directory, or None."""
    return max(all_steps(model_dir), default=None)


def record_files(folder: Path) -> None:
    """Writes the record of a folder, so that damage is found before Orbax reads it.

    Orbax reads all arrays concurrently; on damage each of them prints a traceback, from threads.
    """
    write_text(folder / FILES, json.dumps(_fingerprints(folder)))


def recorded_files(folder: Path) -> dict[str, list[int]]:
    """Returns the record of a folder: [bytes, CRC32] or [bytes] by file name.

    If the folder has no record, it is computed; if its record cannot be read, it is empty.
    """
    if not (folder / FILES).is_file():
        return _fingerprints(folder)
    try:
        recorded: dict[str, list[int]] = json.loads((folder / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # `damage` reports it
    return recorded


def record_step(folder: Path) -> None:
    """Writes the record of each part of a step."""
    for name in (WEIGHTS, TRAINING, PROGRESS, METRICS):
        if (folder / name).is_dir():
            record_files(folder / name)


def damage(root: Path, step: int, parts: Iterable[str]) -> str:
    """Describes the first missing or damaged file in these parts of a step, or returns an empty string.

    A part without a record, such as one that another program wrote, counts as intact.
    """
    for part in parts:
        if file := _damaged(step_dir(root, step) / part):
            return f"{file} is missing or damaged"
    return ""


def recorded_metrics(root: Path, step: int) -> dict[str, Any]:
    """Returns the metrics saved with a step, by name; empty if there are none."""
    try:
        found = json.loads((step_dir(root, step) / METRICS / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def size_of(folder: Path) -> int:
    """Returns the total size of the files in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _fingerprints(folder: Path) -> dict[str, list[int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILES)
    return {str(path.relative_to(folder)): _fingerprint(path) for path in files}


def _fingerprint(path: Path) -> list[int]:
    """Returns [bytes, CRC32], the CRC only of files up to `CHECKED_BYTES`."""
    size = path.stat().st_size
    if size > CHECKED_BYTES:
        return [size]
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return [size, checksum]


def _damaged(folder: Path) -> str:
    """Returns the path of the first missing or damaged file, or an empty string."""
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
    except OSError as error:  # permissions, or a bad sector
        return str(error.filename or folder)
    return ""
