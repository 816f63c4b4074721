"""Shardings of all arrays: one table from logical axis names to mesh axes.

Each array's axes are named where it is declared: weights in `nn` (metadata `axes`), the memory in
`attention/memory.py`; batches have their rows first. Only this table maps them to the mesh.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from famjax.config import ConfigError

# Logical axis -> the mesh axes that it is sharded over, outermost first; (): never sharded.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "query_group": ("tensor",),  # query heads per key/value head, sharded if the key/value heads cannot be
    "head_dim": (),
    "mlp": ("tensor",),
    "tokens": ("tensor",),  # tokens of a block, between layers (sequence parallelism)
    "layers": (),
    "fam": (),
    # LoRA's weights are small but many, as are their moments; each is sharded over `fsdp` along some axis of its base.
    "lora": (),
    "lora_head_dim": ("fsdp",),
    "lora_mlp": ("tensor", "fsdp"),
}

# The names of an array's axes; None for an axis that is never sharded.
Axes = tuple[str | None, ...]


def partition_spec(axes: Axes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Returns the sharding of an array of this shape.

    If the size of an axis is not divisible by the mesh axes of its rule, the innermost of them is dropped, then the
    next, until it is; with none left the axis is replicated. So a single key/value head is replicated over
    `tensor`, and 12 rows on data 4 x fsdp 2 are sharded over `data` alone. A mesh axis shards each array once, along
    the first axis that uses it.

    Raises:
      ConfigError: an axis has a name without a rule.
      ValueError: the number of names is not that of the axes.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not name the axes of an array of shape {shape}")
    taken: set[str] = set()
    spec: list[Any] = []
    for name, size in zip(axes, shape, strict=True):
        if name is not None and name not in RULES:
            raise ConfigError(f"there is no sharding rule for the axis {name!r}; known are {', '.join(RULES)}")
        mesh_axes = [axis for axis in RULES.get(name or "", ()) if mesh.shape[axis] > 1 and axis not in taken]
        while mesh_axes and size % ways(mesh_axes, mesh):
            mesh_axes.pop()
        taken.update(mesh_axes)
        spec.append(tuple(mesh_axes) if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None))
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def ways(mesh_axes: Any, mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of shards over these mesh axes."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of shards of a batch's rows."""
    return ways(RULES["batch"], mesh)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of replicated arrays."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding over the first axis, the rows of a batch. Their number must be divisible by the shards."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the indices of a batch's rows that are on this process's devices, in ascending order."""
    parts = by_rows(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts if part is not None]))


def is_axes(x: Any) -> bool:
    """Whether `x` is a tuple with the axis names of one array, that is, a leaf in a tree of names."""
    return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)


def shardings(axes: Any, shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns a tree of `NamedSharding`.

    Args:
      axes: tree of logical axis names, one tuple per array.
      shapes: tree of the same structure with arrays, or abstract ones.
      mesh: the mesh.

    Raises:
      ConfigError: an axis has a name without a rule.
    """
    one = lambda names, leaf: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh))
    return jax.tree.map(one, axes, shapes, is_leaf=is_axes)


def like_parameters(tree: Any, params: Any, param_shardings: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns shardings of an optimizer's state that follow those of the weights.

    A leaf belongs to the weight whose path is a suffix of its own (`mu/layers/attention/query`). If it has the weight's
    shape, it gets the weight's sharding; if it lacks one axis (Adafactor's means over rows and columns), the sharding
    of the remaining axes. All other leaves are small (counts) and replicated.

    Args:
      tree: arrays or shapes, for example `tx.init` of the weights.
      params, param_shardings: the weights (or their shapes) and their shardings.
      mesh: the mesh.
    """
    weights = {
        _names(path): (leaf.shape, sharding.spec)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(param_shardings), strict=True
        )
    }

    def one(path: Any, leaf: Any) -> NamedSharding:
        names = _names(path)
        owners = (weights[names[i:]] for i in range(len(names)) if names[i:] in weights)
        shape, spec = next(owners, ((), PartitionSpec()))
        return NamedSharding(mesh, _spec_of_part(leaf.shape, shape, spec))

    return jax.tree_util.tree_map_with_path(one, tree)


def _spec_of_part(shape: tuple[int, ...], owner: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
    if shape == owner:
        return spec
    full = (*spec, *(None,) * (len(owner) - len(spec)))
    for i in range(len(owner)):
        if shape == owner[:i] + owner[i + 1 :]:
            return PartitionSpec(*full[:i], *full[i + 1 :])
    return PartitionSpec()


def _names(path: Any) -> tuple[str, ...]:
    """Returns the dict keys along a path, without indices of tuples and fields of structs."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def with_shardings(shapes: Any, tree: Any) -> Any:
    """Returns `jax.ShapeDtypeStruct`s with shardings, as needed to restore a checkpoint."""
    one = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(one, shapes, tree)


def constrain(tree: Any, axes: Any, mesh: Mesh) -> Any:
    """Returns the arrays, constrained to the rules' shardings in a jitted function; `axes`: see `shardings`."""
    return jax.lax.with_sharding_constraint(tree, shardings(axes, tree, mesh))
