"""Rows of a batch as a person wants to see them: blocks, documents, and where a loss is taken."""

from typing import NamedTuple

import numpy as np

from famjax.data.rows import Row
from famjax.data.vocabulary import Vocabulary


class Piece(NamedTuple):
    """Some text of one block.

    Attributes:
      text: what it says, with signs for line ends and tabs.
      weight: of its tokens in the loss.
      begins: a document begins with it.
    """

    text: str
    weight: float
    begins: bool


class Totals(NamedTuple):
    """Sums over rows.

    Attributes:
      rows: how many.
      documents: that begin in them.
      tokens: that are real.
      padding: tokens that are not.
      loss: tokens that are predicted with a loss.
    """

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    padding: int = 0
    loss: int = 0

    def add(self, row: Row) -> "Totals":
        """These and one row more."""
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


def blocks_of(row: Row, vocabulary: Vocabulary, most: int = 0) -> list[list[Piece]]:
    """The text of each block, cut where the loss weight changes or a document begins.

    Args:
      row: a row of a batch.
      vocabulary: makes text of it.
      most: characters of a block that are shown, from its beginning and its end; 0 shows all.
    """
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
    """float32 [T], what the prediction of each token of the row weighs in the loss.

    A document's first token is predicted from nothing, and a row's from the row before: these two are
    shown like the token behind them.
    """
    weights = np.concatenate([[0.0], row.weights[:-1]]).astype(np.float32)
    for first in np.flatnonzero(row.begins | (np.arange(len(weights)) == 0)):
        behind = first + 1 < len(weights) and row.real[first + 1] and not row.begins[first + 1]
        weights[first] = weights[first + 1] if behind else 1.0
    return weights


def visible(text: str) -> str:
    """A text on one line."""
    return "".join(letter if letter.isprintable() else {"\n": "↵", "\t": "→"}.get(letter, "·") for letter in text)


def shorten(pieces: list[Piece], most: int) -> list[Piece]:
    """Leaves so many characters at most, of them a third at the end."""
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
    """Pieces for a file or a pipe: ¶ begins a document, {braces} hold what has no loss, {0.1: a small one}."""
    said = []
    for piece in pieces:
        text = piece.text if piece.weight == 1 else f"{{{piece.text}}}"
        if piece.weight not in (0, 1):
            text = f"{{{piece.weight:g}: {piece.text}}}"
        said.append("¶" * piece.begins + text)
    return "".join(said)
