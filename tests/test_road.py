"""The number of frames from the loss to the paper's equation."""

import sys
import traceback
from pathlib import Path

import jax
import pytest

import famjax
from famjax.attention import block_step
from famjax.config import OptimizerConfig, PassKeyConfig, TrainConfig
from famjax.data.passkey import PassKeyTask
from famjax.mesh.devices import make_mesh
from famjax.train import optim
from famjax.train import state as states
from famjax.train.step import make_step
from tests import tiny

PACKAGE = str(Path(famjax.__file__).parent)


class Arrived(Exception):
    """Raised by the update to capture the stack."""


@pytest.mark.parametrize("remat", ["none", "full"])
def test_at_most_eight_frames_from_the_loss_to_the_update_of_fam(remat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most eight frames of this package lie between `loss_fn` and `push_fam`."""
    config = tiny.config(vocab_size=128, block_size=32, memory_segments=0, remat=remat)
    task = PassKeyTask(PassKeyConfig(key_digits=2, stages=(1,), text_tokens=5), 320, 32, 2, 128, 0)
    training = TrainConfig(model_dir="none", model=config, optimizer=OptimizerConfig())
    tx, mesh = optim.optimizer(training.optimizer, 10), make_mesh()
    state, batch = states.abstract(training, tx, mesh), task.batch(0, task.start())[0]
    frames: list[str] = []

    def arrive(*_: object) -> None:
        frames.extend(f.name for f in traceback.extract_stack(sys._getframe(1)) if f.filename.startswith(PACKAGE))
        raise Arrived

    monkeypatch.setattr(block_step, "push_fam", arrive)
    with pytest.raises(Arrived):
        jax.jit(make_step(training, tx, mesh)).lower(state, batch)
    road = frames[frames.index("loss_fn") + 1 :]
    assert len(road) <= 8, " -> ".join(road)
    assert road[-1] == "block_step"
