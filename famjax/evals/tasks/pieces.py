"""Texts put together in tokens, to an exact length: pieces are made to tokens one by one, and only the filler
between them is ever cut."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from famjax.config import ConfigError
from famjax.data import files, kinds
from famjax.data.passkey_text import FILLER
from famjax.evals.tasks import books
from famjax.evals.tasks.base import NOTHING
from famjax.infer.chat import Turns
from famjax.infer.codec import Codec

_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class Haystack(NamedTuple):
    """Filler with needles in it.

    Attributes:
      tokens: int32 [length].
      ends: for each needle the index of its last token.
      starts: and of its first.
    """

    tokens: np.ndarray
    ends: list[int]
    starts: list[int]

    def needles(self, before: int, which: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """`Example.needles` of some, in a text that has so many tokens before the filler."""
        return tuple((before + self.starts[i], before + self.ends[i]) for i in which)


class Frame(NamedTuple):
    """How a question is put to a model: plainly, or as what a user says in its chat template.

    Attributes:
      chat: with the template.
      before, after: what the template writes around the question.
    """

    chat: bool = False
    before: str = ""
    after: str = ""

    @classmethod
    def of(cls, codec: Codec, wanted: bool) -> "Frame":
        """With the template of the model directory, if it has one and it is wanted. The tokens that end an answer in
        it are added to the codec's `ends`."""
        if not wanted or codec.template is None:
            return cls()
        return cls(True, *Turns(codec.template, codec).frame())


class Pieces:
    """Sentences to tokens, so that put together they read as one text.

    A sentence that follows others begins with a space, unless the tokenizer puts one in front by itself (as
    SentencePiece models do).

    Args:
      codec: the tokenizer.
      frame: around the text; a chat template writes `bos` itself.
    """

    def __init__(self, codec: Codec, frame: Frame = Frame()):  # noqa: B008 - immutable
        self._codec, self._frame = codec, frame
        decode, encode = codec.vocabulary.decode, codec.vocabulary.encode
        spaced = decode(np.concatenate([encode("One."), encode(" two")]))
        self._space = " " if spaced == "One. two" else ""
        self._known: dict[str, np.ndarray] = {}

    def first(self, text: str) -> np.ndarray:
        """What a text begins with: `bos` too where the tokenizer wants it."""
        return self._codec.encode(self._frame.before + text, fresh=not self._frame.chat)

    def last(self, text: str) -> np.ndarray:
        """What a question ends with, up to the answer."""
        return self.raw(text + self._frame.after)

    def next(self, text: str) -> np.ndarray:
        """A sentence that follows another one on the same line."""
        if text not in self._known:
            if len(self._known) > 2**14:
                self._known.clear()
            self._known[text] = self._codec.encode(self._space + text, fresh=False)
        return self._known[text]

    def raw(self, text: str) -> np.ndarray:
        """A text as it is, that follows others."""
        return self._codec.encode(text, fresh=False)


class Filler:
    """Sentences without end: the paper's, again and again, or those of a text file from some place on.

    Args:
      path: of the text file or files (a glob); empty takes the paper's filler. Books of Project Gutenberg lose their
        header and licence (`books.py`).

    Attributes:
      books: what was read, file by file, for the results.

    Raises:
      ConfigError: no such file, one without a sentence, or one that cannot be read.
    """

    def __init__(self, path: str = ""):
        read = [books.read(one) for one in _texts(path)] if path else []
        self.books = [book.about() for book in read]
        text = "\n".join(book.text for book in read) if path else FILLER
        self.sentences = [one for part in _END_OF_SENTENCE.split(text) if (one := " ".join(part.split()))]
        self._natural = bool(path)
        if not self.sentences:
            raise ConfigError(f"the filler {path} has no text")

    def from_somewhere(self, rng: np.random.Generator) -> Iterator[str]:
        """The sentences from a random one on, the first again behind the last."""
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
    """So many tokens of filler and needles.

    A needle goes to the beginning of the sentence nearest to its depth (0 the start, 1 the end, of the filler). The
    last sentence breaks off where the length wants it; needles never do.

    Args:
      pieces: makes tokens.
      sentences: the filler.
      needles: tokens of each.
      depths: 0..1, of each.
      length: of all together; at least that of the needles.
    """
    room = length - sum(map(len, needles))
    if room < 0:
        raise ConfigError(f"needles of {length - room} tokens do not fit {length}")
    parts: list[np.ndarray] = []
    starts = [0]
    while starts[-1] < room:
        parts.append(pieces.next(next(sentences)))
        starts.append(starts[-1] + len(parts[-1]))
    filler = np.concatenate([NOTHING, *parts])[:room].astype(np.int32)
    starts[-1] = room  # behind the last, which may be cut
    edges = np.array(starts)
    near = lambda depth: int(edges[np.abs(edges - depth * room).argmin()])
    # Of several at one depth, the first stays first.
    order = sorted(range(len(needles)), key=lambda i: (near(depths[i]), depths[i], i))
    made, at, size, ends = [NOTHING], 0, 0, [0] * len(needles)
    for i in order:
        place = near(depths[i])
        made += [filler[at:place], needles[i]]
        size += place - at + len(needles[i])
        at, ends[i] = place, size - 1
    tokens = np.concatenate([*made, filler[at:]]).astype(np.int32)
    return Haystack(tokens, ends, [end - len(needle) + 1 for end, needle in zip(ends, needles, strict=True)])


def too_short(task: str, length: int, least: int) -> ConfigError:
    """A length that has no room for what must be said."""
    return ConfigError(f"{task} at {length} tokens: what is told and asked takes {least}; use --lengths of {least} on")
