"""From scores to a token: pure functions on logits [B, V].

A row draws with a key made of (seed, sample, position) alone. So its text depends neither on the
rows beside it nor on how many tokens a call to the device makes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famjax.infer.settings import Sampling

# Never drawn: exp of it is zero.
EXCLUDED = -np.inf


def row_keys(seed: Any, sample_B: Any, position_B: Any) -> Any:
    """PRNG keys [B], one for each row and step.

    Args:
      seed: uint32.
      sample_B: int32, which of several samples of the same text a row is.
      position_B: int32, position in the text of the token to be drawn.
    """
    base = jax.random.key(seed)
    return jax.vmap(lambda sample, at: jax.random.fold_in(jax.random.fold_in(base, sample), at))(sample_B, position_B)


def sample(logits_BV: Any, recent_BN: Any, keys_B: Any, sampling: Sampling) -> Any:
    """Draws a token for each row, int32 [B].

    Args:
      logits_BV: float32 scores.
      recent_BN: int32, tokens that the repetition penalty concerns; negative where there is none.
      keys_B: of `row_keys`.
      sampling: how to draw.
    """
    if sampling.repetition_penalty != 1.0:
        logits_BV = penalise(logits_BV, recent_BN, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return logits_BV.argmax(axis=-1).astype(jnp.int32)
    # The best score becomes 0 first, so that a tiny temperature cannot overflow.
    logits_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_k:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p < 1.0:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def penalise(logits_BV: Any, recent_BN: Any, penalty: float) -> Any:
    """Scores of recent tokens divided by `penalty`, or multiplied where negative (CTRL, arXiv 1909.05858)."""
    B, V = logits_BV.shape
    # What is no token gets an index outside, where a scatter drops it.
    index_BN = jnp.where(recent_BN < 0, V, recent_BN)
    seen_BV = jnp.zeros((B, V), bool).at[np.arange(B)[:, None], index_BN].set(True, mode="drop")
    return jnp.where(seen_BV, jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def keep_top_k(logits_BV: Any, k: int) -> Any:
    """Excludes all but the k best tokens; those that tie with the last of them stay."""
    best_BK = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0]
    return jnp.where(logits_BV >= best_BK[:, -1:], logits_BV, EXCLUDED)


def keep_top_p(logits_BV: Any, p: float) -> Any:
    """Excludes all but the smallest set of best tokens whose probabilities reach p (arXiv 1904.09751).

    The best token always stays; so do those that tie with the last that stays.
    """
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    kept_BV = (before_BV < p).at[:, 0].set(True)
    least_B1 = jnp.where(kept_BV, sorted_BV, np.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, EXCLUDED)
