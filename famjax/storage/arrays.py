"""Shapes and dtypes of the arrays in a checkpoint, read from Orbax's metadata, and differences between trees."""

import glob
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

_Path = type(epath.Path("/"))  # the class of local paths
_epath_glob = _Path.glob


def _glob(self: Any, pattern: str) -> Iterator[Any]:
    """Replaces `epath.Path.glob`, which joins the folder's own path to the pattern unescaped (etils 1.15). In a folder
    `run [1]` Orbax would then find none of the files that it wrote, merge nothing, and report no error."""
    folder = os.fspath(self)
    return _epath_glob(type(self)(glob.escape(folder)) if glob.has_magic(folder) else self, pattern)


_Path.glob = _glob


def stored(folder: Path) -> dict[str, Any]:
    """Returns Orbax's metadata (`shape`, `dtype`) of each array in a folder that it wrote, by path. Raises Orbax's own
    exceptions if the folder cannot be read."""
    return leaves(ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree)


def leaves(tree: Any) -> dict[str, Any]:
    """Returns {"layers/attention/query": leaf, ...}."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {path_of(keys): leaf for keys, leaf in found}


def path_of(keys: Any) -> str:
    """Converts the keys of a leaf in a JAX tree to `layers/attention/query`."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns {"layers/attention/query": shape, ...}."""
    return {path: tuple(leaf.shape) for path, leaf in leaves(tree).items()}


def types(tree: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns {"layers/attention/query": (shape, dtype), ...}, also of the result of `stored`."""
    return {path: (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in leaves(tree).items()}


def difference(expected: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Describes the first difference between two results of `shapes`, or of `types`; empty if there is none."""
    for name in sorted({**expected, **there}):
        if name not in there:
            return f"{name} {_words(expected[name])} is missing"
        if name not in expected:
            return f"{name} {_words(there[name])} is not part of it"
        if expected[name] != there[name]:
            return f"{name} is {_words(there[name])} instead of {_words(expected[name])}"
    return ""


def size_of(tree: Any) -> int:
    """Returns the total size of a tree of arrays, or of shapes, in bytes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _words(what: tuple[Any, ...]) -> str:
    if what and isinstance(what[-1], np.dtype):
        return f"{list(what[0])} {what[-1]}"
    return str(list(what))
