"""Recurrent Memory Transformer (arXiv 2207.06881): memory tokens that pass from the top of one block to the next's
bottom.

    [_, Y, m_tau] = model([m_{tau-1}, X_tau, m_{tau-1}])        causal, nothing else of the past is seen

AutoCompressors (arXiv 2305.14788) keep what every block has left, and write with the learned tokens w:

    [_, Y, m_tau] = model([m_{tau-C}, .., m_{tau-1}, X_tau, w])     a first block reads none

The memory is the model's, not a layer's: block tau's first layer needs block tau - 1's last. So a text is read block
after block through all layers, in training too. What a layer sees is a longer block, and no memory at all;
`nn/segments.py` puts the tokens around it.
"""

import dataclasses

import jax.numpy as jnp

from famjax.attention.memories.base import Axes, Memory, Weight, products_of_row
from famjax.config import MemoryConfig, ModelConfig
from famjax.dims import Array, Float, Rows


@dataclasses.dataclass(frozen=True)
class Rmt(Memory):
    """State of the model: `tokens` m [B, n, D], float32, n = `memory_tokens`.

    Weight: `memory/tokens` [n, D], with which documents start.
    """

    # Whether the tokens of several blocks are kept, and new ones are written with the learned ones.
    accumulates = False

    @property
    def model_axes(self) -> dict[str, Axes]:
        """See `Memory`."""
        return {"tokens": ("batch", "fam", None)}

    def model_weights(self, model: ModelConfig) -> dict[str, Weight]:
        """The learned memory tokens."""
        return {"tokens": Weight((model.memory.memory_tokens, model.d_model), ("fam", "embed"), model.embedding_std)}

    def in_layers(self, config: MemoryConfig) -> MemoryConfig:
        """A block with memory tokens on both sides, and no memory beside it."""
        around = self.tokens_kept(config) + config.memory_tokens
        return dataclasses.replace(config, kind="fam", block_size=config.block_size + around)

    def flops(self, model: ModelConfig) -> float:
        """The memory tokens' share of a layer's products with weights."""
        around = self.tokens_kept(model.memory) + model.memory.memory_tokens
        return 2.0 * products_of_row(model) * around / model.memory.block_size

    def tokens_kept(self, config: MemoryConfig) -> int:
        """m, memory tokens before a block: those of one block, or of all that are kept."""
        return config.memory_tokens

    def tokens_read(self, config: MemoryConfig, blocks_before: Rows) -> Rows | int:
        """Of these, the ones that are there: the last ones."""
        return config.memory_tokens

    def push(self, tokens: Float[Array, "B m D"], new: Float[Array, "B n D"]) -> Float[Array, "B m D"]:
        """The tokens that the next block reads; the oldest make room."""
        return jnp.concatenate([tokens[:, new.shape[1] :], new.astype(jnp.float32)], axis=1)


@dataclasses.dataclass(frozen=True)
class AutoCompressor(Rmt):
    """State of the model: `tokens` [B, C n, D], float32, of the last C = `summary_blocks` blocks, the newest last.

    What a block has left stays as it is, and is dropped when C blocks have come after it: so the state, and what a
    block costs, are bounded. Weight: `memory/tokens` [n, D], the input of every block's summary.
    """

    accumulates = True

    def tokens_kept(self, config: MemoryConfig) -> int:
        """C n."""
        return config.summary_blocks * config.memory_tokens

    def tokens_read(self, config: MemoryConfig, blocks_before: Rows) -> Rows | int:
        """Those of the blocks that the document has had."""
        read: Array = jnp.minimum(blocks_before, config.summary_blocks) * config.memory_tokens
        return read
