"""Model directories: saving and loading is exact, and what cannot be loaded is reported in one line."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from famjax.config import ConfigError, ModelConfig
from famjax.nn.weights import parameter_shapes
from famjax.storage import checkpoint, steps
from famjax.storage.model_dir import read_config
from tests import tiny


def load(model_dir: object, **memory: int) -> tuple[ModelConfig, dict]:
    return checkpoint.load_model(str(model_dir), parameter_shapes, **memory)


def assert_same(actual: dict, desired: dict) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelConfig, dict]:
    config = tiny.config()
    params = tiny.parameters(config)
    folder = tmp_path_factory.mktemp("saved") / "model"
    checkpoint.save_model(folder, config, params)
    return folder, config, params


@pytest.fixture
def copied(saved: tuple[Path, ModelConfig, dict], tmp_path: Path) -> Path:
    """A model directory that a test may damage."""
    folder = tmp_path / "model"
    for path in sorted(saved[0].rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(saved[0])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    "changes", [{}, {"fam_length": 0, "tie_embeddings": False, "qk_norm": True}, {"fam_init": "prefix"}]
)
def test_round_trip(tmp_path: Path, changes: dict) -> None:
    """load(save(config, params)) == (config, params), bit for bit."""
    config = tiny.config(**changes)
    params = tiny.parameters(config)
    checkpoint.save_model(tmp_path / "model", config, params)
    loaded_config, loaded = load(tmp_path / "model")
    assert loaded_config == config
    assert_same(loaded, params)


def test_training_state_round_trip_and_only_the_newest_stays(tmp_path: Path) -> None:
    """A later save replaces an earlier one, with optimizer state and progress in addition to the weights."""
    config = tiny.config()
    training = {"moments": (np.arange(3.0), np.array(2.0)), "step": np.array(7)}
    for step, seed in ((3, 0), (7, 1)):
        params = tiny.parameters(config, seed)
        checkpoint.save_model(tmp_path, config, params, step=step, training=training, progress={"stage": step})
    assert_same(load(tmp_path)[1], tiny.parameters(config, 1))
    restored, damaged = checkpoint.restore_training(tmp_path, tiny.parameters(config), training)
    assert (restored.step, restored.progress, damaged) == (7, {"stage": 7}, "")
    assert_same(restored.training, training)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["7"]
    with pytest.raises(ConfigError, match="already has step 7"):
        checkpoint.save_model(tmp_path, config, params, step=7)


def test_no_training_to_continue(saved: tuple) -> None:
    with pytest.raises(ConfigError, match="a model that no training wrote"):
        checkpoint.restore_training(saved[0], saved[2], {"a": np.zeros(3)})
    assert checkpoint.restore_training("/nowhere/at/all", saved[2], {"a": np.zeros(3)}) == (None, "")


def test_memory_overrides(saved: tuple) -> None:
    """fam_length 0 drops the prompt; a shorter one keeps its last rows, with their positions."""
    folder, config, params = saved
    without, params_without = load(folder, fam_length=0, block_size=8, memory_segments=3)
    assert (without.memory.fam_length, without.memory.block_size, without.memory.memory_segments) == (0, 8, 3)
    assert_same(params_without, {name: value for name, value in params.items() if name != "fam"})
    _, shorter = load(folder, fam_length=1)
    np.testing.assert_array_equal(shorter["fam"]["prompt"], params["fam"]["prompt"][-1:])
    assert load(folder, fam_length=None)[0] == config


def test_without_fam_its_updates_have_no_gate(tmp_path: Path) -> None:
    """fam_length 0 on a model with gated updates gives weights and settings of the model without FAM."""
    config = tiny.config(fam_update="gated", fam_update_noise=0.5)
    params = tiny.parameters(config)
    checkpoint.save_model(tmp_path, config, params)
    without, found = load(tmp_path, fam_length=0)
    assert without == tiny.config(fam_length=0)
    layers = {name: tree for name, tree in params["layers"].items() if name != "memory"}
    assert_same(found, {name: tree for name, tree in params.items() if name != "fam"} | {"layers": layers})
    assert_same(load(tmp_path, fam_length=1)[1]["layers"], params["layers"])


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ({"fam_length": 3}, "fam_length 3 is not possible: the model's FAM has 2 rows; use at most 2"),
        ({"block_size": 1}, "fam_length 2 is longer than block_size 1"),
        ({"memory_segments": -1}, "memory_segments is -1"),
        ({"fam_length": -1}, "fam_length is -1"),
    ],
)
def test_impossible_overrides(saved: tuple, memory: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(saved[0], **memory)


def test_fam_on_a_model_without(tmp_path: Path) -> None:
    config = tiny.config(fam_length=0)
    checkpoint.save_model(tmp_path, config, tiny.parameters(config))
    with pytest.raises(ConfigError, match="trained without FAM"):
        load(tmp_path, fam_length=2)


def test_directories_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, message in (
        ("", "name is empty"),
        (tmp_path / "nothing", "does not exist"),
        (tmp_path, "has no model.json"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"memory": 5}', '{"d_modle": 3}', '{"d_model": "wide"}'])
def test_damaged_model_json(copied: Path, text: str) -> None:
    (copied / "model.json").write_text(text)
    with pytest.raises(ConfigError, match="model.json"):
        read_config(copied)


def test_weights_of_another_shape(copied: Path) -> None:
    """The one parameter that does not match is named, with both shapes."""
    config = read_config(copied)
    (copied / "model.json").write_text(dataclasses.replace(config, d_ff=21).to_json())
    with pytest.raises(ConfigError, match=r"feed_forward/down is \[2, 20, 12\] instead of \[2, 21, 12\]"):
        load(copied)


def test_another_model_is_not_overwritten(copied: Path) -> None:
    other = tiny.config(d_ff=24)
    with pytest.raises(ConfigError, match="holds another model"):
        checkpoint.save_model(copied, other, tiny.parameters(other))
    load(copied)


def data_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "checkpoints").rglob("d/*") if path.is_file())


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_damaged_weights(copied: Path, damage: object, capfd: pytest.CaptureFixture) -> None:
    """A truncated, changed or missing file is named, with no output of Orbax on standard error."""
    victim = data_files(copied)[0]
    damage(victim)
    with pytest.raises(ConfigError, match=f"{victim.name} is missing or damaged"):
        load(copied)
    assert capfd.readouterr().err == ""


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A model directory with the steps 1, 2 and 3, which differ in their weights."""
    for step in (1, 2, 3):
        checkpoint.save_model(tmp_path / "m", tiny.config(), tiny.parameters(tiny.config(), step), step=step, keep=3)
    return tmp_path / "m"


def damage(folder: Path, step: int, how: object) -> Path:
    victim = next(path for path in data_files(folder) if f"/checkpoints/{step}/" in str(path))
    how(victim)
    return victim


@pytest.mark.parametrize("how", [truncate, flip, Path.unlink])
def test_the_step_before_a_damaged_one_is_read(three: Path, how: object, capfd: pytest.CaptureFixture) -> None:
    """One line on standard error names the damaged steps, with a file of each, and the one used instead."""
    third = damage(three, 3, how)
    assert_same(load(three)[1], tiny.parameters(tiny.config(), 2))
    told = f"{three}: step 3 ({third} is missing or damaged) is damaged"
    assert capfd.readouterr().err == f"{told}; using step 2, the one before\n"
    second = damage(three, 2, how)
    assert_same(load(three)[1], tiny.parameters(tiny.config(), 1))
    told += f", as is step 2 ({second} is missing or damaged)"
    assert capfd.readouterr().err == f"{told}; using step 1, the one before\n"
    damage(three, 1, how)
    with pytest.raises(ConfigError, match="is damaged, as are step 2 .* step 1 .*; restore one of them") as raised:
        load(three)
    assert "\n" not in str(raised.value) and capfd.readouterr().err == ""


def test_a_step_that_a_training_deletes_meanwhile_is_not_damaged(
    three: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training saves step 4 and deletes step 3 while step 3 is read: step 4 is read, and nothing is reported. One
    that was named is reported as missing."""
    read = checkpoint._load_weights

    def slow(root: Path, step: int, target: object) -> dict:
        if step == 3:
            (root / "checkpoints" / "2").rename(root / "checkpoints" / "4")
            shutil.rmtree(root / "checkpoints" / "3")
            raise checkpoint.Damaged("a file is missing")
        return read(root, step, target)

    copy = shutil.copytree(three, three.with_name("n"))
    monkeypatch.setattr(checkpoint, "_load_weights", slow)
    assert_same(load(three)[1], tiny.parameters(tiny.config(), 2))
    assert capfd.readouterr().err == ""
    with pytest.raises(ConfigError, match="has no step 3; its steps: 1, 4"):
        load(copy / "checkpoints" / "3")


def test_a_damaged_step_that_is_named_is_not_replaced(three: Path, capfd: pytest.CaptureFixture) -> None:
    """A named step is read, or an error is raised."""
    victim = damage(three, 2, flip)
    with pytest.raises(ConfigError, match=f"{victim.name} is missing or damaged"):
        load(three / "checkpoints" / "2")
    assert_same(load(three / "checkpoints" / "1")[1], tiny.parameters(tiny.config(), 1))
    assert capfd.readouterr().err == ""


def test_a_damaged_step_without_a_record(three: Path, capfd: pytest.CaptureFixture) -> None:
    """A step without its FILES.json, such as one whose deletion was killed, is found damaged when it is read, with no
    output of Orbax; an intact one without it counts as intact."""
    for step in (2, 3):
        (three / "checkpoints" / str(step) / "weights" / "FILES.json").unlink()
    damage(three, 3, Path.unlink)
    assert_same(load(three)[1], tiny.parameters(tiny.config(), 2))
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and err.startswith(f"{three}: step 3 (")
    (three / "checkpoints" / "2" / "weights" / "_METADATA").unlink()
    assert_same(load(three)[1], tiny.parameters(tiny.config(), 1))
    assert capfd.readouterr().err.count("\n") == 1


def test_no_weights(copied: Path) -> None:
    (copied / "checkpoints").rename(copied / "elsewhere")
    with pytest.raises(ConfigError, match="no weights"):
        load(copied)


def test_a_killed_save_leaves_the_old_one_whole(tmp_path: Path) -> None:
    """SIGKILL at any moment of a run of saves: the directory loads, and all weights are of one save."""
    program = f"""
        import itertools, jax, numpy as np
        from famjax.storage.checkpoint import save_model
        from tests import tiny
        config = tiny.config(vocab_size=20000)
        shapes = tiny.parameters(config)
        for step in itertools.count(1):
            params = jax.tree.map(lambda x: np.full(x.shape, step, x.dtype), shapes)
            save_model({str(tmp_path)!r}, config, params, step=step)
            print(step, flush=True)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    try:
        last = int(child.stdout.readline())
        for _ in range(2):
            last = int(child.stdout.readline())
        time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    leaves = jax.tree.leaves(load(tmp_path)[1])
    assert float(leaves[0].min()) >= last
    assert {float(x.min()) for x in leaves} | {float(x.max()) for x in leaves} == {float(leaves[0].min())}


def test_a_file_that_cannot_be_read_is_damage(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector or a missing permission: the step is damaged, as one with other bytes is."""

    def unreadable(path: Path) -> list[int]:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(steps, "_fingerprint", unreadable)
    (name, *_) = json.loads((copied / "checkpoints" / "0" / "weights" / "FILES.json").read_text())
    assert steps.damage(copied, 0, ["weights"]) == (
        f"{copied}/checkpoints/0/weights/{name} is missing or damaged"
    )  # fmt: skip
