"""How a token is drawn, against slow NumPy."""

import jax
import numpy as np
import pytest

from famjax.config import ConfigError
from famjax.infer import sampling
from famjax.infer.settings import Sampling

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(6, 11))).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


def allowed_by_top_k(logits: np.ndarray, k: int) -> set[int]:
    return set(sorted(range(len(logits)), key=lambda i: -logits[i])[:k])


def allowed_by_top_p(logits: np.ndarray, p: float) -> set[int]:
    """Tokens in falling order of probability until the sum reaches p."""
    allowed, total = set(), 0.0
    for i in sorted(range(len(logits)), key=lambda i: -logits[i]):
        allowed.add(i)
        total += softmax(logits)[i]
        if total >= p:
            break
    return allowed


@pytest.mark.parametrize("k", [1, 3, 11, 50])
def test_top_k(k: int) -> None:
    """Exactly the k best keep their scores; all others are excluded."""
    out = np.asarray(sampling.keep_top_k(LOGITS, k))
    for row, logits in zip(out, LOGITS, strict=True):
        assert set(np.flatnonzero(row > -np.inf)) == allowed_by_top_k(logits, k)
        assert (row[row > -np.inf] == logits[row > -np.inf]).all()


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.75, 0.999])
def test_top_p(p: float) -> None:
    """The smallest set of best tokens that reaches p keeps its scores; the best is always among them."""
    out = np.asarray(sampling.keep_top_p(LOGITS, p))
    for row, logits in zip(out, LOGITS, strict=True):
        assert set(np.flatnonzero(row > -np.inf)) == allowed_by_top_p(logits, p)
        assert (row[row > -np.inf] == logits[row > -np.inf]).all()


def test_top_p_after_top_k_counts_what_top_k_left() -> None:
    """Probabilities are those among the tokens still allowed."""
    out = np.asarray(sampling.keep_top_p(sampling.keep_top_k(LOGITS, 3), 0.8))
    for row, logits in zip(out, LOGITS, strict=True):
        best = sorted(allowed_by_top_k(logits, 3))
        assert set(np.flatnonzero(row > -np.inf)) == {best[i] for i in allowed_by_top_p(logits[best], 0.8)}


def test_repetition_penalty() -> None:
    """s / p where s > 0 and s * p elsewhere, for tokens seen, once however often; -1 is no token."""
    recent = np.array([[-1, 2, 2], [-1, -1, -1], [0, 10, 5], [3, 3, 3], [1, 2, 3], [9, 8, 7]], np.int32)
    desired = LOGITS.copy()
    for row, tokens in zip(desired, recent, strict=True):
        for t in {t for t in tokens if t >= 0}:
            row[t] = row[t] / np.float32(1.7) if row[t] > 0 else row[t] * np.float32(1.7)
    np.testing.assert_allclose(sampling.penalise(LOGITS, recent, 1.7), desired, rtol=1e-6)


def draw(logits: np.ndarray, settings: Sampling, seed: int = 0, samples: np.ndarray | None = None) -> np.ndarray:
    B = len(logits)
    samples = np.arange(B, dtype=np.int32) if samples is None else samples
    keys = sampling.row_keys(np.uint32(seed), samples, np.full(B, 5, np.int32))
    return np.asarray(sampling.sample(logits, np.full((B, 4), -1, np.int32), keys, settings))


def test_greedy_and_its_limits() -> None:
    """Temperature 0, a temperature near it, and top_k 1 all take the best token."""
    best = LOGITS.argmax(axis=-1)
    for settings in (Sampling(), Sampling(temperature=1e-30), Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-6)):
        np.testing.assert_array_equal(draw(LOGITS, settings), best)


def test_frequencies_are_the_probabilities() -> None:
    """Of 20,000 draws each token takes softmax(s / T), within four standard deviations."""
    n, logits = 20_000, LOGITS[0]
    drawn = draw(np.tile(logits, (n, 1)), Sampling(temperature=1.5))
    p = softmax(logits / 1.5)
    counts = np.bincount(drawn, minlength=len(p))
    assert (np.abs(counts - n * p) < 4 * np.sqrt(n * p * (1 - p)) + 1).all()


def test_draws_depend_on_seed_sample_and_position_alone() -> None:
    """A row draws the same among others, in another place and alone; another seed or position draws otherwise."""
    n = 64
    logits = np.zeros((n, 50), np.float32)
    order = np.random.default_rng(1).permutation(n).astype(np.int32)
    settings = Sampling(temperature=1.0)
    drawn = draw(logits, settings)
    np.testing.assert_array_equal(draw(logits, settings, samples=order), drawn[order])
    assert draw(logits[:1], settings, samples=np.array([7], np.int32))[0] == drawn[7]
    assert (draw(logits, settings, seed=1) != drawn).mean() > 0.8
    keys = sampling.row_keys(np.uint32(0), np.zeros(n, np.int32), np.arange(n, dtype=np.int32))
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == n


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"temperature": 1e39}, "temperature is 1e[+]39; it must be 0, or 1e-30 to 1e[+]30"),
        ({"temperature": 1e-45}, "temperature is 1e-45; it must be 0, or 1e-30"),
        ({"repetition_penalty": 1e39}, "repetition_penalty is 1e[+]39"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty is 1e-45"),
        ({"top_k": 2**31}, "top_k is 2147483648; it must be at most"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
    ],
)
def test_settings_that_cannot_work(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**settings).validate()
