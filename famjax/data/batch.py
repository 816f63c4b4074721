"""What a training step reads, and what a task must offer."""

from typing import Any, NamedTuple, Protocol

import numpy as np


class Batch(NamedTuple):
    """Rows of documents for one training step.

    Attributes:
      tokens: int32 [B, T].
      count: int32 [B], tokens of each row up to its last real one.
      starts: bool [B, N], blocks with which a document starts (the first of a row included).
      positions: int32 [B, W], where a loss is taken; only there are logits computed. None is at every
        position, with W = T.
      targets: int32 [B, W], the token that follows each position.
      weights: float32 [B, W], loss weight; 0 fills up.
    """

    tokens: np.ndarray
    count: np.ndarray
    starts: np.ndarray
    positions: np.ndarray | None
    targets: np.ndarray
    weights: np.ndarray


class Task(Protocol):
    """A source of batches. Batches depend on (step, progress) alone, so a resumed run sees the same."""

    def start(self) -> dict[str, Any]:
        """Progress before the first step: a small JSON-able dict that checkpoints hold."""
        ...

    def batch(self, step: int, progress: dict[str, Any]) -> Batch:
        """The batch of a step."""
        ...

    def observe(self, progress: dict[str, Any], batch: Batch, correct: np.ndarray) -> dict[str, Any]:
        """Progress after a step in which the targets [B, W] were predicted right or wrong."""
        ...

    def report(self, progress: dict[str, Any]) -> dict[str, float]:
        """What of the progress a person wants to see."""
        ...
