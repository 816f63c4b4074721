"""Document streams: rows that continue the document of the previous step, with its memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.attention.positions import Layout
from famjax.config import DataConfig, OptimizerConfig, TrainConfig
from famjax.data.batch import Batch
from famjax.mesh.devices import make_mesh
from famjax.train import optim
from famjax.train import state as states
from famjax.train.loss import cross_entropy
from famjax.train.step import finite_rows, make_step, rescaled
from tests import tiny
from tests.train import beginning

S, T = 4, 12
# Tokens of the documents of each row, in order: within a block, over several steps, up to the end of a row exactly.
ROWS = [[30, 3, 11], [12, 12, 24], [5, 40], [48]]
STEPS = 4


def layout(rows: list[list[int]], seed: int) -> tuple[list[Batch], list[list[np.ndarray]]]:
    """Returns the batches of `STEPS` steps, built in the simplest way, and the documents of each row."""
    rng = np.random.default_rng(seed)
    documents = [[rng.integers(0, 17, length).astype(np.int32) for length in lengths] for lengths in rows]
    length = STEPS * T
    tokens, targets = np.zeros((2, len(rows), length), np.int32)
    weights, starts = np.zeros((len(rows), length), np.float32), np.zeros((len(rows), length // S), bool)
    counts = np.zeros((len(rows), STEPS), np.int32)
    for b, row in enumerate(documents):
        at = 0
        for document in row:
            n = len(document)
            starts[b, at // S] = True
            tokens[b, at : at + n] = document
            targets[b, at : at + n - 1], weights[b, at : at + n - 1] = document[1:], 1.0
            for step in range(STEPS):
                counts[b, step] = max(counts[b, step], np.clip(at + n - step * T, 0, T))
            at += -(-n // S) * S
        assert at <= length
    cut = lambda x, width, i: x[:, i * width : (i + 1) * width]
    batches = [
        Batch(cut(tokens, T, i), counts[:, i], cut(starts, T // S, i), None, cut(targets, T, i), cut(weights, T, i))
        for i in range(STEPS)
    ]
    return batches, documents


def setup(
    microbatches: int = 1, learning_rate: float = 0.0, carried_fam_rms: float = 0.0, carried_fam_share: float = 1.0,
    skip_bad_steps: int = 0, **memory,
):  # fmt: skip
    config = tiny.config(random_state_passing=0.0, **memory)
    training = TrainConfig(
        model_dir="none", model=config, task="text", data=DataConfig(stream_share=1.0), batch_size=len(ROWS),
        sequence_length=T, microbatches=microbatches, carried_fam_rms=carried_fam_rms,
        carried_fam_share=carried_fam_share, skip_bad_steps=skip_bad_steps,
        optimizer=OptimizerConfig(learning_rate=learning_rate, schedule="constant", warmup_steps=0, clip_norm=0.0),
    )  # fmt: skip
    tx, mesh = optim.optimizer(training.optimizer, 10), make_mesh()
    state = beginning.state(training, tx, mesh)
    return config, jax.jit(make_step(training, tx, mesh), compiler_options=tiny.COMPILE_FAST), state


@pytest.mark.parametrize(
    ("microbatches", "memory"),
    [
        pytest.param(1, {}, marks=pytest.mark.slow),
        (2, {"memory_segments": 2}),
        pytest.param(1, {"fam_length": 0}, marks=pytest.mark.slow),
        pytest.param(2, {"memory_segments": 0, "previous_fams": 2}, marks=pytest.mark.slow),
        (1, {"fam_position": "zero", "random_position_offset": 0.0}),
    ],
)
def test_a_stream_costs_what_its_documents_cost_read_at_once(microbatches, memory):
    """With constant weights, the summed losses of four steps are those of each document alone, read at once."""
    config, step, state = setup(microbatches, **memory)
    batches, documents = layout(ROWS, seed=1)
    streamed = 0.0
    for batch in batches:
        state, metrics = step(state, batch)
        streamed += float(metrics["loss"]) * batch.weights.sum()
    alone = 0.0
    for document in (document for row in documents for document in row):
        padded = np.zeros((1, STEPS * T), np.int32)
        padded[0, : len(document)] = document
        hidden, _ = tiny.whole(config, state.params, padded, count_B=np.array([len(document)], np.int32))
        logits = tiny.build(config, state.params).logits(hidden[0, : len(document) - 1])
        alone += float(cross_entropy(logits, document[1:]).sum())
    assert streamed == pytest.approx(alone, rel=1e-5)


def test_memories_of_a_skipped_step_have_read_its_documents():
    """A step whose loss is not finite changes no weight, but the next batch continues its documents, some of which
    began in it: memories are those of the same step with a finite loss. One that is not finite is not kept."""
    _, step, state = setup(skip_bad_steps=1, learning_rate=0.1)
    batches, _ = layout(ROWS, seed=1)
    state, _ = step(state, batches[0])
    good, _ = step(state, batches[1])
    bad, metrics = step(state, batches[1]._replace(weights=batches[1].weights * np.nan))
    assert np.isnan(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, bad.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, bad.memory, good.memory)
    fam = good.memory.layers.fam.at[1, 2, 0].set(np.inf)
    broken = dataclasses.replace(good.memory, layers=dataclasses.replace(good.memory.layers, fam=fam))
    assert finite_rows(broken).tolist() == [True, True, False, True]


def test_the_gradient_stops_at_the_edge_of_a_step():
    """Truncated backpropagation: the second step's gradient is that of its loss with the carried memory held
    constant (Adam's first moment after two steps is .09 of the first gradient and .1 of the second)."""
    config, step, state = setup()
    batches, _ = layout(ROWS, seed=2)
    state, _ = step(state, batches[0])
    first = jax.tree.map(lambda m: m / 0.1, state.opt_state[1].mu)
    memory = state.memory
    state, _ = step(state, batches[1])

    def loss(params):
        model, batch = tiny.build(config, params), batches[1]
        hidden, _ = model(batch.tokens, memory, batch.count, layout=Layout(batch.starts))
        return (cross_entropy(model.logits(hidden), batch.targets) * batch.weights).sum() / batch.weights.sum()

    wanted = jax.jit(jax.grad(loss), compiler_options=tiny.COMPILE_FAST)(state.params)
    for moment, one, two in zip(*map(jax.tree.leaves, (state.opt_state[1].mu, first, wanted)), strict=True):
        tiny.assert_close((moment - 0.09 * one) / 0.1, two, relative=1e-4)


def test_rows_that_start_anew_know_nothing_of_the_row_before():
    """Other memories in the state affect only the rows that continue a document."""
    config, step, state = setup()
    batches, _ = layout(ROWS, seed=3)
    state, _ = step(state, batches[0])
    spoiled = jax.tree.map(lambda x: x + 1 if x.dtype == jnp.float32 else x, state.memory)
    after, _ = step(state, batches[1])
    other, _ = step(dataclasses.replace(state, memory=spoiled), batches[1])
    anew = np.asarray(batches[1].starts[:, 0])
    assert anew.any() and not anew.all()
    changed = np.abs(np.asarray(after.memory.layers.fam) - np.asarray(other.memory.layers.fam)).max(axis=(0, 2, 3, 4))
    # A row whose document ended and was followed by another one has no memory of the former either.
    first_of_row = np.asarray(batches[1].starts).any(axis=1)
    np.testing.assert_array_equal(changed > 0, ~first_of_row)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_carried_fam_that_is_made_young_says_the_same(seed):
    """Scaled down if its RMS is above the limit, without changing its direction: tokens of the next block see the same,
    since norms remove the scale; the update after it differs."""
    config = tiny.config(random_state_passing=0.0, norm_eps=1e-20, memory_segments=0)
    params, tokens = tiny.parameters(config, seed), tiny.tokens(config, 3, 16, seed)
    _, memory = tiny.whole(config, params, tokens[:, :8])
    rms = lambda fam: np.sqrt(np.square(np.asarray(fam)).mean(axis=-1))
    most = float(np.median(rms(memory.layers.fam)))
    young = rescaled(memory, most)
    np.testing.assert_allclose(rms(young.layers.fam), np.minimum(rms(memory.layers.fam), most), rtol=1e-5)
    before, after = (tiny.whole(config, params, tokens[:, 8:], state) for state in (memory, young))
    tiny.assert_close(after[0][:, :4], before[0][:, :4])
    assert np.abs(np.asarray(after[0][:, 4:] - before[0][:, 4:])).max() > 1e-3
    assert rescaled(memory, 0.0) is memory
    some = rescaled(memory, most, 2 / 3).layers.fam
    np.testing.assert_array_equal(some[:, :2], young.layers.fam[:, :2])
    np.testing.assert_array_equal(some[:, 2], memory.layers.fam[:, 2])


def test_a_step_hands_on_what_it_has_made_young():
    """No activation of the carried FAM of the first half of the rows has an RMS above the limit; the others are as they
    were."""
    config, step, state = setup(carried_fam_rms=0.5, carried_fam_share=0.5)
    state, _ = step(state, layout(ROWS, seed=5)[0][0])
    rms = np.sqrt(np.square(np.asarray(state.memory.layers.fam)).mean(axis=-1))
    assert 0.499 < rms[:, :2].max() < 0.501 < rms[:, 2:].max()


def test_every_microbatch_has_its_own_noise():
    """Equal rows in microbatches of one row leave different FAMs."""
    batch = layout([[12]] * len(ROWS), seed=6)[0][0]
    batch = batch._replace(tokens=np.tile(batch.tokens[0], (len(ROWS), 1)))
    _, step, state = setup(microbatches=len(ROWS), fam_noise=0.1)
    fam = np.asarray(step(state, batch)[0].memory.layers.fam[:, :, 0])  # [L, B, F, D]
    assert min(np.abs(fam[:, a] - fam[:, b]).max() for a in range(len(ROWS)) for b in range(a)) > 0.1


def test_without_streams_no_memory_is_carried():
    """Packed rows keep no memory in the state."""
    config = TrainConfig(model_dir="none", model=tiny.config(), task="text")
    assert states.abstract(config, optim.optimizer(config.optimizer, 1), make_mesh()).memory is None
    assert not config.carries_memory


@pytest.mark.parametrize("fam_length", [0, 2])
def test_the_carried_memory_survives_a_checkpoint(fam_length):
    """Restoring what is saved gives the same state, including empty arrays (no FAM)."""
    config, step, state = setup(fam_length=fam_length)
    batches, _ = layout(ROWS, seed=4)
    state, _ = step(state, batches[0])
    training = TrainConfig(
        model_dir="none", model=config, task="text", data=DataConfig(stream_share=1.0), batch_size=len(ROWS),
        sequence_length=T,
    )  # fmt: skip
    where = states.abstract(training, optim.optimizer(training.optimizer, 10), make_mesh())
    back = states.from_saved(1, state.params, states.to_save(state), where)
    assert all(leaf.size for leaf in jax.tree.leaves(states.to_save(state)))
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
