"""A memory of the whole model: block after block through all layers, with memory tokens around each (`Rmt`).

    layer-major      for each layer, for each block     every other memory
    block-major      for each block, for each layer     this one, since a block's first layer needs the last one's
                                                        memory tokens of the block before

Layers see longer blocks: m memory tokens to read, the block, and n memory tokens whose outputs of the last layer the
next block reads. RMT has m = n; AutoCompressors have n for each block that they keep, so a document's first blocks have
fewer. These are moved to the beginning, and the rest is padding at the end:

    n = 2, room for the tokens of 3 blocks, 1 block before:     m m  x x x x  w w  - - - -
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import memories, positions
from famjax.attention.memories.rmt import Rmt
from famjax.attention.memory import LayerMemory, MemoryState, select_rows
from famjax.attention.positions import Blocks
from famjax.attention.sequence import over_blocks
from famjax.config import ModelConfig
from famjax.dims import Array, Bool, Float, Int, Key, Rows, Tree

if TYPE_CHECKING:
    from famjax.nn.model import LayerOverBlocks, Transformer


def in_layers(config: ModelConfig) -> ModelConfig:
    """The configuration that layers get: with a memory of the whole model, longer blocks and no memory."""
    memory = memories.of(config.memory).in_layers(config.memory)
    return config if memory is config.memory else dataclasses.replace(config, memory=memory)


def learned_tokens(model: "Transformer") -> Float[Array, "1 n D"]:
    """The learned memory tokens, float32, replicated on every device."""
    added: Any = model.memory
    tokens = added.tokens[...][None].astype(jnp.float32)
    whole: Array = model.execution.constrain(tokens, (None, None, None))
    return whole


def first_state(model: "Transformer", learned: Float[Array, "1 n D"]) -> Float[Array, "1 m D"]:
    """The memory tokens that a document's first block reads: the learned ones (RMT), or zeros that are not read
    (AutoCompressors)."""
    config, kind = model.config.memory, _kind(model.config)
    if not kind.accumulates:
        return learned
    return jnp.zeros((1, kind.tokens_kept(config), learned.shape[-1]))


def _kind(config: ModelConfig) -> Rmt:
    kind = memories.of(config.memory)
    assert isinstance(kind, Rmt)
    return kind


def forward(
    model: "Transformer", x: Float[Array, "B T D"], state: MemoryState | None, where: Blocks,
    key: Key[Array, ""] | None, over: "LayerOverBlocks",
) -> tuple[Float[Array, "B T D"], Any, dict[str, Array]]:  # fmt: skip
    """`Transformer.forward` block by block; arguments as for that method.

    Returns:
      Hidden states; the layers' memory of the block in progress, or, if `over` looks at layers and returns flags, those
      of the first block in which one is not set; the model's memory after the kept blocks.
    """
    (B, T, D), config, kind = x.shape, model.config.memory, _kind(model.config)
    S, n, N, m = config.block_size, config.memory_tokens, T // config.block_size, kind.tokens_kept(config)
    learned = jnp.broadcast_to(learned_tokens(model), (B, n, D))
    first = jnp.broadcast_to(first_state(model, learned[:1]), (B, m, D))
    looks = over is not over_blocks
    blocks = jnp.moveaxis(x.reshape(B, N, S, D), 1, 0)
    real = jnp.clip(where.count[:, None] - np.arange(N) * S, 0, S)
    kept = jnp.ones((B, N), bool) if where.kept is None else where.kept
    starts = jnp.zeros((B, N), bool) if where.starts is None else where.starts
    waits = np.arange(N) == (where.kept_count // S)[:, None]
    keys = None if key is None else jax.random.split(key, N)

    def body(carry: Tree, inputs: Tree) -> tuple[Tree, Tree]:
        (tokens, last, waiting), (x, key, (starts, real, full, kept, waits, before)) = carry, inputs
        tokens = jnp.where(starts[:, None, None], first, tokens)
        # Around the block: what it reads, and where it writes.
        read, write = (a.astype(x.dtype) for a in (tokens, learned if kind.accumulates else tokens))
        there = kind.tokens_read(config, before)
        count = there + jnp.where(real == S, S + n, real)
        segment = _shift(jnp.concatenate([read, x, write], axis=1), m - there)
        y, out = model.forward(segment, None, _alone(count, model.config), key=key, over=over)
        y = _shift(y, there - m)
        # What the next block reads.
        tokens = select_rows(full, kind.push(tokens, y[:, m + S :]), tokens)
        last = select_rows(kept, tokens, last)
        if not looks:
            waiting = jax.tree.map(lambda a, b: _select(waits, a, b), out, waiting)
        return (tokens, last, waiting), (y[:, m : m + S], out if looks else None)

    if model.execution.remat == "full":
        body = jax.checkpoint(body)
    tokens = first if state is None else state.beside["tokens"]
    waiting = (model.initial_state(B) if state is None else state).stacked
    of_block = (starts, real, where.full, kept, jnp.broadcast_to(waits, (B, N)), where.blocks_before)
    by_block = tuple(jnp.moveaxis(a, 1, 0) for a in of_block)
    (_, last, waiting), (hidden, seen) = jax.lax.scan(
        body, (tokens, tokens, waiting), (blocks, keys, by_block), unroll=model.execution.unroll
    )
    out = _of_first_bad(seen) if looks else waiting
    return jnp.moveaxis(hidden, 0, 1).reshape(B, T, D), out, {"tokens": last}


def read(
    model: "Transformer", x: Float[Array, "B Q D"], layers: list[LayerMemory], tokens: Float[Array, "B m D"],
    where: Blocks,
) -> tuple[Float[Array, "B Q D"], list[LayerMemory], dict[str, Array]]:  # fmt: skip
    """The layers of `Transformer.read`, with memory tokens before the first token of a block and after the last.

    Args:
      model: the model.
      x: embedded tokens of a part of a block.
      layers: each layer's memory before these tokens.
      tokens: the model's memory tokens, which the block reads.
      where: positions of the tokens.

    Returns:
      Hidden states, each layer's memory, and the model's memory after these tokens.
    """
    config, kind = model.config.memory, _kind(model.config)
    S, n, m = config.block_size, config.memory_tokens, kind.tokens_kept(config)
    assert where.offset is not None
    offset, full = where.offset, where.full[:, 0]
    there = kind.tokens_read(config, where.blocks_before[:, 0])

    def part(x: Array, place: Rows, count: Rows, layers: Tree) -> tuple[Array, Tree]:
        at = positions.of_part(place, jnp.zeros_like(place), count, in_layers(model.config).memory)
        return model.part_through_layers(x, layers, at)

    def if_any(
        mask: Bool[Array, "B"], x: Array, place: Rows | int, count: Rows | int, layers: Tree
    ) -> tuple[Array, Tree]:
        """Memory tokens at a place of the block, in the rows of the mask."""
        count, place = jnp.where(mask, count, 0), jnp.broadcast_to(jnp.asarray(place), mask.shape)
        run = lambda layers: part(x, place, count, layers)
        return jax.lax.cond(mask.any(), run, lambda layers: (jnp.zeros_like(x), layers), layers)

    before = _shift(tokens.astype(x.dtype), m - there)
    _, layers = if_any((offset == 0) & (where.count > 0) & (there > 0), before, 0, there, layers)
    hidden, layers = part(x, there + offset, where.count, layers)
    write = jnp.broadcast_to(learned_tokens(model), (len(x), n, x.shape[-1])) if kind.accumulates else tokens
    written, layers = if_any(full, write.astype(x.dtype), there + S, n, layers)
    return hidden, layers, {"tokens": select_rows(full, kind.push(tokens, written), tokens)}


def _shift(x: Float[Array, "B C D"], by: Rows | int) -> Float[Array, "B C D"]:
    """Each row's columns moved to the left; those that leave it come in again at the right."""
    if isinstance(by, int) and by == 0:
        return x
    C = x.shape[1]
    index = (np.arange(C) + jnp.broadcast_to(jnp.asarray(by), len(x))[:, None]) % C
    return jnp.take_along_axis(x, index[:, :, None], axis=1)


def _of_first_bad(seen: Tree) -> Tree:
    """Flags [N, L] of the first block in which one is not set, since a bad block spoils all layers of the next."""
    bad = sum((~flags).reshape(len(flags), -1).any(axis=1).astype(jnp.int32) for flags in jax.tree.leaves(seen))
    first = jnp.argmax(jnp.asarray(bad) > 0)
    return jax.tree.map(lambda flags: flags[first], seen)


def _alone(count: Int[Array, "B"], config: ModelConfig) -> Blocks:
    """Where one block, memory tokens included, stands that sees nothing before it."""
    zero = jnp.zeros_like(count)
    return positions.of_whole_blocks((zero, zero), count, 1, in_layers(config).memory)


def _select(mask: Bool[Array, "B"], new: Float[Array, "L B ..."], old: Float[Array, "L B ..."]) -> Array:
    return jnp.where(mask.reshape(1, -1, *(1,) * (new.ndim - 2)), new, old)
