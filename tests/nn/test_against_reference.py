"""Layer-major and block-major evaluation against the float64 NumPy reference of the paper's equations."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from famjax.attention.memory import broadcast_rows
from famjax.cli.gin_config import load_model_config
from famjax.config import ModelConfig
from famjax.nn.weights import create, parameters
from tests import reference, tiny

# Blocks of 4 tokens: less than one block, exactly one, and several with a partial last one.
COUNTS = (1, 3, 4, 22)

CASES = {
    "fam0-segments0-single-head": tiny.config(fam_length=0, memory_segments=0, num_heads=1, num_kv_heads=1),
    "fam0-segments1": tiny.config(fam_length=0, memory_segments=1),
    "fam0-segments3-grouped": tiny.config(fam_length=0, memory_segments=3, num_heads=4),
    "fam2-segments0-multi-query": tiny.config(memory_segments=0, num_heads=3, num_kv_heads=1),
    "fam2-segments1": tiny.config(),
    "fam2-segments3-grouped": tiny.config(memory_segments=3, num_heads=4),
    "fam-fills-block-gelu-untied": tiny.config(fam_length=4, activation="gelu", tie_embeddings=False),
    "two-fams": tiny.config(previous_fams=2, memory_segments=0),
    "three-fams-float": tiny.config(previous_fams=3, fam_position="float"),
    "fam-bounded": tiny.config(fam_max_rms=1.2, memory_segments=0),
    "write-gate-some-layers": tiny.config(fam_update="gated", fam_layers="-+", num_layers=4),
    "write-gate-two-fams": tiny.config(fam_update="gated", previous_fams=2, zero_first_residual=False),
    "first-residual-two-fams": tiny.config(zero_first_residual=False, previous_fams=2),
    "gate-grouped": tiny.config(fam_gate=True, num_heads=4, fam_layers="-+", num_layers=4),
    "gate-unrolled": tiny.config(fam_gate=True, memory_segments=0, scan_layers=False, previous_fams=2),
    "two-fams-zero": tiny.config(previous_fams=2, fam_position="zero"),
    "prefix-qk-norm": tiny.config(fam_init="prefix", qk_norm=True),
    "window5-segments2": tiny.config(token_window=5, memory_segments=2),
    "window2-layernorm": tiny.config(token_window=2, norm="layernorm", norm_eps=1e-2, qk_norm=True),
    "one-block-at-a-time-stop-gradient": tiny.config(stop_gradient=True, remat="full"),
    "unrolled-ungated-relu": tiny.config(scan_layers=False, remat="dots", gated_ff=False, activation="relu"),
    "biases-plus-one-gelu-exact": tiny.config(
        qkv_bias=True, output_bias=True, ff_bias=True, norm_plus_one=True, activation="gelu_exact", gated_ff=False
    ),
    "as-gemma2": tiny.config(
        num_layers=3,
        layer_pattern=("local", "global"),
        local_window=3,
        fam_layers="global",
        post_norms=True,
        norm_plus_one=True,
        scale_embeddings=True,
        attention_cap=0.5,
        logit_cap=2.0,
        attention_scale=0.3,
        activation="gelu",
    ),
    "as-gemma3": tiny.config(
        num_layers=3,
        layer_pattern=("local", "global"),
        local_window=6,
        local_rope_base=10.0,
        attention_scale=0.2,
        qk_norm=True,
        rope_scaling="linear",
        rope_factor=8.0,
        memory_segments=3,
    ),
    "fam-in-some-layers-llama3-rope": tiny.config(
        num_layers=4,
        fam_layers="-+",
        scan_layers=False,
        rope_scaling="llama3",
        rope_factor=8.0,
        rope_original_length=20,
        head_dim=8,
    ),
    "parallel-ungated": tiny.config(parallel_layers=True, gated_ff=False, num_kv_heads=1),
    "block-of-one": tiny.config(block_size=1, fam_length=1, memory_segments=2),
}


def assert_matches(config: ModelConfig, hidden: Any, state: Any, outcomes: list[reference.Outcome]) -> None:
    """Outputs, position and FAM of every row are within 1e-5 of the largest value."""
    for hidden_TD, row, outcome in zip(hidden, tiny.visible(config, state), outcomes, strict=True):
        count = len(outcome.hidden_TD)
        tiny.assert_close(hidden_TD[:count], outcome.hidden_TD)
        assert row["position"] == count
        if config.memory.fam_length:
            has = np.array([config.has_fam(index) for index in range(config.num_layers)])
            tiny.assert_close(row["fam"][has], outcome.fam_LPFD[has])


@pytest.mark.parametrize("name", CASES)
def test_both_orders(name: str) -> None:
    """Paper section 2: outputs and final FAM of whole sequences, and of the same texts in random pieces.

    Documents start with the learned prompt, so the first update has no residual.
    """
    config = CASES[name]
    for seed in range(3):
        params, tokens = tiny.parameters(config, seed), tiny.tokens(config, len(COUNTS), max(COUNTS), seed)
        outcomes = [reference.run(config, params, row[:n]) for row, n in zip(tokens, COUNTS, strict=True)]
        hidden, state = tiny.whole(config, params, tokens, count_B=np.array(COUNTS, np.int32))
        assert_matches(config, hidden, state, outcomes)
        pieces = np.random.default_rng(seed)
        hidden, state = tiny.stream(config, params, tokens, sizes=pieces, counts_B=COUNTS)
        assert_matches(config, hidden, state, outcomes)


@pytest.mark.parametrize("name", ["fam2-segments0-multi-query", "fam2-segments1", "three-fams-float"])
def test_passed_in_fam(name: str) -> None:
    """A FAM from an earlier text replaces the prompt and is the residual of the first update (paper section 2)."""
    config = CASES[name]
    for seed in range(2):
        params, tokens = tiny.parameters(config, seed), tiny.tokens(config, len(COUNTS), max(COUNTS), seed)
        shape = (config.num_layers, config.memory.previous_fams, config.memory.fam_length, config.d_model)
        fam = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        passed = (fam, np.int32(7))
        outcomes = [reference.run(config, params, row[:n], fam) for row, n in zip(tokens, COUNTS, strict=True)]
        without = reference.run(config, params, tokens[-1])
        assert np.abs(without.hidden_TD - outcomes[-1].hidden_TD).max() > 0.01
        counts = np.array(COUNTS, np.int32)
        assert_matches(config, *tiny.whole(config, params, tokens, passed=passed, count_B=counts), outcomes)
        state = broadcast_rows(tiny.initial_state(config, params, 1, passed), len(COUNTS))
        assert_matches(config, *tiny.stream(config, params, tokens, state, counts_B=COUNTS), outcomes)


def test_the_model_of_the_quickstart() -> None:
    """`gin/models/fam_tiny.gin` as created and compiled for users: two blocks and part of a third."""
    gin_file = Path(__file__).parents[2] / "gin" / "models" / "fam_tiny.gin"
    config = load_model_config([str(gin_file)])
    model = create(config, seed=1)
    tokens = tiny.tokens(config, 1, 2 * config.memory.block_size + 9)
    outcome = reference.run(config, parameters(model), tokens[0])
    hidden, state = jax.jit(lambda tokens: model(tokens))(tokens)
    assert_matches(config, hidden, state, [outcome])
    read = jax.jit(lambda tokens, state: model.read(tokens, state))
    parts, state = [], jax.jit(lambda: model.initial_state(1))()
    for part in np.split(tokens, [64, 128], axis=1):
        hidden, state = read(part, state)
        parts.append(hidden)
    assert_matches(config, np.concatenate(parts, axis=1), state, [outcome])


@pytest.mark.parametrize(("tied", "cap"), [(True, 0.0), (False, 0.0), (True, 0.7)])
def test_logits(tied: bool, cap: float) -> None:
    """Logits are hidden states times the embedding, or times a separate output projection; then capped."""
    config = tiny.config(tie_embeddings=tied, logit_cap=cap)
    params = tiny.parameters(config)
    hidden = np.random.default_rng(0).normal(size=(3, config.d_model)).astype(np.float32)
    tiny.assert_close(tiny.build(config, params).logits(hidden), reference.logits(config, params, hidden))
