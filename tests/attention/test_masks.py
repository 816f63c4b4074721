"""The predicates on offsets agree with those on absolute positions."""

import numpy as np
import pytest

from famjax.attention import masks

S = 4


@pytest.mark.parametrize("blocks_back", [0, 1, 3])
def test_offsets_and_distance_are_positions(blocks_back: int) -> None:
    """A query at offset i sees key j of the block n blocks back exactly if position 4n + i sees position j."""
    for i in range(S):
        for j in range(S):
            q, k = blocks_back * S + i, j
            assert masks.causal(i, j, blocks_back * S) == (k <= q)
            for window in (1, 3, 9):
                assert masks.within_window(i, j, blocks_back * S, window) == (q - k < window)


def test_same_document() -> None:
    """The third block of a document (2 before it) sees the blocks 0, 1 and 2 back, not 3 back."""
    np.testing.assert_array_equal(masks.in_same_document(np.arange(5), 2), [True, True, True, False, False])
