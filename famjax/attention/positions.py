"""Positions of the tokens of one forward pass: their blocks, and the blocks and FAM updates before each.

All of it depends only on lengths and document starts, so it is computed once for all layers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.config import MemoryConfig
from famjax.dims import Array, Bool, Int, Rows


class Blocks(NamedTuple):
    """Positions of the tokens of one forward pass, the same for all layers.

    Attributes:
      offset: offset of each row's first token within its block; None if blocks are whole.
      count: number of real tokens of each row; padding follows them.
      blocks_before: number of blocks of the same document before each block.
      fam_updates: number of updates of the FAM that each block sees.
      starts: blocks that start a document; None if none does.
      full: blocks that are full after these tokens.
      kept: for whole blocks, those that update the memory; None: all.
      kept_count: number of tokens that update the memory: `count`, or those of the kept blocks.
      origin: absolute position of each block's first token; only `fam_position` `zero` uses it.
    """

    offset: Rows | None
    count: Rows  # type: ignore[assignment]  # tuple has a method of this name
    blocks_before: Int[Array, "B N"]
    fam_updates: Int[Array, "B N"]
    starts: Bool[Array, "B N"] | None
    full: Bool[Array, "B N"]
    kept: Bool[Array, "B N"] | None
    kept_count: Rows
    origin: Int[Array, "B N"] | None


class Layout(NamedTuple):
    """Documents within the rows of a batch.

    Attributes:
      starts: blocks that start a document, which sees none of the memory before it; None if none does.
      kept: number of leading blocks of each row that update the memory; None: all. Later blocks are computed from the
        memory, but do not change it.
      shift: random position offset of each row (paper section 2, length extrapolation); only `fam_position` `zero`
        depends on it.
    """

    starts: Bool[Any, "B N"] | None = None
    kept: Int[Any, "B"] | None = None
    shift: Int[Any, "B"] | None = None


WHOLE_ROWS = Layout()


def _origin(blocks_before: Array, shift: Rows | None, config: MemoryConfig) -> Array | None:
    """Absolute positions of the blocks' first tokens, if a position scheme needs them."""
    if config.fam_position != "zero":
        return None
    origin = blocks_before * config.block_size
    return origin if shift is None else origin + shift[:, None]


def of_whole_blocks(
    before: tuple[Rows, Rows], count: Rows, num_blocks: int, config: MemoryConfig, layout: Layout = WHOLE_ROWS,
    fresh_updates: Any = 0,
) -> Blocks:  # fmt: skip
    """Positions of N whole blocks that continue a memory at a block boundary.

    Args:
      before: (position, fam_updates) of that memory.
      count: number of tokens of each row up to its last real one.
      num_blocks: N.
      config: the memory's settings.
      layout: documents within the rows.
      fresh_updates: number of updates of the FAM with which documents start; 0 for the learned prompt.
    """
    (position_B, fam_updates_B), count_B, (starts_BN, kept_B, shift_B) = before, count, layout
    S = config.block_size
    block = np.arange(num_blocks)
    blocks_before = position_B[:, None] // S + block
    fam_updates = fam_updates_B[:, None] + block
    if starts_BN is not None:
        # A start marked after the last real token is padding: the memory stays the last document's.
        starts_BN = starts_BN & (count_B[:, None] > block * S)
        start = jnp.where(starts_BN, block, -1)
        last_start = jax.lax.cummax(start, axis=1)
        started = last_start >= 0
        blocks_before = jnp.where(started, block - last_start, blocks_before)
        fam_updates = jnp.where(started, block - last_start + fresh_updates, fam_updates)
    full = count_B[:, None] >= (block + 1) * S
    origin = _origin(blocks_before, shift_B, config)
    kept = None if kept_B is None else block < kept_B[:, None]
    kept_count = count_B if kept_B is None else jnp.minimum(count_B, kept_B * S)
    return Blocks(None, count_B, blocks_before, fam_updates, starts_BN, full, kept, kept_count, origin)


def of_part(position: Rows, fam_updates: Rows, count: Rows, config: MemoryConfig, shift: Rows | None = None) -> Blocks:
    """Positions of `count` tokens that continue a memory at `position` and lie within one block of each row."""
    S = config.block_size
    offset = position % S
    blocks_before = (position // S)[:, None]
    full = ((count > 0) & (offset + count >= S))[:, None]
    origin = _origin(blocks_before, shift, config)
    return Blocks(offset, count, blocks_before, fam_updates[:, None], None, full, None, count, origin)


def after(where: Blocks, config: MemoryConfig) -> tuple[Rows, Rows]:
    """(position, fam_updates) of the memory after these tokens."""
    S = config.block_size
    if where.offset is not None:
        position = where.blocks_before[:, 0] * S + where.offset + where.count
        return position, where.fam_updates[:, 0] + where.full[:, 0]
    current, updates = block_in_progress(where, config)
    return current * S + where.kept_count % S, updates


def block_in_progress(where: Blocks, config: MemoryConfig) -> tuple[Rows, Rows]:
    """(blocks_before, fam_updates) of the block to which each row's token after the kept ones belongs."""
    read = where.kept_count // config.block_size
    last = jnp.minimum(read, where.blocks_before.shape[1] - 1)[:, None]
    beyond = read - last[:, 0]  # 1 where the row's blocks are all full
    take = lambda x: jnp.take_along_axis(x, last, axis=1)[:, 0] + beyond
    return take(where.blocks_before), take(where.fam_updates)
