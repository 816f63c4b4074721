"""The ring of blocks of a layer, before and after a whole text: which blocks are in reach, what stays.

`memory.py` has its layout; `streaming.py` writes single tokens into it.
"""

import jax.numpy as jnp
import numpy as np

from famjax.attention import memory
from famjax.attention.memory import LayerMemory
from famjax.attention.positions import Blocks, block_in_progress
from famjax.config import MemoryConfig
from famjax.dims import Array, Float, KeysValues


def past_blocks(before: LayerMemory, where: Blocks, config: MemoryConfig) -> KeysValues:
    """Keys and values of the M blocks before the first one, the nearest last: [B, M, K, S, H]."""
    M = config.memory_segments
    slots = ((where.blocks_before[:, :1] - M + np.arange(M)) % (M + 1))[:, :, None, None, None]
    k, v = (jnp.take_along_axis(ring, slots, axis=1) for ring in (before.k, before.v))
    return k, v


def segments_of(past: KeysValues, config: MemoryConfig) -> tuple[KeysValues, ...]:
    """Of `past_blocks`, each of those that are in reach of the first block, the nearest last."""
    k, v = past
    return tuple((k[:, i], v[:, i]) for i in range(k.shape[1] - memory.segments_in_reach(config), k.shape[1]))


def block_in_progress_of(x: Float[Array, "N B S D"], where: Blocks, config: MemoryConfig) -> Float[Array, "B S D"]:
    """Of each row, the block after the kept ones; any block if there is none."""
    read = jnp.minimum(where.kept_count // config.block_size, len(x) - 1)
    return jnp.take_along_axis(x, read[None, :, None, None], axis=0)[0]


def after(past: Array, own: Array, where: Blocks, config: MemoryConfig) -> Array:
    """The last R blocks up to the one after the kept tokens, each in its slot. own: [N, B, K, S, H]."""
    M = config.memory_segments
    blocks = jnp.concatenate([past, jnp.moveaxis(own, 0, 1)], axis=1)
    current, _ = block_in_progress(where, config)
    back = (current[:, None] - np.arange(M + 1)) % (M + 1)
    read = (where.kept_count // config.block_size)[:, None]
    source = jnp.clip(M + read - back, 0, blocks.shape[1] - 1)
    ring = jnp.take_along_axis(blocks, source[:, :, None, None, None], axis=1)
    # The block in progress ends where the real tokens do; padding after it is not kept.
    waiting = jnp.where(back == 0, (where.kept_count % config.block_size)[:, None], config.block_size)
    real = np.arange(config.block_size) < waiting[:, :, None]
    return jnp.where(real[:, :, None, :, None], ring, 0)
