"""Language modelling by position in the document: bits per byte and next-token accuracy.

A memory should improve predictions late in a long document, relative to a model that predicts its beginning
equally well. Documents are evaluated by streaming, so they may have any length. Intervals are bootstrapped
over documents.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError, EvalConfig, SourceConfig
from famjax.config.data import as_sources
from famjax.config.text import BadText
from famjax.data import sources
from famjax.data.books import has_frame
from famjax.data.examples import Documents
from famjax.data.sources import open_each
from famjax.data.vocabulary import Vocabulary
from famjax.evals.samples import Sample
from famjax.evals.statistics import gap_interval, ratio_interval
from famjax.evals.tasks.base import Example, Task, Unreadable, check_readable
from famjax.infer.codec import Codec

# In `Example.about` and in results: texts that are predicted with header and licence of Project Gutenberg.
FRAMED = "with_gutenberg_header"
# End of the last bucket of positions.
FARTHEST = 2**30


@dataclasses.dataclass(frozen=True)
class Document:
    """A text to predict, int32 [n], its place in the source, and its hash. `size` has the bytes of the text after its
    first token, which is not predicted; `framed` is whether header and licence of Project Gutenberg are in it."""

    name: str
    tokens: np.ndarray
    size: float
    digest: str = ""
    framed: bool = False


def documents(config: EvalConfig, vocabulary: Vocabulary) -> Iterator[Document | Unreadable]:
    """Yields all documents of the sources, lazily. Raises `ConfigError` if there is none."""
    found = False
    for source in as_sources(config.sources):
        for text in each(source):
            found = True
            yield text if isinstance(text, Unreadable) else in_tokens(text, vocabulary)
    if not found:
        raise ConfigError(f"{', '.join(map(str, config.sources))} has no document")


def each(config: SourceConfig) -> Iterator[sources.Document | Unreadable]:
    """Yields the documents of a source, and an `Unreadable` for each file or line that cannot be read."""
    for source in open_each(config):
        try:
            count = len(source)
        except BadText as error:
            yield Unreadable(error.place, error.reason)
            continue
        for i in range(count):
            try:
                yield source.document(i)
            except BadText as error:
                yield Unreadable(error.place, error.reason)


def in_tokens(document: sources.Document, vocabulary: Vocabulary) -> Document | Unreadable:
    """Tokenizes a text as training does, with `bos` and `eos` if the vocabulary has them. A text of less than two
    tokens is `Unreadable`."""
    reader = Documents((), vocabulary, 1, None, bos=True, eos=True)  # type: ignore[arg-type]
    whole = document.inputs + document.targets
    text = whole.encode("utf-8", "replace")
    digest = hashlib.sha256(text).hexdigest()[:16]
    tokens = reader.tokens(document).tokens
    if len(tokens) < 2:
        return Unreadable(document.place, "there is no token to predict")
    given = 0 if tokens[0] == vocabulary.bos else len(vocabulary.token_bytes(int(tokens[0])))
    return Document(document.place, tokens, len(text) - given, digest, has_frame(whole))


def _count(config: EvalConfig) -> int:
    """Returns an upper bound on the number of documents; if a file cannot be read, `config.examples` (0: unknown)."""
    try:
        count = sum(len(source) for one in as_sources(config.sources) for source in open_each(one))
    except BadText:
        return config.examples
    return min(count, config.examples or FARTHEST)


@dataclasses.dataclass(frozen=True)
class Sums:
    """Scores summed by document and bucket of positions; all float64 [documents, buckets].

    Attributes:
      bits: -log2 of the tokens' probabilities.
      correct: number of tokens that were the argmax.
      tokens: number of predicted tokens (all of a document but its first).
      sizes: bytes of their text.
    """

    bits: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray
    sizes: np.ndarray


def position_edges(block_size: int, longest: int = FARTHEST) -> tuple[int, ...]:
    """Returns the edges of the position buckets [edge, next edge): the first block, then doubling, up to `longest`."""
    edges = [0, block_size]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    return (*edges[:-1], max(longest, block_size))


def up_to(edges: Sequence[int], samples: Iterable[Sample]) -> tuple[int, ...]:
    """Returns the edges within the longest document, then its length (or the end of the first bucket, if larger)."""
    longest = max(sample.tokens + round(sum(sample.sums["tokens"])) for sample in samples)
    return (*(edge for edge in edges if edge < max(longest, edges[1])), max(longest, edges[1]))


def end_of(sample: Sample) -> int:
    """Returns the number of bytes to which a scored text was truncated; 0 if it is complete."""
    return round(sum(sample.sums["sizes"])) if sample.truncated else 0


def task(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the task to predict every token but the first of the documents in `config.sources`."""
    found = lambda: itertools.islice(documents(config, codec.vocabulary), config.examples or None)
    check_readable(found(), f"document of {name}")
    settings = {"sources": [str(source) for source in config.sources]}
    return predicted(name, found, settings, _count(config))


def predicted(
    name: str, found: Callable[[], Iterable[Document | Unreadable]], settings: dict[str, Any], count: int = 0
) -> Task:
    """Returns the task to predict every token but the first of the documents that `found` yields."""

    def example(number: int, document: Document | Unreadable) -> Example | Unreadable:
        if isinstance(document, Unreadable):
            return document
        tokens = document.tokens
        about: dict[str, Any] = {"name": document.name, "text": document.digest}
        about |= {FRAMED: True} if document.framed else {}
        return Example(f"{number:06d}", tokens[:1], scored=tokens[1:], size=document.size, about=about)

    examples = lambda: (example(i, document) for i, document in enumerate(found()))
    return Task(name, "score", examples, count=count, by_position=True, settings=settings)


def sums_of(samples: Iterable[Sample], edges: Sequence[int]) -> Sums:
    """Returns each document's sums by bucket of `edges`."""
    rows = [sample.sums for sample in samples]
    found = [np.zeros((len(rows), len(edges) - 1)) for _ in dataclasses.fields(Sums)]
    for array, field in zip(found, dataclasses.fields(Sums), strict=True):
        for i, row in enumerate(rows):
            array[i, : len(row[field.name])] = row[field.name]
    return Sums(*found)


def summary(sums: Sums, edges: Sequence[int], against: Sums, seed: int = 0) -> list[dict[str, Any]]:
    """Returns a row for each bucket that has bytes of text, and one (`to` None) for all buckets, with 95% intervals
    (None if there is only one document).

    `less_than_first` is the bits per byte of `against` minus those of `sums`; None in a bucket that `against` does not
    reach, because its tokenizer makes fewer tokens. Its interval is paired: both are resampled with the same documents,
    so the documents' difficulty cancels out.
    """
    spans: list[tuple[int, int | None]] = [*itertools.pairwise(edges), (0, None)]
    rows = []
    for bucket, (start, end) in enumerate(spans):
        column = lambda x, i=bucket, whole=end is None: x.sum(axis=1) if whole else x[:, i]
        bits, correct, tokens, sizes = map(column, (sums.bits, sums.correct, sums.tokens, sums.sizes))
        if not sizes.sum():
            continue
        documents = int((tokens > 0).sum())
        row: dict[str, Any] = {"from": int(start), "to": end, "documents": documents, "tokens": int(tokens.sum())}
        for name, above, below in (("bits_per_byte", bits, sizes), ("accuracy", correct, tokens)):
            low, high = ratio_interval(above, below, seed)
            row |= {name: float(above.sum() / below.sum()), f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"less_than_first": _gap((column(against.bits), column(against.sizes)), (bits, sizes), seed)})
    return rows


def _gap(
    first: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, float | None] | None:
    """Returns the difference of two ratios of sums over documents, (above, below) each, with its paired interval."""
    if not first[1].sum():
        return None
    one, two = (float(above.sum() / below.sum()) for above, below in (first, other))
    low, high = gap_interval(first, other, seed)
    return {"mean": one - two, "low": low, "high": high}
