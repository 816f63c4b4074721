"""The state before a training's first step, with given weights: unlike `states.create`, it compiles nothing."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from famjax.config import TrainConfig
from famjax.train import state as states
from tests import tiny


def state(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh, params: Any = None) -> states.TrainState:
    """Returns the state; `params`: the weights, None is those of `tiny.parameters`. Adam begins with zeros."""
    where = states.abstract(config, tx, mesh)
    zeros = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), where)
    params = tiny.parameters(config.model) if params is None else params
    return dataclasses.replace(zeros, params=jax.device_put(params, states.shardings(where).params))
