"""The optimizer: schedule, weight decay and the FAM prompt's own learning rate."""

import dataclasses

import jax
import numpy as np
import pytest

from famjax.config import ConfigError, OptimizerConfig
from famjax.train.optim import optimizer, schedule
from tests import tiny


def test_schedules_warm_up_to_the_peak_and_end_where_they_should():
    """Linear warm-up over 10 steps; then constant, linear to zero, or half a cosine to zero."""
    for name, middle, last in (("constant", 1.0, 1.0), ("linear", 0.5, 0.01), ("cosine", 0.5, 0.0)):
        rate = schedule(OptimizerConfig(learning_rate=1.0, schedule=name, warmup_steps=10), 110)
        assert [float(rate(step)) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
        assert float(rate(60)) == pytest.approx(middle, abs=1e-6)
        assert float(rate(109)) == pytest.approx(last, abs=3e-3 if name == "cosine" else 1e-6)


def test_a_run_shorter_than_its_warm_up_still_has_a_schedule():
    """Two steps, fifty of warm-up: rates are positive and finite."""
    rate = schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=50), 2)
    assert [float(rate(s)) > 0 for s in range(2)] == [True, True]


def test_decay_pulls_at_matrices_alone_and_the_prompt_has_its_own_rate():
    """With zero gradients only weight decay moves weights: by -rate * decay * w, but norms and prompt stay.
    With equal gradients the prompt moves `prompt_learning_rate` times as far as the embedding."""
    params = tiny.parameters(tiny.config())
    config = OptimizerConfig(
        learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.5, clip_norm=0.0,
        prompt_learning_rate=3.0,
    )  # fmt: skip
    tx = optimizer(config, 10)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path)
        weight = np.asarray(jax.tree_util.tree_map_with_path(lambda p, w: w, params))
        weight = dict((jax.tree_util.keystr(p), w) for p, w in jax.tree_util.tree_leaves_with_path(params))[name]
        still = "scale" in name or "fam" in name
        np.testing.assert_allclose(update, np.zeros_like(weight) if still else -0.05 * weight, rtol=1e-5, atol=1e-8)
    tx = optimizer(dataclasses.replace(config, weight_decay=0.0), 10)
    ones = jax.tree.map(np.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params)
    np.testing.assert_allclose(updates["embedding"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["fam"]["prompt"], -0.3, rtol=1e-5)


def test_gradients_are_clipped_to_a_global_norm():
    """Adam's first step does not see the scale of the gradient; its second moment does."""
    params = tiny.parameters(tiny.config())
    huge = jax.tree.map(lambda w: np.full_like(w, 1e6), params)
    tx = optimizer(OptimizerConfig(clip_norm=2.0, beta1=0.0, beta2=0.5), 10)
    _, state = tx.update(huge, tx.init(params), params)
    second = jax.tree.leaves(state[1].nu)
    assert sum(float(leaf.sum()) for leaf in second) == pytest.approx(0.5 * 2.0**2, rel=1e-4)


def test_settings_that_cannot_work():
    """Nearest schedule, and probabilities that are none."""
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        OptimizerConfig(schedule="cosin").validate()
    with pytest.raises(ConfigError, match="beta2"):
        OptimizerConfig(beta2=1.5).validate()
