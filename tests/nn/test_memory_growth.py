"""Streaming uses a memory of constant size."""

from typing import Any

import jax
import numpy as np
import pytest

from tests import tiny


def live_bytes() -> int:
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.mark.usefixtures("collected")
def test_live_bytes_do_not_grow() -> None:
    """The number of live bytes is the same after 10,000 blocks as after 10, and the position still counts every
    token."""
    config = tiny.config(block_size=2, fam_length=1, num_layers=1)
    params = tiny.parameters(config)
    text = tiny.tokens(config, 1, 2 * 16).reshape(16, 1, 2)
    step = jax.jit(
        lambda params, tokens, state: tiny.build(config, params).read(tokens, state), compiler_options=tiny.COMPILE_FAST
    )
    state: Any = tiny.initial_state(config, params, 1)
    bytes_after = {}
    for block in range(1, 10_001):
        hidden, state = step(params, text[block % 16], state)
        if block in (10, 10_000):
            jax.block_until_ready(state)
            bytes_after[block] = live_bytes()
    assert bytes_after[10] == bytes_after[10_000] > 0
    assert state.position.tolist() == [20_000] and state.fam_updates.tolist() == [10_000]
    assert np.isfinite(hidden).all() and np.isfinite(state.layers.fam).all()


def test_size_of_the_memory() -> None:
    """A layer has (M + 1) S keys and values, F D numbers of FAM, and FAM's F keys and values (paper section 3), at any
    position."""
    config = tiny.config(memory_segments=3, num_heads=4)
    state = tiny.initial_state(config, tiny.parameters(config), 2)
    _, later = tiny.read(config, tiny.parameters(config), tiny.tokens(config, 2, 4), state)
    per_row = 2 * 4 * 4 * 2 * 4 + 2 * 12 + 2 * 2 * 2 * 4  # ring; FAM; its keys and values
    for memory in (state, later):
        assert sum(x.size for x in jax.tree.leaves(memory.layers)) == config.num_layers * 2 * per_row
