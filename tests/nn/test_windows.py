"""Visibility, compared with an ordinary Transformer with an explicit mask."""

from typing import Any

import jax
import numpy as np
import pytest

from famjax.attention import masks
from famjax.config import ModelConfig
from tests import reference, tiny
from tests.slow import but

LENGTH = 22


def masked_transformer(config: ModelConfig, params: dict, tokens_T: np.ndarray, mask_TT: np.ndarray) -> np.ndarray:
    """A plain pre-norm decoder over one sequence, all pairs at once, in float64: [T, D]."""
    params = reference.as_float64(params)
    group = config.queries_per_kv
    turn = lambda x_TNH: np.stack([reference.rope(x_TNH[t], t, config.rope_base) for t in range(len(tokens_T))])
    rms = lambda x, scale: x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * scale
    x = params["embedding"][tokens_T]
    for i in range(config.num_layers):
        w = reference.take(params["layers"], i)
        normed = rms(x, w["attention_norm"]["scale"])
        q, k, v = (np.einsum("td,dnh->tnh", normed, w["attention"][name]) for name in ("query", "key", "value"))
        q, k, v = turn(q), np.repeat(turn(k), group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(config.head_dim)
        weights = np.exp(np.where(mask_TT, scores, -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("nts,snh,nhd->td", weights, v, w["attention"]["output"])
        normed, ff = rms(x, w["ff_norm"]["scale"]), w["feed_forward"]
        gate = normed @ ff["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ ff["up"])) @ ff["down"]
    return rms(x, params["final_norm"]["scale"])


def causal(t: int, s: int, config: ModelConfig) -> bool:
    return s <= t


def segments(t: int, s: int, config: ModelConfig) -> bool:
    """Returns the mask in which token t sees its own block up to itself and the M blocks before it."""
    S, M = config.memory.block_size, config.memory.memory_segments
    own = [u for u in range(t // S * S, t + 1)]
    past = [u for block in range(t // S - M, t // S) for u in range(block * S, block * S + S)]
    return s in own or s in past


def sliding(t: int, s: int, config: ModelConfig) -> bool:
    return 0 <= t - s < config.memory.token_window


def double_loop(sees: Any, config: ModelConfig, length: int) -> np.ndarray:
    return np.array([[sees(t, s, config) for s in range(length)] for t in range(length)])


@pytest.mark.parametrize(
    ("config", "sees"),
    [
        (tiny.config(fam_length=0, memory_segments=5, num_heads=4), causal),
        (tiny.config(fam_length=0, memory_segments=0, block_size=32), causal),
        (tiny.config(fam_length=0, memory_segments=0), segments),
        (tiny.config(fam_length=0, memory_segments=2), segments),
        (tiny.config(fam_length=0, memory_segments=2, token_window=9), sliding),
        (tiny.config(fam_length=0, memory_segments=2, token_window=6), sliding),
        (tiny.config(fam_length=0, memory_segments=1, token_window=1), sliding),
    ],
    ids=["causal", "causal-one-block", "own-block", "segments2", "window9", "window6", "window1"],
)
def test_against_a_masked_transformer(config: ModelConfig, sees: Any) -> None:
    """With fam_length 0 the model is a causal Transformer with a window: the whole text, M segments, or tokens."""
    params, tokens = tiny.parameters(config), tiny.tokens(config, 2, LENGTH)
    mask = double_loop(sees, config, LENGTH)
    expected = np.stack([masked_transformer(config, params, row, mask) for row in tokens])
    tiny.assert_close(tiny.whole(config, params, tokens)[0], expected)
    tiny.assert_close(tiny.stream(config, params, tokens)[0], expected)


@pytest.mark.parametrize("block_size", [1, 3, 4])
@pytest.mark.parametrize("memory_segments", [0, 1, 3])
def test_block_window(block_size: int, memory_segments: int) -> None:
    """`masks.block_window` equals the literal definition: the own block up to the token, and M whole blocks before."""
    config = tiny.config(fam_length=0, block_size=block_size, memory_segments=memory_segments)
    at = np.arange(LENGTH)
    mask = masks.block_window(at[:, None], at, block_size, memory_segments)
    np.testing.assert_array_equal(mask, double_loop(segments, config, LENGTH))


# --- stop-gradient -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", but(("whole", "streaming"), "streaming"))
def test_stop_gradient(order: str) -> None:
    """With the switch, a loss on block 3 has no gradient with respect to the inputs of blocks 1 and 2; without, it has.

    All tokens of the text are different, so the embedding's rows are the inputs.
    """
    tokens = np.arange(12, dtype=np.int32)[None]
    config = tiny.config(fam_length=0, memory_segments=2)
    params = tiny.parameters(config)

    def input_gradient(stop: bool) -> np.ndarray:
        switched = tiny.config(fam_length=0, memory_segments=2, stop_gradient=stop)

        def loss(embedding: Any) -> Any:
            model = tiny.build(switched, params | {"embedding": embedding})
            if order == "whole":
                return (model(tokens)[0][:, 8:] ** 2).sum()
            state = model.initial_state(1)
            state, hidden = jax.lax.scan(lambda s, x: model.read(x, s)[::-1], state, tokens.reshape(3, 1, 4))
            return (hidden[2] ** 2).sum()

        return np.asarray(jax.jit(jax.grad(loss), compiler_options=tiny.COMPILE_FAST)(params["embedding"]))

    free, stopped = input_gradient(False), input_gradient(True)
    assert (np.abs(free[:12]).max(axis=-1) > 1e-4).all()
    assert (stopped[:8] == 0).all()
    assert (np.abs(stopped[8:12]).max(axis=-1) > 1e-4).all()


def test_stop_gradient_changes_no_output() -> None:
    """The switch affects the backward pass only."""
    free, stopped = (tiny.config(stop_gradient=stop, memory_segments=2) for stop in (False, True))
    params, tokens = tiny.parameters(free), tiny.tokens(free, 2, LENGTH)
    np.testing.assert_array_equal(tiny.whole(free, params, tokens)[0], tiny.whole(stopped, params, tokens)[0])
    np.testing.assert_array_equal(tiny.stream(free, params, tokens)[0], tiny.stream(stopped, params, tokens)[0])


def test_stop_gradient_leaves_fam_alone() -> None:
    """Stop-gradient applies to memory segments: through FAM, blocks still receive gradients from later blocks."""
    config = tiny.config(memory_segments=1, stop_gradient=True)
    params = tiny.parameters(config)
    tokens = np.arange(12, dtype=np.int32)[None]

    def loss(embedding: Any) -> Any:
        return (tiny.whole_untraced(config, params | {"embedding": embedding}, tokens)[0][:, 8:] ** 2).sum()

    grad = np.asarray(jax.jit(jax.grad(loss), compiler_options=tiny.COMPILE_FAST)(params["embedding"]))
    assert (np.abs(grad[:12]).max(axis=-1) > 1e-5).all()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_gradient_through_fam_is_cut_at_every_nth_block(remat: str) -> None:
    """`fam_gradient_blocks` 2: a loss on block 3 has a gradient with respect to blocks 2 and 3, as without the setting,
    and none with respect to blocks 0 and 1; one on block 1 has that of block 0. Outputs are the same, and so are all
    gradients if no document is that long."""
    tokens = np.arange(16, dtype=np.int32)[None]
    free, cut, longer = (tiny.config(memory_segments=0, remat=remat, fam_gradient_blocks=n) for n in (0, 2, 4))
    params = tiny.parameters(free)

    def input_gradient(config: Any, block: int) -> np.ndarray:
        def loss(embedding: Any) -> Any:
            hidden = tiny.whole_untraced(config, params | {"embedding": embedding}, tokens)[0]
            return (hidden[:, 4 * block : 4 * block + 4] ** 2).sum()

        return np.asarray(jax.jit(jax.grad(loss), compiler_options=tiny.COMPILE_FAST)(params["embedding"]))[:16]

    of_last, cut_last = input_gradient(free, 3), input_gradient(cut, 3)
    assert (np.abs(of_last).max(axis=-1) > 1e-6).all()
    assert (cut_last[:8] == 0).all()
    np.testing.assert_allclose(cut_last[8:], of_last[8:], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(input_gradient(cut, 1), input_gradient(free, 1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(input_gradient(longer, 3), of_last, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(tiny.whole(free, params, tokens)[0], tiny.whole(cut, params, tokens)[0])
