"""Contexts that begin alike are read once, and give what each of them gives alone."""

import numpy as np
import pytest

from famjax.infer import decode, prefill, prefixes, session
from famjax.infer.settings import Sampling
from tests import tiny
from tests.infer.test_scoring import naive_scores

CONFIG = tiny.config()
PARAMS = tiny.parameters(CONFIG)
MODEL = tiny.build(CONFIG, PARAMS)


def whole_scores(context: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`naive_scores` of the text after its context, padded to one length with tokens that it cannot see."""
    tokens = np.concatenate([context, text, np.zeros(100 - len(context) - len(text), np.int32)])
    at = slice(len(context) - 1, len(context) + len(text) - 1)
    logprobs, correct = naive_scores(CONFIG, PARAMS, tokens)
    return logprobs[at], correct[at]


def contexts(seed: int) -> list[np.ndarray]:
    """Two books of 37 and 22 tokens with questions behind them, one question twice, a book that another continues,
    and texts that have nothing in common with any."""
    rng = np.random.default_rng(seed)
    text = lambda n: rng.integers(0, CONFIG.vocab_size, n).astype(np.int32)
    one, other = text(37), text(22)
    questions = [np.concatenate([book, text(n)]) for book, n in ((one, 3), (other, 9), (one, 11), (one, 1), (other, 2))]
    return [*questions, questions[2], one, np.concatenate([one, text(40)]), text(1), text(5)]


@pytest.mark.parametrize(("seed", "rows"), [(0, 1), (1, 3)])
def test_continuations_score_as_in_whole_texts(seed: int, rows: int) -> None:
    """log p of continuations of 1 to 15 tokens is what a whole pass over context and continuation gives, at any
    number of rows, though the shared beginnings are read once: no padding and no neighbour enters a memory."""
    some = contexts(seed)
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, CONFIG.vocab_size, n).astype(np.int32) for n in rng.choice([1, 5, 15], len(some))]
    read: list[int] = []
    found = {i: scores for i, *scores in prefixes.score_continuations(MODEL, some, texts, rows, on_tokens=read.append)}
    assert sorted(found) == list(range(len(some)))
    for i, (context, text) in enumerate(zip(some, texts, strict=True)):
        logprobs, correct = whole_scores(context, text)
        tiny.assert_close(found[i][0], logprobs)
        np.testing.assert_array_equal(found[i][1], correct)
    plan = prefixes.reading_plan(some, CONFIG.memory.block_size)
    assert plan.given == sum(map(len, some))
    distinct = {tuple(context[:n]) for context in some for n in range(1, len(context) + 1)}
    assert plan.read == len(distinct)
    # A context's last token waits to be read, with each continuation.
    assert sum(read) <= plan.read + sum(map(len, texts)) + len(texts)


@pytest.mark.parametrize(("seed", "rows", "sampling"), [(0, 2, Sampling()), (1, 8, Sampling(temperature=1.0))])
def test_answers_are_those_of_each_context_alone(seed: int, rows: int, sampling: Sampling) -> None:
    """Tokens, also sampled ones, do not depend on the other rows; each row has its own maximum."""
    some = contexts(seed)
    limits = [1 + i % 4 for i in range(len(some))]
    samples = list(range(len(some)))
    found = {
        i: tokens
        for i, tokens, _ in prefixes.generate_continuations(
            MODEL, some, limits, rows, sampling=sampling, seed=7, samples=samples
        )
    }
    for i, context in enumerate(some):
        alone = prefill.prefill(MODEL, session.start(MODEL), [[context]])
        made = decode.generate(MODEL, alone, limits[i], sampling, seed=7, sample_B=[i])
        np.testing.assert_array_equal(found[i], np.concatenate([step.tokens[0] for step in made]))


def test_answers_stop_one_by_one() -> None:
    """An answer ends with a stop sequence, or when `finished` is true, and the others continue."""
    some = contexts(3)
    free = {i: tokens for i, tokens, _ in prefixes.generate_continuations(MODEL, some, 30, 4)}
    stop = int(free[1][2])
    enough = lambda i, tokens: i == 4 and len(tokens) >= 5
    for i, tokens, stopped in prefixes.generate_continuations(MODEL, some, 30, 4, stops=[[stop]], finished=enough):
        at = np.flatnonzero(free[i] == stop)
        if len(at) and not (i == 4 and at[0] >= 5):
            np.testing.assert_array_equal(tokens, free[i][: at[0] + 1])
        elif i != 4:
            assert len(tokens) == 30
        np.testing.assert_array_equal(tokens, free[i][: len(tokens)])
        assert stopped == (bool(len(at)) or i == 4)
        assert i != 4 or 5 <= len(tokens) < 30


def test_a_thousand_nested_contexts_hold_few_memories() -> None:
    """Each context continues the one before, as the turns of a talk do: all are read as one text."""
    text = tiny.tokens(CONFIG, 1, 3000)[0]
    nested = [text[:n] for n in range(3, 3001, 3)]
    assert prefixes.reading_plan(nested, CONFIG.memory.block_size).read == 3000


def test_a_fork_that_saves_nothing_is_no_fork() -> None:
    """With blocks of 64, a beginning of 3 tokens that two contexts share is read twice; 8 tokens are read once."""
    of = lambda shared: [np.array([*range(shared), 30 + i, 40]) for i in range(2)]
    assert prefixes.reading_plan(of(3), 64).read == 10
    assert prefixes.reading_plan(of(8), 64).read == 12


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(ValueError, match="context 1 has no token"):
        list(prefixes.score_continuations(MODEL, [np.array([1]), np.zeros(0, int)], [np.array([1])] * 2))
