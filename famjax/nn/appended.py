"""Memory tokens after every block (`Memory.tokens_after`): layers see blocks of S + n positions.

    x x x x  m m    x x x x  m m    x x                the last block is not full yet: no memory tokens

The same learned tokens follow each block, so a text is computed layer by layer, as with any memory of a layer.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from famjax.attention import memories
from famjax.attention.memory import LayerMemory, MemoryState
from famjax.attention.positions import Blocks
from famjax.config import MemoryConfig
from famjax.dims import Array, Float, Key, Tree
from famjax.nn.segments import learned_tokens

if TYPE_CHECKING:
    from famjax.nn.model import LayerOverBlocks, Start, Transformer


def in_use(config: MemoryConfig) -> bool:
    """Whether the memory has tokens after every block."""
    return memories.of(config).tokens_after(config) > 0


def forward(
    model: "Transformer", x: Float[Array, "B T D"], state: MemoryState | None, where: Blocks, start: "Start",
    key: Key[Array, ""] | None, over: "LayerOverBlocks",
) -> tuple[Float[Array, "B T D"], Any]:  # fmt: skip
    """`Transformer.forward` with memory tokens after every block. Arguments and results are those of that method; the
    hidden states are those of the text."""
    (B, T, D), S = x.shape, model.config.memory.block_size
    tokens = learned_tokens(model).astype(x.dtype)
    n = tokens.shape[1]
    blocks = x.reshape(B, T // S, S, D)
    longer = jnp.concatenate([blocks, jnp.broadcast_to(tokens, (B, T // S, n, D))], axis=2)
    stretch = lambda count: count // S * (S + n) + count % S
    at = where._replace(count=stretch(where.count), kept_count=stretch(where.kept_count))
    hidden, out = model.forward(longer.reshape(B, -1, D), state, at, start, key, over)
    return hidden.reshape(B, T // S, S + n, D)[:, :, :S].reshape(B, T, D), out


def read(
    model: "Transformer", x: Float[Array, "B Q D"], layers: list[LayerMemory], where: Blocks
) -> tuple[Float[Array, "B Q D"], list[LayerMemory]]:
    """The layers of `Transformer.read`, with memory tokens after the last token of a block. Returns hidden states and
    each layer's memory."""
    full, S = where.full, model.config.memory.block_size
    hidden, layers = model.part_through_layers(x, layers, where._replace(full=jnp.zeros_like(full)))
    tokens = learned_tokens(model).astype(x.dtype)
    count = jnp.where(full[:, 0], tokens.shape[1], 0)
    after = where._replace(offset=jnp.full_like(count, S), count=count, kept_count=count)

    def write(layers: Tree) -> Tree:
        return model.part_through_layers(jnp.broadcast_to(tokens, (len(x), *tokens.shape[1:])), layers, after)[1]

    return hidden, jax.lax.cond(full.any(), write, lambda layers: layers, layers)
