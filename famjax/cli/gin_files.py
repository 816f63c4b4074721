"""Finds and decodes gin files, and raises the error if one is missing. Does not import gin.

gin's parser calls readers with a file name only, so the search path is module state, which `searching` sets for the
duration of a load.
"""

import contextlib
import difflib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from famjax.config import ConfigError
from famjax.config.text import BadText, read_text
from famjax.launch import shipped


def search_path(given: Sequence[str] = ()) -> list[Path]:
    """Returns the folders searched for gin files: the current folder, `given`, then those shipped with famjax."""
    roots = [Path.cwd(), *map(Path, given), *(root for root in shipped.ROOTS if (root / "gin").is_dir())]
    return list(dict.fromkeys(roots))


_SEARCHED: list[Path] = []
# The gin files being parsed, innermost include last.
_READING: list[Path] = []


@contextlib.contextmanager
def searching(roots: list[Path]) -> Iterator[None]:
    """Sets the folders in which gin files are searched, in this order, and silences gin's log."""
    _SEARCHED[:] = roots
    logging.disable(logging.ERROR)  # gin logs a missing file before it raises
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        _SEARCHED.clear()
        _READING.clear()


def find(name: str) -> Path | None:
    """Finds a gin file on the search path, else next to the including file. Windows separators count as `/`."""
    name = name.replace("\\", "/")
    found = next((root / name for root in _SEARCHED if (root / name).is_file()), None)
    beside = _READING[-1].parent / name if _READING else None
    if beside is None or not beside.is_file():
        return found
    if found is not None and found.read_bytes() != beside.read_bytes():
        raise ConfigError(f"the include of {name} is ambiguous: {found} and {beside} differ; write a longer path")
    return found or beside


class GinFile(io.StringIO):
    """A gin file that is opened for gin's parser, with `\\n` line ends. Raises `ConfigError` if it is not text, or
    includes itself."""

    def __init__(self, path: Path):
        if path.resolve() in map(Path.resolve, _READING):
            raise ConfigError(f"{path} includes itself: {' includes '.join(map(str, [*_READING, path]))}")
        try:
            text = read_text(path)
        except BadText as error:  # gin re-raises exceptions as a subclass that it constructs from one string
            raise ConfigError(str(error)) from error
        super().__init__(text.replace("\r\n", "\n").replace("\r", "\n"))
        self.name = str(path)
        _READING.append(path)

    def __exit__(self, *error: Any) -> None:
        _READING.pop()
        super().__exit__(*error)


def open_file(name: str) -> IO[str]:
    """Opens a gin file by the name in an include or on the command line, for gin's parser.

    Raises:
      ConfigError: the name is ambiguous, or the file cannot be decoded.
    """
    return GinFile(find(name) or Path(name))


def missing_file(name: str, where: str) -> NoReturn:
    """Raises `ConfigError` for a gin file that does not exist, with the nearest names; `where` is its prefix."""
    present: dict[str, Path] = {}
    for root in _SEARCHED:
        for pattern in ("*.gin", "gin/**/*.gin"):  # not recursively: the current directory may be a home directory
            present |= {str(path.relative_to(root)): path for path in root.glob(pattern)}
    near = difflib.get_close_matches(name, sorted(present), n=3, cutoff=0.5)
    stem = difflib.get_close_matches(Path(name).name, sorted({path.name for path in present.values()}), n=2)
    near += [key for key, path in sorted(present.items()) if path.name in stem and key not in near]
    hint = f"; nearest are {', '.join(near[:3])}" if near else f"; searched {', '.join(map(str, _SEARCHED))}"
    raise ConfigError(f"{where}there is no gin file {name}{hint}")
