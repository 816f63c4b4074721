"""Norms of gradients, updates and weights: squares by weight inside the step, norms by group in the logs."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from famjax.dims import Array, Float, Tree
from famjax.storage.arrays import leaves

GROUPS = ("embedding", "attention", "feed_forward", "lora", "norms", "fam", "memory", "other")


def group_of(path: str) -> str:
    """Returns the group of a weight: `attention` for `layers/attention/query`, `norms` for every `.../scale`."""
    parts = path.split("/")
    if parts[-1] == "scale":
        return "norms"
    if parts[0] in ("embedding", "unembedding"):
        return "embedding"
    return next((group for group in GROUPS if group in parts), "other")


def squares(tree: Tree) -> dict[str, Float[Array, "*L"]]:
    """Returns sums of squares by path, float32: per layer for stacked weights, else of the whole array.

    Computing them reads each array once. The norm of any layer or group follows from them.
    """

    def one(path: str, leaf: Float[Array, "..."]) -> Float[Array, "*L"]:
        axes = tuple(range(1 if path.startswith("layers/") else 0, leaf.ndim))
        return jnp.square(leaf.astype(jnp.float32)).sum(axis=axes)

    return {path: one(path, leaf) for path, leaf in leaves(tree).items()}


def group_norms(sums: Mapping[str, Float[Any, "*L"]]) -> dict[str, float]:
    """Returns the Euclidean norm of each group present in the result of `squares`."""
    totals: dict[str, float] = {}
    for path, values in sums.items():
        group = group_of(path)
        totals[group] = totals.get(group, 0.0) + float(np.asarray(values, np.float64).sum())
    return {group: math.sqrt(totals[group]) for group in GROUPS if group in totals}


def not_finite(sums: Mapping[str, Float[Any, "*L"]]) -> list[tuple[str, int | None]]:
    """Returns (path, layer) of every weight with a non-finite sum of squares; layer None outside of layers."""
    found: list[tuple[str, int | None]] = []
    for path, values in sums.items():
        values = np.asarray(values)
        if values.ndim:
            found += [(path, int(layer)) for layer in np.flatnonzero(~np.isfinite(values))]
        elif not np.isfinite(values):
            found.append((path, None))
    return found
