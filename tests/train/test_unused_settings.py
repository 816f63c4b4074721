"""Which settings a training of each memory depends on: `MemoryConfig.unused` against the traced training step."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from famjax.cli import compare, compare_runs
from famjax.cli.main import parse
from famjax.config import ConfigError, MemoryConfig, ModelConfig, PassKeyConfig, TrainConfig
from famjax.data.passkey import PassKeyTask
from famjax.mesh.devices import make_mesh
from famjax.train import optim
from famjax.train.step import make_step
from tests import slow, tiny
from tests.train import beginning

BASES: dict[str, dict[str, Any]] = {
    "fam": {"memory_segments": 0},
    "fam-segments": {"memory_segments": 1},
    "fam-zero": {"memory_segments": 0, "fam_position": "zero", "random_position_offset": 0.5},
    "gated": {"memory_segments": 0, "fam_update": "gated", "random_state_passing": 0.0},
    "static": {"fam_update": "static"},
    "bswa": {"fam_length": 0, "memory_segments": 1},
    "sinks": {"fam_length": 0, "kind": "sinks"},
    "infini": {"fam_length": 0, "kind": "infini", "memory_segments": 0},
    "deltanet": {"fam_length": 0, "kind": "deltanet", "memory_segments": 0},
    "rmt": {"fam_length": 0, "kind": "rmt", "memory_segments": 0},
    "autocompressor": {"fam_length": 0, "kind": "autocompressor", "memory_segments": 0},
    "armt": {"fam_length": 0, "kind": "armt", "memory_segments": 0},
    "retrieval": {"fam_length": 0, "kind": "retrieval", "memory_segments": 0},
}
OTHER: dict[str, Any] = {
    "sinks": 3, "memory_tokens": 2, "summary_blocks": 2, "memory_key_dim": 4, "retrieval_blocks": 5,
    "retrieval_top_k": 1, "infini_delta": False, "fam_position": "float", "fam_init": "prefix", "previous_fams": 2,
    "fam_layers": "+-", "token_window": 3, "stop_gradient": True, "random_position_offset": 0.25,
    "random_state_passing": 0.4, "random_state_passing_from": 7, "fam_update": "static", "segments_hold": "outputs",
    "zero_first_residual": False, "fam_max_rms": 2.0, "fam_noise": 0.5, "fam_update_noise": 0.5, "fam_gate": True,
    "fam_diversity_loss": 0.5, "fam_reconstruction_loss": 0.5, "fam_gradient_blocks": 3,
}  # fmt: skip
# What a memory is, rather than a setting of one.
IDENTITY = {"block_size", "memory_segments", "fam_length", "kind"}


PASSKEY = PassKeyConfig(key_digits=2, stages=(1,), text_tokens=5)


def traced(model: ModelConfig, **changes: Any) -> tuple[str, list[Any]]:
    """The training step, with its constants and the shapes of its state, without addresses."""
    training = TrainConfig("none", model, passkey=PASSKEY, sequence_length=288, batch_size=2)
    training = dataclasses.replace(training, **changes)
    tx, mesh = optim.optimizer(training.optimizer, 10), make_mesh()
    task = PassKeyTask(training.passkey, 288, 16, 2, 128, 0)
    state = jax.eval_shape(lambda: beginning.state(training, tx, mesh))
    batch = task.batch(0, task.start())[0]
    step = jax.make_jaxpr(make_step(training, tx, mesh))(state, batch)
    return re.sub(r"0x[0-9a-f]+", "", str(step)), [np.asarray(one).tolist() for one in step.consts]


def test_every_setting_is_here() -> None:
    assert {field.name for field in dataclasses.fields(MemoryConfig)} == OTHER.keys() | IDENTITY


@pytest.mark.parametrize("name", slow.but(BASES, *[name for name in BASES if name != "bswa"]))
def test_a_setting_is_unused_if_the_step_is_the_same(name: str) -> None:
    """For each setting, the step with another value: the same program exactly where `unused` says so."""
    config = tiny.config(vocab_size=128, block_size=16, **BASES[name])
    plain = traced(config)
    for field, value in OTHER.items():
        if getattr(config.memory, field) == value:
            continue
        if field == "previous_fams" and not config.memory.fam_length:
            continue  # changes the shapes of empty arrays
        changed = tiny.with_memory(config, **{field: value})
        try:
            changed.validate()
        except ConfigError:
            continue  # refused before anything is trained
        assert (traced(changed) == plain) == bool(changed.memory.unused(field)), (field, changed.memory.unused(field))


@pytest.mark.parametrize("field", ["carried_fam_rms", "fam_growth_loss"])
def test_settings_of_carried_memories_without_any(field: str) -> None:
    """They are reported exactly where the step is the same: if no document continues, or there is no FAM."""
    for share, fam_length in ((0.5, 2), (0.5, 0), (0.0, 2)):
        model = tiny.config(vocab_size=128, block_size=16, memory_segments=0, fam_length=fam_length)
        given = {"passkey": dataclasses.replace(PASSKEY, stream_share=share)}
        same = not share or not fam_length
        assert list(TrainConfig(model=model, **given, **{field: 0.25}).without_effect) == [f"{field} 0.25"] * same
        if fam_length:
            assert (traced(model, **given, **{field: 0.25}) == traced(model, **given)) == same


@pytest.mark.parametrize(("share", "cut", "reported"), [(0.0, 17, 0), (0.0, 18, 1), (0.5, 18, 0)])
def test_a_cut_of_the_gradient_beyond_the_longest_document(share: float, cut: int, reported: int) -> None:
    """Rows of 288 tokens have 18 blocks, so no document has an 18th block before it, unless it continues."""
    model = tiny.config(vocab_size=128, block_size=16, fam_gradient_blocks=cut)
    config = TrainConfig(model=model, sequence_length=288, passkey=dataclasses.replace(PASSKEY, stream_share=share))
    said = {f"fam_gradient_blocks {cut}": "documents have at most 18 blocks"}
    assert config.without_effect == (said if reported else {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fam:sinks=8", "sinks has no effect.*kind 'sinks'"), ("bswa:fam_position=zero", "position has.*is no FAM"),
        ("fam:stop_gradient=True", "there is no segment"), ("infini:memory_tokens=4", "and this is 'infini'"),
        ("fam:random_position_offset=0.5", "differences of positions"),
        ("fam,bswa,fam:previous_fams=1", "fam and fam:previous_fams=1 are the same memory"),
    ],
)  # fmt: skip
def test_compare_refuses_to_train_a_memory_twice(tmp_path: Path, words: str, said: str) -> None:
    """By a setting that has no effect, or under two names."""
    args = parse(compare, ["--output", str(tmp_path), "--memories", words])
    with pytest.raises(ConfigError, match=said):
        compare_runs.subjects_of(args, tmp_path)
