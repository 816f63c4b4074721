"""Finds and decodes gin files, and says what to write if one is missing or cannot be parsed. Does not import gin.

gin's parser calls readers with a file name only, so the search path is module state, which `searching` sets for the
duration of a load.
"""

import contextlib
import difflib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from famjax.config import ConfigError
from famjax.config.text import BadText, read_text
from famjax.launch import shipped

QUOTES = "'\""


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
    """Opens a gin file by the name in an include or on the command line, for gin's parser. Raises `ConfigError` if the
    name is ambiguous, or the file cannot be decoded."""
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


def advice(error: SyntaxError) -> str:
    """Returns what to write instead of a line that gin cannot parse; empty if that is unclear."""
    line = _line(error).partition("#")[0].strip()
    if re.search("[\u2018\u2019\u201a\u201c\u201d\u201e]", line):
        return f"{line} has typographic quotes; write ' or \""
    if include := re.fullmatch(r"(include|import)\s+(\S+)", line):
        plain = include[2].strip("'\"")
        return f"{line} has no effect; write include '{plain}'" if include[1] == "include" else ""
    name, equals, value = (part.strip() for part in line.partition("="))
    if equals and value[:1] in ("'", '"') and value.count(value[0]) % 2:
        return f"{value}: a quote is not closed"
    if equals and re.fullmatch(r"[\w./]+", name) and value and value[0] not in "'\"%@=":
        return f"{value} is not a gin value; {_quoted(name, value)}"
    if not equals and (pair := re.fullmatch(r"([\w./]+)\s*:?\s+(\S.*)|([\w./]+):(\S.*)", line)):
        return f"{line} is not a setting; write {pair[1] or pair[3]} = {pair[2] or pair[4]}"
    return ""


def _quoted(name: str, value: str) -> str:
    """Returns how to write a value that gin rejected."""
    if value[0] in "[({":
        return "texts in brackets need quotes, and brackets must be closed: ('a', 'b'), {'data': 8}"
    python = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(value.lower())
    if python:
        return f"write {name} = {python}"
    number = "write a number, or a text in quotes" if value[0] in "-+.0123456789" else "text needs quotes"
    return f"{number}: {name} = '{value.strip(QUOTES).replace(chr(92), '/')}'"


def _line(error: SyntaxError) -> str:
    """Returns the source line of a syntax error; empty if there is none."""
    if not error.filename or not error.lineno or not Path(error.filename).is_file():
        return ""
    lines = read_text(error.filename).splitlines()
    return lines[error.lineno - 1] if error.lineno <= len(lines) else ""
