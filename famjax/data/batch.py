"""What a training step reads, and what a task must offer."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int


class Batch(NamedTuple):
    """Rows of documents for one training step: from the host, or, within the step, on devices.

    Attributes:
      tokens: int32.
      count: int32, tokens of each row up to its last real one.
      starts: blocks with which a document starts. Where a row's first block does not, the row goes on with the
        document of the same row in the batch before.
      positions: int32, the W tokens of a row at which a loss is taken; only there are logits computed. None is at
        every position, with W = T.
      targets: int32, the token that follows each position.
      weights: float32, loss weight; 0 fills up.
      kept: int32, blocks of each row, the first ones, that the memory with which it goes on in the next batch has
        read; those behind them are read on a branch. None: all.
    """

    tokens: Int[Any, "B T"]
    count: Int[Any, "B"]
    starts: Bool[Any, "B N"]
    positions: Int[Any, "B W"] | None
    targets: Int[Any, "B W"]
    weights: Float[Any, "B W"]
    kept: Int[Any, "B"] | None = None


# Where a task stands, as JSON: small, held by checkpoints. Names that start with a digit belong to one
# row or lane; all other entries are the same in every process of a job.
Progress = dict[str, Any]


class Task(Protocol):
    """A source of batches. A batch depends on (step, progress) alone, so a resumed run sees the same.

    A task may keep files open and positions cached to be fast, but never knows more than its progress.
    """

    @property
    def rows(self) -> Sequence[int]:
        """The rows of the global batch that this process's batches hold, in rising order."""
        ...

    @property
    def continues(self) -> bool:
        """Rows may go on with the document of the row in the batch before (`Batch.starts` is not set in their first
        block), so the memory is carried from step to step."""
        ...

    @property
    def observes(self) -> bool:
        """`observe` wants to know what the model got right before it makes the next batch."""
        ...

    def start(self) -> Progress:
        """Progress before the first step."""
        ...

    def batch(self, step: int, progress: Progress) -> tuple[Batch, Progress]:
        """The batch of a step, and the progress once it is read."""
        ...

    def observe(self, progress: Progress, batch: Batch, correct: np.ndarray) -> Progress:
        """Progress after a step in which the targets [B, W] were predicted right or wrong."""
        ...

    def report(self, progress: Progress) -> dict[str, float]:
        """What of the progress a person wants to see."""
        ...
