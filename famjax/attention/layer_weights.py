"""What attention and memories need of a layer."""

from typing import Protocol, runtime_checkable

from famjax.attention.attend import Scoring
from famjax.config import MemoryConfig
from famjax.dims import Activations, Array, Float, Key, KeysValues, Offsets, Queries, Weights


@runtime_checkable
class LayerWeights(Protocol):
    """What the memory needs of a layer. `nn/layer.py` has the one implementation.

    `streams` are arrays of rows [..., Q_i, D] that go through a layer as one: the tokens of a block, then FAM.
    """

    @property
    def memory(self) -> MemoryConfig:
        """The memory's settings for this layer: a layer without FAM has a `fam_length` of 0."""
        ...

    @property
    def scoring(self) -> Scoring:
        """How this layer scores."""
        ...

    @property
    def key_shape(self) -> tuple[int, int]:
        """(K, H)."""
        ...

    @property
    def weights(self) -> Weights:
        """The arrays."""
        ...

    @property
    def gate(self) -> Float[Array, "K G 1 1"] | None:
        """How far FAM is open to tokens, by head; None: as in the paper (`MemoryConfig.fam_gate`)."""
        ...

    @property
    def key(self) -> Key[Array, ""] | None:
        """For dropout and noise on FAM, in training alone."""
        ...

    def without_arrays(self) -> "LayerWeights":
        """The settings alone, which a traced function may close over."""
        ...

    def with_arrays(self, weights: Weights, key: Key[Array, ""] | None = None) -> "LayerWeights":
        """These settings and other arrays."""
        ...

    def normed(self, x: Activations) -> Activations:
        """norm(x), what the projections read."""
        ...

    def queries_keys_values(
        self, streams: tuple[Activations, ...], query_offsets: Offsets, key_offsets: Offsets
    ) -> tuple[Queries, KeysValues]:
        """QKV(norm(x)) of the first rows, the number of offsets."""
        ...

    def queries(self, x: Activations, offsets: Offsets) -> Queries:
        """Queries alone."""
        ...

    def keys_values(self, x: Activations, offsets: Offsets) -> KeysValues:
        """Keys and values alone."""
        ...

    def finish(self, heads: Queries, residuals: tuple[Activations, ...]) -> tuple[Activations, ...]:
        """A = heads W_o + residual, then FF(norm(A)) + A, for the rows of all streams."""
        ...
