"""THE attention call: queries against several sources of keys, under one softmax.

A query of a block sees memory segments, FAM and its own block. Joining their keys into one array
would copy every key M + 1 times; instead each source is scored where it lies and the softmax runs
over all of them.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from famjax.attention import rope

# Large enough to give exactly zero after exp, small enough never to become inf - inf.
HIDDEN = -1e30


class Source(NamedTuple):
    """Keys and values that queries may see.

    Attributes:
      k: [..., K, C, H], turned (RoPE) by their offsets within their own block.
      v: [..., K, C, H].
      visible: bool, broadcast to [..., K, G, Q, C]; None where every query sees every key.
      distance: tokens from the origin of these keys to the origin of the queries: a number, or an
        array [...] where rows differ.
    """

    k: Any
    v: Any
    visible: Any = None
    distance: Any = 0


def _meet(q_KGQH: Any, source: Source, rope_base: float) -> tuple[Any, Any]:
    """Turns the queries, or the keys if they are fewer, by the distance between the two blocks."""
    distance = source.distance
    if isinstance(distance, (int, float)):
        if distance == 0:
            return q_KGQH, source.k
        lead: Any = distance
    else:
        lead = distance[..., None, None]
    if q_KGQH.size <= source.k.size:
        ahead = lead if isinstance(lead, (int, float)) else lead[..., None]
        return rope.turn(q_KGQH, ahead, rope_base), source.k
    return q_KGQH, rope.turn(source.k, -lead, rope_base)


def attend(q_KGQH: Any, sources: list[Source], rope_base: float) -> Any:
    """softmax(q k / sqrt(H)) v over the keys of all sources together (paper section 2).

    Args:
      q_KGQH: [..., K, G, Q, H], turned by their offsets within their block. K key/value heads of G
        query heads each: multi-head is G = 1, multi-query K = 1.
      sources: see `Source`; leading axes broadcast against the queries'.
      rope_base: RoPE's base, for the distance between blocks.

    Returns:
      [..., K, G, Q, H] in the queries' dtype. Scores and softmax are float32. A query that sees no
      key gets finite values without meaning (padding only).
    """
    scale = 1.0 / math.sqrt(q_KGQH.shape[-1])
    scores = []
    for source in sources:
        q, k = _meet(q_KGQH, source, rope_base)
        s = jnp.einsum("...KGQH,...KCH->...KGQC", q * scale, k, preferred_element_type=jnp.float32)
        scores.append(s if source.visible is None else jnp.where(source.visible, s, HIDDEN))
    top = scores[0].max(axis=-1, keepdims=True)
    for s in scores[1:]:
        top = jnp.maximum(top, s.max(axis=-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    total: Any = 0.0
    weighted: Any = 0.0
    for source, s in zip(sources, scores, strict=True):
        p = jnp.exp(s - top)
        total = total + p.sum(axis=-1, keepdims=True)
        weighted = weighted + jnp.einsum(
            "...KGQC,...KCH->...KGQH", p.astype(source.v.dtype), source.v, preferred_element_type=jnp.float32
        )
    return (weighted / total).astype(q_KGQH.dtype)
