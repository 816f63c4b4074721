"""One layer over a part of a block: streaming and decoding (paper section 3, block-major).

The keys are those of a ring of the last blocks, into which the new ones are written first. `blocks.py` has
the same mathematics for whole sequences.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import masks
from famjax.attention.attend import Source, attend_ring
from famjax.attention.memory import LayerMemory, LayerWeights, fam_sources, select_rows, update_fam
from famjax.attention.positions import Blocks
from famjax.config import MemoryConfig

# Keys and values.
Pair = tuple[Any, Any]


def part_of_block(
    layer: LayerWeights, x_BQD: Any, memory: LayerMemory, where: Blocks, config: MemoryConfig
) -> tuple[Any, LayerMemory]:
    """One layer over up to S tokens that lie within one block of each row (block-major, streaming).

    Args:
      layer: the layer's weights.
      x_BQD: input activations of tokens `offset .. offset + Q - 1`; the first `count` are real.
      memory: the layer's memory before these tokens.
      where: positions, with N = 1. No row's real tokens pass the end of its block.
      config: the memory's settings for this layer.

    Returns:
      Output activations [B, Q, D] and the layer's memory. Rows whose block became full have a new FAM.
    """
    B, Q, _ = x_BQD.shape
    offset = where.offset[:, None] + np.arange(Q)
    q, k, v = layer.queries_keys_values(x_BQD, offset)
    current = where.blocks_before[:, 0]
    slot = current % memory.k.shape[1]
    k_ring, v_ring = _write((memory.k, memory.v), (k, v), slot, where.offset, where.count)
    sources = []
    if config.fam_length:
        origin = where.origin[:, 0] if where.origin is not None else None
        sources = fam_sources(memory.fam_k, memory.fam_v, where.fam_updates[:, 0], origin, config)
    with jax.named_scope("block_attention"):
        heads = attend_ring(q, _ring_source(k_ring, v_ring, offset, current, config), sources, *layer.scoring)
    y = layer.finish(heads, x_BQD)
    fam = (memory.fam, memory.fam_k, memory.fam_v)
    if config.fam_length:
        fam = _update_full_rows(layer, fam, k_ring, v_ring, slot, where, config)
    return y, LayerMemory(k_ring, v_ring, *fam)


def _write(rings: Pair, new: Pair, slot_B: Any, offset_B: Any, count_B: Any) -> Pair:
    """The rings [B, R, K, S, H] with the first `count` of some columns [B, K, Q, H] from `offset` of a slot on.

    Q columns of one slot are written, whatever the ring's size: so a loop that carries the rings writes in place.
    """
    S, Q = rings[0].shape[3], new[0].shape[2]

    def columns(ring: Any, new: Any, slot: Any, offset: Any, count: Any) -> Any:
        # The Q columns must lie within the block. Where they would pass its end (behind the real ones is only
        # padding), they begin earlier, and what is there already is written once more.
        begin = jnp.minimum(offset, S - Q)
        place = (slot, 0, begin, 0)
        index = np.arange(Q) - (offset - begin)
        moved = jnp.roll(new, offset - begin, axis=1) if Q > 1 else new
        there = jax.lax.dynamic_slice(ring, place, (1, *new.shape))[0]
        written = jnp.where(((index >= 0) & (index < count))[:, None], moved.astype(ring.dtype), there)
        return jax.lax.dynamic_update_slice(ring, written[None], place)

    def row(rings: Pair, new: Pair, *place: Any) -> Pair:
        return columns(rings[0], new[0], *place), columns(rings[1], new[1], *place)

    if len(slot_B) > 1:
        return jax.vmap(row)(rings, new, slot_B, offset_B, count_B)

    def one_row(rings: Pair, new: Pair, *place: Any) -> Pair:
        first = lambda tree: jax.tree.map(lambda x: x[0], tree)
        return jax.tree.map(lambda x: x[None], row(first(rings), first(new), *first(place)))

    def in_a_branch(rings: Pair, new: Pair, slot_B: Any, offset_B: Any, count_B: Any) -> Pair:
        args = (rings, new, slot_B, offset_B, count_B)
        return jax.lax.cond(count_B[0] > 0, one_row, lambda rings, *_: rings, *args)

    # Outside of a branch, the compiler for CPUs writes a single row once for each use of the ring, and copies the
    # ring each time (jax 0.10).
    return jax.lax.platform_dependent(rings, new, slot_B, offset_B, count_B, cpu=in_a_branch, default=one_row)


def _ring_source(k_ring: Any, v_ring: Any, offset_BQ: Any, current_B: Any, config: MemoryConfig) -> Source:
    """All slots of a ring, with the axes [B, R] in front; which block a slot holds differs from row to row."""
    R = k_ring.shape[1]
    back_BR = (current_B[:, None] - np.arange(R)) % R
    if config.stop_gradient:
        past = (back_BR > 0)[..., None, None, None]
        k_ring, v_ring = (jnp.where(past, jax.lax.stop_gradient(x), x) for x in (k_ring, v_ring))
    distance = back_BR * config.block_size
    columns, away = np.arange(config.block_size), distance[..., None, None]
    from_BRQC = offset_BQ[:, None, :, None]
    visible = masks.causal(from_BRQC, columns, away)
    visible &= masks.in_same_document(back_BR, current_B[:, None])[..., None, None]
    if config.token_window:
        visible &= masks.within_window(from_BRQC, columns, away, config.token_window)
    return Source(k_ring, v_ring, visible[:, :, None, None], distance)


def _update_full_rows(
    layer: LayerWeights, fam: Any, k_ring: Any, v_ring: Any, slot: Any, where: Blocks, config: MemoryConfig
) -> Any:
    """A new FAM for the rows whose block is full; no work at all while none is."""

    def update(fam: Any) -> Any:
        block = lambda ring: jnp.take_along_axis(ring, slot[:, None, None, None, None], axis=1)[:, 0]
        origin = where.origin[:, 0] if where.origin is not None else None
        with jax.named_scope("fam_recurrence"):
            new = update_fam(layer, fam, block(k_ring), block(v_ring), where.fam_updates[:, 0], origin, config)
        return select_rows(where.full[:, 0], new, fam)

    return jax.lax.cond(where.full.any(), update, lambda fam: fam, fam)
