"""Scores of tokens: whole = streaming = naive, independent of the other rows of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.config import ModelConfig
from famjax.infer import scoring
from tests import tiny

CONFIGS = [
    pytest.param(tiny.config(), id="fam"),
    pytest.param(tiny.config(fam_length=0, memory_segments=2), id="bswa"),
]


def naive_scores(config: ModelConfig, params: dict, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log softmax(logits(h_t))[x_(t+1)] by the textbook, in float64, for one text."""
    hidden, _ = tiny.whole(config, params, tokens[None])
    logits = np.asarray(tiny.build(config, params).logits(hidden)[0, :-1], np.float64)
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probability[np.arange(len(tokens) - 1), tokens[1:]], logits.argmax(-1) == tokens[1:]


@pytest.mark.parametrize("config", CONFIGS)
def test_whole_streaming_and_naive_scores_agree(config: ModelConfig) -> None:
    """Texts that end within a block, at its boundary, within the first one, and after one token."""
    params = tiny.parameters(config)
    model = tiny.build(config, params)
    lengths = np.array([37, 16, 3, 1])
    tokens = tiny.tokens(config, len(lengths), 37)
    whole = scoring.score_whole(model, tokens, lengths)
    streaming = tiny.scored(model, tokens, lengths, blocks_per_call=3)
    assert whole[0].shape == streaming[0].shape == (4, 36)
    for b, length in enumerate(lengths):
        logprobs, correct = naive_scores(config, params, tokens[b, :length])
        for scores in (whole, streaming):
            tiny.assert_close(scores[0][b, : length - 1], logprobs)
            np.testing.assert_array_equal(scores[1][b, : length - 1], correct)
            assert not scores[0][b, length - 1 :].any() and not scores[1][b, length - 1 :].any()


@pytest.mark.parametrize("rows", [1, 3])
def test_documents_that_take_turns_in_a_row_know_nothing_of_each_other(rows: int) -> None:
    """However few rows read them, each document of a mixed lot gets the scores that it gets alone: of lengths
    below, at and above a window of 8 tokens, one token and none."""
    config = tiny.config()
    params = tiny.parameters(config)
    model = tiny.build(config, params)
    documents = [tiny.tokens(config, 1, n, seed=n)[0] for n in (3, 8, 30, 1, 9, 16, 0, 17)]
    read: list[int] = []
    found = {
        i: scores
        for i, *scores in scoring.score_documents(model, documents, rows, blocks_per_call=2, on_tokens=read.append)
    }
    assert sorted(found) == list(range(len(documents))) and sum(read) == sum(map(len, documents))
    for i, document in enumerate(documents):
        logprobs, correct = found[i]
        assert len(logprobs) == len(correct) == max(len(document) - 1, 0)
        if len(document) > 1:
            wanted = naive_scores(config, params, document)
            tiny.assert_close(logprobs, wanted[0])
            np.testing.assert_array_equal(correct, wanted[1])


def test_rows_are_as_many_as_the_longest_document_leaves_work_for() -> None:
    """With one document of 100 tokens, 19 of 10 fill two more rows; equal documents fill all rows."""
    of = lambda *lengths: [np.zeros(n, np.int32) for n in lengths]
    assert scoring.useful_rows(of(100, *[10] * 19), 64) == 3
    assert scoring.useful_rows(of(*[50] * 9), 64) == 9 and scoring.useful_rows(of(*[50] * 9), 4) == 4
    assert scoring.useful_rows(of(0, 0), 8) == 2 and scoring.useful_rows([], 8) == 1


def test_no_documents_have_no_scores() -> None:
    """Nothing is read, nothing fails."""
    config = tiny.config()
    assert list(scoring.score_documents(tiny.build(config, tiny.parameters(config)), [], 4)) == []


def test_logits_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few logits may exist at a time, the scores are the same."""
    config = tiny.config()
    model = tiny.build(config, tiny.parameters(config))
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, config.d_model)), jnp.float32)
    following = tiny.tokens(config, 2, 12)
    at_once = scoring.next_token_scores(model, hidden, following)
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 4 * 2 * config.vocab_size * 5)  # 5 columns fit, 4 divide 12
    in_parts = scoring.next_token_scores(model, hidden, following)
    tiny.assert_close(in_parts[0], at_once[0])
    np.testing.assert_array_equal(in_parts[1], at_once[1])


@pytest.mark.usefixtures("collected")
def test_streaming_holds_the_same_memory_and_program_however_long_the_text() -> None:
    """Live bytes on the device do not grow from window 3 to window 40; nothing is compiled again."""
    config = tiny.config()
    model = tiny.build(config, tiny.parameters(config))
    live: list[int] = []

    def note(_: int) -> None:
        live.append(sum(x.nbytes for x in jax.live_arrays()))

    for blocks in (4, 80):
        length = blocks * config.memory.block_size
        before, compiled = len(live), scoring._score_window._cache_size()
        tiny.scored(model, tiny.tokens(config, 2, length), [length] * 2, blocks_per_call=2, on_tokens=note)
    assert scoring._score_window._cache_size() == compiled
    windows = live[before:]
    assert len(windows) == 40
    assert len(set(windows[2:])) == 1


def test_padded_lengths_are_few_and_close() -> None:
    lengths = [scoring.padded_length(n, 4) for n in range(1, 400)]
    assert all(padded >= n and padded % 4 == 0 for n, padded in enumerate(lengths, start=1))
    assert all(padded < 1.5 * n for n, padded in enumerate(lengths, start=1) if n > 8)
    assert len(set(lengths)) <= 14
