"""Sampling of tokens: pure functions on logits [B, V].

The PRNG key of a draw depends only on (seed, sample, position). So the text of a row depends neither on
the other rows of the batch nor on the number of tokens per device call.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.dims import Array, Float, Int, Key
from famjax.infer.settings import Sampling

# Logit of tokens that must not be sampled: its exp is zero.
EXCLUDED = -np.inf


class RowSampling(NamedTuple):
    """`Sampling` and seed of each row as arrays, for rows of different requests.

    Attributes:
      seed: uint32.
      sample: int32 sample index, for several samples of the same text.
      temperature: float32; 0 is greedy.
      top_k: int32; 0 allows all.
      top_p: float32; 1 allows all.
      repetition_penalty: float32; 1 disables it.
    """

    seed: Int[Any, "B"]
    sample: Int[Any, "B"]
    temperature: Float[Any, "B"]
    top_k: Int[Any, "B"]
    top_p: Float[Any, "B"]
    repetition_penalty: Float[Any, "B"]


def row_keys(
    seed: int | Int[Array, ""] | Int[Array, "B"], sample: Int[Array, "B"], position: Int[Array, "B"]
) -> Key[Array, "B"]:  # fmt: skip
    """Returns a PRNG key for each row and position.

    Args:
      seed: uint32, one for all rows or one per row.
      sample: sample index of each row, for several samples of the same text.
      position: position in the text of the token to sample.
    """
    key = lambda seed, sample, at: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), at)
    return jax.vmap(key)(jnp.broadcast_to(seed, sample.shape), sample, position)


def sample(
    logits: Float[Array, "B V"], recent: Int[Array, "B _N"], keys: Key[Array, "B"], sampling: Sampling
) -> Int[Array, "B"]:
    """Samples a token for each row; the repetition penalty applies to `recent`, in which negative ids are padding."""
    if sampling.repetition_penalty != 1.0:
        logits = penalise(logits, recent, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return logits.argmax(axis=-1).astype(jnp.int32)
    # The largest logit is shifted to 0 first, so that a tiny temperature cannot overflow.
    logits = (logits - logits.max(axis=-1, keepdims=True)) * _reciprocal(sampling.temperature)
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        logits = keep_top_p(logits, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def sample_rows(
    logits: Float[Array, "B V"], recent: Int[Array, "B _N"], position: Int[Array, "B"], sampling: RowSampling
) -> Int[Array, "B"]:
    """Samples the token at `position` in the text for each row, with settings that differ by row. Each row gets exactly
    the token of `sample`.

    A stage that no row needs (the sort for top-k and top-p, the penalty, the random draw) is skipped.
    """
    penalty = sampling.repetition_penalty
    inverse = _reciprocal(jnp.where(sampling.temperature > 0, sampling.temperature, 1))
    punished = lambda: penalise(logits, recent, penalty[:, None])
    logits = jax.lax.cond((penalty != 1).any(), punished, lambda: logits)
    best = logits.argmax(axis=-1).astype(jnp.int32)

    def drawn() -> Int[Array, "B"]:
        scaled = (logits - logits.max(axis=-1, keepdims=True)) * inverse[:, None]
        choosy = (sampling.top_k > 0) | (sampling.top_p < 1)
        least = lambda: _least_kept(scaled, sampling.top_k, sampling.top_p)
        least_B = jax.lax.cond(choosy.any(), least, lambda: jnp.full(len(scaled), EXCLUDED, scaled.dtype))
        kept = jnp.where(scaled >= least_B[:, None], scaled, EXCLUDED)
        keys = row_keys(sampling.seed, sampling.sample, position)
        return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)

    hot = sampling.temperature > 0
    return jnp.where(hot, jax.lax.cond(hot.any(), drawn, lambda: best), best)


def _least_kept(logits: Float[Array, "B V"], top_k: Int[Array, "B"], top_p: Float[Array, "B"]) -> Float[Array, "B"]:
    """Returns the smallest logit that `keep_top_p(keep_top_k(logits))` keeps in each row, from one sort."""
    V = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    k = jnp.where(top_k > 0, jnp.minimum(top_k, V), V)
    ordered = jnp.where(ordered >= jnp.take_along_axis(ordered, k[:, None] - 1, axis=-1), ordered, EXCLUDED)
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = ((before < top_p[:, None]) | (top_p >= 1)[:, None]).at[:, 0].set(True)
    return jnp.where(kept & (ordered > EXCLUDED), ordered, np.inf).min(axis=-1)


def _reciprocal(x: Any) -> Any:
    """Returns 1 / x in float32. XLA replaces division by a constant with this product, so all programs use it."""
    return np.float32(1) / (np.float32(x) if isinstance(x, float | int) else x)


def penalise(logits: Float[Array, "B V"], recent: Int[Array, "B _N"], penalty: Any) -> Float[Array, "B V"]:
    """Divides positive logits of recent tokens by `penalty`, and multiplies negative ones (CTRL, arXiv 1909.05858)."""
    B, V = logits.shape
    # Padding gets an out-of-range index, which the scatter drops.
    index = jnp.where(recent < 0, V, recent)
    seen = jnp.zeros((B, V), bool).at[np.arange(B)[:, None], index].set(True, mode="drop")
    return jnp.where(seen, jnp.where(logits > 0, logits * _reciprocal(penalty), logits * penalty), logits)


def keep_top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Excludes all but the k most likely tokens; ties with the last of them are kept."""
    best = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0]
    return jnp.where(logits >= best[:, -1:], logits, EXCLUDED)


def keep_top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Excludes all but the smallest set of most likely tokens with total probability p (arXiv 1904.09751).

    The most likely token is always kept, as are ties with the last one that is kept.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = (before < p).at[:, 0].set(True)
    least = jnp.where(kept, ordered, np.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, EXCLUDED)
