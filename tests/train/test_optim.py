"""The optimizer: schedule, weight decay and the FAM prompt's own learning rate."""

import dataclasses

import jax
import numpy as np
import pytest

from famjax.config import ConfigError, OptimizerConfig
from famjax.train.optim import check_patterns, join_frozen, optimizer, schedule, split_frozen
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
    """With zero gradients only weight decay changes weights: by -rate * decay * w, but not norms and prompt. With equal
    gradients the prompt changes `prompt_learning_rate` times as much as the embedding."""
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
    """Adam's first step does not depend on the scale of the gradient; its second moment does."""
    params = tiny.parameters(tiny.config())
    huge = jax.tree.map(lambda w: np.full_like(w, 1e6), params)
    tx = optimizer(OptimizerConfig(clip_norm=2.0, beta1=0.0, beta2=0.5), 10)
    _, state = tx.update(huge, tx.init(params), params)
    second = jax.tree.leaves(state[1].nu)
    assert sum(float(leaf.sum()) for leaf in second) == pytest.approx(0.5 * 2.0**2, rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_a_state_fits_with_and_without_clipping(name):
    """The states have equal paths, so a run can be resumed with another `clip_norm`, 0 among them."""
    params = tiny.parameters(tiny.config())
    states = [optimizer(OptimizerConfig(name=name, clip_norm=clip), 10).init(params) for clip in (0.0, 1.0)]
    paths = [[jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(one)] for one in states]
    assert paths[0] == paths[1] and jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_rsqrt_goes_on_from_the_peak():
    """peak * sqrt(warmup / step), with steps counted from 1: half the peak after four warm-ups."""
    rate = schedule(OptimizerConfig(learning_rate=2.0, schedule="rsqrt", warmup_steps=10), 1000)
    assert [float(rate(step)) for step in (4, 9, 39)] == pytest.approx([1.0, 2.0, 1.0])
    assert float(rate(899)) == pytest.approx(2.0 * np.sqrt(10 / 900))
    assert float(schedule(OptimizerConfig(learning_rate=2.0, schedule="rsqrt", warmup_steps=0), 9)(0)) == 2.0


def steps_of(config, params, gradients):
    """Returns the weights after each of some steps with given gradients."""
    tx = optimizer(config, 100)
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = jax.tree.map(lambda w, u: w + u, params, updates)
        yield params


PLAIN = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup_steps=0, clip_norm=0.0, beta1=0.9, beta2=0.99)


def test_adafactor_is_what_its_docstring_says():
    """Three steps in float64: V = outer(row means, column means) / mean of the rows, bias-corrected; updates clipped to
    RMS 1; momentum; decay. A weight with an axis below 128 keeps an unfactored V."""
    rng = np.random.default_rng(0)
    shapes = {"large": (128, 130), "small": (5, 200)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    grads = [{n: (rng.normal(size=s) * [5, 1, 1][i]).astype(np.float32) for n, s in shapes.items()} for i in range(3)]
    config = dataclasses.replace(PLAIN, name="adafactor", weight_decay=0.01)
    for name, shape in shapes.items():
        w, mean = params[name].astype(np.float64), np.zeros(shape)
        squares = []
        for t, after in enumerate(steps_of(config, params, grads), start=1):
            g = grads[t - 1][name].astype(np.float64)
            squares.append(g**2)
            share = np.array([0.99 ** (t - i) for i in range(1, t + 1)])
            v = np.tensordot(share / share.sum(), squares, 1)
            if name == "large":
                v = np.outer(v.mean(1), v.mean(0)) / v.mean()
            update = g / np.sqrt(v)
            update /= max(1.0, np.sqrt((update**2).mean()))
            mean = 0.9 * mean + 0.1 * update
            w = w - 0.1 * (mean + 0.01 * w)
            tiny.assert_close(after[name], w, 2e-5)


def test_adafactors_memory_is_that_of_rows_and_columns():
    """In addition to its momentum, a large weight stores a row and a column; without momentum, nothing else."""
    params = {"w": np.zeros((256, 512), np.float32)}
    state = optimizer(dataclasses.replace(PLAIN, name="adafactor", beta1=0.0), 10).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 256 + 512 + 10


def test_adafactor_clips_layer_by_layer():
    """A stack of layers: a large gradient in one does not scale down the others' updates."""
    grads = [np.ones((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32)]
    grads[1][0] *= 1000
    config = dataclasses.replace(PLAIN, name="adafactor", beta1=0.0, weight_decay=0.0)
    first, second = steps_of(config, {"layers": {"w": np.zeros((2, 3, 4), np.float32)}},
                             [{"layers": {"w": g}} for g in grads])  # fmt: skip
    np.testing.assert_allclose(second["layers"]["w"] - first["layers"]["w"], -0.1, rtol=1e-5)


def test_lion_takes_signs():
    """Two steps: -rate * (sign(b1 m + (1 - b1) g) + decay w), with m = b2 m + (1 - b2) g."""
    rng = np.random.default_rng(0)
    w, m = rng.normal(size=(3, 4)), np.zeros((3, 4))
    grads = [{"w": rng.normal(size=(3, 4)).astype(np.float32)} for _ in range(2)]
    config = dataclasses.replace(PLAIN, name="lion", weight_decay=0.5)
    for g, after in zip(grads, steps_of(config, {"w": w.astype(np.float32)}, grads), strict=True):
        w = w - 0.1 * (np.sign(0.9 * m + 0.1 * g["w"]) + 0.5 * w)
        m = 0.99 * m + 0.01 * g["w"]
        np.testing.assert_allclose(after["w"], w, rtol=1e-5, atol=1e-6)


def test_the_table_of_patterns():
    """Later patterns take precedence, and all of them over the defaults; other settings are kept."""
    config = dataclasses.replace(
        PLAIN, name="lion", weight_decay=0.5, prompt_learning_rate=3.0,
        parameters={"layers/*": {"learning_rate": 0.5}, "layers/attention/query": {"learning_rate": 2.0,
                    "weight_decay": False}, "fam/*": {"weight_decay": True}},
    )  # fmt: skip
    params = tiny.parameters(tiny.config())
    check_patterns(config, params)
    (after,) = steps_of(config, params, [jax.tree.map(np.ones_like, params)])
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after, params)
    attention, before = moved["layers"]["attention"], params["layers"]["attention"]
    np.testing.assert_allclose(attention["query"], -0.2, rtol=1e-4)
    np.testing.assert_allclose(attention["key"], -0.05 * (1 + 0.5 * before["key"]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["layers"]["ff_norm"]["scale"], -0.05, rtol=1e-4)
    prompt = params["fam"]["prompt"]
    np.testing.assert_allclose(moved["fam"]["prompt"], -0.3 * (1 + 0.5 * prompt), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_frozen_weights_cost_no_optimizer_memory(name):
    """With all but FAM frozen, the optimizer's state has FAM's size, whatever the model's."""
    config = dataclasses.replace(PLAIN, name=name, parameters={"*": {"frozen": True}, "fam/*": {"frozen": False}})
    params = tiny.parameters(tiny.config())
    trained, frozen = split_frozen(config, params)
    assert [leaf.shape for leaf in jax.tree.leaves(trained)] == [params["fam"]["prompt"].shape]
    state = optimizer(config, 10).init(trained)
    paths = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(state) if leaf.ndim]
    assert paths and all("fam" in path for path in paths)
    assert jax.tree.structure(join_frozen(trained, frozen)) == jax.tree.structure(params)


def test_patterns_that_fit_nothing():
    """An error lists the paths if a pattern matches none; freezing everything is an error too."""
    params = tiny.parameters(tiny.config())
    with pytest.raises(ConfigError, match="no weight matches 'layer/.*'; there are embedding, fam/prompt"):
        check_patterns(OptimizerConfig(parameters={"layer/*": {"frozen": True}}), params)
    with pytest.raises(ConfigError, match="every weight is frozen"):
        check_patterns(OptimizerConfig(parameters={"*": {"frozen": True}}), params)


def test_settings_that_cannot_work():
    """Nearest schedule, and invalid probabilities."""
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        OptimizerConfig(schedule="cosin").validate()
    with pytest.raises(ConfigError, match="beta2"):
        OptimizerConfig(beta2=1.5).validate()
