"""The step: random state passing, random position offsets, and the state for the next step."""

import dataclasses

import jax
import numpy as np
import pytest

from famjax.config import LoraConfig, OptimizerConfig, PassKeyConfig, TrainConfig
from famjax.data.batch import Batch
from famjax.data.passkey import PassKeyTask
from famjax.mesh.devices import make_mesh
from famjax.train import optim
from famjax.train.loss import weighted_loss
from famjax.train.step import draws, make_step, opened, position_shift
from tests import tiny
from tests.train import beginning


def model(probability: float, **memory):
    return tiny.config(
        vocab_size=128, block_size=32, memory_segments=0, fam_length=3, random_state_passing=probability, **memory
    )


def setup(probability: float, **memory):
    config = model(probability, **memory)
    task = PassKeyTask(PassKeyConfig(key_digits=2, stages=(1,), text_tokens=5), 320, 32, 2, 128, 0)
    # With learning rate 0 all steps have the same weights, so their losses can be compared.
    training = TrainConfig(model_dir="none", model=config, optimizer=OptimizerConfig(learning_rate=0.0))
    tx, mesh = optim.optimizer(training.optimizer, 10), make_mesh()
    return config, task, jax.jit(make_step(training, tx, mesh)), beginning.state(training, tx, mesh)


def loss_from(config, params, batch, passed):
    """Returns the loss of a batch whose documents start from this FAM, by the model alone."""
    hidden, memory = tiny.whole(
        config, params, batch.tokens, count_B=batch.count, starts_BN=batch.starts, passed=passed
    )
    loss = weighted_loss(tiny.build(config, params), hidden, batch.positions, batch.targets, batch.weights)
    return float(loss.total), memory


@pytest.mark.parametrize("probability", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_random_state_passing_starts_from_the_first_rows_final_fam(probability):
    """Paper section 2: [L, F, D] of the first row at the end of a step. The next step's documents start from it with
    the given probability, as the residual FAM. The first step has none."""
    config, task, step, state = setup(probability)
    progress = task.start()
    first, second = task.batch(0, progress)[0], task.batch(1, progress)[0]
    state, metrics = step(state, first)
    loss, memory = loss_from(config, state.params, first, None)
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(state.passed_fam, memory.layers.fam[:, 0], rtol=1e-4, atol=1e-4)
    assert int(state.passed_updates) == int(memory.fam_updates[0]) > 0
    passed = (state.passed_fam, state.passed_updates)
    state, metrics = step(state, second)
    with_fam, _ = loss_from(config, state.params, second, passed)
    with_prompt, _ = loss_from(config, state.params, second, None)
    assert abs(with_fam - with_prompt) > 1e-3
    assert float(metrics["loss"]) == pytest.approx(with_fam if probability else with_prompt, rel=1e-5)


@pytest.mark.slow
def test_random_state_passing_may_begin_late():
    """Before `random_state_passing_from`, every step starts from the prompt."""
    config, task, step, state = setup(1.0, random_state_passing_from=2)
    for number in range(4):
        batch, passed = task.batch(number, task.start())[0], (state.passed_fam, state.passed_updates)
        wanted, _ = loss_from(config, state.params, batch, passed if number >= 2 else None)
        state, metrics = step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("seed", [0])
def test_noise_on_fam_is_as_strong_as_asked_and_another_one_everywhere(seed):
    """F_1, computed from a noise-free past, differs from the one without noise by Gaussian numbers with the given
    standard deviation, different for every row and step. Without keys, as outside of training, there is no noise."""
    config = tiny.config(fam_noise=0.1, memory_segments=0, fam_length=4, d_model=48, d_ff=20)
    params, tokens = tiny.parameters(config, seed), np.tile(tiny.tokens(config, 1, 4, seed), (64, 1))

    def fam_1(key):
        memory = tiny.whole(config, params, tokens, key=key)[1]
        return np.asarray(memory.layers.fam[0, :, 0])  # of the first layer, [B, F, D]

    clean, one, other = (fam_1(key) for key in (None, jax.random.key(1), jax.random.key(2)))
    added = [x - clean for x in (one, other)]
    assert np.std(added[0]) == pytest.approx(0.1, rel=0.05)
    assert abs(np.mean(added[0])) < 0.005
    independent = [np.corrcoef(added[0].ravel(), x.ravel())[0, 1] for x in (added[1], np.roll(added[0], 1, axis=0))]
    assert np.abs(independent).max() < 0.05
    np.testing.assert_array_equal(clean[0], clean[1])


def test_a_step_with_noise_is_a_function_of_seed_and_step():
    """The same state and batch give the same loss; without noise the loss differs."""
    losses = []
    for noise, times in ((0.2, 2), (0.0, 1)):
        _, task, step, state = setup(0.0, fam_noise=noise)
        losses += [float(step(state, task.batch(0, task.start())[0])[1]["loss"]) for _ in range(times)]
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-4


@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_growth_is_counted_in_rows_that_go_on(microbatches):
    """The logged loss is the weight times the mean over rows of FAM's growth per block, in rows whose kept blocks
    continue the previous memory: recomputed in NumPy from the memories before and after a step."""
    config = model(0.0)
    passkey = PassKeyConfig(key_digits=2, stages=(1,), text_tokens=5, stream_share=1.0, stream_gated=False)
    training = TrainConfig(
        model_dir="none", model=config, passkey=passkey, sequence_length=320, batch_size=4, fam_growth_loss=0.5,
        microbatches=microbatches, optimizer=OptimizerConfig(learning_rate=0.0),
    )  # fmt: skip
    tx, mesh = optim.optimizer(training.optimizer, 10), make_mesh()
    state = beginning.state(training, tx, mesh)
    step, task = jax.jit(make_step(training, tx, mesh)), PassKeyTask(passkey, 320, 32, 4, 128, 0)
    progress, counted = task.start(), 0
    rms = lambda state: np.sqrt(np.square(np.asarray(state.memory.layers.fam[:, :, 0])).mean(axis=-1))
    for number in range(5):
        batch, progress = task.batch(number, progress)
        before, (state, metrics) = rms(state), step(state, batch)
        longer = np.maximum(rms(state) - before, 0).mean(axis=(0, 2)) / np.maximum(batch.kept, 1)
        goes_on = ~batch.starts[:, 0] & (batch.kept > 0)
        wanted = 0.5 * np.where(goes_on, longer, 0).sum() / 4
        assert float(metrics["fam_growth_loss"]) == pytest.approx(wanted, rel=1e-4, abs=1e-7)
        progress = task.observe(progress, batch, np.asarray(metrics["correct"]))
        counted += goes_on.sum()
    assert counted >= 4


def test_half_the_steps_pass_the_state_at_probability_one_half():
    """One draw per step, the same for all rows, a different one in another step."""
    config, task, step, state = setup(0.5)
    drawn = []
    for number in range(1, 17):
        batch = task.batch(number, task.start())[0]
        passed = (state.passed_fam, state.passed_updates)
        state, metrics = step(state, batch)
        if number > 1:
            options = [loss_from(config, state.params, batch, p)[0] for p in (None, passed)]
            gaps = [abs(float(metrics["loss"]) - option) for option in options]
            assert min(gaps) < 1e-4 < max(gaps)
            drawn.append(gaps[1] < gaps[0])
    assert 2 < sum(drawn) < 13


def test_frozen_weights_stay_and_the_rest_learns():
    """With all but the prompt frozen, a step changes the prompt only, bit for bit, and its gradient norm is the
    prompt's alone."""
    config, task, _, state = setup(0.0)
    table = {"*": {"frozen": True}, "fam/*": {"frozen": False}}
    optimizer = OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip_norm=0.0, parameters=table)
    training = TrainConfig(model_dir="none", model=config, optimizer=optimizer)
    tx, mesh = optim.optimizer(optimizer, 10), make_mesh()
    before = beginning.state(training, tx, mesh, state.params)
    after, metrics = jax.jit(make_step(training, tx, mesh))(before, task.batch(0, task.start())[0])
    for (path, new), old in zip(
        jax.tree_util.tree_leaves_with_path(after.params), jax.tree.leaves(state.params), strict=True
    ):
        assert np.array_equal(new, old) == ("fam" not in jax.tree_util.keystr(path))
    (moment,) = jax.tree.leaves(after.opt_state[1].mu)
    assert float(metrics["gradient_norm"]) == pytest.approx(10 * float(np.linalg.norm(moment)), rel=1e-5)


def test_position_offsets_are_drawn_for_each_row_and_only_where_they_matter():
    """Uniform in [0, 2 pi base) for about half of the rows, else 0; nothing for relative positions."""
    memory = tiny.config(fam_position="zero", random_position_offset=0.5).memory
    shift = np.asarray(position_shift(memory, 100.0, jax.random.key(0), 4000))
    assert 0.45 < (shift == 0).mean() < 0.55
    drawn = shift[shift > 0]
    assert drawn.max() < 2 * np.pi * 100 <= drawn.max() + 3
    assert drawn.mean() == pytest.approx(np.pi * 100, rel=0.05)
    relative = dataclasses.replace(memory, fam_position="last")
    assert position_shift(relative, 100.0, jax.random.key(0), 4) is None


def test_a_step_tells_of_the_model_at_the_drawn_offsets():
    """Cross entropy, z-loss and accuracy, by loss weight, are those of the model alone with each row at its offset of
    `draws`, in two microbatches; tokens are those of all rows, up to the last one of each."""
    offsets = {"fam_position": "zero", "random_position_offset": 1.0}
    config = tiny.config(memory_segments=0, random_state_passing=0.0, **offsets)
    training = TrainConfig(model_dir="none", model=config, batch_size=2, sequence_length=12, microbatches=2, z_loss=0.1)
    tx, mesh = optim.optimizer(training.optimizer, 10), make_mesh()
    state, rng = beginning.state(training, tx, mesh), np.random.default_rng(0)
    tokens, weights = tiny.tokens(config, 2, 12), rng.uniform(0.1, 1, (2, 12)).astype(np.float32)
    starts, count = np.tile([True, False, False], (2, 1)), np.array([12, 9], np.int32)
    weights[1, 9:] = 0
    rows = {"count_B": count, "starts_BN": starts}
    hidden, _ = tiny.whole(config, state.params, tokens, shift_B=draws(training, 0, 2)[1], **rows)
    model = tiny.build(config, state.params)
    best = np.asarray(model.logits(hidden)).argmax(-1)
    targets = np.where(rng.random((2, 12)) < 0.5, best, tiny.tokens(config, 2, 12, 1)).astype(np.int32)
    wanted = weighted_loss(model, hidden, None, targets, weights, z_loss=0.1)
    unmoved, _ = tiny.whole(config, state.params, tokens, **rows)
    _, metrics = jax.jit(make_step(training, tx, mesh), compiler_options=tiny.COMPILE_FAST)(
        state, Batch(tokens, count, starts, None, targets, weights)
    )
    assert float(metrics["loss"]) == pytest.approx(float(wanted.cross_entropy), rel=1e-5)
    assert float(metrics["z_loss"]) == pytest.approx(float(wanted.z_loss), rel=1e-5) and wanted.z_loss > 0.1
    right = best == targets
    np.testing.assert_array_equal(metrics["correct"], right)
    assert float(metrics["accuracy"]) == pytest.approx((right * weights).sum() / weights.sum(), rel=1e-5)
    assert int(metrics["tokens"]) == 21
    away = weighted_loss(model, unmoved, None, targets, weights).cross_entropy
    assert abs(float(away - wanted.cross_entropy)) > 1e-3


def distilled(microbatches=1):
    """Returns a step with distillation, its state, with a half open gate, and a batch."""
    config = tiny.config(
        vocab_size=128, block_size=32, memory_segments=1, fam_length=3, random_state_passing=0.0, fam_gate=True,
        lora=LoraConfig(rank=2),
    )  # fmt: skip
    task = PassKeyTask(PassKeyConfig(key_digits=2, stages=(1,), text_tokens=5), 320, 32, 2, 128, 0)
    training = TrainConfig(
        model_dir="none", model=config, batch_size=2, sequence_length=320, distillation=0.5, microbatches=microbatches,
        optimizer=OptimizerConfig(learning_rate=0.0),
    )  # fmt: skip
    tx, mesh = optim.optimizer(training.tuning, 10), make_mesh()
    state = beginning.state(training, tx, mesh)
    return training, jax.jit(make_step(training, tx, mesh)), state, task.batch(0, task.start())[0]


@pytest.mark.parametrize("continues", [False, True])
def test_the_teacher_is_the_base_over_its_whole_row(continues):
    """Every real token's divergence from the model without FAM and LoRA, with enough segments that a token sees its
    document from the row's beginning: here by that model itself, and a softmax in NumPy. A row that continues a
    document of the last step counts from the next document on."""
    training, step, state, batch = distilled(microbatches=2)
    begins = 0
    if continues:
        begins, starts = 3, np.array(batch.starts)
        starts[0, [0, begins]] = False, True
        batch = batch._replace(starts=starts)
    params = state.params
    base = {name: tree for name, tree in params.items() if name != "fam"}
    base["layers"] = {name: tree for name, tree in params["layers"].items() if name != "lora"}
    whole = tiny.config(vocab_size=128, block_size=32, memory_segments=9, fam_length=0)
    theirs, _ = tiny.whole(whole, base, batch.tokens, count_B=batch.count, starts_BN=batch.starts)
    ours, _ = tiny.whole(training.model, params, batch.tokens, count_B=batch.count, starts_BN=batch.starts)
    p, q = (np.asarray(jax.nn.log_softmax(x @ params["embedding"].T), np.float64) for x in (ours, theirs))
    real = np.arange(320) < batch.count[:, None]
    real[0, : 32 * begins] = False
    wanted = ((np.exp(q) * (q - p)).sum(-1) * real).sum() / real.sum()
    _, metrics = step(state, batch)
    assert wanted > 0.01
    assert float(metrics["distillation_loss"]) == pytest.approx(0.5 * wanted, rel=1e-4)


def test_the_teacher_has_full_attention_whatever_the_segments_hold():
    """Keys of outputs would make it another model than the base."""
    training = distilled(1)[0]
    other = dataclasses.replace(training, model=training.model.with_memory(segments_hold="outputs"))
    assert other.teacher == training.teacher


def test_a_gate_opens_by_steps_and_never_shuts():
    """step / fam_opening_steps, unless the gate is open further; without a schedule it is unchanged."""
    training, _, state, _ = distilled()
    half = jax.tree.map(lambda x: x, state.params)
    half["fam"]["gate"] = np.array([[0.0, 0.5], [1.0, 0.2]], np.float32)
    opens = dataclasses.replace(training, fam_opening_steps=10)
    np.testing.assert_allclose(opened(half, opens, 3)["fam"]["gate"], [[0.3, 0.5], [1.0, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(opened(half, opens, 25)["fam"]["gate"], 1.0)
    learned = dataclasses.replace(training, fam_opening_steps=0)
    assert opened(half, learned, 3) is half
    assert opens.tuning.settings_of("fam/gate")["frozen"] and not learned.tuning.settings_of("fam/gate")["frozen"]
    assert dataclasses.replace(training, steps=70).opening_steps == 7
