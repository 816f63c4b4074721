"""A training that starts from an imported model hands on what an export gives back."""

from pathlib import Path

from famjax.config import DataConfig, SourceConfig, TrainConfig
from famjax.pretrained.folder import KEPT_CONFIG
from famjax.train.start import vocabulary_files
from tests.pretrained import tokenizers_of_ours


def test_files_of_the_import(tmp_path: Path) -> None:
    """config.json always; the tokenizer with all its files, unless the training has another vocabulary."""
    base = tokenizers_of_ours.write(tmp_path / "base", "byte-level")
    (base / KEPT_CONFIG).write_text("{}")
    (base / "generation_config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "a.txt").write_text("text")
    passkey = TrainConfig(model_dir=str(tmp_path / "new"), initial_checkpoint=str(base))
    everything = {KEPT_CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert vocabulary_files(passkey).keys() == everything
    text = TrainConfig(
        model_dir=str(tmp_path / "new"), initial_checkpoint=str(base), task="text",
        data=DataConfig(sources=(SourceConfig(str(tmp_path / "a.txt")),)),
    )  # fmt: skip
    assert vocabulary_files(text) == vocabulary_files(passkey)
    other = tokenizers_of_ours.write(tmp_path / "other", "metaspace")
    data = DataConfig(sources=text.data.sources, vocabulary=str(other / "tokenizer.json"))
    found = vocabulary_files(
        TrainConfig(model_dir=text.model_dir, initial_checkpoint=str(base), task="text", data=data)
    )
    assert found.keys() == {KEPT_CONFIG, "tokenizer.json", "tokenizer_config.json"}
    assert found["tokenizer.json"] == (other / "tokenizer.json").read_bytes()
    assert vocabulary_files(TrainConfig(model_dir=text.model_dir)) == {}
