"""Locates a non-finite loss or gradient: the first bad layer, and whether weights or activations are at fault.

The step has kept the weights from before the update (`step.make_step`), so the bad step can be recomputed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from famjax.attention.positions import Layout
from famjax.attention.sequence import over_blocks
from famjax.config import TrainConfig
from famjax.data.batch import Batch
from famjax.dims import Array, Bool, Float, Int, Weights
from famjax.mesh import sharding
from famjax.storage.arrays import leaves
from famjax.train import state as states
from famjax.train.state import TrainState
from famjax.train.step import build, draws, dropout_key, rows_before, rows_first, start_of_documents
from famjax.train.watching.norms import not_finite


def explain(
    config: TrainConfig, mesh: Mesh, state: TrainState, batch: Batch, loss: float, squares: dict[str, Any]
) -> str:  # fmt: skip
    """Describes where a bad step first becomes non-finite.

    Args:
      config, mesh: configuration and mesh of the run.
      state: the state that the bad step returned: the old weights, with `step` advanced, and the old memories, at least
        of rows in which it is not finite.
      batch: batch of that step.
      loss, squares: metrics `loss` and `squares` of that step.

    Returns:
      The first of these that applies: non-finite weights; the first layer with a non-finite output or FAM; a non-finite
      loss; the last layer with a non-finite gradient (the backward pass visits layers from last to first); non-finite
      updates.
    """
    weights = jax.device_get(jax.jit(_weights, out_shardings=sharding.replicated(mesh))(state.params))
    if bad := _places(weights["bad"]):
        return f"the weights are at fault: {_first(bad)} {_is_not(len(bad))} finite; the batch is not to blame"
    forward = check_forward(config, mesh, state, batch)
    largest = f"its weights are finite, the largest is {_largest(weights['largest'], forward['layer']):.3g}"
    if forward["layer"] is not None:
        what = " and ".join(forward["what"])
        return f"layer {forward['layer']} is the first whose {what} {_is_not(len(forward['what']))} finite; {largest}"
    if not forward["hidden"]:
        return "every layer's output is finite, the final norm's is not"
    if not np.isfinite(loss):
        return "the weights and every layer's output are finite; the logits, or the batch's loss weights, are at fault"
    if gradients := not_finite(squares["gradient"]):
        name, layer = max(gradients, key=lambda place: np.inf if place[1] is None else place[1])
        of = f" of layer {layer}" if layer is not None else ""
        return f"every layer's output is finite; going backward, the gradient of {name}{of} is the first that is not"
    if updates := not_finite(squares["update"]):
        return f"outputs and gradients are finite; the update of {_first(updates)} is not"
    return "every layer's output and every gradient are finite; their norm is too large for float32"


def check_forward(config: TrainConfig, mesh: Mesh, state: TrainState, batch: Batch) -> dict[str, Any]:
    """Recomputes the bad step's forward pass, one microbatch at a time, with the same dropout and noise on FAM.

    Returns:
      A dict: `layer` is the index of the first layer with non-finite values, or None; `what` lists where they are:
      "output", "FAM" ("memory" for a memory of another kind); `hidden` is True if the hidden states after the final
      norm are finite.
    """
    state = dataclasses.replace(state, step=state.step - 1)

    def observed(*args: Any) -> tuple[Float[Array, "N B S D"], tuple[Bool[Array, ""], ...]]:
        y, after = over_blocks(*args)
        remembered = jax.tree.leaves((after.fam, after.beside))
        return y, (jnp.isfinite(y).all(), jnp.stack([jnp.isfinite(x).all() for x in remembered]).all())

    def forward(state: TrainState, batch: Batch, number: Int[Array, ""]) -> tuple[Bool[Array, "..."], ...]:
        key, shift = draws(config, state.step, batch.tokens.shape[0])
        memory = None if state.memory is None else rows_first(state.memory)
        part = lambda x: x.reshape(len(x) // config.microbatches, config.microbatches, *x.shape[1:])[:, number]
        batch, shift, memory = jax.tree.map(part, (batch, shift, memory))
        model = build(config, mesh, state.params)
        start = start_of_documents(config.model.memory, state, key, mesh)
        memory = rows_before(model, start, len(batch.tokens), memory, mesh)
        layout = Layout(batch.starts, None, shift)
        where = model.locate(memory, batch.count, batch.tokens.shape[1], start, layout)
        noise = dropout_key(config, state.step, number) if config.model.is_noisy else None
        hidden, found = model.observe(model.embed(batch.tokens), memory, where, start, observed, noise)
        return *found, jnp.isfinite(hidden).all()

    places = (states.shardings(state), sharding.by_rows(mesh))
    check = jax.jit(forward, in_shardings=(*places, None), out_shardings=sharding.replicated(mesh))
    parts = [jax.device_get(check(state, batch, number)) for number in range(config.microbatches)]
    outputs, fams, hidden = (functools.reduce(np.logical_and, part) for part in zip(*parts, strict=True))
    bad = np.flatnonzero(~(outputs & fams))
    layer = int(bad[0]) if bad.size else None
    name = "FAM" if config.model.memory.fam_length else "memory"
    what = [] if layer is None else ["output"] * (not outputs[layer]) + [name] * (not fams[layer])
    return {"layer": layer, "what": what, "hidden": bool(hidden)}


def _weights(params: Weights) -> dict[str, dict[str, Array]]:
    """Returns, by path and per layer, whether values are not finite, and the largest absolute value."""
    bad, largest = {}, {}
    for path, leaf in leaves(params).items():
        axes = tuple(range(1 if path.startswith("layers/") else 0, leaf.ndim))
        bad[path] = ~jnp.isfinite(leaf).all(axis=axes)
        largest[path] = jnp.abs(leaf).max(axis=axes)
    return {"bad": bad, "largest": largest}


def _places(bad: dict[str, Any]) -> list[tuple[str, int | None]]:
    return not_finite({path: np.where(flags, np.nan, 0.0) for path, flags in bad.items()})


def _first(places: list[tuple[str, int | None]]) -> str:
    """Returns the name of the weight in the lowest layer, and the number of other places."""
    name, layer = min(places, key=lambda place: -1 if place[1] is None else place[1])
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    return f"{name}{f' of layer {layer}' if layer is not None else ''}{more}"


def _largest(largest: dict[str, Any], layer: int | None) -> float:
    of_layer = [values[layer] for values in largest.values() if values.ndim and layer is not None]
    return float(max(of_layer, default=0.0))


def _is_not(count: int) -> str:
    return "are not" if count > 1 else "is not"
