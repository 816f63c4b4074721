"""A model's weights: random initialisation, the plain tree, its shapes and axes, and unstacking by layer."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from flax import nnx

from famjax.attention.memory import MemoryState
from famjax.config import ModelConfig
from famjax.dims import Array, Weights
from famjax.nn.execution import Execution
from famjax.nn.layer import LayerParams, axes_of
from famjax.nn.model import Transformer


def create(config: ModelConfig, seed: int = 0, execution: Execution | None = None) -> Transformer:
    """A model with random weights, a function of the seed. Raises `ConfigError` if the configuration cannot work."""
    config.validate()
    key = jax.random.key(seed)
    # LoRA and memories draw from streams of their own, so that a model with them starts with the weights of the one
    # without.
    added = {"lora": jax.random.fold_in(key, 2106), "memory": jax.random.fold_in(key, 2404)}
    return Transformer(config, nnx.Rngs(params=key, **added), execution=execution)


def structure(config: ModelConfig, execution: Execution | None = None) -> nnx.GraphDef[Any]:
    """A model's structure without weights, for `nnx.merge`; nothing is computed."""
    return nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0), execution)))


def unstacked(model: Transformer) -> Transformer:
    """The same model with separate arrays for each layer, for streaming.

    The stacked arrays are split one after the other and deleted, so the given model must not be used afterwards.
    """
    if not isinstance(model.layers, LayerParams):
        return model
    params, L = parameters(model), model.config.num_layers

    def cut(leaf: Array) -> list[Array]:
        parts = [leaf[i] for i in range(L)]
        jax.block_until_ready(parts)
        leaf.delete()
        return parts

    leaves, treedef = jax.tree.flatten(params.pop("layers"))
    by_leaf = [cut(leaf) for leaf in leaves]
    return with_layers(model, [jax.tree.unflatten(treedef, [parts[i] for parts in by_leaf]) for i in range(L)])


def with_layers(model: Transformer, layers: Sequence[Weights]) -> Transformer:
    """The given model, with arrays or shapes of its own for each layer."""
    # One layer's structure is traced, not that of all, which takes as long as loading a small model.
    one = nnx.graphdef(nnx.eval_shape(lambda: LayerParams(model.config, nnx.Rngs(0))))
    model.layers = nnx.List([nnx.merge(one, layer) for layer in layers])
    return model


def parameters(model: nnx.Module) -> dict[str, Any]:
    """The weights as a plain nested dict, the tree that checkpoints hold (docs/architecture.md)."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def each_parameter(model: Transformer) -> Iterator[tuple[str, Any]]:
    """Yields every weight with its path, those of layers layer by layer, whether they are stacked or not."""
    params = parameters(model)
    layers = params.pop("layers")
    named = lambda tree, where: ((where + jax.tree_util.keystr(p), x) for p, x in jax.tree.leaves_with_path(tree))
    yield from named(params, "")
    for i in range(model.config.num_layers):
        if isinstance(model.layers, LayerParams):
            yield from ((path, x[i]) for path, x in named(layers, f"['layers'][{i}]"))
        else:
            yield from named(layers[i], f"['layers'][{i}]")


def parameter_shapes(config: ModelConfig) -> dict[str, Any]:
    """The tree of `parameters` with shapes (`jax.ShapeDtypeStruct`) instead of arrays; nothing is computed."""
    return nnx.to_pure_dict(nnx.state(nnx.merge(*_abstract(config)), nnx.Param))


def parameter_axes(config: ModelConfig) -> dict[str, Any]:
    """The tree of `parameters` with a tuple of names of axes instead of each array."""
    return axes_of(nnx.state(nnx.merge(*_abstract(config)), nnx.Param))


def memory_shapes(config: ModelConfig, rows: int, streaming: bool = False) -> MemoryState:
    """The initial `MemoryState` of `rows` rows with shapes instead of arrays: all layers stacked, or with `streaming`
    unstacked (`Transformer.streaming_state`)."""
    shapes: MemoryState = jax.tree.map(lambda leaf: leaf, _memory_shapes(config, rows, streaming))
    return shapes


@functools.lru_cache(maxsize=64)
def _memory_shapes(config: ModelConfig, rows: int, streaming: bool) -> MemoryState:
    graphdef, state = _abstract(config)

    def initial(state: nnx.State[Any, Any]) -> MemoryState:
        model: Transformer = nnx.merge(graphdef, state)
        return model.streaming_state(rows) if streaming else model.initial_state(rows)

    shapes: MemoryState = jax.eval_shape(initial, state)
    return shapes


@functools.lru_cache(maxsize=64)
def _abstract(config: ModelConfig) -> tuple[nnx.GraphDef[Any], nnx.State[Any, Any]]:
    """A model of shapes. A run asks for it a dozen times, and to trace the initialisation takes a tenth of a second."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: create(config)))
    return graphdef, state
