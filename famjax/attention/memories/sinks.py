"""Attention sinks (StreamingLLM, arXiv 2309.17453): the keys and values of a document's first tokens stay.

A model that was trained with full attention gives the first tokens much of its attention, whatever their content. Its
loss rises sharply once they leave the window; keeping them avoids this. Nothing is learned, and nothing else is kept.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from famjax.attention.attend import Source
from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memories.base import Axes, Memory, State
from famjax.config import ModelConfig
from famjax.dims import Array, Int, KeysValues, Offsets, Queries


@dataclasses.dataclass(frozen=True)
class Sinks(Memory):
    """State: `sink_k`, `sink_v` [B, K, n, H], the first n = `sinks` tokens of block 0, rotated by their offsets.

    While block 0 is in the window, its tokens are seen there. Afterwards the sinks have the positions directly before
    the window (positions within the cache, section 3.2 of StreamingLLM):

        S = 4, M = 1, n = 2:    sinks at -6, -5    segment at -4 .. -1    block at 0 .. 3
    """

    @property
    def axes(self) -> dict[str, Axes]:
        """See `Memory`."""
        return dict.fromkeys(("sink_k", "sink_v"), ("batch", "kv_heads", None, "head_dim"))

    def start(self, layer: LayerWeights, batch: int, dtype: Any) -> State:
        """Zeros, which are masked until block 0 has left the window."""
        K, H = layer.key_shape
        empty = jnp.zeros((batch, K, layer.memory.sinks, H), dtype)
        return {"sink_k": empty, "sink_v": empty}

    def sources(
        self, layer: LayerWeights, state: State, blocks_before: Int[Array, "B"], q: Queries, offset: Offsets
    ) -> list[Source]:
        """One source with the sinks, visible once block 0 has left the window."""
        config = layer.memory
        visible = (blocks_before > config.memory_segments)[:, None, None, None, None]
        distance = config.memory_segments * config.block_size + config.sinks
        return [Source(state["sink_k"], state["sink_v"], visible, distance)]

    def full(self, layer: LayerWeights, state: State, kv: KeysValues, blocks_before: Int[Array, "B"]) -> State:
        """After block 0: its first n tokens; later blocks change nothing."""
        is_first = (blocks_before == 0)[:, None, None, None]
        first = (x[:, :, : layer.memory.sinks] for x in kv)
        kept = zip(("sink_k", "sink_v"), first, strict=True)
        return {name: jnp.where(is_first, x.astype(state[name].dtype), state[name]) for name, x in kept}

    def flops(self, model: ModelConfig) -> float:
        """See `Memory`: attention to the sinks."""
        return 4.0 * model.num_heads * model.head_dim * model.memory.sinks
