"""Model FLOPs of a token, and peak FLOP/s of devices, for model FLOP/s utilisation (MFU).

Model FLOPs count what the mathematics needs, a multiplication and an addition as two. They exclude rematerialisation
(remat, the backward pass of attention), norms, activations, the softmax, the optimizer, the pass of the prompt through
the layers, and auxiliary losses on FAM.
"""

import math
from collections.abc import Iterable
from typing import Any

from famjax.attention import memories
from famjax.config import MemoryConfig, TrainConfig
from famjax.config.optimizer import FAM, LORA
from famjax.nn.weights import parameter_shapes
from famjax.storage.arrays import leaves

# Prefixes of the paths of LoRA, and of weights that act where a layer has FAM.
_FAM = (FAM, "layers/memory/write_")

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
    """Returns the model FLOPs of training on one token, forward and backward; `targets`: loss positions per row.

    Forward, with N weights in the layers' matrices, for a row of T tokens in blocks of S:

        2 N                              for each token, and for each of the F feedback activations of a block
        4 heads H pairs                  scores and weighted values, for each pair of query and key it may see
        2 V D targets / T                logits, only at positions that carry a loss

    Backward costs twice the forward: gradients of activations and of weights. So with all weights trained and without
    attention it is the usual 6 N. A frozen matrix needs no gradient of its own: 4 N. Layers before the first one with
    anything to train need no backward pass: 2 N, and a third of attention's.

    Pairs are counted within the window, as if one document filled the row, and include the blocks before the row if
    memory is carried from step to step. Kinds of memory other than FAM add their own FLOPs (`Memory.flops`).
    """
    model, T = config.model, config.sequence_length
    frozen = lambda path: config.tuning.settings_of(path)["frozen"]
    shapes, forward_only = leaves(parameter_shapes(model)), layers_without_backward(config)
    head = "embedding" if model.tie_embeddings else "unembedding"
    flops = (4 if frozen(head) else 6) * shapes[head].size * targets / T
    of_layers = [
        (path, leaf.size / model.num_layers, 4 if frozen(path) else 6)
        for path, leaf in shapes.items()
        if path.startswith("layers/") and not path.endswith("/scale")
    ]
    memories_of_layers = [model.layer(i).memory for i in range(model.num_layers)]
    pairs = {memory: attention_pairs(config, memory) / T for memory in set(memories_of_layers)}
    for i, memory in enumerate(memories_of_layers):
        backward = i >= forward_only
        # FAM adds F rows to the S tokens of a block; the gates of its updates are computed from these rows alone.
        of_fam = memory.fam_length / memory.block_size
        for path, size, both_passes in of_layers:
            if model.lora.in_layer(i) or not path.startswith(LORA):
                rows = of_fam if path.startswith(_FAM) else 1 + of_fam
                flops += (both_passes if backward else 2) * size * rows
        per_pass = 4 * model.num_heads * model.head_dim * pairs[memory] + memories.of(memory).flops(model)
        if memory.segments_hold == "outputs":  # keys and values are projected once more
            per_pass += 4 * model.d_model * model.num_kv_heads * model.head_dim
        flops += (3 if backward else 1) * per_pass
    return flops


def layers_without_backward(config: TrainConfig) -> int:
    """Returns the number of layers before the first one that a gradient reaches: one with trained LoRA or FAM, or
    layer 0 if weights are trained that enter there. Layers that are scanned (`scan_layers`) have a backward pass
    nevertheless, which is not counted; nor is that of the prompt's own pass."""
    model = config.model
    trained = [path for path in leaves(parameter_shapes(model)) if not config.tuning.settings_of(path)["frozen"]]
    lora = any(path.startswith(LORA) for path in trained)
    fam = any(path.startswith(_FAM) for path in trained)
    above = ("final_norm/", "unembedding")
    if any(not path.startswith((LORA, *_FAM, *above)) for path in trained):
        return 0
    reached = (i for i in range(model.num_layers) if (lora and model.lora.in_layer(i)) or (fam and model.has_fam(i)))
    return next(reached, model.num_layers)


def attention_pairs(config: TrainConfig, memory: MemoryConfig) -> int:
    """Returns the number of (query, key) pairs in one row of a layer with this memory: tokens with tokens and FAM, FAM
    with both."""
    S, F, P, pairs = memory.block_size, memory.fam_length, memory.previous_fams, 0
    for block in range(config.sequence_length // S):
        segments = memory.memory_segments if config.carries_memory else min(block, memory.memory_segments)
        fams = P if config.carries_memory else min(block + 1, P)
        seen = [segments * S + offset + 1 for offset in range(S)]
        pairs += sum(min(keys, memory.token_window) if memory.token_window else keys for keys in seen)
        pairs += S * fams * F + F * (fams * F + S)
    return pairs
