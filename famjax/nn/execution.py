"""How a model runs: placement on a mesh, attention kernel, rematerialisation, and a scan or a loop over layers.

An `Execution` is built once, by training, inference or a plan, and is given to a model when it is constructed. On one
device `over_layers` is a plain scan or loop.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from famjax.attention import fused
from famjax.attention.fused import Kernel
from famjax.attention.scan_blocks import KEPT
from famjax.attention.sequence import How
from famjax.config import ModelConfig
from famjax.dims import Array, Float, Int, Key, Tree, Weights
from famjax.nn.layer import Layer

# The names of an array's axes; a tree of them; a tree of ints, the batch axis of each array.
Axes: TypeAlias = tuple[str | None, ...]
AxesTree: TypeAlias = Any
RowAxes: TypeAlias = Any
# (settings of a layer, shared, x, (its weights, its key, its part of xs)) to (x, out).
LayerFn: TypeAlias = Callable[[Layer, Tree, Tree, tuple[Weights, Any, Tree]], tuple[Tree, Tree]]

# The axes that `fsdp` shards, and their names once a layer has gathered them: None is not sharded; `lora_mlp` remains
# sharded over `tensor`.
GATHERED: dict[str, str | None] = {"embed": None, "lora_head_dim": None, "lora_mlp": "mlp"}


@runtime_checkable
class Placement(Protocol):
    """The interface of a mesh for a model; `mesh/on_mesh.py` has the only implementation."""

    @property
    def platform(self) -> str:
        """Platform of the devices: `tpu`, `gpu` or `cpu`."""
        ...

    @property
    def row_shards(self) -> int:
        """Number of shards of the batch axis."""
        ...

    def constrain(self, tree: Tree, axes: AxesTree) -> Tree:
        """Constrains arrays to the sharding that the rules give for the names of their axes."""
        ...

    def split(self, x: Array) -> Array:
        """Within `by_rows`: shards activations [..., rows, D] over `tensor` along their rows."""
        ...

    def whole(self, x: Array) -> Array:
        """Within `by_rows`: replicates activations [..., rows, D] over `tensor`, the inverse of `split`."""
        ...

    def per_device(self, f: Callable[..., Any], in_axes: AxesTree, out_axes: AxesTree, inside: bool = False) -> Any:
        """Returns `f`, a kernel, applied to each device's shards; `inside`: it is called within `by_rows`."""
        ...

    def by_rows(self, f: Callable[..., Any], axes: AxesTree, dtype: str, in_rows: RowAxes, out_rows: RowAxes) -> Any:
        """Returns `f(weights, *args)` applied to each device's rows, with weights gathered first, in `dtype`.

        Args:
          f: of one layer.
          axes: names of the weights' axes.
          dtype: compute dtype.
          in_rows, out_rows: the batch axis of each array in args and results; -1 for none.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model runs.

    Attributes:
      placement: the mesh; None is one device.
      kernel: see `ModelConfig.attention_kernel`; `auto` is resolved when a layer is traced, since shapes alone need no
        platform.
      remat: see `ModelConfig.remat`.
      unroll: number of blocks in one iteration of a layer's loop over blocks.
      scan: scan over layers, so that the program has the code of one layer (or period), instead of unrolling them.
      auxiliary_scale: factor of auxiliary losses (`attention/auxiliary.py`); 0: there are none.
    """

    placement: Placement | None = None
    kernel: str = "auto"
    remat: str = "none"
    unroll: int = 1
    scan: bool = True
    auxiliary_scale: float = 0.0

    @classmethod
    def of(cls, config: ModelConfig, placement: Placement | None = None) -> "Execution":
        """The execution that a configuration describes."""
        return cls(placement, config.attention_kernel, config.remat, config.unroll_blocks, config.scan_layers)

    def of_blocks(self, alone: bool, block_size: int) -> How:
        """How a layer runs over blocks of `block_size` tokens; `alone`: each device runs the layer on its own rows.

        Raises:
          ConfigError: the kernel cannot run on this platform (`fused.choose`).
        """
        recompute = self.remat == "full"
        platform = self.placement.platform if self.placement is not None else jax.default_backend()
        name = fused.choose(self.kernel, platform, block_size)
        if self.placement is None:
            return How(Kernel(name), recompute, self.unroll, auxiliary_scale=self.auxiliary_scale)
        kernel = Kernel(name, functools.partial(self.placement.per_device, inside=alone))
        how = How(kernel, recompute, self.unroll, auxiliary_scale=self.auxiliary_scale)
        return how._replace(whole=self.placement.whole, split=self.placement.split) if alone else how

    def constrain(self, tree: Tree, axes: AxesTree) -> Tree:
        """Constrains arrays of the forward pass whose sharding must not be left to the compiler; on one device,
        returns them unchanged."""
        return tree if self.placement is None else self.placement.constrain(tree, axes)

    def alone(self, rows: int) -> bool:
        """Whether each device runs layers on its own rows, with explicit communication: if `rows` divide evenly."""
        return self.placement is not None and rows % self.placement.row_shards == 0

    def over_layers(
        self, f: LayerFn, weights: "LayerStack", x: Tree, xs: Tree, shared: Tree = (), rows: RowAxes = None,
        keys: Key[Array, "L"] | None = None,
    ) -> tuple[Tree, Tree]:  # fmt: skip
        """Applies all layers to x.

        Args:
          f: one layer.
          weights: of all layers.
          x: a tree, the input and output of each layer.
          xs: a tree whose arrays have a leading axis L, one entry for each layer.
          shared: a tree that is the same for all layers.
          rows: `(x, xs, shared), (x, out)` of ints, the batch axis of each array, -1 for none. Each device then runs
            the layers on its own rows. None leaves sharding to the compiler.
          keys: PRNG keys, one for each layer; None outside of training.

        Returns:
          x after the last layer, and `out` of all layers with a leading axis L.
        """
        L, period, inputs = weights.config.num_layers, weights.config.layer_period, (weights.arrays, keys, xs)
        one = lambda i, in_scan=False: self._keep_less(self._step(f, weights, i, shared, rows), in_scan)
        if not self.scan or weights.unstacked:
            return unrolled([one(i) for i in range(L)], x, inputs)
        if period > 1:
            rest = [one(i) for i in range(L - L % period, L)]
            return scanned([one(i, in_scan=True) for i in range(period)], rest, x, inputs, L)
        return jax.lax.scan(one(0, in_scan=True), x, inputs)

    def _step(self, f: LayerFn, weights: "LayerStack", index: int, shared: Tree, rows: RowAxes) -> Any:
        """Layer `index` as a function (x, (weights, key, xs)) -> (x, out)."""
        of_layer = functools.partial(f, Layer(weights.config, weights.config.layer(index)))
        placement = self.placement
        if placement is None:
            return functools.partial(of_layer, shared)

        def on_rows(x: Tree, inputs: tuple[Weights, Any, Tree]) -> tuple[Tree, Tree]:
            one, _, extra = inputs
            run = lambda one, x, extra, shared: of_layer(shared, x, (one, None, extra))
            names = weights.axes_of_layer(one)
            return placement.by_rows(run, names, weights.config.dtype, *rows)(one, x, extra, shared)

        def gathered(x: Tree, inputs: tuple[Weights, Any, Tree]) -> tuple[Tree, Tree]:
            return of_layer(shared, x, (weights.gathered(inputs[0], self), *inputs[1:]))

        return gathered if rows is None else on_rows

    def _keep_less(self, step: Callable[..., Any], in_scan: bool) -> Callable[..., Any]:
        """`step` with rematerialisation: which residuals of a layer are saved by `remat`.

        none      all
        dots      results of all matrix products: those of `minimal`, and of attention's products, which may include
                  a score for every query head and key in the window
        minimal   results of products with weights: for each token H (heads + 2 kv_heads) numbers of queries, keys
                  and values, 2 E of a gated feed-forward layer, D of attention's output
        full      the layer's input, D numbers for each token, and FAM before each block

        Outside of a scan, the compiler would merge the recomputation with the first computation (common subexpression
        elimination) and save it after all; `prevent_cse` avoids this if `in_scan` is False.
        """
        policies = jax.checkpoint_policies
        if self.remat == "none":
            return step
        policy = {
            "dots": policies.checkpoint_dots, "minimal": policies.checkpoint_dots_with_no_batch_dims,
            "full": policies.save_only_these_names(KEPT),
        }[self.remat]  # fmt: skip
        return jax.checkpoint(step, policy=policy, prevent_cse=not in_scan)


@dataclasses.dataclass(frozen=True)
class LayerStack:
    """The weights of all layers.

    Attributes:
      config: of the model.
      arrays: a tree whose arrays have a leading axis L; or a list of L trees, one per layer.
      axes: the names of the axes of these arrays, with or without `layers` first.
    """

    config: ModelConfig
    arrays: Weights | list[Weights]
    axes: Any

    @property
    def unstacked(self) -> bool:
        """Whether each layer has arrays of its own."""
        return isinstance(self.arrays, list)

    def each_layer(self, execution: Execution) -> Iterator[Layer]:
        """Yields every layer; on a mesh, with its weights gathered."""
        for i in range(self.config.num_layers):
            one = entry(self.arrays, i)
            if execution.placement is not None:
                one = self.gathered(one, execution)
            yield Layer(self.config, self.config.layer(i)).with_arrays(one)

    def axes_of_layer(self, one: Weights) -> Any:
        """The names of the axes of one layer's arrays `one`, without `layers`."""
        return jax.tree.map(lambda w, names: names[-w.ndim :], one, self.axes)

    def gathered(self, one: Weights, execution: Execution) -> Weights:
        """One layer's arrays, gathered along the axes that `fsdp` shards (`gather`)."""
        with jax.named_scope("weights"):
            whole = lambda w, names: gather(w, names, execution, self.config.dtype)
            return jax.tree.map(whole, one, self.axes_of_layer(one))


Step: TypeAlias = Callable[[Tree, Tree], tuple[Tree, Tree]]


def unrolled(steps: Sequence[Step], x: Tree, xs: tuple[Tree, ...]) -> tuple[Tree, Tree]:
    """Applies steps to x in order. Arrays of xs and of the outputs have a leading axis with one entry per step."""
    outs = []
    for i, step in enumerate(steps):
        x, out = step(x, tuple(entry(part, i) for part in xs))
        outs.append(out)
    return x, stacked(outs)


def entry(tree: Tree, i: int) -> Tree:
    """Entry i of a tree of arrays with a leading axis, or of a list of trees."""
    return tree[i] if isinstance(tree, list) else jax.tree.map(lambda a: a[i], tree)


def stacked(trees: Sequence[Tree]) -> Tree:
    """Stacks trees of arrays of equal shapes along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def scanned(period: Sequence[Step], rest: Sequence[Step], x: Tree, xs: Tree, length: int) -> tuple[Tree, Tree]:
    """Applies `length` layers, whose settings repeat with a period, to x: one period is compiled and scanned over.

    The layers after the last whole period, `rest`, are compiled separately:

        26 layers of period 6:  4 iterations of a loop over 6 layers, then 2 layers
    """
    P, whole = len(period), length - len(rest)
    by_period = jax.tree.map(lambda a: a[:whole].reshape(whole // P, P, *a.shape[1:]), xs)
    x, outs = jax.lax.scan(lambda x, one: unrolled(period, x, one), x, by_period)
    outs = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), outs)
    if not rest:
        return x, outs
    x, last = unrolled(rest, x, jax.tree.map(lambda a: a[whole:], xs))
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), outs, last)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gather(weight: Array, axes: Axes, execution: Execution, dtype: str) -> Array:
    """All-gathers a weight along the axes that `fsdp` shards, once for all its uses in a layer.

    Otherwise the compiler would gather a weight where it is used: in the scan over blocks, once per block. It is
    gathered in the compute dtype, which is half the bytes, and converted back to its own dtype. This changes no bit,
    since every use rounds it to the compute dtype, but its gradient, a sum over blocks and devices, is accumulated in
    its own dtype.
    """
    rounded = weight.astype(dtype) if weight.ndim > 1 else weight  # norms work in float32
    return execution.constrain(rounded, tuple(name and GATHERED.get(name, name) for name in axes)).astype(weight.dtype)


def _gather_forward(weight: Array, axes: Axes, execution: Execution, dtype: str) -> tuple[Array, None]:
    return gather(weight, axes, execution, dtype), None


def _gather_backward(axes: Axes, execution: Execution, dtype: str, _: None, gradient: Array) -> tuple[Array]:
    return (execution.constrain(gradient, axes),)


gather.defvjp(_gather_forward, _gather_backward)


def look_up(table: Float[Array, "V D"], tokens: Int[Array, "..."], execution: Execution, dtype: str) -> Array:
    """Returns the rows `table[tokens]` [..., D] in the compute dtype; their gradients are summed in float32."""
    if execution.placement is not None:
        # Rows are looked up in whole rows: in a table sharded along D, the result would be sharded along D too, and the
        # compiler would gather every activation of the batch to shard it again. The second constraint is for gradients.
        table = execution.constrain(gather(table, ("vocab", "embed"), execution, dtype), ("vocab", None))
    return _rows_of(table, tokens).astype(dtype)


@jax.custom_vjp
def _rows_of(table: Float[Array, "V D"], tokens: Int[Array, "..."]) -> Float[Array, "... D"]:
    """The rows `table[tokens]`, whose gradients are summed in float32.

    A frequent token occurs thousands of times in a batch, and a sum in bfloat16 no longer grows at 256 equal parts.
    """
    return table[tokens]


def _rows_forward(table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    return table[tokens], (tokens, jnp.empty((len(table), 0), table.dtype))


def _rows_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    tokens, like = kept
    zeros = jnp.zeros((len(like), gradient.shape[-1]), jnp.float32)
    return zeros.at[tokens].add(gradient.astype(jnp.float32)).astype(like.dtype), None


_rows_of.defvjp(_rows_forward, _rows_backward)
