"""Functions that each device runs on its own rows (`shard_map`), with explicit communication.

The compiler partitions most of a program automatically (`sharding.py`). But if weights are used in a loop, in a layer
(FAM, block after block) or in the loss (logits, chunk after chunk), it would gather them and sum their gradients over
devices in every iteration. Here weights are gathered once, before the loop; gradients are first summed on each device,
then once over devices.
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
    """A mesh, with the operations that a model runs on it.

    Attributes:
      mesh: the device mesh.
    """

    mesh: Mesh

    @property
    def platform(self) -> str:
        """Platform of the devices: `tpu`, `gpu`, `cpu`."""
        return str(self.mesh.devices.flat[0].platform)

    @property
    def row_shards(self) -> int:
        """Number of shards of a batch's rows."""
        return sharding.batch_shards(self.mesh)

    def constrain(self, tree: Any, axes: Any) -> Any:
        """Returns the arrays, constrained to the shardings of the rules; see `sharding.constrain`."""
        return sharding.constrain(tree, axes, self.mesh)

    def split(self, x: jax.Array) -> jax.Array:
        """Shards activations [..., T, D] over `tensor` along the tokens, if T is divisible. For use in `by_rows`."""
        spec = partition_spec((*(None,) * (x.ndim - 2), "tokens", None), x.shape, self.mesh)
        return jax.lax.with_sharding_constraint(x, spec) if any(spec) else x

    def whole(self, x: jax.Array) -> jax.Array:
        """Replicates activations over `tensor`, so that heads or d_ff can be sharded. For use in `by_rows`."""
        return jax.lax.with_sharding_constraint(x, WHOLE) if self.mesh.shape["tensor"] > 1 else x

    def per_device(self, f: Callable[..., Any], in_axes: Any, out_axes: Any, inside: bool = False) -> Any:
        """Returns `f` mapped over each device's shards, for code that the compiler cannot partition (kernels).

        Args:
          f: the function; each shard of its result must depend only on the same shards of its arguments.
          in_axes: the logical axis names of each argument, or a tree of them; None for an argument None.
          out_axes: the logical axis names of the result, which has the shape of the first argument.
          inside: whether it is called within `by_rows`, where rows are sharded already.
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

        Weights are gathered in the compute dtype, to send fewer bytes, and converted back. This loses nothing, since
        every use rounds to the compute dtype. Gradients are summed in the weights' own dtype.

        Args:
          f: a function of rows. A result without a row axis must be equal on all devices.
          axes: tree of the logical axis names of the weights.
          dtype: the compute dtype.
          in_rows, out_rows: trees of ints, one for each argument or result: its row axis, which is sharded; -1: it has
            none, so an argument is replicated, and of a result one device's value is returned.
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
    """Returns the placement of a model on a mesh; None for one device of JAX's default platform, which needs none."""
    one = OnMesh(mesh)
    return None if mesh.size == 1 and one.platform == jax.default_backend() else one


# The axis of a weight that is sharded over mesh axes in `ROWS`, and these mesh axes; (-1, ()) if no axis is.
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
    """Returns a whole weight in its own dtype, all-gathered along `place`. For use in `OnMesh.by_rows`.

    Weights of two or more axes are rounded to `dtype` before. The gradient is reduce-scattered, unrounded.
    """
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
