"""Texts assembled from tokens to an exact length: pieces are tokenized one by one, and only filler is truncated."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from famjax.config import ConfigError
from famjax.data import books, files, kinds
from famjax.data.passkey_text import FILLER
from famjax.data.vocabulary import Vocabulary, with_characters

NOTHING = np.zeros(0, np.int32)
_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class Haystack(NamedTuple):
    """Filler with needles in it.

    Attributes:
      tokens: int32 [length], filler and needles.
      ends: index of each needle's last token.
      starts: index of each needle's first token.
    """

    tokens: np.ndarray
    ends: list[int]
    starts: list[int]

    def needles(self, before: int, which: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """Returns `Example.needles` for the needles `which`, with `before` tokens before the filler."""
        return tuple((before + self.starts[i], before + self.ends[i]) for i in which)


class Frame(NamedTuple):
    """The text around a question: none, or (`chat`) that of a user message of the model's chat template."""

    chat: bool = False
    before: str = ""
    after: str = ""


class Pieces:
    """Tokenizes sentences such that their concatenation decodes to one text.

    A sentence that follows others begins with a space, unless the tokenizer adds one itself (as SentencePiece
    models do). `bos` begins a text, if there is one; with a chat template it comes from the template.
    """

    def __init__(self, vocabulary: Vocabulary, bos: int | None = None, frame: Frame = Frame()):  # noqa: B008 - immutable
        self._vocabulary, self._bos, self._frame = vocabulary, bos, frame
        decode, encode = vocabulary.decode, vocabulary.encode
        spaced = decode(np.concatenate([encode("One."), encode(" two")]))
        self._space = " " if spaced == "One. two" else ""
        self._known: dict[str, np.ndarray] = {}

    def first(self, text: str) -> np.ndarray:
        """Tokenizes the beginning of a text, with `bos` if there is one."""
        begin = [] if self._frame.chat or self._bos is None else [self._bos]
        return np.concatenate([np.array(begin, np.int32), self.raw(self._frame.before + text)])

    def last(self, text: str) -> np.ndarray:
        """Tokenizes the end of a question, up to the answer."""
        return self.raw(text + self._frame.after)

    def next(self, text: str) -> np.ndarray:
        """Tokenizes a sentence that follows another one on the same line."""
        if text not in self._known:
            if len(self._known) > 2**14:
                self._known.clear()
            self._known[text] = self.raw(self._space + text)
        return self._known[text]

    def raw(self, text: str) -> np.ndarray:
        """Tokenizes a text as it is, without `bos`, space or template."""
        return self._vocabulary.encode(text)

    def with_characters(self, ids: np.ndarray, ranges: Iterable[tuple[int, int]], length: int) -> np.ndarray:
        """Returns the indices of the tokens, of ids [n], with any character in `ranges` [begin, end) of a text.

        The text has `length` characters; characters before it, such as the space of `next`, are not counted.
        """
        before = len(self._vocabulary.decode(ids)) - length
        found = [with_characters(self._vocabulary, ids, before + begin, end - begin) for begin, end in ranges]
        return np.unique(np.concatenate(found))


class Filler:
    """An endless stream of sentences: the paper's, repeated, or those of text files from a random place.

    Args:
      paths: text files or globs; empty ones are left out, and without any the filler is the paper's. Header and licence
        of Project Gutenberg's books are removed (`books.py`).

    Attributes:
      books: descriptions of the files that were read, for `results.json`.
      texts: their texts.

    Raises:
      ConfigError: a file does not exist, cannot be read or has no sentence.
    """

    def __init__(self, *paths: str):
        read = [books.read(one) for path in filter(None, paths) for one in _texts(path)]
        self.books, self.texts = [book.about() for book in read], [book.text for book in read]
        text = "\n".join(self.texts) if read else FILLER
        self.sentences = [one for part in _END_OF_SENTENCE.split(text) if (one := " ".join(part.split()))]
        self._natural = bool(read)
        if not self.sentences:
            raise ConfigError(f"the filler {', '.join(paths)} has no text")

    def from_somewhere(self, rng: np.random.Generator) -> Iterator[str]:
        """Yields the sentences cyclically without end, from a random one (the paper's filler: from the first)."""
        at = int(rng.integers(len(self.sentences))) if self._natural else 0
        while True:
            yield self.sentences[at % len(self.sentences)]
            at += 1


def _texts(path: str) -> list[str]:
    paths = files.expand(path)
    kinds.one_kind(path, paths, ("text",))
    return paths


def haystack(
    pieces: Pieces, sentences: Iterator[str], needles: Sequence[np.ndarray], depths: Sequence[float], length: int
) -> Haystack:
    """Returns `length` tokens of filler with needles.

    A needle is inserted at the sentence boundary nearest to its depth (0: start, 1: end of the filler). The last
    sentence is truncated to the length; needles never are.

    Raises:
      ConfigError: the needles have more than `length` tokens.
    """
    room = length - sum(map(len, needles))
    if room < 0:
        raise ConfigError(f"needles of {length - room} tokens do not fit into {length} tokens")
    parts: list[np.ndarray] = []
    starts = [0]
    while starts[-1] < room:
        parts.append(pieces.next(next(sentences)))
        starts.append(starts[-1] + len(parts[-1]))
    filler = np.concatenate([NOTHING, *parts])[:room].astype(np.int32)
    starts[-1] = room  # the end of the last sentence, which may be truncated
    edges = np.array(starts)
    near = lambda depth: int(edges[np.abs(edges - depth * room).argmin()])
    # Needles at the same place keep their order.
    order = sorted(range(len(needles)), key=lambda i: (near(depths[i]), depths[i], i))
    made, at, size, ends = [NOTHING], 0, 0, [0] * len(needles)
    for i in order:
        place = near(depths[i])
        made += [filler[at:place], needles[i]]
        size += place - at + len(needles[i])
        at, ends[i] = place, size - 1
    tokens = np.concatenate([*made, filler[at:]]).astype(np.int32)
    return Haystack(tokens, ends, [end - len(needle) + 1 for end, needle in zip(ends, needles, strict=True)])
