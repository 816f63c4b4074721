"""Imports of transformers folders, and their logits in famjax."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from famjax.cli.main import main
from famjax.infer.load import load
from famjax.infer.prefill import extend
from tests import tiny
from tests.pretrained.theirs import BLOCK, LENGTHS, SEGMENTS


def imported(source: Path, target: Path, *flags: str) -> Path:
    """Runs `famjax import-hf`, with blocks of 8 and a FAM of 2 unless flags override them."""
    sizes = ["--block-size", str(BLOCK), "--memory-segments", str(SEGMENTS), "--fam-length", "2"]
    assert main(["import-hf", str(source), str(target), *sizes, *flags]) == 0
    return target


def logits(model_dir: Path, tokens_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns [B, T, V] without FAM, at once and streamed; rows are as long as `LENGTHS`."""
    model = load(model_dir, fam_length=0)
    graphdef, params = nnx.split(model)
    count_B = np.array(LENGTHS, np.int32)

    def whole(params, tokens_BT):
        model = nnx.merge(graphdef, params)
        return model.logits(model(tokens_BT, count=count_B)[0])

    def streamed(params, tokens_BT):
        model = nnx.merge(graphdef, params)
        scores = lambda model, hidden, index: model.logits(hidden)
        return extend(model, tokens_BT, count_B, model.initial_state(len(LENGTHS)), scores)[0]

    run = lambda f: np.asarray(jax.jit(f, compiler_options=tiny.COMPILE_FAST)(params, tokens_BT))
    return run(whole), run(streamed)
