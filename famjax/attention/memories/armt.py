"""Associative Recurrent Memory Transformer (arXiv 2407.04841): a matrix for each layer, into which memory tokens write.

Every block is followed by the same n learned memory tokens. In layer l, with the outputs m_i of the block's memory
tokens, after the block:

    x'    = x + A phi(W_q x) / (z phi(W_q x))           the layer's input, of every row of the next block
    k, v  = phi(W_k m_i), W_v m_i                       beta = sigmoid(W_b m_i)
    A'    = A + sum_i beta (v - A k / (z k)) k^T        the delta rule
    z'    = z + sum_i gamma k,                          gamma = 1 - z k / |k|^2, which counts no key twice

phi is DPFP-3, 6 numbers for each one of a query or key: with r = relu([x, -x]) the products of r and r rolled by 1, 2
and 3. As in the authors' code gamma stays between 0 and 1, and what is divided by is at least 1e-5; unlike there,
gradients reach through gamma. Nothing passes from a layer to another block's lower layer, so a text is read layer by
layer (`nn/appended.py`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memories.base import Axes, Memory, State, Weight, attention_of_memory_tokens, products_of_row
from famjax.config import MemoryConfig, ModelConfig
from famjax.dims import Array, Float

ROLLS = 3
EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Armt(Memory):
    """State, float32: `matrix` A [B, 6 k, D], keys first, and `normaliser` z [B, 6 k], k = `memory_key_dim`.

    Weights: `memory/tokens` [n, D]; in every layer `query`, `key` [D, k], `value` [D, D], 0 at first, so that a model
    starts as the one without the matrix, and `beta` [D].
    """

    takes_outputs = True

    @property
    def axes(self) -> dict[str, Axes]:
        """See `Memory`."""
        return {"matrix": ("batch", None, None), "normaliser": ("batch", None)}

    def weights(self, model: ModelConfig) -> dict[str, Weight]:
        """See the class."""
        D, k, std = model.d_model, model.memory.memory_key_dim, model.d_model**-0.5
        return {
            "query": Weight((D, k), ("embed", None), std), "key": Weight((D, k), ("embed", None), std),
            "value": Weight((D, D), ("embed", None)), "beta": Weight((D,), ("embed",), std),
        }  # fmt: skip

    def model_weights(self, model: ModelConfig) -> dict[str, Weight]:
        """`tokens` [n, D], the memory tokens after every block."""
        return {"tokens": Weight((model.memory.memory_tokens, model.d_model), ("fam", "embed"), model.embedding_std)}

    def tokens_after(self, config: MemoryConfig) -> int:
        """n, the number of memory tokens after every block."""
        return config.memory_tokens

    def in_layers(self, config: MemoryConfig) -> MemoryConfig:
        """Blocks of S + n positions: a block with its memory tokens."""
        return dataclasses.replace(config, block_size=config.block_size + config.memory_tokens)

    def start(self, layer: LayerWeights, batch: int, dtype: Any) -> State:
        """Zeros: what is recalled from an empty memory is 0."""
        k, D = layer.weights["memory"]["query"].shape[-1], layer.weights["memory"]["query"].shape[-2]
        return {"matrix": jnp.zeros((batch, 2 * ROLLS * k, D)), "normaliser": jnp.zeros((batch, 2 * ROLLS * k))}

    def enter(self, layer: LayerWeights, state: State, x: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        """x' = x + A phi(W_q x) / (z phi(W_q x)), in x's dtype."""
        recalled, _ = _recall(state, dpfp(_times(x, layer.weights["memory"]["query"])))
        return x + recalled.astype(x.dtype)

    def leave(self, layer: LayerWeights, state: State, y: Float[Array, "B Q D"]) -> State:
        """A' and z', by the delta rule from the memory tokens, the last n rows of y."""
        added, m = layer.weights["memory"], y[:, -layer.memory.memory_tokens :]
        keys, values = dpfp(_times(m, added["key"])), _times(m, added["value"])
        beta = jax.nn.sigmoid(_times(m, added["beta"][:, None]))
        recalled, seen = _recall(state, keys)
        gamma = jnp.clip(1 - seen / (jnp.square(keys).sum(axis=-1, keepdims=True) + EPS), 0, 1)
        matrix = state["matrix"] + jnp.einsum("BnP,BnD->BPD", keys, beta * (values - recalled))
        return {"matrix": matrix, "normaliser": state["normaliser"] + (gamma * keys).sum(axis=1)}

    def flops(self, model: ModelConfig) -> float:
        """See `Memory`: a read for each row, a read and a write for each memory token, and the memory tokens' products
        with the layer's weights and attention. `key`, `value` and `beta` apply to memory tokens only, but `weights` are
        counted for every token; the difference is subtracted."""
        D, k, memory = model.d_model, model.memory.memory_key_dim, model.memory
        share = memory.memory_tokens / memory.block_size
        matrix = 2 * ROLLS * k * D * (1 + 3 * share)
        products = matrix + share * (products_of_row(model) + D * k) - (1 - share) * D * (k + D + 1)
        return 2.0 * products + attention_of_memory_tokens(model, memory.memory_tokens)


def dpfp(x: Float[Array, "... k"]) -> Float[Array, "... P"]:
    """Deterministic parameter-free projection (arXiv 2102.11174) with 3 rolls: [..., 6 k], not negative."""
    r = jax.nn.relu(jnp.concatenate([x, -x], axis=-1))
    return jnp.concatenate([r * jnp.roll(r, j, axis=-1) for j in range(1, ROLLS + 1)], axis=-1)


def _times(x: Float[Array, "B Q D"], weight: Float[Array, "D k"]) -> Float[Array, "B Q k"]:
    """A product of operands in the activations' dtype, accumulated in float32."""
    return jnp.einsum("BQD,Dk->BQk", x, weight.astype(x.dtype), preferred_element_type=jnp.float32)


def _recall(state: State, features: Float[Array, "B Q P"]) -> tuple[Float[Array, "B Q D"], Float[Array, "B Q 1"]]:
    """A phi / (z phi), and z phi."""
    seen = jnp.einsum("BQP,BP->BQ", features, state["normaliser"])[..., None] + EPS
    return jnp.einsum("BQP,BPD->BQD", features, state["matrix"]) / seen, seen
