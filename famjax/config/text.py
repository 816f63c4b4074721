"""Decodes users' files: UTF-8, with or without a byte order mark. All readers of such files use this module."""

import codecs
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from famjax.config.checks import ConfigError

BOM = b"\xef\xbb\xbf"
# Byte order marks of other encodings; UTF-32 first, since its mark begins with UTF-16's.
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
# A place in the user's data (file, or file:line), or a function that returns it, so that lines are counted only for an
# error message.
Place = str | Callable[[], str]
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class BadText(ConfigError):
    """A file or a line that cannot be decoded. Evaluations and the task `babi` count it and continue.

    Attributes:
      place: file, or file:line.
      reason: what is wrong.
    """

    def __init__(self, place: Place, reason: str):
        self.place, self.reason = place if isinstance(place, str) else place(), reason
        super().__init__(f"{self.place}: {reason}")


def text_of(content: bytes, place: Place, errors: str = "strict") -> str:
    """Decodes bytes as UTF-8, without the byte order mark. Raises `BadText` if they are not UTF-8 (unless `errors`, as
    in `bytes.decode`, allows it)."""
    try:
        return _without_mark(content, place).decode("utf-8", errors)
    except UnicodeDecodeError as error:
        start = error.start + len(BOM) * content.startswith(BOM)
        raise BadText(place, f"this is not UTF-8 text ({error.reason} at byte {start})") from error


def _without_mark(content: bytes, place: Place) -> bytes:
    if mark := next((mark for mark in _MARKS if content.startswith(mark)), None):
        raise BadText(place, f"this is not UTF-8 text but {_MARKS[mark]}; save it as UTF-8")
    return content.removeprefix(BOM)


def without_mark(pieces: Iterable[bytes], place: Place) -> Iterator[bytes]:
    """Yields the bytes of a UTF-8 text, which arrives in pieces of any size, without the byte order mark. Raises
    `BadText` if it begins with the byte order mark of another encoding."""
    rest, first = iter(pieces), b""
    while len(first) < max(map(len, _MARKS)) and (piece := next(rest, None)) is not None:
        first += piece
    if first := _without_mark(first, place):
        yield first
    yield from rest


def texts_of(pieces: Iterable[bytes], place: Place) -> Iterator[str]:
    """Yields the text of pieces of UTF-8, which may end within a character. Raises `BadText` if they are not UTF-8."""
    decoder, at = codecs.getincrementaldecoder("utf-8")("strict"), 0
    for piece in itertools.chain(pieces, [None]):
        held = len(decoder.getstate()[0])
        try:
            yield decoder.decode(piece or b"", final=piece is None)
        except UnicodeDecodeError as error:
            start = at - held + error.start
            raise BadText(place, f"this is not UTF-8 text ({error.reason} at byte {start})") from error
        at += len(piece or b"")


def read_text(path: str | Path, errors: str = "strict") -> str:
    """Returns the text of a local file. Raises `BadText`, or `OSError` if it cannot be opened."""
    return text_of(Path(path).read_bytes(), str(path), errors)


def json_of(content: bytes | str, place: Place, once: bool = False) -> Any:
    """Returns the JSON value of a line or a file. Raises `BadText` if it is neither UTF-8 nor JSON, or, if `once`, an
    object has a name twice."""

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise BadText(place, f"{name[:60]!r} is given twice; give it once")
            found[name] = value
        return found

    text = text_of(content, place) if isinstance(content, bytes) else content
    try:
        return json.loads(text, object_pairs_hook=each_once if once else None)
    except BadText:
        raise
    except json.JSONDecodeError as error:
        hint = "; JSON lines have a whole object in each line" if text.strip() in ("[", "{") else ""
        raise BadText(place, f"this is not JSON ({error.msg} at {_position(text, error)}){hint}") from error
    except RecursionError as error:
        raise BadText(place, "this JSON is nested too deeply") from error
    except ValueError as error:  # an integer with more digits than Python converts
        raise BadText(place, f"this JSON cannot be read ({str(error).split(';')[0]})") from error


def checked(value: Any, place: Place, what: str = "a text") -> Any:
    r"""Returns `value`, parsed JSON. Raises `BadText` if one of its strings has a lone surrogate (`"\ud83d"`)."""
    if isinstance(value, str):
        if half := _HALF_PAIR.search(value):
            raise BadText(place, f"{what} has half a surrogate pair (\\u{ord(half[0]):04x}), which is not valid UTF-8")
    elif isinstance(value, dict):
        for name, one in value.items():
            checked(name, place, "a name")
            checked(one, place, f'"{name}"')
    elif isinstance(value, list):
        for one in value:
            checked(one, place, what)
    return value


def _position(text: str, error: json.JSONDecodeError) -> str:
    one_line = "\n" not in text.rstrip("\n")
    return f"column {error.pos + 1}" if one_line else f"line {error.lineno}, column {error.colno}"
