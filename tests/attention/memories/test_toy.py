"""The memory of docs/adding_a_memory.md: what the document shows is what runs, streams and trains."""

from pathlib import Path

import jax
import numpy as np
import pytest

from famjax.attention import memories
from famjax.config import OptimizerConfig, PassKeyConfig, TrainConfig
from famjax.config import memory as memory_config
from famjax.data.passkey import PassKeyTask
from famjax.mesh.devices import make_mesh
from famjax.train import optim
from famjax.train import state as states
from famjax.train.step import make_step
from tests import tiny
from tests.attention.memories.toy import Average


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two lines that the document asks for."""
    monkeypatch.setitem(memories.KINDS, "average", Average())
    monkeypatch.setattr(memory_config, "MEMORY_KINDS", (*memory_config.MEMORY_KINDS, "average"))


def test_the_document_shows_this_file() -> None:
    """Its code is `toy.py`, word for word."""
    root = Path(__file__).parents[3]
    shown = (root / "docs" / "adding_a_memory.md").read_text().split("```python\n")[1].split("```")[0]
    assert shown == (root / "tests/attention/memories/toy.py").read_text()


def test_it_streams() -> None:
    """Token by token in random pieces as whole, though nobody wrote a line for it."""
    config = tiny.config(kind="average", fam_length=0, memory_segments=0)
    params, tokens = tiny.parameters(config), tiny.tokens(config, 3, 14)
    hidden, state = tiny.whole(config, params, tokens)
    streamed, after = tiny.stream(config, params, tokens, sizes=np.random.default_rng(0))
    tiny.assert_close(streamed, hidden)
    tiny.assert_same_memory(config, after, state)


def test_it_trains() -> None:
    """A few steps on the pass key: the loss falls, and the gate moves and is not decayed."""
    config = tiny.config(vocab_size=128, block_size=32, memory_segments=0, kind="average", fam_length=0, d_model=16)
    task = PassKeyTask(PassKeyConfig(key_digits=2, stages=(1,), text_tokens=5), 320, 32, 2, 128, 0)
    training = TrainConfig(
        model_dir="none", model=config, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    )
    tx, mesh = optim.optimizer(training.optimizer, 8), make_mesh()
    assert not training.optimizer.settings_of("layers/memory/gate")["weight_decay"]
    state, batch = states.create(training, tx, mesh), task.batch(0, task.start())[0]
    gate = np.asarray(state.params["layers"]["memory"]["gate"])
    step, losses = jax.jit(make_step(training, tx, mesh)), []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert np.abs(np.asarray(state.params["layers"]["memory"]["gate"]) - gate).max() > 1e-3
