"""Gated delta rule (Gated DeltaNet, arXiv 2412.06464): a matrix for each key head that every token reads and rewrites.

    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    o_t = S_t^T q_t

alpha_t in (0, 1) decays the matrix; beta_t in (0, 1) is the fraction of the value stored for k_t that v_t replaces.
Queries, keys and values are those of the window, without RoPE; queries and keys are scaled to length 1. alpha and beta
are computed from the layer's normalised input as in the paper:

    alpha_t = exp(-exp(rate) softplus(x_t W_alpha + bias)),    beta_t = sigmoid(x_t W_beta)

Each head's output is A = A_window + gate RMSNorm(o). The paper's short convolutions are left out, since the window
covers the same tokens. A block is computed in chunks, in decoding one token at a time, by the same equations.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memories.base import Axes, Memory, State, Tokens, Weight, unrotated
from famjax.config import ModelConfig
from famjax.dims import Array, Float, Queries

# Number of tokens that are computed together. Chunks of 1 are the recurrence itself.
CHUNK = 64
NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class DeltaNet(Memory):
    """State, float32: `matrix` S [B, K, H, H], keys first, for each key/value head.

    Weights: `alpha`, `beta` [D, K]; `rate`, `bias` [K], initialised so that a matrix decays by half in about a hundred
    tokens; `gate` [K * G], initially 0.5.
    """

    @property
    def axes(self) -> dict[str, Axes]:
        """See `Memory`."""
        return {"matrix": ("batch", "kv_heads", None, "head_dim")}

    def weights(self, model: ModelConfig) -> dict[str, Weight]:
        """See the class."""
        D, K = model.d_model, model.num_kv_heads
        projection = Weight((D, K), ("embed", "kv_heads"), D**-0.5)
        per_head = Weight((K,), ("kv_heads",))
        return {
            "alpha": projection, "beta": projection, "rate": per_head,
            "bias": per_head._replace(std=1.0, mean=-5.0),
            "gate": Weight((model.num_heads,), ("heads",), mean=0.5),
        }  # fmt: skip

    def start(self, layer: LayerWeights, batch: int, dtype: Any) -> State:
        """Zeros."""
        K, H = layer.key_shape
        return {"matrix": jnp.zeros((batch, K, H, H))}

    def attend(self, layer: LayerWeights, state: State, tokens: Tokens, heads: Queries) -> tuple[Queries, State]:
        """A = A_window + gate RMSNorm(o) from A_window (`heads`), and S after the last real token. Padding neither
        decays nor writes."""
        added = layer.weights["memory"]
        q, k = (_unit(unrotated(layer, x, tokens.offset)) for x in (tokens.q, tokens.kv[0]))
        x = layer.normed(tokens.x)
        project = lambda name: jnp.einsum(
            "BQD,DK->BKQ", x, added[name].astype(x.dtype), preferred_element_type=jnp.float32
        )
        per_head = lambda name: added[name][:, None]
        log_alpha = -jnp.exp(per_head("rate")) * jax.nn.softplus(project("alpha") + per_head("bias"))
        # Padding neither forgets nor writes.
        real = (np.arange(x.shape[1]) < tokens.real[:, None])[:, None]
        log_alpha, beta = jnp.where(real, log_alpha, 0.0), jnp.where(real, jax.nn.sigmoid(project("beta")), 0.0)
        out, matrix = delta_rule(q, k, tokens.kv[1].astype(jnp.float32), log_alpha, beta, state["matrix"])
        out = out * jax.lax.rsqrt(jnp.square(out).mean(axis=-1, keepdims=True) + NORM_EPS)
        gate = added["gate"].reshape(heads.shape[1], heads.shape[2], 1, 1)
        return (heads + gate * out).astype(heads.dtype), {"matrix": matrix}

    def flops(self, model: ModelConfig) -> float:
        """See `Memory`: a read for each query head; for each key head a read and a write."""
        return 2.0 * model.head_dim**2 * (model.num_heads + 2 * model.num_kv_heads)


def _unit(x: Float[Array, "... H"]) -> Float[Array, "... H"]:
    """Scaled to length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-6)


def delta_rule(
    q: Float[Array, "B K G Q H"], k: Float[Array, "B K Q H"], v: Float[Array, "B K Q H"],
    log_alpha: Float[Array, "B K Q"], beta: Float[Array, "B K Q"], matrix: Float[Array, "B K H H"], chunk: int = CHUNK,
) -> tuple[Float[Array, "B K G Q H"], Float[Array, "B K H H"]]:  # fmt: skip
    """The recurrence over Q tokens (see the module), `chunk` of them at a time; all in float32.

    Args:
      q, k, v: queries and keys of length 1, values.
      log_alpha, beta: log alpha_t and beta_t; a token with 0 and 0 leaves the matrix unchanged.
      matrix: S before the first token.
      chunk: number of tokens that are computed together; 1 is the recurrence token by token.

    Returns:
      o_t of every token, and S after the last.
    """
    Q = k.shape[2]
    chunk = min(chunk, Q)
    padding = -Q % chunk

    def cut(x: Array, axis: int) -> Array:
        """[..., Q, ...] to [N, ..., chunk, ...]; what is filled in leaves the matrix as it is."""
        x = jnp.pad(x, [(0, padding if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :]), axis, 0)

    xs = cut(q, 3), cut(k, 2), cut(v, 2), cut(log_alpha, 2), cut(beta, 2)
    if chunk == Q:
        matrix, out = _chunk(matrix, tuple(x[0] for x in xs))
        return out, matrix
    matrix, outs = jax.lax.scan(_chunk, matrix, xs)
    out = jnp.moveaxis(outs, 0, 3)
    return out.reshape(*out.shape[:3], -1, out.shape[-1])[..., :Q, :], matrix


def _chunk(matrix: Float[Array, "B K H H"], tokens: tuple[Array, ...]) -> tuple[Array, Array]:
    """One chunk: with gamma_t = alpha_1 .. alpha_t, token t writes k_t u_t^T, where

    u_t = beta_t (v_t - gamma_t S_0^T k_t - sum_{i<t} gamma_t / gamma_i (k_i k_t) u_i),

    a triangular system in u; then S_t = gamma_t S_0 + sum_{i<=t} gamma_t / gamma_i k_i u_i^T.
    """
    q, k, v, log_alpha, beta = tokens
    C = k.shape[2]
    log_gamma = jnp.cumsum(log_alpha, axis=-1)
    gamma = jnp.exp(log_gamma)[..., None]
    # gamma_t / gamma_i where i <= t, else 0; masked before exp, so that nothing overflows.
    up_to = np.tril(np.ones((C, C), bool))
    share = jnp.exp(jnp.where(up_to, log_gamma[..., :, None] - log_gamma[..., None, :], -jnp.inf))
    # What each token writes.
    between = jnp.einsum("BKTH,BKIH->BKTI", k, k) * share * np.tril(np.ones((C, C), np.float32), -1)
    held = jnp.einsum("BKTH,BKHV->BKTV", k, matrix)
    system = jnp.eye(C) + beta[..., None] * between
    u = jax.scipy.linalg.solve_triangular(system, beta[..., None] * (v - gamma * held), lower=True, unit_diagonal=True)
    # What each reads: itself included.
    of_chunk = jnp.einsum("BKGTH,BKIH->BKGTI", q, k) * share[:, :, None]
    out = gamma[:, :, None] * jnp.einsum("BKGTH,BKHV->BKGTV", q, matrix) + jnp.einsum("BKGTI,BKIV->BKGTV", of_chunk, u)
    last = share[..., -1, :, None]
    return gamma[..., -1:, :] * matrix + jnp.einsum("BKIH,BKIV->BKHV", last * k, u), out
