"""Files by path, local or remote (`gs://`, `s3://`, `memory://`): everything goes through fsspec."""

import glob
import gzip
import zlib
from typing import IO, Any

import fsspec

from famjax.config import ConfigError


def filesystem(path: str) -> tuple[Any, str]:
    """(fsspec file system, path in it). Raises `ConfigError` where the path's protocol has no driver."""
    try:
        return fsspec.core.url_to_fs(path)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:  # `gs://` without gcsfs; a protocol that nobody knows
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error


def expand(pattern: str) -> list[str]:
    """The paths that a path or a glob stands for, sorted, the same on every host. A path that exists is no glob.

    Raises:
      ConfigError: there is none.
    """
    if paths := found(pattern):
        return paths
    if glob.has_magic(pattern):
        raise ConfigError(f"no file matches {pattern}; check the path, or quote it from the shell")
    raise ConfigError(f"there is no file {pattern}")


def found(pattern: str) -> list[str]:
    """`expand`, but empty where there is none."""
    system, path = filesystem(pattern)
    whole = lambda name: system.unstrip_protocol(name) if "://" in pattern else name
    if system.exists(path):
        return [whole(path)]
    if not glob.has_magic(path):
        return []
    return [whole(name) for name in sorted(system.glob(_escaped(system, path))) if not system.isdir(name)]


def _escaped(system: Any, path: str) -> str:
    """A glob whose folders are taken by their names as far as they exist: in `Moby Dick [2701]/*.txt`, `[2701]` is
    part of a name."""
    *folders, name = path.split("/")
    for i in range(len(folders), 0, -1):
        there = "/".join(folders[:i])
        if glob.has_magic(there) and system.exists(there):
            return "/".join([glob.escape(there), *folders[i:], name])
    return path


def is_directory(path: str) -> bool:
    """True for a directory that is there."""
    system, inside = filesystem(path)
    return bool(system.isdir(inside))


def exists(path: str) -> bool:
    """True for a file or directory that is there."""
    system, inside = filesystem(path)
    return bool(system.exists(inside))


def size(path: str) -> int:
    """Bytes of a file."""
    system, inside = filesystem(path)
    return int(system.size(inside))


def read(path: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes [start, end) of a file. Raises `ConfigError` where it cannot be read."""
    system, inside = filesystem(path)
    try:
        return system.cat_file(inside, start=start, end=end)  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a directory; name its files, for example {path.rstrip('/')}/*") from error


def read_plain(path: str) -> bytes:
    """All bytes of a file, unpacked where its name ends in `.gz`."""
    content = read(path)
    if not path.endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} is no whole gzip file ({error})") from error


def open_plain(path: str) -> IO[bytes]:
    """A file to be read from its start on, unpacked on the way where its name ends in `.gz`."""
    system, inside = filesystem(path)
    if system.isdir(inside):
        raise ConfigError(f"{path} is a directory; name its files, for example {path.rstrip('/')}/*")
    file = system.open(inside, "rb")
    return gzip.open(file) if path.endswith(".gz") else file  # type: ignore[return-value]
