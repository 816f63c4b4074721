"""The fused kernel is `attend`: values and gradients, in interpret mode on the CPU."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.attention import blocks, fused
from famjax.attention.attend import Scoring, Source, attend
from famjax.attention.fused import Kernel, choose
from famjax.attention.memory import fam_sources
from famjax.config import ConfigError, MemoryConfig, Rope
from tests import tiny

INTERPRET = Kernel("interpret")
# B, N, K, G, H, then settings of the memory and of scores.
CASES: dict[str, dict[str, Any]] = {
    "multi-head": {"K": 2},
    "multi-query-capped": {"K": 1, "G": 3, "cap": 2.0, "scale": 0.5, "stop_gradient": True, "memory_segments": 1},
    "window-across-tiles": {
        "block_size": 256, "tile": 128, "N": 2, "memory_segments": 1, "token_window": 200, "previous_fams": 3,
        "fam_length": 50, "fam_position": "float",
    },
    "bswa-of-one-block": {"fam_length": 0, "memory_segments": 0},
    "zero-positions-wide-heads": {"H": 136, "fam_position": "zero", "N": 2, "memory_segments": 1},
}  # fmt: skip


def random_case(seed: int, **settings: Any) -> tuple[Any, Any, Any, Any]:
    """(arrays, (blocks before, updates, origin), scoring, memory settings): documents begin in the middle, FAMs are
    not there yet, scores are large enough for the softmax to be sharp."""
    rng = np.random.default_rng(seed)
    shape = {"B": 2, "N": 3, "K": 1, "G": 1, "H": 8, "scale": 0.0, "cap": 0.0, "dtype": "float32"}
    shape |= {name: settings.pop(name) for name in list(settings) if name in shape}
    B, N, K, G, H = (shape[name] for name in "BNKGH")
    config = MemoryConfig(**{"block_size": 128, "memory_segments": 2, "fam_length": 16, **settings})
    config.validate()
    S, F, P, W = config.block_size, config.fam_length, config.previous_fams, blocks.segments_in_reach(config)
    draw = lambda *sizes: jnp.asarray(rng.normal(size=sizes), shape["dtype"])
    pair = lambda *sizes: (draw(*sizes), draw(*sizes))
    arrays = (draw(B, N, K, G, S, H) * 2, pair(B, N, K, S, H), pair(B, W, K, S, H))
    arrays += (pair(B, N, P, K, F, H) if F else None,)
    before, updates = rng.integers(0, W + 2, (B, N)), rng.integers(0, P + 2, (B, N))
    origin = rng.integers(0, 5000, (B, N)) if config.fam_position == "zero" else None
    scoring = Scoring(Rope(100.0), shape["scale"], shape["cap"])
    return arrays, (before, updates, origin), scoring, config


def both(case: Any, kernel: Kernel = INTERPRET) -> tuple[Any, Any]:
    """From arrays to (output, gradients): by the kernel, and by `attend`."""
    _, where, scoring, config = case
    up = np.random.default_rng(9).normal(size=case[0][0].shape).astype(np.float32)

    def by_kernel(arrays: Any) -> Any:
        return blocks._attend_fused(blocks._Seen(*arrays, where), scoring, config, kernel)

    def by_attend(arrays: Any) -> Any:
        seen = blocks._block_by_block(blocks._Seen(*arrays, where), config)
        return attend(seen.pop("q"), blocks._sources_of_blocks(**seen, config=config)[0], *scoring)

    def run(f: Any, arrays: Any) -> Any:
        out, backward = jax.vjp(f, arrays)
        return out, backward(jnp.asarray(up, out.dtype))[0]

    one = lambda f: jax.jit(lambda arrays: run(f, arrays), compiler_options=tiny.COMPILE_FAST)
    return one(by_kernel), one(by_attend)


def assert_same(case: Any, tile: int = 0, monkeypatch: Any = None, relative: float = tiny.RELATIVE) -> None:
    if tile:
        monkeypatch.setattr(fused, "TILES", (tile,))
    by_kernel, by_attend = both(case)
    got, expected = by_kernel(case[0]), by_attend(jax.tree.map(lambda x: x.astype(jnp.float32), case[0]))
    jax.tree.map(lambda a, b: tiny.assert_close(a, b, relative) if b.size else None, got, expected)
    assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves((expected[0], expected[1][0])))


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_attend(name: str, monkeypatch: Any) -> None:
    """The same outputs and the same gradients of queries, keys, values and FAM, whatever is visible."""
    settings = dict(CASES[name])
    tile = settings.pop("tile", 0)
    assert_same(random_case(len(name), **settings), tile, monkeypatch)


def test_bfloat16_is_as_exact_as_its_type() -> None:
    """From bfloat16, the kernel's outputs and gradients are those of float32 up to a few of bfloat16's roundings."""
    assert_same(random_case(3, K=1, G=2, dtype="bfloat16"), relative=2.0**-6)


@pytest.mark.parametrize(("kv_heads", "group", "previous_fams"), [(2, 1, 1), (1, 2, 3)])
def test_queries_of_fam(kv_heads: int, group: int, previous_fams: int) -> None:
    """FAM's own attention, to the previous FAMs that there are and to a whole block: outputs and gradients."""
    rng = np.random.default_rng(group)
    config = MemoryConfig(block_size=256, fam_length=32, previous_fams=previous_fams)
    draw = lambda *sizes: jnp.asarray(rng.normal(size=sizes), jnp.float32)
    B, K, P, F, H = 3, kv_heads, previous_fams, 32, 8
    arrays = draw(B, K, group, F, H), draw(B, K, 256, H), draw(B, K, 256, H), draw(B, P, K, F, H), draw(B, P, K, F, H)
    scoring, updates, up = Scoring(Rope(100.0)), np.arange(B), draw(B, K, group, F, H)

    def of(by_kernel: bool, q: Any, k: Any, v: Any, fam_k: Any, fam_v: Any) -> Any:
        sources = fam_sources(fam_k, fam_v, updates, 0, config)
        if by_kernel:
            return fused.attend_of_fam(q, (k, v), sources[::-1], updates, scoring, config, INTERPRET)
        return attend(q, [*sources, Source(k, v)], *scoring)

    def run(by_kernel: bool) -> Any:
        out, backward = jax.vjp(functools.partial(of, by_kernel), *arrays)
        return out, backward(up)

    got, expected = (jax.jit(run, static_argnums=0, compiler_options=tiny.COMPILE_FAST)(by) for by in (True, False))
    jax.tree.map(tiny.assert_close, got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(seed: int, dtype: str, monkeypatch: Any) -> None:
    """Any number of heads, blocks, segments, FAMs and tiles."""
    rng = np.random.default_rng(seed)
    block = int(rng.choice([128, 256, 384]))
    segments = int(rng.integers(0, 4))
    settings = {
        "B": int(rng.integers(1, 3)), "N": int(rng.integers(1, 5)), "K": int(rng.integers(1, 4)),
        "G": int(rng.integers(1, 4)), "H": int(rng.choice([8, 64, 128, 160])), "block_size": block,
        "memory_segments": segments, "fam_length": int(rng.choice([0, 1, 64, 128])),
        "previous_fams": int(rng.integers(1, 4)), "cap": float(rng.choice([0, 3])),
        "fam_position": str(rng.choice(["last", "float", "zero"])), "stop_gradient": bool(rng.integers(2)),
        # A window of one token without FAM is a softmax over one key, of which queries have no gradient to compare.
        "token_window": int(rng.integers(2, segments * block + 2)) if segments and rng.integers(2) else 0,
    }  # fmt: skip
    tile = int(rng.choice([128, block]))
    assert_same(
        random_case(seed, dtype=dtype, **settings), tile, monkeypatch, tiny.RELATIVE if dtype == "float32" else 2.0**-6
    )


def test_a_training_step_is_the_same_with_the_kernel() -> None:
    """The loss's gradients by all weights, through the scan over layers with remat, FAM's recurrence, documents that
    start in the middle and padding: equal with and without the kernel."""
    settings = {"block_size": 128, "fam_length": 16, "num_layers": 2, "num_kv_heads": 1, "remat": "full"}
    model = tiny.config(**settings)
    params, tokens = tiny.parameters(model), tiny.tokens(model, 2, 3 * 128)
    starts, count = np.array([[True, False, True], [True, False, False]]), np.array([384, 300])

    def loss(params: Any, kernel: str) -> Any:
        config = dataclasses.replace(model, attention_kernel=kernel)
        hidden, state = tiny.whole_untraced(config, params, tokens, starts_BN=starts, count_B=count)
        real = np.arange(384) < count[:, None]
        return (jnp.sin(3 * hidden) * real[..., None]).sum() + jnp.sin(state.layers.fam).sum()

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1, compiler_options=tiny.COMPILE_FAST)
    got, expected = (gradient(params, kernel) for kernel in ("interpret", "xla"))
    jax.tree.map(lambda a, b: tiny.assert_close(a, b, 5e-5), got, expected)


def test_the_platform_chooses() -> None:
    """`auto` is the kernel on TPU, where its tiles fit; what cannot work is refused."""
    assert choose("auto", "tpu", 1024) == choose("fused", "tpu", 1024) == "fused"
    assert choose("auto", "tpu", 64) == choose("auto", "cpu", 1024) == choose("auto", "gpu", 1024) == "xla"
    assert choose("xla", "tpu", 1024) == "xla"
    with pytest.raises(ConfigError, match="'fused' runs on TPU, and this is cpu; use 'auto' or 'xla'"):
        choose("fused", "cpu", 1024)
    with pytest.raises(ConfigError, match="multiple of 128 tokens, not block_size 200; use 128 or 256"):
        tiny.config(attention_kernel="fused", block_size=200).validate()
