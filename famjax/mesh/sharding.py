"""Which part of an array lies on which device: one table from the names of axes to mesh axes.

Whoever owns an array names its axes where it is declared: weights in `nn` (metadata `axes`), the
memory in `attention/memory.py`, batches have their rows first. Only this table knows the mesh.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from famjax.config import ConfigError

# Logical axis -> the mesh axes that cut it, outermost first; () is never cut.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "query_group": ("tensor",),  # query heads of one key/value head, where those do not divide
    "head_dim": (),
    "mlp": ("tensor",),
    "tokens": ("tensor",),  # of a block, between layers
    "layers": (),
    "fam": (),
    # LoRA's pairs are small, but many, and so are their moments: each is cut by `fsdp` along some axis of its base.
    "lora": (),
    "lora_head_dim": ("fsdp",),
    "lora_mlp": ("tensor", "fsdp"),
}

# The names of an array's axes; None for an axis that is never cut.
Axes = tuple[str | None, ...]


def partition_spec(axes: Axes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How an array is cut.

    Where an axis of the array does not divide over the mesh axes of its rule, the innermost of these
    is left out, and then the next, until it does: in the end the axis is whole on every device. So one
    key/value head is replicated over `tensor`, and 12 rows on data 4 x fsdp 2 are cut by `data` alone.
    A mesh axis cuts each array once, at the first axis that takes it.

    Raises:
      ConfigError: an axis has a name that the rules do not know.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not name the axes of an array of shape {shape}")
    taken: set[str] = set()
    spec: list[Any] = []
    for name, size in zip(axes, shape, strict=True):
        if name is not None and name not in RULES:
            raise ConfigError(f"there is no sharding rule for the axis {name!r}; known are {', '.join(RULES)}")
        cut = [axis for axis in RULES.get(name or "", ()) if mesh.shape[axis] > 1 and axis not in taken]
        while cut and size % ways(cut, mesh):
            cut.pop()
        taken.update(cut)
        spec.append(tuple(cut) if len(cut) > 1 else (cut[0] if cut else None))
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def ways(mesh_axes: Any, mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts these mesh axes cut."""
    parts = 1
    for axis in mesh_axes:
        parts *= mesh.shape[axis]
    return parts


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    return ways(RULES["batch"], mesh)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Cut along the first axis, the rows of a batch; their number must divide (`TrainConfig` sees to it)."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that lie on this process's devices, in rising order."""
    parts = by_rows(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts if part is not None]))


def is_axes(x: Any) -> bool:
    """True for the names of one array's axes, which are a leaf of a tree of names."""
    return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)


def shardings(axes: Any, shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of `NamedSharding`, from a tree of axis names and one of arrays (or of their shapes)."""
    one = lambda names, leaf: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh))
    return jax.tree.map(one, axes, shapes, is_leaf=is_axes)


def like_parameters(tree: Any, params: Any, param_shardings: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings of an optimizer's state: each leaf lies as the weight that it belongs to.

    A leaf belongs to the weight whose path ends its own (`mu/layers/attention/query`). Of the weight's
    shape, it has the weight's sharding. With one axis less (Adafactor's means over rows and columns), it
    has that of the axes that are left. Everything else is small (counts) and replicated.

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
    """Keys of dicts along a path; places in tuples and fields of structs have no part in it."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def with_shardings(shapes: Any, tree: Any) -> Any:
    """`jax.ShapeDtypeStruct`s that know where their arrays belong, as restoring a checkpoint wants them."""
    one = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(one, shapes, tree)


def constrain(tree: Any, axes: Any, mesh: Mesh) -> Any:
    """Inside a jitted function: arrays are cut by the rules from here on. `axes` as for `shardings`."""
    return jax.lax.with_sharding_constraint(tree, shardings(axes, tree, mesh))
