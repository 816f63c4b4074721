"""The loss against plain NumPy."""

import jax
import numpy as np
import pytest

from famjax.train.loss import cross_entropy, weighted_loss
from tests import tiny


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cross_entropy_is_minus_the_log_of_softmax(seed):
    """-log(exp(z_y) / sum exp(z)), in float64, token by token; large scores do not overflow."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, 5, 11)) * 10 ** rng.uniform(-1, 2, (3, 5, 1))
    targets = rng.integers(0, 11, (3, 5))
    got = cross_entropy(logits.astype(np.float32), targets)
    for b in range(3):
        for t in range(5):
            z = logits[b, t] - logits[b, t].max()
            expected = np.log(np.exp(z).sum()) - z[targets[b, t]]
            assert got[b, t] == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_loss_is_the_weighted_mean_and_weight_zero_changes_nothing():
    """sum(w * nll) / sum(w); what stands at positions of weight 0 has no influence, not even a gradient."""
    config = tiny.config()
    params = tiny.parameters(config)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 8, config.d_model)).astype(np.float32)
    positions = np.array([[1, 5, 0], [7, 2, 0]])
    targets = np.array([[3, 9, 0], [16, 4, 0]])
    weights = np.array([[1.0, 0.25, 0.0], [0.5, 1.0, 0.0]], np.float32)

    def loss(hidden, targets):
        return weighted_loss(tiny.build(config, params), hidden, positions, targets, weights).total

    logits = hidden.astype(np.float64) @ np.asarray(params["embedding"], np.float64).T
    nll = [
        weights[b, w] * (np.log(np.exp(logits[b, positions[b, w]]).sum()) - logits[b, positions[b, w], targets[b, w]])
        for b in range(2)
        for w in range(3)
    ]
    assert loss(hidden, targets) == pytest.approx(sum(nll) / weights.sum(), rel=1e-5)
    changed = targets.copy()
    changed[:, 2] = 13
    assert loss(hidden, changed) == loss(hidden, targets)
    gradient = np.asarray(jax.grad(loss)(hidden, targets))
    touched = {(0, 1), (0, 5), (1, 7), (1, 2)}
    for b in range(2):
        for t in range(8):
            assert gradient[b, t].any() == ((b, t) in touched)
