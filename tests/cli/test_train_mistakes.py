"""`famjax train` finds a mistake before any work: exit code 2, one line, nothing written, jax not loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from famjax.cli.gin_config import load_model_config
from famjax.cli.main import main
from famjax.cli.train import check
from famjax.config import ConfigError, TrainConfig

FAM = ["train", "--gin_file", "gin/experiments/tiny_fam.gin"]


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "TASK_FEATURE_LENGTHS={'targets': 100}",
            "sequence length 100 is not a multiple of block_size 64; use 64 or 128",
        ),
        ("ModelConfig.num_kv_heads=3", "num_heads 2 is not a multiple of num_kv_heads 3"),
        ("FAM_LENGTH=65", "fam_length 65 is longer than block_size 64"),
        ("ModelConfig.head_dim=31", "head_dim 31 is odd"),
        ("ModelConfig.dtype='float31'", "dtype 'float31' is not one of float32, bfloat16; did you mean 'float32'?"),
        ("TRAIN_STEPS=0", "TRAIN_STEPS is 0; it must be at least 1"),
        ("TRAIN_STEPS='many'", "TrainConfig.steps is 'many'; it must be of type int"),
        ("TRAIN_STEPS=True", "TrainConfig.steps is True; it must be of type int"),
        ("MIXTURE_OR_TASK_NAME='passkye'", "text; did you mean 'passkey'?"),
        ("MESH={'fspd': 8}", "did you mean 'fsdp'?"),
        ("MESH={'fsdp': 3}", "BATCH_SIZE 8 does not divide over data x fsdp = 3 devices; use 6 or 9"),
        ("MICROBATCHES=3", "BATCH_SIZE 8 does not divide over 3 microbatches; use 6 or 9"),
        ("MESH={'fsdp': 'all'}", "MESH axis fsdp is 'all'; it must be a number of devices"),
        ("LORA_RANK=-1", "LORA_RANK is -1; it must be at least 0"),
        ("LoraConfig.projections=('querry',)", "'querry' is not one of query, key"),
        ("LoraConfig.dropout=1.0", "LoraConfig.dropout is 1.0; it must be at least 0 and less than 1"),
        ("OptimizerConfig.trained='lora'", "is 'lora', but LORA_RANK is 0; set it"),
        ("OptimizerConfig.trained='promt'", "did you mean 'prompt'?"),
        ("EVAL_PERIOD=-1", "EVAL_PERIOD is -1; it must be at least 0"),
        ("DIAGNOSTICS_PERIOD=-1", "DIAGNOSTICS_PERIOD is -1; it must be at least 0"),
        ("DIAGNOSTICS_PERIOD='often'", "TrainConfig.diagnostics_period is 'often'; it must be of type int"),
        ("PROFILE_STEPS=(5, 3)", "PROFILE_STEPS is (5, 3); write (first, last)"),
        ("PROFILE_STEPS=(1, 1000000)", "PROFILE_STEPS (1, 1000000) ends after the last step, TRAIN_STEPS"),
        ("PROFILE_STEPS=7", "TrainConfig.profile_steps is 7; it must be of type tuple"),
        ("INITIAL_CHECKPOINT_PATH='/no/such/model'", "/no/such/model does not exist"),
    ],
)
def test_settings_that_cannot_work(
    binding: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "seqio", raising=False)  # where it is imported, tasks may have other names
    model_dir = tmp_path / "model"
    assert main([*FAM, f"--gin.MODEL_DIR='{model_dir}'", f"--gin.{binding}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not model_dir.exists()


def test_model_dir_is_missing_or_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(FAM) == 2
    assert "MODEL_DIR is not set; add --gin.MODEL_DIR=\"'DIR'\"" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*FAM, f"--gin.MODEL_DIR='{tmp_path / 'file'}'"]) == 2
    assert "is a file; name a directory" in capsys.readouterr().err


def test_model_dir_holds_another_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "model.json").write_text(load_model_config(["gin/models/fam_tiny.gin"]).to_json())
    before = sorted(tmp_path.iterdir())
    assert main([*FAM, f"--gin.MODEL_DIR='{tmp_path}'", "--gin.FAM_LENGTH=4"]) == 2
    assert "holds a model with fam_length 8, not 4; use an empty directory" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_resumed_training_does_not_need_the_model_that_it_started_from(tmp_path: Path) -> None:
    """INITIAL_CHECKPOINT_PATH must be there for the first start alone."""
    config = TrainConfig(model_dir=str(tmp_path / "m"), initial_checkpoint=str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="gone does not exist"):
        check(config)
    (tmp_path / "m" / "checkpoints" / "3").mkdir(parents=True)
    check(config)


def test_jax_is_not_loaded_for_it() -> None:
    program = f"""
import sys
from famjax.cli.gin_config import load_model_config
from famjax.cli.main import main
from famjax.cli.train import check
from famjax.config import ConfigError, TrainConfig
code = main({[*FAM, "--gin.MODEL_DIR='x'", "--gin.TRAIN_STEPS=0"]!r})
sys.exit(code if "jax" not in sys.modules else 99)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr


def test_what_a_resumption_changes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Settings of the training alone: not how many checkpoints are kept, and not after a start that left no model."""
    small = ["--gin.BATCH_SIZE=1", "--gin.TASK_FEATURE_LENGTHS={'targets': 384}", "--gin.ModelConfig.num_layers=1"]
    words = [*FAM, *small, f"--gin.MODEL_DIR='{tmp_path / 'm'}'"]
    more = ["--gin.KEEP_CHECKPOINTS=3", "--gin.TrainConfig.keep_best_metric='loss'", "--gin.TrainConfig.keep_best=2"]
    assert main([*words, "--gin.TRAIN_STEPS=1"]) == 0
    capsys.readouterr()
    assert main([*words, *more, "--gin.TRAIN_STEPS=2"]) == 0
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "resumes with other settings" in line]
    assert line.endswith(": steps 2, was 1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.gin").write_text((tmp_path / "m" / "config.gin").read_text())
    assert main([*words[:-1], f"--gin.MODEL_DIR='{tmp_path / 'empty'}'", "--gin.TRAIN_STEPS=1"]) == 0
    assert "resumes" not in capsys.readouterr().err
