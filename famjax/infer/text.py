"""Tokens to text, while they are made: no broken character, no half a stop."""

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from famjax.data.vocabulary import unfinished

# A byte that UTF-8 never has: tokens beyond the bytes show as replacement characters.
_NO_BYTE = 0xFF
# (ids, no more will come) to (text that no further token changes, whether that is the text of all ids).
Certain = Callable[[Sequence[int], bool], tuple[str, bool]]


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
        self._decoder.decode(unfinished(bytes(_byte(token) for token in before)))

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


class TokenTextStream:
    """`TextStream` for any vocabulary, where a token may be a part of a character or several words.

    Tokens that end a text are found by the device, as for bytes. Stop texts are found here, in the text: a
    token may hold the end of one and more behind it. `stopped` tells that one came.

    However the tokens are split over calls, the text is that of decoding all of them at once, without an unfinished
    character at the end.

    Args:
      certain: ids to the text that no further token changes (`Vocabulary.certain`).
      stops: token sequences that the device looks for; never shown.
      texts: stop texts; never shown, nor what comes behind them.
      before: the last tokens of the text so far. How a token is shown may depend on them.
    """

    def __init__(
        self, certain: Certain, stops: Sequence[Sequence[int]] = (), texts: Sequence[str] = (),
        before: Iterable[int] = (),
    ):  # fmt: skip
        self.stopped = False
        self._certain, self._stops, self._texts = certain, [list(stop) for stop in stops], list(texts)
        # The window that is decoded: ids from one token boundary on, and how many of its characters were given out.
        self._ids = [int(token) for token in before if token >= 0]
        self._given = len(certain(self._ids, True)[0])
        self._edge = 0  # tokens of the window up to the last place where nothing was uncertain
        self._held = ""

    def feed(self, tokens: Iterable[int], stopped: bool = False) -> str:
        """The text that is now certain. `stopped`: these tokens end with one of `stops`."""
        if self.stopped:
            return ""
        new = np.array([int(token) for token in tokens], np.int64)
        for token in without_stop(new, self._stops) if stopped else new:
            self._ids.append(int(token))
            self._held += self._next()
        if stopped:
            self._held += self._next(final=True)
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
        if self.stopped:
            return ""
        self._held += self._next(final=True)
        found = [at for at in (self._held.find(text) for text in self._texts) if at >= 0]
        self.stopped = bool(found)
        text, self._held = (self._held[: min(found)] if found else self._held), ""
        return text

    def _next(self, final: bool = False) -> str:
        """The text that the last token made certain."""
        text, whole = self._certain(self._ids, final)
        new = text[self._given :]
        self._given = max(self._given, len(text))
        if whole:
            # The next window begins at the edge before, if there is text since: the first characters of a window may
            # be shown differently (a leading space is dropped), those behind them are not.
            last, _ = self._certain(self._ids[self._edge :], True)
            if last and self._edge:
                self._ids, self._given = self._ids[self._edge :], len(last)
            self._edge = len(self._ids)
        return new


def _byte(token: int) -> int:
    return token if 0 <= token < 256 else _NO_BYTE


def _overlap(text: Any, stop: Any) -> int:
    """How many of the last tokens (or characters) are the beginning of a stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text[-n:] == stop[:n]), 0)


def without_stop(tokens: np.ndarray, stops: Sequence[Sequence[int]]) -> np.ndarray:
    """A stopped row's tokens without the stop sequence at their end, the longest where several fit."""
    ends = [len(stop) for stop in stops if len(stop) <= len(tokens) and list(tokens[-len(stop) :]) == list(stop)]
    return tokens[: len(tokens) - max(ends, default=0)]
