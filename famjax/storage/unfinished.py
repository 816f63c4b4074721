"""Atomic creation of directories, and work on them that resumes after a kill."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from famjax.config import ConfigError
from famjax.process import interrupts
from famjax.storage import lock

JOURNAL = ".unfinished"


class Journal:
    """A file in a directory that records which parts of the directory are on disk.

    It consists of lines of JSON: first a description of the work, then an entry for each part, written after the part.
    An incomplete last line, left by a killed process, is ignored. The open journal holds a lock.

    Args:
      folder: the directory; created if it does not exist.
      what: a complete description of the work. All files of other work in the directory are deleted.

    Attributes:
      goes_on: whether an earlier process left entries of the same work, which is then resumed.

    Raises:
      ConfigError: another process holds the lock.
    """

    def __init__(self, folder: Path, what: str):
        folder.mkdir(exist_ok=True)
        self._file = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            lock.take(self._file, folder)
            with open(folder / JOURNAL, encoding="utf-8", errors="replace") as file:
                text = file.read()
            lines = text[: text.rfind("\n") + 1].splitlines()
            same = bool(lines) and lines[0] == json.dumps(what)
            self._done = set(lines[1:]) if same else set()
            self.goes_on = bool(self._done)
            if same:
                os.ftruncate(self._file, len("\n".join(lines).encode()) + 1)
            else:
                _clear(folder)
                os.ftruncate(self._file, 0)
                self._append(json.dumps(what))
        except BaseException:
            os.close(self._file)
            raise

    def __contains__(self, entry: Any) -> bool:
        return json.dumps(entry) in self._done

    def add(self, entry: Any) -> None:
        """Records that a part is on disk."""
        self._append(json.dumps(entry))
        self._done.add(json.dumps(entry))

    def close(self) -> None:
        """Releases the lock, so that another process can resume."""
        os.close(self._file)

    def _append(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())
        os.fsync(self._file)


@contextlib.contextmanager
def atomic_directory(target: str | Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Yields a temporary directory, which is renamed to `target` when the context ends without an error.

    The temporary directory is next to the target. On errors and interrupts it is removed; one left by a killed process
    is removed by the next call. A target that is a symbolic link stays one, to the directory that is created. Raises
    `ConfigError` if the target exists and is not an empty directory, or is a mount point, its parent does not exist,
    or less than `needed_bytes` are free.
    """
    target, partial = _places(target)
    shutil.rmtree(partial, ignore_errors=True)
    _check_room(target, needed_bytes)
    partial.mkdir()
    try:
        with interrupts.held():
            yield partial
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def resumable_directory(target: str | Path, what: str, needed_bytes: int = 0) -> Iterator[tuple[Path, Journal]]:
    """Yields (temporary directory, its journal) like `atomic_directory`, but resumes the work of an earlier process.

    The temporary directory of a stopped or killed process is left, and the next call with the same `what` yields it
    again.

    Args:
      target: the directory to create.
      what: a complete description of the work. Files of other work are removed.
      needed_bytes: size of the whole directory; that of files from an earlier process is subtracted.

    Raises:
      ConfigError: as `atomic_directory`, or another process is writing the directory. A `ConfigError` raised in the
        context removes the temporary directory, since resuming would raise it again.
    """
    target, partial = _places(target)
    there = _size(partial) if partial.exists() else 0
    if not partial.exists():
        _check_room(target, needed_bytes)
    journal = Journal(partial, what)
    try:
        if not journal.goes_on:
            there = 0
        try:
            _check_room(target, needed_bytes - there)
        except ConfigError:
            if not journal.goes_on:
                shutil.rmtree(partial)
            raise
        kept = f"run the same command to resume from {partial}"
        try:
            with interrupts.held(lambda: kept):
                yield partial, journal
        except ConfigError:
            shutil.rmtree(partial)
            raise
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"interrupted; {kept}") from error
        (partial / JOURNAL).unlink()
        os.replace(partial, target)
    finally:
        journal.close()


def _places(target: str | Path) -> tuple[Path, Path]:
    """Returns the directory to create, which a symbolic link may name, and the temporary directory next to it."""
    target = Path(os.path.realpath(target))
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise ConfigError(f"{target} exists already; name a new directory, or an empty one")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent} does not exist; create it first")
    if target.exists():
        _check_replaceable(target)
    return target, target.with_name(f".{target.name}.partial")


def _check_replaceable(target: Path) -> None:
    """Raises `ConfigError` if nothing can be renamed over an empty directory, by renaming the directory itself."""
    away = target.with_name(f".{target.name}.{os.getpid()}.away")
    try:
        target.rename(away)
    except OSError as error:  # EBUSY: a mount point, also one of the same file system
        raise ConfigError(
            f"{target} cannot be replaced ({error.strerror}); name a new directory, such as one in it"
        ) from error
    away.rename(target)


def _check_room(target: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed_bytes:
        raise ConfigError(
            f"{target.parent} has {free / 1e9:.1f} GB free, and {needed_bytes / 1e9:.1f} GB are needed; free some space"
        )


def _size(folder: Path) -> int:
    """Returns the bytes that a folder's files occupy on disk; holes of sparse files do not count."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != JOURNAL:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
