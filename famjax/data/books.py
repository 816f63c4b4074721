"""Books of Project Gutenberg: some are Latin-1, and all have a header and a licence around the text.

The header names the encoding (`Character set encoding: ISO-8859-1`); the text lies between the lines
`*** START OF ... PROJECT GUTENBERG EBOOK ...` and `*** END OF ...`. Any other text file is read whole, as UTF-8.
"""

import codecs
import re
from typing import Any, NamedTuple

from famjax.config.text import BadText, text_of
from famjax.data import files

ENCODING = re.compile(rb"^\s*Character set encoding:\s*([\w-]+)", re.MULTILINE | re.IGNORECASE)
START, END = (
    re.compile(
        rf"^[ \t]*\*\*\* ?{end} OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)\b(?:(?!\n[ \t]*\n).){{0,300}}?\*\*\*",
        re.MULTILINE | re.DOTALL | re.IGNORECASE,
    )
    for end in ("START", "END")
)
# Begins the header of their books, whatever follows.
OF_GUTENBERG = re.compile(r"[\s*]*(?:The )?Project Gutenberg(?:'s)? E(?:Book|text)\b", re.IGNORECASE)
# Names of ASCII in headers that Python's codecs lack.
ASCII = ("ISO-646-US", "ISO-646")
# The header is searched for in the first bytes of the file.
HEADER = 2**13


class Book(NamedTuple):
    """A text file.

    Attributes:
      path: of the file.
      text: without header and licence.
      encoding: of the file.
      cut: number of characters of header and licence that were removed.
    """

    path: str
    text: str
    encoding: str
    cut: int

    def about(self) -> dict[str, Any]:
        """Returns a description of the book for `results.json`."""
        return {"file": self.path, "characters": len(self.text), "encoding": self.encoding, "cut": self.cut}


def read(path: str) -> Book:
    """Reads a text file, gzipped or not. Raises `BadText` if the file cannot be read, is not in the encoding that it
    names (UTF-8 if none), or has Project Gutenberg's header without a *** START or *** END line."""
    content = files.read_plain(path)
    encoding, text = _text(content, path)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    start = START.search(text)
    if start is None:
        if OF_GUTENBERG.match(text):
            reason = "it has Project Gutenberg's header without the line *** START OF, which ends it; remove the header"
            raise BadText(path, reason)
        return Book(path, text, encoding, 0)
    end = END.search(text, start.end())
    if end is None:
        raise BadText(path, "it has Project Gutenberg's *** START line but no *** END; this copy is incomplete")
    body = text[start.end() : end.start()]
    return Book(path, body, encoding, len(text) - len(body))


def has_frame(text: str) -> bool:
    """Returns whether a text, read as it is, has the header of a book of Project Gutenberg."""
    return bool(OF_GUTENBERG.match(text) or START.search(text))


def _text(content: bytes, path: str) -> tuple[str, str]:
    """Returns (encoding, text). UTF-8 is tried first: the file may have been converted without updating the header."""
    named = ENCODING.search(content[:HEADER])
    name = named[1].decode("ascii", "replace") if named else "utf-8"
    try:
        encoding = codecs.lookup("ascii" if name.upper() in ASCII else name).name
    except LookupError:
        raise BadText(path, f"its header names the unknown encoding {name}; save it as UTF-8") from None
    try:
        return "utf-8", text_of(content, path)
    except BadText:
        if encoding in ("utf-8", "ascii"):
            raise
    try:
        return encoding, content.decode(encoding)
    except UnicodeDecodeError as error:
        reason = f"this is not {name}, which its header names ({error.reason} at byte {error.start})"
        raise BadText(path, reason) from error
