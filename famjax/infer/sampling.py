"""Sampling of tokens: pure functions on logits [B, V].

The PRNG key of a draw depends only on (seed, sample, position). So the text of a row depends neither on
the other rows of the batch nor on the number of tokens per device call.
"""

import jax
import jax.numpy as jnp
import numpy as np

from famjax.dims import Array, Float, Int, Key
from famjax.infer.settings import Sampling

# Never drawn: exp of it is zero.
EXCLUDED = -np.inf


def row_keys(
    seed: int | Int[Array, ""], sample: Int[Array, "B"], position: Int[Array, "B"]
) -> Key[Array, "B"]:  # fmt: skip
    """PRNG keys, one for each row and step.

    Args:
      seed: uint32.
      sample: which of several samples of the same text a row is.
      position: position in the text of the token to be drawn.
    """
    base = jax.random.key(seed)
    key = lambda sample, at: jax.random.fold_in(jax.random.fold_in(base, sample), at)
    return jax.vmap(key)(sample, position)


def sample(
    logits: Float[Array, "B V"], recent: Int[Array, "B _N"], keys: Key[Array, "B"], sampling: Sampling
) -> Int[Array, "B"]:
    """Samples a token for each row.

    Args:
      logits: float32 logits.
      recent: tokens to which the repetition penalty applies; negative for none.
      keys: from `row_keys`.
      sampling: sampling settings.
    """
    if sampling.repetition_penalty != 1.0:
        logits = penalise(logits, recent, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return logits.argmax(axis=-1).astype(jnp.int32)
    # The largest logit is shifted to 0 first, so that a tiny temperature cannot overflow.
    logits = (logits - logits.max(axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        logits = keep_top_p(logits, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def penalise(logits: Float[Array, "B V"], recent: Int[Array, "B _N"], penalty: float) -> Float[Array, "B V"]:
    """Scores of recent tokens divided by `penalty`, or multiplied where negative (CTRL, arXiv 1909.05858)."""
    B, V = logits.shape
    # What is no token gets an index outside, where a scatter drops it.
    index = jnp.where(recent < 0, V, recent)
    seen = jnp.zeros((B, V), bool).at[np.arange(B)[:, None], index].set(True, mode="drop")
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


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
