"""Every family against transformers: the same logits without FAM, if the window covers the text."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from famjax.config import ModelConfig
from famjax.storage.model_dir import read_config
from tests import slow
from tests.pretrained import ours, theirs

TOLERANCE = 1e-4


# Variants of a family.
MORE = (
    "llama2-untied", "mistral-grouped", "qwen2-grouped", "qwen3-tied-biases", "gemma-grouped", "gemma2-uncapped",
    "gemma3-multi-query",
)  # fmt: skip


@pytest.mark.parametrize("name", slow.but(theirs.CASES, *MORE))
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    """float32 logits within 1e-4 relative at every position of rows of unequal lengths, at once and streamed."""
    source = theirs.save(theirs.CASES[name], tmp_path / "theirs")
    model_dir = ours.imported(source, tmp_path / "ours")
    text = theirs.tokens(61)
    desired = theirs.logits(source, text)
    for found in ours.logits(model_dir, text):
        for row in theirs.relative_errors(found, desired):
            assert row.max() <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("gemma3", {"local_window": 7}, marks=pytest.mark.slow),
        pytest.param("gemma2", {"attention_cap": 2.2}, marks=pytest.mark.slow),
        ("llama3-grouped-tied", {"rope_low_frequency_factor": 1.5}),
    ],
)
def test_the_comparison_notices_a_small_difference(name: str, change: dict, tmp_path: Path) -> None:
    """With one setting slightly off, the logits differ by a hundred times the tolerance."""
    source = theirs.save(theirs.CASES[name], tmp_path / "theirs")
    model_dir = ours.imported(source, tmp_path / "ours")
    config = dataclasses.replace(read_config(model_dir), **change)
    (model_dir / "model.json").write_text(config.to_json())
    text = theirs.tokens(61)
    errors = theirs.relative_errors(ours.logits(model_dir, text)[0], theirs.logits(source, text))
    assert max(row.max() for row in errors) > 100 * TOLERANCE


def test_every_family_has_a_case() -> None:
    """All families that import-hf supports are compared."""
    from famjax.pretrained.families import FAMILIES

    compared = {f"{case.family.removesuffix('Text')}ForCausalLM" for case in theirs.CASES.values()}
    assert compared == {family.architecture for family in FAMILIES}


def test_bfloat16_model_runs_in_bfloat16(tmp_path: Path) -> None:
    """bf16 weights stay bf16, and the logits are near those of transformers in bf16."""
    source = theirs.save(theirs.CASES["gemma3-multi-query"], tmp_path / "theirs", dtype="bfloat16")
    model_dir = ours.imported(source, tmp_path / "ours")
    fields = json.loads((model_dir / "model.json").read_text())
    assert (fields["dtype"], fields["param_dtype"]) == ("bfloat16", "bfloat16")
    text = theirs.tokens(61)
    desired = theirs.logits(source, text)
    errors = np.concatenate(theirs.relative_errors(ours.logits(model_dir, text)[0], desired))
    assert np.sqrt(np.mean(errors**2)) < 0.05
    assert isinstance(ModelConfig.from_json((model_dir / "model.json").read_text()), ModelConfig)
