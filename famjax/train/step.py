"""The training step: one pure function from state and batch to state and metrics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from famjax.attention.memory import MemoryState
from famjax.config import MemoryConfig
from famjax.data.batch import Batch
from famjax.nn.model import Transformer
from famjax.train.loss import weighted_loss
from famjax.train.state import TrainState


def initial_memory(model: Transformer, state: TrainState, key: Any) -> MemoryState:
    """With which memory documents start this step: the learned prompt or, by random state passing,
    the FAM with which the last step ended (one draw a step, for all rows)."""
    config = model.config.memory
    fresh = model.initial_state(1)
    if not config.fam_length or not config.random_state_passing:
        return fresh
    passed = model.initial_state(1, (jax.lax.stop_gradient(state.passed_fam), state.passed_updates))
    use = jax.random.bernoulli(key, config.random_state_passing) & (state.passed_updates > 0)
    return jax.tree.map(lambda a, b: jnp.where(use, a, b), passed, fresh)


def position_shift(config: MemoryConfig, rope_base: float, key: Any, rows: int) -> Any:
    """Random position offset [B] (paper section 2): uniform in [0, 2 pi base), or 0."""
    if config.fam_position != "zero" or not config.random_position_offset:
        return None  # it would change nothing but rounding
    keep_key, draw_key = jax.random.split(key)
    shift = jax.random.randint(draw_key, (rows,), 0, int(2 * jnp.pi * rope_base))
    return jnp.where(jax.random.bernoulli(keep_key, config.random_position_offset, (rows,)), shift, 0)


def make_step(
    graphdef: nnx.GraphDef[Any], tx: optax.GradientTransformation, seed: int
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """A step for `jax.jit`. Randomness is a function of (seed, step), so a resumed run draws the same."""

    def loss_fn(params: Any, state: TrainState, batch: Batch) -> Any:
        model = nnx.merge(graphdef, params)
        rsp_key, shift_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        config = model.config
        shift = position_shift(config.memory, config.rope_base, shift_key, batch.tokens.shape[0])
        initial = initial_memory(model, state, rsp_key)
        hidden, memory = model(
            batch.tokens, count_B=batch.count, starts_BN=batch.starts, initial=initial, shift_B=shift
        )
        loss, correct = weighted_loss(model, hidden, batch.positions, batch.targets, batch.weights)
        passed = jax.lax.stop_gradient((memory.layers.fam[:, 0], memory.fam_updates[0]))
        return loss, (correct, passed)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        (loss, (correct, passed)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads), "correct": correct}
        return TrainState(state.step + 1, params, opt_state, *passed), metrics

    return step
