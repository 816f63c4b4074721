"""Layers one after the other: a loop over them, what it keeps for the backward pass, whole weights on a mesh."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class Devices(Protocol):
    """What a model needs of the mesh that it runs on; `runtime/on_mesh.py` has the one implementation."""

    @property
    def platform(self) -> str:
        """Of the devices."""
        ...

    @property
    def row_shards(self) -> int:
        """Into how many parts rows are cut."""
        ...

    def cut_tokens(self, x_BNSD: Any) -> Any:
        """Within `by_rows`: activations cut over `tensor` along the tokens of a block."""
        ...

    def whole_tokens(self, x_BNSD: Any) -> Any:
        """Within `by_rows`: activations not cut over `tensor`."""
        ...

    def per_device(self, f: Callable[..., Any], in_axes: Any, out_axes: Any, inside: bool = False) -> Any:
        """A kernel on every device's part."""
        ...

    def by_rows(self, f: Callable[..., Any], axes: Any, dtype: str, in_rows: Any, out_rows: Any) -> Any:
        """`f(weights, *args)` on every device's rows, its weights gathered in front."""
        ...


Step = Callable[[Any, Any], tuple[Any, Any]]


def unrolled(steps: Sequence[Step], x: Any, xs: Any) -> tuple[Any, Any]:
    """x through some steps, one after the other; xs and the outputs have a leading axis, one entry a step."""
    outs = []
    for i, step in enumerate(steps):
        x, out = step(x, jax.tree.map(lambda a, i=i: a[i], xs))
        outs.append(out)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


def scanned(period: Sequence[Step], rest: Sequence[Step], x: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """x through `length` layers whose steps repeat: one period is compiled and looped over.

    The layers that are left over behind the last whole period, `rest`, are compiled by themselves:

        26 layers of period 6:  4 turns of a loop over 6 layers, then 2 layers
    """
    P, whole = len(period), length - len(rest)
    if P == 1:
        return jax.lax.scan(period[0], x, xs)
    by_period = jax.tree.map(lambda a: a[:whole].reshape(whole // P, P, *a.shape[1:]), xs)
    x, outs = jax.lax.scan(lambda x, one: unrolled(period, x, one), x, by_period)
    outs = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), outs)
    if not rest:
        return x, outs
    x, last = unrolled(rest, x, jax.tree.map(lambda a: a[whole:], xs))
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), outs, last)


# The axes that `fsdp` cuts, and what is left of them when a layer has gathered them: of `lora_mlp`, what `tensor` cuts.
GATHERED: dict[str, str | None] = {"embed": None, "lora_head_dim": None, "lora_mlp": "mlp"}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gather(weight: Any, axes: tuple[str, ...], constrain: Callable[[Any, Any], Any], dtype: str) -> Any:
    """A weight made whole along the axes that `fsdp` cuts, for all that a layer does with it.

    Left to itself, the compiler gathers a weight where it is used, and in the scan over blocks that makes
    FAM this is once for each block. It is gathered in the compute dtype, half the bytes; that it
    then has its own type again costs nothing (every use rounds it to the compute dtype, which changes no
    bit), but its gradient, a sum over blocks and devices, adds up in that type.
    """
    rounded = weight.astype(dtype) if weight.ndim > 1 else weight  # norms work in float32
    return constrain(rounded, tuple(GATHERED.get(name, name) for name in axes)).astype(weight.dtype)


def _gather_forward(weight: Any, axes: Any, constrain: Any, dtype: str) -> tuple[Any, None]:
    return gather(weight, axes, constrain, dtype), None


def _gather_backward(axes: Any, constrain: Any, dtype: str, _: None, gradient: Any) -> tuple[Any]:
    return (constrain(gradient, axes),)


gather.defvjp(_gather_forward, _gather_backward)


def remat(step: Callable[..., Any], policy: str, in_scan: bool = True) -> Callable[..., Any]:
    """`step`, whose forward pass keeps less for its backward pass, which computes the rest again.

    none      keeps everything
    dots      the results of all matrix products: those of `minimal`, and what attention multiplies, which
              may be a score for every query head and key in the window
    minimal   the results of products with weights: for each token H (heads + 2 kv_heads) numbers of
              queries, keys and values, 2 E of a gated feed-forward layer, D of what attention returns
    full      what enters the layer: D numbers for each token

    Outside of a scan, the compiler would find the second computation to be the first and keep it after
    all; a barrier hinders it (`in_scan` False).
    """
    policies = jax.checkpoint_policies
    if policy == "none":
        return step
    saveable = {"dots": policies.checkpoint_dots, "minimal": policies.checkpoint_dots_with_no_batch_dims, "full": None}
    return jax.checkpoint(step, policy=saveable[policy], prevent_cse=not in_scan)
