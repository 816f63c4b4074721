"""What a training run carries from step to step, and where it lies on the mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from famjax.config import ModelConfig, TrainConfig
from famjax.nn import model as model_lib
from famjax.runtime import sharding
from famjax.train import optim

PASSED_FAM_AXES = ("layers", None, "fam", "embed")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that decides the next step.

    Attributes:
      step: int32 [], steps done.
      params: the weights, a nested dict.
      opt_state: the optimizer's, of the weights that are trained.
      passed_fam: float32 [L, P, F, D], FAM of the first row at the end of the last step, which
        random state passing hands on (paper section 2, length extrapolation).
      passed_updates: int32 [], updates that FAM has had; 0 before the first step.
    """

    step: Any
    params: Any
    opt_state: Any
    passed_fam: Any
    passed_updates: Any


def structure(config: ModelConfig) -> nnx.GraphDef[Any]:
    """The model without its weights, for `nnx.merge`."""
    return nnx.graphdef(nnx.eval_shape(lambda: model_lib.create(config)))


def abstract(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of a state (`jax.ShapeDtypeStruct`). Computes nothing, whatever the size."""
    shapes = jax.eval_shape(lambda: _fresh(config, tx))
    params = sharding.shardings(model_lib.parameter_axes(config.model), shapes.params, mesh)
    where = TrainState(
        step=sharding.replicated(mesh),
        params=params,
        opt_state=sharding.like_parameters(shapes.opt_state, shapes.params, params, mesh),
        passed_fam=sharding.shardings(PASSED_FAM_AXES, shapes.passed_fam, mesh),
        passed_updates=sharding.replicated(mesh),
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
    trained, _ = optim.split_frozen(config.optimizer, params)
    memory = config.model.memory
    passed = (config.model.num_layers, memory.previous_fams, memory.fam_length, config.model.d_model)
    return TrainState(jnp.int32(0), params, tx.init(trained), jnp.zeros(passed, jnp.float32), jnp.int32(0))
