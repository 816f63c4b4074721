"""Access to files by path, local or remote (`gs://`, `s3://`, `memory://`), through fsspec."""

import glob
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

import fsspec

from famjax.config import ConfigError
from famjax.config.checks import reason_of
from famjax.config.text import BOM, BadText, checked, json_of
from famjax.data.kinds import is_gzip, is_hidden

T = TypeVar("T")


def filesystem(path: str) -> tuple[Any, str]:
    """Returns (fsspec file system, path in it). Raises `ConfigError` if there is no driver for the path's protocol."""
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:  # `gs://` without gcsfs; an unknown protocol
        raise ConfigError(f"{path}: {reason_of(error)}") from error


def expand(pattern: str) -> list[str]:
    """Returns the files that match a path or a glob, sorted, so that every host has the same order.

    An existing path is not treated as a glob, even if it contains wildcards. Raises `ConfigError` if none matches.
    """
    if paths := found(pattern):
        return paths
    if glob.has_magic(pattern):
        raise ConfigError(f"no file matches {pattern}; check the path, or quote it from the shell")
    raise ConfigError(f"there is no file {pattern}")


def found(pattern: str) -> list[str]:
    """Like `expand`, but returns an empty list if none matches."""
    system, path = filesystem(pattern)
    whole = lambda name: system.unstrip_protocol(name) if "://" in pattern else name
    if system.exists(path):
        return [whole(path)]
    if not glob.has_magic(path):
        return []
    files = [name for name in sorted(system.glob(_escaped(system, path))) if not system.isdir(name)]
    # As in a shell, globs match no hidden files and folders that they do not ask for.
    hidden = lambda name: sum(is_hidden(part) for part in name.split("/"))
    return [whole(name) for name in files if hidden(name) <= hidden(path)]


def _escaped(system: Any, path: str) -> str:
    """Escapes the folders of a glob as far as they exist: in `Moby Dick [2701]/*.txt`, `[2701]` is part of a name."""
    *folders, name = path.split("/")
    for i in range(len(folders), 0, -1):
        there = "/".join(folders[:i])
        if glob.has_magic(there) and system.exists(there):
            return "/".join([glob.escape(there), *folders[i:], name])
    return path


def is_directory(path: str) -> bool:
    """Whether a path is an existing directory."""
    system, inside = filesystem(path)
    return bool(system.isdir(inside))


def exists(path: str) -> bool:
    """Whether a file or directory exists."""
    system, inside = filesystem(path)
    return bool(system.exists(inside))


def size(path: str) -> int:
    """Returns the size of a file in bytes."""
    system, inside = filesystem(path)
    return int(system.size(inside))


def read(path: str, start: int | None = None, end: int | None = None) -> bytes:
    """Returns the bytes [start, end) of a file. Raises `BadText` if it cannot be read."""
    system, inside = filesystem(path)
    try:
        return system.cat_file(inside, start=start, end=end)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> BadText:
    """Converts an error of a file system or of gzip to a `BadText` that states why the file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return BadText(path, "No such file or directory")
    if isinstance(error, IsADirectoryError):
        return BadText(path, f"this is a directory; name its files, for example {path.rstrip('/')}/*")
    if is_gzip(path) and (isinstance(error, (EOFError, zlib.error)) or getattr(error, "errno", None) is None):
        return BadText(path, f"this is not a complete gzip file ({error})")
    return BadText(path, f"this cannot be read ({getattr(error, 'strerror', None) or error})")


def read_plain(path: str) -> bytes:
    """Returns all bytes of a file, decompressed if its name ends in `.gz`. Raises `BadText` if it cannot be read."""
    content = read(path)
    if not is_gzip(path):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error


def open_plain(path: str) -> IO[bytes]:
    """Opens a file for sequential reading, decompressed if its name ends in `.gz`. Raises `BadText` on failure."""
    try:
        if "://" in path:
            system, inside = filesystem(path)
            file = system.open(inside, "rb")
        else:
            file = open(os.path.expanduser(path), "rb")  # noqa: SIM115 - also for pipes, in which fsspec would seek
    except OSError as error:
        raise unreadable(path, error) from error
    return gzip.open(file) if is_gzip(path) else file  # type: ignore[return-value]


def json_lines(path: str) -> Iterator[tuple[str, Any]]:
    """Yields (file:line, JSON value) for every line that is not blank; the value of an invalid line is a `BadText`.
    Raises `BadText` if the file cannot be opened, or its gzip data is truncated."""
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


def read_json_lines(path: str, what: str, convert: Callable[[Any, str], T]) -> list[T]:
    """Returns `convert(value, file:line)` of every line that is not blank. Raises `ConfigError` on an invalid line, and
    if there is none; `what` the lines are, for the message."""
    found = []
    for place, value in json_lines(path):
        if isinstance(value, BadText):
            raise value
        found.append(convert(value, place))
    if not found:
        raise ConfigError(f"{path} has no {what}; give it one JSON object per line")
    return found


# --- Hugging Face datasets, as written by `save_to_disk` ----------------------------------------------


def splits_of(folder: str) -> list[str] | None:
    """Returns the splits of a folder with several; None if it does not have them."""
    path = f"{folder}/dataset_dict.json"
    return json_of(read(path), path).get("splits", []) if exists(path) else None


def arrow_files(folder: str) -> list[str] | None:
    """Returns the paths of the Arrow files of a data set; None if the folder is not one."""
    path = f"{folder}/state.json"
    return [f"{folder}/{one['filename']}" for one in json_of(read(path), path)["_data_files"]] if exists(path) else None
