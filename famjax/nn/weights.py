"""A model's weights: made at random, as a plain tree, their shapes and axes, and taken apart layer by layer."""

from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from famjax.config import ModelConfig
from famjax.nn.block import Block
from famjax.nn.model import Transformer, axes_of


def create(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model with random weights. Raises `ConfigError` if the configuration cannot work."""
    config.validate()
    key = jax.random.key(seed)
    # LoRA draws from a stream of its own, so that a model with it starts with the weights of the one without.
    return Transformer(config, nnx.Rngs(params=key, lora=jax.random.fold_in(key, 2106)))


def apart(model: Transformer) -> Transformer:
    """The same model with every layer's weights by themselves, as streaming wants them.

    The arrays of the given one are taken apart one after the other, and are gone afterwards.
    """
    if not isinstance(model.layers, Block):
        return model
    params, L = parameters(model), model.config.num_layers

    def cut(leaf: Any) -> list[Any]:
        parts = [leaf[i] for i in range(L)]
        jax.block_until_ready(parts)
        leaf.delete()
        return parts

    leaves, structure = jax.tree.flatten(params.pop("layers"))
    by_leaf = [cut(leaf) for leaf in leaves]
    params["layers"] = {i: jax.tree.unflatten(structure, [parts[i] for parts in by_leaf]) for i in range(L)}
    abstract = nnx.eval_shape(lambda: Transformer(model.config, nnx.Rngs(0), stacked=False))
    new: Transformer = nnx.merge(nnx.graphdef(abstract), params)
    new.constrain, new.devices = model.constrain, model.devices
    return new


def parameters(model: nnx.Module) -> dict[str, Any]:
    """The weights as a plain nested dict, the tree that checkpoints hold (docs/architecture.md)."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def each_parameter(model: Transformer) -> Iterator[tuple[str, Any]]:
    """Every weight with its path, those of layers one layer after the other, whether they are stacked or apart."""
    params = parameters(model)
    layers = params.pop("layers")
    named = lambda tree, where: ((where + jax.tree_util.keystr(p), x) for p, x in jax.tree.leaves_with_path(tree))
    yield from named(params, "")
    for i in range(model.config.num_layers):
        if isinstance(model.layers, Block):
            yield from ((path, x[i]) for path, x in named(layers, f"['layers'][{i}]"))
        else:
            yield from named(layers[i], f"['layers'][{i}]")


def parameter_shapes(config: ModelConfig) -> dict[str, Any]:
    """The tree of `parameters` with shapes instead of arrays; nothing is computed, whatever the size."""
    shapes: dict[str, Any] = jax.eval_shape(lambda: parameters(create(config)))
    return shapes


def parameter_axes(config: ModelConfig) -> dict[str, Any]:
    """The tree of `parameters` with the names of each weight's axes instead of arrays."""
    return axes_of(nnx.state(nnx.eval_shape(lambda: create(config)), nnx.Param))
