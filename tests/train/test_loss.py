"""The loss against plain NumPy."""

import jax
import numpy as np
import pytest

from famjax.train.loss import cross_entropy, divergence, weighted_loss
from tests import tiny


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cross_entropy_is_minus_the_log_of_softmax(seed):
    """-log(exp(z_y) / sum exp(z)), in float64, token by token; large logits do not overflow."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, 5, 11)) * 10 ** rng.uniform(-1, 2, (3, 5, 1))
    targets = rng.integers(0, 11, (3, 5))
    got = cross_entropy(logits.astype(np.float32), targets)
    for b in range(3):
        for t in range(5):
            z = logits[b, t] - logits[b, t].max()
            expected = np.log(np.exp(z).sum()) - z[targets[b, t]]
            assert got[b, t] == pytest.approx(expected, rel=1e-5, abs=1e-4)


def in_chunks(config, params, hidden, batch, **settings):
    """(loss, correct) and gradients with respect to weights and hidden states."""

    def loss(params, hidden):
        out = weighted_loss(tiny.build(config, params), hidden, *batch, **settings)
        return out.total, out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, hidden)
    return out, grads


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("tokens_at_once", [3, 4, 10, 1])
def test_the_loss_in_chunks_is_the_loss(everywhere, tokens_at_once):
    """Loss, z-loss, predictions and gradients of both, for any chunk size, also with a partly filled chunk."""
    config = tiny.config(tie_embeddings=everywhere)
    params = tiny.parameters(config)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 8, config.d_model)).astype(np.float32)
    columns = 8 if everywhere else 5
    positions = None if everywhere else rng.integers(0, 8, (2, columns))
    batch = positions, rng.integers(0, 17, (2, columns)), rng.random((2, columns)).astype(np.float32)
    whole, whole_grads = in_chunks(config, params, hidden, batch, z_loss=0.1)
    cut, cut_grads = in_chunks(config, params, hidden, batch, z_loss=0.1, tokens_at_once=tokens_at_once)
    assert float(cut.cross_entropy) == pytest.approx(float(whole.cross_entropy), rel=1e-6)
    assert float(cut.z_loss) == pytest.approx(float(whole.z_loss), rel=1e-6)
    np.testing.assert_array_equal(cut.correct, whole.correct)
    jax.tree.map(lambda a, b: tiny.assert_close(a, b, 1e-6), cut_grads, whole_grads)


def array_sizes(jaxpr):
    """Returns the sizes of all arrays in a traced function, including those in its loops and branches."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from array_sizes(inner)


def test_in_chunks_no_array_has_all_logits():
    """Neither forward nor backward: with 12 of 2 x 60 tokens at once, no array is larger than their logits, or than the
    table and the hidden states."""
    config = tiny.config(vocab_size=300, d_model=8, num_heads=1, num_kv_heads=1)
    params, hidden = tiny.parameters(config), np.zeros((2, 60, 8), np.float32)
    batch = None, np.zeros((2, 60), np.int32), np.ones((2, 60), np.float32)

    def largest(tokens_at_once):
        def loss(params, hidden):
            return weighted_loss(tiny.build(config, params), hidden, *batch, tokens_at_once=tokens_at_once).total

        return max(array_sizes(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(params, hidden).jaxpr))

    assert largest(0) >= 2 * 60 * 300
    assert largest(12) <= max(12 * 300, 300 * 8)


def test_z_loss_is_the_square_of_the_log_of_the_normaliser():
    """z_loss * sum(w log(sum exp logits)^2) / sum(w), next to the cross entropy; 0 if it is off."""
    config = tiny.config()
    params = tiny.parameters(config)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 8, config.d_model)).astype(np.float32)
    targets, weights = rng.integers(0, 17, (2, 8)), rng.random((2, 8)).astype(np.float32)
    model = tiny.build(config, params)
    plain = weighted_loss(model, hidden, None, targets, weights)
    got = weighted_loss(model, hidden, None, targets, weights, z_loss=0.01)
    log_z = np.log(np.exp(hidden.astype(np.float64) @ np.asarray(params["embedding"], np.float64).T).sum(-1))
    assert float(got.z_loss) == pytest.approx(0.01 * (weights * log_z**2).sum() / weights.sum(), rel=1e-5)
    assert float(got.total) == pytest.approx(float(got.cross_entropy + got.z_loss))
    assert float(plain.z_loss) == 0 and float(plain.total) == pytest.approx(float(got.cross_entropy))


def test_loss_is_the_weighted_mean_and_weight_zero_changes_nothing():
    """sum(w * nll) / sum(w); positions of weight 0 have no influence, not even through a gradient."""
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


@pytest.mark.parametrize("tokens_at_once", [0, 3, 4])
def test_divergence_from_a_teacher(tokens_at_once):
    """sum w KL(teacher || model) over the vocabulary against float64; only the model gets a gradient, w (p - q) through
    the table."""
    config = tiny.config()
    params, rng = tiny.parameters(config), np.random.default_rng(0)
    ours, theirs = (rng.normal(size=(2, 8, config.d_model)).astype(np.float32) for _ in range(2))
    weights = rng.integers(0, 3, (2, 8)).astype(np.float32)
    table = np.asarray(params["embedding"], np.float64)

    def softmax(hidden):
        z = hidden.astype(np.float64) @ table.T
        z = np.exp(z - z.max(-1, keepdims=True))
        return z / z.sum(-1, keepdims=True)

    def loss(hidden, theirs):
        return divergence(tiny.build(config, params), hidden, theirs, weights, np.float32(7.0), tokens_at_once)

    found, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(ours, theirs)
    p, q = softmax(ours), softmax(theirs)
    assert float(found) == pytest.approx((weights * (q * np.log(q / p)).sum(-1)).sum() / 7, rel=1e-5)
    tiny.assert_close(grads[0], weights[..., None] * ((p - q) @ table) / 7)
    assert not grads[1].any()
