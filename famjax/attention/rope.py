"""Rotary position embedding (RoPE), in the half-split convention of pretrained decoders.

Scores depend only on the difference of two positions. So queries and keys are rotated by their offsets within their
block, 0..S-1, wherever the block is in the text, and the distance between two blocks is added when their scores are
computed. Angles stay small and exact at token ten million.
"""

import math
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from famjax.config import Rope
from famjax.dims import Array, Float

# Broadcast against each other; fractions are allowed.
Positions: TypeAlias = Array | np.ndarray | float | int


def rotate(x: Float[Array, "... H"], positions: Positions, rope: Rope | float) -> Float[Array, "... H"]:
    """Rotates each pair (i, i + H/2) of the last axis by `positions * base ** (-2i / H)`.

    Args:
      x: [..., H].
      positions: numbers, broadcast against x[..., 0]; fractions are allowed.
      rope: its base and scaling; a number is a base without scaling.

    Returns:
      x rotated, in x's dtype; computed in float32.
    """
    half = x.shape[-1] // 2
    cos, sin = table(positions, half, rope)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def table(positions: Positions, half: int, rope: Rope | float) -> tuple[Any, Any]:
    """float32 cos and sin [..., half] of the angles. NumPy if the positions are known at trace time, so that they are
    constants of the program."""
    rope = Rope(rope) if isinstance(rope, (int, float)) else rope
    if isinstance(positions, (int, float, np.ndarray)):
        angle = np.asarray(positions, np.float64)[..., None] * frequencies(half, rope)
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    if rope.scaling == "none":
        turns: Any = rope.base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    else:
        turns = frequencies(half, rope).astype(np.float32)
    angle = positions.astype(jnp.float32)[..., None] * turns
    return jnp.cos(angle), jnp.sin(angle)


def frequencies(half: int, rope: Rope) -> np.ndarray:
    """float64 [half]: radians per position of each pair (see `Rope` for the scalings)."""
    turns = rope.base ** (-np.arange(half) / half)
    if rope.scaling == "linear":
        return turns / rope.factor
    if rope.scaling == "llama3":
        fit = rope.original_length * turns / (2 * math.pi)  # turns of each pair over the original length
        low, high = rope.low_frequency_factor, rope.high_frequency_factor
        kept = np.clip((fit - low) / (high - low), 0.0, 1.0)
        return turns * (kept + (1 - kept) / rope.factor)
    return turns
