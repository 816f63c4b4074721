"""A lock on a model directory, so that one training at a time uses it. Imports nothing heavy."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from famjax.config import ConfigError

LOCK = ".lock"

# Errors of file systems without locks, such as NFS without its lock service.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def held(model_dir: str | Path) -> Iterator[None]:
    """Holds a lock on `DIR/.lock` while the context is open. Directories that it created are removed if they are empty.

    The kernel releases the lock when the process ends, however it ends, so a leftover file has no effect. Between
    machines the lock works if the file system supports `flock` (Linux does over NFS 4). If the file system does not,
    as in object stores such as gs://, there is no lock.

    Raises:
      ConfigError: another process holds it, or the directory cannot be written.
    """
    root = Path(model_dir)
    created = [path for path in (root, *root.parents) if not path.exists()]
    path = root / LOCK
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except OSError as error:
        raise ConfigError(f"MODEL_DIR {root} cannot be written: {error.strerror}; name another directory") from error
    try:
        yield
    finally:
        # A process that has just opened this file notices in `_locked` that it was unlinked.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(file)
        with contextlib.suppress(OSError):  # not empty
            for folder in created:
                folder.rmdir()


def take(file: int, path: str | Path) -> None:
    """Locks an open file, which belongs to `path`, until it is closed; does nothing if the file system has no locks.
    Raises `ConfigError` if another process holds it."""
    if not _lock(file):
        raise ConfigError(f"another process is writing {path}; wait for it, or name another directory")


def _lock(file: int) -> bool:
    """Locks an open file, if the file system has locks. Returns False if another process holds its lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(file):
                holder = os.read(file, 200).decode("utf-8", "replace").strip()
                who = f" ({holder})" if holder else ""
                raise ConfigError(f"another training{who} is using MODEL_DIR {path.parent}; wait for it, stop it, or "
                                  f"name another directory")  # fmt: skip
        except BaseException:
            os.close(file)
            raise
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return file
        os.close(file)  # unlinked by its holder between the two calls
