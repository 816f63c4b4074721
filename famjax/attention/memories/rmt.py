"""Recurrent Memory Transformer (arXiv 2207.06881): memory tokens that pass from the top of one block to the next's
bottom.

    [_, Y, m_tau] = model([m_{tau-1}, X_tau, m_{tau-1}])        causal, nothing else of the past is seen

The memory is the model's, not a layer's: block tau's first layer needs block tau - 1's last. So a text is read block
after block through all layers, in training too. What a layer sees is a longer block, S + 2 n positions, and no
memory at all; `nn/rmt.py` puts the tokens around it.
"""

import dataclasses

from famjax.attention.memories.base import Axes, Memory, Weight
from famjax.config import MemoryConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class Rmt(Memory):
    """State of the model: `tokens` m [B, n, D], float32, n = `memory_tokens`.

    Weight: `memory/tokens` [n, D], with which documents start.
    """

    @property
    def model_axes(self) -> dict[str, Axes]:
        """See `Memory`."""
        return {"tokens": ("batch", "fam", None)}

    def model_weights(self, model: ModelConfig) -> dict[str, Weight]:
        """The first memory tokens."""
        return {"tokens": Weight((model.memory.memory_tokens, model.d_model), ("fam", "embed"), model.embedding_std)}

    def in_layers(self, config: MemoryConfig) -> MemoryConfig:
        """A block with memory tokens on both sides, and no memory beside it."""
        return dataclasses.replace(config, kind="fam", block_size=config.block_size + 2 * config.memory_tokens)

    def flops(self, model: ModelConfig) -> float:
        """The memory tokens' share of a layer's products with weights."""
        projections = 2 * model.head_dim * (model.num_heads + model.num_kv_heads) + (2 + model.gated_ff) * model.d_ff
        return 2.0 * model.d_model * projections * 2 * model.memory.memory_tokens / model.memory.block_size
