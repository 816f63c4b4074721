"""No information flows from the future into the past, from padding into the text, or from a block's own FAM into it.

"Changes nothing" means bit for bit: the same program, the same row, one changed token.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.config import ModelConfig
from tests import tiny

LENGTH, ROWS = 22, 4
CASES = {
    "fam-segments0": tiny.config(memory_segments=0),
    "fam-segments1": tiny.config(),
    "fam-segments3-grouped": tiny.config(memory_segments=3, num_heads=4),
    "bswa-segments1": tiny.config(fam_length=0, memory_segments=1),
}


def read_whole(config: ModelConfig, params: dict, tokens: np.ndarray, counts: Any = None) -> Any:
    counts = [LENGTH] * ROWS if counts is None else counts
    return tiny.whole(config, params, tokens, count_B=np.array(counts, np.int32))


def read_stream(config: ModelConfig, params: dict, tokens: np.ndarray, counts: Any = None) -> Any:
    return tiny.stream(config, params, tokens, counts_B=counts)


def change(config: ModelConfig, tokens: np.ndarray, row: int, at: int) -> None:
    tokens[row, at] = (tokens[row, at] + 1) % config.vocab_size


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", [read_whole, read_stream])
def test_no_token_sees_the_future(name: str, order: Any) -> None:
    """Changing token t changes no output before t, and changes the output at t."""
    config = CASES[name]
    params = tiny.parameters(config)
    tokens = np.repeat(tiny.tokens(config, 1, LENGTH), ROWS, axis=0)
    before, _ = order(config, params, tokens)
    for first in range(0, LENGTH - ROWS + 1, 2):
        changed = tokens.copy()
        for b in range(ROWS):
            change(config, changed, b, first + b)
        after, _ = order(config, params, changed)
        for b in range(ROWS):
            t = first + b
            np.testing.assert_array_equal(after[b, :t], before[b, :t])
            assert np.abs(after[b, t] - before[b, t]).max() > 1e-3


@pytest.mark.parametrize("order", [read_whole, read_stream])
def test_a_block_never_sees_its_own_fam(order: Any) -> None:
    """The last token of block tau reaches F_tau, hence block tau + 1, but no earlier token of block tau.

    Without memory segments FAM is the only path from one block to the next.
    """
    config, bswa = CASES["fam-segments0"], tiny.config(memory_segments=0, fam_length=0)
    for seed in range(2):
        tokens = np.repeat(tiny.tokens(config, 1, LENGTH, seed), ROWS, axis=0)
        changed = tokens.copy()
        for b in range(ROWS):
            change(config, changed, b, 4 * b + 3)
        for model in (config, bswa):
            params = tiny.parameters(model, seed)
            before, after = order(model, params, tokens)[0], order(model, params, changed)[0]
            for b in range(ROWS):
                np.testing.assert_array_equal(after[b, : 4 * b + 3], before[b, : 4 * b + 3])
                next_block = np.abs(after[b, 4 * b + 4 : 4 * b + 8] - before[b, 4 * b + 4 : 4 * b + 8]).max(axis=-1)
                assert (next_block > 1e-4).all() if model is config else (next_block == 0).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", [read_whole, read_stream])
def test_padding_changes_nothing(name: str, order: Any) -> None:
    """Tokens after a row's last real one change neither its outputs nor its memory."""
    config = CASES[name]
    params, counts = tiny.parameters(config), [0, 3, 8, 17]
    tokens = tiny.tokens(config, ROWS, LENGTH)
    before, memory_before = order(config, params, tokens, counts)
    other = tiny.tokens(config, ROWS, LENGTH, seed=1)
    for b, count in enumerate(counts):
        other[b, :count] = tokens[b, :count]
    assert (other != tokens).any(axis=1).all()
    after, memory_after = order(config, params, other, counts)
    for b, count in enumerate(counts):
        np.testing.assert_array_equal(after[b, :count], before[b, :count])
    for one, two in zip(tiny.visible(config, memory_after), tiny.visible(config, memory_before), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_padding_has_no_gradient() -> None:
    """The gradient of a loss on real tokens does not depend on the padding, is finite, and is zero for embeddings that
    only padding uses.

    One row is all padding, one ends within a block, one has a document that starts after padding.
    """
    config, counts = tiny.config(tie_embeddings=False, vocab_size=40), np.array([0, 3, 10], np.int32)
    real = np.arange(12) < counts[:, None]
    real[2, 6:8] = False
    starts = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 1]], bool)
    params, tokens = tiny.parameters(config), tiny.tokens(tiny.config(), 3, 12)

    def loss(params: dict, tokens: Any) -> Any:
        hidden, state = tiny.whole_untraced(config, params, tokens, count_B=counts, starts_BN=starts)
        return jnp.where(real[..., None], hidden**2, 0).sum() + (state.layers.fam**2).sum()

    gradient = jax.jit(jax.grad(loss), compiler_options=tiny.COMPILE_FAST)
    padding = np.random.default_rng(0).integers(20, 40, (2, 3, 12)).astype(np.int32)
    one, two = (gradient(params, np.where(real, tokens, other)) for other in padding)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(one))
    assert (np.asarray(one["embedding"])[20:] == 0).all()
    assert (np.asarray(one["embedding"])[np.unique(tokens[real])] != 0).any(axis=-1).all()


def test_padding_is_not_written_in_streaming() -> None:
    """Calls with padding at the end leave the same memory, in every slot, as calls without padding."""
    config = CASES["fam-segments1"]
    params, tokens = tiny.parameters(config), tiny.tokens(config, ROWS, 7)
    state = tiny.initial_state(config, params, ROWS)
    for at, count in ((0, 3), (3, 1), (4, 3)):
        part = tiny.tokens(config, ROWS, 4, seed=at)
        part[:, :count] = tokens[:, at : at + count]
        _, state = tiny.read(config, params, part, state, count_B=np.full(ROWS, count, np.int32))
    ring = np.asarray(state.layers.k)
    assert (ring[:, :, 1, :, 3:] == 0).all() and (ring[:, :, 1, :, :3] != 0).any(axis=-1).all()
    _, clean = tiny.stream(config, params, tokens, width=1)
    tiny.assert_same_memory(config, state, clean)


def test_rows_do_not_see_each_other() -> None:
    """Changing the text of one row changes nothing in the others."""
    config = CASES["fam-segments1"]
    params, tokens = tiny.parameters(config), tiny.tokens(config, ROWS, LENGTH)
    other = tokens.copy()
    other[2] = tiny.tokens(config, 1, LENGTH, seed=1)
    for order in (read_whole, read_stream):
        before, after = order(config, params, tokens)[0], order(config, params, other)[0]
        np.testing.assert_array_equal(np.delete(after, 2, axis=0), np.delete(before, 2, axis=0))
        assert np.abs(after[2] - before[2]).max() > 0.1
