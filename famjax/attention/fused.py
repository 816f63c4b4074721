"""Block sliding window attention with FAM in one kernel: no score ever leaves the chip's vector memory.

`attend_blocks` is what `attend` computes of all blocks of a layer, as Pallas kernels for TPU
(`fused_kernels.py`). Keys lie where they are, one block after the other; the kernel finds the window of a
block by index, so no key is copied for each block that sees it, and what cannot be seen (above the diagonal,
before the document, beyond a token window) is neither fetched nor computed. Between blocks the queries are
turned (RoPE) by the distance inside the kernel, in float32; FAM's few keys are turned outside.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import fused_kernels, rope
from famjax.attention.attend import Scoring, Source, turned_keys
from famjax.attention.fused_kernels import LANES, Plan
from famjax.config import KERNEL_LANES, ConfigError, MemoryConfig

# The sides of a tile of scores: the first that divides a block is taken.
TILES = (512, 256, 128)

# f, the names of the axes of its arguments and of its result, to f on every device's part of them.
PerDevice = Callable[[Callable[..., Any], Any, Any], Callable[..., Any]]

# Names of axes (`runtime/sharding.py`): heads are cut where key/value heads divide, else within their groups.
QUERY_AXES = ("batch", None, "kv_heads", "query_group", None, None)
KEY_AXES = ("batch", None, "kv_heads", None, None)
BLOCK_AXES = ("batch", None)


class Kernel(NamedTuple):
    """By what all blocks of a layer attend.

    Attributes:
      name: `xla` (scores are arrays), `fused` (this file) or `interpret` (this file on any platform, step by
        step: very slow, for tests).
      per_device: runs a function on each device's part; None where there is one device.
    """

    name: str = "xla"
    per_device: PerDevice | None = None


XLA = Kernel()


def choose(asked: str, platform: str, block_size: int) -> str:
    """The kernel for `ModelConfig.attention_kernel` on a platform (`tpu`, `cpu`, `gpu`).

    Raises:
      ConfigError: the fused kernel is asked for where it cannot run.
    """
    if asked == "auto":
        return "fused" if platform == "tpu" and block_size % KERNEL_LANES == 0 else "xla"
    if asked == "fused" and platform != "tpu":
        raise ConfigError(f"attention_kernel 'fused' runs on TPU, and this is {platform}; use 'auto' or 'xla'")
    return asked


def attend_blocks(
    q: Any, own: tuple[Any, Any], past: tuple[Any, Any] | None, fam: list[Source], fam_visible: Any,
    blocks_before: Any, scoring: Scoring, config: MemoryConfig, kernel: Kernel, causal: bool = True,
) -> Any:  # fmt: skip
    """What `attend` gives for every block of a layer and the sources that `blocks.py` makes of the same.

    Args:
      q: [B, N, K, G, Q, H], turned by their offsets within their block; Q is S.
      own: keys (turned likewise) and values of the same blocks, [B, N, K, S, H].
      past: of the blocks before them that can be seen, [B, W, K, S, H], the nearest last; None where none can.
      fam: FAMs that each block sees, the newest first: sources [B, N, K, F, H].
      fam_visible: int [B, N], how many of them there are already.
      blocks_before: int [B, N], see `Blocks`.
      scoring: RoPE, scale and cap.
      config: the memory's settings for this layer.
      kernel: `fused` or `interpret`.
      causal: queries are tokens; else they are FAM's, F of them, which see the whole block and no past.

    Returns:
      [B, N, K, G, Q, H] in the queries' dtype.
    """
    run: Callable[..., Any] = functools.partial(
        _on_one_device, scoring=scoring, config=config, causal=causal, interpret=kernel.name == "interpret"
    )
    turned = [(turned_keys(source, scoring.rope), source.v) for source in fam]
    fam_kv = tuple(jnp.concatenate(parts, axis=-2) for parts in zip(*turned, strict=True)) if fam else None
    limit = (fam_visible * config.fam_length).astype(jnp.int32)
    args = (q, own, past, fam_kv, blocks_before.astype(jnp.int32), limit)
    if kernel.per_device is not None:
        pair = (KEY_AXES, KEY_AXES)
        axes = (QUERY_AXES, pair, pair if past else None, pair if fam else None, BLOCK_AXES, BLOCK_AXES)
        run = kernel.per_device(run, axes, QUERY_AXES)
    return run(*args)


def attend_of_fam(
    q: Any, own: tuple[Any, Any], fam: list[Source], updates_B: Any, scoring: Scoring, config: MemoryConfig,
    kernel: Kernel,
) -> Any:  # fmt: skip
    """What `attend` gives for FAM's queries [B, K, G, F, H], which see the previous FAMs and a whole block.

    Args:
      q, scoring, config, kernel: see `attend_blocks`.
      own: the block's keys and values, [B, K, S, H].
      fam: the previous FAMs, the newest first: sources [B, K, F, H] at known distances.
      updates_B: how many updates there were.
    """
    one = lambda x: x[:, None]
    sources = [source._replace(k=one(source.k), v=one(source.v)) for source in fam]
    there = one(jnp.minimum(updates_B + 1, config.previous_fams))
    pair = (one(own[0]), one(own[1]))
    return attend_blocks(one(q), pair, None, sources, there, jnp.zeros_like(there), scoring, config, kernel, False)[
        :, 0
    ]


def takes_fam(kernel: Kernel, config: MemoryConfig) -> bool:
    """Whether FAM's own attention can go by `attend_of_fam`: whole tiles of queries, at distances that are known."""
    return kernel.name != "xla" and config.fam_length % 16 == 0 and config.fam_position != "zero"


def _on_one_device(
    q: Any, own: Any, past: Any, fam: Any, before: Any, limit: Any, scoring: Scoring, config: MemoryConfig,
    causal: bool, interpret: bool,
) -> Any:  # fmt: skip
    B, N, K, G, Q, H = q.shape
    S = own[0].shape[-2]
    q = q * (scoring.scale or 1.0 / math.sqrt(H))
    reach = past[0].shape[1] if past else 0
    plan = Plan(
        kv_heads=K, group=G, head=2 * _padded(H // 2, LANES // 2), block=S, reach=reach, blocks=N, queries=Q,
        causal=causal, tile=next(tile for tile in TILES if S % tile == 0), window=config.token_window, cap=scoring.cap,
        stop_gradient=config.stop_gradient, fam=fam is not None, interpret=interpret,
    )  # fmt: skip
    # Joined before they are laid out for the kernel, a layer's own keys would be turned about twice.
    keys, values = (_rows(own[i]) for i in (0, 1))
    if past:
        keys, values = (jnp.concatenate([_rows(past[i]), x], axis=1) for i, x in enumerate((keys, values)))
    fam_kv = tuple(_fill(_rows(x)) for x in fam) if fam else (None, None)
    turns = _turns(plan, H, scoring.rope)
    out = _attention(plan, _rows(q.reshape(B, N, K * G, Q, H)), keys, values, *fam_kv, turns, before, limit)
    out = out.reshape(B, N, Q, K, G, 2, plan.head // 2)[..., : H // 2]
    return jnp.moveaxis(out.reshape(B, N, Q, K, G, H), 2, 4)


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def tokens_first(x_KSH: Any) -> Any:
    """[..., K, S, H] to [..., S, K H], as projections make it: arrays of many blocks are cheap to slice like this."""
    x = jnp.moveaxis(x_KSH, -3, -2)
    return x.reshape(*x.shape[:-2], -1)


def heads_first(x_SH: Any, heads: int) -> Any:
    """What `tokens_first` undoes."""
    return jnp.moveaxis(x_SH.reshape(*x_SH.shape[:-1], heads, -1), -2, -3)


def _rows(x_KSH: Any) -> Any:
    """[..., K, S, H] to [..., S, K H']: the layout in which projections make it. Each half of a head (RoPE turns the
    one into the other) is filled up with zeros to half a register's lanes."""
    half = x_KSH.shape[-1] // 2
    x = jnp.moveaxis(x_KSH, -3, -2)
    if missing := _padded(half, LANES // 2) - half:
        x = jnp.pad(x.reshape(*x.shape[:-1], 2, half), ((0, 0),) * x.ndim + ((0, missing),))
    return x.reshape(*x_KSH.shape[:-3], x_KSH.shape[-2], -1)


def _fill(fam: Any) -> Any:
    """FAM's columns [..., C, K H'] filled up to whole registers."""
    C = fam.shape[-2]
    return jnp.pad(fam, ((0, 0),) * (fam.ndim - 2) + ((0, _padded(C, LANES) - C), (0, 0)))


def _turns(plan: Plan, head: int, rope_settings: Any) -> Any:
    """float32 [2, W + 1, 1, H']: for 0, 1, ... blocks of distance, what a query and what its other half are
    multiplied by, so that it is turned by that distance."""
    cos, sin = rope.table(np.arange(plan.reach + 1) * plan.block, head // 2, rope_settings)
    fill = ((0, 0), (0, plan.head // 2 - head // 2))
    cos, sin = np.pad(cos, fill), np.pad(sin, fill)
    return np.stack([np.concatenate([cos, cos], axis=-1), np.concatenate([-sin, sin], axis=-1)])[:, :, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, q: Any, k: Any, v: Any, fam_k: Any, fam_v: Any, turns: Any, before: Any, limit: Any) -> Any:
    return fused_kernels.forward(plan, q, k, v, fam_k, fam_v, turns, before, limit)[0]


def _attention_forward(plan: Plan, *args: Any) -> tuple[Any, Any]:
    out, log_total = fused_kernels.forward(plan, *args)
    return out, (args, out, log_total)


def _attention_backward(plan: Plan, kept: Any, d_out: Any) -> tuple[Any, ...]:
    args, out, log_total = kept
    product = d_out.astype(jnp.float32) * out.astype(jnp.float32)
    # The softmax's backward pass needs sum_c p_c dp_c, which is d_out . out.
    mean = product.reshape(*out.shape[:-1], -1, plan.head).sum(axis=-1)
    mean = jnp.moveaxis(mean, -1, -2)[..., None, :]
    arrays: tuple[Any, ...] = (*args, d_out, log_total, mean)
    return (*fused_kernels.backward(plan, *arrays), None, None, None)


_attention.defvjp(_attention_forward, _attention_backward)
