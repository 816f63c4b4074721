"""How far a model's attention reaches back, and on which side of that each needle lies.

A query at position q sees the key at position k of its own block and of the M memory segments before it:

    q // S - k // S <= M        (`attention/masks.py` `block_window`; a layer with an exact window also q - k < window)

What one layer reads, the next layer reads again, so L layers pass information on over at most L x M blocks without
FAM. A needle beyond the reach of one layer takes several layers or FAM; one beyond all layers takes FAM.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from famjax.config import ModelConfig

INSIDE, PARTLY, OUTSIDE, BEYOND = SIDES = ("inside", "partly", "outside", "beyond_all_layers")


class Reach(NamedTuple):
    """The reach of a model's window and memory segments.

    Attributes:
      block_size: S.
      segments: M.
      windows: of each layer its exact window in tokens, itself included; 0 is the block window.
    """

    block_size: int
    segments: int
    windows: tuple[int, ...]

    @classmethod
    def of(cls, config: ModelConfig) -> "Reach":
        """A model's."""
        windows = tuple(config.layer(index).memory.token_window for index in range(config.num_layers))
        return cls(config.memory.block_size, config.memory.memory_segments, windows)

    @property
    def one_layer(self) -> int:
        """Tokens that the first token of a block sees before itself in one layer; the others see more or the same."""
        start = self._far
        return start - min(self._farthest(start, window) for window in self.windows)

    @property
    def all_layers(self) -> int:
        """The same over all layers: L x M x S if all have the block window."""
        return self._far - self._over_layers(self._far)

    @property
    def _far(self) -> int:
        """The start of a block that is farther from the beginning than all layers reach."""
        return (len(self.windows) * (self.segments + 1) + 1) * self.block_size

    def _farthest(self, query: int, window: int) -> int:
        """The first position that one layer sees."""
        block = (query // self.block_size - self.segments) * self.block_size
        return max(block, query - window + 1) if window else block

    def _over_layers(self, query: int) -> int:
        """The first position that reaches the query from layer to layer. A layer sees all from its first on, and a
        later query never sees farther back, so the farthest of each layer leads to the farthest of all."""
        for window in reversed(self.windows):
            query = self._farthest(query, window)
        return query

    def side(self, query: int, start: int, end: int) -> str:
        """Where the needle of the tokens `start` to `end` lies for a query: all of it `inside` the reach of one layer,
        `partly`, all of it `outside` but not all beyond that of all layers, or `beyond_all_layers`."""
        seen = min(self._farthest(query, window) for window in self.windows)
        if seen <= end:
            return INSIDE if seen <= start else PARTLY
        return OUTSIDE if self._over_layers(query) <= end else BEYOND

    def about(self, needles: Sequence[tuple[int, int]], tokens: int) -> dict[str, Any]:
        """What a sample records of its needles.

        Args:
          needles: positions of the first and the last token of each.
          tokens: before the answer; the last of them predicts the answer's first token.

        Returns:
          `distances` from each needle's first token to that last token, and `reach`: the farthest side of any needle.
        """
        query = tokens - 1
        sides = [self.side(query, *needle) for needle in needles]
        return {"distances": [query - start for start, _ in needles], "reach": max(sides, key=SIDES.index)}

    def told(self) -> dict[str, int]:
        """For the results."""
        return {
            "block_size": self.block_size, "memory_segments": self.segments, "layers": len(self.windows),
            "one_layer_tokens": self.one_layer, "all_layers_tokens": self.all_layers,
        }  # fmt: skip


def note(told: Mapping[str, int]) -> str:
    """The reach of a model in words, from its results."""
    blocks = f"{told['memory_segments']} block{'' if told['memory_segments'] == 1 else 's'}"
    return (
        f"one layer reaches {blocks}, {told['one_layer_tokens']:,} tokens, before its block of "
        f"{told['block_size']:,}; {told['layers']} layers together {told['all_layers_tokens']:,}"
    )
