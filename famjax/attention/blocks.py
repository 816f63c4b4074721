"""One layer over whole blocks of tokens (layer-major); `streaming.py` has the same mathematics for streaming.

`whole_blocks` takes N blocks at once: all tokens are projected together, FAM runs through them in a scan of
F rows a block, then all blocks attend side by side. It returns what the layer passes up, and the layer's
memory after these tokens.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import fused, masks
from famjax.attention.attend import Scoring, Source, attend, attention_to, join
from famjax.attention.fused import Kernel
from famjax.attention.memory import (
    LayerMemory,
    LayerWeights,
    Marks,
    by_kind,
    fam_attention_to,
    fam_sources,
    refresh_keys,
    segments_in_reach,
    select_rows,
    update_fam,
)
from famjax.attention.positions import Blocks, block_in_progress
from famjax.config import MemoryConfig


def split_blocks(x_BT: Any, block_size: int) -> Any:
    """[B, T, ...] to [B, N, S, ...]; T is a multiple of S."""
    return x_BT.reshape(x_BT.shape[0], -1, block_size, *x_BT.shape[2:])


def join_blocks(x_BNS: Any) -> Any:
    """[B, N, S, ...] to [B, T, ...]."""
    return x_BNS.reshape(x_BNS.shape[0], -1, *x_BNS.shape[3:])


def _own_block(k: Any, v: Any, q_offset: Any, config: MemoryConfig) -> Source:
    """The block of the queries themselves, up to each query."""
    k_offset = np.arange(config.block_size)
    visible = masks.causal(q_offset[..., :, None], k_offset)
    if config.token_window:
        visible &= masks.within_window(q_offset[..., :, None], k_offset, 0, config.token_window)
    return Source(k, v, visible)


def _sources_of_blocks(
    segments: list[tuple[Any, Any]], own: tuple[Any, Any], fam: tuple[Any, Any] | None,
    where: tuple[Any, Any, Any], config: MemoryConfig,
) -> tuple[list[Source], list[str]]:  # fmt: skip
    """What tokens of whole blocks see, and of which kind it is; every array has the axes [B, N] in front.

    segments: keys and values of the blocks in reach, the nearest last; own: of the block itself;
    fam: [B, N, P, ...].
    """
    blocks_before, fam_updates, origin = where
    offset = np.arange(config.block_size)
    sources = []
    for i, (k, v) in enumerate(segments):
        back = len(segments) - i
        distance = back * config.block_size
        visible = masks.in_same_document(back, blocks_before)[..., None, None, None, None]
        if config.token_window:
            visible = visible & masks.within_window(offset[:, None], offset, distance, config.token_window)
        sources.append(Source(k, v, visible, distance))
    if fam is not None:
        sources += fam_sources(*fam, fam_updates, origin, config)
    kinds = ["segment" if i < len(segments) else "fam" for i in range(len(sources))]
    return [*sources, _own_block(*own, offset, config)], [*kinds, "own"]


def _at_once(queries: tuple[int, ...], config: MemoryConfig, budget_mib: float) -> tuple[int, int]:
    """(rows, blocks) whose float32 scores fit the budget: all rows of some blocks, or some rows of one.
    queries: the shape of the queries, [B, N, K, G, S, H]."""
    rows, blocks = queries[:2]
    if not budget_mib:
        return rows, blocks
    columns = (segments_in_reach(config) + 1) * config.block_size + config.previous_fams * config.fam_length
    scores_per_block = math.prod(queries[2:-1]) * columns
    fit = max(1, int(budget_mib * 2**20 / (4 * scores_per_block)))
    return _fit(rows, blocks, fit)


def _map_blocks(body: Any, at_once: tuple[int, int], args: Any) -> Any:
    """body(args), to a tree of arrays; all arrays have the axes [B, N] in front: so many rows and blocks at a time."""
    rows, blocks = at_once
    B, N = jax.tree.leaves(args)[0].shape[:2]
    if at_once == (B, N):
        return body(args)

    def cut(x: Any) -> Any:
        x = x.reshape(B // rows, rows, N // blocks, blocks, *x.shape[2:])
        return jnp.moveaxis(x, 2, 1).reshape(-1, rows, blocks, *x.shape[4:])

    def join(x: Any) -> Any:
        x = x.reshape(B // rows, N // blocks, rows, blocks, *x.shape[3:])
        return jnp.moveaxis(x, 1, 2).reshape(B, N, *x.shape[4:])

    return jax.tree.map(join, jax.lax.map(body, jax.tree.map(cut, args)))


def _fit(rows: int, blocks: int, most: int) -> tuple[int, int]:
    """(rows, blocks) of at most so many blocks together: all rows of some blocks, or some rows of one."""
    largest = lambda count, most: max(n for n in range(1, count + 1) if count % n == 0 and n <= most)
    return (rows, largest(blocks, most // rows)) if most >= rows else (largest(rows, most), 1)


def _in_chunks(body: Any, args: Any, chunk: int) -> Any:
    """body(*args) at most so many blocks at a time (0: all): what it makes on the way is then made again, chunk by
    chunk, in the backward pass."""
    rows, blocks = jax.tree.leaves(args)[0].shape[:2]
    if not chunk or chunk >= rows * blocks:
        return body(*args)
    once = jax.checkpoint(lambda args: body(*args), prevent_cse=False)
    return _map_blocks(once, _fit(rows, blocks, chunk), args)


def whole_blocks(
    layer: LayerWeights, x_BNSD: Any, memory: LayerMemory, initial: LayerMemory, where: Blocks,
    config: MemoryConfig, budget_mib: float = 0.0, kernel: Kernel = fused.XLA, chunk: int = 0,
) -> tuple[Any, LayerMemory]:  # fmt: skip
    """One layer over N blocks that all start at a block's edge (layer-major, paper section 3).

    Args:
      layer: the layer's weights.
      x_BNSD: input activations; padding may follow the last real token of a row.
      memory: the layer's memory before these blocks.
      initial: memory of a fresh document, batch 1; its FAM is taken where a document starts.
      where: positions of the blocks.
      config: the memory's settings for this layer.
      budget_mib: see `ModelConfig.attention_budget_mib`.
      kernel: by what the tokens attend.
      chunk: blocks that projections and the feed-forward layer take at once; 0 is all.

    Returns:
      Output activations [B, N, S, D] and the layer's memory after the last real token.
    """
    seen, memory, _ = _prepare(layer, x_BNSD, memory, initial, where, config, kernel=kernel, chunk=chunk)

    def attention(q: Any, **seen: Any) -> Any:
        sources, kinds = _sources_of_blocks(**seen, config=config)
        if kinds.count("fam") == 1:
            *segments, fam, own = sources
            sources = [*segments, join(fam, own, layer.scoring.rope)]
        return attend(q, sources, *layer.scoring)

    with jax.named_scope("block_attention"):
        if kernel.name != "xla":
            heads = _attend_fused(seen, layer.scoring, config, kernel)
        else:
            at_once = _at_once(seen.q.shape, config, budget_mib)
            heads = _map_blocks(lambda a: attention(**a), at_once, _block_by_block(seen, config))
    return _in_chunks(layer.finish, (heads, x_BNSD), chunk), memory


def attention_of_blocks(
    layer: LayerWeights, x_BNSD: Any, memory: LayerMemory, initial: LayerMemory, where: Blocks,
    config: MemoryConfig, budget_mib: float = 0.0, marks: Marks = by_kind,
) -> tuple[Any, Any]:  # fmt: skip
    """Where attention goes, where `whole_blocks` of the same arguments attends.

    Args:
      marks: which keys are told apart; by default memory segments, FAM and the block itself, n = 3.

    Returns:
      Of each token [B, N, K, G, S, n], and of FAM's queries [B, N, K, G, F, n] when they make the next FAM of a
      block: how much of its attention goes to which keys. The latter is 0 in a layer without FAM.
    """
    each_update = functools.partial(fam_attention_to, marks=marks)
    seen, _, of_fam = _prepare(layer, x_BNSD, memory, initial, where, config, each_update)

    def attention(q: Any, **seen: Any) -> Any:
        sources, kinds = _sources_of_blocks(**seen, config=config)
        some = [marks(kind, source.k.shape[-2]) for kind, source in zip(kinds, sources, strict=True)]
        return attention_to(q, sources, some, *layer.scoring)

    at_once = _at_once(seen.q.shape, config, budget_mib)
    of_tokens = _map_blocks(lambda a: attention(**a), at_once, _block_by_block(seen, config))
    if of_fam is None:
        of_fam = jnp.zeros((*of_tokens.shape[:4], memory.fam.shape[-2], of_tokens.shape[-1]))
    return of_tokens, of_fam


class _Seen(NamedTuple):
    """The queries of N blocks, and all that they may see.

    Attributes:
      q: [B, N, K, G, S, H].
      own: keys and values of the same blocks, [B, N, K, S, H].
      past: of the W memory segments before the first block that are in reach, [B, W, K, S, H].
      fam: keys and values of the FAMs that each block sees, [B, N, P, K, F, H]; None without FAM.
      where: (blocks_before, fam_updates, origin), see `Blocks`.
    """

    q: Any
    own: tuple[Any, Any]
    past: tuple[Any, Any]
    fam: tuple[Any, Any] | None
    where: tuple[Any, Any, Any]


def _block_by_block(seen: _Seen, config: MemoryConfig) -> dict[str, Any]:
    """The queries `q` and what `_sources_of_blocks` wants, every array with the axes [B, N] in front."""
    N, reach = seen.q.shape[1], seen.past[0].shape[1]
    k, v = (jnp.concatenate(pair, axis=1) for pair in zip(seen.past, seen.own, strict=True))
    hold = jax.lax.stop_gradient if config.stop_gradient else lambda x: x
    segments = [(hold(k[:, i : i + N]), hold(v[:, i : i + N])) for i in range(reach)]
    return {"q": seen.q, "segments": segments, "own": seen.own, "fam": seen.fam, "where": seen.where}


def _attend_fused(seen: _Seen, scoring: Scoring, config: MemoryConfig, kernel: Kernel) -> Any:
    blocks_before, fam_updates, origin = seen.where
    newest_first = fam_sources(*seen.fam, fam_updates, origin, config)[::-1] if seen.fam else []
    there = jnp.minimum(fam_updates + 1, config.previous_fams)
    past = seen.past if seen.past[0].shape[1] else None
    return fused.attend_blocks(seen.q, seen.own, past, newest_first, there, blocks_before, scoring, config, kernel)


def _prepare(
    layer: LayerWeights, x_BNSD: Any, memory: LayerMemory, initial: LayerMemory, where: Blocks,
    config: MemoryConfig, each_update: Callable[..., Any] | None = None, kernel: Kernel = fused.XLA,
    chunk: int = 0,
) -> tuple[_Seen, LayerMemory, Any]:  # fmt: skip
    """All of a layer that comes before its tokens attend.

    Returns:
      What attends and what is seen, the memory after the last real token, and what `each_update` gave for
      the arguments of each block's `update_fam`, [B, N, ...].
    """
    S, M = config.block_size, config.memory_segments
    q, k, v = _in_chunks(lambda x: layer.queries_keys_values(x, np.arange(S)), (x_BNSD,), chunk)
    ring_order = (where.blocks_before[:, :1] - M + np.arange(M)) % (M + 1)
    previous = jax.tree.map(
        lambda ring: jnp.take_along_axis(ring, ring_order[:, :, None, None, None], axis=1), (memory.k, memory.v)
    )
    fam_kv, fam, looked = None, (memory.fam, memory.fam_k, memory.fam_v), None
    if config.fam_length:
        refresh = lambda m: refresh_keys(layer, m, config)
        with jax.named_scope("fam_recurrence"):
            (fam_kv, looked), fam = _scan_fam(
                layer, refresh(memory), refresh(initial), k, v, where, config, each_update, kernel
            )
    past = tuple(ring[:, M - segments_in_reach(config) :] for ring in previous)
    seen = _Seen(q, (k, v), past, fam_kv, (where.blocks_before, where.fam_updates, where.origin))
    k_ring, v_ring = (
        _to_ring(jnp.concatenate(pair, axis=1), where, config) for pair in zip(previous, (k, v), strict=True)
    )
    return seen, LayerMemory(k_ring, v_ring, *fam), looked


def _scan_fam(
    layer: LayerWeights, memory: LayerMemory, initial: LayerMemory, k: Any, v: Any, where: Blocks,
    config: MemoryConfig, each_update: Callable[..., Any] | None, kernel: Kernel,
) -> tuple[tuple[tuple[Any, Any], Any], tuple[Any, Any, Any]]:  # fmt: skip
    """F_1 .. F_N. Returns the FAM keys and values that each block sees, [B, N, P, K, F, H], with what
    `each_update` gave for each block; and F_N, or that of the last kept block."""
    fresh = (initial.fam, initial.fam_k, initial.fam_v)
    heads, by_kernel = k.shape[2], fused.takes_fam(kernel, config)

    def block(carry: Any, xs: Any) -> Any:
        (fam, kept), (k_B, v_B, updates_B, starts_B, full_B, kept_B, origin_B, noise) = carry, xs
        if by_kernel:
            k_B, v_B = (fused.heads_first(x, heads) for x in (k_B, v_B))
        if starts_B is not None:
            fam = select_rows(starts_B, fresh, fam)
        before = (layer, fam, k_B, v_B, updates_B, origin_B, config)
        new = update_fam(*before, kernel, noise)
        # A block that is not full (padding behind it) leaves FAM as it was.
        new = select_rows(full_B, new, fam)
        kept = None if kept is None else select_rows(kept_B, new, kept)
        return (new, kept), (fam[1:], each_update(*before) if each_update else None)

    if by_kernel:
        k, v = fused.tokens_first(k), fused.tokens_first(v)
    xs = (k, v, where.fam_updates, where.starts, where.full, where.kept, where.origin)
    noise = None
    if config.fam_noise and layer.noise_key is not None:
        noise = jax.random.normal(layer.noise_key, (k.shape[1], *memory.fam[:, 0].shape))
    by_block = (*jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), xs), noise)
    # What it keeps for its backward pass is F / S of what the tokens of a layer keep.
    before = (memory.fam, memory.fam_k, memory.fam_v)
    (last, kept), seen = jax.lax.scan(block, (before, None if where.kept is None else before), by_block)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), seen), last if kept is None else kept


def _to_ring(past: Any, where: Blocks, config: MemoryConfig) -> Any:
    """The last R blocks up to the one behind the kept tokens, each in its slot. past: [B, M + N, K, S, H]."""
    M = config.memory_segments
    current, _ = block_in_progress(where, config)
    back = (current[:, None] - np.arange(M + 1)) % (M + 1)
    read = (where.kept_count // config.block_size)[:, None]
    source = jnp.clip(M + read - back, 0, past.shape[1] - 1)
    ring = jnp.take_along_axis(past, source[:, :, None, None, None], axis=1)
    # The block in progress ends where the real tokens do; what padding left behind it is not kept.
    waiting = jnp.where(back == 0, (where.kept_count % config.block_size)[:, None], config.block_size)
    real = np.arange(config.block_size) < waiting[:, :, None]
    return jnp.where(real[:, :, None, :, None], ring, 0)
