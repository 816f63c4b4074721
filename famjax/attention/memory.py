"""The memory of a model, and the paper's recurrence (paper section 2).

A layer's memory after block tau is the keys and values of the last M blocks and F_tau, the
feedback activations that the layer's own weights made from F_{tau-1} and block tau:

    QF, KF, VF = QKV(norm(F_{tau-1}))
    AF         = attend(QF, [KF, K_tau], [VF, V_tau]) + F_{tau-1}      (+ 0 in the first update)
    F_tau      = FF(norm(AF)) + AF

Tokens of block tau see F_{tau-1}, never F_tau, which was made from their own future.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import fused
from famjax.attention.attend import Scoring, Source, attend, attention_to
from famjax.attention.fused import Kernel
from famjax.config import MemoryConfig

RMS_EPS = 1e-6


class LayerWeights(Protocol):
    """What the memory asks of a layer. `nn/block.py` has the one implementation."""

    scoring: Scoring
    noise_key: Any  # of `MemoryConfig.fam_noise`; None outside of training

    def queries(self, x: Any, offsets: Any) -> Any:
        """norm(x) [..., Q, D] to queries [..., K, G, Q, H], turned by their offsets in the block."""
        ...

    def keys_values(self, x: Any, offsets: Any) -> tuple[Any, Any]:
        """norm(x) [..., Q, D] to keys (turned) and values, each [..., K, Q, H]."""
        ...

    def queries_keys_values(self, x: Any, offsets: Any) -> tuple[Any, Any, Any]:
        """All three of the same x."""
        ...

    def finish(self, heads: Any, residual: Any) -> Any:
        """A = heads W_o + residual, then FF(norm(A)) + A: [..., K, G, Q, H], [..., Q, D] to [..., Q, D]."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerMemory:
    """One layer's memory; in a `MemoryState` every array has a leading axis L.

    Attributes:
      k, v: [B, R, K, S, H], a ring of R = M + 1 blocks. Block n of a document lies in slot n mod R.
        Keys are turned by their offsets within the block, 0..S-1, never by absolute positions.
      fam: [B, P, F, D] float32, the feedback activations; index 0 is the newest.
      fam_k, fam_v: [B, P, K, F, H], their keys and values.

    Example: after 5 tokens with S = 4, M = 1 the ring holds block 0 (slot 0, full) and block 1
    (slot 1, one token), `fam[:, 0]` is F_1, made from block 0.
    """

    k: Any
    v: Any
    fam: Any
    fam_k: Any
    fam_v: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryState:
    """All that a model remembers of the text before. Its size does not depend on that text's length.

    Attributes:
      position: int32 [B], tokens of the document read so far. `position % S` of them wait in the
        ring's current block, which FAM has not yet seen.
      fam_updates: int32 [B], how often FAM was made from its predecessor. 0: it is the learned
        prompt, which carries no context, so the next update adds no residual.
      layers: `LayerMemory` with a leading axis L, as training and whole sequences have it; or, for streaming,
        a tuple of L of them, one a layer. By itself a layer's ring is written in place, and that of a layer
        with a short window may have fewer blocks (`ring_blocks`).
    """

    position: Any
    fam_updates: Any
    layers: LayerMemory


# The names of the axes of a `MemoryState`'s arrays, which `runtime/sharding.py` maps onto a mesh.
_RING_AXES = ("layers", "batch", None, "kv_heads", None, "head_dim")
_FAM_KEY_AXES = ("layers", "batch", None, "kv_heads", "fam", "head_dim")
_FAM_AXES = ("layers", "batch", None, "fam", None)  # an activation: never cut along D
_STACKED_AXES = (_RING_AXES, _RING_AXES, _FAM_AXES, _FAM_KEY_AXES, _FAM_KEY_AXES)
MEMORY_AXES = MemoryState(("batch",), ("batch",), LayerMemory(*_STACKED_AXES))
# Of one layer's memory by itself.
LAYER_AXES = LayerMemory(*(axes[1:] for axes in _STACKED_AXES))


def over_rows(f: Callable[..., Any], *states: MemoryState) -> MemoryState:
    """f(axis, *arrays) of each array of some memories; `axis` is the one that counts the rows."""
    axis = 1 if isinstance(states[0].layers, LayerMemory) else 0
    layers = jax.tree.map(lambda *arrays: f(axis, *arrays), *(state.layers for state in states))
    position, updates = (f(0, *numbers) for numbers in zip(*((s.position, s.fam_updates) for s in states), strict=True))
    return MemoryState(position, updates, layers)


def broadcast_layer(layer: LayerMemory, batch: int) -> LayerMemory:
    """A layer's memory of one row for `batch` rows."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), layer)


def broadcast_rows(state: MemoryState, batch: int) -> MemoryState:
    """A memory of one row for `batch` rows."""
    return over_rows(lambda axis, x: jnp.broadcast_to(x, (*x.shape[:axis], batch, *x.shape[axis + 1 :])), state)


def select_state_rows(mask_B: Any, new: MemoryState, old: MemoryState) -> MemoryState:
    """Rows of `new` where the mask is set, else rows of `old` (to reset or restore single rows)."""
    return over_rows(lambda axis, a, b: _chosen(mask_B, a, b, axis), new, old)


def _chosen(mask_B: Any, new: Any, old: Any, axis: int = 0) -> Any:
    """`new` where the mask of the rows, which `axis` counts, is set, else `old`."""
    return jnp.where(mask_B.reshape(-1, *(1,) * (new.ndim - axis - 1)), new, old)


def ring_blocks(config: MemoryConfig) -> int:
    """Blocks that the ring of a layer needs: those that some query of a block can see, its own among them."""
    return segments_in_reach(config) + 1


def segments_in_reach(config: MemoryConfig) -> int:
    """How many of the M memory segments any token of a block can see: all, unless a token window is shorter."""
    if not config.token_window:
        return config.memory_segments
    return min(config.memory_segments, -(-(config.token_window - 1) // config.block_size))


def select_rows(mask_B: Any, new: Any, old: Any) -> Any:
    """`new` where the row's mask is set, else `old`, for trees of arrays [B, ...]."""
    return jax.tree.map(lambda a, b: _chosen(mask_B, a, b), new, old)


def fam_offsets(config: MemoryConfig) -> Any:
    """[F] offsets of FAM within the block that it compressed (paper section 2, positions).

    As a query of block tau and, later, as a key left behind by block tau, FAM has the same offset:
    F_tau stands at the end of block tau.
    """
    F, S = config.fam_length, config.block_size
    if config.fam_position == "last":
        return np.arange(S - F, S)
    if config.fam_position == "float":
        return S - 1 + np.arange(1, F + 1) / (F + 1)
    return np.zeros(F)


def fam_sources(fam_k: Any, fam_v: Any, updates: Any, distance: Any, config: MemoryConfig) -> list[Source]:
    """The P previous FAMs as keys. fam_k, fam_v [..., P, K, F, H]; updates [...]; oldest first."""
    sources = []
    for p in reversed(range(config.previous_fams)):
        # FAM p back exists once there were p updates: before those stands the initial FAM alone.
        visible = None if p == 0 else (updates >= p)[..., None, None, None, None]
        away = distance if config.fam_position == "zero" else (p + 1) * config.block_size
        sources.append(Source(fam_k[..., p, :, :, :], fam_v[..., p, :, :, :], visible, away))
    return sources


def update_fam(
    layer: LayerWeights,
    memory: tuple[Any, Any, Any],
    k: Any,
    v: Any,
    updates_B: Any,
    origin_B: Any,
    config: MemoryConfig,
    kernel: Kernel = fused.XLA,
    noise: Any = None,
) -> tuple[Any, Any, Any]:
    """F_tau from F_{tau-1} and the keys and values of block tau: the recurrence at the top.

    Args:
      layer: the layer's weights.
      memory: fam [B, P, F, D], fam_k and fam_v [B, P, K, F, H].
      k, v: [B, K, S, H] of the whole block; no mask, FAM sees all of it.
      updates_B: updates before this one; 0 makes the residual zero.
      origin_B: absolute position of the block (`zero` FAM positions only).
      config: the memory's settings.
      kernel: by what FAM attends.
      noise: standard normal numbers [B, F, D], see `MemoryConfig.fam_noise`.

    Returns:
      The memory with F_tau pushed in front and the oldest FAM dropped.
    """
    fam, fam_k, fam_v = memory
    previous = fam[:, 0]
    q, sources = _fam_attention(layer, memory, k, v, updates_B, origin_B, config)
    if fused.takes_fam(kernel, config):
        *oldest_first, own = sources
        heads = fused.attend_of_fam(
            q, (own.k, own.v), oldest_first[::-1], updates_B, layer.scoring, config, kernel
        )  # fmt: skip
    else:
        heads = attend(q, sources, *layer.scoring)
    residual = jnp.where((updates_B > 0)[:, None, None], previous, 0.0) if config.zero_first_residual else previous
    new = layer.finish(heads, residual).astype(jnp.float32)
    if config.fam_max_rms or noise is not None:
        new = _departed(new, noise, config)
    new_k, new_v = layer.keys_values(new, fam_offsets(config))
    push = lambda x, old: jnp.concatenate([x[:, None], old[:, :-1]], axis=1)
    return push(new, fam), push(new_k, fam_k), push(new_v, fam_v)


def fam_rms(fam: Any) -> Any:
    """The root mean square over D of feedback activations [..., D], [..., 1]."""
    return jnp.sqrt(jnp.square(fam).mean(axis=-1, keepdims=True) + RMS_EPS)


def at_most(fam: Any, rms: float) -> Any:
    """Feedback activations [..., D], each scaled down to this root mean square where it has more."""
    return fam * jnp.minimum(1.0, rms / fam_rms(fam))


def _departed(new: Any, noise: Any, config: MemoryConfig) -> Any:
    """A new FAM [B, F, D] as the departures from the paper have it (`MemoryConfig.fam_max_rms`, `.fam_noise`)."""
    if config.fam_max_rms:
        new = at_most(new, config.fam_max_rms)
    return new if noise is None else new + config.fam_noise * noise


def _fam_attention(
    layer: LayerWeights, memory: tuple[Any, Any, Any], k: Any, v: Any, updates_B: Any, origin_B: Any,
    config: MemoryConfig,
) -> tuple[Any, list[Source]]:  # fmt: skip
    """FAM's queries, and what they see: the P previous FAMs, then the whole block."""
    fam, fam_k, fam_v = memory
    q = layer.queries(fam[:, 0], fam_offsets(config))
    sources = fam_sources(fam_k, fam_v, updates_B, 0, config)
    return q, [*sources, Source(k, v, None, -origin_B if config.fam_position == "zero" else 0)]


# Which keys shall be told apart: (kind of source, its number of keys) to marks [C, n], for `attend.attention_to`.
# Kinds are "segment", "fam" and "own".
Marks = Callable[[str, int], Any]
KINDS = ("segment", "fam", "own")


def by_kind(kind: str, keys: int) -> Any:
    """Marks that tell the kinds apart, in the order of `KINDS`."""
    return np.tile(np.array([kind == one for one in KINDS], np.float32), (keys, 1))


def fam_attention_to(
    layer: LayerWeights, memory: tuple[Any, Any, Any], k: Any, v: Any, updates_B: Any, origin_B: Any,
    config: MemoryConfig, marks: Marks,
) -> Any:  # fmt: skip
    """Where FAM's queries look when they make the next FAM: float32 [B, K, G, F, n], see `attend.attention_to`.
    They see the previous FAMs and the whole block, no segment. Arguments as for `update_fam`."""
    q, sources = _fam_attention(layer, memory, k, v, updates_B, origin_B, config)
    kinds = ["fam"] * config.previous_fams + ["own"]
    some = [marks(kind, source.k.shape[-2]) for kind, source in zip(kinds, sources, strict=True)]
    return attention_to(q, sources, some, *layer.scoring)


def prompt_layer(layer: LayerWeights, x_1FD: Any, config: MemoryConfig) -> Any:
    """What the prompt tokens pass up one layer, P^l to P^(l+1) (paper section 2, first block).

    They attend to each other without a causal mask and see nothing else. x_1FD: [1, F, D].
    """
    q, k, v = layer.queries_keys_values(x_1FD, fam_offsets(config))
    return layer.finish(attend(q, [Source(k, v)], *layer.scoring), x_1FD)


def refresh_keys(layer: LayerWeights, memory: LayerMemory, config: MemoryConfig) -> LayerMemory:
    """FAM's keys and values made again from `fam`, with today's weights and with gradients."""
    fam_k, fam_v = layer.keys_values(memory.fam, fam_offsets(config))
    return dataclasses.replace(memory, fam_k=fam_k.astype(memory.fam_k.dtype), fam_v=fam_v.astype(memory.fam_v.dtype))
