"""Memory that an import and an export of a large folder need: the table of docs/pretrained.md.

python -m tests.pretrained.large DIR --layers 48      writes a folder of 5.5 GB into DIR, imports and exports it
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from famjax.pretrained.families import FAMILIES
from famjax.pretrained.folder import CONFIG_JSON, Written, write_tensors
from famjax.pretrained.match import pairs
from tests.pretrained import tokenizers_of_ours

D, E, V, HEADS = 2048, 5632, 64000, 16


def write_folder(folder: Path, layers: int) -> int:
    """Writes a Llama in bf16 with constant values; returns its size in bytes."""
    H = D // HEADS
    weights = {
        "embedding": (V, D), "unembedding": (D, V), "final_norm/scale": (D,),
        "layers/attention_norm/scale": (D,), "layers/ff_norm/scale": (D,),
        "layers/attention/query": (D, HEADS, H), "layers/attention/key": (D, HEADS, H),
        "layers/attention/value": (D, HEADS, H), "layers/attention/output": (HEADS, H, D),
        "layers/feed_forward/gate": (D, E), "layers/feed_forward/up": (D, E), "layers/feed_forward/down": (E, D),
    }  # fmt: skip
    shapes = {path: (layers, *shape) if path.startswith("layers/") else shape for path, shape in weights.items()}
    bf16 = np.dtype(ml_dtypes.bfloat16)
    tensors = {pair.name: Written(pair.name, pair.their_shape, bf16) for pair in pairs(FAMILIES[0], shapes)}
    folder.mkdir(parents=True)
    # Different values, so that they cannot be compressed or shared, below infinity.
    numbers = np.random.default_rng(0).integers(0, 0x7F80, 2**20, np.uint16).view(bf16)
    read = lambda name: np.resize(numbers, tensors[name].shape)
    written = sum(write_tensors(folder, tensors.values(), read))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": V, "hidden_size": D,
        "intermediate_size": E, "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / CONFIG_JSON).write_text(json.dumps(config))
    tokenizers_of_ours.write(folder, "byte-level")  # is read and copied; nothing is tokenized
    return written


def main() -> int:
    """Prints seconds and peak memory of both verbs, each in a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    args = parser.parse_args()
    size = write_folder(args.folder / "theirs", args.layers)
    print(f"{size / 1e9:.1f} GB, {args.layers} layers, largest tensor {V * D * 2 / 1e6:.0f} MB", flush=True)
    for verb, source, target in (("import-hf", "theirs", "ours"), ("export-hf", "ours", "again")):
        command = [sys.executable, "-m", "famjax", verb, str(args.folder / source), str(args.folder / target)]
        began = time.monotonic()
        code = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:]).returncode; " \
               "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(r)"  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
        peak = int(done.stdout.split()[-1]) * 1024
        print(f"{verb}: {time.monotonic() - began:.0f} s, at most {peak / 1e6:.0f} MB resident", flush=True)
    for name in ("theirs", "ours", "again"):
        shutil.rmtree(args.folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
