"""A non-finite loss or gradient: the step keeps its weights, the run stops and locates the cause."""

import dataclasses

import jax
import numpy as np
import pytest

from famjax.cli.main import main
from famjax.config import OptimizerConfig, TrainConfig
from famjax.data.passkey import PassKeyTask
from famjax.mesh.devices import make_mesh
from famjax.storage.checkpoint import latest_step, save_model
from famjax.train import optim
from famjax.train.loop import train
from famjax.train.watching import guard
from famjax.train.watching.watch import Watch
from tests import tiny
from tests.slow import but
from tests.train.test_loop import MODEL, metrics, settings

ORDINARY = PassKeyTask.batch


def start_from(path, change, model=MODEL) -> str:
    """Returns a model directory whose weights `change` has damaged."""
    params = jax.tree.map(np.array, tiny.parameters(model))
    change(params["layers"])
    save_model(path, model, params)
    return str(path)


def bad_at(*steps):
    """Makes loss weights non-finite in these steps, counted from 1."""

    def batch(self, step, progress):
        made, progress = ORDINARY(self, step, progress)
        return (made._replace(weights=made.weights * np.nan) if step + 1 in steps else made), progress

    return batch


def message(config: TrainConfig) -> str:
    with pytest.raises(FloatingPointError) as error:
        train(config, "# run\n")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_weight_that_is_no_number_is_named(tmp_path):
    """Names weight and layer, and says that the weights are at fault, not the data."""
    source = start_from(
        tmp_path / "source", lambda layers: layers["attention"]["key"].__setitem__((1, 0, 0, 0), np.nan)
    )
    said = message(settings(tmp_path / "m", initial_checkpoint=source))
    assert "the loss is nan at step 1: the weights are at fault: layers/attention/key of layer 1 is not finite" in said
    assert "no step of this run is saved yet" in said
    assert latest_step(tmp_path / "m") is None


@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_first_layer_whose_activations_overflow_is_named(tmp_path, microbatches):
    """Finite weights of layer 1, so large that its outputs are not: neither layer 0 nor the weights are named."""
    source = start_from(tmp_path / "source", lambda layers: layers["feed_forward"]["down"].__setitem__(1, 3e38))
    said = message(settings(tmp_path / "m", initial_checkpoint=source, microbatches=microbatches))
    assert "layer 1 is the first whose output and FAM are not finite; its weights are finite" in said
    assert "the largest is 3e+38" in said


def test_what_only_noise_makes_overflow_is_found_too(tmp_path):
    """The forward pass is repeated with the step's own noise on FAM; without it everything is finite."""
    model = tiny.with_memory(MODEL, fam_noise=3e38)
    said = message(settings(tmp_path / "m", model=model))
    assert "layer 0 is the first whose" in said and "FAM" in said


@pytest.mark.parametrize("kind", but(("infini", "rmt", "armt"), "rmt", "armt"))
def test_other_memories_are_looked_at_too(tmp_path, kind):
    """The first bad layer is found in a model that is read layer by layer, in one that is read block by block, and in
    one whose blocks have tokens of their own."""
    model = tiny.with_memory(MODEL, kind=kind, fam_length=0, memory_tokens=2)
    damage = lambda layers: layers["feed_forward"]["down"].__setitem__(1, 3e38)
    source = start_from(tmp_path / "source", damage, model)
    said = message(settings(tmp_path / "m", initial_checkpoint=source, model=model))
    assert "layer 1 is the first whose output" in said and "its weights are finite" in said


def test_of_a_bad_batch_the_loss_is_at_fault_and_the_checkpoint_from_before_stays(tmp_path, monkeypatch, capsys):
    """With non-finite loss weights in step 3, no file of step 2's checkpoint changes, the exit code is 1, there is one
    line, and the log ends before."""
    monkeypatch.setattr(PassKeyTask, "batch", bad_at(3))
    config = settings(tmp_path / "m", checkpoint_period=2)
    said = message(config)
    assert "at step 3: the weights and every layer's output are finite; the logits, or the batch's loss" in said
    assert "the checkpoint of step 2 is untouched" in said
    assert [line["step"] for line in metrics(tmp_path / "m")] == [1, 2]
    assert [path.name for path in (tmp_path / "m" / "checkpoints").iterdir()] == ["2"]
    before = {path: path.read_bytes() for path in (tmp_path / "m" / "checkpoints").rglob("*") if path.is_file()}
    monkeypatch.setattr("famjax.cli.gin_config.load_train_config", lambda *_: (config, "# run\n"))
    capsys.readouterr()
    assert main(["train", "--gin_file", "any"]) == 1
    assert [line for line in capsys.readouterr().err.splitlines() if "at step 3" in line and "famjax train" in line]
    assert before == {path: path.read_bytes() for path in (tmp_path / "m" / "checkpoints").rglob("*") if path.is_file()}


def test_bad_steps_may_be_left_out_up_to_a_bound(tmp_path, monkeypatch):
    """Two bad steps in a row, with two allowed: the run continues with the weights from before them, and reports their
    number. The next bad one counts from one; a third in a row stops."""
    monkeypatch.setattr(PassKeyTask, "batch", bad_at(3, 4, 6))
    train(settings(tmp_path / "m", steps=7, skip_bad_steps=2), "# run\n")
    lines = metrics(tmp_path / "m")
    assert [line.get("bad_steps", 0) for line in lines] == [0, 0, 1, 1, 0, 1, 0]
    assert [line["loss"] is None for line in lines] == [False, False, True, True, False, True, False]
    assert lines[4]["weight_norm/attention"] == lines[2]["weight_norm/attention"] != lines[1]["weight_norm/attention"]
    monkeypatch.setattr(PassKeyTask, "batch", bad_at(3, 4, 5))
    assert "at step 5" in message(settings(tmp_path / "n", steps=7, skip_bad_steps=2))


def test_a_line_of_a_skipped_step_is_json_and_has_the_rate_that_was_used(tmp_path, monkeypatch):
    """JSON has no NaN. A skipped step does not advance the schedule, so the next one has the same rate."""
    monkeypatch.setattr(PassKeyTask, "batch", bad_at(2))
    config = settings(tmp_path / "m", steps=4, skip_bad_steps=1)
    train(config, "# run\n")
    text = (tmp_path / "m" / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    lines = metrics(tmp_path / "m")
    assert lines[1]["gradient_norm"] is None and lines[2]["gradient_norm"] > 0
    rates = optim.schedule(config.optimizer, 4)
    assert [line["learning_rate"] for line in lines] == pytest.approx([float(rates(done)) for done in (0, 1, 1, 2)])


def test_skipped_steps_count_across_a_start(tmp_path, monkeypatch):
    """Stopped after two bad steps of the two that are allowed: the third one stops the resumed run, as it would have
    stopped an uninterrupted one. The number since the last line is kept, too."""
    monkeypatch.setattr(PassKeyTask, "batch", bad_at(3, 4, 5))
    train(settings(tmp_path / "m", steps=4, skip_bad_steps=2), "# run\n")
    config = settings(tmp_path / "m", steps=7, skip_bad_steps=2)
    assert "at step 5" in message(config)
    saved = {"losses": [1.0], "last": {"loss": 2.0}, "bad": 1, "bad_steps": 2}
    assert Watch(config, make_mesh(), 4, saved).to_save() == saved


def test_an_update_that_is_no_number_is_not_saved(tmp_path):
    """Loss and gradient are finite, the update is not: the weights would be lost, so nothing is saved."""
    rate = OptimizerConfig(learning_rate=1e38, warmup_steps=0, schedule="constant")
    said = message(settings(tmp_path / "m", optimizer=rate, checkpoint_period=1))
    assert "the update's norm is" in said and "at step 1" in said
    assert latest_step(tmp_path / "m") is None


def test_where_a_gradient_begins_to_be_none(monkeypatch):
    """The backward pass visits layers from last to first, so the highest layer is named; or a weight outside of the
    layers."""
    good = {"layer": None, "what": [], "hidden": True}
    monkeypatch.setattr(guard, "check_forward", lambda *_: good)
    state = dataclasses.make_dataclass("State", ["params"])({"layers": {"a": np.ones((3, 2))}})
    squares = {"gradient": {"layers/a": np.array([np.nan, np.inf, 1.0]), "embedding": np.array(1.0)}, "update": {}}
    mesh = make_mesh()
    said = guard.explain(None, mesh, state, None, 1.0, squares)
    assert "the gradient of layers/a of layer 1 is the first that is not" in said
    squares["gradient"]["final_norm/scale"] = np.array(np.nan)
    assert "the gradient of final_norm/scale is the first" in guard.explain(None, mesh, state, None, 1.0, squares)
