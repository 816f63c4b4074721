"""Directories that get their name once everything is in them, and work on them that goes on where it was killed."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from famjax.config import ConfigError
from famjax.process import interrupts

JOURNAL = ".unfinished"


class Journal:
    """What of a directory is on the disk already, in a file within it.

    Lines of JSON: first what is being made, then an entry for each part, written once the part is. A line that a
    killed process left without its end does not count.

    Attributes:
      goes_on: an earlier process left entries for the same work.
    """

    def __init__(self, folder: Path, what: str):
        folder.mkdir(exist_ok=True)
        self._file = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(self._file, folder)
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
        """The part is on the disk."""
        self._append(json.dumps(entry))
        self._done.add(json.dumps(entry))

    def close(self) -> None:
        """Lets another process go on."""
        os.close(self._file)

    def _append(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())
        os.fsync(self._file)


@contextlib.contextmanager
def made_whole(target: str | Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A new directory that gets its name once everything is in it.

    Until then it lies beside its place, under another name; what fails, or is interrupted, leaves nothing
    there. What a killed process left is removed by the next one.

    Raises:
      ConfigError: the target exists and is not empty, or the disk has less room than `needed_bytes`.
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
def made_in_steps(target: str | Path, what: str, needed_bytes: int = 0) -> Iterator[tuple[Path, Journal]]:
    """`made_whole` for long work: what a stopped or killed process left stays, and the next one goes on with it.

    Args:
      target: the directory to make.
      what: is being made, to the last detail. What was left of something else is removed.
      needed_bytes: of all of it; what is there already is taken off.

    Raises:
      ConfigError: as `made_whole`; or another process is at work on it. A `ConfigError` from within removes
        everything, since going on would meet it again.
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
        kept = f"the same command goes on with what is in {partial}"
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
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists already; name a new directory, or an empty one")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent} is not there; make it first")
    return target, target.with_name(f".{target.name}.partial")


def _check_room(target: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed_bytes:
        raise ConfigError(
            f"{target.parent} has {free / 1e9:.1f} GB free, and {needed_bytes / 1e9:.1f} GB are needed; make room"
        )


def _size(folder: Path) -> int:
    """Bytes that files take on the disk; what is written as holes takes none."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != JOURNAL:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _lock(file: int, folder: Path) -> None:
    """Dies with the process. Where the file system knows no locks, there is none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise ConfigError(f"another process is making {folder}; wait for it, or name another directory") from None
