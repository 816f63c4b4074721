"""A training that starts from an imported model keeps the files that an export restores."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from famjax.cli.export_hf import their_config
from famjax.config import DataConfig, MemoryConfig, ModelConfig, PassKeyConfig, SourceConfig, TrainConfig
from famjax.data.text_task import vocabulary_folder
from famjax.data.vocabulary import load_vocabulary
from famjax.infer.codec import Codec
from famjax.pretrained.folder import KEPT_CONFIG, carried_files, carry
from famjax.train.start import files_beside, make_task
from tests import tiny
from tests.pretrained import tokenizers_of_ours


def test_files_of_the_import(tmp_path: Path) -> None:
    """config.json always; the tokenizer with all its files, unless the training has another vocabulary."""
    base = tokenizers_of_ours.write(tmp_path / "base", "byte-level")
    (base / KEPT_CONFIG).write_text("{}")
    (base / "generation_config.json").write_text('{"eos_token_id": 7}')
    template = "additional_chat_templates/tool_use.jinja"
    (base / template).parent.mkdir()
    (base / template).write_text("{{ messages }}")
    (tmp_path / "a.txt").write_text("text")
    passkey = TrainConfig(model_dir=str(tmp_path / "new"), initial_checkpoint=str(base))
    everything = {KEPT_CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json", template}
    assert files_beside(passkey).keys() == everything
    text = TrainConfig(
        model_dir=str(tmp_path / "new"), initial_checkpoint=str(base), task="text",
        data=DataConfig(sources=(SourceConfig(str(tmp_path / "a.txt")),)),
    )  # fmt: skip
    assert files_beside(text) == files_beside(passkey)
    other = tokenizers_of_ours.write(tmp_path / "other", "metaspace")
    data = DataConfig(sources=text.data.sources, vocabulary=str(other / "tokenizer.json"))
    found = files_beside(TrainConfig(model_dir=text.model_dir, initial_checkpoint=str(base), task="text", data=data))
    assert found.keys() == {KEPT_CONFIG, "tokenizer.json", "tokenizer_config.json"}
    assert found["tokenizer.json"] == (other / "tokenizer.json").read_bytes()
    assert files_beside(TrainConfig(model_dir=text.model_dir)) == {}
    # A resumed training has the config.json of the model that it started from, which is not named any more.
    (tmp_path / "new" / "checkpoints" / "3").mkdir(parents=True)
    assert KEPT_CONFIG not in files_beside(passkey)


def trained_files(tmp_path: Path, vocabulary: str) -> Path:
    """Returns a folder with the files that a text training with this vocabulary keeps, started from `tmp_path/base`."""
    (tmp_path / "a.txt").write_text("text")
    config = TrainConfig(
        model_dir=str(tmp_path / "new"), initial_checkpoint=str(tmp_path / "base"), task="text",
        data=DataConfig(sources=(SourceConfig(str(tmp_path / "a.txt")),), vocabulary=vocabulary),
    )  # fmt: skip
    folder = tmp_path / "trained"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    carry(files_beside(config), folder)
    return folder


def test_texts_end_at_the_token_of_the_training(tmp_path: Path) -> None:
    """A training with another vocabulary than the import's ends texts at that vocabulary's token, here and in an
    export; the import's own vocabulary keeps the import's tokens. One of its files alone is another vocabulary, since
    the files beside it select the tokenizer's class and tokens."""
    base = tokenizers_of_ours.write(tmp_path / "base", "byte-level")
    said = {"eos_token_id": [7, 9], "pad_token_id": 5, "tokenizer_class": "LlamaTokenizer", "pretraining_tp": 3}
    (base / KEPT_CONFIG).write_text(json.dumps(said))
    other = tokenizers_of_ours.write(tmp_path / "other", "metaspace")
    alone = tmp_path / "alone" / "tokenizer.json"
    alone.parent.mkdir()
    alone.write_bytes((base / "tokenizer.json").read_bytes())
    for vocabulary in (base, other, alone, "bytes"):
        trained = trained_files(tmp_path, str(vocabulary))
        eos = [7, 9] if vocabulary == base else load_vocabulary(str(vocabulary)).eos
        assert Codec(trained, 1000).ends == ([] if eos is None else np.atleast_1d(eos).tolist())
        exported, _ = their_config(trained, tiny.config(qk_norm=True, vocab_size=1000))
        assert exported["eos_token_id"] == eos
        assert ("pad_token_id" in exported) == ("tokenizer_class" in exported) == (vocabulary == base)
        assert exported["pretraining_tp"] == 3


def test_the_chat_template_is_that_beside_the_vocabulary(tmp_path: Path) -> None:
    """A model directory gets the template beside the vocabulary of its training, not the import's, also without an
    import. A task with symbols of its own has neither a template nor the end-of-text tokens of the import."""
    base, other = (
        tokenizers_of_ours.write(tmp_path / name, kind)
        for name, kind in (("base", "byte-level"), ("other", "metaspace"))
    )
    named = "additional_chat_templates/tool_use.jinja"
    carry({"chat_template.jinja": b"base", named: b"base, tools"}, base)
    carry({"chat_template.jinja": b"other"}, other)
    of_other = {"chat_template.jinja": b"other"}
    of_base = {"chat_template.jinja": b"base", named: b"base, tools"}
    templates = lambda found: {name: content for name, content in found.items() if name.endswith(".jinja")}
    for vocabulary, expected in ((base, of_base), (other / "tokenizer.json", of_other), ("bytes", {})):
        assert templates(carried_files(trained_files(tmp_path, str(vocabulary)))) == expected
    new = TrainConfig(model_dir=str(tmp_path / "new"), task="text", data=DataConfig(vocabulary=str(other)))
    assert templates(files_beside(new)) == of_other
    symbols = TrainConfig(model_dir=str(tmp_path / "new"), initial_checkpoint=str(base), task="parity")
    assert files_beside(symbols).keys() == {"symbols.json"} and vocabulary_folder(symbols) is None
    assert vocabulary_folder(dataclasses.replace(symbols, task="passkey")) == base


def test_the_pass_key_is_written_in_the_tokens_of_the_import(tmp_path: Path) -> None:
    """Without a setting of the vocabulary, the task uses and keeps the tokenizer's."""
    base = tokenizers_of_ours.write(tmp_path / "base", "byte-level")
    vocabulary = load_vocabulary(str(base))
    config = TrainConfig(
        model_dir=str(tmp_path / "new"), initial_checkpoint=str(base), passkey=PassKeyConfig(stages=(1,)),
        model=ModelConfig(vocab_size=vocabulary.size, memory=MemoryConfig(block_size=64)), sequence_length=512,
    )  # fmt: skip
    task = make_task(config, range(config.batch_size))
    row = task.batch(0, task.start())[0].tokens[0]
    text = vocabulary.decode(row[: task.batch(0, task.start())[0].count[0]])
    assert text.startswith("<s>There is an important info hidden inside a lot of irrelevant text.")
    assert (tmp_path / "base" / "tokenizer.json").read_bytes() == files_beside(config)["tokenizer.json"]
