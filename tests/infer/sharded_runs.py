"""Reading and writing on eight simulated devices, for `test_sharding.py`, which runs this file in a process of its own.

    python -m tests.infer.sharded_runs FOLDER

FOLDER has a model directory for each of MODELS; FOLDER/results.pickle gets what each mesh made of it.
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from famjax.config import LoraConfig, ModelConfig
from famjax.infer import decode, prefill, scoring, session
from famjax.infer.load import load
from famjax.infer.settings import Sampling
from tests import tiny

MODELS = {
    "fam": tiny.config(d_model=16, d_ff=32, head_dim=8, vocab_size=24, lora=LoraConfig(rank=2)),
    "bswa": tiny.config(
        d_model=16, d_ff=32, vocab_size=24, fam_length=0, memory_segments=2, num_heads=4, num_kv_heads=1
    ),
}
CASES = [("fam", {}), ("fam", {"data": 2, "fsdp": 2, "tensor": 2}), ("bswa", {}), ("bswa", {"fsdp": 2, "tensor": 4})]
LENGTHS = [1, 4, 7, 8, 13, 3, 22, 9]
NEW = 10


def texts(config: ModelConfig) -> list[np.ndarray]:
    """Eight, of unequal lengths."""
    return [row[:n] for row, n in zip(tiny.tokens(config, 8, max(LENGTHS)), LENGTHS, strict=True)]


def run(folder: Path, name: str, mesh: dict[str, int]) -> dict[str, Any]:
    """Scores of streamed texts; of whole ones too without FAM, and with it tokens of eight rows, and of one, whose
    session goes to a file."""
    model = load(folder / name, mesh)
    tokens, lengths = tiny.tokens(model.config, 8, max(LENGTHS)), np.array(LENGTHS)
    weight = model.layers[0].feed_forward.up[...]
    parts = {tuple(shard.data.shape) for shard in weight.addressable_shards}
    streamed, _ = tiny.scored(model, tokens, lengths, blocks_per_call=2)
    if name == "bswa":
        return {"parts": parts, "streamed": streamed, "whole": scoring.score_whole(model, tokens, lengths)[0]}
    rows = prefill.prefill(model, session.start(model, 8), [[text] for text in texts(model.config)])
    made: list[list[int]] = [[] for _ in LENGTHS]
    for part in decode.generate(model, rows, NEW, Sampling(temperature=1.0, top_k=8)):
        made = [row + new.tolist() for row, new in zip(made, part.tokens, strict=True)]
    session.save(folder / f"{len(mesh)}.session", session.take_row(part.session, 6), model)
    one = session.restore(session.read_file(folder / "0.session"), model)  # one device's
    alone = [part.tokens[0].tolist() for part in decode.generate(model, one, NEW)]
    return {"parts": parts, "streamed": streamed, "made": made, "alone": sum(alone, [])}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    assert jax.device_count() == 8
    results = [run(folder, name, mesh) for name, mesh in CASES]
    (folder / "results.pickle").write_bytes(pickle.dumps(results))
