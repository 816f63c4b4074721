"""Where the tokens of one forward pass stand: their blocks, and what each block may look back on.

Everything here depends on lengths and document starts alone, so it is computed once and shared by
all layers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.config import MemoryConfig


class Blocks(NamedTuple):
    """Where the tokens of one forward pass stand, the same for all layers.

    Attributes:
      offset: int32 [B], offset of the first token within its block; None where blocks are whole.
      count: int32 [B], tokens that are real; those after them in the row are padding.
      blocks_before: int32 [B, N], blocks of the same document before each block.
      fam_updates: int32 [B, N], updates that the FAM seen by each block has had.
      starts: bool [B, N], blocks that start a document; None where none does.
      full: bool [B, N], blocks that these tokens make full.
      kept: bool [B, N], of whole blocks: those of which the memory afterwards knows; None: of all.
      kept_count: int32 [B], tokens of which it knows: `count`, or as many as the kept blocks have.
      origin: [B, N], absolute position of each block's first token; only `zero` FAM positions use it.
    """

    offset: Any
    count: Any
    blocks_before: Any
    fam_updates: Any
    starts: Any
    full: Any
    kept: Any
    kept_count: Any
    origin: Any


def _origin(blocks_before: Any, shift_B: Any, config: MemoryConfig) -> Any:
    """Absolute positions of the blocks' first tokens, where a position scheme needs them."""
    if config.fam_position != "zero":
        return None
    origin = blocks_before * config.block_size
    return origin if shift_B is None else origin + shift_B[:, None]


def of_whole_blocks(
    position_B: Any, fam_updates_B: Any, count_B: Any, num_blocks: int, config: MemoryConfig,
    starts_BN: Any = None, fresh_updates: Any = 0, shift_B: Any = None, kept_B: Any = None,
) -> Blocks:  # fmt: skip
    """Positions of N blocks that follow a memory standing at a block's edge.

    Args:
      position_B, fam_updates_B: of the memory that these blocks continue.
      count_B: tokens of each row up to its last real one.
      num_blocks: N.
      config: the memory's settings.
      starts_BN: bool, blocks with which a document starts: such a block sees no memory from before.
      fresh_updates: updates that the FAM of a starting document has had; 0 for the learned prompt.
      shift_B: random position offset of each row (paper section 2, length extrapolation).
      kept_B: blocks of each row, the first ones, of which the memory afterwards knows; None: of all. What is
        behind them is read too, but leaves no trace.
    """
    S = config.block_size
    block = np.arange(num_blocks)
    blocks_before = position_B[:, None] // S + block
    fam_updates = fam_updates_B[:, None] + block
    if starts_BN is not None:
        # A start marked behind the last real token is padding: the memory stays the last document's.
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


def of_part(position_B: Any, fam_updates_B: Any, count_B: Any, config: MemoryConfig, shift_B: Any = None) -> Blocks:
    """Positions of `count_B` tokens that follow the memory and stay within one block of each row."""
    S = config.block_size
    offset = position_B % S
    blocks_before = (position_B // S)[:, None]
    full = ((count_B > 0) & (offset + count_B >= S))[:, None]
    origin = _origin(blocks_before, shift_B, config)
    return Blocks(offset, count_B, blocks_before, fam_updates_B[:, None], None, full, None, count_B, origin)


def after(where: Blocks, config: MemoryConfig) -> tuple[Any, Any]:
    """(position_B, fam_updates_B) of the memory once these tokens are read."""
    S = config.block_size
    if where.offset is not None:
        position = where.blocks_before[:, 0] * S + where.offset + where.count
        return position, where.fam_updates[:, 0] + where.full[:, 0]
    current, updates = block_in_progress(where, config)
    return current * S + where.kept_count % S, updates


def block_in_progress(where: Blocks, config: MemoryConfig) -> tuple[Any, Any]:
    """(blocks_before_B, fam_updates_B) of the block that the token behind the kept ones of each row belongs to."""
    read = where.kept_count // config.block_size
    last = jnp.minimum(read, where.blocks_before.shape[1] - 1)[:, None]
    beyond = read - last[:, 0]  # 1 where the row's blocks are all full
    take = lambda x: jnp.take_along_axis(x, last, axis=1)[:, 0] + beyond
    return take(where.blocks_before), take(where.fam_updates)
