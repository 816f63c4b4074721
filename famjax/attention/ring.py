"""The ring of blocks of a layer, before and after a sequence of whole blocks.

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
    """Keys and values of the M blocks before the first one, the nearest last: two arrays [B, M, K, S, H]."""
    M = config.memory_segments
    slots = ((where.blocks_before[:, :1] - M + np.arange(M)) % (M + 1))[:, :, None, None, None]
    k, v = (jnp.take_along_axis(ring, slots, axis=1) for ring in (before.k, before.v))
    return k, v


def segments_of(past: KeysValues, config: MemoryConfig) -> tuple[KeysValues, ...]:
    """Splits `past_blocks` into memory segments, keys and values [B, K, S, H], the nearest last; those that a token
    window hides from every token are left out."""
    k, v = past
    return tuple((k[:, i], v[:, i]) for i in range(k.shape[1] - memory.segments_in_reach(config), k.shape[1]))


def block_in_progress_of(x: Float[Array, "N B S D"], where: Blocks, config: MemoryConfig) -> Float[Array, "B S D"]:
    """Each row's block after the kept ones; the last block if there is none, whose values are then not used."""
    read = jnp.minimum(where.kept_count // config.block_size, len(x) - 1)
    return jnp.take_along_axis(x, read[None, :, None, None], axis=0)[0]


def after(past: Array, own: Array, where: Blocks, config: MemoryConfig) -> Array:
    """The ring [B, R, K, S, H] after the kept tokens: the last R blocks, each in its slot.

    Args:
      past: keys or values of the M blocks before, [B, M, K, S, H].
      own: keys or values of the N blocks, [N, B, K, S, H].
      where: positions of the blocks.
      config: the memory's settings.
    """
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
