"""Books as Project Gutenberg publishes them: some are Latin-1, all have a header and a licence around the text.

The header names the encoding (`Character set encoding: ISO-8859-1`); the text lies between the lines
`*** START OF ... PROJECT GUTENBERG EBOOK ...` and `*** END OF ...`. Any other text file is read as UTF-8, whole.
"""

import codecs
import re
from typing import Any, NamedTuple

from famjax.config.text import BadText, text_of
from famjax.data import files

ENCODING = re.compile(rb"^\s*Character set encoding:\s*([\w-]+)", re.MULTILINE | re.IGNORECASE)
START, END = (
    re.compile(rf"^\*\*\* ?{end} OF (?:THE|THIS) PROJECT GUTENBERG EBOOK[^*]*\*\*\*", re.MULTILINE)
    for end in ("START", "END")
)
# Names of ASCII in headers, which Python does not know.
ASCII = ("ISO-646-US", "ISO-646")
# The header is looked for in so many bytes.
HEADER = 2**13


class Book(NamedTuple):
    """A text file.

    Attributes:
      path: of the file.
      text: without header and licence.
      encoding: that it was read in.
      cut: characters of header and licence.
    """

    path: str
    text: str
    encoding: str
    cut: int

    def about(self) -> dict[str, Any]:
        """For the results."""
        return {"file": self.path, "characters": len(self.text), "encoding": self.encoding, "cut": self.cut}


def read(path: str) -> Book:
    """A text file, packed with gzip or not.

    Raises:
      BadText: it is not in the encoding that it names (UTF-8 if it names none), or its licence cannot be found.
    """
    content = files.read_plain(path)
    encoding, text = _text(content, path)
    start = START.search(text)
    if start is None:
        return Book(path, text, encoding, 0)
    end = END.search(text, start.end())
    if end is None:
        raise BadText(path, "it has Project Gutenberg's *** START line but no *** END; this copy is not whole")
    body = text[start.end() : end.start()]
    return Book(path, body, encoding, len(text) - len(body))


def _text(content: bytes, path: str) -> tuple[str, str]:
    """(encoding, text). A header may name Latin-1 in a file that was converted to UTF-8 since."""
    named = ENCODING.search(content[:HEADER])
    name = named[1].decode("ascii", "replace") if named else "utf-8"
    try:
        encoding = codecs.lookup("ascii" if name.upper() in ASCII else name).name
    except LookupError:
        raise BadText(
            path, f"its header names the encoding {name}, which is not known here; save it as UTF-8"
        ) from None
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
