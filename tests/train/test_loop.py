"""The training as a user sees it: files, progress, and going on where it stopped."""

import dataclasses
import json

import numpy as np
import pytest

from famjax.config import ConfigError, OptimizerConfig, PassKeyConfig, TrainConfig
from famjax.infer.load import load
from famjax.runtime.checkpoint import save_model
from famjax.train.loop import train
from tests import tiny

MODEL = tiny.config(vocab_size=128, block_size=32, memory_segments=0, fam_length=3, random_state_passing=0.5)


def settings(model_dir, **changes) -> TrainConfig:
    given = {"model": MODEL, "sequence_length": 320, "batch_size": 2, "steps": 6, "log_period": 1}
    given |= {"passkey": PassKeyConfig(stages=(1,), text_tokens=8), "optimizer": OptimizerConfig(warmup_steps=2)}
    return TrainConfig(model_dir=str(model_dir), **(given | changes))


def run(model_dir, **changes) -> TrainConfig:
    config = settings(model_dir, **changes)
    train(config, "# settings\n")
    return config


def metrics(model_dir) -> list[dict]:
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("fam_length", [0, 3])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, fam_length):
    """Six steps at once, and six steps killed in the fourth after a checkpoint at two: equal losses, bit for
    bit, each step logged once, equal weights. Random state passing and the optimizer are part of it."""
    model = dataclasses.replace(MODEL, memory=dataclasses.replace(MODEL.memory, fam_length=fam_length))
    run(tmp_path / "straight", model=model)
    writes = []

    def killed(self, step, values):
        writes.append(step)
        if step == 4:
            raise KeyboardInterrupt
        original(self, step, values)

    from famjax.train.metrics import MetricsLog

    original = MetricsLog.write
    monkeypatch.setattr(MetricsLog, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", model=model, checkpoint_period=2)
    monkeypatch.undo()
    assert writes == [1, 2, 3, 4]
    run(tmp_path / "cut", model=model, checkpoint_period=2)
    straight, cut = metrics(tmp_path / "straight"), metrics(tmp_path / "cut")
    assert [line["step"] for line in cut] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in cut] == [line["loss"] for line in straight]
    assert [line["exact_match"] for line in cut] == [line["exact_match"] for line in straight]
    weights = [load(tmp_path / name).embedding[...] for name in ("straight", "cut")]
    np.testing.assert_array_equal(*weights)


def test_a_finished_training_is_left_alone(tmp_path, capsys):
    """A second run says so and changes no file."""
    config = run(tmp_path / "m", steps=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*")}
    train(config, "# other\n")
    assert "is trained already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*")}


def test_training_lowers_the_loss(tmp_path):
    """Forty steps on bytes of one format: far below the first loss, and below uniform guessing."""
    run(tmp_path / "m", steps=40, optimizer=OptimizerConfig(learning_rate=0.02, warmup_steps=5))
    losses = [line["loss"] for line in metrics(tmp_path / "m")]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert np.mean(losses[-5:]) < np.log(128)
    assert (tmp_path / "m" / "config.gin").read_text() == "# settings\n"


@pytest.mark.parametrize("source_fam", [0, 3])
def test_training_starts_from_another_models_weights(tmp_path, capsys, source_fam):
    """INITIAL_CHECKPOINT_PATH: the first loss is that of the other model; a missing prompt stays new."""
    source = dataclasses.replace(MODEL, memory=dataclasses.replace(MODEL.memory, fam_length=source_fam))
    params = tiny.parameters(source, seed=5)
    save_model(tmp_path / "source", source, params)
    still = OptimizerConfig(learning_rate=0.0)
    run(tmp_path / "m", steps=1, optimizer=still, initial_checkpoint=str(tmp_path / "source"))
    trained = load(tmp_path / "m")
    np.testing.assert_array_equal(trained.embedding[...], params["embedding"])
    if source_fam:
        np.testing.assert_array_equal(trained.fam.prompt[...], params["fam"]["prompt"])
    assert ("prompt is new" in capsys.readouterr().out) == (source_fam == 0)


def test_weights_of_another_shape_are_refused_before_anything_is_written(tmp_path):
    """One line that says why; no model directory is left behind."""
    other = tiny.config(vocab_size=128, d_model=8, block_size=32, memory_segments=0, fam_length=3)
    save_model(tmp_path / "source", other, tiny.parameters(other))
    with pytest.raises(ConfigError, match="other shapes"):
        run(tmp_path / "m", initial_checkpoint=str(tmp_path / "source"))
    assert not (tmp_path / "m").exists()


def test_a_mesh_of_more_devices_than_there_are_is_refused_before_anything_is_written(tmp_path):
    """One line that says how many there are."""
    with pytest.raises(ConfigError, match="asks for 2 devices, but this job has 1; use at most 1"):
        run(tmp_path / "m", mesh={"fsdp": 2})
    assert not (tmp_path / "m").exists()


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    """The last checkpoint stays; the message says what to change."""
    with pytest.raises(FloatingPointError, match="lower LEARNING_RATE"):
        run(tmp_path / "m", steps=20, optimizer=OptimizerConfig(learning_rate=1e30, warmup_steps=0, clip_norm=0.0))
