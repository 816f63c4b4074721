"""How far back a model's attention reaches, and whether needles lie within that reach.

A query at position q sees the key at position k of its own block and of the M memory segments before it:

    q // S - k // S <= M        (`attention/masks.py` `block_window`; a layer with an exact window also q - k < window)

Each layer extends the reach of the one below it, so without FAM, L layers carry information over at most L x M blocks.
A needle beyond the reach of one layer needs several layers or FAM; one beyond the reach of all layers needs FAM.
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
      windows: each layer's exact window in tokens, the query included; 0: the block window.
    """

    block_size: int
    segments: int
    windows: tuple[int, ...]

    @classmethod
    def of(cls, config: ModelConfig) -> "Reach":
        """Returns the reach of a model."""
        windows = tuple(config.layer(index).memory.token_window for index in range(config.num_layers))
        return cls(config.memory.block_size, config.memory.memory_segments, windows)

    @property
    def one_layer(self) -> int:
        """Tokens that the first token of a block sees before itself in one layer; later ones see at least as many."""
        start = self._far
        return start - min(self._farthest(start, window) for window in self.windows)

    @property
    def _far(self) -> int:
        """The start of a block whose distance from position 0 exceeds the reach of all layers."""
        return (len(self.windows) * (self.segments + 1) + 1) * self.block_size

    def _farthest(self, query: int, window: int) -> int:
        """Returns the first position that a query sees in one layer."""
        block = (query // self.block_size - self.segments) * self.block_size
        return max(block, query - window + 1) if window else block

    def _over_layers(self, query: int) -> int:
        """Returns the first position from which information reaches the query through all layers.

        A layer sees a contiguous range, and later queries never see farther back, so following each layer's first
        position gives the first one overall.
        """
        for window in reversed(self.windows):
            query = self._farthest(query, window)
        return query

    def side(self, query: int, start: int, end: int) -> str:
        """Returns where the needle with the tokens `start` to `end` lies: `inside` the reach of one layer, `partly`
        inside, `outside` it but not entirely beyond the reach of all layers, or `beyond_all_layers`."""
        seen = min(self._farthest(query, window) for window in self.windows)
        if seen <= end:
            return INSIDE if seen <= start else PARTLY
        return OUTSIDE if self._over_layers(query) <= end else BEYOND

    def about(self, needles: Sequence[tuple[int, int]], tokens: int) -> dict[str, Any]:
        """Returns a sample's entries about its needles.

        Args:
          needles: positions of the first and the last token of each needle.
          tokens: number of tokens before the answer; the last one predicts the answer's first token.

        Returns:
          `distances` from each needle's first token to that last token, and `reach`, the side of the farthest needle.
        """
        query = tokens - 1
        sides = [self.side(query, *needle) for needle in needles]
        return {"distances": [query - start for start, _ in needles], "reach": max(sides, key=SIDES.index)}

    def as_dict(self) -> dict[str, int]:
        """Returns the entry for the results. All layers reach L x M x S tokens if all have the block window."""
        return {
            "block_size": self.block_size, "memory_segments": self.segments, "layers": len(self.windows),
            "one_layer_tokens": self.one_layer, "all_layers_tokens": self._far - self._over_layers(self._far),
        }  # fmt: skip


def note(entry: Mapping[str, int]) -> str:
    """Returns one line on a model's reach, from its entry in the results."""
    blocks = f"{entry['memory_segments']} block{'' if entry['memory_segments'] == 1 else 's'}"
    return (
        f"one layer reaches {blocks}, {entry['one_layer_tokens']:,} tokens, before its block of "
        f"{entry['block_size']:,}; {entry['layers']} layers together {entry['all_layers_tokens']:,}"
    )
