"""The batch of a training step, and the interface of tasks."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int


class Batch(NamedTuple):
    """Rows of documents for one training step: on the host or, within the step, on devices.

    Attributes:
      tokens: int32.
      count: int32, number of tokens of each row up to the last one that is not padding.
      starts: whether a document starts with each block. If none starts with a row's first block, the row continues the
        document of the same row in the previous batch.
      positions: int32, the W positions of a row that carry a loss; logits are computed only there. None: all, with
        W = T.
      targets: int32, the token that follows each position.
      weights: float32, loss weight of each target; 0 for padding.
      kept: int32, number of leading blocks of each row that the memory for the next batch has read; the memory after
        the other blocks is discarded. None: all.
    """

    tokens: Int[Any, "B T"]
    count: Int[Any, "B"]
    starts: Bool[Any, "B N"]
    positions: Int[Any, "B W"] | None
    targets: Int[Any, "B W"]
    weights: Float[Any, "B W"]
    kept: Int[Any, "B"] | None = None


# The state of a task, as JSON: small, stored in checkpoints. Names that start with a digit belong to one row or lane;
# all other entries are the same in every process of a job.
Progress = dict[str, Any]


class Task(Protocol):
    """A source of batches. A batch depends on (step, progress) alone, so a resumed run gets the same ones.

    A task may keep files open and cache positions for speed, but has no other state than its progress.
    """

    @property
    def rows(self) -> Sequence[int]:
        """The indices of the rows of the global batch that this process provides, in ascending order."""
        ...

    @property
    def observes(self) -> bool:
        """Whether `observe` must be called with a step's predictions before the next batch."""
        ...

    def start(self) -> Progress:
        """Returns the progress before the first step."""
        ...

    def batch(self, step: int, progress: Progress) -> tuple[Batch, Progress]:
        """Returns the batch of a step, and the progress after it."""
        ...

    def observe(self, progress: Progress, batch: Batch, correct: np.ndarray) -> Progress:
        """Returns the progress after a step; `correct`, bool [B, W]: which targets were predicted correctly."""
        ...

    def report(self, progress: Progress) -> dict[str, float]:
        """Returns the values of the progress to print and log, by name."""
        ...
