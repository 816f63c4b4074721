"""One row of a batch, filled in place."""

from typing import Any, NamedTuple

import numpy as np


class Example(NamedTuple):
    """A document as tokens.

    Attributes:
      tokens: int32 [n].
      weights: float32 [n], weight of the loss with which each token is predicted. The first token is not predicted, so
        its weight is not used.
    """

    tokens: np.ndarray
    weights: np.ndarray


class Cursor(NamedTuple):
    """The position of a lane between two rows.

    Attributes:
      where: the next example, or the one being read, as a list that its reader interprets.
      token: number of its tokens that were already read.
    """

    where: list[Any]
    token: int


class Row(NamedTuple):
    """The fields of `Batch` without the batch axis, with a target and a weight at every position, and two for display:

    `real`: bool [T], True for tokens that are not padding; `begins`: bool [T], True for first tokens of documents.
    """

    tokens: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # tuple has a method of this name
    starts: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    real: np.ndarray
    begins: np.ndarray


def empty(length: int, blocks: int) -> Row:
    """Returns a row of padding, to be filled in place."""
    return Row(
        np.zeros(length, np.int32), np.zeros((), np.int32), np.zeros(blocks, bool), np.zeros(length, np.int32),
        np.zeros(length, np.float32), np.zeros(length, bool), np.zeros(length, bool),
    )  # fmt: skip


def put(row: Row, place: int, example: Example, token: int, most: int) -> int:
    """Writes up to `most` tokens of an example, from index `token` on, into a row at `place`; returns their number.

    The target of each token is the example's next one, even if that is in another row. The example's last token has no
    target (weight 0).
    """
    take = min(len(example.tokens) - token, most)
    targets = slice(token + 1, min(token + 1 + take, len(example.tokens)))
    many = targets.stop - targets.start
    row.tokens[place : place + take] = example.tokens[token : token + take]
    row.targets[place : place + many] = example.tokens[targets]
    row.weights[place : place + many] = example.weights[targets]
    row.real[place : place + take] = True
    row.begins[place] = token == 0
    row.count[...] = place + take
    return take
