"""Weights written and read piece by piece equal those saved and loaded at once."""

import shutil
import time
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from famjax.config import ConfigError
from famjax.infer.load import load
from famjax.nn.weights import parameter_shapes
from famjax.storage import arrays, pieces
from famjax.storage.checkpoint import load_model, save_model
from famjax.storage.unfinished import resumable_directory
from tests import tiny

CONFIG = tiny.config(tie_embeddings=False, qkv_bias=True)


def piece(path: str, layer: int | None, array: np.ndarray) -> pieces.Piece:
    return pieces.Piece(path, layer, array.nbytes, lambda: array)


def cut(params: Any) -> list[pieces.Piece]:
    """Returns all pieces of some weights, in no special order."""
    found: list[pieces.Piece] = []
    for path, leaf in arrays.leaves(params).items():
        if path.startswith("layers/"):
            found += [piece(path, layer, np.asarray(leaf[layer])) for layer in range(len(leaf))]
        else:
            found.append(piece(path, None, np.asarray(leaf)))
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_written_in_pieces_it_loads_as_a_whole(dtype: str, tmp_path: Path) -> None:
    """Every weight, bit for bit, in its type; and a training can save after it."""
    config = tiny.config(tie_embeddings=False, qkv_bias=True, param_dtype=dtype, dtype=dtype)
    params = tiny.parameters(config)
    (tmp_path / "model").mkdir()
    pieces.write_model(tmp_path / "model", config, parameter_shapes(config), cut(params))
    found_config, found = load_model(tmp_path / "model", parameter_shapes)
    assert found_config == config
    jax.tree.map(np.testing.assert_array_equal, found, dict(params))
    assert found["layers"]["attention"]["query"].dtype == dtype
    assert save_model(tmp_path / "model", config, params) == 1
    assert load(tmp_path / "model", dtype=dtype).config == config


def test_large_layers_lie_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk belongs to one layer and has at most PART_BYTES, so devices and exports read little else."""
    monkeypatch.setattr(pieces, "PART_BYTES", 300)
    params = tiny.parameters(CONFIG)
    pieces.write_model(tmp_path, CONFIG, parameter_shapes(CONFIG), cut(params))
    weights = pieces.Weights(tmp_path)
    for path, array in weights._arrays.items():
        part = array.chunk_layout.read_chunk.shape
        assert np.prod(part) * 4 <= 300
        assert not path.startswith("layers/") or part[0] == 1
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path, parameter_shapes)[1], dict(params))


def test_no_write_goes_on_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a weight of many small chunks, while the next cannot be read: the directory can be removed at once."""
    monkeypatch.setattr(pieces, "PART_BYTES", 300)
    config = tiny.config(vocab_size=4000)
    embedding, other, *_ = sorted(cut(tiny.parameters(config)), key=lambda one: one.path != "embedding")

    def unreadable() -> np.ndarray:
        raise ConfigError("not finite")

    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ConfigError, match="not finite"):
            pieces.write_model(folder, config, parameter_shapes(config), [embedding, other._replace(read=unreadable)])
        shutil.rmtree(folder)
        time.sleep(0.1)
        assert not folder.exists()


def test_read_in_pieces(tmp_path: Path) -> None:
    """Returns the pieces of a model that was saved at once, by path and layer."""
    params = tiny.parameters(CONFIG)
    save_model(tmp_path, CONFIG, params)
    weights = pieces.Weights(tmp_path)
    assert weights.shapes == {path: leaf.shape for path, leaf in arrays.leaves(params).items()}
    for one in cut(params):
        np.testing.assert_array_equal(weights.read(one.path, one.layer), one.read())


def test_pieces_that_are_missing_twice_or_wrong(tmp_path: Path) -> None:
    """Every piece exactly once, in its shape and type."""
    params = tiny.parameters(CONFIG)
    shapes, whole = parameter_shapes(CONFIG), cut(params)
    path, layer, array = whole[0].path, whole[0].layer, whole[0].read()
    bad = {
        "1 pieces are missing": whole[1:],
        "or it was given already": [*whole, whole[0]],
        "there is no piece layers/other": [piece("layers/other", 0, array)],
        f"not float32 {(1, *array.shape)}".replace("(", r"\(").replace(")", r"\)"): [piece(path, layer, array[None])],
        "not bfloat16": [piece(path, layer, array.astype(ml_dtypes.bfloat16))],
    }
    for number, (message, some) in enumerate(bad.items()):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(ValueError, match=message):
            pieces.write_model(tmp_path / str(number), CONFIG, shapes, some)


@pytest.mark.parametrize("written", [0, 1, 5])
def test_writing_goes_on(written: int, tmp_path: Path) -> None:
    """An import that stopped after any piece resumes: existing pieces are not read again, and the weights equal those
    of an uninterrupted one."""
    params = tiny.parameters(CONFIG)
    read: list[tuple[str, int | None]] = []

    def counted(one: pieces.Piece, number: int, fails: bool) -> pieces.Piece:
        def get() -> np.ndarray:
            if fails and number > written:
                raise RuntimeError("stopped")
            read.append((one.path, one.layer))
            return one.read()

        return one._replace(read=get)

    every = cut(params)
    with (
        pytest.raises(RuntimeError, match="stopped"),
        resumable_directory(tmp_path / "model", "w") as (folder, journal),
    ):
        some = [counted(one, number, True) for number, one in enumerate(every)]
        pieces.write_model(folder, CONFIG, parameter_shapes(CONFIG), some, journal)
    assert not (tmp_path / "model").exists()
    first, total = list(read), []
    read.clear()
    with resumable_directory(tmp_path / "model", "w") as (folder, journal):
        assert journal.goes_on
        some = [counted(one, number, False) for number, one in enumerate(every)]
        pieces.write_model(folder, CONFIG, parameter_shapes(CONFIG), some, journal, total.append)
    assert len(first) == written + 1
    # The last piece before the stop was read, but not yet known to be on disk.
    assert read == [(one.path, one.layer) for one in every[written:]]
    assert sum(total) == sum(one.nbytes for one in every)
    found = load_model(tmp_path / "model", parameter_shapes)[1]
    jax.tree.map(np.testing.assert_array_equal, found, dict(params))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    """As for every reader of a model directory."""
    save_model(tmp_path, CONFIG, tiny.parameters(CONFIG))
    (tmp_path / "checkpoints" / "0" / "weights" / "_METADATA").write_text("{}")
    with pytest.raises(ConfigError, match="_METADATA is missing or damaged"):
        pieces.Weights(tmp_path)
