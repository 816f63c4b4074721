"""What a model keeps of the text it has read (paper section 3): a ring of blocks and FAM, for each layer.

These are plain structs, which the caller holds: state in, state out. `block_step.py` has the equations.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import alternatives, memories
from famjax.attention.attend import Source
from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memories.base import State
from famjax.config import MemoryConfig
from famjax.dims import Array, Bool, Float, Int, Rows, Tree

RMS_EPS = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerMemory:
    """One layer's memory; in a stacked `MemoryState` every array has a leading axis L.

    Attributes:
      k, v: a ring of R = M + 1 blocks. Block n of a document lies in slot n mod R. Keys are rotated by their
        offsets within the block, 0..S-1, never by absolute positions.
      fam: the feedback activations, float32; index 0 is the newest.
      fam_k, fam_v: their keys and values.
      beside: the state of a memory of another kind (`memories/`), or of the paper's alternatives (`alternatives.py`),
        by name; {} with FAM or none.

    Example: after 5 tokens with S = 4, M = 1 the ring holds block 0 (slot 0, full) and block 1
    (slot 1, one token), `fam[:, 0]` is F_1, made from block 0.
    """

    k: Float[Array, "*L B R K S H"]
    v: Float[Array, "*L B R K S H"]
    fam: Float[Array, "*L B P F D"]
    fam_k: Float[Array, "*L B P K F H"]
    fam_v: Float[Array, "*L B P K F H"]
    beside: State = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryState:
    """Everything that a model keeps of a text. Its size does not depend on the length of the text.

    Attributes:
      position: number of tokens of the document read so far. The last `position % S` of them are in the ring's current
        block, which FAM has not yet seen.
      fam_updates: number of FAM updates. 0: FAM is the learned prompt, which carries no context, so the next update
        adds no residual.
      layers: `LayerMemory` with a leading axis L in training and for whole sequences; a tuple of L of them for
        streaming. Unstacked, a layer's ring is written in place, and that of a layer with a short window may have fewer
        blocks (`ring_blocks`).
      beside: the state of a memory of the whole model, arrays [B, ...] by name; {} for others.
    """

    position: Int[Array, "B"]
    fam_updates: Int[Array, "B"]
    layers: LayerMemory | tuple[LayerMemory, ...]
    beside: State = dataclasses.field(default_factory=dict)

    @property
    def stacked(self) -> LayerMemory:
        """`layers` of a memory for training: arrays with a leading axis L."""
        assert isinstance(self.layers, LayerMemory), "a memory for streaming has one layer beside the other"
        return self.layers

    @property
    def unstacked(self) -> tuple[LayerMemory, ...]:
        """`layers` of a memory for streaming: one `LayerMemory` per layer."""
        assert isinstance(self.layers, tuple), "a memory for training has all layers in one"
        return self.layers


_RING_AXES = ("batch", None, "kv_heads", None, "head_dim")
_FAM_KEY_AXES = ("batch", None, "kv_heads", "fam", "head_dim")
_FAM_AXES = ("batch", None, "fam", None)  # an activation: never sharded along D


def layer_axes(config: MemoryConfig) -> Any:
    """The names of the axes of one layer's memory, which `mesh/sharding.py` maps onto a mesh."""
    beside = memories.of(config).axes | alternatives.axes(config)
    return LayerMemory(*(_RING_AXES,) * 2, _FAM_AXES, *(_FAM_KEY_AXES,) * 2, beside)  # type: ignore[arg-type]


def state_axes(config: MemoryConfig, layers: int = 0) -> Any:
    """The names of the axes of a `MemoryState`: stacked if `layers` is 0, else unstacked with that many layers."""
    one: Any = layer_axes(config)
    stack = lambda names: ("layers", *names)
    every = (one,) * layers if layers else jax.tree.map(stack, one, is_leaf=lambda x: type(x) is tuple)
    return MemoryState(("batch",), ("batch",), every, memories.of(config).model_axes)  # type: ignore[arg-type]


# --- rows -----------------------------------------------------------------------------------------


def over_rows(f: Callable[..., Any], *states: MemoryState) -> MemoryState:
    """Applies f(axis, *arrays) to the corresponding arrays of several memories; `axis` is their batch axis."""
    axis = 1 if isinstance(states[0].layers, LayerMemory) else 0
    layers = jax.tree.map(lambda *arrays: f(axis, *arrays), *(state.layers for state in states))
    position, updates = (f(0, *numbers) for numbers in zip(*((s.position, s.fam_updates) for s in states), strict=True))
    beside = jax.tree.map(lambda *arrays: f(0, *arrays), *(state.beside for state in states))
    return MemoryState(position, updates, layers, beside)


def broadcast_rows(state: MemoryState, batch: int) -> MemoryState:
    """Broadcasts a memory of one row to `batch` rows."""
    return over_rows(lambda axis, x: jnp.broadcast_to(x, (*x.shape[:axis], batch, *x.shape[axis + 1 :])), state)


def select_state_rows(mask: Bool[Any, "B"], new: MemoryState, old: MemoryState) -> MemoryState:
    """Rows of `new` where the mask is set, else rows of `old`: resets or restores single rows."""
    return over_rows(lambda axis, a, b: _select(mask, a, b, axis), new, old)


def select_rows(mask: Bool[Array, "B"], new: Tree, old: Tree) -> Tree:
    """`new` where the row's mask is set, else `old`, for trees of arrays [B, ...]."""
    return jax.tree.map(lambda a, b: _select(mask, a, b), new, old)


def _select(mask: Bool[Array, "B"], new: Array, old: Array, axis: int = 0) -> Array:
    return jnp.where(mask.reshape(-1, *(1,) * (new.ndim - axis - 1)), new, old)


# --- shapes ---------------------------------------------------------------------------------------


def segments_in_reach(config: MemoryConfig) -> int:
    """Number of memory segments that some token of a block can see: M, or fewer if a token window is shorter."""
    if not config.token_window:
        return config.memory_segments
    return min(config.memory_segments, -(-(config.token_window - 1) // config.block_size))


def ring_blocks(config: MemoryConfig) -> int:
    """Number of blocks in a layer's ring for streaming: those that some query of a block can see, including its
    own."""
    return segments_in_reach(config) + 1


def empty(layer: LayerWeights, fresh: Float[Array, "B P F D"], dtype: str | np.dtype[Any]) -> LayerMemory:
    """A layer's memory before any text: the FAM (and prompt, `alternatives.split`) `fresh`, and a ring of zeros. FAM's
    keys and values are zeros, too, until `with_keys` computes them."""
    config = layer.memory
    fam, _ = alternatives.split(fresh, config)
    (K, H), (B, P, F, _) = layer.key_shape, fam.shape
    ring = jnp.zeros((B, config.memory_segments + 1, K, config.block_size, H), dtype)
    keys = jnp.zeros((B, P, K, F, H), dtype)
    beside = memories.of(config).start(layer, B, dtype) | alternatives.start(layer, fresh, dtype)
    return LayerMemory(ring, ring, fam, keys, keys, beside)


# --- FAM ------------------------------------------------------------------------------------------


def fam_offsets(config: MemoryConfig) -> np.ndarray:
    """[F] offsets of FAM within the block that it compressed (paper section 2, positions).

    As a query of block tau and, later, as a key of block tau, FAM has the same offset: F_tau is at the end of
    block tau.
    """
    F, S = config.fam_length, config.block_size
    if config.fam_position == "last":
        return np.arange(S - F, S)
    if config.fam_position == "float":
        return S - 1 + np.arange(1, F + 1) / (F + 1)
    return np.zeros(F)


def fam_sources(memory: LayerMemory, updates: Rows, distance: Rows | int | None, config: MemoryConfig) -> list[Source]:
    """The keys and values of the P previous FAMs, the oldest first, for queries of the block after them.

    Args:
      memory: of the layer.
      updates: number of FAM updates before that block.
      distance: absolute position of the block's first token, which only `fam_position` `zero` uses.
      config: the memory's settings.
    """
    sources = []
    for p in reversed(range(config.previous_fams)):
        # FAM p back exists after p updates: before those there is the initial FAM alone.
        visible = None if p == 0 else (updates >= p)[..., None, None, None, None]
        away: Any = distance if config.fam_position == "zero" else (p + 1) * config.block_size
        sources.append(Source(memory.fam_k[:, p], memory.fam_v[:, p], visible, away))
    return sources


def with_keys(layer: LayerWeights, memory: LayerMemory) -> LayerMemory:
    """The memory with FAM's keys and values computed from `fam` by this layer's weights; gradients reach both."""
    if not layer.memory.fam_length:
        return memory
    k, v = layer.keys_values(memory.fam, fam_offsets(layer.memory))
    return dataclasses.replace(memory, fam_k=k.astype(memory.fam_k.dtype), fam_v=v.astype(memory.fam_v.dtype))


def fam_rms(fam: Float[Array, "... D"]) -> Float[Array, "... 1"]:
    """The root mean square over D of each feedback activation."""
    return jnp.sqrt(jnp.square(fam).mean(axis=-1, keepdims=True) + RMS_EPS)


def at_most(fam: Float[Array, "... D"], rms: float) -> Float[Array, "... D"]:
    """Feedback activations, each scaled down to this root mean square if it has more."""
    return fam * jnp.minimum(1.0, rms / fam_rms(fam))
