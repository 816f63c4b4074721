"""Reading in pieces of any size equals reading at once; whole = streaming = naive scores."""

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


def naive_scores(config: ModelConfig, params: dict, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log softmax(logits(h_t))[x_(t+1)] by the textbook, in float64, for one text."""
    hidden, _ = tiny.whole(config, params, tokens[None])
    logits = np.asarray(tiny.build(config, params).logits(hidden)[0, :-1], np.float64)
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probability[np.arange(len(tokens) - 1), tokens[1:]], logits.argmax(-1) == tokens[1:]


@pytest.mark.parametrize("config", CONFIGS[:2])
def test_whole_streaming_and_naive_scores_agree(config: ModelConfig) -> None:
    """Texts that end within a block, at its edge, within the first one, and after one token."""
    params = tiny.parameters(config)
    model = tiny.build(config, params)
    lengths = np.array([37, 16, 3, 1])
    tokens = tiny.tokens(config, len(lengths), 37)
    whole = prefill.score_whole(model, tokens, lengths)
    streaming = prefill.score_streaming(model, tokens, lengths, blocks_per_call=3)
    assert whole[0].shape == streaming[0].shape == (4, 36)
    for b, length in enumerate(lengths):
        logprobs, correct = naive_scores(config, params, tokens[b, :length])
        for scores in (whole, streaming):
            tiny.assert_close(scores[0][b, : length - 1], logprobs)
            np.testing.assert_array_equal(scores[1][b, : length - 1], correct)
            assert not scores[0][b, length - 1 :].any() and not scores[1][b, length - 1 :].any()


def test_logits_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few logits may exist at a time, the scores are the same."""
    config = tiny.config()
    model = tiny.build(config, tiny.parameters(config))
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, config.d_model)), jnp.float32)
    following = tiny.tokens(config, 2, 12)
    at_once = prefill.next_token_scores(model, hidden, following)
    monkeypatch.setattr(prefill, "LOGITS_BYTES", 4 * 2 * config.vocab_size * 5)  # 5 columns fit, 4 divide 12
    in_parts = prefill.next_token_scores(model, hidden, following)
    tiny.assert_close(in_parts[0], at_once[0])
    np.testing.assert_array_equal(in_parts[1], at_once[1])


def test_streaming_holds_the_same_memory_and_program_however_long_the_text() -> None:
    """Live bytes on the device do not grow from window 3 to window 40; nothing is compiled again."""
    config = tiny.config()
    model = tiny.build(config, tiny.parameters(config))
    live: list[int] = []

    def note(_: int) -> None:
        live.append(sum(x.nbytes for x in jax.live_arrays()))

    for blocks in (4, 80):
        length = blocks * config.memory.block_size
        before, compiled = len(live), prefill._score_window._cache_size()
        prefill.score_streaming(model, tiny.tokens(config, 2, length), np.full(2, length), 2, note)
    assert prefill._score_window._cache_size() == compiled
    windows = live[before:]
    assert len(windows) == 40
    assert len(set(windows[2:])) == 1


def test_padded_lengths_are_few_and_close() -> None:
    lengths = [prefill.padded_length(n, 4) for n in range(1, 400)]
    assert all(padded >= n and padded % 4 == 0 for n, padded in enumerate(lengths, start=1))
    assert all(padded < 1.5 * n for n, padded in enumerate(lengths, start=1) if n > 8)
    assert len(set(lengths)) <= 14
