"""Tokens to text, while they are made: no broken character, no half a stop."""

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

# A byte that UTF-8 never has: tokens beyond the bytes show as replacement characters.
_NO_BYTE = 0xFF


class TextStream:
    """Text of tokens of the byte vocabulary that come in pieces.

    Characters of several bytes are given out once they are whole. What may become a stop sequence is
    held back until that is decided; the stop sequence itself is never given out. Bytes that are no
    UTF-8 become replacement characters, but an unfinished character at the end is dropped: the next
    stream of the same session, which is told what came `before`, gives it out whole.
    """

    def __init__(self, stops: Sequence[Sequence[int]] = (), before: Iterable[int] = ()):
        self.stopped = False
        self._stops = [list(stop) for stop in stops]
        self._held: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(_unfinished(bytes(_byte(token) for token in before)))

    def feed(self, tokens: Iterable[int], stopped: bool = False) -> str:
        """The text that is now certain. `stopped`: these tokens end with a stop sequence."""
        self._held += [int(token) for token in tokens]
        hold = 0
        self.stopped |= stopped
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


# A character has at most four bytes, each of which may be a token; what is still no character then never will be.
_LONGEST_CHARACTER = 4
_BROKEN = "\ufffd"


class TokenTextStream:
    """`TextStream` for any vocabulary, where a token may be a part of a character or several words.

    Tokens that end a text are found by the device, as for bytes. Stop texts are found here, in the text: a
    token may hold the end of one and more behind it. `stopped` tells that one came.

    Args:
      decode: ids to text, with a replacement character for what is no character (yet).
      stops: token sequences that the device looks for; never shown.
      texts: stop texts; never shown, nor what comes behind them.
      before: the last tokens of the text so far. How a token is shown may depend on them.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stops: Sequence[Sequence[int]] = (), texts: Sequence[str] = (),
        before: Iterable[int] = (),
    ):  # fmt: skip
        self.stopped = False
        self._decode, self._stops, self._texts = decode, [list(stop) for stop in stops], list(texts)
        self._ids = [int(token) for token in before if token >= 0]
        self._shown = next(
            (n for n in range(len(self._ids), 0, -1) if not decode(self._ids[:n]).endswith(_BROKEN)), len(self._ids)
        )
        if len(self._ids) - self._shown >= _LONGEST_CHARACTER:
            self._shown = len(self._ids)
        self._from = 0
        self._held = ""

    def feed(self, tokens: Iterable[int], stopped: bool = False) -> str:
        """The text that is now certain. `stopped`: these tokens end with one of `stops`."""
        if self.stopped:
            return ""
        new = np.array([int(token) for token in tokens], np.int64)
        for token in without_stop(new, self._stops) if stopped else new:
            self._ids.append(int(token))
            self._held += self._next()
        found = [at for at in (self._held.find(text) for text in self._texts) if at >= 0]
        if found or stopped:
            self.stopped = True
            text, self._held = (self._held[: min(found)] if found else self._held), ""
            return text
        keep = max((_overlap(self._held, text) for text in self._texts), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def finish(self) -> str:
        """What was held back for a stop text that did not come. An unfinished character is dropped."""
        text, self._held = self._held, ""
        return text

    def _next(self) -> str:
        """The text that the last token completed, if it did."""
        old, new = self._decode(self._ids[self._from : self._shown]), self._decode(self._ids[self._from :])
        broken = new.endswith(_BROKEN) and len(self._ids) - self._shown < _LONGEST_CHARACTER
        if broken or not new.startswith(old):
            return ""
        self._from, self._shown = self._shown, len(self._ids)
        return new[len(old) :]


def _byte(token: int) -> int:
    return token if 0 <= token < 256 else _NO_BYTE


def _overlap(text: Any, stop: Any) -> int:
    """How many of the last tokens (or characters) are the beginning of a stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text[-n:] == stop[:n]), 0)


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


def without_stop(tokens: np.ndarray, stops: Sequence[Sequence[int]]) -> np.ndarray:
    """A stopped row's tokens without the stop sequence at their end, the longest where several fit."""
    ends = [len(stop) for stop in stops if len(stop) <= len(tokens) and list(tokens[-len(stop) :]) == list(stop)]
    return tokens[: len(tokens) - max(ends, default=0)]
