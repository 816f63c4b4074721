"""Sessions in files: nothing is lost, nothing foreign is taken up, a killed save leaves the old file."""

import dataclasses
import json
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from famjax.config import ConfigError, ModelConfig
from famjax.infer import session
from famjax.infer.fingerprint import fingerprint, settings_of
from famjax.infer.settings import Sampling
from famjax.nn.weights import unstacked
from tests import slow, tiny
from tests.infer.test_decode import CONFIGS, NEW, NEWER, make, model_of, read


@pytest.mark.parametrize("name", slow.but(["fam", "bswa", "deltanet", "rmt", *NEWER], "bswa", *NEWER))
def test_saved_and_restored_at_any_point(name: str, tmp_path: Path) -> None:
    """Saving after each token of a prompt and of an answer, also within blocks, gives the same tokens."""
    config, sampling = CONFIGS[name], Sampling(temperature=1.0, repetition_penalty=1.3)
    model, text = model_of(config), tiny.tokens(config, 1, 11)[0]
    (desired,), _ = make(model, read(model, [[text]]), NEW, sampling)

    def put_away(rows: session.Session) -> session.Session:
        session.save(tmp_path / "a.session", rows, model)
        return session.restore(session.read_file(tmp_path / "a.session"), model_of(config))

    rows = session.start(model)
    for token in text:
        rows = put_away(read(model, [[[token]]], rows))
    made: list[int] = []
    while len(made) < NEW:
        (new,), rows = make(model, rows, 3 if len(made) % 2 else 1, sampling)
        made += new
        rows = put_away(rows)
    assert made[:NEW] == desired
    assert [path.name for path in tmp_path.iterdir()] == ["a.session"]


def saved(folder: Path, config: ModelConfig, seed: int = 0) -> tuple[Path, Any]:
    """A session file of random content, without reading anything."""
    model = tiny.build(config, tiny.parameters(config, seed))
    rng = np.random.default_rng(0)
    rows = session.start(model)
    noise = lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype)
    memory = dataclasses.replace(
        rows.memory, layers=jax.tree.map(noise, rows.memory.layers), position=jnp.array([2**31 - 1], jnp.int32)
    )
    rows = session.Session(memory, rng.integers(0, config.vocab_size, (1, session.RECENT)).astype(np.int32))
    session.save(folder / "a.session", rows, model)
    return folder / "a.session", rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["fam", "bswa", "fam-no-segments", "sinks", "infini", "rmt", *NEWER])
def test_every_bit_survives(name: str, dtype: str, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIGS[name], dtype=dtype)
    path, rows = saved(tmp_path, config)
    restored = session.restore(session.read_file(path), model_of(config))
    for one, other in zip(jax.tree.leaves(rows), jax.tree.leaves(restored), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert str(restored.memory.layers[0].k.dtype) == dtype
    assert not stat.S_IMODE(path.stat().st_mode) & 0o111


def test_foreign_and_damaged_files(tmp_path: Path) -> None:
    """Refused in words: another file, a cut one, another version, other weights, another prompt, other settings."""
    config = CONFIGS["fam"]
    path, _ = saved(tmp_path, config)
    whole, params = path.read_bytes(), tiny.parameters(config)
    file = session.read_file(path)

    def refusal(content: bytes = whole, config: ModelConfig = config, params: Any = params) -> str:
        path.write_bytes(content)
        with pytest.raises(ConfigError) as error:
            session.restore(session.read_file(path), tiny.build(config, params))
        assert "\n" not in str(error.value)
        return str(error.value)

    def changed(tensors: dict | None = None, **metadata: str) -> bytes:
        tensors = file.tensors if tensors is None else tensors
        return safetensors.numpy.save(tensors, metadata=file.metadata | metadata)

    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        assert "not a session file, or it is truncated" in refusal(whole[:cut])
    assert "not a session file" in refusal(b"once upon a time " * 10)
    assert "but no session" in refusal(safetensors.numpy.save({"k": np.zeros(3)}))
    assert "has version 1 of the session format" in refusal(changed(version="1"))
    assert "memory settings cannot be read" in refusal(changed(memory="{"))
    assert "its position cannot be read" in refusal(changed(position="many"))
    less = {name: x for name, x in file.tensors.items() if name != "0.k"}
    assert "tensors have other names" in refusal(changed(less))
    assert "tensors have other names" in refusal(changed(less | {"0.k": file.tensors["0.k"][..., :3]}))
    assert "was made by another model" in refusal(params=tiny.parameters(config, seed=1))
    assert "was made by another model" in refusal(config=dataclasses.replace(config, rope_base=99.0))
    prompt = params | {"fam": {"prompt": params["fam"]["prompt"].at[1, 3].add(1e-6)}}
    assert "with another FAM prompt" in refusal(params=prompt)
    bswa = {name: value for name, value in params.items() if name != "fam"}
    assert "made with fam_length 2, the model has 0; continue it with --fam-length 2" in refusal(
        config=tiny.config(fam_length=0), params=bswa
    )
    assert "made with memory_segments 1, the model has 3" in refusal(config=tiny.config(memory_segments=3))
    assert "made with block_size 4, the model has 8" in refusal(config=tiny.config(block_size=8))
    with pytest.raises(ConfigError, match="is missing"):
        session.read_file(tmp_path / "none")
    with pytest.raises(ConfigError, match="is a directory"):
        session.read_file(tmp_path)


def test_how_a_model_is_computed_does_not_matter(tmp_path: Path) -> None:
    """Layers scanned, unrolled or unstacked, and settings of training, leave a session valid."""
    path, _ = saved(tmp_path, tiny.config())
    how = {"scan_layers": False, "unroll_blocks": 2, "remat": "full", "attention_kernel": "xla", "embedding_std": 0.5}
    trained = {
        "stop_gradient": True, "random_position_offset": 0.25, "random_state_passing": 0.1,
        "random_state_passing_from": 5, "fam_noise": 0.1, "fam_diversity_loss": 0.1, "fam_reconstruction_loss": 0.1,
        "fam_gradient_blocks": 3,
    }  # fmt: skip
    other = tiny.config(**how, **trained)
    session.restore(session.read_file(path), model_of(other))
    session.restore(session.read_file(path), unstacked(model_of(tiny.config())))
    gated, _ = saved(tmp_path, tiny.config(fam_update="gated"))
    session.check_memory(session.read_file(gated), tiny.config(fam_update="gated", fam_update_noise=0.1))
    for name, value in (how | trained | {"fam_update_noise": 0.1}).items():
        assert value != getattr(tiny.config().memory if name in trained or name[:3] == "fam" else tiny.config(), name)


def test_files_from_before_other_memories_were_known(tmp_path: Path) -> None:
    """A session of FAM that names no kind of memory continues; with another kind it is refused."""
    path, _ = saved(tmp_path, CONFIGS["fam"])
    file = session.read_file(path)
    memory = json.loads(file.metadata["memory"])
    for name in session._LATER:
        del memory[name]
    path.write_bytes(safetensors.numpy.save(file.tensors, metadata=file.metadata | {"memory": json.dumps(memory)}))
    session.restore(session.read_file(path), model_of(CONFIGS["fam"]))
    bswa, _ = saved(tmp_path, tiny.config(fam_length=0))
    with pytest.raises(ConfigError, match="made with kind fam, the model has sinks"):
        session.check_memory(session.read_file(bswa), tiny.config(kind="sinks", fam_length=0))


def test_a_file_from_before_open_gates_were_removed_is_refused(tmp_path: Path) -> None:
    """The message says what to do; the setting cannot be changed by a flag."""
    path, _ = saved(tmp_path, tiny.config(fam_gate=True))
    with pytest.raises(
        ConfigError, match="fam_gate True, the model has False; a fully open gate .* read the text again"
    ):
        session.check_memory(session.read_file(path), tiny.config())


def test_metadata_tells_what_a_file_is(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, CONFIGS["fam"])
    metadata = session.read_file(path).metadata
    assert (metadata["format"], metadata["version"], metadata["position"]) == ("famjax session", "2", str(2**31 - 1))
    assert json.loads(metadata["memory"])["block_size"] == 4


@pytest.mark.parametrize(
    "moment",
    [
        "model_dir.open = lambda path, mode: type('', (io.FileIO,), {'flush': die})(path, 'w')",
        "os.fsync = die",
        "os.replace = die",
    ],
)
def test_a_killed_save_leaves_the_old_file(moment: str, tmp_path: Path) -> None:
    """kill -9 while the bytes are written, before they are safe on disk, and before the file takes its name."""
    path = tmp_path / "a.session"
    path.write_bytes(b"old")
    program = f"""
import io, os, signal
from famjax.storage import model_dir
def die(*args): os.kill(os.getpid(), signal.SIGKILL)
{moment}
model_dir.write_bytes({str(path)!r}, b"new" * 100000)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_fingerprints() -> None:
    """Any bit, place, shape, type or name makes another fingerprint; the same weights make the same."""
    array = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    flipped, swapped = array.copy(), array.copy()
    flipped.view(np.uint32)[4, 6] ^= 1
    swapped[[0, 1]] = swapped[[1, 0]]
    others = [flipped, swapped, array.T, array.reshape(7, 5), array.astype(jnp.bfloat16), array[None], -array]
    prints = [fingerprint("", [("a", jnp.asarray(x))]) for x in (array, *others)]
    prints += [fingerprint("", [("b", jnp.asarray(array))]), fingerprint("x", [("a", jnp.asarray(array))])]
    assert len(set(prints)) == len(prints)
    assert fingerprint("", [("a", jnp.array(array))]) == prints[0]
    assert fingerprint("", [("a", jnp.zeros((0, 3)))]) != fingerprint("", [("a", jnp.zeros((3, 0)))])


def test_a_fingerprint_has_the_settings_that_it_always_had() -> None:
    """A new setting with its default must not change it: else sessions and evaluations of all models would be refused
    or done again."""
    settings = settings_of(tiny.config(), without=("memory",))
    assert len(settings) == 40 and list(settings)[-2:] == ["attention_kernel", "lora"]
    assert set(settings["lora"]) == {"rank", "alpha", "dropout", "projections"}
