"""Attention of queries to several sources of keys under one softmax (paper section 2; section 3 for blocks).

A query of a block sees memory segments, FAM and its own block. Concatenating their keys would copy every key M + 1
times. Instead each source is scored in place, and the softmax runs over the scores of all of them.
"""

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import rope
from famjax.config import Rope
from famjax.dims import Array, Averaged, Float, Keys, Queries, Rows, Tree, Values

# Large enough to give exactly zero after exp, small enough never to become inf - inf.
HIDDEN = -1e30

Visible: TypeAlias = Array | np.ndarray | None


class Source(NamedTuple):
    """Keys and values that queries may see.

    Attributes:
      k: rotated (RoPE) by their offsets within their own block.
      v: values.
      visible: bool, broadcast to [..., K, G, Q, C]; None if every query sees every key.
      distance: number of tokens from the first token of the keys' block to that of the queries' block: a number, or
        an array [...] of the leading axes if rows differ.
    """

    k: Keys
    v: Values
    visible: Visible = None
    distance: Array | np.ndarray | int = 0


class Scoring(NamedTuple):
    """How scores are computed from queries and keys.

    Attributes:
      rope: RoPE, for the distance between blocks; a number is a base without scaling.
      scale: factor of the product of query and key; 0 is 1 / sqrt(H).
      cap: scores become cap * tanh(score / cap), Gemma 2's soft cap; 0 is no cap.
    """

    rope: Rope | float
    scale: float = 0.0
    cap: float = 0.0


def _scaled(q: Queries, scoring: Scoring) -> Queries:
    return q * (scoring.scale or 1.0 / math.sqrt(q.shape[-1]))


def _meet(q: Queries, source: Source, rope_settings: Rope | float) -> tuple[Queries, Keys]:
    """Rotates the queries, or the keys if they are fewer, by the distance between the two blocks."""
    distance = source.distance
    if isinstance(distance, (int, float)):
        if distance == 0:
            return q, source.k
        lead: Any = distance
    else:
        lead = distance[..., None, None]
    if q.size <= source.k.size:
        ahead = lead if isinstance(lead, (int, float)) else lead[..., None]
        return rope.rotate(q, ahead, rope_settings), source.k
    return q, rope.rotate(source.k, -lead, rope_settings)


def attend(q: Queries, sources: list[Source], scoring: Scoring) -> Averaged:
    """softmax(q k / sqrt(H)) v over the keys of all sources together (paper section 2).

    Args:
      q: queries [..., K, G, Q, H], rotated by their offsets within their block. Each of the K key/value heads has G
        query heads: multi-head attention is G = 1, multi-query attention K = 1.
      sources: see `Source`; leading axes are the queries'.
      scoring: see `Scoring`.

    Returns:
      [..., K, G, Q, H] in the queries' dtype. Scores and softmax are float32. A query that sees no key gets finite
      values without meaning (padding only).
    """
    q = _scaled(q, scoring)
    queries, keys = zip(*(_meet(q, source, scoring.rope) for source in sources), strict=True)
    return _softmax_attention(
        queries, keys, tuple(s.v for s in sources), tuple(s.visible for s in sources), scoring.cap
    )


def weights_of(q: Queries, source: Source, scoring: Scoring) -> Float[Array, "... K G Q C"]:
    """The float32 weights softmax(q k / sqrt(H)) with which `attend` averages the values of a single source."""
    return jax.nn.softmax(_scores(*_meet(_scaled(q, scoring), source, scoring.rope), source.visible, scoring.cap))


def few_queries(q: Queries) -> bool:
    """Whether so few queries [..., K, G, Q, H] meet each key that reading keys and values dominates the cost of
    attention, as in decoding."""
    return q.shape[-3] * q.shape[-2] * 4 <= q.shape[-1]


def attend_ring(q: Queries, ring: Source, current: Rows, others: list[Source], scoring: Scoring) -> Queries:
    """`attend` to all slots of a ring, which are one array, and to other sources.

    Each slot has a softmax of its own, and these are merged. So keys are not copied, the scores of one slot exist at a
    time, and slots that no row has filled yet are skipped.

        softmax over A and B together = (Z_A softmax(A) + Z_B softmax(B)) / (Z_A + Z_B),   Z = sum exp(scores)

    Args:
      q: [B, K, G, Q, H], see `attend`.
      ring: keys and values [B, R, K, C, H], visible [B, R, ...], distance [B, R].
      current: index in its document of the block that the queries belong to; its slot is `current % R`.
      others: see `attend`; leading axis B.
      scoring: see `Scoring`.

    Returns:
      [B, K, G, Q, H] in the queries' dtype.
    """
    R, S, dtype = ring.k.shape[1], ring.k.shape[-2], q.dtype
    q = _scaled(q, scoring)

    def part(q: Queries, sources: list[Source]) -> tuple[Array, Array]:
        queries, keys = zip(*(_meet(q, source, scoring.rope) for source in sources), strict=True)
        return _weigh(queries, keys, tuple(s.v for s in sources), tuple(s.visible for s in sources), scoring.cap)

    if few_queries(q):
        weighted, log_total = part(q[:, None], [ring])
        if others:
            beside = [x[:, None] for x in part(q, others)]
            weighted, log_total = (
                jnp.concatenate(pair, axis=1) for pair in zip((weighted, log_total), beside, strict=True)
            )
        return (jax.nn.softmax(log_total, axis=1) * weighted).sum(axis=1).astype(dtype)

    def slot(back: Array | int, distance: Array | int) -> Source:
        index = (current - back) % R
        take = lambda x: jnp.take_along_axis(x, index.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)[:, 0]
        return Source(take(ring.k), take(ring.v), take(ring.visible), distance)

    def merge(found: tuple[Array, Array], back: Array) -> tuple[tuple[Array, Array], None]:
        def add(found: tuple[Array, Array]) -> tuple[Array, Array]:
            weighted, log_total = part(q, [slot(back, jnp.broadcast_to(back * S, current.shape))])
            log_both = jnp.logaddexp(found[1], log_total)
            return jnp.exp(found[1] - log_both) * found[0] + jnp.exp(log_total - log_both) * weighted, log_both

        return jax.lax.cond((current >= back).any(), add, lambda found: found, found), None

    found = part(q, [*others, slot(0, 0)])
    if R > 1:
        found, _ = jax.lax.scan(merge, found, jnp.arange(1, R))
    return found[0].astype(dtype)


def _scores(q: Queries, k: Keys, visible: Visible, cap: float) -> Float[Array, "... Q C"]:
    if few_queries(q):
        # Transposing the scores is cheaper here than what some compilers do, transposing the keys.
        scores = jnp.einsum("...KCH,...KGQH->...KCGQ", k, q, preferred_element_type=jnp.float32)
        scores = jnp.moveaxis(scores, -3, -1)
    else:
        scores = jnp.einsum("...KGQH,...KCH->...KGQC", q, k, preferred_element_type=jnp.float32)
    scores = cap * jnp.tanh(scores / cap) if cap else scores
    return scores if visible is None else jnp.where(visible, scores, HIDDEN)


def _weigh(
    queries: tuple[Queries, ...],
    keys: tuple[Keys, ...],
    values: tuple[Values, ...],
    visible: tuple[Visible, ...],
    cap: float,
) -> tuple[Float[Array, "... _Q _V"], Float[Array, "... _Q 1"]]:
    """Averaged values in float32, and the softmax's normaliser: log sum exp of the scores."""
    scores = [_scores(*source, cap) for source in zip(queries, keys, visible, strict=True)]
    top = functools.reduce(jnp.maximum, [s.max(axis=-1, keepdims=True) for s in scores])
    total: Any = 0.0
    weighted: Any = 0.0
    for s, v in zip(scores, values, strict=True):
        p_KGQC = jnp.exp(s - top)
        total = total + p_KGQC.sum(axis=-1, keepdims=True)
        weighted = weighted + jnp.einsum(
            "...KGQC,...KCH->...KGQH", p_KGQC.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
    return weighted / total, top + jnp.log(total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _softmax_attention(
    queries: tuple[Queries, ...],
    keys: tuple[Keys, ...],
    values: tuple[Values, ...],
    visible: tuple[Visible, ...],
    cap: float,
) -> Averaged:
    """Attention to several sources: the i-th queries (scaled) are those for the i-th keys and values.

    The backward pass recomputes the scores. They are the largest arrays of a layer, and storing them costs more (memory
    on accelerators, cache misses on a CPU) than one more matrix product.
    """
    return _weigh(queries, keys, values, visible, cap)[0].astype(queries[0].dtype)


def _softmax_attention_forward(*args: Tree) -> tuple[Queries, Tree]:
    queries, keys, values, visible, cap = args
    out, log_total = _weigh(queries, keys, values, visible, cap)
    out = out.astype(queries[0].dtype)
    return out, (queries, keys, values, visible, out, log_total)


def _softmax_attention_backward(cap: float, kept: Tree, d_out: Queries) -> tuple[Tree, Tree, Tree, None]:
    queries, keys, values, visible, out, log_total = kept
    # Without the barrier the compiler sees that the forward pass computed the same scores, and keeps those.
    queries, keys, values = jax.lax.optimization_barrier((queries, keys, values))
    # The softmax's backward pass needs sum_c p_c dp_c, which is d_out . out.
    mean = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)[..., None, :]
    log_total = jnp.swapaxes(log_total, -1, -2)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dq, dk, dv = [], [], []
    # Scores lie [keys, queries] here: so they enter two of the three products below as they are.
    for q, k, v, seen in zip(queries, keys, values, visible, strict=True):
        s_KGCQ = product("...KCH,...KGQH->...KGCQ", k, q)
        tanh_KGCQ = jnp.tanh(s_KGCQ / cap) if cap else None
        s_KGCQ = s_KGCQ if tanh_KGCQ is None else cap * tanh_KGCQ
        s_KGCQ = s_KGCQ if seen is None else jnp.where(seen.swapaxes(-1, -2), s_KGCQ, HIDDEN)
        p_KGCQ = jnp.exp(s_KGCQ - log_total)
        dp_KGCQ = product("...KCH,...KGQH->...KGCQ", v, d_out)
        ds_KGCQ = p_KGCQ * (dp_KGCQ - mean)
        ds_KGCQ = ds_KGCQ if tanh_KGCQ is None else ds_KGCQ * (1 - tanh_KGCQ * tanh_KGCQ)
        ds_KGCQ = ds_KGCQ.astype(k.dtype)
        p_KGCQ = p_KGCQ.astype(v.dtype)
        dq.append(product("...KGCQ,...KCH->...KGQH", ds_KGCQ, k).astype(q.dtype))
        dk.append(product("...KGCQ,...KGQH->...KCH", ds_KGCQ, q).astype(k.dtype))
        dv.append(product("...KGCQ,...KGQH->...KCH", p_KGCQ, d_out).astype(v.dtype))
    return tuple(dq), tuple(dk), tuple(dv), None


_softmax_attention.defvjp(_softmax_attention_forward, _softmax_attention_backward)
