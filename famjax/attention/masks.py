"""Masks of attention as predicates on positions.

Positions are offsets within a block, plus the distance between the block of the key and the block
of the query, in tokens (0 for the block itself, S for the block before it, and so on):

    query 5 of a block, key 7 of the block before, S = 8:  5 - 7 + 8 = 6 tokens back
"""

from typing import Any, TypeAlias

import numpy as np

from famjax.dims import Array

# Integers, broadcast against each other.
Positions: TypeAlias = Array | np.ndarray | int


def causal(q_offset: Positions, k_offset: Positions, distance: Any = 0) -> Any:
    """True where the key is the query itself or comes before it."""
    return q_offset + distance >= k_offset


def within_window(q_offset: Positions, k_offset: Positions, distance: Positions, window: int) -> Any:
    """True where the key is one of the last `window` tokens, the query itself included."""
    return q_offset - k_offset + distance < window


def in_same_document(blocks_back: Positions, blocks_before: Positions) -> Any:
    """True if the block `blocks_back` blocks before the query's block belongs to the query's document, which has
    `blocks_before` blocks before that of the query."""
    return blocks_back <= blocks_before


def block_window(q_position: np.ndarray, k_position: np.ndarray, block_size: int, memory_segments: int) -> np.ndarray:
    """The mask of block sliding window attention by its definition (paper section 2), from absolute positions.

    A token sees its own block up to itself, and all of the `memory_segments` blocks before it. The model never builds
    this mask; tests compare the model with it.
    """
    blocks_back = q_position // block_size - k_position // block_size
    return (k_position <= q_position) & (blocks_back <= memory_segments)
