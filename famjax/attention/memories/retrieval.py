"""Retrieval: blocks that have left the window are kept, and each query attends to the best of them (an upper bound).

    score(q, block) = q . mean of the block's keys              both without positions
    A               = attend(q, [the best `retrieval_top_k` blocks, window])      one softmax

Each head of each token chooses separately, as in Landmark attention (arXiv 2305.16300), with the mean of a block's keys
instead of a landmark token; nothing is learned. As in Memorizing Transformers (arXiv 2203.08913), the state covers a
number of blocks that grows with the text, here up to `retrieval_blocks`; then the oldest is dropped. It is an upper
bound for memories of constant size. Gradients flow through keys and values, not through the choice.

Scores against all kept blocks are computed and masked, so time grows with `retrieval_blocks`, too, and a training step
stores the state before every block. Chosen blocks get positions directly before the window, whatever their age, so that
distances do not exceed those of training:

    S = 4, M = 1:    chosen blocks at -8 .. -5    segment at -4 .. -1    block at 0 .. 3
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention.attend import Source
from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memories.base import Axes, Memory, State, unrotated
from famjax.config import ModelConfig
from famjax.dims import Array, Int, KeysValues, Offsets, Queries


@dataclasses.dataclass(frozen=True)
class Retrieval(Memory):
    """State: `held_k`, `held_v` [B, K, N, S, H], N = `retrieval_blocks`, keys rotated by their offsets; block n lies in
    slot n mod N. `mean` [B, K, N, H], float32, of its keys without positions.

    The M nearest of them are still in the window, where they are seen as segments.
    """

    @property
    def axes(self) -> dict[str, Axes]:
        """See `Memory`."""
        held = ("batch", "kv_heads", None, None, "head_dim")
        return {"held_k": held, "held_v": held, "mean": ("batch", "kv_heads", None, "head_dim")}

    def start(self, layer: LayerWeights, batch: int, dtype: Any) -> State:
        """Zeros, which are masked."""
        (K, H), N = layer.key_shape, layer.memory.retrieval_blocks
        empty = jnp.zeros((batch, K, N, layer.memory.block_size, H), dtype)
        return {"held_k": empty, "held_v": empty, "mean": jnp.zeros((batch, K, N, H))}

    def sources(
        self, layer: LayerWeights, state: State, blocks_before: Int[Array, "B"], q: Queries, offset: Offsets
    ) -> list[Source]:
        """One source with all kept blocks [B, K, N S, H], each visible to the queries that choose it."""
        config, N = layer.memory, layer.memory.retrieval_blocks
        # How many blocks ago the block in each slot was; older ones than the document do not exist.
        age = 1 + (blocks_before[:, None] - 1 - np.arange(N)) % N
        there = (age <= blocks_before[:, None]) & (age > config.memory_segments)
        there = there[:, None, None, None]
        query = unrotated(layer, q, offset).astype(jnp.float32)
        scores = jax.lax.stop_gradient(jnp.einsum("BKGQH,BKNH->BKGQN", query, state["mean"]))
        scores = jnp.where(there, scores, -jnp.inf)
        least = jax.lax.top_k(scores, config.retrieval_top_k)[0][..., -1:]
        visible = jnp.repeat(there & (scores >= least), config.block_size, axis=-1)
        k, v = (x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in (state["held_k"], state["held_v"]))
        return [Source(k, v, visible, (config.memory_segments + 1) * config.block_size)]

    def full(self, layer: LayerWeights, state: State, kv: KeysValues, blocks_before: Int[Array, "B"]) -> State:
        """The block replaces the oldest one."""
        k, v = kv
        here = (np.arange(state["mean"].shape[2]) == (blocks_before % state["mean"].shape[2])[:, None])[:, None]
        mean = unrotated(layer, k, jnp.arange(k.shape[-2])).astype(jnp.float32).mean(axis=-2)
        put = lambda new, held: jnp.where(here[..., None, None], new[:, :, None].astype(held.dtype), held)
        return {
            "held_k": put(k, state["held_k"]), "held_v": put(v, state["held_v"]),
            "mean": jnp.where(here[..., None], mean[:, :, None], state["mean"]),
        }  # fmt: skip

    def flops(self, model: ModelConfig) -> float:
        """See `Memory`: scores of all blocks by their means, and attention to the chosen ones."""
        memory = model.memory
        keys = memory.retrieval_blocks + 2 * memory.retrieval_top_k * memory.block_size
        return 2.0 * model.num_heads * model.head_dim * keys
