"""One softmax over several sources of keys, and RoPE between blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.attention import rope
from famjax.attention.attend import Scoring, Source, attend
from tests import reference, tiny

BASE = 100.0
PLAIN = Scoring(BASE)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotates the last axis by the position of the second-to-last axis, in float64."""
    rows = [reference.rope(x[..., i, :].astype(np.float64), p, BASE) for i, p in enumerate(positions)]
    return np.stack(rows, axis=-2)


def attended(q: np.ndarray, sources: list[Source]) -> Any:
    """`attend`, compiled as a whole."""
    return jax.jit(lambda q: attend(q, sources, PLAIN), compiler_options=tiny.COMPILE_FAST)(q)


def softmax_attention(q_KGQH: np.ndarray, k_KCH: np.ndarray, v_KCH: np.ndarray, visible_QC: np.ndarray) -> np.ndarray:
    scores = np.einsum("kgqh,kch->kgqc", q_KGQH, k_KCH) / np.sqrt(q_KGQH.shape[-1])
    weights = np.exp(np.where(visible_QC, scores, -np.inf))
    return np.einsum("kgqc,kch->kgqh", weights / weights.sum(-1, keepdims=True), v_KCH)


@pytest.mark.parametrize(("kv_heads", "group"), [(2, 1), (2, 3), (1, 4)])
@pytest.mark.parametrize("queries", [1, 5])
def test_sources_share_one_softmax(kv_heads: int, group: int, queries: int) -> None:
    """softmax(q k / sqrt(H)) v over all sources equals attention to their concatenated keys.

    Keys are rotated by offsets within their own block; `distance` places the blocks. With few or many queries,
    whichever side is rotated by the distance, the scores are the same.
    """
    H, sizes, distances = 4, (5, 3, 5), (10, 5, 0)
    q = random(kv_heads, group, queries, H)
    keys = [random(kv_heads, n, H, seed=n + d) for n, d in zip(sizes, distances, strict=True)]
    values = [random(kv_heads, n, H, seed=n + d + 50) for n, d in zip(sizes, distances, strict=True)]
    masks = [random(queries, n, seed=n + d + 100) > 0 for n, d in zip(sizes, distances, strict=True)]
    masks[1] = None
    at = np.arange(queries)
    sources = [
        Source(turned(k, np.arange(k.shape[1])).astype(np.float32), v, m, d)
        for k, v, m, d in zip(keys, values, masks, distances, strict=True)
    ]
    absolute = np.concatenate(
        [turned(k, np.arange(k.shape[1]) - d) for k, d in zip(keys, distances, strict=True)], axis=1
    )
    visible = np.concatenate([np.ones((queries, 3), bool) if m is None else m for m in masks], axis=1)
    expected = softmax_attention(turned(q, at), absolute, np.concatenate(values, axis=1), visible)
    tiny.assert_close(attended(turned(q, at).astype(np.float32), sources), expected)
    rows = [Source(s.k[None], s.v[None], s.visible, np.array([s.distance])) for s in sources]
    tiny.assert_close(attended(turned(q, at).astype(np.float32)[None], rows)[0], expected)


def test_hidden_keys_weigh_exactly_nothing() -> None:
    """The values of masked keys, even huge ones, do not change a bit of the result."""
    q, k, v = random(1, 1, 3, 4), random(1, 6, 4, seed=1), random(1, 6, 4, seed=2)
    visible = np.arange(6) < 4
    changed_k, changed_v = k.copy(), v.copy()
    changed_k[:, 4:], changed_v[:, 4:] = 1e6, -1e6
    plain, changed = (np.asarray(attended(q, [Source(*kv, visible)])) for kv in ((k, v), (changed_k, changed_v)))
    np.testing.assert_array_equal(changed, plain)


def test_query_without_keys_is_finite() -> None:
    """A padding query that sees no key has finite output and gradients, no NaN."""
    q, k = random(1, 1, 2, 4), random(1, 3, 4)
    assert np.isfinite(attend(q, [Source(k, k, np.zeros((2, 3), bool))], PLAIN)).all()


def test_large_scores_do_not_overflow() -> None:
    """Scores of 1e4 still return the value of the best key."""
    q = np.full((1, 1, 1, 4), 100.0, np.float32)
    k = np.stack([np.full(4, 50.0), np.full(4, 49.0)])[None].astype(np.float32)
    v = random(1, 2, 4)
    tiny.assert_close(attend(q, [Source(k, v)], PLAIN)[0, 0, 0], v[0, 0])


def test_bfloat16_sums_are_float32() -> None:
    """4096 equal keys: their weights sum to 4096, while a sum in bfloat16 would stop at 256."""
    q, k = jnp.zeros((1, 1, 1, 4), jnp.bfloat16), jnp.zeros((1, 4096, 4), jnp.bfloat16)
    v = jnp.asarray(random(1, 4096, 4) + 3, jnp.bfloat16)
    mean = np.asarray(v, np.float64).mean(axis=1)
    tiny.assert_close(attend(q, [Source(k, v)], PLAIN)[0, 0], mean, 2.0**-8)


@pytest.mark.parametrize("position", [0, 1, 7, 2.25, 1000])
def test_turn(position: float) -> None:
    """Pairs (i, i + H/2) rotate by position * base**(-2i/H), also at fractional positions."""
    x = random(3, 6)
    expected = reference.rope(x.astype(np.float64), position, BASE)
    tiny.assert_close(rope.rotate(x, position, BASE), expected, max(1e-6, abs(position) * 2.0**-23))


def test_turn_keeps_the_type() -> None:
    """bfloat16 in, bfloat16 out, with the angle in float32: at most one rounding."""
    x = jnp.asarray(random(3, 6), jnp.bfloat16)
    out = rope.rotate(x, 100, BASE)
    assert out.dtype == jnp.bfloat16
    tiny.assert_close(out, reference.rope(np.asarray(x, np.float64), 100, BASE), 2.0**-8)


@pytest.mark.parametrize(("scale", "cap"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.8), (0.3, 2.0)])
def test_scale_and_cap_with_their_gradients(scale: float, cap: float) -> None:
    """softmax(cap tanh(scale q k / cap)) v and its gradients equal those of JAX for the plain formula."""
    q, k = random(2, 2, 3, 4), random(2, 6, 4, seed=1)
    v, up = random(2, 6, 4, seed=2), random(2, 2, 3, 4, seed=3)
    visible = random(3, 6, seed=4) > -1

    def plain(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("kgqh,kch->kgqc", q, k) * (scale or 0.5)
        scores = cap * jnp.tanh(scores / cap) if cap else scores
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        return (jnp.einsum("kgqc,kch->kgqh", weights, v) * up).sum()

    def ours(q: Any, k: Any, v: Any) -> Any:
        first = Source(k[:, :2], v[:, :2], visible[:, :2])
        rest = Source(k[:, 2:], v[:, 2:], visible[:, 2:])
        return (attend(q, [first, rest], Scoring(BASE, scale, cap)) * up).sum()

    gradients = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)), compiler_options=tiny.COMPILE_FAST)(q, k, v)
    jax.tree.map(tiny.assert_close, gradients(ours), gradients(plain))


@pytest.mark.parametrize("scaling", ["linear", "llama3"])
def test_scaled_rope_of_known_and_computed_positions(scaling: str) -> None:
    """Frequencies equal the reference's, whether positions are known at trace time or traced."""
    config = tiny.config(rope_base=BASE, rope_scaling=scaling, rope_factor=8.0, rope_original_length=40)
    x = random(3, 12)
    expected = reference.rope(x.astype(np.float64), 9, BASE, config)
    assert np.abs(expected - reference.rope(x.astype(np.float64), 9, BASE)).max() > 0.1
    for position in (9, jnp.asarray(9)):
        tiny.assert_close(rope.rotate(x, position, config.rope), expected)
