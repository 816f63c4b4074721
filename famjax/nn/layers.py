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
    "relu": jax.nn.relu,
}


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: tuple[str, ...], dtype: str, stack: tuple[int, ...] = ()
) -> nnx.Param:
    """A normal weight [*stack, *shape] whose spread does not depend on the stack."""
    value = std * jax.random.normal(rngs.params(), stack + shape, jnp.float32)
    return nnx.Param(value.astype(dtype), axes=("layers",) * len(stack) + axes)


class Norm(nnx.Module):
    """RMSNorm, or LayerNorm without bias, in float32, with a learned scale."""

    def __init__(
        self, config: ModelConfig, size: int, axis: str = "embed", stack: tuple[int, ...] = (), kind: str = ""
    ):  # fmt: skip
        self.scale = nnx.Param(jnp.ones((*stack, size), config.param_dtype), axes=("layers",) * len(stack) + (axis,))
        self.center = (kind or config.norm) == "layernorm"
        self.eps = config.norm_eps
        self.dtype = config.dtype

    def __call__(self, x: Any) -> Any:
        """x [..., size] to the same shape in the compute dtype."""
        x = x.astype(jnp.float32)
        if self.center:
            x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * self.scale[...].astype(jnp.float32)).astype(self.dtype)


class FeedForward(nnx.Module):
    """down(act(gate x) * up x), or down(act(up x)) where the configuration has no gate."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        D, E, dtype = config.d_model, config.d_ff, config.param_dtype
        residual_scale = (2 * config.num_layers) ** -0.5
        if config.gated_ff:
            self.gate = weight(rngs, (D, E), D**-0.5, ("embed", "mlp"), dtype, stack)
        self.up = weight(rngs, (D, E), D**-0.5, ("embed", "mlp"), dtype, stack)
        self.down = weight(rngs, (E, D), E**-0.5 * residual_scale, ("mlp", "embed"), dtype, stack)
        self.gated = config.gated_ff
        self.activation = config.activation
        self.dtype = config.dtype

    def __call__(self, x: Any) -> Any:
        """x [..., D] to [..., D]."""
        act = ACTIVATION_FUNCTIONS[self.activation]
        up = x @ self.up[...].astype(self.dtype)
        hidden = act(x @ self.gate[...].astype(self.dtype)) * up if self.gated else act(up)
        return hidden @ self.down[...].astype(self.dtype)
