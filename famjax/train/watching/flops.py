"""Model FLOPs of a token, and peak FLOP/s of devices, for model FLOP/s utilisation (MFU).

Model FLOPs count what the mathematics needs, a multiplication and an addition as two. They exclude rematerialisation
(remat, the backward pass of attention), norms, activations, the softmax, the optimizer, the pass of the prompt through
the layers, and auxiliary losses on FAM.
"""

import math
from collections.abc import Iterable
from typing import Any

from famjax.attention import memories
from famjax.config import TrainConfig
from famjax.nn.weights import parameter_shapes
from famjax.storage.arrays import leaves

# Dense bfloat16 FLOP/s of a chip as its manufacturer states them, by a part of its name in JAX; the first match wins.
PEAK_FLOPS = (
    ("tpu7x", 2307e12), ("tpu v7", 2307e12),
    ("tpu v6", 918e12),
    ("tpu v5 lite", 197e12), ("tpu v5e", 197e12), ("tpu v5", 459e12),
    ("tpu v4", 275e12),
    ("b200", 2250e12),
    ("h200 nvl", 835e12), ("h200", 989e12), ("gh200", 989e12),
    ("h100 pcie", 756e12), ("h100 nvl", 835e12), ("h100", 989e12),
    ("a100", 312e12), ("l40s", 362e12), ("l4", 121e12),
)  # fmt: skip


def peak_flops(devices: Iterable[Any]) -> float | None:
    """Returns the peak bfloat16 FLOP/s of all these devices together; None if one is not in the table (a CPU).

    On TPUs that expose a chip's cores as separate devices, cores of one chip have the same coordinates.
    """
    chips = {(d.process_index, getattr(d, "slice_index", 0), *(getattr(d, "coords", None) or (d.id,))): d
             for d in devices}  # fmt: skip
    peaks = [peak_of_chip(device.device_kind) for device in chips.values()]
    known = [peak for peak in peaks if peak is not None]
    return math.fsum(known) if peaks and len(known) == len(peaks) else None


def peak_of_chip(kind: str) -> float | None:
    """Returns the peak bfloat16 FLOP/s of a chip by its name in JAX; None if it is not in the table."""
    return next((peak for name, peak in PEAK_FLOPS if name in kind.lower()), None)


def flops_per_token(config: TrainConfig, targets: int) -> float:
    """Returns the model FLOPs of training on one token, forward and backward.

    Forward, with N weights in the layers' matrices, for a row of T tokens in blocks of S:

        2 N                              for each token, and for each of the F feedback activations of a block
        4 heads H pairs                  scores and weighted values, for each pair of query and key it may see
        2 V D targets / T                logits, only at positions that carry a loss

    Backward costs twice the forward: gradients of activations and of weights. So with all weights trained and without
    attention it is the usual 6 N. A frozen matrix needs no gradient of its own: 4 N. Layers before the first one with
    anything to train need no backward pass: 2 N, and a third of attention's.

    Pairs are counted within the window, as if one document filled the row, and include the blocks before the row if
    memory is carried from step to step. Kinds of memory other than FAM add their own FLOPs (`Memory.flops`).

    Args:
      config: the run.
      targets: W, positions of a row that carry a loss.
    """
    model, memory, T = config.model, config.model.memory, config.sequence_length
    # FAM adds F rows to the S tokens of a block.
    rows = 1 + memory.fam_length / memory.block_size
    flops, forward_only = 0.0, layers_without_backward(config)
    for path, leaf in leaves(parameter_shapes(model)).items():
        if path.startswith("layers/lora/"):
            uses = rows * (1 - model.lora.first_layer / model.num_layers)
        elif path.startswith("layers/") and not path.endswith("/scale"):
            uses = rows * (1 - forward_only / (2 * model.num_layers))
        elif path == ("embedding" if model.tie_embeddings else "unembedding"):
            uses = targets / T
        else:
            continue
        frozen = config.tuning.settings_of(path)["frozen"]
        flops += (4 if frozen else 6) * leaf.size * uses
    if memory.segments_hold == "outputs":  # keys and values are projected once more
        flops += 3 * 4 * model.num_layers * model.d_model * model.num_kv_heads * model.head_dim
    pairs = attention_pairs(config) / T
    passes = 3 * model.num_layers - 2 * forward_only
    flops += passes * 4 * model.num_heads * model.head_dim * pairs
    return flops + passes * memories.of(memory).flops(model)


def layers_without_backward(config: TrainConfig) -> int:
    """Returns the number of layers before the first one with weights to train, LoRA or FAM; 0 if the embedding is
    trained. Layers that are scanned (`scan_layers`) have a backward pass nevertheless, which is not counted."""
    model, trained = config.model, lambda path: not config.tuning.settings_of(path)["frozen"]
    paths = leaves(parameter_shapes(model))
    of_layers = [path for path in paths if path.startswith("layers/") and not path.startswith("layers/lora/")]
    if trained("embedding") or any(map(trained, of_layers)):
        return 0
    reached = (i for i in range(model.num_layers) if model.lora.in_layer(i) or model.has_fam(i))
    return next(reached, 0)


def attention_pairs(config: TrainConfig) -> int:
    """Returns the number of (query, key) pairs in one layer of one row: tokens with tokens and FAM, FAM with both."""
    memory, S = config.model.memory, config.model.memory.block_size
    F, P, pairs = memory.fam_length, memory.previous_fams, 0
    for block in range(config.sequence_length // S):
        segments = memory.memory_segments if config.carries_memory else min(block, memory.memory_segments)
        fams = P if config.carries_memory else min(block + 1, P)
        seen = [segments * S + offset + 1 for offset in range(S)]
        pairs += sum(min(keys, memory.token_window) if memory.token_window else keys for keys in seen)
        pairs += S * fams * F + F * (fams * F + S)
    return pairs
