"""Rows of different requests in one batch: each gets what it gets alone from `decode.generate`."""

import jax
import numpy as np
import pytest
from flax import nnx

from famjax.infer import decode, rows, session
from famjax.infer.sampling import RowSampling, row_keys, sample, sample_rows
from famjax.infer.settings import Sampling
from tests import tiny
from tests.infer.test_decode import CONFIGS, NEW, make, model_of, prompts, read

SETTINGS = [
    Sampling(), Sampling(0.7), Sampling(1.3, top_k=3), Sampling(0.9, top_p=0.6), Sampling(1.1, 5, 0.8, 1.3),
    Sampling(repetition_penalty=2.0), Sampling(1e-30), Sampling(1.0, top_k=1000),
]  # fmt: skip


def of(settings: list[Sampling], seeds: list[int], samples: list[int]) -> RowSampling:
    column = lambda name, dtype: np.array([getattr(one, name) for one in settings], dtype)
    return RowSampling(
        np.array(seeds, np.uint32), np.array(samples, np.int32), column("temperature", np.float32),
        column("top_k", np.int32), column("top_p", np.float32), column("repetition_penalty", np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("ties", [False, True])
def test_a_row_draws_as_alone(ties: bool) -> None:
    """sample_rows(logits)[b] = sample(logits[b]) with the row's settings and seed, for 40 draws each; with ties too."""
    rng = np.random.default_rng(0)
    n = len(SETTINGS)
    recent = rng.integers(-1, 23, (n, 6)).astype(np.int32)
    together, alone = jax.jit(sample_rows), jax.jit(sample, static_argnums=3)
    for turn in range(40):
        logits = (2 * rng.normal(size=(n, 23))).astype(np.float32)
        logits = np.round(logits) if ties else logits
        seeds, samples = list(range(turn, turn + n)), [i % 3 for i in range(n)]
        position = np.full(n, turn, np.int32)
        drawn = np.asarray(together(logits, recent, position, of(SETTINGS, seeds, samples)))
        for i, settings in enumerate(SETTINGS):
            one = slice(i, i + 1)
            keys = row_keys(np.uint32(seeds[i]), np.array(samples[one], np.int32), position[one])
            assert drawn[i] == np.asarray(alone(logits[one], recent[one], keys, settings))[0], settings


def test_rows_come_and_go() -> None:
    """Rows with settings, stops and limits of their own, put into a batch after different numbers of calls, make the
    tokens that `generate` makes for each alone; a stop of one row ends no other."""
    config = CONFIGS["fam"]
    model = model_of(config)
    graphdef, params = nnx.split(model)
    n = 3
    texts, settings = prompts(config)[1:4], [SETTINGS[0], SETTINGS[4], SETTINGS[3]]
    alone = []
    for text, one, seed in zip(texts, settings, range(n), strict=True):
        made, _ = make(model, read(model, [[text]]), NEW, one, seed=seed, sample_B=[2])
        alone.append(made[0])
    stops = [[alone[i][6:8]] if i % 2 else [] for i in range(n)]
    wanted = []
    for i, text in enumerate(texts):
        made, _ = make(model, read(model, [[text]]), NEW, settings[i], seed=i, sample_B=[2], stops=stops[i])
        wanted.append(made[0])
    stops_B = np.full((n, 2, 8), -1, np.int32)
    for row, some in zip(stops_B, stops, strict=True):
        if some:
            row[:1, -2:] = decode.stop_array(some)
    batch, made = session.start(model, n), [[] for _ in texts]
    sampling, ended = of(settings, list(range(n)), [2] * n), np.zeros(n, bool)
    for call in range(20):
        if call < n:
            batch = session.put_row(batch, call, read(model, [[texts[call]]]))
        left = np.array([NEW - len(row) if i <= call else 0 for i, row in enumerate(made)])
        limit = np.where(ended, 0, np.minimum(left, 3)).astype(np.int32)
        before = np.array([len(row) for row in made], np.int32)
        tokens, _, count, stopped, batch = rows.decode_rows(
            graphdef, params, batch, limit, before, stops_B, sampling, room=4
        )
        ended |= np.asarray(stopped)
        for row, new, k in zip(made, np.asarray(tokens), np.asarray(count), strict=True):
            row += new[:k].tolist()
    assert made == wanted
    assert any(len(row) < NEW for row in wanted)


def test_scores_are_log_probabilities() -> None:
    """log softmax of the layer-major model, of read and of made tokens, and the best three at each place."""
    config = CONFIGS["fam"]
    model = model_of(config)
    graphdef, params = nnx.split(model)
    text = tiny.tokens(config, 1, 11)[0]
    tokens = np.zeros((1, 16), np.int32)
    tokens[0, :10], following = text[:10], np.zeros((1, 16), np.int32)
    following[0, :10] = text[1:]
    start = session.start(model)
    read_scores, memory = rows.read_rows(
        graphdef, params, tokens, following, np.array([10], np.int32), start.memory, top=3
    )
    recent = np.full((1, 128), -1, np.int32)
    recent[0, -11:] = text
    made, made_scores, count, _, _ = rows.decode_rows(
        graphdef, params, session.Session(memory, recent), np.array([5], np.int32), np.zeros(1, np.int32),
        np.full((1, 1, 1), -1, np.int32), of([Sampling(1.0)], [3], [0]), room=8, top=3,
    )  # fmt: skip
    assert count.tolist() == [5]
    whole = np.concatenate([text, np.asarray(made)[0, :5]])
    hidden, _ = tiny.whole(config, tiny.parameters(config), whole[None, :-1])
    logits = np.asarray(model.logits(hidden[0]), np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for scores, begin, n in ((read_scores, 0, 10), (made_scores, 10, 5)):
        for i in range(n):
            place = logprobs[begin + i]
            np.testing.assert_allclose(scores.logprob[0, i], place[whole[begin + i + 1]], atol=1e-4)
            order = np.argsort(-place)[:3]
            assert np.asarray(scores.best)[0, i].tolist() == order.tolist()
            np.testing.assert_allclose(scores.best_logprob[0, i], place[order], atol=1e-4)
