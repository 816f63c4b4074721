"""A loop over blocks whose steps see what the last few steps put out, and two ways to differentiate it.

    carry, new_n, y_n = step(weights, carry, (new_{n-W}, ..., new_{n-1}), x_n, fixed_n)

`jax.lax.scan` alone differentiates this, and keeps of every step whatever its backward pass needs. With a `project`,
the forward pass keeps only what enters each step: x_n and the carry. The backward pass walks the blocks from the last
to the first and runs each step again, so that intermediates of one block exist at a time. The window is not kept W
times: project(weights, x_n, fixed_n) is new_n once more, one block a step.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

# A nested structure of arrays.
Tree: TypeAlias = Any
Window: TypeAlias = tuple[Tree, ...]
Step: TypeAlias = Callable[[Tree, Tree, Window, Tree, Tree], tuple[Tree, Tree, Tree]]
Project: TypeAlias = Callable[[Tree, Tree, Tree], Tree]

# The name of what `remat` keeps of a layer whose blocks are recomputed.
KEPT = "carries"


def scan_blocks(
    step: Step, project: Project | None, weights: Tree, carry: Tree, window: Window, xs: Tree, fixed: Tree
) -> tuple[Tree, Tree, Tree]:
    """Runs `step` over the leading axis N of `xs` and `fixed`.

    Args:
      step: see above; a function of its arguments alone, as it closes over no traced array.
      project: what a step puts out for the steps after it; None differentiates the scan as it is.
      weights, carry, xs: trees of float arrays, with gradients.
      window: what W blocks before the first one put out, the oldest first.
      fixed: arrays without a gradient: positions, masks, keys.

    Returns:
      The last carry, all `new` and all `y`, the latter two with a leading axis N.
    """
    if project is None:
        last, _, news, ys = _forward(step, weights, carry, window, xs, fixed)
        return last, news, ys
    result: tuple[Tree, Tree, Tree] = _recomputed(step, project, weights, carry, window, xs, fixed)
    return result


def _forward(step: Step, weights: Tree, carry: Tree, window: Window, xs: Tree, fixed: Tree) -> tuple[Tree, ...]:
    """(last carry, carries before each block, all new, all y)."""

    def body(state: tuple[Tree, Window], inputs: tuple[Tree, Tree]) -> Any:
        carry, window = state
        after, new, y = step(weights, carry, window, *inputs)
        return (after, (*window, new)[1:]), (carry, new, y)

    (last, _), (before, news, ys) = jax.lax.scan(body, (carry, window), (xs, fixed))
    return last, before, news, ys


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recomputed(
    step: Step, project: Project, weights: Tree, carry: Tree, window: Window, xs: Tree, fixed: Tree
) -> tuple[Tree, Tree, Tree]:
    last, _, news, ys = _forward(step, weights, carry, window, xs, fixed)
    return last, news, ys


def _recomputed_forward(
    step: Step, project: Project, weights: Tree, carry: Tree, window: Window, xs: Tree, fixed: Tree
) -> tuple[Tree, Tree]:
    last, before, news, ys = _forward(step, weights, carry, window, xs, fixed)
    return (last, news, ys), (weights, checkpoint_name(before, KEPT), window, xs, fixed)


def _recomputed_backward(step: Step, project: Project, kept: Tree, cotangents: Tree) -> tuple[Tree, ...]:
    weights, before, window, xs, fixed = kept
    d_carry, d_news, d_ys = cotangents
    N, W = len(jax.tree.leaves(fixed)[0]), len(window)
    at = lambda tree, n: jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, n, keepdims=False), tree)

    def put_out(n: Any) -> Tree:
        """What block n put out; of n < 0 the window has it."""
        inside = project(weights, at(xs, jnp.maximum(n, 0)), at(fixed, jnp.maximum(n, 0)))
        outside = at(jax.tree.map(lambda *parts: jnp.stack(parts), *window), jnp.clip(n + W, 0, W - 1))
        return jax.tree.map(lambda a, b: jnp.where(n >= 0, a, b), inside, outside)

    def body(state: Tree, inputs: Tree) -> Tree:
        d_carry, pending, seen, sums = state
        n, carry, x, constant, d_new, d_y = inputs
        recomputed = lambda weights, carry, window, x: step(weights, carry, window, x, constant)
        _, pull = jax.vjp(recomputed, weights, carry, seen, x)
        # Blocks n + 1 .. n + W have seen this one.
        d_new = jax.tree.map(jnp.add, d_new, pending[-1]) if W else d_new
        d_weights, d_carry, d_seen, d_x = pull((d_carry, d_new, d_y))
        pending = tuple(
            d if i == 0 else jax.tree.map(jnp.add, d, pending[i - 1]) for i, d in enumerate(d_seen)
        )  # fmt: skip
        seen = (put_out(n - W - 1), *seen[:-1]) if W else ()
        sums = jax.tree.map(lambda total, d: total + d.astype(total.dtype), sums, d_weights)
        return (d_carry, pending, seen, sums), d_x

    seen = tuple(put_out(N - W + i - 1) for i in range(W))
    zeros = lambda tree, dtype=None: jax.tree.map(lambda a: jnp.zeros(a.shape, dtype or a.dtype), tree)
    start = (d_carry, zeros(seen), seen, zeros(weights, jnp.float32))
    by_block = (np.arange(N), before, xs, fixed, d_news, d_ys)
    (d_carry, d_window, _, sums), d_xs = jax.lax.scan(body, start, by_block, reverse=True)
    d_weights = jax.tree.map(lambda total, a: total.astype(a.dtype), sums, weights)
    return d_weights, d_carry, d_window, d_xs, None


_recomputed.defvjp(_recomputed_forward, _recomputed_backward)
