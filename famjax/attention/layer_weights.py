"""The interface of a layer for attention and memories."""

from typing import Protocol, runtime_checkable

from famjax.attention.attend import Scoring
from famjax.config import MemoryConfig
from famjax.dims import Activations, Array, Float, Key, KeysValues, Offsets, Queries, Weights


@runtime_checkable
class LayerWeights(Protocol):
    """What attention and memories use of a layer. `nn/layer.py` has the only implementation.

    `streams` are arrays of rows [..., Q_i, D] that go through a layer together: the tokens of a block, then FAM.
    """

    @property
    def memory(self) -> MemoryConfig:
        """The memory's settings for this layer: a layer without FAM has a `fam_length` of 0."""
        ...

    @property
    def scoring(self) -> Scoring:
        """How this layer computes scores."""
        ...

    @property
    def key_shape(self) -> tuple[int, int]:
        """(K, H): number of key/value heads, and head size."""
        ...

    @property
    def weights(self) -> Weights:
        """The layer's weights, without the axis L."""
        ...

    @property
    def gate(self) -> Float[Array, "K G 1 1"] | None:
        """For each head, the weight in tokens' outputs of attention with FAM, 0 to 1; None: as in the paper, without a
        gate (`MemoryConfig.fam_gate`)."""
        ...

    @property
    def key(self) -> Key[Array, ""] | None:
        """PRNG key for dropout and noise on FAM; None outside of training."""
        ...

    def without_arrays(self) -> "LayerWeights":
        """The settings without weights and key, which a traced function may close over."""
        ...

    def with_arrays(self, weights: Weights, key: Key[Array, ""] | None = None) -> "LayerWeights":
        """The same settings with these weights and this key."""
        ...

    def normed(self, x: Activations) -> Activations:
        """norm(x), the input of the projections."""
        ...

    def queries_keys_values(
        self, streams: tuple[Activations, ...], query_offsets: Offsets, key_offsets: Offsets
    ) -> tuple[Queries, KeysValues]:
        """QKV(norm(x)) of the joined streams: queries of the first rows, one per query offset; keys and values of the
        first rows, one per key offset."""
        ...

    def queries(self, x: Activations, offsets: Offsets) -> Queries:
        """Queries [..., K, G, Q, H] of rows x [..., Q, D], rotated by offsets [..., Q]."""
        ...

    def keys_values(self, x: Activations, offsets: Offsets) -> KeysValues:
        """Keys (rotated) and values [..., K, Q, H] of rows x [..., Q, D]."""
        ...

    def finish(self, heads: Queries, residuals: tuple[Activations, ...]) -> tuple[Activations, ...]:
        """A = heads W_o + residual, then FF(norm(A)) + A (paper, Algorithm 2), for the rows of all streams. `heads`
        [..., K, G, Q, H] has the rows of all residuals [..., Q_i, D]."""
        ...
