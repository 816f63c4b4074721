"""The model interface of the runner; tests replace it with simpler engines."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from famjax.infer import branches
from famjax.infer.branches import Branch
from famjax.infer.scoring import useful_rows
from famjax.nn.model import Transformer

OnTokens = Callable[[int], None]
# (i, the tokens generated so far) to whether to stop: for stop texts without a fixed tokenization.
Finished = Callable[[int, np.ndarray], bool]


class Request(NamedTuple):
    """A text to continue from a state that `Engine.read` returned, or from an empty memory (None)."""

    state: Any
    tokens: np.ndarray


class Engine(Protocol):
    """Prefills, scores and generates texts in batches of `rows`."""

    rows: int

    def read(self, texts: Sequence[np.ndarray], on_tokens: OnTokens) -> Iterator[tuple[int, Any]]:
        """Yields (i, the state after text i), in order of completion."""
        ...

    def score(self, requests: Sequence[Request], on_tokens: OnTokens) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (i, log probabilities, whether each token is the argmax); without a state, for all but the first
        token."""
        ...

    def generate(
        self, requests: Sequence[Request], max_tokens: int, stops: Sequence[Sequence[int]], on_tokens: OnTokens,
        finished: Finished | None = None,
    ) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
        """Yields (i, generated tokens, whether they end with a stop or are `finished`)."""
        ...


class ModelEngine:
    """An `Engine` that runs a model with at most `rows` rows at a time."""

    def __init__(self, model: Transformer, rows: int):
        self.model, self.rows = model, rows

    def read(self, texts: Sequence[np.ndarray], on_tokens: OnTokens) -> Iterator[tuple[int, Any]]:
        """See `Engine`."""
        return branches.read_prefixes(self.model, texts, self._rows_for(texts), on_tokens=on_tokens)

    def score(self, requests: Sequence[Request], on_tokens: OnTokens) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """See `Engine`."""
        rows = self._rows_for([request.tokens for request in requests])
        return branches.score_branches(self.model, [Branch(*request) for request in requests], rows, on_tokens)

    def generate(
        self, requests: Sequence[Request], max_tokens: int, stops: Sequence[Sequence[int]], on_tokens: OnTokens,
        finished: Finished | None = None,
    ) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
        """See `Engine`. Decodes greedily."""
        return branches.generate_branches(
            self.model, [Branch(*request) for request in requests], self.rows, max_tokens, stops, on_tokens=on_tokens,
            finished=finished,
        )  # fmt: skip

    def _rows_for(self, texts: Sequence[np.ndarray]) -> int:
        """Returns the number of rows that have work, rounded up to a power of two to limit recompilation."""
        return min(self.rows, 1 << (useful_rows(texts, self.rows) - 1).bit_length())
