"""One layer over a part of a block: streamed prefill and decoding (paper section 3, block-major).

New keys and values are first written into the ring of the last blocks, which queries then attend to. All other
functions are those of `block_step.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import alternatives, masks, memories
from famjax.attention.attend import Source, attend, attend_ring
from famjax.attention.block_step import fam_query_offsets, gated, push_fam, queried, residual_of
from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memories.base import State, Tokens
from famjax.attention.memory import LayerMemory, fam_sources, select_rows, with_keys
from famjax.attention.positions import Blocks
from famjax.config import MemoryConfig
from famjax.dims import Array, Bool, Float, Int, KeysValues, Queries, Rows


def part_of_block(
    layer: LayerWeights, x: Float[Array, "B Q D"], memory: LayerMemory, where: Blocks
) -> tuple[Float[Array, "B Q D"], LayerMemory]:
    """One layer over up to S tokens that lie within one block of each row.

    Args:
      layer: the layer's weights and settings.
      x: input activations of tokens `offset .. offset + Q - 1` of a block, of which the first `count` are real.
      memory: the layer's memory before these tokens.
      where: positions, with N = 1. The caller ensures that no row's real tokens pass the end of its block.

    Returns:
      Output activations, and the layer's memory after the real tokens, with a new FAM in rows whose block is now full.
    """
    y, memory = _part_of_block(layer, x, memory, where)
    other = memories.of(layer.memory)
    if other.takes_outputs:
        full = where.full[:, 0]
        take = lambda state: select_rows(full, other.leave(layer, state, y), state)
        beside = jax.lax.cond(full.any(), take, lambda state: state, memory.beside)
        memory = dataclasses.replace(memory, beside=beside)
    if alternatives.holds_outputs(layer.memory):
        memory = _keep_outputs(layer, y, memory, where)
    return y, memory


def _part_of_block(
    layer: LayerWeights, x: Float[Array, "B Q D"], memory: LayerMemory, where: Blocks
) -> tuple[Float[Array, "B Q D"], LayerMemory]:
    other = memories.of(layer.memory)
    x = other.enter(layer, memory.beside, x)
    config, Q, current = layer.memory, x.shape[1], where.blocks_before[:, 0]
    assert where.offset is not None
    # FAM's rows go along with many tokens, as in `block_step`. Beside a few they would be most of the work.
    together = 0 < config.fam_length < Q
    offset = where.offset[:, None] + np.arange(Q)
    fam_offset = fam_query_offsets(_origin(where), config)
    of_fam = queried(memory.fam, memory.beside.get(alternatives.PROMPT))
    # Project, and write the block's new keys into the ring.
    if together:
        both = jnp.concatenate([offset, jnp.broadcast_to(fam_offset, (len(x), config.fam_length))], axis=1)
        q, kv = layer.queries_keys_values((x, of_fam), both, offset)
    else:
        q, kv = layer.queries_keys_values((x,), offset, offset)
    slot = current % memory.k.shape[1]
    memory = _replace_ring(memory, _write((memory.k, memory.v), kv, slot, where.offset, where.count))
    # Attend.
    with jax.named_scope("block_attention"):
        fams = fam_sources(memory, where.fam_updates[:, 0], _origin(where), config) if config.fam_length else []
        ring = _ring(memory, offset, current, config)
        more = other.sources(layer, memory.beside, current, q[..., :Q, :], offset)
        of_tokens = lambda fams: attend_ring(q[..., :Q, :], ring, current, [*more, *fams], layer.scoring)
        heads = gated(layer, lambda: of_tokens([]), lambda: of_tokens(fams))
        if together:
            heads = jnp.concatenate([heads, _attend_fam(layer, q[..., Q:, :], memory, slot, fams)], axis=-2)
    # What another memory than FAM adds, and what it takes from the tokens.
    if other is not memories.NOTHING:
        heads, memory = _remember(layer, Tokens(x, q, kv, offset, where.count), memory, heads, where)
    # Output projection and feed-forward; FAM of the rows whose block is full.
    full = where.full[:, 0]
    if together:
        residual = residual_of(of_fam, where.fam_updates[:, 0], config)
        y, new = layer.finish(heads, (x, *residual))
        return y, _with_fam(layer, memory, residual, new, full)
    (y,) = layer.finish(heads, (x,))
    if not config.fam_length:
        return y, memory

    def update(memory: LayerMemory) -> LayerMemory:
        with jax.named_scope("fam_recurrence"):
            heads = _attend_fam(layer, layer.queries(of_fam, fam_offset), memory, slot, fams)
            residual = residual_of(of_fam, where.fam_updates[:, 0], config)
            (new,) = layer.finish(heads, residual)
            return _with_fam(layer, memory, residual, new, full)

    return y, jax.lax.cond(full.any(), update, lambda memory: memory, memory)


def _origin(where: Blocks) -> Rows | None:
    return None if where.origin is None else where.origin[:, 0]


def _replace_ring(memory: LayerMemory, ring: KeysValues) -> LayerMemory:
    return dataclasses.replace(memory, k=ring[0], v=ring[1])


def _block(memory: LayerMemory, slot: Rows) -> KeysValues:
    """Keys and values of the block in a slot of the ring."""
    k, v = (jnp.take_along_axis(a, slot[:, None, None, None, None], axis=1)[:, 0] for a in (memory.k, memory.v))
    return k, v


def _attend_fam(layer: LayerWeights, q: Queries, memory: LayerMemory, slot: Rows, fams: list[Source]) -> Queries:
    """FAM's queries see the previous FAMs and the whole block, which lies in the ring."""
    return attend(q, [*fams, Source(*_block(memory, slot))], layer.scoring)


def _remember(
    layer: LayerWeights, tokens: Tokens, memory: LayerMemory, heads: Queries, where: Blocks
) -> tuple[Queries, LayerMemory]:
    """`block_step._remember` for a part of a block: the memory takes a block from the ring once it is full."""
    other, current, full = memories.of(layer.memory), where.blocks_before[:, 0], where.full[:, 0]

    def update(state: State) -> State:
        kv = _block(memory, current % memory.k.shape[1])
        return select_rows(full, other.full(layer, state, kv, current), state)

    with jax.named_scope("memory"):
        heads, state = other.attend(layer, memory.beside, tokens, heads)
        state = jax.lax.cond(full.any(), update, lambda state: state, state)
    return heads, dataclasses.replace(memory, beside=state)


def _with_fam(
    layer: LayerWeights, memory: LayerMemory, residual: tuple[Float[Array, "B F D"], ...],
    new: Float[Array, "B F D"], full: Bool[Array, "B"],
) -> LayerMemory:  # fmt: skip
    """The memory with a new FAM, and its keys and values, in the rows whose block is full."""
    fam = push_fam(layer, memory.fam, residual, [new], None)
    updated = with_keys(layer, dataclasses.replace(memory, fam=fam))
    parts = lambda m: {"fam": m.fam, "fam_k": m.fam_k, "fam_v": m.fam_v}
    return dataclasses.replace(memory, **select_rows(full, parts(updated), parts(memory)))


def _keep_outputs(layer: LayerWeights, y: Float[Array, "B Q D"], memory: LayerMemory, where: Blocks) -> LayerMemory:
    """The memory with the outputs of some tokens; in rows whose block is full these are what later blocks see."""
    assert where.offset is not None
    kv = layer.keys_values(y, where.offset[:, None] + np.arange(y.shape[1]))
    held = tuple(memory.beside[name][:, None] for name in alternatives.OUTPUTS)
    k, v = (x[:, 0] for x in _write(held, kv, jnp.zeros_like(where.count), where.offset, where.count))
    slot = where.blocks_before[:, 0] % memory.k.shape[1]
    ring, outputs = alternatives.into_ring((memory.k, memory.v), (k, v), slot, where.full[:, 0])
    beside = memory.beside | dict(zip(alternatives.OUTPUTS, outputs, strict=True))
    return dataclasses.replace(_replace_ring(memory, ring), beside=beside)


def _write(rings: KeysValues, new: KeysValues, slot: Rows, offset: Rows, count: Rows) -> KeysValues:
    """The rings [B, R, K, S, H] with the first `count` of some columns [B, K, Q, H] from `offset` of a slot on.

    Q columns of one slot are written, whatever the ring's size: so a loop that carries the rings writes in place.
    """
    S, Q = rings[0].shape[3], new[0].shape[2]

    def columns(ring: Array, new: Array, slot: Array, offset: Array, count: Array) -> Array:
        # The Q columns must lie within the block. If they would pass its end (after the real ones is only
        # padding), they begin earlier, and what is there already is written once more.
        begin = jnp.minimum(offset, S - Q)
        place = (slot, 0, begin, 0)
        index = np.arange(Q) - (offset - begin)
        moved = jnp.roll(new, offset - begin, axis=1) if Q > 1 else new
        there = jax.lax.dynamic_slice(ring, place, (1, *new.shape))[0]
        written = jnp.where(((index >= 0) & (index < count))[:, None], moved.astype(ring.dtype), there)
        return jax.lax.dynamic_update_slice(ring, written[None], place)

    def row(rings: KeysValues, new: KeysValues, *place: Array) -> KeysValues:
        return columns(rings[0], new[0], *place), columns(rings[1], new[1], *place)

    if len(slot) > 1:
        written: KeysValues = jax.vmap(row)(rings, new, slot, offset, count)
        return written

    def one_row(rings: KeysValues, new: KeysValues, *place: Array) -> KeysValues:
        first = lambda tree: jax.tree.map(lambda x: x[0], tree)
        return jax.tree.map(lambda x: x[None], row(first(rings), first(new), *first(place)))

    def in_a_branch(rings: KeysValues, new: KeysValues, slot: Rows, offset: Rows, count: Rows) -> KeysValues:
        args = (rings, new, slot, offset, count)
        return jax.lax.cond(count[0] > 0, one_row, lambda rings, *_: rings, *args)

    # Outside of a branch, the compiler for CPUs writes a single row once for each use of the ring, and copies the
    # ring each time (jax 0.10).
    return jax.lax.platform_dependent(rings, new, slot, offset, count, cpu=in_a_branch, default=one_row)


def _ring(memory: LayerMemory, offset: Int[Array, "B Q"], current: Rows, config: MemoryConfig) -> Source:
    """All slots of a ring, with leading axes [B, R]; the block that a slot holds differs between rows."""
    k, v = memory.k, memory.v
    R = k.shape[1]
    back = (current[:, None] - np.arange(R)) % R
    if config.stop_gradient:
        past = (back > 0)[..., None, None, None]
        k, v = (jnp.where(past, jax.lax.stop_gradient(x), x) for x in (k, v))
    distance = back * config.block_size
    columns, away = np.arange(config.block_size), distance[..., None, None]
    query = offset[:, None, :, None]
    visible = masks.causal(query, columns, away) & masks.in_same_document(back, current[:, None])[..., None, None]
    if config.token_window:
        visible &= masks.within_window(query, columns, away, config.token_window)
    return Source(k, v, visible[:, :, None, None], distance)
