"""Block sliding window attention with FAM as one kernel, whose scores stay in the chip's vector memory.

`attend_block` computes `attend` for one block of a layer, with Pallas kernels for TPU (`fused_kernels.py`). Masked
tiles (above the diagonal, before the document, beyond a token window) are neither fetched nor computed. The kernel
rotates queries (RoPE) by the distance between blocks, in float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import fused_calls, rope
from famjax.attention.attend import Scoring
from famjax.attention.fused_kernels import LANES, Arrays, Plan
from famjax.config import KERNEL_LANES, ConfigError, MemoryConfig, Rope
from famjax.dims import Array, Float, KeysValues, Queries

# Sizes of a square tile of scores: the first one that divides the block size is used.
TILES = (512, 256, 128)

# (f, axis names of its arguments, axis names of its result) to f applied to each device's shards.
PerDevice = Callable[[Callable[..., Any], Any, Any], Callable[..., Any]]

# Names of axes (`mesh/sharding.py`): heads are sharded if key/value heads divide, else within their groups.
QUERY_AXES = ("batch", None, "kv_heads", "query_group", None, None)
KEY_AXES = ("batch", None, "kv_heads", None, None)
BLOCK_AXES = ("batch", None)


class Kernel(NamedTuple):
    """The attention implementation used for a layer.

    Attributes:
      name: `xla` (`attend`, whose scores are arrays), `fused` (the Pallas kernels) or `interpret` (the same kernels
        interpreted on any platform: very slow, for tests).
      per_device: runs a function on each device's shards; None on one device.
    """

    name: str = "xla"
    per_device: PerDevice | None = None


XLA = Kernel()


def choose(asked: str, platform: str, block_size: int) -> str:
    """The name of the kernel for `ModelConfig.attention_kernel` on a platform (`tpu`, `cpu`, `gpu`): `auto` is `fused`
    on TPU if the block size is a multiple of 128, else `xla`. Raises `ConfigError` if `fused` is requested on another
    platform than TPU."""
    if asked == "auto":
        return "fused" if platform == "tpu" and block_size % KERNEL_LANES == 0 else "xla"
    if asked == "fused" and platform != "tpu":
        raise ConfigError(f"attention_kernel 'fused' runs on TPU, and this is {platform}; use 'auto' or 'xla'")
    return asked


def attend_block(
    q: Queries, kv: KeysValues, segments: tuple[KeysValues, ...] | None, at: Any, scoring: Scoring,
    config: MemoryConfig, kernel: Kernel,
) -> Queries:  # fmt: skip
    """`attend` of one block of each row to the sources of `block_step.seen_by_tokens`, or of `seen_by_fam`.

    Args:
      q: queries [B, K, G, Q, H] of the block's S tokens, or of FAM's F activations, which see the whole block.
      kv: keys and values of the block's tokens, then of P FAMs, the newest first, [B, K, S + P F, H].
      segments: keys and values [B, K, S, H] of the previous blocks within reach, the nearest last; None for FAM's
        queries.
      at: the block's position, `block_step.At`.
      scoring: of the layer.
      config: the layer's memory settings.
      kernel: `fused` or `interpret`.

    Returns:
      [B, K, G, Q, H] in the queries' dtype.
    """
    S = config.block_size
    run: Callable[..., Any] = functools.partial(
        _on_one_device, (scoring, config, segments is not None, kernel.name == "interpret")
    )
    one = lambda x: x[:, None]
    own = tuple(one(x[..., :S, :]) for x in kv)
    fam = tuple(one(x[..., S:, :]) for x in kv) if config.fam_length else None
    past = tuple(jnp.stack(parts, axis=1) for parts in zip(*segments or (), strict=True)) or None
    visible = jnp.minimum(at.fam_updates + 1, config.previous_fams) * config.fam_length
    args = (one(q), own, past, fam, one(at.blocks_before.astype(jnp.int32)), one(visible.astype(jnp.int32)))
    if kernel.per_device is not None:
        pair = (KEY_AXES, KEY_AXES)
        axes = (QUERY_AXES, pair, pair if past else None, pair if fam else None, BLOCK_AXES, BLOCK_AXES)
        run = kernel.per_device(run, axes, QUERY_AXES)
    return run(*args)[:, 0]


def takes_fam(config: MemoryConfig) -> bool:
    """Whether the kernel supports FAM's own queries: F must be a multiple of 16, the rows of a bfloat16 tile."""
    return config.fam_length % 16 == 0


def _on_one_device(
    settings: tuple[Scoring, MemoryConfig, bool, bool], q: Queries, own: KeysValues, past: KeysValues | None,
    fam: KeysValues | None, before: Array, limit: Array,
) -> Queries:  # fmt: skip
    scoring, config, causal, interpret = settings
    B, N, K, G, Q, H = q.shape
    S = own[0].shape[-2]
    q = q * (scoring.scale or 1.0 / math.sqrt(H))
    reach = past[0].shape[1] if past else 0
    plan = Plan(
        kv_heads=K, group=G, head=2 * _padded(H // 2, LANES // 2), block=S, reach=reach, blocks=N, queries=Q,
        causal=causal, tile=next(tile for tile in TILES if S % tile == 0), window=config.token_window, cap=scoring.cap,
        stop_gradient=config.stop_gradient, fam=fam is not None, interpret=interpret,
    )  # fmt: skip
    # Joined before they are laid out for the kernel, a layer's own keys would be transposed twice.
    keys, values = (_rows(own[i]) for i in (0, 1))
    if past:
        keys, values = (jnp.concatenate([_rows(past[i]), x], axis=1) for i, x in enumerate((keys, values)))
    fam_k, fam_v = (_fill(_rows(x)) for x in fam) if fam else (None, None)
    turns = jnp.asarray(_turns(plan, H, scoring.rope))
    queries = _rows(q.reshape(B, N, K * G, Q, H))
    out = _attention(plan, Arrays(queries, keys, values, fam_k, fam_v, turns, before, limit))
    out = out.reshape(B, N, Q, K, G, 2, plan.head // 2)[..., : H // 2]
    return jnp.moveaxis(out.reshape(B, N, Q, K, G, H), 2, 4)


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _rows(x_KSH: Float[Array, "... K S H"]) -> Float[Array, "... S KH"]:
    """[..., K, S, H] to [..., S, K H']: the layout in which projections make it. Each half of a head (RoPE turns the
    one into the other) is filled up with zeros to half a register's lanes."""
    half = x_KSH.shape[-1] // 2
    x = jnp.moveaxis(x_KSH, -3, -2)
    if missing := _padded(half, LANES // 2) - half:
        x = jnp.pad(x.reshape(*x.shape[:-1], 2, half), ((0, 0),) * x.ndim + ((0, missing),))
    return x.reshape(*x_KSH.shape[:-3], x_KSH.shape[-2], -1)


def _fill(fam: Array) -> Array:
    """FAM's columns [..., C, K H'] filled up to whole registers."""
    C = fam.shape[-2]
    return jnp.pad(fam, ((0, 0),) * (fam.ndim - 2) + ((0, _padded(C, LANES) - C), (0, 0)))


def _turns(plan: Plan, head: int, rope_settings: Rope | float) -> np.ndarray:
    """float32 [2, W + 1, 1, H']: for 0, 1, ... blocks of distance, what a query and what its other half are
    multiplied by, so that it is rotated by that distance."""
    cos, sin = rope.table(np.arange(plan.reach + 1) * plan.block, head // 2, rope_settings)
    fill = ((0, 0), (0, plan.head // 2 - head // 2))
    cos, sin = np.pad(cos, fill), np.pad(sin, fill)
    return np.stack([np.concatenate([cos, cos], axis=-1), np.concatenate([-sin, sin], axis=-1)])[:, :, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, arrays: Arrays) -> Array:
    return fused_calls.forward(plan, arrays)[0]


def _attention_forward(plan: Plan, arrays: Arrays) -> tuple[Array, tuple[Arrays, Array, Array]]:
    out, log_total = fused_calls.forward(plan, arrays)
    return out, (arrays, out, log_total)


def _attention_backward(plan: Plan, kept: tuple[Arrays, Array, Array], d_out: Array) -> tuple[Arrays]:
    arrays, out, log_total = kept
    product = d_out.astype(jnp.float32) * out.astype(jnp.float32)
    # The softmax's backward pass needs sum_c p_c dp_c, which is d_out . out.
    mean = product.reshape(*out.shape[:-1], -1, plan.head).sum(axis=-1)
    mean = jnp.moveaxis(mean, -1, -2)[..., None, :]
    dq, dk, dv, d_fam_k, d_fam_v = fused_calls.backward(plan, arrays, d_out, log_total, mean)
    nothing: Any = None  # known positions have no gradient
    return (Arrays(dq, dk, dv, d_fam_k, d_fam_v, nothing, nothing, nothing),)


_attention.defvjp(_attention_forward, _attention_backward)
