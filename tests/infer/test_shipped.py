"""The trained models that come with famjax."""

import hashlib
import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from famjax.cli.gin_config import load_train_config
from famjax.cli.main import main
from famjax.config import ConfigError, ModelConfig
from famjax.infer import shipped
from famjax.nn.weights import parameter_shapes
from famjax.storage.checkpoint import load_model, save_model
from famjax.storage.model_dir import read_config
from tests import tiny


@pytest.mark.parametrize("name", shipped.SHA256)
def test_the_file_is_what_its_model_directory_packs_to(name, tmp_path):
    """Unpacked, read back whole, and packed again: the same weights, bit for bit, and configuration. A second unpacking
    changes nothing."""
    shipped.unpack(name, tmp_path / "model")
    digest = shipped.pack(tmp_path / "model", tmp_path / "again")
    assert digest == hashlib.sha256((tmp_path / "again").read_bytes()).hexdigest()
    there, again = (
        safetensors.numpy.load_file(path) for path in (shipped.FOLDER / f"{name}.safetensors", tmp_path / "again")
    )
    assert there.keys() == again.keys()
    for key, value in there.items():
        np.testing.assert_array_equal(value, again[key])
    # A later version's model.json may have more fields; what they do not say is a default.
    with safetensors.safe_open(shipped.FOLDER / f"{name}.safetensors", "numpy") as file:
        assert ModelConfig.from_json(file.metadata()["model.json"]) == read_config(tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")}
    shipped.unpack(name, tmp_path / "model")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")} == before


def test_the_pass_key_model_is_that_of_the_experiment(tmp_path):
    """Its configuration is that of the file that its docstring names."""
    shipped.unpack("passkey", tmp_path / "model")
    config, _ = load_train_config(["gin/experiments/tiny_fam.gin"], (), ["MODEL_DIR='none'"])
    assert read_config(tmp_path / "model") == config.model


def test_damage_and_another_model_are_refused(tmp_path, monkeypatch):
    """One flipped bit, a missing file, a directory of another model: refused, nothing written over."""
    content = bytearray((shipped.FOLDER / "passkey.safetensors").read_bytes())
    content[-1] ^= 1
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="missing or damaged; install famjax again"):
        shipped.unpack("passkey", tmp_path / "model")
    (tmp_path / "passkey.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="missing or damaged"):
        shipped.unpack("passkey", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    other = tiny.config()
    save_model(tmp_path / "other", other, tiny.parameters(other))
    with pytest.raises(ConfigError, match="holds another model"):
        shipped.unpack("passkey", tmp_path / "other")
    _, params = load_model(tmp_path / "other", parameter_shapes)
    np.testing.assert_array_equal(params["embedding"], tiny.parameters(other)["embedding"])


def test_the_quickstart_shows_it_first(tmp_path, capsys):
    """`--no-training`: keys after 16 blocks, 18 updates of FAM, are recalled; nothing is trained."""
    assert main(["quickstart", "--no-training", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "shipped" / "results.json").read_text())
    rows = {row["filler_blocks"]: row["exact_match"] for row in results["models"][0]["passkey"]}
    assert rows[1] > 0.8 and rows[16] > 0.8 and rows[256] > 0.5
    assert not (tmp_path / "fam").exists()
    assert "A trained model comes with famjax" in capsys.readouterr().out
