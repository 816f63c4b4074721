"""The Pallas kernels of `fused.py`: forward, and backward for queries, keys and FAM (after FlashAttention-2,
arXiv 2307.08691). `fused_calls.py` runs them.

    q        [B, N, Q, K G H']     heads side by side, as projections make them; Q is S, or FAM's F (not causal)
    k, v     [B, W + N, S, K H']   W blocks of the past, then the N blocks of the queries
    fam      [B, N, C, K H']       C columns that every token of block n may see, if they are visible
    turns    [2, W + 1, 1, H']     RoPE for 0, 1, ... W blocks of distance
    before   int32 [B, N]          blocks of the document before each block
    limit    int32 [B, N]          visible columns of FAM

A tile of scores is [q_tile, tile]. Block n's queries meet the keys of block n - back at n + W - back of k.
Scores, softmax and sums are float32; what enters a product has its inputs' dtype, as in `attend`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from famjax.attention.attend import HIDDEN
from famjax.dims import Array

# Blocks of arrays in the chip's memory; int32 scalars of the grid; tables of int32 that all of the grid can read.
Ref: TypeAlias = Any
Index: TypeAlias = Any
Scalars: TypeAlias = Any
# Scores with those that the mask hides set to `HIDDEN`.
Hide: TypeAlias = Callable[..., Array]

LANES = 128  # of a vector register


class Plan(NamedTuple):
    """Static sizes and settings of the kernels.

    Attributes:
      kv_heads, group, head: K, G, H' (a head's size, padded to a multiple of `LANES`).
      block, blocks, reach: S, N, W.
      queries: Q, queries per block: S for tokens, F for FAM.
      causal: a query sees its own block up to itself; if False, all of it, and W is 0.
      tile: number of keys of a tile, and of queries if they are tokens; divides S.
      window: `MemoryConfig.token_window`, in tokens.
      cap: see `Scoring`.
      stop_gradient: no gradient for keys and values of earlier blocks.
      fam: whether there are FAM columns.
      interpret: interpret the kernels, without a TPU.
    """

    kv_heads: int
    group: int
    head: int
    block: int
    blocks: int
    reach: int
    queries: int
    causal: bool
    tile: int
    window: int
    cap: float
    stop_gradient: bool
    fam: bool
    interpret: bool

    @property
    def tiles(self) -> int:
        """Number of tiles of keys in a block."""
        return self.block // self.tile

    @property
    def q_tile(self) -> int:
        """Number of queries of a tile."""
        return self.tile if self.causal else self.queries

    @property
    def q_tiles(self) -> int:
        """Number of tiles of a block's queries."""
        return self.queries // self.q_tile


class Arrays(NamedTuple):
    """Inputs of the kernels; the module's docstring has their shapes."""

    q: Array
    k: Array
    v: Array
    fam_k: Array | None
    fam_v: Array | None
    turns: Array
    before: Array
    limit: Array


def _product(a: Array, b: Index, contract: tuple[int, int]) -> Any:
    """A matrix product over these axes of a and b."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _turn(x: Array, turns_ref: Ref, plan: Plan, sign: int = 1) -> Any:
    """[rows, H'] float32, rotated by a distance, or back."""
    return x * turns_ref[0] + pltpu.roll(x, plan.head // 2, 1) * (sign * turns_ref[1])


def _capped(scores: Array, cap: float) -> tuple[Any, Any]:
    """Scores after the cap, and the derivative of it (None: 1)."""
    if not cap:
        return scores, None
    tanh = jnp.tanh(scores / cap)
    return cap * tanh, 1 - tanh * tanh


def _lies(plan: Plan, before: Scalars, back: Index, q_tile: Index, k_tile: Index) -> tuple[Any, Any]:
    """(whether some query of a tile sees some key, whether all see all)."""
    nearest = back * plan.block + q_tile * plan.tile - (k_tile * plan.tile + plan.tile - 1)
    farthest = nearest + 2 * (plan.tile - 1)
    some, all_ = (before >= back) & (farthest >= 0), nearest >= 0
    if plan.window:
        some, all_ = some & (nearest < plan.window), all_ & (farthest < plan.window)
    return some, all_


def _hide(scores: Array, plan: Plan, back: Index, q_tile: Index, k_tile: Index, q_axis: int) -> Any:
    """Scores of a tile with those that the mask hides set to `HIDDEN`; queries lie along `q_axis`."""
    offset = lambda axis: jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis)
    away = back * plan.block + (q_tile - k_tile) * plan.tile + offset(q_axis) - offset(1 - q_axis)
    visible = away >= 0
    if plan.window:
        visible &= away < plan.window
    return jnp.where(visible, scores, HIDDEN)


def _hide_fam(scores: Array, limit: Scalars, axis: int) -> Any:
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) < limit, scores, HIDDEN)


def _in_tile(
    plan: Plan, before: Scalars, back: Index, q_tile: Index, k_tile: Index, body: Callable[[Hide], None]
) -> None:
    """body(hide) where a tile has anything to see: with the mask only where something is hidden."""
    if not plan.causal:
        body(lambda scores, q_axis: scores)
        return
    some, all_ = _lies(plan, before, back, q_tile, k_tile)

    pl.when(some & all_)(lambda: body(lambda scores, q_axis: scores))
    hide = lambda scores, q_axis: _hide(scores, plan, back, q_tile, k_tile, q_axis)
    pl.when(some & jnp.logical_not(all_))(lambda: body(hide))


# --- queries: forward, and backward for the queries -------------------------------------------------
#
# Grid (B, heads, N, tiles of queries, steps); a step is a tile of keys, from the farthest block to the own.


def _step(plan: Plan, step: Index) -> tuple[Any, Any]:
    """(blocks back, tile within that block)."""
    return plan.reach - step // plan.tiles, step % plan.tiles


def q_index(b: Index, h: Index, n: Index, i: Index, j: Index, *_: Scalars) -> Any:
    """Block indices (of a Pallas `BlockSpec`) of a tile of queries."""
    return b, n, i, h


def row_index(b: Index, h: Index, n: Index, i: Index, j: Index, *_: Scalars) -> Any:
    """Block indices of a tile's numbers per query: the normalisers, or the means."""
    return b, n, h, 0, i


def _k_index(plan: Plan, b: Index, h: Index, n: Index, i: Index, j: Index, *scalars: Scalars) -> Any:
    """Where nothing is seen, the tile that is needed next, or was last: it is not fetched again."""
    before = scalars[0]
    back, tile = _step(plan, j)
    nearest = jnp.minimum(back, before[b, n])
    tile = jnp.where(back > nearest, 0, tile)
    if plan.causal:
        tile = jnp.where(nearest == 0, jnp.minimum(tile, i), tile)
    return b, n + plan.reach - nearest, tile, h // plan.group


def _fam_index(plan: Plan, b: Index, h: Index, n: Index, i: Index, j: Index, *_: Scalars) -> Any:
    return b, n, 0, h // plan.group


def _turns_index(plan: Plan, b: Index, h: Index, n: Index, i: Index, j: Index, *_: Scalars) -> Any:
    return 0, _step(plan, j)[0], 0, 0


def query_specs(plan: Plan, columns: int) -> list[pl.BlockSpec]:
    """Blocks of q, k, v, turns and, if there is one, FAM with `columns` columns, for a grid of queries."""
    tile, head = plan.tile, plan.head
    keys = pl.BlockSpec((None, None, tile, head), functools.partial(_k_index, plan))
    turns = pl.BlockSpec((2, None, 1, head), functools.partial(_turns_index, plan))
    fam = pl.BlockSpec((None, None, columns, head), functools.partial(_fam_index, plan))
    return [pl.BlockSpec((None, None, plan.q_tile, head), q_index), keys, keys, turns] + [fam, fam] * plan.fam


def forward_kernel(before: Scalars, limit: Scalars, q_ref: Ref, k_ref: Ref, v_ref: Ref, turns_ref: Ref, *refs: Ref,
                   plan: Plan) -> None:  # fmt: skip
    """Online softmax over the tiles of keys of one tile of queries; FAM's columns come first."""
    fam_refs, (out_ref, log_ref, top_ref, total_ref, sum_ref) = refs[: 2 * plan.fam], refs[2 * plan.fam :]
    b, n, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3), pl.program_id(4)
    back, k_tile = _step(plan, j)

    def start(scores: Array, v: Array) -> None:
        top = scores.max(axis=-1, keepdims=True)
        p = jnp.exp(scores - top)
        top_ref[...] = jnp.broadcast_to(top, top_ref.shape)
        total_ref[...] = jnp.broadcast_to(p.sum(axis=-1, keepdims=True), total_ref.shape)
        sum_ref[...] = _product(p.astype(v.dtype), v, (1, 0))

    @pl.when(j == 0)
    def start_row() -> None:
        if plan.fam:
            scores, _ = _capped(_product(q_ref[...], fam_refs[0][...], (1, 1)), plan.cap)
            start(_hide_fam(scores, limit[b, n], 1), fam_refs[1][...])
        else:
            top_ref[...] = jnp.full_like(top_ref, HIDDEN)
            total_ref[...] = jnp.zeros_like(total_ref)
            sum_ref[...] = jnp.zeros_like(sum_ref)

    def tile(hide: Hide) -> None:
        q = _turn(q_ref[...].astype(jnp.float32), turns_ref, plan).astype(q_ref.dtype)
        scores, _ = _capped(_product(q, k_ref[...], (1, 1)), plan.cap)
        scores = hide(scores, 0)
        old = top_ref[:, :1]
        top = jnp.maximum(old, scores.max(axis=-1, keepdims=True))
        p, shrink = jnp.exp(scores - top), jnp.exp(old - top)
        total = shrink * total_ref[:, :1] + p.sum(axis=-1, keepdims=True)
        top_ref[...] = jnp.broadcast_to(top, top_ref.shape)
        total_ref[...] = jnp.broadcast_to(total, total_ref.shape)
        sum_ref[...] = shrink * sum_ref[...] + _product(p.astype(v_ref.dtype), v_ref[...], (1, 0))

    _in_tile(plan, before[b, n], back, i, k_tile, tile)

    @pl.when(j == (plan.reach + 1) * plan.tiles - 1)
    def end_row() -> None:
        total = total_ref[...]
        out_ref[...] = (sum_ref[...] / total[:, :1]).astype(out_ref.dtype)
        log_ref[...] = (top_ref[...] + jnp.log(total)).T[:1]


def _d_scores(scores: Array, log_total: Array, dp: Array, mean: Array, slope: Array) -> tuple[Any, Any]:
    """Weights, and the gradient of the uncapped scores."""
    p = jnp.exp(scores - log_total)
    ds = p * (dp - mean)
    return p, ds if slope is None else ds * slope


def dq_kernel(before: Scalars, limit: Scalars, q_ref: Ref, k_ref: Ref, v_ref: Ref, turns_ref: Ref, *refs: Ref,
              plan: Plan) -> None:  # fmt: skip
    """Gradient of one tile of queries, summed over the tiles of keys."""
    fam_refs, (d_out_ref, log_ref, mean_ref, dq_ref, sum_ref) = refs[: 2 * plan.fam], refs[2 * plan.fam :]
    b, n, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3), pl.program_id(4)
    back, k_tile = _step(plan, j)
    column = lambda ref: jnp.expand_dims(ref[0], -1)

    def gradient(q: Array, k: Array, v: Array, hide: Hide) -> Array:
        scores, slope = _capped(_product(q, k, (1, 1)), plan.cap)
        dp = _product(d_out_ref[...], v, (1, 1))
        _, ds = _d_scores(hide(scores), column(log_ref), dp, column(mean_ref), slope)
        return _product(ds.astype(k.dtype), k, (1, 0))

    @pl.when(j == 0)
    def start_sum() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)
        if plan.fam:
            hide = lambda scores: _hide_fam(scores, limit[b, n], 1)
            sum_ref[...] = gradient(q_ref[...], fam_refs[0][...], fam_refs[1][...], hide)

    def tile(hide: Hide) -> None:
        q = _turn(q_ref[...].astype(jnp.float32), turns_ref, plan).astype(q_ref.dtype)
        dq = gradient(q, k_ref[...], v_ref[...], lambda scores: hide(scores, 0))
        sum_ref[...] += _turn(dq, turns_ref, plan, -1)

    _in_tile(plan, before[b, n], back, i, k_tile, tile)

    @pl.when(j == (plan.reach + 1) * plan.tiles - 1)
    def end_sum() -> None:
        dq_ref[...] = sum_ref[...].astype(dq_ref.dtype)


# --- keys: backward ---------------------------------------------------------------------------------
#
# Grid (B, kv heads, W + N, tiles of keys, steps); a step is a tile of queries of one head and one distance.
# For FAM (B, kv heads, N, steps): one tile of columns, and the queries of its block.


def _key_step(plan: Plan, step: Index) -> tuple[Any, Any, Any]:
    """(head of the group, blocks between keys and queries, tile of the queries)."""
    backs = 1 if plan.stop_gradient else plan.reach + 1
    return step // (backs * plan.q_tiles), step // plan.q_tiles % backs, step % plan.q_tiles


def _queries_of(plan: Plan, c: Index, t: Index, j: Index) -> tuple[Any, Any, Any, Any]:
    """(head of the group, distance, block of the queries if there is one, its tile)."""
    g, back, i = _key_step(plan, j)
    nearest = jnp.where(back == 0, jnp.maximum(i, t), i) if plan.causal else i
    return g, back, c - plan.reach + back, nearest


def dkv_q_index(plan: Plan, b: Index, kh: Index, c: Index, t: Index, j: Index, *_: Scalars) -> Any:
    """Block indices of the tile of queries that a step meets, in a grid of keys."""
    g, _, n, i = _queries_of(plan, c, t, j)
    return b, jnp.clip(n, 0, plan.blocks - 1), i, kh * plan.group + g


def dkv_row_index(plan: Plan, b: Index, kh: Index, c: Index, t: Index, j: Index, *_: Scalars) -> Any:
    """Block indices of the numbers per query of that tile."""
    g, _, n, i = _queries_of(plan, c, t, j)
    return b, jnp.clip(n, 0, plan.blocks - 1), kh * plan.group + g, 0, i


def dkv_k_index(b: Index, kh: Index, c: Index, t: Index, j: Index, *_: Scalars) -> Any:
    """Block indices of a tile of keys, in a grid of keys."""
    return b, c, t, kh


def dkv_turns_index(plan: Plan, b: Index, kh: Index, c: Index, t: Index, j: Index, *_: Scalars) -> Any:
    """Block indices of the rotation by the step's distance."""
    return 0, _key_step(plan, j)[1], 0, 0


def _add_key_gradients(
    q: Array, k: Array, v: Array, others: tuple[Array, Array, Array], hide: Hide, sums: tuple[Ref, ...], cap: float
) -> None:  # fmt: skip
    """Scores lie [keys, queries] here: so they enter the products as they are. others: d_out, the normaliser, mean."""
    (dk_ref, dv_ref), (d_out, log_total, mean) = sums, others
    scores, slope = _capped(_product(k, q, (1, 1)), cap)
    p, ds = _d_scores(hide(scores), log_total, _product(v, d_out, (1, 1)), mean, slope)
    dv_ref[...] += _product(p.astype(d_out.dtype), d_out, (1, 0))
    dk_ref[...] += _product(ds.astype(q.dtype), q, (1, 0))


def _clear(*refs: Ref) -> None:
    for ref in refs:
        ref[...] = jnp.zeros_like(ref)


def dkv_kernel(before: Scalars, limit: Scalars, *refs: Ref, plan: Plan) -> None:
    """Gradients of one tile of keys and values, summed over all queries that see it."""
    q_ref, k_ref, v_ref, turns_ref, d_out_ref, log_ref, mean_ref, dk_ref, dv_ref, *sums = refs
    b, c, t, j = pl.program_id(0), pl.program_id(2), pl.program_id(3), pl.program_id(4)
    _, back, i = _key_step(plan, j)
    n = c - plan.reach + back
    pl.when(j == 0)(lambda: _clear(*sums))

    def tile(hide: Hide) -> None:
        q = _turn(q_ref[...].astype(jnp.float32), turns_ref, plan).astype(q_ref.dtype)
        _add_key_gradients(
            q, k_ref[...], v_ref[...], (d_out_ref[...], log_ref[...], mean_ref[...]), lambda scores: hide(scores, 1),
            tuple(sums), plan.cap,
        )  # fmt: skip

    there = (n >= 0) & (n < plan.blocks)
    seen = jnp.where(there, before[b, jnp.clip(n, 0, plan.blocks - 1)], -1)
    _in_tile(plan, seen, back, i, t, tile)

    @pl.when(j == pl.num_programs(4) - 1)
    def end_keys() -> None:
        dk_ref[...], dv_ref[...] = (x[...].astype(dk_ref.dtype) for x in sums)


def fam_kernel(before: Scalars, limit: Scalars, *refs: Ref, plan: Plan) -> None:
    """Gradients of the keys and values of one block's FAM columns, summed over the block's queries."""
    q_ref, k_ref, v_ref, d_out_ref, log_ref, mean_ref, dk_ref, dv_ref, *sums = refs
    b, n, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    pl.when(j == 0)(lambda: _clear(*sums))
    _add_key_gradients(
        q_ref[...], k_ref[...], v_ref[...], (d_out_ref[...], log_ref[...], mean_ref[...]),
        lambda scores: _hide_fam(scores, limit[b, n], 0), tuple(sums), plan.cap,
    )  # fmt: skip

    @pl.when(j == pl.num_programs(3) - 1)
    def end_fam() -> None:
        dk_ref[...], dv_ref[...] = (x[...].astype(dk_ref.dtype) for x in sums)
