"""Sizes of gradients, updates and weights: by weight inside the step, by group for a person."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famjax.dims import Array, Float, Tree
from famjax.train.optim import path_of

GROUPS = ("embedding", "attention", "feed_forward", "lora", "norms", "fam", "memory", "other")


def group_of(path: str) -> str:
    """The group of a weight: `layers/attention/query` is of `attention`, every `.../scale` of `norms`."""
    parts = path.split("/")
    if parts[-1] == "scale":
        return "norms"
    if parts[0] in ("embedding", "unembedding"):
        return "embedding"
    return next((group for group in GROUPS if group in parts), "other")


def squares(tree: Tree) -> dict[str, Float[Array, "*L"]]:
    """Sums of squares by path, float32: of each layer for weights that are stacked, else of the whole.

    They cost one read of each array, and tell more than norms: which layer, and sums of any groups.
    """

    def one(path: str, leaf: Float[Array, "..."]) -> Float[Array, "*L"]:
        axes = tuple(range(1 if path.startswith("layers/") else 0, leaf.ndim))
        return jnp.square(leaf.astype(jnp.float32)).sum(axis=axes)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(keys): one(path_of(keys), leaf) for keys, leaf in leaves}


def group_norms(sums: Mapping[str, Float[Any, "*L"]]) -> dict[str, float]:
    """The Euclidean norm of each group that is there, from `squares`."""
    totals: dict[str, float] = {}
    for path, values in sums.items():
        group = group_of(path)
        totals[group] = totals.get(group, 0.0) + float(np.asarray(values, np.float64).sum())
    return {group: math.sqrt(totals[group]) for group in GROUPS if group in totals}


def not_finite(sums: Mapping[str, Float[Any, "*L"]]) -> list[tuple[str, int | None]]:
    """(path, layer) of every weight whose sum of squares is no number or infinite; layer None outside of layers."""
    found: list[tuple[str, int | None]] = []
    for path, values in sums.items():
        values = np.asarray(values)
        if values.ndim:
            found += [(path, int(layer)) for layer in np.flatnonzero(~np.isfinite(values))]
        elif not np.isfinite(values):
            found.append((path, None))
    return found
