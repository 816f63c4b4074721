"""The training step: one pure function from state and batch to state and metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from famjax.attention.memory import MemoryState, at_most, fam_rms, state_axes
from famjax.attention.positions import Layout
from famjax.config import MemoryConfig, TrainConfig
from famjax.data.batch import Batch
from famjax.dims import Array, Bool, Float, Int, Key, Tree, Weights
from famjax.nn.execution import Execution
from famjax.nn.model import Start, Transformer
from famjax.nn.weights import structure
from famjax.runtime import sharding
from famjax.runtime.on_mesh import placement
from famjax.train import optim
from famjax.train import state as states
from famjax.train.loss import divergence, weighted_loss
from famjax.train.norms import squares
from famjax.train.state import TrainState

Step: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]

# Rows of a batch, their random position offsets, their memories (rows first) and their numbers in the batch, the
# latter three None where unused.
Microbatch: TypeAlias = tuple[Batch, Int[Array, "B"] | None, MemoryState | None, Int[Array, "B"] | None]
# Folded into a step's key, for a stream of random numbers of its own.
DROPOUT = 0


class Part(NamedTuple):
    """Auxiliary outputs of one microbatch.

    Attributes:
      costs: by their names in the metrics (`loss`, the cross entropy; `z_loss` ...), its parts of the batch's.
      passed: (FAM, its updates) of its first row, which random state passing hands on.
      rows: by row, `correct` [B, W] and `memory` (rows first) after the last token, or None.
    """

    costs: dict[str, Float[Array, ""]]
    passed: tuple[Float[Array, "L P F D"], Int[Array, ""]]
    rows: dict[str, Any]


def start_of_documents(config: MemoryConfig, state: TrainState, key: Key[Array, ""] | None, mesh: Mesh) -> Start:
    """The initial memory of documents in this step: the learned prompt or, by random state passing, the FAM with
    which the last step ended (one draw a step, for all rows). Without a key, the prompt."""
    if key is None or not config.fam_length or not config.random_state_passing:
        return Start()
    use = jax.random.bernoulli(key, config.random_state_passing) & (state.passed_updates > 0)
    use &= state.step >= config.random_state_passing_from
    # Between steps the passed FAM is cut along D; here it is an activation, and must not spread that cut.
    passed_fam = sharding.constrain(state.passed_fam, (None,) * 4, mesh)
    return Start(jax.lax.stop_gradient(passed_fam), state.passed_updates, use)


def position_shift(
    config: MemoryConfig, rope_base: float, key: Key[Array, ""], rows: int
) -> Int[Array, "B"] | None:  # fmt: skip
    """Random position offset of each row (paper section 2): uniform in [0, 2 pi base), or 0. None: it has no effect."""
    if config.fam_position != "zero" or not config.random_position_offset:
        return None  # it would change nothing but rounding
    keep_key, draw_key = jax.random.split(key)
    shift = jax.random.randint(draw_key, (rows,), 0, int(2 * jnp.pi * rope_base))
    return jnp.where(jax.random.bernoulli(keep_key, config.random_position_offset, (rows,)), shift, 0)


def build(config: TrainConfig, mesh: Mesh, params: Weights) -> Transformer:
    """The model with these weights, on its mesh."""
    execution = Execution.of(config.model, placement(mesh))
    model: Transformer = nnx.merge(structure(config.model, execution), params)
    return model


def rows_before(
    model: Transformer, start: Start, rows: int, memory: MemoryState | None, mesh: Mesh
) -> MemoryState:  # fmt: skip
    """The memory of the rows before a step, for what looks at one: that which they carry (`rows_first`), or, if they
    carry none, that of a document's start."""
    memory = model.initial_state(rows, start) if memory is None else rows_first(memory, back=True)
    constrained: MemoryState = sharding.constrain(memory, state_axes(model.config.memory), mesh)
    return constrained


def draws(
    config: TrainConfig, step: Int[Array, ""], rows: int
) -> tuple[Key[Array, ""], Int[Array, "B"] | None]:  # fmt: skip
    """(key of random state passing, position offsets or None) of a step: functions of (seed, step)."""
    passing, shift = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))
    return passing, position_shift(config.model.memory, config.model.rope_base, shift, rows)


def dropout_key(config: TrainConfig, step: Int[Array, ""], microbatch: Int[Array, ""]) -> Key[Array, ""]:
    """From which a microbatch draws what LoRA leaves out, and the noise on FAM: a function of (seed, step, number of
    the microbatch)."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    return jax.random.fold_in(jax.random.fold_in(key, DROPOUT), microbatch)


def make_step(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh) -> Step:
    """A step for `jax.jit`. Randomness is a function of (seed, step), so a resumed run draws the same.

    Where rows go on with the documents of the step before (`TrainConfig.carries_memory`), they start with the
    memory that these have left, a constant to this step's gradient: truncated backpropagation. Documents
    that start anew start with `start_of_documents`.

    If the loss or gradient norm is not finite, the update is skipped and only `step` advances.

    Its metrics: `loss` (cross entropy); `z_loss`, `fam_growth_loss` and `distillation_loss` (what is added to it) if
    asked for; `fam_gate` (the mean, after the step) if there is one;
    `accuracy` (share of the loss weights at which the first choice is right), `gradient_norm`, `tokens` (real
    ones, of the whole batch), `correct` (bool, of the shape of the batch's targets), `squares`: of `gradient`, `update`
    and `weight` (that is trained, before the update) what `norms.squares` gives, and `update_norm`.
    """
    where, axes = states.abstract(config, tx, mesh), state_axes(config.model.memory)
    gradients_lie, _ = optim.split_frozen(config.tuning, states.shardings(where).params)
    tokens_at_once = config.loss_chunk * sharding.batch_shards(mesh)

    def loss_fn(
        trained: Weights, frozen: Weights, state: TrainState, key: Key[Array, ""], part: Microbatch,
        totals: tuple[Float[Array, ""], Int[Array, ""]],
    ) -> tuple[Float[Array, ""], Part]:  # fmt: skip
        """What a microbatch adds to the batch's loss; `totals` are the batch's sum of weights and its tokens."""
        batch, shift, memory, numbers = part
        params = optim.join_frozen(trained, frozen)
        model = build(config, mesh, params)
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
        if config.fam_growth_loss:
            grown = growth(before, after, batch) if before is not None else 0.0
            costs["fam_growth_loss"] = jnp.asarray(config.fam_growth_loss * grown / config.batch_size, jnp.float32)
        if config.distillation:
            theirs = whole_rows(config, mesh, params, batch)
            real = (jnp.arange(hidden.shape[1]) < batch.count[:, None]).astype(jnp.float32)
            far, _ = divergence(model, hidden, theirs, real, totals[1], tokens_at_once)
            costs["distillation_loss"] = config.distillation * far
        # What the next step may need.
        passed_fam = sharding.constrain(after.stacked.fam[:, 0], (None,) * 4, mesh)
        rows = {"correct": loss.correct, "memory": rows_first(after) if config.carries_memory else None}
        out = Part(costs, (passed_fam, after.fam_updates[0]), rows)
        return sum(costs.values(), jnp.float32(0.0)), jax.lax.stop_gradient(out)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        key, shift = draws(config, state.step, batch.tokens.shape[0])
        trained, frozen = optim.split_frozen(config.tuning, state.params)
        weight = batch.weights.sum()
        totals = weight, batch.count.sum()

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
        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(grads)
            sums = {"gradient": squares(grads), "update": squares(updates), "weight": squares(trained)}
            sums = jax.lax.with_sharding_constraint(sums, sharding.replicated(mesh))
            new = select(jnp.isfinite(norm) & jnp.isfinite(sum(out.costs.values())), new, state)
        metrics = {
            **out.costs,
            "accuracy": (correct * batch.weights).sum() / jnp.maximum(weight, 1e-9),
            "gradient_norm": norm,
            "tokens": batch.count.sum(),
            "correct": correct,
            "squares": sums,
            "update_norm": jnp.sqrt(sum(values.sum() for values in sums["update"].values())),
        }
        if config.model.memory.has_gate:
            metrics["fam_gate"] = new.params["fam"]["gate"].mean()
        return dataclasses.replace(new, step=state.step + 1), metrics

    return step


def opened(params: Weights, config: TrainConfig, step: Int[Array, ""]) -> Weights:
    """Weights with a gate before FAM as far open as it is after a number of steps, if steps decide it."""
    if not config.opening_steps:
        return params
    gate = params["fam"]["gate"]
    gate = jnp.maximum(gate, jnp.minimum(step / config.opening_steps, 1.0).astype(gate.dtype))
    return params | {"fam": params["fam"] | {"gate": gate}}


def whole_rows(config: TrainConfig, mesh: Mesh, params: Weights, batch: Batch) -> Float[Array, "B T D"]:
    """Hidden states of `TrainConfig.teacher`, whose tokens see their document as far as the row has it."""
    layers = {name: tree for name, tree in params["layers"].items() if name not in ("lora", "memory")}
    base = {name: tree for name, tree in params.items() if name not in ("fam", "memory")} | {"layers": layers}
    model = build(dataclasses.replace(config, model=config.teacher), mesh, jax.lax.stop_gradient(base))
    hidden, _ = model(batch.tokens, None, batch.count, layout=Layout(batch.starts, None, None))
    return jax.lax.stop_gradient(hidden)


def rescaled(memory: MemoryState, most: float, share: float = 1.0) -> MemoryState:
    """A memory whose feedback activations are scaled down to a root mean square over D of `most` (0: as they are) in a
    share of the rows, the first ones; see `TrainConfig.carried_fam_rms`. Layers normalise FAM where they read it, so
    its keys and values stay right."""
    if not most:
        return memory
    fam = memory.stacked.fam
    scaled = (jnp.arange(fam.shape[1]) < round(share * fam.shape[1]))[:, None, None, None]
    layers = dataclasses.replace(memory.stacked, fam=jnp.where(scaled, at_most(fam, most), fam))
    return dataclasses.replace(memory, layers=layers)


def growth(before: MemoryState, after: MemoryState, batch: Batch) -> Float[Array, ""]:
    """How much longer FAM became a block, in rows that go on with a document from the memory before: the growth of
    its root mean square over D, mean over layers and activations, summed over rows."""
    N = batch.starts.shape[1]
    kept_B = jnp.full(batch.starts.shape[0], N) if batch.kept is None else batch.kept
    full_B = jnp.minimum(kept_B, batch.count * N // batch.tokens.shape[1])
    goes_on = ~jnp.any(batch.starts & (jnp.arange(N) < kept_B[:, None]), axis=1) & (full_B > 0)
    rms = lambda memory: fam_rms(memory.stacked.fam[:, :, 0])[..., 0]  # [L, B, F]
    grown = jax.nn.relu(rms(after) - rms(before)).mean(axis=(0, 2)) / jnp.maximum(full_B, 1)
    return jnp.where(goes_on, grown, 0.0).sum()


def select(keep: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """`new` where `keep` is set, else `old`. Elementwise, so it is made where the update is, in place."""
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def rows_first(memory: MemoryState, back: bool = False) -> MemoryState:
    """A memory's arrays with the rows in front, where they can be cut into microbatches; or `back` again."""
    source, target = (0, 1) if back else (1, 0)
    move = lambda x: jnp.moveaxis(x, source, target)
    return dataclasses.replace(memory, layers=jax.tree.map(move, memory.layers))


def accumulate(one: Callable[[Tree], tuple[Weights, Part]], microbatches: int, batch: Tree) -> tuple[Weights, Part]:
    """`one` on each microbatch, one after the other.

    Args:
      one: from rows to (gradients, `Part`); gradients and losses of all microbatches add up.
      microbatches: their number. Microbatch i has the rows i, i + microbatches, ...: every device keeps
        its own rows, where contiguous ones would have to move to others.
      batch: a tree of arrays [B, ...].

    Returns:
      Sums of gradients (added in float32) and costs, `rows` in the order of the batch's rows, and the
      passed FAM of the first microbatch, which has the batch's first row.
    """
    if microbatches == 1:
        return one(batch)
    # Sizes in full: the FAM of a memory without FAM is an empty array, for which -1 says nothing.
    cut = lambda x: jnp.moveaxis(x.reshape(len(x) // microbatches, microbatches, *x.shape[1:]), 1, 0)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    parts = jax.tree.map(cut, batch)
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
    """The step, compiled for a mesh at its first call. The state that it is given is donated: use the new one.

    It is compiled for one set of shapes and shardings, which every batch and every state of a run have;
    `compilations` tells if that holds.
    """
    state = states.shardings(states.abstract(config, tx, mesh))
    return jax.jit(
        make_step(config, tx, mesh), donate_argnums=0,
        in_shardings=(state, sharding.by_rows(mesh)), out_shardings=(state, None),
    )  # fmt: skip


def compilations(step_fn: Any) -> int:
    """How many programs a jitted step has become. More than 1: shapes, types or shardings have changed."""
    return int(step_fn._cache_size())
