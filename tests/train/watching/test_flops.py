"""Model FLOPs against counts by hand, and peak FLOP/s of chips."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from famjax.attention import memories
from famjax.cli.gin_config import load_model_config
from famjax.config import DataConfig, LoraConfig, OptimizerConfig, TrainConfig
from famjax.train.watching.flops import attention_pairs, flops_per_token, layers_without_backward, peak_flops
from tests import tiny

# Two blocks of 4, one segment, FAM of 2; L 2, D 12, E 20, 2 heads of 4, V 17.
CONFIG = TrainConfig(model_dir="none", model=tiny.config(), sequence_length=8)


def with_memory(**changes) -> TrainConfig:
    return dataclasses.replace(CONFIG, model=tiny.config(**changes))


def pairs(config: TrainConfig) -> int:
    return attention_pairs(config, config.model.memory)


def test_pairs_of_queries_and_keys_by_hand():
    """Block 0: tokens see 1+2+3+4 tokens and 4x2 FAM; 2 FAM queries see 2 FAM and 4 tokens. Block 1 adds a
    segment of 4 for each token."""
    assert pairs(CONFIG) == (10 + 8 + 12) + (26 + 8 + 12)
    assert pairs(with_memory(fam_length=0)) == 10 + 26
    # A window of 3 tokens: 1+2+3+3, then 3 for each.
    assert pairs(with_memory(fam_length=0, token_window=3)) == 9 + 12
    # Two previous FAMs exist from the second block on.
    assert pairs(with_memory(previous_fams=2)) == (10 + 8 + 12) + (26 + 16 + 16)
    carried = dataclasses.replace(CONFIG, task="text", data=DataConfig(stream_share=1.0))
    assert pairs(carried) == 2 * (26 + 8 + 12)


def test_flops_of_a_token_by_hand():
    """6 N (1 + F/S) + 6 V D W/T + 12 L heads H pairs/T, with N = L (4 D heads H + 3 D E)."""
    matrices = 2 * (4 * 12 * 8 + 3 * 12 * 20)
    attention = 12 * 2 * 2 * 4 * 76 / 8
    assert flops_per_token(CONFIG, targets=8) == 6 * matrices * 1.5 + 6 * 17 * 12 + attention
    assert flops_per_token(CONFIG, targets=2) == 6 * matrices * 1.5 + 6 * 17 * 12 / 4 + attention


def test_frozen_matrices_have_no_gradient_of_their_own():
    """4 N instead of 6 N."""
    frozen = OptimizerConfig(parameters={"layers/feed_forward/*": {"frozen": True}})
    saved = flops_per_token(CONFIG, 8) - flops_per_token(dataclasses.replace(CONFIG, optimizer=frozen), 8)
    assert saved == 2 * (2 * 3 * 12 * 20) * 1.5


def test_layers_before_the_first_trained_one_have_no_backward_pass():
    """2 N and a third of attention's, with LoRA of rank 3 and FAM in the second of two layers, and no row and pair of
    FAM in the first; with FAM in both, its gradient passes through both."""
    lora = LoraConfig(rank=3, first_layer=1)
    frozen = OptimizerConfig(trained="lora")
    of = lambda **changes: dataclasses.replace(with_memory(lora=lora, **changes), optimizer=frozen)
    matrices, attention = 4 * 12 * 8 + 3 * 12 * 20, 4 * 2 * 4 * 76 / 8
    low_rank = 3 * (4 * (12 + 8) + 3 * (12 + 20))
    logits = 4 * 17 * 12
    upper = (4 * matrices + 6 * low_rank) * 1.5 + 3 * attention + logits
    without_fam = 2 * matrices + 4 * 2 * 4 * 36 / 8
    assert flops_per_token(of(fam_layers="-+"), 8) == pytest.approx(upper + without_fam, rel=1e-12)
    assert flops_per_token(of(), 8) == pytest.approx(upper + 4 * matrices * 1.5 + 3 * attention, rel=1e-12)


@pytest.mark.parametrize(
    ("memory", "optimizer", "expected"),
    [
        ({"fam_layers": "-+"}, {}, 1),
        ({"fam_layers": "-+", "fam_init": "prefix", "fam_update": "gated"}, {}, 1),
        ({"fam_layers": "+-"}, {}, 0),
        ({"fam_layers": "+-"}, {"parameters": {"fam/*": {"frozen": True}}}, 1),
        ({"fam_layers": "-+"}, {"trained": "prompt"}, 1),
        ({"fam_layers": "-+"}, {"trained": "all"}, 0),
        ({"fam_layers": "-+"}, {"parameters": {"embedding": {"frozen": False}}}, 0),
        ({"fam_layers": "-+"}, {"parameters": {"final_norm/scale": {"frozen": False}}}, 1),
        ({"kind": "rmt", "memory_tokens": 2, "fam_length": 0, "memory_segments": 0}, {}, 0),
        ({"kind": "infini", "fam_length": 0}, {}, 0),
    ],
)
def test_where_the_backward_pass_ends(memory: dict, optimizer: dict, expected: int) -> None:
    """LoRA in the second of two layers; weights that enter below it, or a memory there, are reached too."""
    config = with_memory(lora=LoraConfig(rank=3, first_layer=1), **memory)
    tuning = OptimizerConfig(**({"trained": "lora"} | optimizer))
    assert layers_without_backward(dataclasses.replace(config, optimizer=tuning)) == expected


def test_the_paper_24b_model_costs_six_times_its_weights_and_its_window():
    """6 x 24.49e9 weights, 1/16 more for FAM, and pairs: a token of 8 blocks sees 2.25 segments, half of its
    block and 64 FAM; FAM's 64 queries see 64 + 1024 once a block."""
    model = load_model_config(["gin/models/fam_24b.gin"])
    config = TrainConfig(model_dir="none", model=model, sequence_length=8192)
    pairs = 2.25 * 1024 + 512.5 + 64 + 64 * (64 + 1024) / 1024
    matrices = 56 * (2 * 4096 * 4096 + 2 * 4096 * 128 + 3 * 4096 * 32768)
    assert flops_per_token(config, targets=0) == pytest.approx(
        6 * matrices * (1 + 64 / 1024) + 12 * 56 * 4096 * pairs, rel=1e-12
    )


@pytest.mark.parametrize(
    ("memory", "before", "after"),
    [
        ({"kind": "rmt", "memory_tokens": 2}, 2, 2), ({"kind": "armt", "memory_tokens": 2}, 0, 2),
        ({"kind": "autocompressor", "memory_tokens": 2, "summary_blocks": 3}, 6, 2),
        ({"kind": "sinks", "sinks": 3}, 3, 0),
    ],
)  # fmt: skip
def test_attention_to_memory_tokens_and_sinks_counts_as_that_to_fam(memory: dict, before: int, after: int) -> None:
    """4 heads H for each pair that the mask of a block shows: memory tokens around it are rows of it, and its tokens
    alone see sinks, all of them."""
    config = with_memory(fam_length=0, memory_segments=0, **memory).model
    S, length = config.memory.block_size, before + 4 + after
    seen = np.tri(length)
    own = seen[before:] if memory["kind"] == "sinks" else seen
    pairs = own.sum() - np.tri(S).sum()
    kind, share = memories.of(config.memory), (0 if memory["kind"] == "sinks" else before + after) / S
    no_heads = dataclasses.replace(config, num_heads=0, num_kv_heads=0)
    projections = 2.0 * share * 12 * 2 * 4 * (2 + 2)
    assert kind.flops(config) - kind.flops(no_heads) == pytest.approx(projections + 4 * 2 * 4 * pairs / S)


ROW = 12 * 4 * (2 * 4 + 2 * 2) + 3 * 12 * 20  # a row's products with a layer's weights: 4 heads, 2 key heads
BESIDE = lambda count: 2 * 4 * 4 * (np.tri(4 + count).sum() - np.tri(4).sum())  # attention to and of memory tokens


@pytest.mark.parametrize(
    ("memory", "products"),
    [
        # For each token recall for 4 heads, recall and update for 2 key heads, of a matrix [4, 4].
        ({"kind": "infini"}, 4 * 4 * 4 * (4 + 2 * 2)),
        # For each token and head scores of 5 means, keys and values of 2 blocks.
        ({"kind": "retrieval", "retrieval_blocks": 5, "retrieval_top_k": 2}, 4 * 4 * 4 * (5 + 2 * 2 * 4)),
        ({"kind": "rmt", "memory_tokens": 2}, 4 * ROW + BESIDE(4)),
        # 6 rows read a matrix [18, 12]; 2 memory tokens read and write it; counted with the weights, for 4 tokens each:
        # query, key, value and beta.
        (
            {"kind": "armt", "memory_tokens": 2, "memory_key_dim": 3},
            6 * (36 + 216) + 2 * (36 + 144 + 12 + 2 * 216) + 2 * ROW + BESIDE(2) - 4 * (36 + 36 + 144 + 12),
        ),
    ],
)
def test_operations_of_memories_by_hand(memory: dict, products: int) -> None:
    """Two operations for each product of a block of 4 tokens in a layer."""
    config = with_memory(fam_length=0, memory_segments=0, num_heads=4, num_kv_heads=2, **memory).model
    assert memories.of(config.memory).flops(config) == pytest.approx(2 * products / 4)


def test_gates_are_computed_from_the_rows_of_fam() -> None:
    """Two vectors [D] and a number in each of two layers, for 2 rows a block of 4 tokens."""
    gates = flops_per_token(with_memory(fam_update="gated"), 8) - flops_per_token(CONFIG, 8)
    assert gates == pytest.approx(2 * 6 * (2 * 12 + 1) * 2 / 4)


def device(kind: str, number: int = 0, **more) -> SimpleNamespace:
    return SimpleNamespace(device_kind=kind, process_index=0, id=number, **more)


def test_peaks_add_up_over_chips_and_are_unknown_for_a_cpu():
    """Two devices with the same coordinates are one chip."""
    assert peak_flops([device("NVIDIA H200", i) for i in range(8)]) == 8 * 989e12
    assert peak_flops([device("TPU v5 lite", i, coords=(i, 0, 0)) for i in range(4)]) == 4 * 197e12
    assert peak_flops([device("TPU v5", coords=(0, 0, 0))]) == 459e12
    assert peak_flops([device("TPU7x", i, coords=(i // 2, 0, 0)) for i in range(4)]) == 2 * 2307e12
    assert peak_flops([device("cpu")]) is None
    assert peak_flops([device("NVIDIA H100 80GB HBM3"), device("Voodoo 2", 1)]) is None


@pytest.mark.parametrize("kind", ["NVIDIA A100-SXM4-80GB", "TPU v4", "TPU v6 lite", "TPU v5p", "NVIDIA H100 PCIe"])
def test_names_of_chips_as_jax_tells_them(kind):
    peaks = {"a100": 312e12, "tpu v4": 275e12, "tpu v6": 918e12, "tpu v5p": 459e12, "h100 pcie": 756e12}
    assert peak_flops([device(kind)]) == next(peak for name, peak in peaks.items() if name in kind.lower())
