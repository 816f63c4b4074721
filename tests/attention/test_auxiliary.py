"""Auxiliary losses on FAM: their values next to NumPy, and that a training gets exactly their gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famjax.attention import auxiliary
from famjax.attention.block_step import At, Carried, block_step, project
from famjax.attention.positions import Layout
from famjax.attention.sequence import over_blocks
from famjax.config import ModelConfig, TrainConfig
from famjax.data.batch import Batch
from famjax.mesh.devices import make_mesh
from famjax.nn.execution import Execution
from famjax.nn.layer import Layer
from famjax.train import optim
from famjax.train.step import make_step
from tests import reference, tiny
from tests.attention.test_update import softmax
from tests.train import beginning

ROWS, BLOCKS = 2, 2


def a_block(config: ModelConfig) -> tuple[Layer, jax.Array, jax.Array, At]:
    """A layer with random weights, the activations of a block, feedback activations, and the block's position."""
    rng, D = np.random.default_rng(3), config.d_model
    layer = Layer(config, config.layer(0), reference.take(tiny.parameters(config)["layers"], 0))
    x = jnp.asarray(rng.normal(size=(ROWS, config.memory.block_size, D)), jnp.float32)
    fam = jnp.asarray(rng.normal(size=(ROWS, config.memory.fam_length, D)), jnp.float32)
    return layer, x, fam, At(jnp.array([1, 2]), jnp.array([1, 2]))


def test_diversity_is_that_of_numpy() -> None:
    """The mean over heads of 1 - H(p) / log C, p the mean of the attention of FAM's queries."""
    config = tiny.config()
    S, (layer, x, fam, at) = config.memory.block_size, a_block(config)
    q, (k, v) = project(layer, x, fam[:, None], at)
    queries, keys = (np.asarray(a, np.float64) for a in (q[:, :, 0, S:], k))
    p = softmax(queries @ np.swapaxes(keys, -1, -2) / np.sqrt(config.head_dim)).mean(-2)
    expected = (1 + (p * np.log(p)).sum(-1) / np.log(p.shape[-1])).mean(1)
    tiny.assert_close(auxiliary.diversity(layer, q, (k, v), at), expected)


def test_reconstruction_is_that_of_numpy() -> None:
    """What the block's queries read from FAM, at the end of the block, instead of the whole block; it is 0 if both are
    the same, as for a FAM that holds the block's activations at their places."""
    config = tiny.config()
    S, (layer, x, fam, at) = config.memory.block_size, a_block(config)
    q, (k, v) = project(layer, x, fam[:, None], at)
    of_fam = layer.keys_values(fam, np.arange(S - config.memory.fam_length, S))
    as_float64 = lambda *arrays: [np.asarray(a, np.float64) for a in arrays]
    (queries,), block, new = as_float64(q[:, :, 0, :S]), as_float64(k[..., :S, :], v[..., :S, :]), as_float64(*of_fam)
    read = lambda k, v: softmax(queries @ np.swapaxes(k, -1, -2) / np.sqrt(config.head_dim)) @ v
    wrong, right = read(*new) - read(*block), read(*block)
    expected = (wrong**2).sum((1, 2, 3)) / (right**2).sum((1, 2, 3))
    tiny.assert_close(auxiliary.reconstruction(layer, q, (k, v), fam, at), expected)

    whole = tiny.with_memory(config, fam_length=S)
    layer = Layer(whole, whole.layer(0), layer.weights)
    assert np.asarray(auxiliary.reconstruction(layer, q, (k, v), x, at)).max() < 1e-9


@pytest.mark.parametrize(
    ("remat", "changes"), [("none", {}), ("full", {"previous_fams": 2, "memory_segments": 0, "fam_layers": "-+"})]
)
def test_the_gradient_is_that_of_the_sum_of_the_losses(remat: str, changes: dict[str, Any]) -> None:
    """Of a function of the outputs, with losses that the model adds by itself, and with losses that layers return: in
    a scan that is recomputed or not, with a block that is not full, which has none."""
    losses = {"fam_diversity_loss": 0.7, "fam_reconstruction_loss": 0.4}
    config = tiny.config(remat=remat, **losses, **changes)
    S, params = config.memory.block_size, tiny.parameters(config)
    tokens, count = tiny.tokens(config, ROWS, BLOCKS * S), jnp.array([2 * S, S + 1])
    scale = 0.3

    def task(hidden: jax.Array) -> jax.Array:
        return jnp.square(hidden).mean() + hidden[:, ::2, 0].sum()

    def by_itself(params: Any) -> jax.Array:
        execution = dataclasses.replace(Execution.of(config), auxiliary_scale=scale)
        return task(tiny.build(config, params, execution)(tokens, None, count)[0])

    def returned(params: Any) -> jax.Array:
        model = tiny.build(tiny.with_memory(config, **dict.fromkeys(losses, 0.0)), params)
        where = model.locate(None, count, tokens.shape[1])

        def over(layer: Layer, x: Any, before: Any, fresh: Any, where: Any, how: Any) -> tuple[Any, Any]:
            y, _ = over_blocks(layer, x, before, fresh, where, how)
            if not layer.memory.fam_length:
                return y, jnp.zeros(())
            fams = [jnp.broadcast_to(fresh, (ROWS, *fresh.shape[1:]))]
            for n in range(1, BLOCKS + 1):
                first = model.locate(None, jnp.minimum(count, n * S), n * S)
                fams.append(over_blocks(layer, x[:n], before, fresh, first, how)[1].fam)
            each = jnp.stack([losses_of(layer, x[n], fams[n : n + 2], n) for n in range(BLOCKS)], axis=1)
            return y, jnp.where(np.arange(1, BLOCKS + 1) * S <= count[:, None], each, 0.0).sum()

        hidden, found = model.forward(model.embed(tokens), None, where, over=over)
        return task(hidden) + scale * found.sum()

    def losses_of(layer: Layer, x: Any, fams: Any, number: int) -> jax.Array:
        at = At(jnp.full(ROWS, number), jnp.full(ROWS, number))
        q, kv = project(layer, x, fams[0], at)
        reconstruction = auxiliary.reconstruction(layer, q, kv, fams[1][:, 0], at)
        return 0.7 * auxiliary.diversity(layer, q, kv, at) + 0.4 * reconstruction

    ours, expected = jax.grad(by_itself)(params), jax.grad(returned)(params)
    jax.tree.map(tiny.assert_close, ours, jax.tree.map(np.asarray, expected))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_has_the_mean_of_the_losses_once(microbatches: int) -> None:
    """Of a batch without other losses, the step's gradient norm is that of the losses of blocks whose FAM is read,
    divided by rows x blocks x layers. Rows have several documents; padding has an embedding of zero."""
    losses = {"fam_diversity_loss": 0.7, "fam_reconstruction_loss": 0.4}
    model = tiny.config(vocab_size=128, block_size=16, memory_segments=0, random_state_passing=0.0, **losses)
    config = TrainConfig(model_dir="none", model=model, sequence_length=64, batch_size=4, microbatches=microbatches)
    params = jax.tree.map(np.array, tiny.parameters(model))
    params["embedding"][0] = 0.0
    tokens, count = tiny.tokens(model, 4, 64), np.array([64, 50, 32, 16], np.int32)
    tokens[np.arange(64) >= count[:, None]] = 0
    starts = np.zeros((4, 4), bool)
    starts[:, 0] = starts[0, 2] = starts[1, 1] = True
    nothing = np.zeros((4, 64), np.float32)
    batch = Batch(tokens, count, starts, None, np.zeros((4, 64), np.int32), nothing)

    def total(params: Any) -> jax.Array:
        plain = tiny.build(tiny.with_memory(model, **dict.fromkeys(losses, 0.0)), params)
        where = plain.locate(None, count, 64, layout=Layout(starts))
        # Blocks 0 and 2 of row 0, block 0 of row 2 and so on: full, and before a block of the same document or the end.
        read = np.array([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)

        def over(layer: Layer, x: Any, before: Any, fresh: Any, where: Any, how: Any) -> tuple[Any, Any]:
            y, _ = over_blocks(layer, x, before, fresh, where, how)
            fam, sums = jnp.broadcast_to(fresh, (4, *fresh.shape[1:])), jnp.zeros(())
            for n in range(4):
                fam = jnp.where(starts[:, n, None, None, None], fresh, fam)
                at = At(where.blocks_before[:, n], where.fam_updates[:, n])
                q, kv = project(layer, x[n], fam, at)
                _, after, _ = block_step(layer, x[n], Carried(fam, {}), (), at)
                each = 0.7 * auxiliary.diversity(layer, q, kv, at)
                each += 0.4 * auxiliary.reconstruction(layer, q, kv, after.fam[:, 0], at)
                sums += jnp.where(read[:, n], each, 0.0).sum()
                fam = after.fam
            return y, sums

        return plain.forward(plain.embed(tokens), None, where, over=over)[1].sum() / (4 * 4 * 2)

    tx, mesh = optim.optimizer(config.optimizer, 10), make_mesh()
    step = jax.jit(make_step(config, tx, mesh))
    found = step(beginning.state(config, tx, mesh, params), batch)[1]["gradient_norm"]
    assert float(found) == pytest.approx(float(optax.tree.norm(jax.grad(total)(params))), rel=1e-4)
