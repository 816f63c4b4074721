"""The fused kernel equals `attend` in values and gradients, in interpret mode on the CPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.attention import block_step, fused
from famjax.attention.attend import Scoring, attend
from famjax.attention.fused import Kernel, choose
from famjax.attention.memory import segments_in_reach
from famjax.config import ConfigError, MemoryConfig, Rope
from famjax.nn import weights
from tests import tiny

INTERPRET = Kernel("interpret")
# B, K, G, H, then settings of the memory and of scores.
CASES: dict[str, dict[str, Any]] = {
    "multi-head": {"K": 2},
    "multi-query-capped": {"K": 1, "G": 3, "cap": 2.0, "scale": 0.5, "stop_gradient": True, "memory_segments": 1},
    "window-across-tiles": {
        "block_size": 256, "tile": 128, "memory_segments": 1, "token_window": 200, "previous_fams": 3,
        "fam_length": 50, "fam_position": "float",
    },
    "bswa-of-one-block": {"fam_length": 0, "memory_segments": 0},
    "zero-positions-wide-heads": {"H": 136, "fam_position": "zero", "memory_segments": 1},
}  # fmt: skip


def random_case(seed: int, **settings: Any) -> tuple[Any, Any, Any, Any]:
    """Returns (arrays, block positions, scoring, memory settings): rows are at different places of their documents,
    some FAMs are absent, and scores are large enough for a sharp softmax."""
    rng = np.random.default_rng(seed)
    shape = {"B": 4, "K": 1, "G": 1, "H": 8, "scale": 0.0, "cap": 0.0, "dtype": "float32"}
    shape |= {name: settings.pop(name) for name in list(settings) if name in shape}
    B, K, G, H = (shape[name] for name in "BKGH")
    config = MemoryConfig(**{"block_size": 128, "memory_segments": 2, "fam_length": 16, **settings})
    config.validate()
    S, F, P, W = config.block_size, config.fam_length, config.previous_fams, segments_in_reach(config)
    draw = lambda *sizes: jnp.asarray(rng.normal(size=sizes), shape["dtype"])
    pair = lambda *sizes: (draw(*sizes), draw(*sizes))
    arrays = (draw(B, K, G, S + F, H) * 2, pair(B, K, S + P * F, H), tuple(pair(B, K, S, H) for _ in range(W)))
    at = block_step.At(jnp.asarray(rng.integers(0, W + 2, B)), jnp.asarray(rng.integers(0, P + 2, B)))
    scoring = Scoring(Rope(100.0), shape["scale"], shape["cap"])
    return arrays, at, scoring, config


def both(case: Any, kernel: Kernel = INTERPRET) -> tuple[Any, Any]:
    """Returns functions from arrays to (outputs of tokens and of FAM, gradients): of the kernel, and of `attend`."""
    _, at, scoring, config = case
    S = config.block_size
    up = np.random.default_rng(9).normal(size=case[0][0].shape).astype(np.float32)

    def joined(tokens: Any, fam: Any) -> Any:
        return jnp.concatenate([tokens, fam], axis=-2) if config.fam_length else tokens

    def by_kernel(arrays: Any) -> Any:
        (q, kv, segments), how = arrays, (at, scoring, config, kernel)
        tokens = fused.attend_block(q[..., :S, :], kv, segments, *how)
        if config.fam_length % 16:
            return joined(tokens, attend(q[..., S:, :], block_step.seen_by_fam(kv, at, config), scoring))
        return joined(tokens, fused.attend_block(q[..., S:, :], kv, None, *how) if config.fam_length else None)

    def by_attend(arrays: Any) -> Any:
        q, kv, segments = arrays
        tokens = attend(q[..., :S, :], block_step.seen_by_tokens(kv, segments, at, config), scoring)
        return joined(tokens, attend(q[..., S:, :], block_step.seen_by_fam(kv, at, config), scoring))

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
    """Equal outputs and gradients for queries of tokens and of FAM, and for keys and values, under every mask."""
    settings = dict(CASES[name])
    tile = settings.pop("tile", 0)
    assert_same(random_case(len(name), **settings), tile, monkeypatch)


def test_bfloat16_is_as_exact_as_its_type() -> None:
    """In bfloat16, outputs and gradients equal those of float32 up to a few bfloat16 roundings."""
    assert_same(random_case(3, K=1, G=2, dtype="bfloat16"), relative=2.0**-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(seed: int, dtype: str, monkeypatch: Any) -> None:
    """Any number of heads, blocks, segments, FAMs and tiles."""
    rng = np.random.default_rng(seed)
    block = int(rng.choice([128, 256, 384]))
    segments = int(rng.integers(0, 4))
    settings = {
        "B": int(rng.integers(1, 5)), "K": int(rng.integers(1, 4)),
        "G": int(rng.integers(1, 4)), "H": int(rng.choice([8, 64, 128, 160])), "block_size": block,
        "memory_segments": segments, "fam_length": int(rng.choice([0, 1, 64, 128])),
        "previous_fams": int(rng.integers(1, 4)), "cap": float(rng.choice([0, 3])),
        "fam_position": str(rng.choice(["last", "float", "zero"])), "stop_gradient": bool(rng.integers(2)),
        # A window of one token without FAM is a softmax over one key, so the queries have no gradient to compare.
        "token_window": int(rng.integers(2, segments * block + 2)) if segments and rng.integers(2) else 0,
    }  # fmt: skip
    tile = int(rng.choice([128, block]))
    assert_same(
        random_case(seed, dtype=dtype, **settings), tile, monkeypatch, tiny.RELATIVE if dtype == "float32" else 2.0**-6
    )


def test_a_training_step_is_the_same_with_the_kernel() -> None:
    """Gradients of the loss with and without the kernel are equal for all weights: scan over layers with remat, FAM's
    recurrence, documents that start within the row, padding."""
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


def test_shapes_of_a_model_need_no_platform() -> None:
    """A configuration for TPU can be planned and its model loaded on a machine where `fused` cannot run; running it
    there is an error."""
    config = tiny.config(attention_kernel="fused", block_size=128)
    assert weights.parameter_shapes(config) == weights.parameter_shapes(tiny.config(block_size=128))
    with pytest.raises(ConfigError, match="'fused' runs on TPU"):
        tiny.whole(config, tiny.parameters(config), tiny.tokens(config, 1, 128))


def test_the_platform_chooses() -> None:
    """`auto` selects the kernel on TPU if its tiles fit; invalid combinations are errors."""
    assert choose("auto", "tpu", 1024) == choose("fused", "tpu", 1024) == "fused"
    assert choose("auto", "tpu", 64) == choose("auto", "cpu", 1024) == choose("auto", "gpu", 1024) == "xla"
    assert choose("xla", "tpu", 1024) == "xla"
    with pytest.raises(ConfigError, match="'fused' runs on TPU, and this is cpu; use 'auto' or 'xla'"):
        choose("fused", "cpu", 1024)
    with pytest.raises(ConfigError, match="multiple of 128, not 200; use 128 or 256"):
        tiny.config(attention_kernel="fused", block_size=200).validate()
