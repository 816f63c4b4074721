"""Fingerprints of models: two are equal if and only if configuration and weights are equal."""

import functools
import hashlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt32

from famjax.dims import Array


def fingerprint(text: str, arrays: Iterable[tuple[str, Array]]) -> str:
    """Returns a hash of 32 hexadecimal digits over a text and arrays: their names, shapes, dtypes and bits.

    The arrays are reduced on their devices, at memory bandwidth. The sums are of integers, so they do not depend
    on the order of summation or the number of devices.
    """
    digest = hashlib.sha256(text.encode())
    for name, array in arrays:
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.asarray(_sums(array), "<u4").tobytes())
    return digest.hexdigest()[:32]


@functools.partial(jax.jit)
def _sums(array: Array) -> UInt32[Array, "2"]:
    """Returns two sums modulo 2^32 of the array's bits, each weighted by an odd hash of its position."""
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        place = place * np.uint32(0x01000193) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    weigh = lambda factor: (_mix(place * np.uint32(factor)) | np.uint32(1)) * _mix(bits + np.uint32(factor))
    return jnp.stack([weigh(factor).sum(dtype=jnp.uint32) for factor in (0x9E3779B1, 0x85EBCA77)])


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Returns a 32-bit hash (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
