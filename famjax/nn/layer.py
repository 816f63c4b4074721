"""One Transformer layer as pure functions of its weights, and the modules that hold these weights."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from famjax.attention import memories, rope
from famjax.attention.attend import Scoring
from famjax.attention.memories.base import Weight
from famjax.config import LayerSettings, MemoryConfig, ModelConfig
from famjax.dims import Activations, Array, Float, Key, KeysValues, Offsets, Queries, Weights
from famjax.nn.lora import Lora, drop, low_rank

ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A pre-norm layer: attention, then feed-forward (paper section 2).

    Attributes:
      config: of the model.
      settings: settings of this layer, which may differ between layers.
      weights: the arrays of one layer, the subtree `layers` of a checkpoint without the axis L.
      key: PRNG key for dropout and noise on FAM; None outside of training.
    """

    config: ModelConfig
    settings: LayerSettings
    weights: Weights = dataclasses.field(default_factory=dict, compare=False)
    key: Key[Array, ""] | None = dataclasses.field(default=None, compare=False)

    @property
    def memory(self) -> MemoryConfig:
        """The memory's settings for this layer."""
        return self.settings.memory

    @property
    def scoring(self) -> Scoring:
        """How scores are computed from queries and keys."""
        return Scoring(self.settings.rope, self.config.attention_scale, self.config.attention_cap)

    @property
    def key_shape(self) -> tuple[int, int]:
        """(K, H): number of key/value heads, and head size."""
        return self.config.num_kv_heads, self.config.head_dim

    @property
    def gate(self) -> Float[Array, "K G 1 1"] | None:
        """See `LayerWeights.gate`; None in a layer without FAM or without a gate."""
        gate = self.weights.get("fam_gate")
        return None if gate is None else gate.reshape(-1, self.config.queries_per_kv, 1, 1)

    def without_arrays(self) -> "Layer":
        """The same layer without weights and key."""
        return Layer(self.config, self.settings)

    def with_arrays(self, weights: Weights, key: Key[Array, ""] | None = None) -> "Layer":
        """The same settings with these weights and this key. Arrays that this layer does not use, although others of a
        stack do, are left out, so that nothing is differentiated because of them."""
        used = {"lora": self.settings.lora, "fam_gate": self.memory.fam_length > 0}
        weights = {name: part for name, part in weights.items() if used.get(name, True)}
        return Layer(self.config, self.settings, weights, key)

    # --- attention --------------------------------------------------------------------------------

    def normed(self, x: Activations) -> Activations:
        """norm(x), the input of the projections."""
        return self._norm("attention_norm", x)

    def queries_keys_values(
        self, streams: tuple[Activations, ...], query_offsets: Offsets, key_offsets: Offsets
    ) -> tuple[Queries, KeysValues]:
        """QKV(norm(x)) of the rows of several streams in one product.

        Args:
          streams: arrays [..., Q_i, D], joined along Q after normalisation.
          query_offsets: [..., Q], positions of the queries, which are computed of the first Q rows.
          key_offsets: [..., C], positions of the keys, which are computed of the first C rows.

        Returns:
          Queries [..., K, G, Q, H] and keys [..., K, C, H], rotated by their offsets; values [..., K, C, H].
        """
        normed = _joined([self._norm("attention_norm", x) for x in streams])
        queries = self._queries(normed[..., : query_offsets.shape[-1], :], query_offsets)
        return queries, self._keys_values(normed[..., : key_offsets.shape[-1], :], key_offsets)

    def queries(self, x: Activations, offsets: Offsets) -> Queries:
        """Queries [..., K, G, Q, H], rotated by `offsets` [..., Q], of rows x [..., Q, D]."""
        return self._queries(self._norm("attention_norm", x), offsets)

    def keys_values(self, x: Activations, offsets: Offsets) -> KeysValues:
        """Keys, rotated by `offsets` [..., Q], and values [..., K, Q, H] of rows x [..., Q, D]."""
        return self._keys_values(self._norm("attention_norm", x), offsets)

    @jax.named_scope("projections")
    def _queries(self, normed: Activations, offsets: Offsets) -> Queries:
        q = self._project(normed, "query")
        if self.config.qk_norm:
            q = self._norm("attention/query_norm", q)
        q = jnp.swapaxes(rope.rotate(q, offsets[..., None], self.settings.rope), -3, -2)
        return q.reshape(*q.shape[:-3], -1, self.config.queries_per_kv, *q.shape[-2:])

    @jax.named_scope("projections")
    def _keys_values(self, normed: Activations, offsets: Offsets) -> KeysValues:
        k, v = self._project(normed, "key"), self._project(normed, "value")
        if self.config.qk_norm:
            k = self._norm("attention/key_norm", k)
        k = rope.rotate(k, offsets[..., None], self.settings.rope)
        return jnp.swapaxes(k, -3, -2), jnp.swapaxes(v, -3, -2)

    def _project(self, normed: Activations, name: str) -> Float[Array, "... Q heads H"]:
        """Norms and RoPE use this layout, and heads are moved before the tokens afterwards. If the projection moved
        them, the compiler would transpose whole arrays several times in the backward pass."""
        D, heads, H = self.weights["attention"][name].shape
        out = self._product("attention", name, normed.reshape(-1, D))
        return out.reshape(*normed.shape[:-1], heads, H)

    # --- output projection and feed-forward -------------------------------------------------------

    def finish(self, heads: Queries, residuals: tuple[Activations, ...]) -> tuple[Activations, ...]:
        """A = heads W_o + residual, then FF(norm(A)) + A (paper, Algorithm 2).

        Args:
          heads: attention's output [..., K, G, Q, H] for the rows of all streams, Q in all.
          residuals: the streams [..., Q_i, D], each in its own dtype: FAM is float32 with tokens in bfloat16.

        Returns:
          The layer's output for each stream, in its shape and dtype.
        """
        by_token = jnp.moveaxis(heads, -2, -4)
        # Output projection.
        with jax.named_scope("projections"):
            attended = self._product("attention", "output", by_token.reshape(-1, *by_token.shape[-3:]))
        if self.config.post_norms:
            attended = self._norm("post_attention_norm", attended)
        attended = attended.reshape(*by_token.shape[:-3], -1)
        sums = [x + part.astype(x.dtype) for x, part in _beside(residuals, attended)]
        # Feed-forward.
        name, inputs = ("attention_norm", residuals) if self.config.parallel_layers else ("ff_norm", sums)
        forward = self._feed_forward(_joined([self._norm(name, x) for x in inputs]))
        if self.config.post_norms:
            forward = self._norm("post_ff_norm", forward)
        return tuple(a + part.astype(a.dtype) for a, part in _beside(sums, forward))

    @jax.named_scope("feed_forward")
    def _feed_forward(self, x: Activations) -> Activations:
        """down(act(gate x) * up x), or down(act(up x)) without a gate."""
        act = ACTIVATION_FUNCTIONS[self.config.activation]
        rows = x.reshape(-1, x.shape[-1])
        up = self._product("feed_forward", "up", rows)
        hidden = act(self._product("feed_forward", "gate", rows)) * up if self.config.gated_ff else act(up)
        return self._product("feed_forward", "down", hidden).reshape(x.shape)

    # --- products and norms -----------------------------------------------------------------------

    def _product(self, group: str, name: str, x: Float[Array, "rows ..."]) -> Float[Array, "rows out"]:
        """x [rows, in...] times a weight, plus what LoRA and a bias add to it."""
        weight, dtype = self.weights[group][name], self.config.dtype
        x = x.reshape(len(x), -1)
        out = x @ weight.astype(dtype).reshape(x.shape[-1], -1)
        if pair := self.weights.get("lora", {}).get(name):
            dropped = x
            if self.key is not None and self.config.lora.dropout:
                dropped = drop(x, name, key=self.key, rate=self.config.lora.dropout)
            out = out + low_rank(pair, dropped, self.config.lora.scale)
        bias = self.weights[group].get(f"{name}_bias")
        if bias is None:
            return out
        # Added in float32, which changes no bit of the sum, so that the gradient of the bias is summed in float32.
        wide = lambda x: x.astype(jnp.float32)
        return (wide(out) + wide(bias.astype(dtype)).reshape(-1)).astype(dtype)

    def _norm(self, path: str, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        weights = self.weights
        for part in path.split("/"):
            weights = weights[part]
        # Norms of heads have no mean to subtract.
        kind = "rmsnorm" if path.startswith("attention/") else self.config.norm
        return norm(x, weights["scale"], kind, self.config)


def norm(x: Float[Array, "... D"], scale: Float[Array, "D"], kind: str, config: ModelConfig) -> Float[Array, "... D"]:
    """RMSNorm, or with kind `layernorm` LayerNorm without bias, over the last axis. Computed in float32, returned in
    the compute dtype. The factor is `scale`, or 1 + `scale` with `norm_plus_one`."""
    x = x.astype(jnp.float32)
    if kind == "layernorm":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + config.norm_eps)
    scale = scale.astype(jnp.float32)
    return (x * (1 + scale if config.norm_plus_one else scale)).astype(config.dtype)


def _joined(parts: list[Activations]) -> Activations:
    """Along the rows Q."""
    return jnp.concatenate(parts, axis=-2) if len(parts) > 1 else parts[0]


def _beside(streams: Sequence[Activations], joined: Activations) -> list[tuple[Activations, Activations]]:
    """Each stream with its own part of the joined rows."""
    ends = [0]
    for x in streams:
        ends.append(ends[-1] + x.shape[-2])
    return [(x, joined[..., a:b, :]) for x, a, b in zip(streams, ends, ends[1:], strict=False)]


# --- modules that hold weights --------------------------------------------------------------------
#
# Each takes `stack`, axes that come before a weight's own: () for one layer, (L,) for all layers stacked. Weights
# carry the names of their axes (`axes`), which `mesh/sharding.py` maps onto a mesh.


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: tuple[str, ...], dtype: str, stack: tuple[int, ...] = ()
) -> nnx.Param[Array]:
    """A weight [*stack, *shape] with normal initial values of standard deviation `std`.

    Args:
      rngs: its stream `params` is used.
      shape: of one layer.
      std: see above.
      axes: the names of the axes of `shape`.
      dtype: of the weight; values are drawn in float32.
      stack: leading axes, () or (L,).
    """
    value = std * jax.random.normal(rngs.params(), stack + shape, jnp.float32)
    return nnx.Param(value.astype(dtype), axes=("layers",) * len(stack) + axes)


def bias(shape: tuple[int, ...], axes: tuple[str, ...], dtype: str, stack: tuple[int, ...] = ()) -> nnx.Param[Array]:
    """A trained bias [*stack, *shape], initially 0; arguments as for `weight`."""
    return nnx.Param(jnp.zeros(stack + shape, dtype), axes=("layers",) * len(stack) + axes)


class NormWeights(nnx.Module):
    """`scale` [size] of a norm."""

    def __init__(self, config: ModelConfig, size: int, axis: str = "embed", stack: tuple[int, ...] = ()):
        start = jnp.zeros if config.norm_plus_one else jnp.ones
        self.scale = nnx.Param(start((*stack, size), config.param_dtype), axes=("layers",) * len(stack) + (axis,))


class FeedForwardWeights(nnx.Module):
    """`up` [D, E], `down` [E, D], `gate` [D, E] if gated, and biases if configured."""

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


class AttentionWeights(nnx.Module):
    """`query` [D, heads, H], `key` and `value` [D, kv_heads, H], `output` [heads, H, D]; biases, and norms of queries
    and keys, if configured."""

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
            self.query_norm = NormWeights(config, H, "head_dim", stack)
            self.key_norm = NormWeights(config, H, "head_dim", stack)


class AddedWeights(nnx.Module):
    """The weights of a memory, by name (`memories/base.py` `Weight`). Always float32, since they are also trained when
    all other weights are frozen in bfloat16."""

    def __init__(self, added: dict[str, Weight], rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        for name, (shape, axes, std, mean) in added.items():
            value = jnp.full(stack + shape, mean, jnp.float32)
            if std:
                value += std * jax.random.normal(rngs.memory(), stack + shape, jnp.float32)
            setattr(self, name, nnx.Param(value, axes=("layers",) * len(stack) + axes))


class LayerParams(nnx.Module):
    """The weights of one layer, or of all layers with `stack=(L,)`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        self.attention_norm = NormWeights(config, config.d_model, stack=stack)
        self.attention = AttentionWeights(config, rngs, stack)
        if not config.parallel_layers:
            self.ff_norm = NormWeights(config, config.d_model, stack=stack)
        if config.post_norms:
            self.post_attention_norm = NormWeights(config, config.d_model, stack=stack)
            self.post_ff_norm = NormWeights(config, config.d_model, stack=stack)
        self.feed_forward = FeedForwardWeights(config, rngs, stack)
        if added := memories.weights(config):
            self.memory = AddedWeights(added, rngs, stack)
        if config.lora.rank:
            self.lora = Lora(config, rngs, stack)


def axes_of(weights: nnx.State[Any, Any]) -> dict[str, Any]:
    """The names of each weight's axes, tuples in a plain nested dict of the weights' structure."""
    named = jax.tree.map(lambda leaf: leaf.axes, weights, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return nnx.to_pure_dict(named)
