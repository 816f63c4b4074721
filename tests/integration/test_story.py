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
    flags = ["--seeds", "0", "--passkey-steps", "300", "--filler-blocks", "0,2,4"]
    done = subprocess.run(
        [sys.executable, "launch/studies/pretrained_story.py", str(at), *flags], env=cpu.environment(os.environ),
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60 * MINUTES,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return at, done.stdout


def shown(at: Path) -> dict[str, dict]:
    """Results by model."""
    return {model["name"]: model for model in json.loads((at / "shown" / "results.json").read_text())["models"]}


@pytest.mark.slow
def test_the_memory_reaches_beyond_the_window_and_the_window_stays(told) -> None:
    """The pass key behind 2 and 4 blocks: never before, mostly after; within the window no worse than before."""
    models = shown(told[0])
    by_blocks = lambda name: {row["filler_blocks"]: row for row in models[name]["passkey"]}
    before, after = by_blocks("before"), by_blocks("passkey_seed0")
    for blocks in (2, 4):
        assert before[blocks]["high"] < 0.1
        assert after[blocks]["low"] > 0.5
    assert before[0]["exact_match"] > 0.7
    assert after[0]["exact_match"] > before[0]["exact_match"] - 0.05


@pytest.mark.slow
def test_folders_go_back_to_transformers(told) -> None:
    """Log probabilities are those of transformers; what was frozen is bit for bit what was imported, tokenizer too."""
    at, printed = told
    differences = [float(found) for found in re.findall(r"differ by at most (\S+) from transformers'", printed)]
    assert len(differences) == 1 and differences[0] < 1e-4
    theirs = safetensors.numpy.load_file(at / "llama" / "model.safetensors")
    ours = safetensors.numpy.load_file(at / "llama_passkey" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        assert np.array_equal(ours[tensor], theirs[tensor]) == ("_proj" not in tensor), tensor
    assert safetensors.numpy.load_file(at / "llama_passkey" / "fam.safetensors")["fam_prompt"].shape == (8, 64)
    assert (at / "llama_passkey" / "tokenizer.json").read_bytes() == (at / "tokenizer" / "tokenizer.json").read_bytes()
