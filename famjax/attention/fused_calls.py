"""Calls of the kernels of `fused_kernels.py`: grids, blocks of arrays, and cost estimates for the compiler."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from famjax.attention import fused_kernels as kernels
from famjax.attention.fused_kernels import Arrays, Plan
from famjax.dims import Array


class Shapes(NamedTuple):
    """Outputs of a kernel.

    Attributes:
      specs: their blocks in the grid.
      out: their shapes and dtypes.
      scratch: shapes of the kernel's float32 accumulators in vector memory.
    """

    specs: list[pl.BlockSpec]
    out: list[jax.ShapeDtypeStruct]
    scratch: list[tuple[int, int]]


def _call(
    kernel: Callable[..., None], plan: Plan, grid: tuple[int, ...], in_specs: list[pl.BlockSpec], shapes: Shapes,
    passes: int, args: tuple[Array, ...],
) -> Sequence[Array]:  # fmt: skip
    """Runs a kernel over a grid. `passes`: number of matrix products per tile of scores, for the cost estimate."""
    B, N = args[0].shape
    scores = B * N * plan.kv_heads * plan.group * plan.queries * plan.block * (plan.reach + 1)
    size = lambda x: x.size * x.dtype.itemsize
    cost = pl.CostEstimate(
        flops=2 * passes * scores * plan.head, transcendentals=scores,
        bytes_accessed=sum(map(size, args)) + sum(map(size, shapes.out)),
    )  # fmt: skip
    semantics: Any = (*("parallel",) * (len(grid) - 1), "arbitrary")
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2, grid=grid, in_specs=in_specs, out_specs=shapes.specs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in shapes.scratch],
        ),
        out_shape=shapes.out,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        cost_estimate=cost,
        name=f"famjax_{kernel.__name__.removesuffix('_kernel')}",
        interpret=plan.interpret,
    )(*args)  # fmt: skip


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def forward(plan: Plan, arrays: Arrays) -> tuple[Array, Array]:
    """Attention of all blocks. Returns the heads' outputs, in the shape and dtype of q, and the softmax's normaliser
    (log sum exp of the scores), float32 [B, N, K G, 1, Q]."""
    q, k, v, fam_k, fam_v, turns, before, limit = arrays
    B, N, Q, _ = q.shape
    heads, tile = plan.kv_heads * plan.group, plan.q_tile
    fam = (fam_k, fam_v) if plan.fam else ()
    columns = 0 if fam_k is None else fam_k.shape[2]
    shapes = Shapes(
        [pl.BlockSpec((None, None, tile, plan.head), kernels.q_index),
         pl.BlockSpec((None, None, None, 1, tile), kernels.row_index)],
        [_like(q), jax.ShapeDtypeStruct((B, N, heads, 1, Q), jnp.float32)],
        [(tile, kernels.LANES), (tile, kernels.LANES), (tile, plan.head)],
    )  # fmt: skip
    out, log_total = _call(
        kernels.forward_kernel, plan, (B, heads, N, plan.q_tiles, (plan.reach + 1) * plan.tiles),
        kernels.query_specs(plan, columns), shapes, 2, (before, limit, q, k, v, turns, *fam),
    )  # fmt: skip
    return out, log_total


def backward(
    plan: Plan, arrays: Arrays, d_out: Array, log_total: Array, mean: Array
) -> tuple[Array, Array, Array, Array | None, Array | None]:  # fmt: skip
    """Gradients of q, k, v, fam_k and fam_v, each in the shape and dtype of its array; None for FAM if there is none.

    Args:
      plan, arrays: as for `forward`.
      d_out: gradient of its outputs.
      log_total: the normaliser that it returned.
      mean: float32 [B, N, K G, 1, Q], the product d_out . out of each query and head.
    """
    q, k, v, fam_k, fam_v, turns, before, limit = arrays
    B, N = q.shape[:2]
    K, G, tile, q_tile, head = plan.kv_heads, plan.group, plan.tile, plan.q_tile, plan.head
    fam = (fam_k, fam_v) if plan.fam else ()
    columns = 0 if fam_k is None else fam_k.shape[2]
    rows = pl.BlockSpec((None, None, None, 1, q_tile), kernels.row_index)
    q_spec = pl.BlockSpec((None, None, q_tile, head), kernels.q_index)
    (dq,) = _call(
        kernels.dq_kernel, plan, (B, K * G, N, plan.q_tiles, (plan.reach + 1) * plan.tiles),
        [*kernels.query_specs(plan, columns), q_spec, rows, rows], Shapes([q_spec], [_like(q)], [(q_tile, head)]), 3,
        (before, limit, q, k, v, turns, *fam, d_out, log_total, mean),
    )  # fmt: skip
    q_spec = pl.BlockSpec((None, None, q_tile, head), functools.partial(kernels.dkv_q_index, plan))
    k_spec = pl.BlockSpec((None, None, tile, head), kernels.dkv_k_index)
    rows = pl.BlockSpec((None, None, None, 1, q_tile), functools.partial(kernels.dkv_row_index, plan))
    turns_spec = pl.BlockSpec((2, None, 1, head), functools.partial(kernels.dkv_turns_index, plan))
    backs = 1 if plan.stop_gradient else plan.reach + 1
    dk, dv = _call(
        kernels.dkv_kernel, plan, (B, K, plan.reach + N, plan.tiles, G * backs * plan.q_tiles),
        [q_spec, k_spec, k_spec, turns_spec, q_spec, rows, rows],
        Shapes([k_spec, k_spec], [_like(k), _like(v)], [(tile, head), (tile, head)]), 4,
        (before, limit, q, k, v, turns, d_out, log_total, mean),
    )  # fmt: skip
    if fam_k is None or fam_v is None:
        return dq, dk, dv, None, None
    step = lambda kh, j: (kh * G + j // plan.q_tiles, j % plan.q_tiles)
    q_spec = pl.BlockSpec((None, None, q_tile, head), lambda b, kh, n, j, *_: (b, n, *step(kh, j)[::-1]))
    rows = pl.BlockSpec(
        (None, None, None, 1, q_tile), lambda b, kh, n, j, *_: (b, n, step(kh, j)[0], 0, step(kh, j)[1])
    )
    fam_spec = pl.BlockSpec((None, None, columns, head), lambda b, kh, n, j, *_: (b, n, 0, kh))
    d_fam = _call(
        kernels.fam_kernel, plan, (B, K, N, G * plan.q_tiles), [q_spec, fam_spec, fam_spec, q_spec, rows, rows],
        Shapes([fam_spec, fam_spec], [_like(fam_k), _like(fam_v)], [(columns, head), (columns, head)]), 0,
        (before, limit, q, fam_k, fam_v, d_out, log_total, mean),
    )  # fmt: skip
    return dq, dk, dv, d_fam[0], d_fam[1]
