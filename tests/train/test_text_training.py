"""Training on text: the same results if it is interrupted, and if a document is read at once or in parts."""

import dataclasses
import json
import string

import numpy as np
import pytest
import tokenizers

from famjax.config import ConfigError, DataConfig, OptimizerConfig, SourceConfig, TrainConfig
from famjax.infer.load import load
from famjax.train.loop import train
from tests import tiny
from tests.train.test_loop import dies_in_step, metrics

MODEL = tiny.config(vocab_size=256, block_size=8, memory_segments=1, fam_length=3, random_state_passing=0.5)


def config(model_dir, data: DataConfig, **changes) -> TrainConfig:
    settings = {"task": "text", "model": MODEL, "sequence_length": 32, "batch_size": 2, "steps": 6, "log_period": 1}
    return TrainConfig(model_dir=str(model_dir), data=data, **(settings | changes))


@pytest.fixture
def texts(tmp_path):
    rng = np.random.default_rng(0)
    for i, size in enumerate((90, 41, 8, 130)):
        (tmp_path / f"{i}.txt").write_text("".join(map(chr, rng.integers(97, 123, size))))
    lines = [json.dumps({"inputs": "abc " * i, "targets": "x y z"}) for i in range(5)]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    return f"{tmp_path}/*.txt", f"{tmp_path}/some.jsonl"


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, texts, monkeypatch):
    """One row is streamed, one is packed; killed in the fourth step, resumed from a checkpoint at two: equal losses,
    bit for bit, and equal weights. With the carried memory, the positions in the data and the passed FAM."""
    sources = (SourceConfig(texts[0], rows="streams"), SourceConfig(texts[1], rows="packed"))
    data = DataConfig(sources=sources, stream_share=0.5)
    train(config(tmp_path / "straight", data), "# settings\n")

    dies_in_step(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "cut", data, checkpoint_period=2), "# settings\n")
    monkeypatch.undo()
    train(config(tmp_path / "cut", data, checkpoint_period=2), "# settings\n")
    straight, cut = metrics(tmp_path / "straight"), metrics(tmp_path / "cut")
    assert [line["step"] for line in cut] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in cut] == [line["loss"] for line in straight]
    assert cut[-1]["epochs"] == straight[-1]["epochs"] > 0
    weights = [load(tmp_path / name).embedding[...] for name in ("straight", "cut")]
    np.testing.assert_array_equal(*weights)


def test_a_document_costs_the_same_in_parts_and_whole(tmp_path):
    """With constant weights, a stream over three steps of two blocks has the same total loss as one row of six blocks:
    FAM and memory segments are carried between steps, as are targets, and the next document starts with the initial
    memory."""
    rng = np.random.default_rng(1)
    for name, size in (("a", 29), ("b", 13)):  # four blocks, the last one padded, and two
        (tmp_path / f"{name}.txt").write_text("".join(map(chr, rng.integers(97, 123, size))))
    data = DataConfig(sources=(f"{tmp_path}/*.txt",), stream_share=1.0, shuffle=False)
    still = {"optimizer": OptimizerConfig(learning_rate=0.0), "batch_size": 1}
    model = tiny.config(vocab_size=256, block_size=8, memory_segments=1, fam_length=3, random_state_passing=0.0)
    still |= {"model": model, "log_period": 1}
    train(config(tmp_path / "parts", data, steps=3, sequence_length=16, **still), "")
    train(config(tmp_path / "whole", data, steps=1, sequence_length=48, **still), "")
    (whole,) = metrics(tmp_path / "whole")
    weights = [16, 12, 12]  # of 29 and 13 bytes, all but the first of each are predicted
    parts = sum(line["loss"] * weight for line, weight in zip(metrics(tmp_path / "parts"), weights, strict=True))
    assert parts == pytest.approx(whole["loss"] * sum(weights), rel=1e-6)


def test_a_directory_with_another_vocabulary_is_left_alone(tmp_path, texts):
    """Found before anything is written."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    (tmp_path / "v.json").write_text(
        '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
    )
    data = DataConfig(sources=texts[:1], vocabulary=f"{tmp_path}/v.json")
    with pytest.raises(ConfigError, match="is another vocabulary than the data's"):
        train(config(tmp_path / "m", data), "")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["tokenizer.json"]


def test_a_refused_resumption_leaves_the_directory_as_it_was(tmp_path, texts):
    """With another seed or task, no file changes, `config.gin` included: the command before still resumes."""
    data = DataConfig(sources=texts)
    train(config(tmp_path / "m", data, steps=2), "# before\n")
    before = {path: path.read_bytes() for path in (tmp_path / "m").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="had seed 0, not 3"):
        train(config(tmp_path / "m", data, steps=4, seed=3), "# after\n")
    with pytest.raises(
        ConfigError, match="m was trained on the task 'text', not on 'passkey'; start in an empty MODEL"
    ):
        train(config(tmp_path / "m", DataConfig(), steps=4, task="passkey", sequence_length=512), "# after\n")
    assert {path: path.read_bytes() for path in (tmp_path / "m").rglob("*") if path.is_file()} == before


@pytest.fixture
def letters(tmp_path):
    """A tokenizer with one id for each letter, and two that begin and end a text."""
    ids = {name: i for i, name in enumerate(["<s>", "</s>", *string.ascii_lowercase])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="</s>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer.save(str(tmp_path / "letters.json"))
    return str(tmp_path / "letters.json")


def test_a_training_resumes_with_its_own_vocabulary(tmp_path, texts, letters):
    """Not as bytes, not with tokens in place of bytes, not with other added tokens. Without the setting, or without the
    initial weights that it came from, the vocabulary is that of the directory."""
    data = DataConfig(sources=texts[:1], stream_share=0.5)
    tokens, plain = dataclasses.replace(data, vocabulary=letters), dataclasses.replace(data, vocabulary="bytes")
    start = str(tmp_path / "start")
    train(config(start, tokens, steps=1), "")
    still = {"optimizer": OptimizerConfig(learning_rate=0.0)}  # a loss depends on the tokens alone
    train(config(tmp_path / "m", data, steps=1, initial_checkpoint=start, **still), "")
    train(config(tmp_path / "bytes", data, steps=1), "")
    with pytest.raises(ConfigError, match="tokenizer.json is another vocabulary"):
        train(config(tmp_path / "m", plain, steps=2), "")
    with pytest.raises(ConfigError, match="was trained on bytes"):
        train(config(tmp_path / "bytes", tokens, steps=2), "")
    with pytest.raises(ConfigError, match="had bos True, not False"):
        train(config(tmp_path / "m", dataclasses.replace(data, bos=False), steps=2), "")
    train(config(tmp_path / "m", data, steps=3, **still), "")
    train(config(tmp_path / "whole", data, steps=3, initial_checkpoint=start, **still), "")
    resumed, whole = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("m", "whole"))
    assert resumed == whole
