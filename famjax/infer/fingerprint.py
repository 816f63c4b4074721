"""Fingerprints of models: two are equal if and only if configuration and weights are equal."""

import dataclasses
import functools
import hashlib
from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt32

from famjax.config import ModelConfig
from famjax.dims import Array

# Settings of LoRA that a fingerprint never had. LoRA is merged at loading, so all of its settings are the defaults;
# another field would change the fingerprint of every model.
_OF_LORA = ("first_layer",)


def settings_of(config: ModelConfig, without: Collection[str]) -> dict[str, Any]:
    """Returns the settings of a loaded model that enter its fingerprint, by name, except those in `without`."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in without}
    return settings | {"lora": {name: value for name, value in settings["lora"].items() if name not in _OF_LORA}}


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
