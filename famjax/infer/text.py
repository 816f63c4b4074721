"""Tokens of the byte vocabulary to text, while they are made: no broken character, no half a stop."""

import codecs
from collections.abc import Iterable, Sequence

import numpy as np

from famjax.infer.decode import without_stop

# A byte that UTF-8 never has: tokens beyond the bytes show as replacement characters.
_NO_BYTE = 0xFF


class TextStream:
    """Text of tokens that come in pieces.

    Characters of several bytes are given out once they are whole. What may become a stop sequence is
    held back until that is decided; the stop sequence itself is never given out. Bytes that are no
    UTF-8 become replacement characters, but an unfinished character at the end is dropped: the next
    stream of the same session, which is told what came `before`, gives it out whole.
    """

    def __init__(self, stops: Sequence[Sequence[int]] = (), before: Iterable[int] = ()):
        self._stops = [list(stop) for stop in stops]
        self._held: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(_unfinished(bytes(_byte(token) for token in before)))

    def feed(self, tokens: Iterable[int], stopped: bool = False) -> str:
        """The text that is now certain. `stopped`: these tokens end with a stop sequence."""
        self._held += [int(token) for token in tokens]
        hold = 0
        if stopped:
            self._held = [int(token) for token in without_stop(np.array(self._held), self._stops)]
        else:
            hold = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        return self._release(len(self._held) - hold)

    def finish(self) -> str:
        """What was held back for a stop sequence that did not come."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        released, self._held = self._held[:count], self._held[count:]
        return self._decoder.decode(bytes(map(_byte, released)))


def _byte(token: int) -> int:
    return token if 0 <= token < 256 else _NO_BYTE


def _overlap(tokens: list[int], stop: list[int]) -> int:
    """How many of the last tokens are the beginning of a stop sequence."""
    longest = min(len(tokens), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if tokens[-n:] == stop[:n]), 0)


def _unfinished(before: bytes) -> bytes:
    """The first bytes of a character that `before` ends with, if it does."""
    for n in range(1, min(3, len(before)) + 1):
        byte = before[-n]
        if byte >= 0xC0:
            length = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return before[-n:] if n < length else b""
        if byte < 0x80:
            break
    return b""
