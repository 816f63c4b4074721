"""Memories that a layer may have beside its window, each in one file (docs/adding_a_memory.md).

`base.py` has the interface. FAM is not among them: its rows go through the layer with the block's tokens, which is
the paper's Algorithm 2 itself (`block_step.py`).
"""

from famjax.attention.memories.armt import Armt
from famjax.attention.memories.base import NOTHING, Memory
from famjax.attention.memories.deltanet import DeltaNet
from famjax.attention.memories.infini import Infini
from famjax.attention.memories.retrieval import Retrieval
from famjax.attention.memories.rmt import AutoCompressor, Rmt
from famjax.attention.memories.sinks import Sinks
from famjax.config import MemoryConfig

__all__ = ["KINDS", "NOTHING", "Memory", "of"]

# By `MemoryConfig.kind`.
KINDS: dict[str, Memory] = {
    "fam": NOTHING, "sinks": Sinks(), "infini": Infini(), "deltanet": DeltaNet(), "rmt": Rmt(),
    "autocompressor": AutoCompressor(), "armt": Armt(),
    "retrieval": Retrieval(),
}  # fmt: skip


def of(config: MemoryConfig) -> Memory:
    """What a layer with these settings remembers beside its window and FAM."""
    return KINDS[config.kind]
