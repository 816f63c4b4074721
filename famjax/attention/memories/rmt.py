"""Recurrent Memory Transformer (arXiv 2207.06881): memory tokens that pass from the top of one block to the next's
bottom.

    [_, Y, m_tau] = model([m_{tau-1}, X_tau, m_{tau-1}])        causal, nothing else of the past is seen

AutoCompressors (arXiv 2305.14788) keep the memory tokens of the last C blocks, and write with the learned tokens w:

    [_, Y, m_tau] = model([m_{tau-C}, .., m_{tau-1}, X_tau, w])     a document's first block reads none

The memory is one of the model, not of a layer: block tau's first layer needs the output of block tau - 1's last layer.
So a text passes through all layers block by block, in training too. A layer sees a longer block and has no memory of
its own; `nn/segments.py` adds the tokens around the block.
"""

import dataclasses

import jax.numpy as jnp

from famjax.attention.memories.base import Axes, Memory, Weight, attention_of_memory_tokens, products_of_row
from famjax.config import MemoryConfig, ModelConfig
from famjax.dims import Array, Float, Rows


@dataclasses.dataclass(frozen=True)
class Rmt(Memory):
    """State of the model: `tokens` m [B, n, D], float32, n = `memory_tokens`.

    Weight: `memory/tokens` [n, D], the initial memory tokens of a document.
    """

    # Whether the tokens of several blocks are kept, and new ones are written with the learned ones.
    accumulates = False

    @property
    def model_axes(self) -> dict[str, Axes]:
        """See `Memory`."""
        return {"tokens": ("batch", "fam", None)}

    def model_weights(self, model: ModelConfig) -> dict[str, Weight]:
        """`tokens` [n, D], the learned memory tokens."""
        return {"tokens": Weight((model.memory.memory_tokens, model.d_model), ("fam", "embed"), model.embedding_std)}

    def in_layers(self, config: MemoryConfig) -> MemoryConfig:
        """Blocks of m + S + n positions, with memory tokens on both sides, and no memory."""
        around = self.tokens_kept(config) + config.memory_tokens
        return dataclasses.replace(config, kind="fam", block_size=config.block_size + around)

    def flops(self, model: ModelConfig) -> float:
        """See `Memory`: the memory tokens' products with the layer's weights, and their attention."""
        around = self.tokens_kept(model.memory) + model.memory.memory_tokens
        products = 2.0 * products_of_row(model) * around / model.memory.block_size
        return products + attention_of_memory_tokens(model, around)

    def tokens_kept(self, config: MemoryConfig) -> int:
        """m, the number of memory tokens before a block: those of one block, or of all blocks that are kept."""
        return config.memory_tokens

    def tokens_read(self, config: MemoryConfig, blocks_before: Rows) -> Rows | int:
        """The number of these that exist before each row's block: n. They are the last ones."""
        return config.memory_tokens

    def push(self, tokens: Float[Array, "B m D"], new: Float[Array, "B n D"]) -> Float[Array, "B m D"]:
        """The tokens that the next block reads, float32: `new` appended, and the oldest n dropped."""
        return jnp.concatenate([tokens[:, new.shape[1] :], new.astype(jnp.float32)], axis=1)


@dataclasses.dataclass(frozen=True)
class AutoCompressor(Rmt):
    """State of the model: `tokens` [B, C n, D], float32, of the last C = `summary_blocks` blocks, the newest last.

    A block's tokens are unchanged until they are dropped after C further blocks, so the state and the cost of a block
    are bounded. Weight: `memory/tokens` [n, D], the input of every block's summary.
    """

    accumulates = True

    def tokens_kept(self, config: MemoryConfig) -> int:
        """m = C n."""
        return config.summary_blocks * config.memory_tokens

    def tokens_read(self, config: MemoryConfig, blocks_before: Rows) -> Rows | int:
        """[B], n for each block that the document has had, at most C n."""
        read: Array = jnp.minimum(blocks_before, config.summary_blocks) * config.memory_tokens
        return read
