"""The training step: one pure function from state and batch to state and metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from famjax.attention.memory import MemoryState, at_most, fam_rms, select_state_rows, state_axes
from famjax.attention.positions import Layout
from famjax.config import MemoryConfig, TrainConfig
from famjax.data.batch import Batch
from famjax.dims import Array, Bool, Float, Int, Key, Tree, Weights
from famjax.mesh import sharding
from famjax.mesh.on_mesh import placement
from famjax.nn.execution import Execution
from famjax.nn.model import Start, Transformer
from famjax.nn.weights import structure
from famjax.train import optim
from famjax.train import state as states
from famjax.train.loss import divergence, weighted_loss
from famjax.train.state import TrainState
from famjax.train.watching.norms import squares

Step: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]

# Rows of a batch, their random position offsets, their memories (rows first) and their indices in the batch; the
# latter three are None if unused.
Microbatch: TypeAlias = tuple[Batch, Int[Array, "B"] | None, MemoryState | None, Int[Array, "B"] | None]
# Folded into a step's key to derive an independent key. `jax.random.split` in `draws` gives the keys of 0 and 1.
DROPOUT = 2


class Part(NamedTuple):
    """Auxiliary outputs of one microbatch.

    Attributes:
      costs: this microbatch's share of the batch's losses, by metric (`loss`, the cross entropy; `z_loss` ...).
      passed: (FAM, number of its updates) of the first row, for random state passing.
      rows: outputs with a leading row axis: `correct` [B, W], and `memory` after the last token, or None.
    """

    costs: dict[str, Float[Array, ""]]
    passed: tuple[Float[Array, "L P F D"], Int[Array, ""]]
    rows: dict[str, Any]


def start_of_documents(config: MemoryConfig, state: TrainState, key: Key[Array, ""] | None, mesh: Mesh) -> Start:
    """Returns the initial memory of documents in this step: the learned prompt or, with random state passing, the FAM
    after the last step (one draw per step, for all rows). If `key` is None, it is the prompt."""
    if key is None or not config.fam_length or not config.random_state_passing:
        return Start()
    use = jax.random.bernoulli(key, config.random_state_passing) & (state.passed_updates > 0)
    use &= state.step >= config.random_state_passing_from
    # Between steps the passed FAM is sharded along D. Here it is an activation, and that sharding must not propagate.
    passed_fam = sharding.constrain(state.passed_fam, (None,) * 4, mesh)
    return Start(jax.lax.stop_gradient(passed_fam), state.passed_updates, use)


def position_shift(config: MemoryConfig, rope_base: float, key: Key[Array, ""], rows: int) -> Int[Array, "B"] | None:
    """Returns the random position offset of each row, in tokens (paper section 2), or None if it has no effect.

    It is uniform in [0, 2 pi rope_base) with probability `random_position_offset`, else 0.
    """
    if config.fam_position != "zero" or not config.random_position_offset:
        return None  # positions are relative: an offset would change rounding only
    keep_key, draw_key = jax.random.split(key)
    shift = jax.random.randint(draw_key, (rows,), 0, int(2 * jnp.pi * rope_base))
    return jnp.where(jax.random.bernoulli(keep_key, config.random_position_offset, (rows,)), shift, 0)


def build(config: TrainConfig, mesh: Mesh, params: Weights, auxiliary: float = 0.0) -> Transformer:
    """Returns the model with these weights, on the mesh; `auxiliary` is the scale of auxiliary losses on FAM."""
    execution = dataclasses.replace(Execution.of(config.model, placement(mesh)), auxiliary_scale=auxiliary)
    model: Transformer = nnx.merge(structure(config.model, execution), params)
    return model


def auxiliary_scale(config: TrainConfig) -> float:
    """Returns the factor of auxiliary losses, 1 / (rows x blocks x layers with FAM); 0 if there are none."""
    model = config.model
    if not (model.memory.fam_diversity_loss or model.memory.fam_reconstruction_loss):
        return 0.0
    blocks = -(-config.sequence_length // model.memory.block_size)
    return 1 / (config.batch_size * blocks * max(len(model.layers_with_fam), 1))


def rows_before(model: Transformer, start: Start, rows: int, memory: MemoryState | None, mesh: Mesh) -> MemoryState:
    """Returns the memory of the rows before a step, for diagnostics: the carried one (`rows_first`) or, if rows carry
    none, the initial one of a document."""
    memory = model.initial_state(rows, start) if memory is None else rows_first(memory, back=True)
    constrained: MemoryState = sharding.constrain(memory, state_axes(model.config.memory), mesh)
    return constrained


def draws(config: TrainConfig, step: Int[Array, ""], rows: int) -> tuple[Key[Array, ""], Int[Array, "B"] | None]:
    """Returns (key of random state passing, position offsets or None) of a step, as a function of (seed, step)."""
    passing, shift = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))
    return passing, position_shift(config.model.memory, config.model.rope_base, shift, rows)


def dropout_key(config: TrainConfig, step: Int[Array, ""], microbatch: Int[Array, ""]) -> Key[Array, ""]:
    """Returns the PRNG key for LoRA's dropout and FAM's noise in a microbatch, as a function of (seed, step, number of
    the microbatch)."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    return jax.random.fold_in(jax.random.fold_in(key, DROPOUT), microbatch)


def make_loss(config: TrainConfig, mesh: Mesh) -> Callable[..., tuple[Float[Array, ""], Part]]:
    """Returns the loss function of a microbatch: (trained weights, frozen weights, state before the step, key of random
    state passing, microbatch, totals of the batch) to (loss, `Part`)."""
    axes = state_axes(config.model.memory)
    tokens_at_once = config.loss_chunk * sharding.batch_shards(mesh)

    def loss_fn(
        trained: Weights, frozen: Weights, state: TrainState, key: Key[Array, ""], part: Microbatch,
        totals: tuple[Float[Array, ""], Float[Array, ""]],
    ) -> tuple[Float[Array, ""], Part]:  # fmt: skip
        """Returns a microbatch's share of the batch's loss; `totals`: the batch's sums of weights and of
        `begun_here`."""
        batch, shift, memory, numbers = part
        params = optim.join_frozen(trained, frozen)
        model = build(config, mesh, params, auxiliary_scale(config))
        # Forward: rows continue their documents or start new ones.
        before = memory
        if before is not None:
            before = sharding.constrain(rows_first(before, back=True), axes, mesh)
        start = start_of_documents(config.model.memory, state, key, mesh)
        noise = None if numbers is None else dropout_key(config, state.step, numbers[0])
        layout = Layout(batch.starts, batch.kept, shift)
        hidden, after = model(batch.tokens, before, batch.count, start=start, layout=layout, key=noise)
        # Loss.
        loss = weighted_loss(
            model, hidden, batch.positions, batch.targets, batch.weights, total_weight=totals[0],
            tokens_at_once=tokens_at_once, z_loss=config.z_loss,
        )  # fmt: skip
        costs = {"loss": loss.cross_entropy}
        if config.z_loss:
            costs["z_loss"] = loss.z_loss
        if config.fam_growth_loss and before is not None:
            grown = growth(before, after, batch)
            costs["fam_growth_loss"] = jnp.asarray(config.fam_growth_loss * grown / config.batch_size, jnp.float32)
        if config.distillation:
            theirs = whole_rows(config, mesh, params, batch)
            far = divergence(model, hidden, theirs, begun_here(batch), totals[1], tokens_at_once)
            costs["distillation_loss"] = config.distillation * far
        # Outputs for the next step.
        passed_fam = sharding.constrain(after.stacked.fam[:, 0], (None,) * 4, mesh)
        rows = {"correct": loss.correct, "memory": rows_first(after) if config.carries_memory else None}
        out = Part(costs, (passed_fam, after.fam_updates[0]), rows)
        return sum(costs.values(), jnp.float32(0.0)), jax.lax.stop_gradient(out)

    return loss_fn


def make_step(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh) -> Step:
    """Returns the training step, for `jax.jit`. Randomness is a function of (seed, step), so a
    resumed run computes the same values as an uninterrupted one.

    Rows that continue documents of the previous step (`TrainConfig.carries_memory`) start with the memory that it left,
    which gets no gradient (truncated backpropagation). New documents start with `start_of_documents`.

    If the loss or gradient norm is not finite, the update is skipped and only `step` advances. If such steps are
    allowed (`skip_bad_steps`), so do the memories of rows, as their documents do, except those that are not finite.

    Metrics: `loss` (cross entropy); `z_loss`, `fam_growth_loss` and `distillation_loss` (added to it), if they are on;
    `fam_gate` (mean after the step), if there is one; `accuracy` (correct predictions, by loss weight);
    `gradient_norm`; `update_norm`; `learning_rate`; `tokens` (of the whole batch, up to the last one of each row);
    `correct` (bool, shape of the batch's targets); `squares` (`norms.squares` of `gradient`, `update` and `weight`:
    trained weights before the update).
    """
    where, axes = states.abstract(config, tx, mesh), state_axes(config.model.memory)
    rate = optim.schedule(config.optimizer, config.steps)
    gradients_lie, _ = optim.split_frozen(config.tuning, states.shardings(where).params)
    loss_fn = make_loss(config, mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        key, shift = draws(config, state.step, batch.tokens.shape[0])
        trained, frozen = optim.split_frozen(config.tuning, state.params)
        weight = batch.weights.sum()
        totals = weight, begun_here(batch).sum()

        def one(part: Microbatch) -> tuple[Weights, Part]:
            gradient = jax.value_and_grad(loss_fn, has_aux=True)
            (_, out), grads = gradient(trained, frozen, state, key, part, totals)
            return jax.lax.with_sharding_constraint(grads, gradients_lie), out

        memory = None if state.memory is None else rows_first(state.memory)
        numbers = jnp.arange(batch.tokens.shape[0]) if config.model.is_noisy else None
        grads, out = accumulate(one, config.microbatches, (batch, shift, memory, numbers))
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, trained)
            params = opened(optim.join_frozen(optax.apply_updates(trained, updates), frozen), config, state.step + 1)
        correct, memory = out.rows["correct"], out.rows["memory"]
        if config.carries_memory:
            memory = rescaled(rows_first(memory, back=True), config.carried_fam_rms, config.carried_fam_share)
            memory = sharding.constrain(memory, axes, mesh)
        passed_fam, passed_updates = out.passed
        new = TrainState(state.step, params, opt_state, passed_fam, passed_updates, memory)
        metrics = {
            **out.costs,
            "accuracy": (correct * batch.weights).sum() / jnp.maximum(weight, 1e-9),
            "tokens": batch.count.sum(),
            "correct": correct,
            "learning_rate": rate(optim.updates_done(state.opt_state)),
            **norms_of(grads, updates, trained, mesh),
        }
        finite = jnp.isfinite(metrics["gradient_norm"]) & jnp.isfinite(sum(out.costs.values()))
        new = select(finite, new, state, reads_on=bool(config.skip_bad_steps))
        if config.model.memory.has_gate:
            metrics["fam_gate"] = new.params["fam"]["gate"].mean()
        return dataclasses.replace(new, step=state.step + 1), metrics

    return step


@jax.named_scope("optimizer")
def norms_of(grads: Weights, updates: Weights, trained: Weights, mesh: Mesh) -> dict[str, Any]:
    """Returns the metrics `gradient_norm`, `update_norm` and `squares` of a step; see `make_step`."""
    sums = {"gradient": squares(grads), "update": squares(updates), "weight": squares(trained)}
    sums = jax.lax.with_sharding_constraint(sums, sharding.replicated(mesh))
    norm = lambda name: jnp.sqrt(sum(values.sum() for values in sums[name].values()))
    return {"gradient_norm": norm("gradient"), "squares": sums, "update_norm": norm("update")}


def opened(params: Weights, config: TrainConfig, step: Int[Array, ""]) -> Weights:
    """Returns the weights after `step` steps, with FAM's gate at least min(step / `config.opening_steps`, 1).

    If `opening_steps` is 0, the weights are unchanged.
    """
    if not config.opening_steps:
        return params
    gate = params["fam"]["gate"]
    gate = jnp.maximum(gate, jnp.minimum(step / config.opening_steps, 1.0).astype(gate.dtype))
    return params | {"fam": params["fam"] | {"gate": gate}}


def whole_rows(config: TrainConfig, mesh: Mesh, params: Weights, batch: Batch) -> Float[Array, "B T D"]:
    """Returns the hidden states of `TrainConfig.teacher`, without gradient: the model without LoRA and FAM, whose
    tokens attend to their whole document in the row."""
    layers = {name: tree for name, tree in params["layers"].items() if name not in ("lora", "memory")}
    base = {name: tree for name, tree in params.items() if name not in ("fam", "memory")} | {"layers": layers}
    model = build(dataclasses.replace(config, model=config.teacher), mesh, jax.lax.stop_gradient(base))
    hidden, _ = model(batch.tokens, None, batch.count, layout=Layout(batch.starts, None, None))
    return jax.lax.stop_gradient(hidden)


def begun_here(batch: Batch) -> Float[Array, "B T"]:
    """Returns 1 for the tokens of documents that begin in the batch, else 0. Padding between two documents of a row
    counts as the end of the first."""
    T, N = batch.tokens.shape[1], batch.starts.shape[1]
    begun = jnp.repeat(jnp.cumsum(batch.starts, axis=1) > 0, T // N, axis=1)
    return (begun & (jnp.arange(T) < batch.count[:, None])).astype(jnp.float32)


def rescaled(memory: MemoryState, most: float, share: float = 1.0) -> MemoryState:
    """Returns a memory whose FAM is scaled down to an RMS over D of at most `most` (0: unchanged) in a share of the
    rows, the first ones; see `TrainConfig.carried_fam_rms`. Layers normalise FAM before they project it, so its keys
    and values remain valid."""
    if not most:
        return memory
    fam = memory.stacked.fam
    scaled = (jnp.arange(fam.shape[1]) < round(share * fam.shape[1]))[:, None, None, None]
    layers = dataclasses.replace(memory.stacked, fam=jnp.where(scaled, at_most(fam, most), fam))
    return dataclasses.replace(memory, layers=layers)


def growth(before: MemoryState, after: MemoryState, batch: Batch) -> Float[Array, ""]:
    """Returns the per-block growth of FAM's RMS over D, at least 0, for rows that continue a document: the mean over
    layers and activations, summed over rows."""
    N = batch.starts.shape[1]
    kept_B = jnp.full(batch.starts.shape[0], N) if batch.kept is None else batch.kept
    full_B = jnp.minimum(kept_B, batch.count * N // batch.tokens.shape[1])
    continues = ~jnp.any(batch.starts & (jnp.arange(N) < kept_B[:, None]), axis=1) & (full_B > 0)
    rms = lambda memory: fam_rms(memory.stacked.fam[:, :, 0])[..., 0]  # [L, B, F]
    grown = jax.nn.relu(rms(after) - rms(before)).mean(axis=(0, 2)) / jnp.maximum(full_B, 1)
    return jnp.where(continues, grown, 0.0).sum()


def select(keep: Bool[Array, ""], new: TrainState, old: TrainState, reads_on: bool = False) -> TrainState:
    """Returns `new` if `keep`, else `old`, but with the finite memories of `new` if the run `reads_on` after a skipped
    step. Elementwise, so that it fuses with the update and works in place."""
    chosen: TrainState = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)
    if not reads_on or new.memory is None or old.memory is None:
        return chosen
    return dataclasses.replace(chosen, memory=select_state_rows(finite_rows(new.memory), new.memory, old.memory))


def finite_rows(memory: MemoryState) -> Bool[Array, "B"]:
    """Returns the rows whose memory is finite."""
    flags = [jnp.isfinite(x).reshape(len(x), -1).all(axis=1) for x in jax.tree.leaves(rows_first(memory)) if x.size]
    return jnp.stack(flags).all(axis=0)


def rows_first(memory: MemoryState, back: bool = False) -> MemoryState:
    """Moves the row axis of a memory's arrays from 1 to 0, to split it into microbatches, or `back` to 1."""
    source, target = (0, 1) if back else (1, 0)
    move = lambda x: jnp.moveaxis(x, source, target)
    return dataclasses.replace(memory, layers=jax.tree.map(move, memory.layers))


def accumulate(one: Callable[[Tree], tuple[Weights, Part]], microbatches: int, batch: Tree) -> tuple[Weights, Part]:
    """Applies `one` to the microbatches sequentially and sums their gradients.

    Args:
      one: maps the rows of a microbatch to (gradients, `Part`).
      microbatches: number of microbatches. Microbatch i has the rows i, i + microbatches, ..., so that rows stay on
        their device; contiguous microbatches would move them.
      batch: a tree of arrays [B, ...].

    Returns:
      Sums of gradients (accumulated in float32) and costs, `rows` in the order of the batch's rows, and the passed FAM
      of the first microbatch, which has the batch's first row.
    """
    if microbatches == 1:
        return one(batch)
    # Explicit sizes: -1 is ambiguous for an empty array, such as the FAM of a memory without FAM.
    split = lambda x: jnp.moveaxis(x.reshape(len(x) // microbatches, microbatches, *x.shape[1:]), 1, 0)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    parts = jax.tree.map(split, batch)
    grads, out = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    zeros = lambda tree, dtype=None: jax.tree.map(lambda x: jnp.zeros(x.shape, dtype or x.dtype), tree)

    def add(carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
        sums, costs, passed = carry
        first, part = xs
        grads, new = one(part)
        sums = jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, grads)
        costs = jax.tree.map(jnp.add, costs, new.costs)
        return (sums, costs, jax.tree.map(lambda a, b: jnp.where(first, a, b), new.passed, passed)), new.rows

    start = zeros(grads, jnp.float32), zeros(out.costs), zeros(out.passed)
    (sums, costs, passed), rows = jax.lax.scan(add, start, (jnp.arange(microbatches) == 0, parts))
    sums = jax.tree.map(lambda total, x: total.astype(x.dtype), sums, grads)
    return sums, Part(costs, passed, jax.tree.map(join, rows))


def jit_step(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted training step, which is compiled at its first call. Its state argument is donated.

    It is compiled once, for the shapes and shardings that all batches and states of a run share; `compilations` counts
    the programs.
    """
    state = states.shardings(states.abstract(config, tx, mesh))
    return jax.jit(
        make_step(config, tx, mesh), donate_argnums=0,
        in_shardings=(state, sharding.by_rows(mesh)), out_shardings=(state, None),
    )  # fmt: skip


def compilations(step_fn: Any) -> int:
    """Returns the number of programs compiled for a jitted step. Above 1, shapes, types or shardings have changed."""
    return int(step_fn._cache_size())
