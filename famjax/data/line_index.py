"""Random access to the lines of a file, by an index of byte offsets that is built in one pass (16 bytes per line).

gzip has no random access, so `.gz` files are decompressed in that pass into an anonymous temporary file, which the
operating system deletes when the process ends.
"""

import os
import tempfile
import zlib
from typing import IO

import numpy as np

from famjax.config.text import BOM
from famjax.data import files, kinds

# Number of bytes that are searched for line ends at a time.
CHUNK = 2**24


class LineFile:
    """The lines of one file that are not blank, by index from 0.

    Attributes:
      path: path of the file.
      starts, ends: int64 [n], byte offsets of each line, the latter without the line end.

    Raises:
      BadText: the file cannot be read.
    """

    def __init__(self, path: str):
        self.path = path
        self._plain: IO[bytes] | None = None
        self.starts, self.ends = self._index()

    def line(self, i: int) -> bytes:
        """Returns the bytes of line i, without its line end."""
        start, end = int(self.starts[i]), int(self.ends[i])
        if self._plain is not None:
            return os.pread(self._plain.fileno(), end - start, start)
        return files.read(self.path, start, end)

    def number(self, i: int) -> int:
        """Returns the line number of line i in the file, from 1 and with blank lines counted, as in an editor."""
        before = int(self.starts[i])
        read = lambda at: os.pread(self._plain.fileno(), CHUNK, at) if self._plain else b""
        if self._plain is None:
            return 1 + files.read(self.path, 0, before).count(b"\n")
        return 1 + sum(read(at)[: before - at].count(b"\n") for at in range(0, before, CHUNK))

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns `starts` and `ends` of all lines that are not blank, in one pass."""
        found = LineEnds()
        if kinds.is_gzip(self.path):
            self._plain = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        try:
            with files.open_plain(self.path) as file:
                chunk = file.read(max(CHUNK, len(BOM)))
                blank = b" " * len(BOM)  # so that a line with only a byte order mark counts as blank
                found.add(blank + chunk[len(BOM) :] if chunk.startswith(BOM) else chunk)
                while chunk:
                    if self._plain is not None:
                        self._plain.write(chunk)
                    if chunk := file.read(CHUNK):
                        found.add(chunk)
        except (EOFError, zlib.error, OSError) as error:
            raise files.unreadable(self.path, error) from error
        if self._plain is not None:
            self._plain.flush()
        return found.lines()


class LineEnds:
    """Finds the lines of a file that is given in chunks."""

    def __init__(self) -> None:
        self._size, self._text = 0, False  # bytes so far; whether the unfinished line has text
        self._ends: list[np.ndarray] = []
        self._has_text: list[np.ndarray] = []

    def add(self, chunk: bytes) -> None:
        """Adds the next bytes of the file."""
        if not chunk:
            return
        data = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        starts = np.concatenate([[0], ends + 1])
        inside = starts[starts < len(data)]
        text = np.zeros(len(starts), bool)
        text[: len(inside)] = np.logical_or.reduceat(data > ord(" "), inside)
        text[0] |= self._text
        self._text = bool(text[-1])
        self._ends.append(self._size + ends)
        self._has_text.append(text[:-1])
        self._size += len(data)

    def lines(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns starts and ends, int64 [n] each, of the lines that are not blank; the last may lack a line end."""
        ends = np.concatenate([*self._ends, [self._size]]).astype(np.int64)
        text = np.concatenate([*self._has_text, [self._text]]).astype(bool)
        starts = np.concatenate([[0], ends[:-1] + 1])
        return starts[text], ends[text]
