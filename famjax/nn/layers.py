"""The pieces of a Transformer layer that are not attention.

Every module takes `stack`, axes that come before a weight's own: () for one layer, (L,) for all
layers stacked, which `nn/model.py` scans. Weights carry the names of their axes (`axes`), which
`runtime/sharding.py` maps onto a mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from famjax.config import ModelConfig

ACTIVATION_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
}


# From a product, what went into it and its name, to what it becomes: the place where LoRA adds its own.
Adapt = Callable[[Any, Any, str], Any]


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: tuple[str, ...], dtype: str, stack: tuple[int, ...] = ()
) -> nnx.Param:
    """A normal weight [*stack, *shape] whose spread does not depend on the stack."""
    value = std * jax.random.normal(rngs.params(), stack + shape, jnp.float32)
    return nnx.Param(value.astype(dtype), axes=("layers",) * len(stack) + axes)


def bias(shape: tuple[int, ...], axes: tuple[str, ...], dtype: str, stack: tuple[int, ...] = ()) -> nnx.Param:
    """Zeros [*stack, *shape] that are learned."""
    return nnx.Param(jnp.zeros(stack + shape, dtype), axes=("layers",) * len(stack) + axes)


class Norm(nnx.Module):
    """RMSNorm, or LayerNorm without bias, in float32, with a learned scale (1 + it with `norm_plus_one`)."""

    def __init__(
        self, config: ModelConfig, size: int, axis: str = "embed", stack: tuple[int, ...] = (), kind: str = ""
    ):  # fmt: skip
        start = jnp.zeros if config.norm_plus_one else jnp.ones
        self.scale = nnx.Param(start((*stack, size), config.param_dtype), axes=("layers",) * len(stack) + (axis,))
        self.plus_one = config.norm_plus_one
        self.center = (kind or config.norm) == "layernorm"
        self.eps = config.norm_eps
        self.dtype = config.dtype

    def __call__(self, x: Any) -> Any:
        """x [..., size] to the same shape in the compute dtype."""
        x = x.astype(jnp.float32)
        if self.center:
            x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        return (x * (1 + scale if self.plus_one else scale)).astype(self.dtype)


class FeedForward(nnx.Module):
    """down(act(gate x) * up x), or down(act(up x)) without a gate; each product with a bias if so configured."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        D, E, dtype = config.d_model, config.d_ff, config.param_dtype
        residual_scale = (2 * config.num_layers) ** -0.5
        if config.gated_ff:
            self.gate = weight(rngs, (D, E), D**-0.5, ("embed", "mlp"), dtype, stack)
        self.up = weight(rngs, (D, E), D**-0.5, ("embed", "mlp"), dtype, stack)
        self.down = weight(rngs, (E, D), E**-0.5 * residual_scale, ("mlp", "embed"), dtype, stack)
        if config.ff_bias:
            if config.gated_ff:
                self.gate_bias = bias((E,), ("mlp",), dtype, stack)
            self.up_bias = bias((E,), ("mlp",), dtype, stack)
            self.down_bias = bias((D,), ("embed",), dtype, stack)
        self.gated = config.gated_ff
        self.biased = config.ff_bias
        self.activation = config.activation
        self.dtype = config.dtype

    def __call__(self, x: Any, adapt: Adapt) -> Any:
        """x [..., D] to [..., D]; every product goes through `adapt`, before its bias."""
        act = ACTIVATION_FUNCTIONS[self.activation]
        up = self._product(x, "up", adapt)
        hidden = act(self._product(x, "gate", adapt)) * up if self.gated else act(up)
        return self._product(hidden, "down", adapt)

    def _product(self, x: Any, name: str, adapt: Adapt) -> Any:
        out = adapt(x @ getattr(self, name)[...].astype(self.dtype), x, name)
        return out + getattr(self, f"{name}_bias")[...].astype(self.dtype) if self.biased else out
