"""Reading in pieces of any size equals reading at once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.config import ModelConfig
from famjax.infer import prefill
from tests import tiny

CONFIGS = [
    pytest.param(tiny.config(), id="fam"),
    pytest.param(tiny.config(fam_length=0, memory_segments=2), id="bswa"),
    pytest.param(tiny.config(previous_fams=2, memory_segments=0, fam_position="float"), id="two-fams"),
]


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.COMPILE_FAST)
def extend(config: ModelConfig, params: dict, tokens_BT: Any, count_B: Any, state: Any) -> Any:
    return prefill.extend(tiny.build(config, params), tokens_BT, count_B, state)


@pytest.mark.parametrize("config", CONFIGS)
def test_extend_in_random_pieces_equals_the_whole(config: ModelConfig) -> None:
    """h(extend(x[a:b], memory(x[:a]))) = h(x)[a:b], rows at different offsets, pieces over several edges."""
    rng = np.random.default_rng(0)
    params = tiny.parameters(config)
    lengths, width = np.array([29, 16, 3, 25]), 11
    tokens = tiny.tokens(config, len(lengths), lengths.max())
    state = tiny.initial_state(config, params, len(lengths))
    out = np.zeros((*tokens.shape, config.d_model), np.float32)
    done = np.zeros(len(lengths), int)
    while (done < lengths).any():
        count = np.minimum(rng.integers(0, width + 1, len(lengths)), lengths - done)
        piece = rng.integers(0, config.vocab_size, (len(lengths), width)).astype(np.int32)
        for b, n in enumerate(count):
            piece[b, :n] = tokens[b, done[b] : done[b] + n]
        hidden, state = extend(config, params, piece, count.astype(np.int32), state)
        for b, n in enumerate(count):
            out[b, done[b] : done[b] + n] = hidden[b, :n]
            assert not np.asarray(hidden)[b, n:].any()
        done += count
    desired, memory = tiny.whole(config, params, tokens, count_B=jnp.asarray(lengths, jnp.int32))
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    tiny.assert_close(out[real], np.asarray(desired)[real])
    tiny.assert_same_memory(config, state, memory)


def test_extend_with_nothing_to_read_changes_nothing() -> None:
    config = tiny.config()
    params = tiny.parameters(config)
    before = tiny.initial_state(config, params, 2)
    hidden, after = extend(config, params, np.zeros((2, 11), np.int32), np.zeros(2, np.int32), before)
    assert not np.asarray(hidden).any()
    jax.tree.map(np.testing.assert_array_equal, before, after)
