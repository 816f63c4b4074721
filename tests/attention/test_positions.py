"""Block positions in a forward pass, against values worked out by hand (blocks of 4 tokens)."""

import numpy as np

from famjax.attention import positions
from famjax.config import MemoryConfig

CONFIG = MemoryConfig(block_size=4, memory_segments=1, fam_length=2)


def test_blocks_of_two_documents() -> None:
    """Row 0 continues a memory of 12 tokens; row 1 starts a document in its second block, row 2 in both."""
    starts = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 0]], bool)
    where = positions.of_whole_blocks(
        (np.array([12, 4, 8]), np.array([3, 1, 2])), np.array([12, 9, 6]), 3, CONFIG, positions.Layout(starts), 7
    )
    np.testing.assert_array_equal(where.blocks_before, [[3, 4, 5], [1, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(where.fam_updates, [[3, 4, 5], [1, 7, 8], [7, 7, 8]])
    np.testing.assert_array_equal(where.full, [[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    position, updates = positions.after(where, CONFIG)
    np.testing.assert_array_equal(position, [24, 5, 2])
    np.testing.assert_array_equal(updates, [6, 8, 7])


def test_part_of_a_block() -> None:
    """Rows with 0, 6, 7 and 8 tokens so far get 3, 2, 0 and 4 more: the second and the last complete a block."""
    where = positions.of_part(np.array([0, 6, 7, 8]), np.array([0, 1, 1, 2]), np.array([3, 2, 0, 4]), CONFIG)
    np.testing.assert_array_equal(where.offset, [0, 2, 3, 0])
    np.testing.assert_array_equal(where.blocks_before[:, 0], [0, 1, 1, 2])
    np.testing.assert_array_equal(where.full[:, 0], [False, True, False, True])
    position, updates = positions.after(where, CONFIG)
    np.testing.assert_array_equal(position, [3, 8, 7, 12])
    np.testing.assert_array_equal(updates, [0, 2, 1, 3])
