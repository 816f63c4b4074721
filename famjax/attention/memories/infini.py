"""Infini-attention (arXiv 2404.07143): a compressive memory of all past blocks, and one gate a head.

    A_mem = phi(Q) M / (phi(Q) z)                                       phi = ELU + 1
    A     = sigmoid(beta) A_mem + (1 - sigmoid(beta)) A_window
    M'    = M + phi(K)^T (V - phi(K) M / (phi(K) z))                    the delta rule; linear: M + phi(K)^T V
    z'    = z + sum_t phi(K_t)

The projections are those of the window; queries and keys of the memory are without RoPE. A block's tokens see the
memory of the blocks before it. With memory segments, the memory also holds blocks of the window; the paper has none
(M = 0).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memories.base import Axes, Memory, State, Tokens, Weight, unrotated
from famjax.config import ModelConfig
from famjax.dims import Array, Float, Int, KeysValues, Queries


@dataclasses.dataclass(frozen=True)
class Infini(Memory):
    """State, float32: `matrix` M [B, K, H, H] and `normaliser` z [B, K, H], for each key/value head.

    Weight: `gate` beta [K * G], initially 0: half open, where the gradient of the sigmoid is largest. Gates that start
    closed, or that weight decay closes, do not learn.
    """

    @property
    def axes(self) -> dict[str, Axes]:
        """See `Memory`."""
        return {"matrix": ("batch", "kv_heads", None, "head_dim"), "normaliser": ("batch", "kv_heads", None)}

    def weights(self, model: ModelConfig) -> dict[str, Weight]:
        """`gate`, one per query head."""
        return {"gate": Weight((model.num_heads,), ("heads",))}

    def start(self, layer: LayerWeights, batch: int, dtype: Any) -> State:
        """Zeros: what is recalled from an empty memory is 0."""
        K, H = layer.key_shape
        return {"matrix": jnp.zeros((batch, K, H, H)), "normaliser": jnp.zeros((batch, K, H))}

    def attend(self, layer: LayerWeights, state: State, tokens: Tokens, heads: Queries) -> tuple[Queries, State]:
        """A = sigmoid(beta) A_mem + (1 - sigmoid(beta)) A_window from A_window (`heads`); the state is unchanged."""
        recalled = _recall(state, _phi(unrotated(layer, tokens.q, tokens.offset)))
        gate = jax.nn.sigmoid(layer.weights["memory"]["gate"]).reshape(heads.shape[1], heads.shape[2], 1, 1)
        return (gate * recalled + (1 - gate) * heads).astype(heads.dtype), state

    def full(self, layer: LayerWeights, state: State, kv: KeysValues, blocks_before: Int[Array, "B"]) -> State:
        """M' and z' after a block: the delta rule, or without `infini_delta` the linear update."""
        k, v = kv
        keys, values = _phi(unrotated(layer, k, jnp.arange(k.shape[-2]))), v.astype(jnp.float32)
        if layer.memory.infini_delta:
            values = values - _recall(state, keys[:, :, None])[:, :, 0]
        matrix = state["matrix"] + jnp.einsum("BKSI,BKSH->BKIH", keys, values)
        return {"matrix": matrix, "normaliser": state["normaliser"] + keys.sum(axis=-2)}

    def flops(self, model: ModelConfig) -> float:
        """See `Memory`: recall for each query head; for each key head recall and update."""
        return 2.0 * model.head_dim**2 * (model.num_heads + 2 * model.num_kv_heads)


def _phi(x: Float[Array, "... H"]) -> Float[Array, "... H"]:
    """ELU + 1, in float32: positive features."""
    return jax.nn.elu(x.astype(jnp.float32)) + 1


def _recall(state: State, features: Float[Array, "B K G Q H"]) -> Float[Array, "B K G Q H"]:
    """phi(Q) M / (phi(Q) z); 0 from an empty memory."""
    sums = jnp.einsum("BKGQI,BKIH->BKGQH", features, state["matrix"])
    total = jnp.einsum("BKGQI,BKI->BKGQ", features, state["normaliser"])[..., None]
    return sums / jnp.where(total > 0, total, 1.0)
