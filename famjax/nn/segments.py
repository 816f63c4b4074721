"""A memory of the whole model: block after block through all layers, with memory tokens around each (`Rmt`).

    layer-major      for each layer, for each block     every other memory
    block-major      for each block, for each layer     this one, since a block's first layer needs the last one's
                                                        memory tokens of the block before

Layers see blocks of S + 2 n positions and know nothing of it: n memory tokens to read, the block, and the same n tokens
again, whose outputs at the top are the next block's.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import memories, positions
from famjax.attention.block_step import over_blocks
from famjax.attention.memory import LayerMemory, MemoryState, select_rows
from famjax.attention.positions import Blocks
from famjax.config import ModelConfig
from famjax.dims import Array, Bool, Float, Int, Key, Rows, Tree

if TYPE_CHECKING:
    from famjax.nn.model import LayerOverBlocks, Transformer


def in_layers(config: ModelConfig) -> ModelConfig:
    """The model as its layers see it."""
    memory = memories.of(config.memory).in_layers(config.memory)
    return config if memory is config.memory else dataclasses.replace(config, memory=memory)


def first_tokens(model: "Transformer") -> Float[Array, "1 n D"]:
    """The memory tokens with which a document starts, whole on every device."""
    added: Any = model.memory
    tokens = added.tokens[...][None].astype(jnp.float32)
    whole: Array = model.execution.constrain(tokens, (None, None, None))
    return whole


def forward(
    model: "Transformer", x: Float[Array, "B T D"], state: MemoryState | None, where: Blocks,
    key: Key[Array, ""] | None, over: "LayerOverBlocks",
) -> tuple[Float[Array, "B T D"], Any, dict[str, Array]]:  # fmt: skip
    """`Transformer.forward` block by block.

    Returns:
      Hidden states; the layers' memory of the block in progress, or, if `over` looks at layers and returns flags, those
      of the first block in which one is not set; the model's memory after the kept blocks.
    """
    (B, T, D), S, n = x.shape, model.config.memory.block_size, model.config.memory.memory_tokens
    N, first = T // S, jnp.broadcast_to(first_tokens(model), (B, n, D))
    looks = over is not over_blocks
    blocks = jnp.moveaxis(x.reshape(B, N, S, D), 1, 0)
    real = jnp.clip(where.count[:, None] - np.arange(N) * S, 0, S)
    kept = jnp.ones((B, N), bool) if where.kept is None else where.kept
    starts = jnp.zeros((B, N), bool) if where.starts is None else where.starts
    waits = np.arange(N) == (where.kept_count // S)[:, None]
    keys = None if key is None else jax.random.split(key, N)

    def body(carry: Tree, inputs: Tree) -> tuple[Tree, Tree]:
        (tokens, last, waiting), (x, key, (starts, real, full, kept, waits)) = carry, inputs
        tokens = jnp.where(starts[:, None, None], first, tokens)
        around = tokens.astype(x.dtype)
        count = jnp.where(real == S, S + 2 * n, n + real)
        segment = jnp.concatenate([around, x, around], axis=1)
        y, out = model.forward(segment, None, _alone(count, model.config), key=key, over=over)
        tokens = select_rows(full, y[:, n + S :].astype(jnp.float32), tokens)
        last = select_rows(kept, tokens, last)
        if not looks:
            waiting = jax.tree.map(lambda a, b: _select(waits, a, b), out, waiting)
        return (tokens, last, waiting), (y[:, n : n + S], out if looks else None)

    if model.execution.remat == "full":
        body = jax.checkpoint(body)
    tokens = first if state is None else state.beside["tokens"]
    waiting = (model.initial_state(B) if state is None else state).stacked
    by_block = tuple(jnp.moveaxis(a, 1, 0) for a in (starts, real, where.full, kept, jnp.broadcast_to(waits, (B, N))))
    (_, last, waiting), (hidden, seen) = jax.lax.scan(body, (tokens, tokens, waiting), (blocks, keys, by_block))
    out = _of_first_bad(seen) if looks else waiting
    return jnp.moveaxis(hidden, 0, 1).reshape(B, T, D), out, {"tokens": last}


def read(
    model: "Transformer", x: Float[Array, "B Q D"], layers: list[LayerMemory], tokens: Float[Array, "B n D"],
    where: Blocks,
) -> tuple[Float[Array, "B Q D"], list[LayerMemory], dict[str, Array]]:  # fmt: skip
    """`Transformer.read`: memory tokens go in before the first token of a block and after the last."""
    S, n = model.config.memory.block_size, model.config.memory.memory_tokens
    assert where.offset is not None
    offset, full = where.offset, where.full[:, 0]
    around = tokens.astype(x.dtype)

    def part(x: Array, place: Rows, count: Rows, layers: Tree) -> tuple[Array, Tree]:
        at = positions.of_part(place, jnp.zeros_like(place), count, in_layers(model.config).memory)
        return model.part_through_layers(x, layers, at)

    def if_any(mask: Bool[Array, "B"], place: int, layers: Tree) -> tuple[Array, Tree]:
        """The memory tokens at a place of the block, in the rows of the mask."""
        count = jnp.where(mask, n, 0)
        run = lambda layers: part(around, jnp.full_like(count, place), count, layers)
        return jax.lax.cond(mask.any(), run, lambda layers: (jnp.zeros_like(around), layers), layers)

    _, layers = if_any((offset == 0) & (where.count > 0), 0, layers)
    hidden, layers = part(x, n + offset, where.count, layers)
    written, layers = if_any(full, n + S, layers)
    return hidden, layers, {"tokens": select_rows(full, written.astype(jnp.float32), tokens)}


def _of_first_bad(seen: Tree) -> Tree:
    """Flags [N, L] of the first block in which one is not set, since a bad block spoils all layers of the next."""
    bad = sum((~flags).reshape(len(flags), -1).any(axis=1).astype(jnp.int32) for flags in jax.tree.leaves(seen))
    first = jnp.argmax(jnp.asarray(bad) > 0)
    return jax.tree.map(lambda flags: flags[first], seen)


def _alone(count: Int[Array, "B"], config: ModelConfig) -> Blocks:
    """Where one block of S + 2 n positions stands that sees nothing before it."""
    zero = jnp.zeros_like(count)
    return positions.of_whole_blocks((zero, zero), count, 1, in_layers(config).memory)


def _select(mask: Bool[Array, "B"], new: Float[Array, "L B ..."], old: Float[Array, "L B ..."]) -> Array:
    return jnp.where(mask.reshape(1, -1, *(1,) * (new.ndim - 2)), new, old)
