"""One row of a batch while it is filled, and what fills it."""

from typing import Any, NamedTuple

import numpy as np


class Example(NamedTuple):
    """A document as tokens.

    Attributes:
      tokens: int32 [n].
      weights: float32 [n], what the prediction of each token weighs in the loss. The first token is
        predicted from nothing, so its weight counts nowhere.
    """

    tokens: np.ndarray
    weights: np.ndarray


class Cursor(NamedTuple):
    """Where a lane stands between two rows.

    Attributes:
      where: the example that comes next or is being read, a list that only its reader understands.
      token: tokens of it that were read already.
    """

    where: list[Any]
    token: int


class Row(NamedTuple):
    """See `Batch`; without its first axis. Every position may carry a loss.

    Beside those, for whoever looks at rows: `real`: bool [T], tokens that are no padding; `begins`: bool [T],
    tokens with which a document begins.
    """

    tokens: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # tuple has a method of this name
    starts: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    real: np.ndarray
    begins: np.ndarray


def empty(length: int, blocks: int) -> Row:
    """A row of padding, to be filled in place."""
    return Row(
        np.zeros(length, np.int32), np.zeros((), np.int32), np.zeros(blocks, bool), np.zeros(length, np.int32),
        np.zeros(length, np.float32), np.zeros(length, bool), np.zeros(length, bool),
    )  # fmt: skip


def put(row: Row, place: int, example: Example, token: int, most: int) -> int:
    """Writes up to `most` tokens of an example, from `token` on, to a place of the row; returns how many.

    The target of each is the example's next token, also where that one is in another row. The example's
    last token has no target (weight 0).
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
