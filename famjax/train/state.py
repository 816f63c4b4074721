"""What a training run carries from step to step, and where it lies on the mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from famjax.attention.memory import MemoryState, state_axes
from famjax.config import TrainConfig
from famjax.config.optimizer import MEMORY
from famjax.dims import Float, Int, Tree, Weights
from famjax.mesh import sharding
from famjax.nn import weights as model_lib
from famjax.storage import base as bases
from famjax.train import optim

PASSED_FAM_AXES = ("layers", None, "fam", "embed")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that decides the next step.

    Attributes:
      step: int32, steps done.
      params: the weights, a nested dict.
      opt_state: the optimizer's, of the weights that are trained.
      passed_fam: float32, FAM of the first row at the end of the last step, which random state passing hands on
        (paper section 2, length extrapolation).
      passed_updates: int32, updates that FAM has had; 0 before the first step.
      memory: of the B rows, where rows go on with the documents of the step before; else None.
    """

    step: Int[Any, ""]
    params: Weights
    opt_state: Tree
    passed_fam: Float[Any, "L P F D"]
    passed_updates: Int[Any, ""]
    memory: MemoryState | None = None


def abstract(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh | AbstractMesh) -> TrainState:
    """Shapes, types and shardings of a state (`jax.ShapeDtypeStruct`). Computes nothing, whatever the size."""
    shapes = jax.eval_shape(lambda: _fresh(config, tx))
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
    """Where each array of a state, or of an abstract one, lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def create(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A fresh state with random weights.

    Each device makes its own part, so no device ever holds the whole of a model that is cut. The weights
    depend on the seed alone, not on the mesh.
    """
    return jax.jit(lambda: _fresh(config, tx), out_shardings=shardings(abstract(config, tx, mesh)))()


def _fresh(config: TrainConfig, tx: optax.GradientTransformation) -> TrainState:
    params = model_lib.parameters(model_lib.create(config.model, config.seed))
    trained, _ = optim.split_frozen(config.tuning, params)
    memory = config.model.memory
    passed = (config.model.num_layers, memory.previous_fams, memory.fam_length, config.model.d_model)
    return TrainState(
        jnp.int32(0), params, tx.init(trained), jnp.zeros(passed, jnp.float32), jnp.int32(0), _no_memory(config)
    )


def _no_memory(config: TrainConfig) -> MemoryState | None:
    """Before the first step nothing was read: every row of the first batch starts a document."""
    if not config.carries_memory:
        return None
    shapes = jax.eval_shape(lambda: model_lib.create(config.model).initial_state(config.batch_size))
    memory: MemoryState = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return memory


def own_weights(config: TrainConfig, params: Weights) -> Weights:
    """The weights that a training has not from its base: those it trains, and LoRA and the memory's in any case."""
    trained = lambda path: not config.tuning.settings_of(path)["frozen"]
    return bases.part(params, lambda path: path.startswith(("layers/lora/", *MEMORY)) or trained(path))


def to_save(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds beside the step and the weights: `opt_state`, and the other arrays by their
    paths (`memory.layers.fam`). Orbax stores no empty array, so no FAM of length 0."""
    return {"opt_state": state.opt_state} | {path: leaf for path, leaf in _carried(state) if leaf.size}


def from_saved(step: int, params: Weights, saved: dict[str, Any], where: TrainState) -> TrainState:
    """A state again, on the mesh of `where`, the abstract one."""
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
