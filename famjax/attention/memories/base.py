"""The interface of a memory of one layer.

    initial state of a document             start
    what a block's tokens see               sources (keys besides the window), attend (added to each head)
    how tokens change the state             attend (token by token), full (when their block is full)
    what is carried and saved               the arrays of `start`, by name; `axes` says how a mesh shards them
    what is learned                         weights

A layer calls in this order, for a whole block in `block_step.py` and for a part of one in `streaming.py`:

    x       = enter(state, x)                                 most memories: x
    q, k, v = QKV(norm(x))
    heads   = attend(q, [segments, *sources(state, q), block])
    heads, state = memory.attend(state, tokens, heads)
    y       = FF(...)
    state   = memory.full(state, k, v)                        in rows whose block is full
    state   = memory.leave(state, y)                          likewise; most memories: state

Tokens of a block see the state after the previous blocks; in `attend`, a token may also see what earlier tokens of its
block have written. No output may depend on later tokens: tests change a token and expect the same bits before it.
"""

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

from famjax.attention import rope
from famjax.attention.attend import Source
from famjax.attention.layer_weights import LayerWeights
from famjax.config import MemoryConfig, ModelConfig
from famjax.dims import Array, Float, Int, KeysValues, Offsets, Queries, Rows

# Arrays [B, ...] of one layer, by name.
State: TypeAlias = dict[str, Any]
Axes: TypeAlias = tuple[str | None, ...]


class Weight(NamedTuple):
    """A weight that a memory adds to each layer, float32, at `layers/memory/NAME`: not decayed, and with
    `OptimizerConfig.prompt_learning_rate` as its multiple of the learning rate.

    Attributes:
      shape: without the axis L.
      axes: names of its axes (`mesh/sharding.py`).
      std: standard deviation of its normal initial values; 0: all are `mean`.
      mean: mean of its initial values.
    """

    shape: tuple[int, ...]
    axes: Axes
    std: float = 0.0
    mean: float = 0.0


class Tokens(NamedTuple):
    """Tokens of one block of each row in a layer: the whole block, or in streaming a part of it.

    Attributes:
      x: the layer's input.
      q: queries [B, K, G, Q, H], rotated (RoPE) by `offset`.
      kv: keys (rotated) and values [B, K, Q, H].
      offset: [Q] or [B, Q], offsets of the tokens within their block.
      real: number of real tokens of each row; padding follows.
    """

    x: Float[Array, "B Q D"]
    q: Queries
    kv: KeysValues
    offset: Offsets
    real: Rows


class Memory:
    """A layer's memory besides its window. This one keeps nothing; subclasses override what they need.

    Instances have no arrays: the state is an argument and a result.
    """

    @property
    def axes(self) -> dict[str, Axes]:
        """The names of the axes of each array of the state, `batch` first."""
        return {}

    def weights(self, model: ModelConfig) -> dict[str, Weight]:
        """The weights that it adds to each layer, by name; `layer.weights["memory"]` holds them."""
        return {}

    def start(self, layer: LayerWeights, batch: int, dtype: Any) -> State:
        """The state of `batch` rows before any text, arrays [B, ...] by name; `dtype` is that of activations."""
        return {}

    def sources(
        self, layer: LayerWeights, state: State, blocks_before: Int[Array, "B"], q: Queries, offset: Offsets
    ) -> list[Source]:
        """Keys and values that a block's tokens see under the same softmax as their window.

        Args:
          layer: the layer's weights and settings.
          state: before the block.
          blocks_before: number of blocks of the document before it.
          q, offset: the tokens' queries and offsets, see `Tokens`.
        """
        return []

    def attend(self, layer: LayerWeights, state: State, tokens: Tokens, heads: Queries) -> tuple[Queries, State]:
        """Adds the memory's part to attention's output.

        Args:
          layer: the layer's weights and settings.
          state: before these tokens.
          tokens: of a block.
          heads: attention's output by head [B, K, G, Q, H].

        Returns:
          The output by head, in its dtype, and the state after the real tokens.
        """
        return heads, state

    def full(self, layer: LayerWeights, state: State, kv: KeysValues, blocks_before: Int[Array, "B"]) -> State:
        """The state after a whole block with these keys and values [B, K, S, H], which has `blocks_before` blocks of
        its document before it."""
        return state

    # --- a memory that reads and writes activations rather than keys and values -------------------------

    def enter(self, layer: LayerWeights, state: State, x: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        """The layer's input after the memory has read it; all of the layer is computed from this."""
        return x

    # Whether `leave` changes the state.
    takes_outputs = False

    def leave(self, layer: LayerWeights, state: State, y: Float[Array, "B Q D"]) -> State:
        """The state after a whole block; y are the layer's outputs of its last Q tokens: S, or in streaming fewer."""
        return state

    # --- a memory of the whole model (`nn/segments.py`); a layer's memory has none of this ------------

    @property
    def model_axes(self) -> dict[str, Axes]:
        """The names of the axes of each array of a state of the whole model, `batch` first."""
        return {}

    def model_weights(self, model: ModelConfig) -> dict[str, Weight]:
        """The weights that it adds to the model, at `memory/NAME`."""
        return {}

    def tokens_after(self, config: MemoryConfig) -> int:
        """Number of learned tokens after every block in the layers (`nn/appended.py`): `memory/tokens`; 0: none."""
        return 0

    def in_layers(self, config: MemoryConfig) -> MemoryConfig:
        """The settings that layers get, whose blocks may include memory tokens."""
        return config

    def flops(self, model: ModelConfig) -> float:
        """FLOPs per token and layer of the forward pass, without the products of its `weights`; of a long text, whose
        window is full."""
        return 0.0


NOTHING = Memory()


def products_of_row(model: ModelConfig) -> int:
    """Number of multiplications in one row's products with a layer's weights."""
    projections = 2 * model.head_dim * (model.num_heads + model.num_kv_heads)
    return model.d_model * (projections + (2 + model.gated_ff) * model.d_ff)


def attention_of_memory_tokens(model: ModelConfig, count: int) -> float:
    """FLOPs per token and layer of the attention to and of `count` memory tokens around each block, which with them is
    a longer causal block."""
    S = model.memory.block_size
    pairs = ((S + count) * (S + count + 1) - S * (S + 1)) / 2
    return 4.0 * model.num_heads * model.head_dim * pairs / S


def unrotated(layer: LayerWeights, x: Float[Array, "B ... Q H"], offset: Offsets) -> Float[Array, "B ... Q H"]:
    """Queries or keys with RoPE undone. `offset` [Q] or [B, Q] are the offsets by which they were rotated."""
    if offset.ndim == 2:
        offset = jnp.expand_dims(offset, tuple(range(1, x.ndim - 2)))
    return rope.rotate(x, -offset, layer.scoring.rope)
