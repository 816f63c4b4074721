"""One Transformer layer: the weights behind `attention.memory.LayerWeights`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from famjax.attention import rope
from famjax.attention.attend import Scoring
from famjax.config import LayerSettings, ModelConfig
from famjax.nn.layers import FeedForward, Norm, bias, weight
from famjax.nn.lora import Lora, drop

# Folded into a layer's key, for the noise on FAM.
NOISE = 409173


class Attention(nnx.Module):
    """Projections to queries, keys and values by head, and back."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        D, H, dtype = config.d_model, config.head_dim, config.param_dtype
        heads, kv_heads = config.num_heads, config.num_kv_heads
        residual_scale = (2 * config.num_layers) ** -0.5
        in_std, out_std = D**-0.5, (heads * H) ** -0.5 * residual_scale
        self.query = weight(rngs, (D, heads, H), in_std, ("embed", "heads", "head_dim"), dtype, stack)
        self.key = weight(rngs, (D, kv_heads, H), in_std, ("embed", "kv_heads", "head_dim"), dtype, stack)
        self.value = weight(rngs, (D, kv_heads, H), in_std, ("embed", "kv_heads", "head_dim"), dtype, stack)
        self.output = weight(rngs, (heads, H, D), out_std, ("heads", "head_dim", "embed"), dtype, stack)
        if config.qkv_bias:
            self.query_bias = bias((heads, H), ("heads", "head_dim"), dtype, stack)
            self.key_bias = bias((kv_heads, H), ("kv_heads", "head_dim"), dtype, stack)
            self.value_bias = bias((kv_heads, H), ("kv_heads", "head_dim"), dtype, stack)
        if config.output_bias:
            self.output_bias = bias((D,), ("embed",), dtype, stack)
        if config.qk_norm:
            self.query_norm = Norm(config, H, "head_dim", stack, kind="rmsnorm")
            self.key_norm = Norm(config, H, "head_dim", stack, kind="rmsnorm")


class Block(nnx.Module):
    """Pre-norm attention and feed-forward. Its methods are what the memory asks of a layer.

    With `stack=(L,)` it only holds the weights of all layers; `nn/model.py` calls it layer by layer, and
    tells each layer what is special about it (`take`).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        self.attention_norm = Norm(config, config.d_model, stack=stack)
        self.attention = Attention(config, rngs, stack)
        if not config.parallel_layers:
            self.ff_norm = Norm(config, config.d_model, stack=stack)
        if config.post_norms:
            self.post_attention_norm = Norm(config, config.d_model, stack=stack)
            self.post_ff_norm = Norm(config, config.d_model, stack=stack)
        self.feed_forward = FeedForward(config, rngs, stack)
        if config.lora.rank:
            self.lora = Lora(config, rngs, stack)
        self.dropout = config.lora.dropout
        self.scale, self.cap = config.attention_scale, config.attention_cap
        self.take(config.layer(0))
        self.qk_norm = config.qk_norm
        self.post_norms, self.parallel = config.post_norms, config.parallel_layers
        self.queries_per_kv = config.queries_per_kv
        self.dtype = config.dtype

    def take(self, settings: LayerSettings, key: Any = None) -> None:
        """Makes this the layer that these settings describe; with a random key, one in training: LoRA's inputs are
        dropped out, FAM gets its noise."""
        self.scoring = Scoring(settings.rope, self.scale, self.cap)
        self.memory = settings.memory
        self.drop = functools.partial(drop, key=key, rate=self.dropout) if key is not None and self.dropout else None
        self.noise_key = None if key is None else jax.random.fold_in(key, NOISE)

    def queries(self, x: Any, offsets: Any) -> Any:
        """x [..., Q, D] to queries [..., K, G, Q, H], turned by `offsets` [..., Q]."""
        return self._queries(self.attention_norm(x), offsets)

    def keys_values(self, x: Any, offsets: Any) -> tuple[Any, Any]:
        """x [..., Q, D] to keys (turned by `offsets`) and values, each [..., K, Q, H]."""
        return self._keys_values(self.attention_norm(x), offsets)

    def queries_keys_values(self, x: Any, offsets: Any) -> tuple[Any, Any, Any]:
        """`queries` and `keys_values` of the same x."""
        normed = self.attention_norm(x)
        return self._queries(normed, offsets), *self._keys_values(normed, offsets)

    def finish(self, heads: Any, residual: Any) -> Any:
        """Heads [..., K, G, Q, H] and residual [..., Q, D] to the layer's output (paper section 2)."""
        kernel = self.attention.output[...].astype(self.dtype)
        kernel = kernel.reshape(-1, kernel.shape[-1])
        by_token = jnp.moveaxis(heads, -2, -4).reshape(-1, kernel.shape[0])
        x = residual.reshape(-1, kernel.shape[1])
        with jax.named_scope("projections"):
            attended = self._with_lora(by_token @ kernel, by_token, "output")
        if hasattr(self.attention, "output_bias"):
            attended = attended + self.attention.output_bias[...].astype(self.dtype)
        if self.post_norms:
            attended = self.post_attention_norm(attended)
        a = x + attended.astype(x.dtype)
        with jax.named_scope("feed_forward"):
            forward = self.feed_forward(self.attention_norm(x) if self.parallel else self.ff_norm(a), self._with_lora)
            if self.post_norms:
                forward = self.post_ff_norm(forward)
        return (a + forward.astype(a.dtype)).reshape(residual.shape)

    @jax.named_scope("projections")
    def _queries(self, normed: Any, offsets: Any) -> Any:
        q = self._project(normed, "query")
        if self.qk_norm:
            q = self.attention.query_norm(q)
        q = jnp.swapaxes(rope.turn(q, offsets[..., None], self.scoring.rope), -3, -2)
        return q.reshape(*q.shape[:-3], -1, self.queries_per_kv, *q.shape[-2:])

    @jax.named_scope("projections")
    def _keys_values(self, normed: Any, offsets: Any) -> tuple[Any, Any]:
        k, v = self._project(normed, "key"), self._project(normed, "value")
        if self.qk_norm:
            k = self.attention.key_norm(k)
        k = rope.turn(k, offsets[..., None], self.scoring.rope)
        return jnp.swapaxes(k, -3, -2), jnp.swapaxes(v, -3, -2)

    def _project(self, normed: Any, name: str) -> Any:
        """[..., Q, D] to [..., Q, heads, H], by the projection of this name.

        Norms and RoPE run on this layout, and heads move in front of the tokens last: moved by the
        projection itself, the compiler turns whole arrays several times in the backward pass.
        """
        kernel = getattr(self.attention, name)
        D, heads, H = kernel.shape
        x = normed.reshape(-1, D)
        out = self._with_lora(x @ kernel[...].astype(self.dtype).reshape(D, heads * H), x, name)
        out = out.reshape(*normed.shape[:-1], heads, H)
        added = getattr(self.attention, f"{name}_bias", None)
        return out if added is None else out + added[...].astype(self.dtype)

    def _with_lora(self, out: Any, x: Any, name: str) -> Any:
        """What a projection made of x [..., in], out [..., out], and what LoRA adds to it, where it has a pair."""
        pair = getattr(self.lora, name, None) if hasattr(self, "lora") else None
        if pair is None:
            return out
        return out + pair(x if self.drop is None else self.drop(x, name))
