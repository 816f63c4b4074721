"""Both orders of the model against the float64 NumPy reference of the paper's equations."""

import numpy as np
import pytest

from famjax.config import ModelConfig
from tests import reference, tiny

# One block and less, several, and a last block that is not full (blocks of 4 tokens).
LENGTHS = (1, 3, 4, 22)

MEMORIES = {
    f"fam{F}-segments{M}": tiny.config(fam_length=F, memory_segments=M) for F in (0, 2) for M in (0, 1, 3)
}
HEADS = {
    "single-head": tiny.config(num_heads=1, num_kv_heads=1),
    "grouped": tiny.config(num_heads=4, num_kv_heads=2),
    "multi-query": tiny.config(num_heads=3, num_kv_heads=1),
    "fam-fills-block": tiny.config(fam_length=4, memory_segments=3, num_heads=4, num_kv_heads=2),
}
SWITCHES = {
    "fam-position-float": tiny.config(fam_position="float"),
    "fam-position-zero": tiny.config(fam_position="zero"),
    "two-fams": tiny.config(previous_fams=2, memory_segments=0),
    "three-fams-float": tiny.config(previous_fams=3, fam_position="float"),
    "two-fams-zero": tiny.config(previous_fams=2, fam_position="zero"),
    "prefix": tiny.config(fam_init="prefix"),
    "token-window": tiny.config(token_window=5, memory_segments=2),
    "token-window-within-block": tiny.config(token_window=2, memory_segments=1, fam_length=0),
    "stop-gradient": tiny.config(stop_gradient=True),
    "qk-norm": tiny.config(qk_norm=True, num_heads=4),
    "layernorm": tiny.config(norm="layernorm", norm_eps=1e-2),
    "ungated-relu": tiny.config(gated_ff=False, activation="relu"),
    "gelu": tiny.config(activation="gelu"),
    "untied": tiny.config(tie_embeddings=False),
    "unrolled": tiny.config(scan_layers=False),
    "remat-dots": tiny.config(remat="dots"),
    "remat-full": tiny.config(remat="full"),
    "few-blocks-at-a-time": tiny.config(attention_budget_mib=1e-6, memory_segments=2),
    "block-of-one": tiny.config(block_size=1, fam_length=1, memory_segments=2),
}
CASES = MEMORIES | HEADS | SWITCHES


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[ModelConfig, int]:
    """A configuration and a seed of its own."""
    return CASES[request.param], list(CASES).index(request.param)


def expected(config: ModelConfig, params: dict, tokens_BT: np.ndarray, **kwargs) -> list[reference.Outcome]:
    return [reference.run(config, params, row, **kwargs) for row in tokens_BT]


def assert_matches(config: ModelConfig, hidden: np.ndarray, state, outcomes: list[reference.Outcome], counts) -> None:
    for b, (outcome, count) in enumerate(zip(outcomes, counts, strict=True)):
        tiny.assert_close(hidden[b, :count], outcome.hidden_TD)
        row = tiny.visible(config, state)[b]
        assert row["position"] == count
        if config.memory.fam_length:
            tiny.assert_close(row["fam"], outcome.fam_LPFD)


def test_layer_major(case: tuple[ModelConfig, int]) -> None:
    """Paper section 2, whole sequences of several lengths in one batch: outputs and the final FAM.

    The learned prompt comes first, with the zero residual; the last block may be partial.
    """
    config, seed = case
    params, tokens = tiny.parameters(config, seed), tiny.tokens(config, len(LENGTHS), max(LENGTHS), seed)
    hidden, state = tiny.whole(config, params, tokens, count_B=np.array(LENGTHS, np.int32))
    outcomes = [reference.run(config, params, row[:n]) for row, n in zip(tokens, LENGTHS, strict=True)]
    assert_matches(config, hidden, state, outcomes, LENGTHS)


def test_streaming(case: tuple[ModelConfig, int]) -> None:
    """Paper section 2, the same texts in random pieces."""
    config, seed = case
    params, tokens = tiny.parameters(config, seed), tiny.tokens(config, len(LENGTHS), max(LENGTHS), seed)
    hidden, state = tiny.stream(config, params, tokens, sizes=np.random.default_rng(seed), counts_B=LENGTHS)
    outcomes = [reference.run(config, params, row[:n]) for row, n in zip(tokens, LENGTHS, strict=True)]
    assert_matches(config, hidden, state, outcomes, LENGTHS)
