"""What a training run carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from famjax.config import ModelConfig
from famjax.nn import model as model_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that decides the next step.

    Attributes:
      step: int32 [], steps done.
      params: the weights, a nested dict.
      opt_state: the optimizer's.
      passed_fam: float32 [L, P, F, D], FAM of the first row at the end of the last step, which
        random state passing hands on (paper section 2, length extrapolation).
      passed_updates: int32 [], updates that FAM has had; 0 before the first step.
    """

    step: Any
    params: Any
    opt_state: Any
    passed_fam: Any
    passed_updates: Any


def create(config: ModelConfig, tx: optax.GradientTransformation, seed: int) -> tuple[nnx.GraphDef[Any], TrainState]:
    """The model's structure, and a fresh state with random weights."""
    model = model_lib.create(config, seed)
    params = model_lib.parameters(model)
    memory = config.memory
    passed = jnp.zeros((config.num_layers, memory.previous_fams, memory.fam_length, config.d_model), jnp.float32)
    state = TrainState(jnp.int32(0), params, tx.init(params), passed, jnp.int32(0))
    return nnx.graphdef(model), state
