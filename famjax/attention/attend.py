"""THE attention call: queries against several sources of keys, under one softmax.

A query of a block sees memory segments, FAM and its own block. Joining their keys into one array
would copy every key M + 1 times; instead each source is scored where it lies and the softmax runs
over all of them.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import rope
from famjax.config import Rope

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


class Scoring(NamedTuple):
    """How scores are made of queries and keys: what `attend` takes behind its sources.

    Attributes:
      rope: RoPE, for the distance between blocks; a number is a base without scaling.
      scale: scores are query times key times this; 0 is 1/sqrt(H).
      cap: scores become cap * tanh(score / cap); 0 leaves them.
    """

    rope: Rope | float
    scale: float = 0.0
    cap: float = 0.0


def _meet(q_KGQH: Any, source: Source, rope_settings: Rope | float) -> tuple[Any, Any]:
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
        return rope.turn(q_KGQH, ahead, rope_settings), source.k
    return q_KGQH, rope.turn(source.k, -lead, rope_settings)


def turned_keys(source: Source, rope_settings: Rope | float) -> Any:
    """Keys as if their block were the queries'."""
    distance = source.distance
    away = -distance if isinstance(distance, (int, float)) else -distance[..., None, None]
    return rope.turn(source.k, away, rope_settings)


def join(few: Source, own: Source, rope_settings: Rope | float) -> Source:
    """A source of few keys, which every query sees, and that of the queries' own block (distance 0) as one.

    By itself a source of few columns costs more than its share: scores of its width, sums and a product of its own.
    """
    visible = own.visible
    if visible is not None:
        few_visible = np.ones((*visible.shape[:-1], few.k.shape[-2]), bool)
        visible = (np if isinstance(visible, np.ndarray) else jnp).concatenate([few_visible, visible], axis=-1)
    k = jnp.concatenate([turned_keys(few, rope_settings), own.k], axis=-2)
    return Source(k, jnp.concatenate([few.v, own.v], axis=-2), visible)


def attend(
    q_KGQH: Any, sources: list[Source], rope_settings: Rope | float, scale: float = 0.0, cap: float = 0.0
) -> Any:
    """softmax(q k / sqrt(H)) v over the keys of all sources together (paper section 2).

    Args:
      q_KGQH: [..., K, G, Q, H], turned by their offsets within their block. K key/value heads of G
        query heads each: multi-head is G = 1, multi-query K = 1.
      sources: see `Source`; leading axes are the queries'.
      rope_settings, scale, cap: see `Scoring`.

    Returns:
      [..., K, G, Q, H] in the queries' dtype. Scores and softmax are float32. A query that sees no
      key gets finite values without meaning (padding only).
    """
    q_KGQH = q_KGQH * (scale or 1.0 / math.sqrt(q_KGQH.shape[-1]))
    pairs = [_meet(q_KGQH, source, rope_settings) for source in sources]
    queries, keys = tuple(q for q, _ in pairs), tuple(k for _, k in pairs)
    return _softmax_attention(
        queries, keys, tuple(source.v for source in sources), tuple(source.visible for source in sources), cap
    )


def few_queries(q_KGQH: Any) -> bool:
    """True in decoding: a key is then met by few queries, and reading keys and values is what attention costs."""
    return q_KGQH.shape[-3] * q_KGQH.shape[-2] * 4 <= q_KGQH.shape[-1]


def attend_ring(
    q_KGQH: Any, ring: Source, others: list[Source], rope_settings: Rope | float, scale: float = 0.0, cap: float = 0.0
) -> Any:
    """`attend` to the slots of a ring, which lie in one array, and to other sources.

    For few queries each slot has a softmax of its own, and these are put together at the end: so no key is copied
    to be a source by itself.

        softmax over A and B together = (Z_A softmax(A) + Z_B softmax(B)) / (Z_A + Z_B),   Z = sum exp(scores)

    Args:
      q_KGQH: [B, K, G, Q, H], see `attend`.
      ring: keys and values [B, R, K, C, H], visible [B, R, ...], distance [B, R].
      others: see `attend`; leading axis B.
      rope_settings, scale, cap: see `Scoring`.
    """
    if not few_queries(q_KGQH):
        slots = [jax.tree.map(lambda x, r=r: x[:, r], ring) for r in range(ring.k.shape[1])]
        slots = slots if len(slots) > 1 else [slots[0]._replace(distance=0)]
        return attend(q_KGQH, [*slots, *others], rope_settings, scale, cap)
    q_KGQH = q_KGQH * (scale or 1.0 / math.sqrt(q_KGQH.shape[-1]))

    def part(q: Any, sources: list[Source]) -> tuple[Any, Any]:
        queries, keys = zip(*(_meet(q, source, rope_settings) for source in sources), strict=True)
        return _weigh(queries, keys, tuple(s.v for s in sources), tuple(s.visible for s in sources), cap)

    weighted, log_total = part(q_KGQH[:, None], [ring])
    if others:
        beside = [x[:, None] for x in part(q_KGQH, others)]
        weighted, log_total = (
            jnp.concatenate(pair, axis=1) for pair in zip((weighted, log_total), beside, strict=True)
        )
    return (jax.nn.softmax(log_total, axis=1) * weighted).sum(axis=1).astype(q_KGQH.dtype)


def attention_to(
    q_KGQH: Any, sources: list[Source], marks: list[Any], rope_settings: Rope | float, scale: float = 0.0,
    cap: float = 0.0,
) -> Any:  # fmt: skip
    """How much of each query's attention goes to which keys: float32 [..., K, G, Q, n].

    It is `attend` itself: where the values are marks, what the softmax averages is the attention that each mark's
    keys get. With a mark of 1 for all keys of one source it is that source's share, from 0 to 1; with a mark for
    each key it is the attention matrix.

    Args:
      q_KGQH, sources, rope_settings, scale, cap: as for `attend`.
      marks: for each source a float array [C, n], n marks of its C keys.
    """
    spread = lambda source, mark: jnp.broadcast_to(
        jnp.asarray(mark, jnp.float32), (*source.k.shape[:-1], mark.shape[-1])
    )
    marked = [source._replace(v=spread(source, mark)) for source, mark in zip(sources, marks, strict=True)]
    return attend(q_KGQH.astype(jnp.float32), marked, rope_settings, scale, cap)


def _scores(q_KGQH: Any, k_KCH: Any, visible: Any, cap: float) -> Any:
    if few_queries(q_KGQH):
        # Turning the scores is cheaper here than what some compilers do, turning the keys.
        scores = jnp.einsum("...KCH,...KGQH->...KCGQ", k_KCH, q_KGQH, preferred_element_type=jnp.float32)
        scores = jnp.moveaxis(scores, -3, -1)
    else:
        scores = jnp.einsum("...KGQH,...KCH->...KGQC", q_KGQH, k_KCH, preferred_element_type=jnp.float32)
    scores = cap * jnp.tanh(scores / cap) if cap else scores
    return scores if visible is None else jnp.where(visible, scores, HIDDEN)


def _weigh(
    q: tuple[Any, ...], k: tuple[Any, ...], v: tuple[Any, ...], visible: tuple[Any, ...], cap: float
) -> tuple[Any, Any]:
    """Weighted values [..., K, G, Q, H] float32, and the softmax's normaliser: log sum exp of the scores."""
    scores = [_scores(*source, cap) for source in zip(q, k, visible, strict=True)]
    top = functools.reduce(jnp.maximum, [s.max(axis=-1, keepdims=True) for s in scores])
    total: Any = 0.0
    weighted: Any = 0.0
    for s, v_KCH in zip(scores, v, strict=True):
        p_KGQC = jnp.exp(s - top)
        total = total + p_KGQC.sum(axis=-1, keepdims=True)
        weighted = weighted + jnp.einsum(
            "...KGQC,...KCH->...KGQH", p_KGQC.astype(v_KCH.dtype), v_KCH, preferred_element_type=jnp.float32
        )
    return weighted / total, top + jnp.log(total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _softmax_attention(
    q: tuple[Any, ...], k: tuple[Any, ...], v: tuple[Any, ...], visible: tuple[Any, ...], cap: float
) -> Any:
    """Attention over several sources: the i-th queries (scaled) meet the i-th keys and values.

    Its backward pass makes the scores again: they are the largest arrays of a layer, and keeping
    them costs more (memory on accelerators, caches on a CPU) than one more matrix product.
    """
    return _weigh(q, k, v, visible, cap)[0].astype(q[0].dtype)


def _softmax_attention_forward(q: Any, k: Any, v: Any, visible: Any, cap: float) -> tuple[Any, Any]:
    out, log_total = _weigh(q, k, v, visible, cap)
    out = out.astype(q[0].dtype)
    return out, (q, k, v, visible, out, log_total)


def _softmax_attention_backward(cap: float, kept: Any, d_out_KGQH: Any) -> tuple[Any, Any, Any, None]:
    q, k, v, visible, out_KGQH, log_total = kept
    # Without the barrier the compiler sees that the forward pass made the same scores, and keeps those.
    q, k, v = jax.lax.optimization_barrier((q, k, v))
    # The softmax's backward pass needs sum_c p_c dp_c, which is d_out . out.
    mean = (d_out_KGQH.astype(jnp.float32) * out_KGQH.astype(jnp.float32)).sum(axis=-1)[..., None, :]
    log_total = jnp.swapaxes(log_total, -1, -2)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dq, dk, dv = [], [], []
    # Scores lie [keys, queries] here: so they enter two of the three products below as they are.
    for q_KGQH, k_KCH, v_KCH, seen in zip(q, k, v, visible, strict=True):
        s_KGCQ = product("...KCH,...KGQH->...KGCQ", k_KCH, q_KGQH)
        tanh_KGCQ = jnp.tanh(s_KGCQ / cap) if cap else None
        s_KGCQ = s_KGCQ if tanh_KGCQ is None else cap * tanh_KGCQ
        s_KGCQ = s_KGCQ if seen is None else jnp.where(seen.swapaxes(-1, -2), s_KGCQ, HIDDEN)
        p_KGCQ = jnp.exp(s_KGCQ - log_total)
        dp_KGCQ = product("...KCH,...KGQH->...KGCQ", v_KCH, d_out_KGQH)
        ds_KGCQ = p_KGCQ * (dp_KGCQ - mean)
        ds_KGCQ = ds_KGCQ if tanh_KGCQ is None else ds_KGCQ * (1 - tanh_KGCQ * tanh_KGCQ)
        ds_KGCQ = ds_KGCQ.astype(k_KCH.dtype)
        p_KGCQ = p_KGCQ.astype(v_KCH.dtype)
        dq.append(product("...KGCQ,...KCH->...KGQH", ds_KGCQ, k_KCH).astype(q_KGQH.dtype))
        dk.append(product("...KGCQ,...KGQH->...KCH", ds_KGCQ, q_KGQH).astype(k_KCH.dtype))
        dv.append(product("...KGCQ,...KGQH->...KCH", p_KGCQ, d_out_KGQH).astype(v_KCH.dtype))
    return tuple(dq), tuple(dk), tuple(dv), None


_softmax_attention.defvjp(_softmax_attention_forward, _softmax_attention_backward)
