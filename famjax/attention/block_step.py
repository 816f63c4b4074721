"""One layer over one block of tokens (paper, Algorithm 2), and over a sequence of blocks.

    QKV   = norm([I_tau, F_{tau-1}]) W_qkv                                  tokens and memory as one
    A     = attend(Q,  [K_{tau-M} .. K_{tau-1}, KF_{tau-1}, K_{tau, :t}]) + I_tau
    AF    = attend(QF, [KF_{tau-1}, K_tau]) + F_{tau-1}                     (+ 0 in the first update)
    O_tau = FF(norm(A)) + A
    F_tau = FF(norm(AF)) + AF                                               again as one

Tokens and memory share all weights, so a block's S token rows and F memory rows pass through every product together.
Tokens see F_{tau-1}, never F_tau, which depends on tokens after them. Without FAM (F = 0) this is block sliding window
attention. Other memories than FAM have no rows; they add keys or outputs beside the window (`memories/base.py`).

`sequence.py` scans `block_step` over a sequence. `streaming.py` computes a part of a block with the same functions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import alternatives, fused, masks, memories, memory
from famjax.attention.attend import Source, attend
from famjax.attention.fused import Kernel
from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memories.base import State
from famjax.attention.memories.base import Tokens as Span
from famjax.attention.memory import select_rows
from famjax.config import MemoryConfig
from famjax.dims import Array, Bool, Fam, Float, Int, Key, KeysValues, Offsets, Queries, Tokens

# Folded into a block's key, for the noise on FAM and on the gates of its updates.
NOISE, GATE_NOISE = 409173, 171201
# A gate of FAM's updates is a sigmoid stretched by this much beyond 0 and 1, and clipped.
STRETCH = 0.01


class At(NamedTuple):
    """Position of one block of each row, the fields of `positions.Blocks`; for a scan with a leading axis N.

    Further attributes:
      key: PRNG key of the block, for dropout and noise on FAM; None outside of training.
      real: number of the block's real tokens; None: all S. Only other memories than FAM use it.
      is_read: blocks with auxiliary losses (`auxiliary.py`); None if there are none.
    """

    blocks_before: Int[Array, "*N B"]
    fam_updates: Int[Array, "*N B"]
    starts: Bool[Array, "*N B"] | None = None
    full: Bool[Array, "*N B"] | None = None
    kept: Bool[Array, "*N B"] | None = None
    origin: Int[Array, "*N B"] | None = None
    key: Key[Array, "*N"] | None = None
    real: Int[Array, "*N B"] | None = None
    is_read: Bool[Array, "*N B"] | None = None


class Carried(NamedTuple):
    """What a layer carries from block to block, besides keys and values.

    Attributes:
      fam: feedback activations of the previous P blocks, the newest first; F = 0 without FAM.
      beside: the state of another memory (`memories/base.py`), by name.
    """

    fam: Fam
    beside: State


def block_step(
    layer: LayerWeights, x: Tokens, before: Carried, segments: tuple[KeysValues, ...], at: At,
    kernel: Kernel = fused.XLA, prompt: Float[Array, "1 F D"] | None = None,
) -> tuple[Tokens, Carried, KeysValues]:  # fmt: skip
    """One layer over a whole block: Algorithm 2.

    Args:
      layer: the layer's weights and settings.
      x: the block's input activations.
      before: F_{tau-1}, or the state of another memory, after the previous block.
      segments: keys and values [B, K, S, H] of the previous blocks within reach, the nearest last.
      at: the block's position in its document.
      kernel: the attention implementation.
      prompt: the input of FAM's queries, if it is not F_{tau-1} (`alternatives.py`).

    Returns:
      Output activations; FAM with F_tau prepended and the oldest dropped, or the state of the other memory after the
      block; the block's keys and values [B, K, S, H].
    """
    S, (fam, beside), other = layer.memory.block_size, before, memories.of(layer.memory)
    x = other.enter(layer, beside, x)
    # Project tokens and memory together.
    q, (k, v) = project(layer, x, fam, at, prompt)
    # Attend: tokens to segments, memory and the block up to themselves; memory to itself and the whole block.
    with jax.named_scope("block_attention"):
        more = other.sources(layer, beside, at.blocks_before, q[..., :S, :], np.arange(S))
        heads = _attend_tokens(layer, q, (k, v), segments, at, more, kernel)
        if fam.shape[2]:
            heads = jnp.concatenate([heads, _attend_fam(layer, q, (k, v), at, kernel)], axis=-2)
    # What another memory than FAM adds, and what it takes from the block.
    kv = k[..., :S, :], v[..., :S, :]
    if other is not memories.NOTHING:
        real = jnp.full(len(x), S) if at.real is None else at.real
        heads, beside = _remember(layer, Span(x, q, kv, np.arange(S), real), beside, heads, at)
    # Output projection and feed-forward, together again.
    residual = residual_of(queried(fam, prompt), at.fam_updates, layer.memory)
    y, *new = layer.finish(heads, (x, *residual))
    if other.takes_outputs:
        assert at.full is not None
        beside = select_rows(at.full, other.leave(layer, beside, y), beside)
    return y, Carried(push_fam(layer, fam, residual, new, at.key), beside), kv


def _remember(layer: LayerWeights, tokens: Span, state: State, heads: Queries, at: At) -> tuple[Queries, State]:
    """Attention's output with what another memory adds, and its state after the block's real tokens."""
    other = memories.of(layer.memory)
    with jax.named_scope("memory"):
        heads, state = other.attend(layer, state, tokens, heads)
        full = other.full(layer, state, tokens.kv, at.blocks_before)
    assert at.full is not None
    return heads, select_rows(at.full, full, state)


def project(
    layer: LayerWeights, x: Tokens, fam: Fam, at: At, prompt: Float[Array, "1 F D"] | None = None
) -> tuple[Queries, KeysValues]:
    """Queries [B, K, G, S + F, H] of the tokens and of the newest FAM, or of the prompt; keys and values
    [B, K, S + P F, H] of the tokens and of all P FAMs."""
    streams = (x, fam.reshape(len(fam), -1, fam.shape[-1])) if fam.shape[2] else (x,)
    of_queries, of_keys = _offsets(at, layer.memory)
    if prompt is None or not fam.shape[2]:
        return layer.queries_keys_values(streams, of_queries, of_keys)
    q, kv = layer.queries_keys_values(streams, np.arange(layer.memory.block_size), of_keys)
    of_fam = layer.queries(prompt, fam_query_offsets(at.origin, layer.memory))
    return jnp.concatenate([q, jnp.broadcast_to(of_fam, (len(q), *of_fam.shape[1:]))], axis=-2), kv


def _offsets(at: At, config: MemoryConfig) -> tuple[Offsets, Offsets]:
    """Positions of queries and keys relative to the block's first token.

    FAM's queries have the positions of F_tau, at the end of this block; its keys those of F_{tau-1}, S before.
    """
    tokens = np.arange(config.block_size)
    if not config.fam_length:
        return tokens, tokens
    query = fam_query_offsets(at.origin, config)
    if at.origin is not None:
        lead = jnp.broadcast_to(tokens, (len(at.origin), len(tokens)))
        q, k = (jnp.concatenate([lead, *[query] * n], axis=1) for n in (1, config.previous_fams))
        return q, k
    keys = [query - (p + 1) * config.block_size for p in range(config.previous_fams)]
    return np.concatenate([tokens, query]), np.concatenate([tokens, *keys])


def fam_query_offsets(origin: Int[Array, "B"] | None, config: MemoryConfig) -> Offsets:
    """Positions of FAM's queries relative to the block's first token: [F], or [B, F] for FAM at absolute position zero,
    which depend on the block's `origin`."""
    if origin is None:
        return memory.fam_offsets(config)
    return jnp.broadcast_to(-origin[:, None], (len(origin), config.fam_length))


def seen_by_tokens(kv: KeysValues, segments: tuple[KeysValues, ...], at: At, config: MemoryConfig) -> list[Source]:
    """Sources of a block's tokens: memory segments, the farthest first; then one with the block itself and FAM.

    Args:
      kv: keys and values of the block's tokens, then of P FAMs, [B, K, S + P F, H].
      segments: see `block_step`.
      at: the block's position.
      config: the layer's memory settings.
    """
    offset = np.arange(config.block_size)
    sources = []
    for i, (k, v) in enumerate(segments):
        back = len(segments) - i
        visible = masks.in_same_document(back, at.blocks_before)[:, None, None, None, None]
        if config.token_window:
            visible &= masks.within_window(offset[:, None], offset, back * config.block_size, config.token_window)
        if config.stop_gradient:
            k, v = jax.lax.stop_gradient((k, v))
        sources.append(Source(k, v, visible, back * config.block_size))
    own = masks.causal(offset[:, None], offset)
    if config.token_window:
        own &= masks.within_window(offset[:, None], offset, 0, config.token_window)
    return [*sources, Source(*kv, _beside_fam(own, at, config))]


def seen_by_fam(kv: KeysValues, at: At, config: MemoryConfig) -> list[Source]:
    """Sources of FAM's queries: the whole block and the previous FAMs (`kv` as for `seen_by_tokens`)."""
    everything = np.ones((1, config.block_size), bool)
    return [Source(*kv, None if config.previous_fams == 1 else _beside_fam(everything, at, config))]


def _beside_fam(own: np.ndarray, at: At, config: MemoryConfig) -> Any:
    """A mask [Q, S] of the block's keys, extended by FAM's: F_{tau-1} is visible; FAM p back after p updates."""
    P, F = config.previous_fams, config.fam_length
    if P == 1 or not F:
        return np.concatenate([own, np.ones((len(own), F), bool)], axis=1)
    exists = jnp.repeat(at.fam_updates[:, None] >= np.arange(P), F, axis=1)[:, None, None, None]
    shape = (*exists.shape[:-2], len(own))
    parts = jnp.broadcast_to(own, (*shape, own.shape[1])), jnp.broadcast_to(exists, (*shape, P * F))
    return jnp.concatenate(parts, axis=-1)


def _attend_tokens(
    layer: LayerWeights, q: Queries, kv: KeysValues, segments: tuple[KeysValues, ...], at: At, more: list[Source],
    kernel: Kernel,
) -> Queries:  # fmt: skip
    q = q[..., : layer.memory.block_size, :]

    def heads(kv: KeysValues, config: MemoryConfig) -> Queries:
        if kernel.name == "xla" or more:
            return attend(q, [*more, *seen_by_tokens(kv, segments, at, config)], layer.scoring)
        return fused.attend_block(q, kv, segments, at, layer.scoring, config, kernel)

    return gated(layer, lambda: heads(*without_fam(kv, layer.memory)), lambda: heads(kv, layer.memory))


def gated(layer: LayerWeights, without: Callable[[], Array], with_fam: Callable[[], Array]) -> Array:
    """Attention's output with FAM, as in the paper. If the layer has a gate g (`MemoryConfig.fam_gate`): (1 - g) times
    the output without FAM plus g times that with FAM."""
    if layer.gate is None:
        return with_fam()
    heads = without()
    return ((1 - layer.gate) * heads + layer.gate * with_fam()).astype(heads.dtype)


def without_fam(kv: KeysValues, config: MemoryConfig) -> tuple[KeysValues, MemoryConfig]:
    """A block's keys and values without those of FAM, and the settings without FAM."""
    k, v = (x[..., : config.block_size, :] for x in kv)
    return (k, v), dataclasses.replace(config, fam_length=0)


def _attend_fam(layer: LayerWeights, q: Queries, kv: KeysValues, at: At, kernel: Kernel) -> Queries:
    config, S = layer.memory, layer.memory.block_size
    if kernel.name == "xla" or not fused.takes_fam(config):
        return attend(q[..., S:, :], seen_by_fam(kv, at, config), layer.scoring)
    return fused.attend_block(q[..., S:, :], kv, None, at, layer.scoring, config, kernel)


def queried(fam: Fam, prompt: Float[Array, "_B F D"] | None) -> Float[Array, "B F D"]:
    """The input of FAM's queries: F_{tau-1}, or the prompt if there is one."""
    if prompt is None or not fam.shape[2]:
        return fam[:, 0]
    return jnp.broadcast_to(prompt, fam[:, 0].shape)


def residual_of(
    fam: Float[Array, "B F D"], updates: Int[Array, "B"], config: MemoryConfig
) -> tuple[Float[Array, "B F D"], ...]:  # fmt: skip
    """The residual of FAM's update.

    Args:
      fam: the input of FAM's queries (`queried`).
      updates: number of updates that it has had.
      config: the layer's memory settings.

    Returns:
      A tuple of one array: `fam`, or zeros in the first update from the prompt (paper section 2) and, with static
      queries, in every update. () without FAM.
    """
    if not fam.shape[1]:
        return ()
    if not config.zero_first_residual:
        return (fam,)
    if alternatives.is_static(config):
        return (jnp.zeros_like(fam),)
    return (jnp.where((updates > 0)[:, None, None], fam, 0.0),)


def push_fam(
    layer: LayerWeights, fam: Fam, residual: tuple[Float[Array, "B F D"], ...], new: list[Float[Array, "B F D"]],
    key: Key[Array, ""] | None,
) -> Fam:  # fmt: skip
    """FAM with F_tau prepended and the oldest dropped.

    Args:
      layer: the layer's weights and settings.
      fam: F_{tau-1} and the P - 1 before it.
      residual: of the update (`residual_of`).
      new: F_tau = FF(norm(AF)) + AF; [] without FAM, which is then returned unchanged. Gates, a bound and noise are
        applied to it if these departures from the paper are configured (`MemoryConfig`).
      key: for the noise; None adds none.
    """
    if not new:
        return fam
    newest, config = new[0].astype(jnp.float32), layer.memory
    if config.gates_updates:
        old, update = residual[0], newest - residual[0]
        noise = None
        if config.fam_update_noise and key is not None:
            noise = jax.random.normal(jax.random.fold_in(key, GATE_NOISE), (*update.shape[:2], 1))
        newest = old + write_gate(layer, old, update, noise) * (update - old)
    if config.fam_max_rms:
        newest = memory.at_most(newest, config.fam_max_rms)
    if config.fam_noise and key is not None:
        newest = newest + config.fam_noise * jax.random.normal(jax.random.fold_in(key, NOISE), newest.shape)
    return jnp.concatenate([newest[:, None], fam[:, :-1]], axis=1)


def write_gate(
    layer: LayerWeights, residual: Float[Array, "B F D"], update: Float[Array, "B F D"],
    noise: Float[Array, "B F 1"] | None = None,
) -> Float[Array, "B F 1"]:  # fmt: skip
    """The fraction of each feedback activation F that its update U = F_tau - F replaces (`MemoryConfig.fam_update`):

        g(w_F n(F) + w_U n(U) + b),    n(x) = x / rms(x)

    g is a sigmoid that is stretched and clipped to [0, 1] (as in hard concrete gates, arXiv 1712.01312), so that a
    closed gate is exactly 0: what leaks through a plain sigmoid adds up over thousands of blocks.

    Args:
      layer: its weights at `memory` are w_F = `write_old` [D], w_U = `write_new` [D] and b = `write_bias` [1].
      residual: F, as the update adds it.
      update: U.
      noise: standard normal numbers; times `MemoryConfig.fam_update_noise` they are added to the sigmoid's input.
    """
    learned = layer.weights["memory"]
    score = lambda x, w: (x / memory.fam_rms(x) * w).sum(axis=-1, keepdims=True)
    logit = score(residual, learned["write_old"]) + score(update, learned["write_new"]) + learned["write_bias"]
    if noise is not None:
        logit = logit + layer.memory.fam_update_noise * noise
    g = jax.nn.sigmoid(logit)
    return jnp.clip((1 + 2 * STRETCH) * g - STRETCH, 0.0, 1.0)


def prompt_step(layer: LayerWeights, x: Float[Array, "1 F D"]) -> Float[Array, "1 F D"]:
    """The prompt's pass through one layer, P^l to P^(l+1) (paper section 2, first block).

    Prompt tokens attend to each other without a causal mask, and to nothing else.
    """
    config = dataclasses.replace(layer.memory, fam_length=x.shape[1])
    offsets = memory.fam_offsets(config)
    q, kv = layer.queries_keys_values((x,), offsets, offsets)
    (y,) = layer.finish(attend(q, [Source(*kv)], layer.scoring), (x,))
    return y
