"""The loop over blocks: recomputing each step in the backward pass equals differentiating the scan."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.attention.scan_blocks import scan_recomputed
from tests import tiny


@pytest.mark.parametrize("window", [0, 1, 3, 7])
def test_recomputed_gradients_are_those_of_the_scan(window: int) -> None:
    """With respect to weights, the initial carry, the window before the first block, and the inputs; for windows of
    zero, several, and more blocks than there are."""
    N, D = 5, 3
    draw = lambda *shape: jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)
    weights = {"mix": draw(D, D), "out": draw(D)}
    before, fixed = tuple(draw(D) + i for i in range(window)), jnp.arange(N)

    def project(weights: Any, x: Any, n: Any) -> Any:
        return jnp.tanh(x @ weights["mix"]) + 0.1 * n

    def step(weights: Any, state: Any, inputs: Any) -> Any:
        (carry, seen), (x, n) = state, inputs
        new = project(weights, x, n)
        after = jnp.tanh(0.5 * carry + 0.02 * sum(((i + 1) * one for i, one in enumerate(seen)), new) * weights["out"])
        return (after, (*seen, new)[1:]), (carry, new, after * x)

    def scanned(weights: Any, state: Any, x: Any) -> Any:
        (last, _), (_, news, ys) = jax.lax.scan(functools.partial(step, weights), state, (x, fixed))
        return last, news, ys

    def recomputed(weights: Any, state: Any, x: Any) -> Any:
        return scan_recomputed(step, project, 2, weights, state, x, fixed)

    def loss(run: Any, args: Any) -> Any:
        parts = run(*args)
        return sum((part * np.random.default_rng(part.size).normal(size=part.shape)).sum() for part in parts)

    args = (weights, (draw(D), before), draw(N, D))
    both = [jax.jit(jax.value_and_grad(functools.partial(loss, run)))(args) for run in (scanned, recomputed)]
    jax.tree.map(tiny.assert_close, both[1], both[0])


def test_the_backward_pass_keeps_what_enters_a_step() -> None:
    """Neither a step's outputs for later steps nor its intermediates are kept, however many blocks see them."""
    x, window = jnp.zeros((5, 3)), (jnp.zeros(3),) * 2

    def project(weights: Any, x: Any, n: Any) -> Any:
        return jnp.tanh(x * weights)

    def step(weights: Any, state: Any, inputs: Any) -> Any:
        (carry, seen), (x, n) = state, inputs
        new = project(weights, x, n)
        return (carry + sum(seen), (*seen, new)[1:]), (carry, new, jnp.sin(jnp.exp(carry * x)))

    def backward(weights: Any, x: Any) -> Any:
        run = lambda weights, x: scan_recomputed(step, project, 1, weights, (jnp.zeros(3), window), x, jnp.arange(5))[2]
        return jax.vjp(run, weights, x)[1]

    leaves = jax.tree.leaves(jax.eval_shape(backward, jnp.ones(3), x))
    kept = sorted(leaf.shape for leaf in leaves if leaf.dtype == jnp.float32)
    assert kept == [(3,), (3,), (5, 3), (5, 3)]  # weights, the window before (one array), carries and x
