"""The order of examples in each lane: shuffled epochs, split over lanes, mixed by weights.

A lane is one row of the global batch. Its position consists of a few integers. The next example depends only on them,
the seed and the number of lanes, not on the hosts or the other lanes.
"""

import functools
from typing import Any, Protocol

import numpy as np

from famjax.config import ConfigError
from famjax.data.rows import Example
from famjax.data.sources import Document, Source
from famjax.data.vocabulary import Vocabulary

# A lane skips empty documents. It raises an error after this many in succession (plus a hundred epochs, if the size of
# an epoch is known).
MOST_EMPTY = 1000
NO_TEXT = "no document has any text; name files that have some"


class Examples(Protocol):
    """An endless supply of examples for lanes, epoch after epoch."""

    def begin(self, lane: int) -> list[int]:
        """Returns the position of a lane before its first example."""
        ...

    def example(self, lane: int, where: list[int]) -> tuple[Example, list[int]]:
        """Returns the example at a position (it may be empty), and the lane's position after it."""
        ...

    def epochs(self, lane: int, where: list[int]) -> float:
        """Returns the number of epochs that all lanes together have read, if all are as far as this one."""
        ...

    def __len__(self) -> int:
        """Returns the number of examples in an epoch; 0 if unknown."""
        ...


class Documents:
    """Documents of a source as examples.

    All lanes together read one shuffled epoch after another: lane r of n reads the documents r, r + n, r + 2n, ... of
    that endless sequence. So each document is read once per epoch, by one of the lanes; with fewer documents than
    lanes, lanes read the same one in different epochs.

    The position of a lane: [number of documents that it has read].

    Args:
      source, vocabulary, lanes: the documents, what converts them to tokens, and n.
      seed: seed of the order of every epoch; None: the source's order.
      bos, eos: add the vocabulary's BOS and EOS tokens to every document, if it has them.
    """

    def __init__(
        self, source: Source, vocabulary: Vocabulary, lanes: int, seed: list[int] | None, bos: bool, eos: bool
    ):
        self._source, self._vocabulary, self._lanes, self._seed = source, vocabulary, lanes, seed
        one = lambda token, wanted: [token] if wanted and token is not None else []
        self._bos, self._eos = one(vocabulary.bos, bos), one(vocabulary.eos, eos)
        order = lambda epoch: np.random.default_rng([*(seed or ()), epoch]).permutation(self._size)
        self._order = functools.lru_cache(maxsize=3)(order)

    @functools.cached_property
    def _size(self) -> int:
        return len(self._source)

    def __len__(self) -> int:
        return self._size

    def begin(self, lane: int) -> list[int]:
        """See `Examples`."""
        return [0]

    def example(self, lane: int, where: list[int]) -> tuple[Example, list[int]]:
        """See `Examples`."""
        epoch, place = divmod(where[0] * self._lanes + lane, self._size)
        number = place if self._seed is None else int(self._order(epoch)[place])
        return self.tokens(self._source.document(number)), [where[0] + 1]

    def epochs(self, lane: int, where: list[int]) -> float:
        """See `Examples`."""
        return where[0] * self._lanes / max(self._size, 1)

    def tokens(self, document: Document) -> Example:
        """Converts a document to tokens; an empty one stays empty. Raises `ConfigError` if it has no UTF-8 form."""
        try:
            inputs, targets = (self._vocabulary.encode(text) for text in (document.inputs, document.targets))
        except UnicodeEncodeError as error:
            place = f"{document.place}: " if document.place else ""
            raise ConfigError(
                f"{place}a text has half a surrogate pair and no UTF-8 form: {error.object!r:.60}"
            ) from error
        if not len(inputs) and not len(targets):
            return Example(targets, np.zeros(0, np.float32))
        tokens = np.concatenate([self._bos, inputs, targets, self._eos]).astype(np.int32)
        return Example(tokens, weights_of(len(self._bos) + len(inputs), len(tokens)))


def number_to_join(rng: np.random.Generator, most: int) -> int:
    """Draws a number of documents to join, 1 to `most`, with a uniform logarithm."""
    return int(np.exp(rng.uniform(0, np.log(most + 1))))


class DocumentSequences:
    """Sequences of 1 to `most` successive examples of a lane as one example each.

    The number (`number_to_join`) is drawn from the seed, the lane and its position.
    """

    def __init__(self, documents: Examples, most: int, seed: list[int]):
        self._documents, self._most, self._seed = documents, most, seed
        self.begin, self.epochs = documents.begin, documents.epochs

    def __len__(self) -> int:
        return len(self._documents)

    def example(self, lane: int, where: list[int]) -> tuple[Example, list[int]]:
        """See `Examples`."""
        rng, parts = np.random.default_rng([*self._seed, lane, *where]), []
        for _ in range(number_to_join(rng, self._most)):
            part, where = self._documents.example(lane, where)
            parts.append(part)
        return Example(*map(np.concatenate, zip(*parts, strict=True))), where


def weights_of(given: int, tokens: int) -> np.ndarray:
    """Returns float32 [tokens]: 0 for the first `given` tokens, else 1; a read-only broadcast if `given` is 0."""
    if not given:
        return np.broadcast_to(np.float32(1), (tokens,))
    return (np.arange(tokens) >= given).astype(np.float32)


class Mixture:
    """Several kinds of examples, drawn by weights, for the lanes of this process.

    The position of a lane: [examples drawn, position in the first kind, in the second, ...]. The kind of each example
    of each lane is drawn from the seed.
    """

    def __init__(self, kinds: list[Examples], weights: list[float], seed: list[int]):
        self._kinds, self._seed = kinds, seed
        self._bounds = np.cumsum(weights) / np.sum(weights)
        self._held: dict[int, tuple[list[Any], Example, list[Any]]] = {}

    def begin(self, lane: int) -> list[Any]:
        """Returns the position of a lane before its first example."""
        return [0, *(kind.begin(lane) for kind in self._kinds)]

    def example(self, lane: int, where: list[Any]) -> tuple[Example, list[Any]]:
        """Returns the next example that is not empty, and the lane's position after it. Raises `ConfigError` if all
        documents are empty, or one cannot be read."""
        held = self._held.get(lane)
        if held is not None and held[0] == where:
            return held[1:]
        after = where
        for _ in range(MOST_EMPTY + 100 * sum(map(len, self._kinds))):
            drawn, places = after[0], list(after[1:])
            kind = self._draw(lane, drawn)
            example, places[kind] = self._kinds[kind].example(lane, places[kind])
            after = [drawn + 1, *places]
            if len(example.tokens):
                self._held[lane] = (where, example, after)
                return example, after
        raise ConfigError(NO_TEXT)

    def epochs(self, lane: int, where: list[Any]) -> list[float]:
        """Returns the number of epochs of each kind that were read, if all lanes are as far as this one."""
        return [kind.epochs(lane, place) for kind, place in zip(self._kinds, where[1:], strict=True)]

    def sizes(self) -> list[int]:
        """Returns the number of examples per epoch of each kind."""
        return [len(kind) for kind in self._kinds]

    def _draw(self, lane: int, drawn: int) -> int:
        if len(self._kinds) == 1:
            return 0
        chance: Any = np.random.default_rng([*self._seed, lane, drawn]).random()
        return int(np.searchsorted(self._bounds, chance, side="right"))
