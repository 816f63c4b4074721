"""The story of docs/story.md with fewer steps: a folder of transformers gets a memory, learns to use it, goes back."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from famjax.process import cpu

MINUTES = 90  # on a machine that does much else; about ten on two free cores


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run, and what it printed."""
    import os

    at = tmp_path_factory.mktemp("story") / "run"
    flags = ["--passkey-steps", "300", "--texts-steps", "150", "--filler-blocks", "0,2,4"]
    done = subprocess.run(
        [sys.executable, "launch/studies/pretrained_story.py", str(at), *flags], env=cpu.environment(os.environ),
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60 * MINUTES,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return at, done.stdout


def shown(at: Path, what: str) -> dict[str, dict]:
    """Results by model."""
    return {model["name"]: model for model in json.loads((at / what / "results.json").read_text())["models"]}


@pytest.mark.slow
def test_the_memory_reaches_beyond_the_window_and_the_window_stays(told) -> None:
    """The pass key behind 2 and 4 blocks: never before, mostly after; within the window no worse than before."""
    models = shown(told[0], "shown_passkey")
    before, after = ({row["filler_blocks"]: row for row in models[name]["passkey"]} for name in ("before", "passkey"))
    for blocks in (2, 4):
        assert before[blocks]["high"] < 0.1
        assert after[blocks]["low"] > 0.5
    assert before[0]["exact_match"] > 0.7
    assert after[0]["exact_match"] > before[0]["exact_match"] - 0.05


@pytest.mark.slow
def test_long_documents_are_read_better_and_their_beginnings_no_worse(told) -> None:
    """Held-out documents after fine-tuning, against the same documents before: fewer bits per byte behind the first
    blocks and over all; no more in the first block, within the interval."""
    rows = {row["from"] if row["to"] else "all": row for row in shown(told[0], "shown_texts")["before"]["text"]}
    assert rows[0]["less_than_first"]["low"] < 0
    for where in (4096, "all"):
        assert rows[where]["less_than_first"]["high"] < 0


@pytest.mark.slow
def test_folders_go_back_to_transformers(told) -> None:
    """Log probabilities are those of transformers; what was frozen is bit for bit what was imported, tokenizer too."""
    at, printed = told
    differences = [float(found) for found in re.findall(r"differ by at most (\S+) from transformers'", printed)]
    assert len(differences) == 2 and max(differences) < 1e-4
    theirs = safetensors.numpy.load_file(at / "llama" / "model.safetensors")
    for name in ("llama_passkey", "llama_texts"):
        ours = safetensors.numpy.load_file(at / name / "model.safetensors")
        assert ours.keys() == theirs.keys()
        for tensor in ours:
            same = np.array_equal(ours[tensor], theirs[tensor])
            assert same == ("_proj" not in tensor), tensor
        assert safetensors.numpy.load_file(at / name / "fam.safetensors")["fam_prompt"].shape == (8, 64)
        assert (at / name / "tokenizer.json").read_bytes() == (at / "tokenizer" / "tokenizer.json").read_bytes()
