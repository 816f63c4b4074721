"""Synthetic tasks whose documents are tokens with labels: one small interface, and the batches of all of them.

A task defines how a document is drawn, which of its positions are scored, and how results are tabulated:

    tokens   k1 v7  k4 v2  .  k4 v2  .  k1 v7        int32 [n]
    labels   -  -   -  -   -  v2 -   -  v7 -         what to predict after a token; NONE: nothing
    bins     -  -   -  -   -  0  -   -  1  -         row of a table of results, here by the distance in blocks

A document depends on the seed, its length and its number alone. It starts with a block and ends in its row, so nothing
is carried from step to step, and a batch depends on the seed and the step alone. `mqar.py` and `tracking.py` define the
tasks. The pass key, whose documents continue in later steps, has its own batches (`passkey.py`).
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from famjax.config import ConfigError
from famjax.data.batch import Batch, Progress
from famjax.data.vocabulary import Vocabulary

# The label of a position at which nothing is predicted.
NONE = -1
# Part of the seed of training documents; no other random draw of a training uses it.
TRAINING = 6


class Document(NamedTuple):
    """A document with labels.

    Attributes:
      tokens: int32 [n].
      labels: int32 [n], the token to predict after each; `NONE`: no prediction is scored there.
      bins: for each table of results, int32 [n]: the bin of each scored position, from 0; elsewhere any number.
    """

    tokens: np.ndarray
    labels: np.ndarray
    bins: tuple[np.ndarray, ...]


class Labelled(Protocol):
    """A task. Instances are equal if and only if they draw the same documents.

    Attributes:
      name: name of the task, as in MIXTURE_OR_TASK_NAME.
      config: its settings, a dataclass.
      vocabulary: all tokens: one of its own, or that of the model.
      blocks: lengths of training documents, in blocks.
      bins: axis labels of the tables of results by bin.
      kinds: numbers that distinguish kinds of documents, such as numbers of pairs; (0,) if there is only one kind.
      kind_label: axis label of these numbers; empty if there is only one kind.
      chance: accuracy of guessing uniformly among the possible labels.
    """

    kind_label: ClassVar[str]

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class

    @property
    def config(self) -> Any: ...  # noqa: D102

    @property
    def vocabulary(self) -> Vocabulary: ...  # noqa: D102

    @property
    def blocks(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def bins(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def kinds(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def chance(self) -> float: ...  # noqa: D102

    def most_labels(self, length: int) -> int:
        """Returns the most positions with a label that a document of `length` tokens has."""
        ...

    def draw(self, rng: np.random.Generator, length: int, block_size: int, kind: int | None = None) -> Document:
        """Draws a document of `length` tokens and this kind; None draws one of `kinds`. `block_size` is for the bins.
        Raises `ConfigError` if a document of this kind does not fit into `length` tokens."""
        ...


@dataclasses.dataclass(frozen=True)
class LabelledTask:
    """Batches of documents, several per row, each starting at a block boundary.

    A row gets documents of random lengths while one fits; the rest of it is padding.

    Raises:
      ConfigError: `vocab_size`, the model's, is smaller than the task's vocabulary.
    """

    documents: Labelled
    sequence_length: int
    block_size: int
    batch_size: int
    vocab_size: int
    seed: int
    observes = False

    def __post_init__(self) -> None:
        if self.documents.vocabulary.size > self.vocab_size:
            need = self.documents.vocabulary.size
            raise ConfigError(
                f"the task {self.documents.name!r} has {need} tokens, but the model's vocab_size is {self.vocab_size}; "
                f"set --gin.ModelConfig.vocab_size={need}"
            )

    @property
    def rows(self) -> range:
        """All rows: every process produces the whole batch, which is cheap."""
        return range(self.batch_size)

    def start(self) -> Progress:
        """Returns an empty progress: a batch depends on its step alone."""
        return {}

    def batch(self, step: int, progress: Progress) -> tuple[Batch, Progress]:
        """Returns the batch of a step, a pure function of the seed and the step, and the progress unchanged."""
        rows = [self._row(np.random.default_rng([self.seed, TRAINING, step, i])) for i in self.rows]
        tokens, count, starts, targets, weights = (np.stack(field) for field in zip(*rows, strict=True))
        if self._most_labels >= self.sequence_length:
            return Batch(tokens, count, starts, None, targets, weights), progress
        # Logits are computed at the labels alone, and at unlabelled positions after them, whose weight is 0.
        positions = np.argsort(weights == 0, axis=1, kind="stable")[:, : self._most_labels].astype(np.int32)
        at = lambda values: np.take_along_axis(values, positions, axis=1)
        return Batch(tokens, count, starts, positions, at(targets), at(weights)), progress

    def observe(self, progress: Progress, batch: Batch, correct: np.ndarray) -> Progress:
        """Returns the progress unchanged: it does not depend on predictions."""
        return progress

    def report(self, progress: Progress) -> dict[str, float]:
        """Returns an empty dict: accuracy, which is logged for every task, is enough."""
        return {}

    @functools.cached_property
    def _most_labels(self) -> int:
        """A bound on the labels of a row: all of it has as many per token as the densest kind of document."""
        lengths = [blocks * self.block_size for blocks in self.documents.blocks]
        return max(-(-self.sequence_length * self.documents.most_labels(length) // length) for length in lengths)

    def _row(self, rng: np.random.Generator) -> tuple[np.ndarray | np.int32, ...]:
        """Returns the fields of a row: tokens [T], count, starts [N], labels [T] and their weights [T]."""
        S, T = self.block_size, self.sequence_length
        tokens, targets = np.zeros(T, np.int32), np.zeros(T, np.int32)
        weights, starts = np.zeros(T, np.float32), np.zeros(T // S, bool)
        at = 0
        while fits := [blocks for blocks in self.documents.blocks if blocks <= T // S - at]:
            blocks = int(rng.choice(fits))
            document = self.documents.draw(rng, blocks * S, S)
            here = slice(at * S, (at + blocks) * S)
            starts[at] = True
            tokens[here], targets[here] = document.tokens, np.maximum(document.labels, 0)
            weights[here] = document.labels != NONE
            at += blocks
        return tokens, np.int32(at * S), starts, targets, weights
