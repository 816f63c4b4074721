"""Language modelling against the position in a document: bits per byte and next-token accuracy.

A memory shows in how well the far end of a long document is predicted, compared with a model that sees
as much at the start. Documents are read by streaming, so they may be of any length; the unit of chance
is the document, and intervals come from drawing documents anew (bootstrap).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError, EvalConfig, SourceConfig
from famjax.data.examples import Documents
from famjax.data.sources import open_source
from famjax.data.vocabulary import Vocabulary
from famjax.infer.scoring import score_documents, useful_rows
from famjax.nn.model import Transformer

DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Document:
    """A text to predict.

    Attributes:
      name: where it comes from.
      tokens: int32 [n].
      size: bytes of the text that these tokens stand for, in proportion where it is cut.
    """

    name: str
    tokens: np.ndarray
    size: float


def documents(config: EvalConfig, vocabulary: Vocabulary) -> list[Document]:
    """All documents of the sources that have something to predict, cut to the longest length.

    Raises:
      ConfigError: none, or one that cannot be read.
    """
    found = []
    for given in config.sources:
        source = open_source(SourceConfig(given) if isinstance(given, str) else given)
        reader = Documents(source, vocabulary, 1, None, bos=True, eos=True)
        for i in range(len(source)):
            document = source.document(i)
            tokens = reader.tokens(document).tokens
            kept = tokens[: config.longest] if config.longest else tokens
            if len(kept) > 1:
                size = len((document.inputs + document.targets).encode()) * len(kept) / len(tokens)
                found.append(Document(document.place, kept, size))
    if not found:
        raise ConfigError(f"no document of {', '.join(map(str, config.sources))} has two tokens or more")
    return found


@dataclasses.dataclass(frozen=True)
class Sums:
    """What a model scored, added up by document and by bucket of positions; all float64 [documents, buckets].

    Attributes:
      bits: -log2 of the probabilities of the tokens.
      correct: tokens that were the model's first choice.
      tokens: tokens that were predicted (all of a document but its first).
      sizes: bytes that they stand for.
    """

    bits: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray
    sizes: np.ndarray


def position_edges(block_size: int, longest: int) -> tuple[int, ...]:
    """Buckets [edge, next edge) of positions: the first block, then ever twice as far, up to the longest."""
    edges = [0, block_size]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    return (*edges[:-1], max(longest, block_size))


def score(
    model: Transformer, documents: Sequence[Document], edges: Sequence[int], batch_size: int,
    on_tokens: Callable[[int], None] | None = None,
) -> Sums:  # fmt: skip
    """Reads all documents.

    Args:
      model: the model.
      documents: at least two tokens each.
      edges: see `position_edges`; a token belongs to the bucket of its own position in the document.
      batch_size: documents read side by side.
      on_tokens: called with the number of tokens of each piece once it is read.
    """
    shape = len(documents), len(edges) - 1
    sums = Sums(*(np.zeros(shape) for _ in dataclasses.fields(Sums)))
    texts = [document.tokens for document in documents]
    rows = useful_rows(texts, batch_size)
    for i, logprobs, correct in score_documents(model, texts, rows, on_tokens=on_tokens):
        # Number t - 1 is about token t.
        bucket = np.searchsorted(edges, np.arange(1, len(texts[i])), side="right") - 1
        add = lambda values, bucket=bucket: np.bincount(bucket, values, len(edges) - 1)
        sums.bits[i] = add(-logprobs.astype(np.float64) / math.log(2))
        sums.correct[i] = add(correct.astype(np.float64))
        sums.tokens[i] = add(np.ones(len(bucket)))
        sums.sizes[i] = sums.tokens[i] * documents[i].size / len(texts[i])
    return sums


def summary(sums: Sums, edges: Sequence[int], against: Sums, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each bucket that has tokens, and one (`to` None) for all of them, with 95% intervals.

    `less_than_first` in a row is bits per byte of `against` less those of `sums`, on the same documents:
    both are drawn with the same documents, so what makes a document easy or hard cancels out.
    """
    spans: list[tuple[int, int | None]] = [*itertools.pairwise(edges), (0, None)]
    rows = []
    for bucket, (start, end) in enumerate(spans):
        one, other = ([_column(getattr(x, field.name), bucket) for field in dataclasses.fields(Sums)]
                      for x in (sums, against))  # fmt: skip
        bits, correct, tokens, sizes = one
        if not tokens.sum():
            continue
        draw = draws(len(bits), seed)
        row: dict[str, Any] = {"from": int(start), "to": end, "documents": int((tokens > 0).sum())}
        row["tokens"] = int(tokens.sum())
        for name, above, below in (("bits_per_byte", bits, sizes), ("accuracy", correct, tokens)):
            low, high = interval(draw @ above, draw @ below)
            row |= {name: float(above.sum() / below.sum()), f"{name}_low": low, f"{name}_high": high}
        gap = other[0] - bits
        low, high = interval(draw @ gap, draw @ sizes)
        rows.append(row | {"less_than_first": {"mean": float(gap.sum() / sizes.sum()), "low": low, "high": high}})
    return rows


def _column(values: np.ndarray, bucket: int) -> np.ndarray:
    """One bucket by document; behind the last one, all buckets together."""
    return values[:, bucket] if bucket < values.shape[1] else values.sum(axis=1)


def draws(documents: int, seed: int) -> np.ndarray:
    """[DRAWS, documents]: how often each document is in each of the drawn collections."""
    return np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), DRAWS).astype(float)


def interval(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """The middle 95% of above / below over the draws; draws without a token are left out."""
    ratios = above[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)
