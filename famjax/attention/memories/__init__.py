"""Memories that a layer may have besides its window, each in one file (docs/adding_a_memory.md).

`base.py` has the interface. FAM is not one of them: its rows pass through the layer with the block's tokens, which is
the paper's Algorithm 2 (`block_step.py`).
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
    """The memory of a layer with these settings besides its window and FAM; `NOTHING` if there is none."""
    return KINDS[config.kind]


def weights(model: ModelConfig) -> dict[str, Weight]:
    """The weights that the memory adds to each layer, at `layers/memory/NAME`: those of another memory, or of the gate
    of FAM's updates (`block_step.write_gate`), which is mostly closed at first."""
    added = of(model.memory).weights(model)
    if not model.memory.gates_updates:
        return added
    D = Weight((model.d_model,), ("embed",))
    return added | {"write_old": D, "write_new": D, "write_bias": Weight((1,), (None,), mean=-1.0)}
