"""Memories that a layer may have beside its window, each in one file (docs/adding_a_memory.md).

`base.py` has the interface. FAM is not among them: its rows go through the layer with the block's tokens, which is
the paper's Algorithm 2 itself (`block_step.py`).
"""

from famjax.attention.memories.armt import Armt
from famjax.attention.memories.base import NOTHING, Memory, Weight
from famjax.attention.memories.deltanet import DeltaNet
from famjax.attention.memories.infini import Infini
from famjax.attention.memories.retrieval import Retrieval
from famjax.attention.memories.rmt import AutoCompressor, Rmt
from famjax.attention.memories.sinks import Sinks
from famjax.config import MemoryConfig, ModelConfig

__all__ = ["KINDS", "NOTHING", "Memory", "of", "weights"]

# By `MemoryConfig.kind`.
KINDS: dict[str, Memory] = {
    "fam": NOTHING, "sinks": Sinks(), "infini": Infini(), "deltanet": DeltaNet(), "rmt": Rmt(),
    "autocompressor": AutoCompressor(), "armt": Armt(),
    "retrieval": Retrieval(),
}  # fmt: skip


def of(config: MemoryConfig) -> Memory:
    """What a layer with these settings remembers beside its window and FAM."""
    return KINDS[config.kind]


def weights(model: ModelConfig) -> dict[str, Weight]:
    """What the memory adds to each layer's weights, at `layers/memory/NAME`: another memory's, or the gate of FAM's
    updates, which is mostly closed at first."""
    added = of(model.memory).weights(model)
    if not model.memory.gates_updates:
        return added
    D = Weight((model.d_model,), ("embed",))
    return added | {"write_old": D, "write_new": D, "write_bias": Weight((1,), (None,), mean=-1.0)}
