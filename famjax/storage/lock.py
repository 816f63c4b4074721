"""One training a model directory: a lock that dies with the process that holds it. Imports nothing heavy."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from famjax.config import ConfigError

LOCK = ".lock"

# A file system that knows no locks; what NFS without its lock service answers.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def held(model_dir: str | Path) -> Iterator[None]:
    """Holds `DIR/.lock`. A directory that is made for it is removed again if nothing else came into it.

    The kernel releases the lock with the process, however that ends, so a file that is left behind locks
    nobody out. Between machines it holds as far as the file system carries `flock` (Linux does over NFS 4;
    where it is refused there is no lock). Object stores such as gs:// have none: there, this is no protection.

    Raises:
      ConfigError: another process holds it, or the directory cannot be written.
    """
    root = Path(model_dir)
    made = [path for path in (root, *root.parents) if not path.exists()]
    path = root / LOCK
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except OSError as error:
        raise ConfigError(f"MODEL_DIR {root} cannot be written: {error.strerror}; name another directory") from error
    try:
        yield
    finally:
        # Whoever has opened this file meanwhile finds that it has lost its name, see `_locked`.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(file)
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(file, 200).decode("utf-8", "replace").strip()
            if error.errno not in _NO_LOCKS:
                os.close(file)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                who = f" ({holder})" if holder else ""
                raise ConfigError(
                    f"another training{who} is at work in MODEL_DIR {path.parent}; wait for it, stop it, or name "
                    f"another directory"
                ) from None
            if error.errno not in _NO_LOCKS:
                raise
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return file
        os.close(file)  # its holder removed it between our two calls
