"""Rotary position embedding (RoPE), in the half-split convention of pretrained decoders.

Scores see only the difference of two positions. So each block turns its queries and keys by their
offsets within the block, 0..S-1, whatever the block's place in the text, and the distance between
two blocks is added where they meet. Angles stay small and exact at token ten million.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np


def turn(x: Any, positions: Any, base: float) -> Any:
    """Rotates each pair (i, i + H/2) of the last axis by `positions * base ** (-2i / H)`.

    Args:
      x: [..., H].
      positions: numbers, broadcast against x[..., 0]; fractions are allowed.
      base: RoPE's base.

    Returns:
      x rotated, in x's dtype; computed in float32.
    """
    half = x.shape[-1] // 2
    cos, sin = _table(positions, half, base)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _table(positions: Any, half: int, base: float) -> tuple[Any, Any]:
    """cos and sin [..., half]; NumPy where the positions are known, so that they are constants of the program."""
    if isinstance(positions, (int, float, np.ndarray)):
        angle = np.asarray(positions, np.float64)[..., None] * base ** (-np.arange(half) / half)
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    angle = positions.astype(jnp.float32)[..., None] * base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    return jnp.cos(angle), jnp.sin(angle)
