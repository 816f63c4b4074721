"""How a training begins: its state with given weights, compiled by nothing, and what a dry run reports of its start."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from famjax.config import TrainConfig
from famjax.mesh.devices import make_mesh
from famjax.train import dry_run, optim
from famjax.train import state as states
from famjax.train.start import make_task
from tests import tiny


def state(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh, params: Any = None) -> states.TrainState:
    """Returns the state; `params`: the weights, None is those of `tiny.parameters`. Adam begins with zeros."""
    where = states.abstract(config, tx, mesh)
    zeros = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), where)
    params = tiny.parameters(config.model) if params is None else params
    return dataclasses.replace(zeros, params=jax.device_put(params, states.shardings(where).params))


def reported(config: TrainConfig) -> str:
    """Returns the line of a dry run on where training would start. Raises `ConfigError` if it cannot."""
    abstract = states.abstract(config, optim.optimizer(config.optimizer, config.steps), make_mesh())
    return dry_run.start_of(config, abstract, make_task(config, range(2)))
