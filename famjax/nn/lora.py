"""LoRA: low-rank updates beside the projections of a layer (Hu et al. 2021, arXiv 2106.09685).

    x W   becomes   x W + scale (x A) B        A [in, r], B [r, out], scale = alpha / r

B is initially zero, so the first step is bit for bit that of the model without LoRA. A is initially normal with
standard deviation 1/sqrt(in), so that x A has the scale of x (peft's A is uniform with a third of that variance). Both
are float32, whatever the dtype of W: W is usually frozen in bfloat16, and updates smaller than its rounding add up.

A and B have the axes of their base: A of `output` is [*stack, heads, H, r], B of `query` [*stack, r, heads, H].
"""

import dataclasses
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from famjax.config import LORA_PROJECTIONS, LoraConfig, ModelConfig
from famjax.config.optimizer import LORA
from famjax.dims import Array, Float, Key

HostOrDevice = TypeVar("HostOrDevice", jax.Array, np.ndarray)

# Where a layer has the weight of each projection.
BASES = {
    "query": "attention", "key": "attention", "value": "attention", "output": "attention",
    "gate": "feed_forward", "up": "feed_forward", "down": "feed_forward",
}  # fmt: skip


def of_base(path: str, part: str) -> str:
    """The path of a weight's A (`part` a) or B (b): for `layers/attention/query`, `layers/lora/query/a`. It need not
    exist."""
    return f"{LORA}{path.rsplit('/', 1)[-1]}/{part}"


class Pair(nnx.Module):
    """`a` [*in, r] and `b` [r, *out] of one projection."""

    def __init__(
        self, config: ModelConfig, ins: dict[str, int], outs: dict[str, int], rngs: nnx.Rngs, stack: tuple[int, ...]
    ):
        """Initialises A and B.

        Args:
          config: of the model.
          ins, outs: names and sizes of the base's input and output axes.
          rngs: its stream `lora` is used.
          stack: leading axes, () or (L,).
        """
        rank, stacked = config.lora.rank, ("layers",) * len(stack)
        std = math.prod(ins.values()) ** -0.5
        a = std * jax.random.normal(rngs.lora(), (*stack, *ins.values(), rank), jnp.float32)
        self.a = nnx.Param(a, axes=(*stacked, *ins, "lora"))
        self.b = nnx.Param(jnp.zeros((*stack, rank, *outs.values()), jnp.float32), axes=(*stacked, "lora", *outs))


def low_rank(pair: dict[str, Any], x: Float[Array, "rows in"], scale: float) -> Float[Array, "rows out"]:
    """scale (x A) B in the dtype of x. Several input or output axes of the pair are flattened to `in` and `out`."""
    a, b = (pair[name].astype(x.dtype) for name in ("a", "b"))
    rank = a.shape[-1]
    return (x @ a.reshape(-1, rank)) * jnp.asarray(scale, x.dtype) @ b.reshape(rank, -1)


class Lora(nnx.Module):
    """The pairs of a layer, by the names of their projections (`LoraConfig.projections`)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: tuple[int, ...]):
        for name, (ins, outs) in _axes(config).items():
            setattr(self, name, Pair(config, ins, outs, rngs, stack))


def _axes(config: ModelConfig) -> dict[str, tuple[dict[str, int], dict[str, int]]]:
    """What goes into each projection that has a pair and what comes out: names and sizes of axes."""
    H = config.head_dim
    width, inner = {"embed": config.d_model}, {"lora_mlp": config.d_ff}
    heads = {"heads": config.num_heads, "lora_head_dim": H}
    kv_heads = {"kv_heads": config.num_kv_heads, "lora_head_dim": H}
    table = {
        "query": (width, heads), "key": (width, kv_heads), "value": (width, kv_heads), "output": (heads, width),
        "gate": (width, inner), "up": (width, inner), "down": (inner, width),
    }  # fmt: skip
    return {name: table[name] for name in config.lora.projections if name != "gate" or config.gated_ff}


def drop(x: Float[Array, "rows in"], name: str, *, key: Key[Array, ""], rate: float) -> Float[Array, "rows in"]:
    """Dropout on the input of a projection's pair: each number is 0 with probability `rate`, else multiplied by
    1 / (1 - rate). The mask is a function of the key (of a step, layer and block), the projection's name and the shape.
    """
    keep = jax.random.bernoulli(jax.random.fold_in(key, LORA_PROJECTIONS.index(name)), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def merged(base: HostOrDevice, a: HostOrDevice, b: HostOrDevice, scale: float) -> HostOrDevice:
    """W + scale A B of one layer (without the axis L), added in float32, in the shape and dtype of the base; NumPy or
    JAX arrays."""
    rank = a.shape[-1]
    update = (a.reshape(-1, rank) @ b.reshape(rank, -1)).reshape(base.shape)
    return (base.astype("float32") + scale * update).astype(base.dtype)


def merge(params: dict[str, Any], config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """Merges LoRA. Returns the tree of weights with every pair added to its base, and the configuration without LoRA;
    both unchanged if the rank is 0. Pairs of layers before `LoraConfig.first_layer` are not added."""
    if not config.lora.rank:
        return params, config
    layers = {name: value for name, value in params["layers"].items() if name != "lora"}
    first = config.lora.first_layer
    into = jax.vmap(lambda base, a, b: merged(base, a, b, config.lora.scale))
    with jax.default_matmul_precision("highest"):
        for name, pair in params["layers"]["lora"].items():
            group = layers[BASES[name]]
            whole = jnp.asarray(group[name])
            added = into(whole[first:], pair["a"][first:], pair["b"][first:])
            layers[BASES[name]] = group | {name: jnp.concatenate([whole[:first], added]) if first else added}
    return params | {"layers": layers}, dataclasses.replace(config, lora=LoraConfig())
