"""The one legend of axis letters, and the types of the arrays that layers pass to each other.

Signatures carry axes as types (`Float[Array, "B S D"]`), which tests check at run time; `...` is any leading axes.

| letter | axis | paper |
|---|---|---|
| B | rows of the batch | |
| T | tokens of a sequence | |
| N | blocks of a sequence, N = T / S | tau = 1..N |
| S | tokens of a block (`block_size`) | block size |
| Q | queries: the tokens of a block that are computed now (S, or fewer in streaming) | t |
| C | columns: the keys of a source of attention | |
| M | memory segments (`memory_segments`) | memory segments |
| R | slots of the ring of blocks, R = M + 1 | |
| F | feedback activations of a layer (`fam_length`) | FAM length |
| P | FAMs of previous blocks that queries attend to (`previous_fams`) | |
| L | layers | l |
| D | width of the model (`d_model`) | |
| E | width of the feed-forward layer (`d_ff`) | |
| K | key/value heads | |
| G | query heads for each key/value head | |
| H | size of a head (`head_dim`) | |
| V | vocabulary | |
"""

from typing import TYPE_CHECKING, Any, TypeAlias, Union

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Key

if TYPE_CHECKING:
    Array: TypeAlias = jax.Array
else:  # tokens, counts and positions may be NumPy arrays
    Array = Union[jax.Array, np.ndarray]  # noqa: UP007

# A nested structure of arrays.
Tree: TypeAlias = Any
# Weights of a layer: a nested dict of arrays (paths: `docs/architecture.md`).
Weights: TypeAlias = dict[str, Any]
# An axis whose name begins with _ may differ between the arrays of one call.
Keys: TypeAlias = Float[Array, "... K _C H"]
KeysValues: TypeAlias = tuple[Keys, Keys]
# What attention averages: values, or labels of the keys instead.
Values: TypeAlias = Float[Array, "... K _C _V"]
Averaged: TypeAlias = Float[Array, "... K G _Q _V"]
Queries: TypeAlias = Float[Array, "... K G _Q H"]
Activations: TypeAlias = Float[Array, "... D"]
Tokens: TypeAlias = Float[Array, "B S D"]
Fam: TypeAlias = Float[Array, "B P F D"]
Rows: TypeAlias = Int[Array, "B"]
# Positions: NumPy if known at trace time, else traced.
Offsets: TypeAlias = np.ndarray | Float[Array, "..."] | Int[Array, "..."]

__all__ = [
    "Activations",
    "Array",
    "Bool",
    "Fam",
    "Float",
    "Int",
    "Key",
    "Keys",
    "KeysValues",
    "Offsets",
    "Queries",
    "Rows",
    "Tokens",
    "Values",
    "Averaged",
    "Weights",
]
