"""Diagnostics of the memory, against the slow reference and against gradients of the plain model."""

import functools

import jax
import numpy as np
import pytest

from famjax.attention.memory import select_state_rows
from famjax.config import TrainConfig
from famjax.data.batch import Batch
from famjax.mesh.devices import make_mesh
from famjax.train.loss import weighted_loss
from famjax.train.watching.diagnostics import far_weights, make_diagnostics, readable
from tests import reference, tiny
from tests.tiny import assert_close

S, T = 4, 16
COUNTS = np.array([16, 14, 4], np.int32)
# Untied, so that a token's embedding affects the loss only where the token is an input.
MODEL = tiny.config(tie_embeddings=False, num_kv_heads=1)
PARAMS = tiny.parameters(MODEL)


def batch(starts=(), tokens=None, rows=3) -> Batch:
    """Losses at every token; documents start with each row and in `starts` (row, block)."""
    tokens = tiny.tokens(MODEL, rows, T) if tokens is None else tokens
    begins = np.zeros((rows, T // S), bool)
    begins[:, 0] = True
    for row, block in starts:
        begins[row, block] = True
    rng = np.random.default_rng(7)
    targets = rng.integers(0, MODEL.vocab_size, (rows, T)).astype(np.int32)
    weights = rng.random((rows, T)).astype(np.float32) * (np.arange(T) < COUNTS[:rows, None])
    return Batch(tokens, COUNTS[:rows], begins, None, targets, weights)


def diagnose(params, batch, memory=None, model=MODEL, microbatches=1) -> dict:
    return jax.device_get(program(model, microbatches)(params, memory, batch))


@functools.cache
def program(model, microbatches):
    config = TrainConfig(model_dir="none", model=model, sequence_length=T, microbatches=microbatches)
    return jax.jit(make_diagnostics(config, make_mesh()))


class WatchedLayer(reference.Layer):
    """The reference's layer, which records each query's share of attention on the first F keys, FAM's. In each block
    these are the queries of its tokens and then, if it is full, those of FAM."""

    def heads(self, query, pairs):
        shares = []
        for n in range(self.config.num_heads):
            group = self.config.num_heads // self.config.num_kv_heads
            scores = np.array([query[n] @ key[n // group] for key, _ in pairs]) / np.sqrt(self.config.head_dim)
            weights = np.exp(scores - scores.max())
            shares.append((weights / weights.sum())[: self.config.memory.fam_length].sum())
        self.__dict__.setdefault("noted", []).append(np.mean(shares))
        return super().heads(query, pairs)


def reference_shares(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for one document, by layer: shares of tokens and of FAM's queries in blocks whose FAM has been updated,
    and the last FAM."""
    params, F = reference.as_float64(PARAMS), MODEL.memory.fam_length
    x = [params["embedding"][token] for token in tokens]
    initial = reference.learned_fam(MODEL, params, 0)
    token_shares, fam_shares, fams = [], [], []
    for index in range(MODEL.num_layers):
        layer = WatchedLayer(MODEL, reference.take(params["layers"], index))
        x, fam = reference.read_document(layer, x, [initial[index]], False, 0)
        noted, of_tokens, of_fam = list(layer.noted), [], []
        for begin in range(0, len(tokens), S):
            size = min(S, len(tokens) - begin)
            mine, noted = noted[:size], noted[size:]
            own, noted = (noted[:F], noted[F:]) if size == S else ([], noted)
            if begin:
                of_tokens, of_fam = of_tokens + mine, of_fam + own
        token_shares.append(of_tokens)
        fam_shares.append(of_fam)
        fams.append(fam[0])
    return np.array(token_shares), np.array(fam_shares), np.array(fams)


def test_norms_and_shares_of_attention_are_the_references():
    """FAM's RMS, the share of tokens' attention on FAM, and that of FAM's queries on the previous FAM, in every layer:
    with rows of unequal lengths, and with two documents in one row; padding does not count."""
    given = batch(starts=[(0, 2)])
    found = diagnose(PARAMS, given)
    documents = [given.tokens[0, :8], given.tokens[0, 8:], given.tokens[1, :14], given.tokens[2, :4]]
    parts = [reference_shares(document) for document in documents]
    tokens, fams = (np.concatenate([part[i] for part in parts], axis=1) for i in (0, 1))
    assert tokens.shape == (2, 4 + 4 + 10 + 0) and fams.shape == (2, 2 + 2 + 4 + 0)  # [L, queries]
    assert_close(found["input_attention_to_fam"], tokens.mean(axis=1))
    assert_close(found["fam_attention_to_fam"], fams.mean(axis=1))
    last = np.stack([parts[i][2] for i in (1, 2, 3)], axis=1)
    assert_close(found["fam_norm"], np.sqrt((last**2).mean(axis=(1, 2, 3))))
    assert 0.01 < found["input_attention_to_fam"].min() < found["input_attention_to_fam"].max() < 0.99


def test_the_first_microbatch_is_looked_at():
    """With two microbatches, only the rows of the first one count."""
    given = batch()
    whole = diagnose(PARAMS, given)
    twice = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), given)
    twice.tokens[1::2] = 3  # the second microbatch is something else
    for name, value in diagnose(PARAMS, twice, microbatches=2).items():
        assert_close(value, whole[name])


def test_which_targets_are_far():
    """One segment, one layer: windows reach back one block. Targets from block 2 on are far, in the row's first
    document; in a document of two blocks those of the last one; in one of one block none."""
    memory = tiny.config(memory_segments=1).memory
    ones = batch()._replace(weights=np.ones((3, T), np.float32))
    far = np.asarray(far_weights(ones, 1, memory)).reshape(3, 4, S)[..., 0]
    np.testing.assert_array_equal(far, [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    two = batch(starts=[(0, 2), (1, 3)])._replace(weights=np.ones((3, T), np.float32))
    far = np.asarray(far_weights(two, 1, memory)).reshape(3, 4, S)[..., 0]
    np.testing.assert_array_equal(far, [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    # Two layers reach two blocks; at chosen positions.
    chosen = ones._replace(positions=np.array([[0, 7, 11, 12]] * 3), weights=np.ones((3, 4), np.float32))
    far = far_weights(chosen, 2, memory)
    np.testing.assert_array_equal(far, [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]])


def far_loss(params, given, memory=None):
    hidden, _ = tiny.whole_untraced(MODEL, params, given.tokens, memory, count_B=given.count, starts_BN=given.starts)
    weights = far_weights(given, MODEL.num_layers, MODEL.memory)
    return weighted_loss(tiny.build(MODEL, params), hidden, None, given.targets, weights).total


def test_the_gradient_that_reaches_the_first_block():
    """The gradient w.r.t. embedded tokens equals that w.r.t. the embedding if the first block's tokens are distinct and
    occur nowhere else. Its norm, and that w.r.t. the FAM that a row continues from, equal those of `jax.grad`. A
    training's auxiliary losses are not in it."""
    tokens = np.concatenate([np.arange(8).reshape(2, 4), 8 + tiny.tokens(MODEL, 2, 12) % 9], axis=1)
    given = batch(tokens=tokens.astype(np.int32), rows=2)
    found = diagnose(PARAMS, given)
    gradient = jax.jit(jax.grad(far_loss))(PARAMS, given)["embedding"]
    assert np.linalg.norm(gradient[:8]) > 1e-3
    assert_close(found["first_block_gradient"], np.linalg.norm(gradient[:8]))
    assert found["far_weight"] == pytest.approx(given.weights[:, 12:].sum(), rel=1e-6)

    _, memory = tiny.whole(MODEL, PARAMS, tiny.tokens(MODEL, 2, 8, seed=3))
    given.starts[:, 0] = False
    by_memory = jax.jit(jax.grad(lambda memory: far_loss(PARAMS, given, memory), allow_int=True))(memory).layers.fam
    found = diagnose(PARAMS, given, memory, tiny.with_memory(MODEL, fam_diversity_loss=50.0))
    assert_close(found["first_block_fam_gradient"], np.linalg.norm(np.reshape(by_memory, (2, -1)), axis=1))


def test_a_memory_that_carries_nothing_has_no_gradient():
    """With attention's values at zero, FAM still gets attention, but the gradient from the first block is exactly zero.
    Values that cannot be measured are left out of the log."""
    params = jax.tree.map(np.array, PARAMS)
    params["layers"]["attention"]["value"][:] = 0
    found = readable(diagnose(params, batch()))
    assert (
        found["memory/first_block_gradient"] == 0.0 < readable(diagnose(PARAMS, batch()))["memory/first_block_gradient"]
    )
    assert min(found["memory/input_attention_to_fam"]) > 0
    short = jax.tree.map(lambda x: x[2:], batch())  # one block: no FAM has been updated before it
    assert set(readable(diagnose(PARAMS, short))) == {"memory/fam_norm"}


def test_a_row_that_starts_a_document_forgets_its_memory():
    """The carried memory of a row has no effect if a document starts with the row."""
    given = batch()
    fresh = tiny.initial_state(MODEL, PARAMS, 3)
    _, used = tiny.whole(MODEL, PARAMS, tiny.tokens(MODEL, 3, 8, seed=3))
    mixed = select_state_rows(np.array([True, False, True]), used, fresh)
    for name, value in diagnose(PARAMS, given, mixed).items():
        assert_close(value, diagnose(PARAMS, given)[name])
