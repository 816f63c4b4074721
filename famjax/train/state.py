"""The state that a training run carries from step to step, and its shardings."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from famjax.attention.memory import MemoryState, state_axes
from famjax.config import TrainConfig
from famjax.config.optimizer import LORA, MEMORY
from famjax.dims import Float, Int, Tree, Weights
from famjax.mesh import sharding
from famjax.nn import weights as model_lib
from famjax.storage import base as bases
from famjax.train import optim

PASSED_FAM_AXES = ("layers", None, "fam", "embed")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that determines the next step.

    Attributes:
      step: int32, number of steps done.
      params: the weights, a nested dict.
      opt_state: the optimizer's state, for the trained weights only.
      passed_fam: float32, FAM of the first row after the last step, for random state passing (paper section 2, length
        extrapolation).
      passed_updates: int32, number of updates of that FAM; 0 before the first step.
      memory: the memory of the B rows, if rows may continue the documents of the previous step; else None.
    """

    step: Int[Any, ""]
    params: Weights
    opt_state: Tree
    passed_fam: Float[Any, "L P F D"]
    passed_updates: Int[Any, ""]
    memory: MemoryState | None = None


def abstract(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh | AbstractMesh) -> TrainState:
    """Returns shapes, types and shardings of a state (`jax.ShapeDtypeStruct`), without computing anything."""
    shapes = jax.eval_shape(lambda params: _with_weights(config, tx, params), model_lib.parameter_shapes(config.model))
    params = sharding.shardings(model_lib.parameter_axes(config.model), shapes.params, mesh)
    where = TrainState(
        step=sharding.replicated(mesh),
        params=params,
        opt_state=sharding.like_parameters(shapes.opt_state, shapes.params, params, mesh),
        passed_fam=sharding.shardings(PASSED_FAM_AXES, shapes.passed_fam, mesh),
        passed_updates=sharding.replicated(mesh),
        memory=None
        if shapes.memory is None
        else sharding.shardings(state_axes(config.model.memory), shapes.memory, mesh),
    )
    return sharding.with_shardings(shapes, where)


def shardings(state: TrainState) -> TrainState:
    """Returns the sharding of each array of a state, concrete or abstract."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def create(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns a new state with random weights.

    Each device initialises its own shards, so no device ever holds a whole sharded model. The weights depend on the
    seed alone, not on the mesh.
    """
    fresh = lambda: _with_weights(config, tx, model_lib.parameters(model_lib.create(config.model, config.seed)))
    return jax.jit(fresh, out_shardings=shardings(abstract(config, tx, mesh)))()


def _with_weights(config: TrainConfig, tx: optax.GradientTransformation, params: Weights) -> TrainState:
    trained, _ = optim.split_frozen(config.tuning, params)
    memory = config.model.memory
    passed = (config.model.num_layers, memory.previous_fams, memory.fam_length, config.model.d_model)
    return TrainState(
        jnp.int32(0), params, tx.init(trained), jnp.zeros(passed, jnp.float32), jnp.int32(0), _no_memory(config)
    )


def _no_memory(config: TrainConfig) -> MemoryState | None:
    """Returns zeros as the memory before the first step, or None if memory is not carried between steps.

    The zeros are not used, since every row of the first batch starts a document.
    """
    if not config.carries_memory:
        return None
    shapes = model_lib.memory_shapes(config.model, config.batch_size)
    memory: MemoryState = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return memory


def own_weights(config: TrainConfig, params: Weights) -> Weights:
    """Returns the weights that a checkpoint with a base stores: the trained ones, and always LoRA and the memory."""
    trained = lambda path: not config.tuning.settings_of(path)["frozen"]
    return bases.part(params, lambda path: path.startswith((LORA, *MEMORY)) or trained(path))


def to_save(state: TrainState) -> dict[str, Any]:
    """Returns the part of a state that a checkpoint stores besides step and weights: `opt_state`, and the other arrays
    by path (`memory.layers.fam`). Orbax stores no empty arrays, so a FAM of length 0 is left out."""
    return {"opt_state": state.opt_state} | {path: leaf for path, leaf in _carried(state) if leaf.size}


def from_saved(step: int, params: Weights, saved: dict[str, Any], where: TrainState) -> TrainState:
    """Returns the state that a checkpoint stores: steps done, weights, and `saved`, the arrays of `to_save`. `where` is
    the abstract state with shardings, from `abstract`."""
    empty = lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
    leaves = [saved[path] if path in saved else empty(leaf) for path, leaf in _carried(where)]
    rest = jax.tree.unflatten(jax.tree.structure(_without_weights(where)), leaves)
    step_array = jax.device_put(np.int32(step), where.step.sharding)
    return dataclasses.replace(rest, step=step_array, params=params, opt_state=saved["opt_state"])


def _without_weights(state: TrainState) -> TrainState:
    return dataclasses.replace(state, step=None, params={}, opt_state=None)


def _carried(state: TrainState) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(_without_weights(state))
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]
