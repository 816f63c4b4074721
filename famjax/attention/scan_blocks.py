"""A scan over blocks that recomputes each block's step in the backward pass.

    step(weights, (carry, window), (x_n, fixed_n)) -> (carry', window'), (carry, new_n, y_n)

The window is the output `new` of the last W steps, (new_{n-W}, ..., new_{n-1}). `jax.lax.scan` alone would store all
residuals of every step. `scan_recomputed` stores only the inputs of each step, x_n and the carry. Its backward pass
visits the blocks from last to first and runs each step again, so that intermediates of one block exist at a time. The
window is not stored W times: project(weights, x_n, fixed_n) recomputes new_n, one block per step.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from famjax.dims import Tree

Window: TypeAlias = tuple[Tree, ...]
State: TypeAlias = tuple[Tree, Window]
Step: TypeAlias = Callable[[Tree, State, tuple[Tree, Tree]], tuple[State, tuple[Tree, Tree, Tree]]]
Project: TypeAlias = Callable[[Tree, Tree, Tree], Tree]

# The name of what `remat` keeps of a layer whose blocks are recomputed.
KEPT = "carries"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def scan_recomputed(
    step: Step, project: Project, unroll: int, weights: Tree, state: State, xs: Tree, fixed: Tree
) -> tuple[Tree, Tree, Tree]:
    """Runs `step` over the leading axis N of `xs` and `fixed`.

    Args:
      step, project: see above; functions of their arguments alone, as they close over no traced array.
      unroll: number of blocks in one iteration of the loop.
      weights, state, xs: trees of float arrays, with gradients; state is (carry, window) before the first block.
      fixed: arrays without a gradient: positions, masks, keys.

    Returns:
      The last carry, all `new` and all `y`, the latter two with a leading axis N.
    """
    (last, _), (_, news, ys) = jax.lax.scan(functools.partial(step, weights), state, (xs, fixed), unroll=unroll)
    return last, news, ys


def _forward(
    step: Step, project: Project, unroll: int, weights: Tree, state: State, xs: Tree, fixed: Tree
) -> tuple[tuple[Tree, Tree, Tree], Tree]:
    (last, _), (before, news, ys) = jax.lax.scan(functools.partial(step, weights), state, (xs, fixed), unroll=unroll)
    return (last, news, ys), (weights, checkpoint_name(before, KEPT), state[1], xs, fixed)


def _backward(step: Step, project: Project, unroll: int, kept: Tree, cotangents: Tree) -> tuple[Tree, ...]:
    weights, before, window, xs, fixed = kept
    d_carry, d_news, d_ys = cotangents
    N, W = len(jax.tree.leaves(fixed)[0]), len(window)
    at = lambda tree, n: jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, n, keepdims=False), tree)

    def put_out(n: Any) -> Tree:
        """What block n put out; for n < 0 the window before the first block has it."""
        inside = project(weights, at(xs, jnp.maximum(n, 0)), at(fixed, jnp.maximum(n, 0)))
        outside = at(jax.tree.map(lambda *parts: jnp.stack(parts), *window), jnp.clip(n + W, 0, W - 1))
        return jax.tree.map(lambda a, b: jnp.where(n >= 0, a, b), inside, outside)

    def body(state: Tree, inputs: Tree) -> Tree:
        d_carry, pending, seen, sums = state
        n, carry, x, constant, d_new, d_y = inputs

        def again(weights: Tree, carry: Tree, window: Window, x: Tree) -> tuple[Tree, Tree, Tree]:
            (after, _), (_, new, y) = step(weights, (carry, window), (x, constant))
            return after, new, y

        # Blocks n + 1 .. n + W have seen this one.
        d_new = jax.tree.map(jnp.add, d_new, pending[-1]) if W else d_new
        _, pull = jax.vjp(again, weights, carry, seen, x)
        d_weights, d_carry, d_seen, d_x = pull((d_carry, d_new, d_y))
        pending = (*d_seen[:1], *(jax.tree.map(jnp.add, *pair) for pair in zip(d_seen[1:], pending, strict=False)))
        seen = (put_out(n - W - 1), *seen[:-1]) if W else ()
        sums = jax.tree.map(lambda total, d: total + d.astype(total.dtype), sums, d_weights)
        return (d_carry, pending, seen, sums), d_x

    seen = tuple(put_out(N - W + i - 1) for i in range(W))
    zeros = lambda tree, dtype=None: jax.tree.map(lambda a: jnp.zeros(a.shape, dtype or a.dtype), tree)
    start = (d_carry, zeros(seen), seen, zeros(weights, jnp.float32))
    by_block = (np.arange(N), before, xs, fixed, d_news, d_ys)
    (d_carry, d_window, _, sums), d_xs = jax.lax.scan(body, start, by_block, reverse=True, unroll=unroll)
    d_weights = jax.tree.map(lambda total, a: total.astype(a.dtype), sums, weights)
    return d_weights, (d_carry, d_window), d_xs, None


scan_recomputed.defvjp(_forward, _backward)
