"""What loading changes: the compute dtype, float32 on a CPU, also for sessions; and an open gate, which is removed."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.cli.main import main
from famjax.config import ConfigError, EvalConfig
from famjax.infer.load import load
from famjax.infer.scoring import score_documents
from famjax.storage import checkpoint
from tests import tiny

CONFIG = tiny.config(vocab_size=256, dtype="bfloat16", param_dtype="bfloat16")
DOCUMENT = np.random.default_rng(0).integers(0, 256, 30)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dtype") / "model"
    checkpoint.save_model(folder, CONFIG, tiny.parameters(CONFIG))
    return folder


def scores(model) -> np.ndarray:
    (found,) = (logprobs for _, logprobs, _ in score_documents(model, [DOCUMENT], 1))
    return np.asarray(found)


def test_a_bfloat16_model_computes_in_float32_on_a_cpu(model_dir, tmp_path, capsys) -> None:
    """Its scores equal those of a float32 model with the same weights, bit for bit; one line reports it."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tiny.parameters(CONFIG))
    same = dataclasses.replace(CONFIG, dtype="float32", param_dtype="float32")
    checkpoint.save_model(tmp_path / "float32", same, params)
    desired = load(tmp_path / "float32")
    assert capsys.readouterr().err == ""
    model = load(model_dir)
    assert capsys.readouterr().err == (
        f"{model_dir}: computes in float32 on a CPU; --dtype bfloat16 takes half of the memory and is slower\n"
    )
    np.testing.assert_array_equal(scores(model), scores(desired))


def test_the_flag_wins(model_dir, tmp_path, capsys) -> None:
    """bfloat16 on request, without a message, and with scores that are rounded differently."""
    model = load(model_dir, dtype="bfloat16")
    assert capsys.readouterr().err == "" and model.config.dtype == "bfloat16"
    assert np.abs(scores(model) - scores(load(model_dir))).max() > 1e-4


def test_a_session_continues_in_the_type_that_it_was_made_in(model_dir, tmp_path, capsys) -> None:
    """Without a flag too; with another one it is refused with the flag that helps."""
    words = ["generate", "--model", str(model_dir), "--max-tokens", "6", "--state-out", str(tmp_path / "state")]
    assert main([*words, "--prompt", "abcdefgh", "--dtype", "bfloat16"]) == 0
    first = capsys.readouterr().out
    assert main([*words, "--state-in", str(tmp_path / "state")]) == 0
    then = capsys.readouterr()
    assert "float32" not in then.err
    assert main([*words, "--state-in", str(tmp_path / "state"), "--dtype", "float32"]) == 2
    assert capsys.readouterr().err.endswith(
        "was made in bfloat16, the model computes in float32; continue it with --dtype bfloat16\n"
    )
    assert main([*words[:4], "12", "--prompt", "abcdefgh", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out == first + then.out


def test_gin_and_mistakes(model_dir, tmp_path, capsys) -> None:
    """The macro DTYPE is the flag; an unknown type is refused before anything is read."""
    (tmp_path / "in.jsonl").write_text('{"text": "abc"}\n')
    words = ["score", "--model", str(model_dir), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o")]
    assert main([*words, "--gin.DTYPE='bfloat16'"]) == 0
    assert "float32" not in capsys.readouterr().err
    assert main([*words, "--gin.DTYPE='half'"]) == 2
    assert "dtype 'half' is not one of float32, bfloat16" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="dtype 'half'"):
        EvalConfig(model_dirs=("x",), dtype="half").validate()


def test_an_open_gate_is_removed_and_any_other_kept(tmp_path) -> None:
    """With a gate of 1 in every layer with FAM, the model is the paper's, with its scores; with one head at 0.99 it
    keeps the gate, and its own scores."""
    config = tiny.config(vocab_size=256, fam_gate=True, fam_layers="-+")
    params = tiny.parameters(config)
    paper = tiny.with_memory(config, fam_gate=False)
    checkpoint.save_model(tmp_path / "paper", paper, params | {"fam": {"prompt": params["fam"]["prompt"]}})
    found = {}
    for name, gate in (("open", [[0.5, 0.5], [1, 1]]), ("ajar", [[1, 1], [1, 0.99]])):
        fam = params["fam"] | {"gate": jnp.asarray(gate, jnp.float32)}
        checkpoint.save_model(tmp_path / name, config, params | {"fam": fam})
        model = load(tmp_path / name)
        assert model.config.memory.fam_gate == (name == "ajar")
        found[name] = scores(model)
    np.testing.assert_array_equal(found["open"], scores(load(tmp_path / "paper")))
    assert np.abs(found["ajar"] - found["open"]).max() > 1e-5
