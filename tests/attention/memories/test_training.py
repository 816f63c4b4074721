"""Memories train: a few steps on the pass key."""

from typing import Any

import jax
import numpy as np
import pytest

from famjax.config import OptimizerConfig, PassKeyConfig, TrainConfig
from famjax.data.passkey import PassKeyTask
from famjax.mesh.devices import make_mesh
from famjax.train import optim
from famjax.train import state as states
from famjax.train.step import make_step
from tests import tiny

TOKENS = {"fam_length": 0, "memory_segments": 0, "memory_tokens": 2}
MEMORIES: dict[str, dict[str, Any]] = {
    "autocompressor": {"kind": "autocompressor", "summary_blocks": 3, **TOKENS},
    "armt": {"kind": "armt", "memory_key_dim": 4, **TOKENS},
    "retrieval": {"kind": "retrieval", "fam_length": 0, "memory_segments": 0, "retrieval_blocks": 4},
    "static": {"fam_update": "static", "memory_segments": 0},
    "outputs": {"segments_hold": "outputs", "fam_length": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_the_loss_falls(name: str) -> None:
    """Eight steps on one batch, with blocks recomputed in the backward pass: every loss is finite and smaller than the
    one before, and what the memory adds to the weights moves."""
    config = tiny.config(vocab_size=128, block_size=32, d_model=16, remat="full", **MEMORIES[name])
    task = PassKeyTask(PassKeyConfig(key_digits=2, stages=(1,), text_tokens=5), 320, 32, 2, 128, 0)
    training = TrainConfig(
        model_dir="none", model=config, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    )
    tx, mesh = optim.optimizer(training.optimizer, 8), make_mesh()
    state, batch = states.create(training, tx, mesh), task.batch(0, task.start())[0]
    of_memory = lambda params: jax.tree.leaves(
        (params.get("memory"), params.get("fam"), params["layers"].get("memory"))
    )
    before = jax.device_get(of_memory(state.params))
    step, losses = jax.jit(make_step(training, tx, mesh)), []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and np.diff(losses).max() < 0
    for old, new in zip(before, of_memory(state.params), strict=True):
        assert np.abs(np.asarray(new) - old).max() > 1e-3
