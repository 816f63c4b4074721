"""`famjax score`: its output, and the mistakes that it finds before any work."""

import json
from pathlib import Path

import numpy as np
import pytest

from famjax.cli.main import main
from famjax.storage import checkpoint
from tests import tiny

DOCUMENTS = [{"tokens": list(range(60, 97))}, {"text": "Grüße, 世界"}, {"tokens": [3]}, {"text": "a" * 16}]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score") / "model"
    config = tiny.config(vocab_size=256)
    checkpoint.save_model(folder, config, tiny.parameters(config))
    return folder


def score(model_dir: Path, folder: Path, *flags: str) -> list[dict]:
    (folder / "in.jsonl").write_text("\n".join(json.dumps(d, ensure_ascii=False) for d in DOCUMENTS) + "\n")
    paths = ["--model", str(model_dir), "--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    assert main(["score", *paths, *flags]) == 0
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_whole_and_streaming_give_the_probabilities_of_the_model(model_dir: Path, tmp_path: Path) -> None:
    """Each line has log p(x_t | x_<t) for t = 1..n-1, their sum, and n, in the order of the input."""
    config = tiny.config(vocab_size=256)
    params = tiny.parameters(config)
    whole, streaming = score(model_dir, tmp_path), score(model_dir, tmp_path, "--streaming", "--batch-size", "3")
    for document, one, other in zip(DOCUMENTS, whole, streaming, strict=True):
        tokens = np.array(document.get("tokens") or list(document["text"].encode()), np.int32)
        hidden, _ = tiny.whole(config, params, tokens[None])
        logits = np.asarray(tiny.build(config, params).logits(hidden)[0], np.float64)
        logprobs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(tokens) - 1), tokens[1:]]
        for line in (one, other):
            tiny.assert_close(line["logprobs"], logprobs)
            assert line["sum"] == pytest.approx(sum(line["logprobs"]))
            assert line["tokens"] == len(tokens)


def test_without_fam(model_dir: Path, tmp_path: Path) -> None:
    """--fam-length 0 is the model without its prompt, with the requested window."""
    config = tiny.config(vocab_size=256, fam_length=0, memory_segments=2)
    params = {name: value for name, value in tiny.parameters(tiny.config(vocab_size=256)).items() if name != "fam"}
    tokens = np.array(DOCUMENTS[0]["tokens"], np.int32)
    hidden, _ = tiny.whole(config, params, tokens[None])
    logits = np.asarray(tiny.build(config, params).logits(hidden)[0], np.float64)
    logprobs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(tokens) - 1), tokens[1:]]
    line = score(model_dir, tmp_path, "--fam-length", "0", "--memory-segments", "2")[0]
    tiny.assert_close(line["logprobs"], logprobs)


def mistake(capsys: pytest.CaptureFixture, model: object, source: object, output: Path, *flags: str) -> str:
    assert main(["score", "--model", str(model), "--input", str(source), "--output", str(output), *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert not output.exists() and not list(output.parent.glob("*.tmp"))
    return error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tokens": [1, 2', "this is not JSON"),
        ('{"tokens": []}', "the document is empty"),
        ('{"text": ""}', "the document is empty"),
        ('{"tokens": [1, 256]}', "token 256 is outside the vocabulary 0..255"),
        ('{"tokens": [-1]}', "token -1 is outside the vocabulary"),
        ('{"tokens": [1.0]}', '"tokens" must be a list of integers'),
        ('{"tokens": [true]}', '"tokens" must be a list of integers'),
        ('{"tokens": "abc"}', '"tokens" must be a list of integers'),
        ('{"text": 5}', '"text" must be a string'),
        ("[1, 2]", 'either "tokens" or "text"'),
        ('{"token": [1]}', 'either "tokens" or "text"'),
        ('{"tokens": [1], "text": "a"}', 'either "tokens" or "text"'),
        (r'{"text": "\ud800"}', "half a surrogate pair"),
    ],
)
def test_bad_lines(line: str, message: str, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The error has the line's number and the problem; the valid line before it leaves no output."""
    (tmp_path / "bad.jsonl").write_text('{"tokens": [1, 2]}\n' + line + "\n")
    error = mistake(capsys, model_dir, tmp_path / "bad.jsonl", tmp_path / "out.jsonl")
    assert "bad.jsonl:2: " in error and message in error


def test_files_that_are_not_there_or_not_text(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "good.jsonl").write_text('{"tokens": [1, 2]}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    output = tmp_path / "out.jsonl"
    for model, source, message in (
        (tmp_path / "none", "good.jsonl", "does not exist"),
        ("", "good.jsonl", "name is empty"),
        (tmp_path, "good.jsonl", "has no model.json"),
        (model_dir, "none.jsonl", "none.jsonl: No such file or directory"),
        (model_dir, "empty.jsonl", "has no documents"),
        (model_dir, "binary.jsonl", "is not UTF-8 text"),
    ):
        assert message in mistake(capsys, model, tmp_path / source, output)
    assert "its directory is missing" in mistake(
        capsys, model_dir, tmp_path / "good.jsonl", tmp_path / "no" / "out.jsonl"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fam-length", "3"), "fam_length 3 is not possible"),
        (("--block-size", "1"), "fam_length 2 is longer than block_size 1"),
        (("--memory-segments", "-1"), "memory_segments is -1"),
        (("--block-size", "four"), "invalid int value: 'four'"),
        (("--batch-size", "0"), "--batch-size is 0"),
    ],
)
def test_bad_flags(flags: tuple, message: str, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "good.jsonl").write_text('{"tokens": [1, 2]}\n')
    assert message in mistake(capsys, model_dir, tmp_path / "good.jsonl", tmp_path / "out.jsonl", *flags)


def test_the_input_is_not_replaced(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The documents stay, also if another name of their file is given for the output; so do prompts of `generate`."""
    source, link = tmp_path / "documents.jsonl", tmp_path / "link.jsonl"
    source.write_text('{"tokens": [1, 2]}\n')
    link.symlink_to(source)
    for words in (
        ["score", "--input", str(source), "--output", str(link)],
        ["generate", "--input", str(source), "--output", str(source)],
        ["generate", "--prompt-file", str(source), "--state-out", str(source)],
    ):
        assert main([*words, "--model", str(model_dir)]) == 2
        error = capsys.readouterr().err
        assert "is the file that is read" in error and error.count("\n") == 1
    assert source.read_text() == '{"tokens": [1, 2]}\n'


def test_text_needs_a_vocabulary_of_bytes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tiny.config(vocab_size=17)
    checkpoint.save_model(tmp_path / "model", config, tiny.parameters(config))
    (tmp_path / "text.jsonl").write_text('{"text": "abc"}\n')
    error = mistake(capsys, tmp_path / "model", tmp_path / "text.jsonl", tmp_path / "out.jsonl")
    assert 'the model has 17 tokens and no tokenizer for text; give "tokens"' in error
