"""The model as the runner uses it; tests replace it with simpler engines."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from famjax.infer import branches
from famjax.infer.branches import Branch
from famjax.infer.scoring import score_documents, useful_rows
from famjax.nn.model import Transformer

# Called with the number of tokens of each device call.
OnTokens = Callable[[int], None]
# (i, tokens generated so far) to whether to stop, for stop texts that have no fixed tokenization.
Finished = Callable[[int, np.ndarray], bool]


class Request(NamedTuple):
    """A text to score or to continue.

    Attributes:
      state: a state that `ModelEngine.read` yielded; None: an empty memory.
      tokens: int32 [n].
      labels: int32 [n], the token to score after each of `tokens`, instead of the next one; needs an empty memory.
    """

    state: Any
    tokens: np.ndarray
    labels: np.ndarray | None = None


class ModelEngine:
    """Prefills, scores and generates texts with a model, at most `rows` rows at a time."""

    def __init__(self, model: Transformer, rows: int):
        self.model, self.rows = model, rows

    def read(self, texts: Sequence[np.ndarray], on_tokens: OnTokens) -> Iterator[tuple[int, Any]]:
        """Prefills texts, int32 [n] each. Yields (i, the state after text i), in order of completion."""
        return branches.read_prefixes(self.model, texts, self._rows_for(texts), on_tokens=on_tokens)

    def score(self, requests: Sequence[Request], on_tokens: OnTokens) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (i, float32 [n] natural-log probabilities of request i's tokens, bool [n] whether each is the argmax).

        Without a state, both are [n - 1]: the first token is not scored. If every request has labels, the labels are
        scored, [n].
        """
        texts = [request.tokens for request in requests]
        rows = self._rows_for(texts)
        labels = [request.labels for request in requests if request.labels is not None]
        if labels:
            return score_documents(self.model, texts, rows, on_tokens=on_tokens, labels=labels)
        return branches.score_branches(self.model, [Branch(*request[:2]) for request in requests], rows, on_tokens)

    def generate(
        self, requests: Sequence[Request], max_tokens: int, stops: Sequence[Sequence[int]], on_tokens: OnTokens,
        finished: Finished | None = None,
    ) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
        """Decodes greedily. Yields (i, up to `max_tokens` generated tokens, whether they end with one of the token
        sequences `stops` or are `finished`)."""
        texts = [Branch(*request[:2]) for request in requests]
        return branches.generate_branches(
            self.model, texts, self.rows, max_tokens, stops, on_tokens=on_tokens, finished=finished
        )

    def _rows_for(self, texts: Sequence[np.ndarray]) -> int:
        """Returns the number of rows that have work, rounded up to a power of two to limit recompilation."""
        return min(self.rows, 1 << (useful_rows(texts, self.rows) - 1).bit_length())
