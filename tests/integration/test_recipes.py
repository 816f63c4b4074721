"""Recipes learn what their pages say, which takes minutes."""

import json
from pathlib import Path

import pytest

from famjax.cli.main import main


@pytest.mark.slow
def test_gated_fam_learns_associative_recall_and_a_window_does_not(tmp_path: Path) -> None:
    """The recipe of compare_mqar.gin, with 600 instead of 800 steps. In documents of two blocks, half of the questions
    are about pairs of the block before, which plain BSWA does not see."""
    words = ["compare", "--gin_file", "gin/experiments/compare_mqar.gin", "--memories", "fam_gated,bswa"]
    words += ["--gin.TRAIN_STEPS=600", "--blocks", "1,2", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())["memories"]
    accuracy = {memory["name"]: [row["value"] for row in memory["lengths"]] for memory in found}
    assert min(accuracy["fam_gated"]) > 0.8
    assert accuracy["bswa"][0] > 0.9 and accuracy["bswa"][1] < 0.75
