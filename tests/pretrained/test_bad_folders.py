"""Folders that cannot be imported: one line, exit code 2, and no files left."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from famjax.cli.main import main
from famjax.pretrained.families import FAMILIES, LLAMA
from famjax.pretrained.match import pairs
from tests.pretrained import tokenizers_of_ours
from tests.pretrained.test_config_json import LLAMA as CONFIG

SHAPES = {
    "embedding": (100, 32), "unembedding": (32, 100), "final_norm/scale": (32,),
    "layers/attention_norm/scale": (2, 32), "layers/ff_norm/scale": (2, 32),
    "layers/attention/query": (2, 32, 4, 8), "layers/attention/key": (2, 32, 4, 8),
    "layers/attention/value": (2, 32, 4, 8), "layers/attention/output": (2, 4, 8, 32),
    "layers/feed_forward/gate": (2, 32, 64), "layers/feed_forward/up": (2, 32, 64),
    "layers/feed_forward/down": (2, 64, 32),
}  # fmt: skip
EMBEDDING, OUTPUT = LLAMA["embedding"][0], LLAMA["unembedding"][0]
QUERY = "model.layers.1.self_attn.q_proj.weight"


def write_llama(folder: Path, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Writes a Llama in two shards, without transformers."""
    rng = np.random.default_rng(0)
    tensors = {p.name: rng.standard_normal(p.their_shape).astype(dtype) for p in pairs(FAMILIES[0], SHAPES)}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_shards(folder, tensors)
    return tensors


def write_shards(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors in two files and an index."""
    names, places = list(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def edited(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes some tensors of the folder."""
    tensors = write_llama(folder)
    change(tensors)
    write_shards(folder, tensors)


def without(folder: Path, *patterns: str) -> None:
    """Removes some files of the folder."""
    write_llama(folder)
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink()


def cut_short(folder: Path) -> None:
    """Truncates the second shard."""
    write_llama(folder)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])


def as_pickle(folder: Path) -> None:
    """Replaces the weights by the old format, which is code."""
    without(folder, "*.safetensors", "*.index.json")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")


def tied(folder: Path) -> None:
    """config.json ties the embeddings, but the file has a different output projection."""
    write_llama(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": True}))


def with_words(folder: Path, *names: str) -> None:
    """300 tokens, more than bytes, and empty files of these names."""
    write_llama(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 300}))
    for name in names:
        (folder / name).write_text("{}")


def with_tokenizer(folder: Path, files: dict[str, str]) -> None:
    """Weights that an import refuses when it reads them, and these files over a valid tokenizer."""
    edited(folder, lambda t: t[QUERY].put((3, 70), (np.nan, np.inf)))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 400}))
    tokenizers_of_ours.write(folder, "byte-level")
    for name, content in files.items():
        (folder / name).write_text(content)


def index_outside(folder: Path) -> None:
    """Lets the index point out of its folder."""
    write_llama(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')


BAD = {
    "no folder": (lambda folder: None, "is not there; name a folder of a model"),
    "no config": (lambda folder: without(folder, "config.json"), "has no config.json"),
    "missing shard": (lambda folder: without(folder, "model-00002*"), "model-00002-of-00002.safetensors is missing"),
    "no weights": (lambda folder: without(folder, "*.safetensors", "*.index.json"), "has neither model.safetensors"),
    "pickle": (as_pickle, "has its weights as pickles, which can execute any code"),
    "cut short": (cut_short, "is not a safetensors file, or truncated"),
    "index outside": (index_outside, "which is not a file of its folder"),
    "missing tensor": (lambda folder: edited(folder, lambda t: t.pop(QUERY)), f"missing: {QUERY}"),
    "left over": (
        lambda folder: edited(folder, lambda t: t.update({"model.layers.2.extra": np.zeros(3, np.float32)})),
        "not part of the model: model.layers.2.extra",
    ),
    "wrong shape": (
        lambda folder: edited(folder, lambda t: t.update({QUERY: np.zeros((3, 32), np.float32)})),
        f"of another shape: {QUERY} is [3, 32], not [32, 32]",
    ),
    "not finite": (
        lambda folder: edited(folder, lambda t: t[QUERY].put((3, 70), (np.nan, np.inf))),
        f"{QUERY} has 2 weights that are NaN or infinite",
    ),
    "quantised": (
        lambda folder: edited(folder, lambda t: t.update({QUERY: np.zeros((32, 32), np.int8)})),
        "has values of type I8; known are F32, F16, BF16",
    ),
    "adapter": (
        lambda folder: with_words(folder, "adapter_config.json", "tokenizer.json"),
        "also has an adapter (adapter_config.json), which transformers adds to the weights; merge it",
    ),
    "no tokenizer": (with_words, "has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json and merges.txt)"),
    "tekken": (lambda folder: with_words(folder, "tekken.json"), "has its tokenizer as tekken.json alone; convert it"),
    "bad tokenizer": (
        lambda folder: with_tokenizer(folder, {"tokenizer.json": "{"}),
        "theirs/tokenizer.json is not a Hugging Face tokenizer",
    ),
    "unknown tokenizer class": (
        lambda folder: with_tokenizer(folder, {"tokenizer_config.json": '{"tokenizer_class": "T5Tokenizer"}'}),
        "the tokenizer class 'T5Tokenizer' is not known",
    ),
    "bad generation config": (
        lambda folder: with_tokenizer(folder, {"generation_config.json": "{"}), "generation_config.json is not JSON",
    ),
    "generation config is a list": (
        lambda folder: with_tokenizer(folder, {"generation_config.json": "[]"}),
        "generation_config.json does not hold an object",
    ),
    "bad end in generation config": (
        lambda folder: with_tokenizer(folder, {"generation_config.json": '{"eos_token_id": "</s>"}'}),
        "theirs/generation_config.json: eos_token_id is '</s>'; it must be the id of one of the model's 400 tokens",
    ),
    "bad end in config": (
        lambda folder: with_tokenizer(
            folder, {"config.json": json.dumps(CONFIG | {"vocab_size": 400, "eos_token_id": [1, 400]})}
        ),
        "theirs/config.json: eos_token_id is [1, 400]; it must be the id of one of the model's 400 tokens",
    ),
    "tokenizer of another model": (
        lambda folder: with_tokenizer(folder, {"config.json": json.dumps(CONFIG)}),
        "theirs: the model has 100 tokens and a tokenizer of 3",
    ),
    "tied, but different": (tied, "lm_head.weight differs from model.embed_tokens.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line names the file or tensor; the target does not exist, nor any file next to it."""
    make, message = BAD[name]
    make(tmp_path / "theirs")
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["import-hf", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fam-length", "2000"], "fam_length 2000 is longer than block_size 1024"),
        (["--fam-layers", "gobal"], "did you mean 'global'?"),
        (["--fam-layers", "local"], "fam_layers 'local' selects none of the 2 layers"),
        (["--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["--fam-length", "0", "--fam-layers", "all"], "--fam-layers has no effect without FAM"),
        (["--fam-length", "0", "--no-fam-gate"], "--no-fam-gate has no effect without FAM"),
        (["--fam-length", "0", "--seed", "0"], "--seed has no effect without FAM"),
        (["--fam-text", "a", "--seed", "0"], "--seed has no effect with --fam-text"),
    ],
)
def test_bad_flags(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory settings are checked before anything is written."""
    write_llama(tmp_path / "theirs")
    assert main(["import-hf", str(tmp_path / "theirs"), str(tmp_path / "ours"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_a_target_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither verb overwrites existing files."""
    write_llama(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "precious").write_text("kept")
    assert main(["import-hf", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 2
    assert "exists already; name a new directory, or an empty one" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["precious"]


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Free space is checked before weights are written."""
    write_llama(tmp_path / "theirs")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert main(["import-hf", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 2
    assert "GB are needed; free some space" in capsys.readouterr().err
    assert not list(tmp_path.glob("*ours*"))


# An import that reads slowly and prints the tensors that it reads.
SLOW = """
import sys, time
import famjax.pretrained.folder as folder
from famjax.cli.main import main
ordinary = folder.Folder.read
def read(self, name):
    print(name, flush=True)
    time.sleep(float(sys.argv[1]))
    return ordinary(self, name)
folder.Folder.read = read
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("kill", "changed"), [(signal.SIGKILL, False), (signal.SIGTERM, True)])
def test_an_import_that_is_killed_goes_on(kill: int, changed: bool, tmp_path: Path) -> None:
    """There is no model directory before the import is complete. The same command reads only missing tensors, or all of
    them if the folder has changed; the weights equal those of an uninterrupted import."""
    from famjax.infer.load import load

    tensors = write_llama(tmp_path / "theirs", ml_dtypes.bfloat16)
    words = ["import-hf", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--fam-length", "4"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = lambda seconds: [sys.executable, "-c", SLOW, str(seconds), *words]
    child = subprocess.Popen(command(0.2), env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    first = [child.stdout.readline().strip() for _ in range(8)]
    child.send_signal(kill)
    child.wait()
    assert not (tmp_path / "ours").exists()
    if changed:
        tensors = write_llama(tmp_path / "theirs", np.float32)
    done = subprocess.run(command(0), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = done.stdout.split()
    if changed:
        assert set(tensors) <= set(again)
    else:
        assert "resuming the interrupted import" in done.stderr
        assert not set(again) & set(first[:-2]) - {EMBEDDING}  # FAM's prompt is derived from the embeddings
        assert set(first) | set(again) == set(tensors)
    assert not list(tmp_path.glob(".ours*"))
    model = load(tmp_path / "ours")
    np.testing.assert_array_equal(model.embedding[...], tensors[EMBEDDING])
    np.testing.assert_array_equal(model.unembedding[...], tensors[OUTPUT].T)
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        theirs = tensors[name].T.reshape(model.layers[layer].attention.query.shape)
        np.testing.assert_array_equal(model.layers[layer].attention.query[...], theirs)
    assert model.config.param_dtype == ("float32" if changed else "bfloat16")
