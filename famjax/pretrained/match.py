"""Matches the tensors of a folder with the weights of a model one to one, or reports the mismatches.

Only names and shapes are needed, so a whole model is matched before the first byte is written.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from famjax.config import ConfigError
from famjax.pretrained.families import FROM, INTO, JOINED, SAME, Family
from famjax.pretrained.folder import Tensor

# Tensors in older folders that are ignored: RoPE's frequencies follow from config.json.
IGNORED_ENDINGS = (".rotary_emb.inv_freq",)
LISTED = 8  # number of names listed per kind of mismatch

Shape = tuple[int, ...]


class Pair(NamedTuple):
    """One tensor of a transformers folder ("theirs") and its place in our weights.

    Attributes:
      path: path of our weight, such as `layers/attention/query`.
      layer: index on the layer axis of our weight, its first; None if our weight is not stacked.
      name: name of their tensor.
      how: layout of their tensor: SAME, INTO, FROM or JOINED of `families`.
      shape: shape of our weight, without the layer axis.
    """

    path: str
    layer: int | None
    name: str
    how: str
    shape: Shape

    @property
    def their_shape(self) -> Shape:
        """Shape of their tensor."""
        if self.how == INTO:
            return (math.prod(self.shape[1:]), self.shape[0])
        if self.how == FROM:
            return (self.shape[-1], math.prod(self.shape[:-1]))
        return (math.prod(self.shape),) if self.how == JOINED else self.shape

    def ours(self, theirs: np.ndarray) -> np.ndarray:
        """Converts their tensor [*their_shape] to our layout [*shape]."""
        return (theirs if self.how in (SAME, JOINED) else theirs.T).reshape(self.shape)

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """Converts our weight of one layer [*shape] to their layout [*their_shape]."""
        if self.how in (SAME, JOINED):
            return ours.reshape(self.their_shape)
        return ours.reshape(self.their_shape[::-1]).T


def pairs(family: Family, shapes: Mapping[str, Shape]) -> list[Pair]:
    """Returns all tensors of a model with these weights: first the unstacked ones, then layer by layer.

    The `shapes` of stacked weights include the layer axis. Raises `ConfigError` if the family has no name for a weight.
    """
    found = []
    for path, shape in shapes.items():
        if path not in family.names:
            raise ConfigError(f"{family.architecture} has no tensor for the weight {path}")
        name, how = family.names[path]
        if "{}" in name:
            found += [Pair(path, layer, name.format(layer), how, shape[1:]) for layer in range(shape[0])]
        else:
            found.append(Pair(path, None, name, how, shape))
    return sorted(found, key=lambda pair: (pair.layer is not None, pair.layer or 0))


def match(family: Family, shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor]) -> list[Pair]:
    """Returns `pairs` after comparing them with the tensors of a folder. Raises `ConfigError` with a list of those that
    are missing, unexpected or of other shapes."""
    wanted = pairs(family, shapes)
    problems = []
    missing = [pair.name for pair in wanted if pair.name not in tensors]
    known = {pair.name for pair in wanted} | set(copies(family, shapes, tensors))
    left_over = [name for name in tensors if name not in known and not name.endswith(IGNORED_ENDINGS)]
    wrong = [
        f"{pair.name} is {list(tensors[pair.name].shape)}, not {list(pair.their_shape)}"
        for pair in wanted
        if pair.name in tensors and tensors[pair.name].shape != pair.their_shape
    ]
    for what, names in (("missing", missing), ("not part of the model", left_over), ("of another shape", wrong)):
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            problems.append(f"{what}: {', '.join(names[:LISTED])}{more}")
    if problems:
        raise ConfigError(
            f"the tensors are not those of a {family.architecture} of this config.json; {'; '.join(problems)}"
        )
    return wanted


def copies(family: Family, shapes: Mapping[str, Shape], tensors: Mapping[str, Any]) -> dict[str, str]:
    """Returns {copy: source} of tensors that must be equal: an output projection stored beside its tied embedding."""
    output, embedding = family.names["unembedding"][0], family.names["embedding"][0]
    return {output: embedding} if "unembedding" not in shapes and output in tensors else {}
