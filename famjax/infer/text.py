"""Incremental decoding of tokens to text, without incomplete characters or parts of stop texts."""

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from famjax.data.vocabulary import unfinished

# A byte that is invalid in UTF-8, so that token ids above 255 decode to replacement characters.
_NO_BYTE = 0xFF
# Maps (ids, whether they are final) to (text that later tokens cannot change, whether it covers all ids).
Certain = Callable[[Sequence[int], bool], tuple[str, bool]]


class TextStream:
    """Incremental decoder for the byte vocabulary.

    Multi-byte characters are returned once they are complete. A possible beginning of a stop sequence is held
    back until later tokens complete or exclude it; the stop sequence itself is never returned. Invalid UTF-8 becomes
    replacement characters, but an incomplete character at the end is dropped: the next stream of the same session gets
    these bytes in `before` and returns the whole character.

    Args:
      stops: token sequences that the device matches; never returned.
      before: the last tokens of the text so far, which may end within a character.

    Attributes:
      stopped: whether a stop sequence has ended the text.
      taken: number of tokens so far.
    """

    def __init__(self, stops: Sequence[Sequence[int]] = (), before: Iterable[int] = ()):
        self.stopped, self.taken = False, 0
        self._stops = [list(stop) for stop in stops]
        self._held: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(unfinished(bytes(_byte(token) for token in before)))

    def feed(self, tokens: Iterable[int], stopped: bool = False) -> str:
        """Returns the text that is now final. `stopped`: these tokens end with a stop sequence."""
        new = [int(token) for token in tokens]
        self._held += new
        self.taken += len(new)
        hold = 0
        self.stopped |= stopped
        if stopped:
            self._held = [int(token) for token in without_stop(np.array(self._held), self._stops)]
        else:
            hold = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        return self._release(len(self._held) - hold)

    def finish(self) -> str:
        """Returns the text held back for a stop sequence that did not follow."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        released, self._held = self._held[:count], self._held[count:]
        return self._decoder.decode(bytes(map(_byte, released)))


class TokenTextStream:
    """Incremental decoder for any vocabulary; a token may be part of a character or several words.

    End-of-text tokens are found on the device, as for bytes. Stop texts are found here, in the text, since a token may
    contain the end of one and more text after it. `stopped` is then True, and `taken` counts the tokens up to that one.

    The text does not depend on how the tokens are split over calls: it equals that of decoding all of them at once,
    without an incomplete character at the end.

    Args:
      certain: maps ids to the text that later tokens cannot change (`Vocabulary.certain`).
      stops: token sequences that the device matches; never returned.
      texts: stop texts; neither they nor the text after them is returned.
      before: the last tokens of the text so far, on which the text of a token may depend.
    """

    def __init__(
        self, certain: Certain, stops: Sequence[Sequence[int]] = (), texts: Sequence[str] = (),
        before: Iterable[int] = (),
    ):  # fmt: skip
        self.stopped, self.taken = False, 0
        self._certain, self._stops, self._texts = certain, [list(stop) for stop in stops], list(texts)
        # Only a window of ids at the end of the text is decoded; `_given` counts its characters already returned.
        self._ids = [int(token) for token in before if token >= 0]
        self._given = len(certain(self._ids, True)[0])
        self._edge = 0  # number of tokens of the window up to the last point at which all text was final
        self._held = ""

    def feed(self, tokens: Iterable[int], stopped: bool = False) -> str:
        """Returns the text that is now final. `stopped`: these tokens end with one of `stops`."""
        new, text = np.array([int(token) for token in tokens], np.int64), ""
        shown = without_stop(new, self._stops) if stopped else new
        for token in shown:
            if self.stopped:  # by a stop text: later tokens of a call must not change the answer
                return text
            self.taken += 1
            self._ids.append(int(token))
            self._held += self._next()
            text += self._release()
        if stopped and not self.stopped:
            self.taken += len(new) - len(shown)
            text += self.finish()
            self.stopped = True
        return text

    def finish(self) -> str:
        """Returns the text held back for a stop text that did not follow, without an incomplete character."""
        if self.stopped:
            return ""
        self._held += self._next(final=True)
        return self._release(final=True)

    def _release(self, final: bool = False) -> str:
        """Returns the held text before a stop text, which ends the stream, or before a possible beginning of one."""
        found = [at for at in (self._held.find(text) for text in self._texts) if at >= 0]
        self.stopped = bool(found)
        keep = 0 if final else max((_overlap(self._held, text) for text in self._texts), default=0)
        end = min(found) if found else len(self._held) - keep
        text, self._held = self._held[:end], "" if found else self._held[end:]
        return text

    def _next(self, final: bool = False) -> str:
        """Returns the text that the last token made final."""
        text, whole = self._certain(self._ids, final)
        new = text[self._given :]
        self._given = max(self._given, len(text))
        if whole:
            # The next window begins at the previous edge, if there is text after it: the first characters of a window
            # may be decoded differently (a leading space is dropped), later ones are not.
            last, _ = self._certain(self._ids[self._edge :], True)
            if last and self._edge:
                self._ids, self._given = self._ids[self._edge :], len(last)
            self._edge = len(self._ids)
        return new


def _byte(token: int) -> int:
    return token if 0 <= token < 256 else _NO_BYTE


def _overlap(text: Any, stop: Any) -> int:
    """Returns the length of the longest end of `text` that is a proper prefix of the stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text[-n:] == stop[:n]), 0)


def without_stop(tokens: np.ndarray, stops: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns a stopped row's tokens without the stop sequence at their end, the longest if several match."""
    ends = [len(stop) for stop in stops if len(stop) <= len(tokens) and list(tokens[-len(stop) :]) == list(stop)]
    return tokens[: len(tokens) - max(ends, default=0)]
