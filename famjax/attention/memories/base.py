"""What a memory is: five answers for one layer.

    what is the state of a new document?    start
    what do a block's tokens see?           sources (keys beside the window), attend (added to each head)
    what do tokens change in the state?     attend (token by token), full (when their block is full)
    what is kept, and lies in a file?       the arrays of `start`, by name; `axes` says how a mesh shards them
    what is learned?                        weights

A layer asks in this order, for a whole block in `block_step.py` and for a part of one in `streaming.py`:

    x       = enter(state, x)                                 most memories: x
    q, k, v = QKV(norm(x))
    heads   = attend(q, [segments, *sources(state, q), block])
    heads, state = memory.attend(state, tokens, heads)
    y       = FF(...)
    state   = memory.full(state, k, v)                        in rows whose block is full
    state   = memory.leave(state, y)                          likewise; most memories: state

Tokens of a block see what blocks before it have left, and `attend` may show a token what the tokens before it in
the block leave. Nothing may reach back: tests change a token and expect the same bits before it.
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
      axes: their names (`mesh/sharding.py`).
      std: spread of its random initial values around `mean`; 0: all are `mean`.
      mean: see `std`.
    """

    shape: tuple[int, ...]
    axes: Axes
    std: float = 0.0
    mean: float = 0.0


class Tokens(NamedTuple):
    """Tokens of one block of each row on their way through a layer: all of the block, or in streaming a part of it.

    Attributes:
      x: the layer's input.
      q, kv: queries [B, K, G, Q, H], keys and values [B, K, Q, H], rotated (RoPE) by `offset`.
      offset: [Q] or [B, Q], their places in their block.
      real: how many of them are; padding follows.
    """

    x: Float[Array, "B Q D"]
    q: Queries
    kv: KeysValues
    offset: Offsets
    real: Rows


class Memory:
    """What a layer remembers beside its window. This one remembers nothing; others override what they need.

    Instances have no arrays: state in, state out.
    """

    @property
    def axes(self) -> dict[str, Axes]:
        """The names of the axes of each array of the state, `batch` first."""
        return {}

    def weights(self, model: ModelConfig) -> dict[str, Weight]:
        """What each layer learns for it; `layer.weights["memory"]` holds them."""
        return {}

    def start(self, layer: LayerWeights, batch: int, dtype: Any) -> State:
        """The state of `batch` rows before any text; `dtype` is that of activations."""
        return {}

    def sources(
        self, layer: LayerWeights, state: State, blocks_before: Int[Array, "B"], q: Queries, offset: Offsets
    ) -> list[Source]:
        """Keys and values that the tokens of a block see under the same softmax as their window. `q`, `offset`: their
        queries and places, see `Tokens`."""
        return []

    def attend(self, layer: LayerWeights, state: State, tokens: Tokens, heads: Queries) -> tuple[Queries, State]:
        """Attention's output by head [B, K, G, Q, H] with what the memory adds to it, and the state after the
        real ones of these tokens."""
        return heads, state

    def full(self, layer: LayerWeights, state: State, kv: KeysValues, blocks_before: Int[Array, "B"]) -> State:
        """The state after a whole block with these keys and values [B, K, S, H]."""
        return state

    # --- a memory that reads and writes activations rather than keys and values -------------------------

    def enter(self, layer: LayerWeights, state: State, x: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        """What a layer does its work on in place of its input."""
        return x

    # Whether `leave` changes the state.
    takes_outputs = False

    def leave(self, layer: LayerWeights, state: State, y: Float[Array, "B Q D"]) -> State:
        """The state after a whole block of which these are the last outputs: Q is S or, in streaming, fewer."""
        return state

    # --- a memory of the whole model (`nn/segments.py`); a layer's memory has none of this ------------

    @property
    def model_axes(self) -> dict[str, Axes]:
        """The names of the axes of each array of a state that the model has as a whole, `batch` first."""
        return {}

    def model_weights(self, model: ModelConfig) -> dict[str, Weight]:
        """What the model learns for it, at `memory/NAME`."""
        return {}

    def tokens_after(self, config: MemoryConfig) -> int:
        """Learned tokens that follow every block on its way through the layers (`nn/appended.py`): `memory/tokens`."""
        return 0

    def in_layers(self, config: MemoryConfig) -> MemoryConfig:
        """The memory's settings as layers see them."""
        return config

    def flops(self, model: ModelConfig) -> float:
        """Floating point operations a token in one layer, forward, beside the products of its `weights`."""
        return 0.0


NOTHING = Memory()


def products_of_row(model: ModelConfig) -> int:
    """Multiplications of a row's products with a layer's weights."""
    projections = 2 * model.head_dim * (model.num_heads + model.num_kv_heads)
    return model.d_model * (projections + (2 + model.gated_ff) * model.d_ff)


def unrotated(layer: LayerWeights, x: Float[Array, "B ... Q H"], offset: Offsets) -> Float[Array, "B ... Q H"]:
    """Queries or keys without position: RoPE taken back."""
    if offset.ndim == 2:
        offset = jnp.expand_dims(offset, tuple(range(1, x.ndim - 2)))
    return rope.rotate(x, -offset, layer.scoring.rope)
