"""`famjax train --dry-run` describes a training, finds what would stop it, and writes no files."""

import os

import numpy as np
import pytest

from famjax.cli.main import main
from famjax.config import ConfigError, OptimizerConfig
from famjax.data.batch import Batch
from famjax.mesh.devices import make_mesh
from famjax.storage.checkpoint import save_model
from famjax.train import dry_run, initial, optim
from famjax.train import state as states
from famjax.train.start import make_task
from tests import tiny
from tests.train import beginning
from tests.train.test_loop import MODEL, settings

TINY = ["train", "--dry-run", "--gin_file", "gin/experiments/tiny_fam.gin"]
SMALL = ["--gin.BATCH_SIZE=2", "--gin.TASK_FEATURE_LENGTHS={'targets': 384}", "--gin.ModelConfig.num_layers=1"]


def test_everything_is_told_and_nothing_written(tmp_path, capsys):
    """From the command line: summary, first batch, work, memory; no file, not even the directory's parent."""
    assert main([*TINY, *SMALL, f"--gin.MODEL_DIR='{tmp_path}/runs/m'"]) == 0
    said = capsys.readouterr().out
    for words in ("layers/attention/query", "random weights, seed 0", "2 rows of 384 tokens", "FLOPs a token",
                  "the compiler for cpu (1 of them)", "nothing was written"):  # fmt: skip
        assert words in said
    assert list(tmp_path.iterdir()) == []


def test_the_first_batch_is_described_by_what_a_batch_says():
    """Rows of three blocks: two documents of 5 and 4 tokens, each with a memory, and two that are packed into one row.
    Padding between documents counts as filled, so the share is not called that of real tokens."""
    starts = np.array([[True, False, True], [True, False, False]])
    weights = np.ones((2, 12), np.float32)
    batch = Batch(np.zeros((2, 12), np.int32), np.array([12, 9]), starts, None, np.zeros((2, 12), np.int32), weights)
    said = dry_run.describe(batch, settings("m", model=tiny.config()))
    assert said.startswith("2 rows of 12 tokens, filled to 88%; 3 memories start; loss at 24 tokens")


def test_a_mesh_that_is_not_here_is_summed_up_by_its_shape(tmp_path, capsys):
    """The mesh needs 8 devices and 1 is available: bytes per device, and how to simulate the mesh."""
    assert main([*TINY, f"--gin.MODEL_DIR='{tmp_path}/m'", "--gin.MESH={'fsdp': 8}"]) == 0
    said = capsys.readouterr().out
    assert "mesh          data 1 x fsdp 8 x tensor 1" in said
    # Of the embedding [256, 64] a device has an eighth: 2048 values.
    assert any(
        line.split()[0] == "embedding" and line.split()[-2:] == ["8.0", "KiB"] for line in said.splitlines() if line
    )
    assert "--xla_force_host_platform_device_count=8" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coordinator=bogus", "--num-processes=9", "--process-id=7"], "'bogus' is not HOST:PORT"),
        (["--coordinator=a:1", "--num-processes=9", "--process-id=77"], "process 77 of 9 is invalid"),
        (["--num-processes=9"], "needs all three"),
    ],
)
def test_flags_of_a_job_are_checked_as_at_its_start(words, message, tmp_path, capsys):
    """They are otherwise without effect: a dry run is one process."""
    assert main([*TINY, f"--gin.MODEL_DIR='{tmp_path}/m'", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("binding", "message"),
    [("task='recal'", "'recal'"), ("data=('nowhere.txt',)", "nowhere.txt"), ("task='text'", "set EvalConfig.sources")],
)
def test_the_evaluation_of_a_training_is_checked(binding, message, tmp_path, capsys):
    """As at the start of the training, which would end there."""
    words = [f"--gin.MODEL_DIR='{tmp_path}/m'", "--gin.EVAL_PERIOD=5", f"--gin.in_training/EvalConfig.{binding}"]
    words += ["--gin.in_training/EvalConfig.task='piqa'"] * binding.startswith("data")
    assert main([*TINY, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_where_it_would_start(tmp_path):
    """Random weights, another model's, a checkpoint; weights of other shapes are refused."""
    assert beginning.reported(settings(tmp_path / "m")) == "random weights, seed 0"
    without = tiny.config(vocab_size=128, block_size=32, memory_segments=0, fam_length=0)
    save_model(tmp_path / "source", without, tiny.parameters(without))
    config = settings(tmp_path / "m", initial_checkpoint=str(tmp_path / "source"))
    assert beginning.reported(config).endswith("source; new, or partly new: fam/prompt")
    wide = tiny.config(vocab_size=128, d_model=16)
    save_model(tmp_path / "wide", wide, tiny.parameters(wide))
    with pytest.raises(ConfigError, match="other shapes"):
        beginning.reported(settings(tmp_path / "m", initial_checkpoint=str(tmp_path / "wide")))
    narrow, other = (
        tiny.config(kind="armt", fam_length=0, memory_segments=0, memory_tokens=2, memory_key_dim=k) for k in (3, 4)
    )
    save_model(tmp_path / "narrow", narrow, tiny.parameters(narrow))
    with pytest.raises(ConfigError, match="layers/memory/.* should be"):
        initial.check(tmp_path / "narrow", other)


def test_what_could_not_be_resumed_is_found(tmp_path):
    """A checkpoint is named; one of another optimizer or task, or that no training wrote, is refused."""
    config = settings(tmp_path / "m")
    state = states.create(config, optim.optimizer(config.optimizer, config.steps), make_mesh())
    saved = {"name": "passkey", "task": make_task(config, range(2)).start(), "logged": {}}
    save_model(tmp_path / "m", MODEL, state.params, step=4, training=states.to_save(state), progress=saved)
    assert "from step 4 of 6" in beginning.reported(config)
    with pytest.raises(ConfigError, match="cannot be resumed with these settings .*nu"):
        beginning.reported(settings(tmp_path / "m", optimizer=OptimizerConfig(name="lion")))
    with pytest.raises(ConfigError, match="was trained on the task 'passkey', not on 'parity'"):
        beginning.reported(settings(tmp_path / "m", task="parity"))
    save_model(tmp_path / "imported", MODEL, state.params)
    with pytest.raises(ConfigError, match="no training wrote"):
        beginning.reported(settings(tmp_path / "imported"))


def test_data_that_does_not_fit_the_model_is_found(tmp_path, monkeypatch):
    """A token outside of the vocabulary."""
    config = settings(tmp_path / "m")
    assert dry_run.first_batch(config, make_task(config, range(2))).tokens.shape == (2, 320)
    from famjax.data.passkey import PassKeyTask

    ordinary = PassKeyTask.batch

    def with_a_large_token(self, step, progress):
        batch, progress = ordinary(self, step, progress)
        batch.tokens[0, 5] = 200
        return batch, progress

    monkeypatch.setattr(PassKeyTask, "batch", with_a_large_token)
    with pytest.raises(ConfigError, match="the data has the token 200, but vocab_size is 128; use at least 201"):
        dry_run.first_batch(config, make_task(config, range(2)))


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    """The nearest existing parent must be writable."""
    dry_run.writable(str(tmp_path / "a" / "b"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="is not writable; name another directory"):
        dry_run.writable(str(tmp_path / "a" / "b"))
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="cannot be written"):
        dry_run.writable(str(tmp_path / "file" / "m"))
