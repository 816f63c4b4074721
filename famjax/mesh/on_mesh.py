"""Parts of a program that each device runs on its own rows, with explicit communication.

The compiler partitions most of a program by itself (`sharding.py`). But for weights used in a loop, in a layer (FAM,
block after block) or in the loss (logits, chunk after chunk), it would gather them and sum their gradients over devices
in every iteration. Here weights are gathered once, before the loop, and gradients are summed on each device first and
over devices once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from famjax.mesh import sharding
from famjax.mesh.sharding import RULES, is_axes, partition_spec

ROWS = RULES["batch"]  # the mesh axes that rows are sharded over; `tensor` is left to the compiler
WHOLE = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """A mesh, with the operations that a model needs on it."""

    mesh: Mesh

    @property
    def platform(self) -> str:
        """The platform of its devices: `tpu`, `gpu`, `cpu`."""
        return str(self.mesh.devices.flat[0].platform)

    @property
    def row_shards(self) -> int:
        """The number of shards of the rows."""
        return sharding.batch_shards(self.mesh)

    def constrain(self, tree: Any, axes: Any) -> Any:
        """Constrains arrays to the shardings of the rules."""
        return sharding.constrain(tree, axes, self.mesh)

    def split(self, x: jax.Array) -> jax.Array:
        """Within `by_rows`: shards activations [..., rows, D] over `tensor` along their rows, if that divides."""
        spec = partition_spec((*(None,) * (x.ndim - 2), "tokens", None), x.shape, self.mesh)
        return jax.lax.with_sharding_constraint(x, spec) if any(spec) else x

    def whole(self, x: jax.Array) -> jax.Array:
        """Within `by_rows`: replicates activations over `tensor`, so that heads and inner width can be sharded."""
        return jax.lax.with_sharding_constraint(x, WHOLE) if self.mesh.shape["tensor"] > 1 else x

    def per_device(self, f: Callable[..., Any], in_axes: Any, out_axes: Any, inside: bool = False) -> Any:
        """Returns `f` mapped over each device's shards, for code that the compiler cannot partition (kernels).

        Args:
          f: each shard of its result must depend only on the same shards of its arguments.
          in_axes: for each argument the names of its axes, or a tree of them; None for None.
          out_axes: of the result, which has the shape of the first argument.
          inside: it is called within `by_rows`, where rows are sharded already.
        """

        def run(*args: Any) -> Any:
            kept = lambda name: None if inside and name == "batch" else name
            spec = lambda names, x: partition_spec(tuple(map(kept, names)), x.shape, self.mesh)
            if inside and self.mesh.shape["tensor"] == 1:
                return f(*args)
            where: Any = {"axis_names": {"tensor"}} if inside else {"mesh": self.mesh}
            in_specs = jax.tree.map(spec, in_axes, args, is_leaf=is_axes)
            return jax.shard_map(
                f, in_specs=in_specs, out_specs=spec(out_axes, args[0]), check_vma=False, **where
            )(*args)  # fmt: skip

        return run

    def by_rows(self, f: Callable[..., Any], axes: Any, dtype: str, in_rows: Any, out_rows: Any) -> Any:
        """Returns `f(weights, *args)` mapped over each device's rows, with weights all-gathered over `fsdp`.

        They are gathered in the compute dtype, half the bytes, and converted back, which loses nothing since every use
        rounds to the compute dtype. Gradients are summed in the weights' own dtype.

        Args:
          f: a function of rows. Results that do not belong to a row must be equal on all devices, or sums over rows.
          axes: the names of the weights' axes.
          dtype: the compute dtype.
          in_rows, out_rows: trees of ints: the axis of an array that is its rows, which are sharded; -1: arguments are
            replicated, results are one device's.
        """
        mesh = self.mesh
        names = set(mesh.axis_names) if mesh.shape["tensor"] == 1 else set(ROWS)
        place = lambda tree: jax.tree.map(lambda axis: _spec((axis, ROWS if axis >= 0 else ())), tree)

        def run(weights: Any, *args: Any) -> Any:
            places = jax.tree.map(lambda name, w: _place_of(name, w.shape, mesh), axes, weights, is_leaf=is_axes)
            specs = jax.tree.map(_spec, places, is_leaf=_is_place)

            def on_device(weights: Any, *args: Any) -> Any:
                with jax.named_scope("weights"):
                    whole = jax.tree.map(lambda at, w: gather(w, at, dtype), places, weights, is_leaf=_is_place)
                return f(whole, *args)

            return jax.shard_map(
                on_device, mesh=mesh, in_specs=(specs, *place(in_rows)), out_specs=place(out_rows), axis_names=names,
                check_vma=False,
            )(weights, *args)  # fmt: skip

        return run


def placement(mesh: Mesh) -> OnMesh | None:
    """Returns how a model runs on a mesh; None if that is the one device that it would use anyway."""
    one = OnMesh(mesh)
    return None if mesh.size == 1 and one.platform == jax.default_backend() else one


# The axis of a weight that is sharded over mesh axes of rows, and these mesh axes; (-1, ()) if none is.
Place = tuple[int, tuple[str, ...]]


def _is_place(x: Any) -> bool:
    return type(x) is tuple and len(x) == 2 and isinstance(x[0], int)


def _place_of(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> Place:
    for i, entry in enumerate(partition_spec(names, shape, mesh)):
        mesh_axes = tuple(name for name in (entry if isinstance(entry, tuple) else (entry,)) if name in ROWS)
        if mesh_axes:
            return i, mesh_axes
    return -1, ()


def _spec(place: Place) -> PartitionSpec:
    axis, mesh_axes = place
    return PartitionSpec(*(None,) * axis, mesh_axes) if mesh_axes else WHOLE


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(weight: Any, place: Place, dtype: str) -> Any:
    """All-gathers a weight within `OnMesh.by_rows`."""
    axis, mesh_axes = place
    rounded = weight.astype(dtype) if weight.ndim > 1 else weight  # norms use float32
    whole = jax.lax.all_gather(rounded, mesh_axes, axis=axis, tiled=True) if mesh_axes else rounded
    return whole.astype(weight.dtype)


def _gather_forward(weight: Any, place: Place, dtype: str) -> tuple[Any, None]:
    return gather(weight, place, dtype), None


def _gather_backward(place: Place, dtype: str, _: None, gradient: Any) -> tuple[Any]:
    axis, mesh_axes = place
    return (jax.lax.psum_scatter(gradient, mesh_axes, scatter_dimension=axis, tiled=True) if mesh_axes else gradient,)


gather.defvjp(_gather_forward, _gather_backward)
