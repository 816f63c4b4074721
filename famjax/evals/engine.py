"""What the runner asks of a model, so that tests may put something simpler in its place."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from famjax.infer import branches
from famjax.infer.branches import Branch
from famjax.infer.scoring import useful_rows
from famjax.nn.model import Transformer

OnTokens = Callable[[int], None]
# (i, the tokens made so far) to whether that is enough: for stop texts that are no fixed tokens.
Finished = Callable[[int, np.ndarray], bool]


class Ask(NamedTuple):
    """A text that goes on from a state that `Engine.read` gave, or from nothing (None)."""

    state: Any
    tokens: np.ndarray


class Engine(Protocol):
    """Reads, scores and writes texts side by side."""

    rows: int

    def read(self, texts: Sequence[np.ndarray], on_tokens: OnTokens) -> Iterator[tuple[int, Any]]:
        """(i, the state behind text i), as they are done."""
        ...

    def score(self, asks: Sequence[Ask], on_tokens: OnTokens) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(i, log probabilities, first choices) of the tokens; of all but the first where there is no state."""
        ...

    def generate(
        self, asks: Sequence[Ask], max_tokens: int, stops: Sequence[Sequence[int]], on_tokens: OnTokens,
        finished: Finished | None = None,
    ) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
        """(i, tokens made, whether they end with a stop or are `finished`)."""
        ...


class ModelEngine:
    """A model, so many rows at once."""

    def __init__(self, model: Transformer, rows: int):
        self.model, self.rows = model, rows

    def read(self, texts: Sequence[np.ndarray], on_tokens: OnTokens) -> Iterator[tuple[int, Any]]:
        """See `Engine`."""
        return branches.read_prefixes(self.model, texts, self._rows_for(texts), on_tokens=on_tokens)

    def score(self, asks: Sequence[Ask], on_tokens: OnTokens) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """See `Engine`."""
        rows = self._rows_for([ask.tokens for ask in asks])
        return branches.score_branches(self.model, [Branch(*ask) for ask in asks], rows, on_tokens)

    def generate(
        self, asks: Sequence[Ask], max_tokens: int, stops: Sequence[Sequence[int]], on_tokens: OnTokens,
        finished: Finished | None = None,
    ) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
        """See `Engine`. Takes the best token at each step."""
        return branches.generate_branches(
            self.model, [Branch(*ask) for ask in asks], self.rows, max_tokens, stops, on_tokens=on_tokens,
            finished=finished,
        )  # fmt: skip

    def _rows_for(self, texts: Sequence[np.ndarray]) -> int:
        """Rows that have work, as a power of two: each number of rows is a program of its own to compile."""
        return min(self.rows, 1 << (useful_rows(texts, self.rows) - 1).bit_length())
