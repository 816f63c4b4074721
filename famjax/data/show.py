"""Displays the rows of a batch: blocks, documents, and positions that carry a loss."""

from typing import NamedTuple

import numpy as np

from famjax.data.batch import Batch
from famjax.data.rows import Row
from famjax.data.vocabulary import Vocabulary


class Piece(NamedTuple):
    """A piece of text within one block, with symbols for line ends and tabs, the loss weight of its tokens, and whether
    a document begins with it."""

    text: str
    weight: float
    begins: bool


class Totals(NamedTuple):
    """Sums over rows: documents that begin in them, real tokens, padding, tokens whose prediction carries a loss."""

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    padding: int = 0
    loss: int = 0

    def add(self, row: Row) -> "Totals":
        """Returns the sums with this row added."""
        real = int(row.real.sum())
        more = (1, int(row.begins.sum()), real, len(row.tokens) - real, int((row.weights > 0).sum()))
        return Totals(*(a + b for a, b in zip(self, more, strict=True)))

    def __str__(self) -> str:
        share = lambda part, whole: f"{100 * part / max(whole, 1):.1f}%"
        documents = (
            f"{self.documents:,} document{'' if self.documents == 1 else 's'} begin{'s' * (self.documents == 1)}"
        )
        return (
            f"{documents}, {self.tokens:,} tokens, {share(self.loss, self.tokens)} with a loss, "
            f"{self.padding:,} of padding ({share(self.padding, self.tokens + self.padding)})"
        )


def rows_of(batch: Batch) -> list[Row]:
    """Returns the rows of a batch whose documents start at block boundaries. If the batch has `positions`, a document
    is assumed to end with the last token that carries a loss, as those of generated tasks do."""
    return [_row_of(batch, number) for number in range(len(batch.tokens))]


def _row_of(batch: Batch, number: int) -> Row:
    tokens, starts, used = batch.tokens[number], batch.starts[number], batch.weights[number] > 0
    length, size = len(tokens), len(tokens) // len(starts)
    weights, targets = np.zeros(length, np.float32), np.zeros(length, np.int32)
    where = np.arange(length)[used] if batch.positions is None else batch.positions[number][used]
    weights[where], targets[where] = batch.weights[number][used], batch.targets[number][used]
    real, begins = np.arange(length) < batch.count[number], np.zeros(length, bool)
    begins[np.flatnonzero(starts) * size] = True
    for end in np.flatnonzero(begins) if batch.positions is not None else ():
        last = where[where + 1 < end].max(initial=-1)
        real[last + 2 : end] = False
    return Row(tokens, np.asarray(batch.count[number]), starts, targets, weights, real, begins)


def blocks_of(row: Row, vocabulary: Vocabulary, most: int = 0) -> list[list[Piece]]:
    """Returns the text of each block, split where the loss weight changes or a document begins: at most `most`
    characters from its beginning and its end (0: all)."""
    size = len(row.tokens) // len(row.starts)
    weights = token_weights(row)
    blocks = []
    for first in range(0, len(row.tokens), size):
        here = first + np.flatnonzero(row.real[first : first + size])
        changes = row.begins[here] | (weights[here] != np.concatenate([[-1.0], weights[here[:-1]]]))
        pieces = []
        for part in np.split(here, np.flatnonzero(changes))[1:]:
            text = visible(vocabulary.decode(row.tokens[part]))
            pieces.append(Piece(text, float(weights[part[0]]), bool(row.begins[part[0]])))
        blocks.append(shorten(pieces, most) if most else pieces)
    return blocks


def token_weights(row: Row) -> np.ndarray:
    """Returns float32 [T]: the loss weight of each token's prediction.

    A document's first token is not predicted, and a row's first one is predicted in the previous row; both get the
    weight of the token after them.
    """
    weights = np.concatenate([[0.0], row.weights[:-1]]).astype(np.float32)
    for first in np.flatnonzero(row.begins | (np.arange(len(weights)) == 0)):
        has_next = first + 1 < len(weights) and row.real[first + 1] and not row.begins[first + 1]
        weights[first] = weights[first + 1] if has_next else 1.0
    return weights


def visible(text: str) -> str:
    """Replaces line ends, tabs and other unprintable characters by symbols, so that the text fits on one line."""
    return "".join(letter if letter.isprintable() else {"\n": "↵", "\t": "→"}.get(letter, "·") for letter in text)


def shorten(pieces: list[Piece], most: int) -> list[Piece]:
    """Shortens pieces to at most `most` characters, a third of them from the end."""
    total = sum(len(piece.text) for piece in pieces)
    if total <= most:
        return pieces
    head, tail = most - most // 3, total - most // 3
    short, at = [], 0
    for piece in pieces:
        end = at + len(piece.text)
        text = piece.text[: max(0, head - at)]
        if at <= head < end:
            text += " … "
        text += piece.text[max(0, max(tail, head) - at) :]
        if text:
            short.append(piece._replace(text=text))
        at = end
    return short


def plain(pieces: list[Piece]) -> str:
    """Formats pieces without colours: ¶ begins a document, {braces} have loss weight 0, {0.1: braces} weight 0.1."""
    parts = []
    for piece in pieces:
        text = piece.text if piece.weight == 1 else f"{{{piece.text}}}"
        if piece.weight not in (0, 1):
            text = f"{{{piece.weight:g}: {piece.text}}}"
        parts.append("¶" * piece.begins + text)
    return "".join(parts)
