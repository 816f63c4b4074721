"""Files by path, local or remote (`gs://`, `s3://`, `memory://`): everything goes through fsspec."""

import glob
import gzip
import os
import zlib
from collections.abc import Iterator
from typing import IO, Any

import fsspec

from famjax.config import ConfigError
from famjax.config.text import BOM, BadText, checked, json_of
from famjax.data.kinds import is_gzip, is_hidden


def filesystem(path: str) -> tuple[Any, str]:
    """(fsspec file system, path in it). Raises `ConfigError` where the path's protocol has no driver."""
    try:
        return fsspec.core.url_to_fs(path)
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
    files = [name for name in sorted(system.glob(_escaped(system, path))) if not system.isdir(name)]
    # As a shell's globs, these match no hidden files.
    return [whole(name) for name in files if is_hidden(path) or not is_hidden(name)]


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
    """The bytes [start, end) of a file. Raises `BadText` if it cannot be read."""
    system, inside = filesystem(path)
    try:
        return system.cat_file(inside, start=start, end=end)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> BadText:
    """What a file system, or gzip, says of a file that it cannot read."""
    if isinstance(error, FileNotFoundError):
        return BadText(path, "No such file or directory")
    if isinstance(error, IsADirectoryError):
        return BadText(path, f"this is a directory; name its files, for example {path.rstrip('/')}/*")
    if is_gzip(path) and (isinstance(error, (EOFError, zlib.error)) or getattr(error, "errno", None) is None):
        return BadText(path, f"this is no whole gzip file ({error})")
    return BadText(path, f"this cannot be read ({getattr(error, 'strerror', None) or error})")


def read_plain(path: str) -> bytes:
    """All bytes of a file, unpacked if its name ends in `.gz`."""
    content = read(path)
    if not is_gzip(path):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error


def open_plain(path: str) -> IO[bytes]:
    """A file to be read from its start on, unpacked on the way if its name ends in `.gz`."""
    try:
        if "://" in path:
            system, inside = filesystem(path)
            file = system.open(inside, "rb")
        else:
            file = open(os.path.expanduser(path), "rb")  # noqa: SIM115 - a pipe, too, which fsspec would seek in
    except OSError as error:
        raise unreadable(path, error) from error
    return gzip.open(file) if is_gzip(path) else file  # type: ignore[return-value]


def json_lines(path: str) -> Iterator[tuple[str, Any]]:
    """(file:line, JSON value) of every line that is not blank; a line that cannot be read comes as `BadText`.

    Raises:
      BadText: the file cannot be opened, or ends in the middle of its gzip data.
    """
    with open_plain(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.removeprefix(BOM).strip():
                    place = f"{path}:{number}"
                    try:
                        yield place, checked(json_of(line, place), place)
                    except BadText as error:
                        yield place, error
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(path, error) from error
