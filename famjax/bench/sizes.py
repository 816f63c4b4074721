"""Benchmark sizes by name. Does not import jax, since flags are checked against them first."""

import dataclasses
from typing import NamedTuple

from famjax.config import ConfigError, MemoryConfig, ModelConfig


class Size(NamedTuple):
    """A model and its batch sizes.

    Attributes:
      model: the model with FAM; `variants` derives its baselines.
      tokens: tokens per training step, for any sequence length.
      lengths: sequence lengths in tokens.
      prefill_rows: batch size of streamed prefill.
    """

    model: ModelConfig
    tokens: int
    lengths: tuple[int, ...]
    prefill_rows: int


SIZES = {
    # 3.2 million weights, for the comparison with other packages.
    "peers": Size(
        ModelConfig(
            num_layers=4, d_model=256, d_ff=680, num_heads=4, num_kv_heads=4, head_dim=64, dtype="float32",
            scan_layers=False, unroll_blocks=4,
            memory=MemoryConfig(block_size=256, memory_segments=1, fam_length=16),
        ),
        tokens=8192, lengths=(2048, 4096), prefill_rows=1,
    ),
    # The model of `famjax quickstart`.
    "tiny": Size(
        ModelConfig(
            num_layers=3, d_model=64, d_ff=128, num_heads=2, num_kv_heads=2, head_dim=32, qk_norm=True,
             rope_base=1000.0, embedding_std=0.5, dtype="float32", scan_layers=False,
            memory=MemoryConfig(block_size=64, memory_segments=0, fam_length=8),
        ),
        tokens=8 * 1408, lengths=(1408,), prefill_rows=8,
    ),
    # The paper's block size and FAM length, whose ratio determines FAM's cost, at a width for a CPU.
    "paper-ratio": Size(
        ModelConfig(
            num_layers=2, d_model=512, d_ff=2048, num_heads=8, num_kv_heads=8, head_dim=64, dtype="float32",
            scan_layers=False, unroll_blocks=4,
            memory=MemoryConfig(block_size=1024, memory_segments=1, fam_length=64),
        ),
        tokens=4096, lengths=(4096,), prefill_rows=1,
    ),
}  # fmt: skip


def variants(model: ModelConfig, length: int) -> dict[str, ModelConfig]:
    """Returns the model with FAM, without FAM (BSWA), and with full causal attention over `length` tokens."""
    memory = model.memory
    without = dataclasses.replace(memory, fam_length=0)
    whole = dataclasses.replace(without, block_size=length, memory_segments=0, token_window=0)
    twins = {"BSWA": without, "full": whole}
    result = {"FAM": model} if memory.fam_length else {}
    return result | {name: dataclasses.replace(model, memory=twin) for name, twin in twins.items()}


def check_lengths(lengths: tuple[int, ...], tokens: int, block_size: int) -> None:
    """Raises `ConfigError` unless every length is a multiple of the block size and divides the tokens per step."""
    for length in lengths:
        if length < 1 or length % block_size:
            near = max(block_size, round(length / block_size) * block_size)
            raise ConfigError(f"length {length} is not a multiple of block_size {block_size}; use {near}")
        if tokens % length:
            near = max(length, tokens // length * length)
            raise ConfigError(f"{tokens} tokens per step is not a multiple of length {length}; use --tokens {near}")
