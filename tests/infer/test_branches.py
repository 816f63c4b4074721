"""Continuing a prefix that was prefilled once equals reading the whole text, for scores and for answers."""

import numpy as np
import pytest

from famjax.infer.branches import Branch, generate_branches, read_prefixes, score_branches
from famjax.infer.decode import generate
from famjax.infer.prefill import prefill
from famjax.infer.scoring import score_documents
from famjax.infer.session import join_rows, start, take_row
from famjax.infer.settings import RECENT
from tests import tiny

CONFIG = tiny.config(block_size=16, memory_segments=1)


def texts(lengths, seed):
    return [tiny.tokens(CONFIG, 1, n, seed + i)[0] for i, n in enumerate(lengths)]


@pytest.mark.parametrize("seed", [0, 1])
def test_branches_score_as_whole_texts(seed):
    """Prefixes that end in the middle, at the edge and before the edge of a block, of one token, and longer than a
    window; branches of one token, over an edge, and longer than a short window; no prefix at all."""
    model = tiny.build(CONFIG, tiny.parameters(CONFIG, seed))
    prefixes = texts([37, 1, 16, 17, 300, 33], seed)
    tails = texts([1, 2, 5, 40, 17], seed + 50)
    sessions = dict(read_prefixes(model, prefixes, rows=4))
    assert sorted(sessions) == list(range(6))
    for i, tokens in enumerate(prefixes):  # the last 128 tokens, which a repetition penalty needs
        padded = np.concatenate([np.full(RECENT, -1), tokens])
        np.testing.assert_array_equal(sessions[i].recent, padded[None, -RECENT:])
    pairs = [(p, t) for p in range(6) for t in range(5)]
    branches = [Branch(sessions[p], tails[t]) for p, t in pairs] + [Branch(None, tails[3])]
    whole = [np.concatenate([prefixes[p], tails[t]]) for p, t in pairs] + [tails[3]]
    expected = {i: (logprobs, correct) for i, logprobs, correct in score_documents(model, whole, 4)}
    seen = set()
    for i, logprobs, correct in score_branches(model, branches, rows=4):
        n = len(branches[i].tokens) - (branches[i].session is None)
        tiny.assert_close(logprobs, expected[i][0][-n:])
        assert (correct == expected[i][1][-n:]).mean() > 0.9  # ties within rounding may fall either way
        seen.add(i)
    assert seen == set(range(len(branches)))


@pytest.mark.parametrize("seed", [0, 1])
def test_branches_are_answered_as_whole_texts(seed):
    """Greedy answers, with and without a prefix, in a batch that is not full; a stop ends one row only."""
    model = tiny.build(CONFIG, tiny.parameters(CONFIG, seed))
    prefixes, tails = texts([37, 16], seed), texts([3, 20], seed + 50)
    sessions = dict(read_prefixes(model, prefixes, rows=2))
    branches = [Branch(sessions[p], t) for p in range(2) for t in tails] + [Branch(None, tails[1])]
    branches.append(Branch(sessions[0], tails[0][:0]))
    whole = [np.concatenate([prefixes[p], t]) for p in range(2) for t in tails] + [tails[1], prefixes[0]]
    alone = []
    for tokens in whole:
        parts = generate(model, prefill(model, start(model), [[tokens]]), 12)
        alone.append(np.concatenate([made.tokens[0] for made in parts]))
    got = {i: (made, stopped) for i, made, stopped in generate_branches(model, branches, 4, 12)}
    for i, expected in enumerate(alone):
        np.testing.assert_array_equal(got[i][0], expected)
        assert not got[i][1]
    stop = alone[0][4:6].tolist()
    end = next(n for n in range(2, 13) if alone[0][n - 2 : n].tolist() == stop)
    for i, made, stopped in generate_branches(model, branches, 4, 12, stops=[stop]):
        if i == 0:
            assert stopped and made.tolist() == alone[0][:end].tolist()
        elif not stopped:
            np.testing.assert_array_equal(made, alone[i])


def test_rows_joined_are_the_rows_taken_apart():
    """join_rows undoes take_row, and a prefix without a token is refused."""
    model = tiny.build(CONFIG, tiny.parameters(CONFIG))
    both = prefill(model, start(model, 2), [[t] for t in texts([9, 40], 0)])
    again = join_rows([take_row(both, 1), take_row(both, 0)])
    swapped = join_rows([take_row(again, 1), take_row(again, 0)])
    tiny.assert_same_memory(CONFIG, swapped.memory, both.memory)
    np.testing.assert_array_equal(swapped.recent, both.recent)
    with pytest.raises(ValueError, match="at least one token"):
        next(read_prefixes(model, [np.zeros(0, np.int32)], 1))
