"""The device mesh of a job, with axes `data`, `fsdp` and `tensor` (docs/sharding.md)."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from famjax.config import MESH_AXES, ConfigError


def make_mesh(sizes: tuple[int, int, int] = (1, 1, 1), devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of `sizes` devices along `data`, `fsdp` and `tensor`.

    The last axes communicate most, so neighbours along them are also neighbours in the hardware. Slices of a
    multi-slice job are connected by a slower network (DCN), so only `data`, which only sums gradients, spans slices.

    Args:
      sizes: devices along each axis. If the job has more, a single process uses the first ones.
      devices: devices to choose from; None: all of the job.

    Raises:
      ConfigError: more devices than the job has, idle devices in a job of several processes, or slices that do not
        divide `data`.
    """
    devices = list(jax.devices() if devices is None else devices)
    asked, there = math.prod(sizes), len(devices)
    shape = ", ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if asked > there:
        raise ConfigError(f"MESH ({shape}) asks for {asked} devices, but this job has {there}; use at most {there}")
    processes = len({device.process_index for device in devices})
    if asked < there and processes > 1:
        raise ConfigError(
            f"MESH ({shape}) uses {asked} of {there} devices, but every process of a job must take part; "
            f"use all {there}"
        )
    return Mesh(_arrange(sizes, devices, shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _arrange(sizes: tuple[int, int, int], devices: list[Any], shape: str) -> np.ndarray:
    """Returns an array of devices [data, fsdp, tensor]."""
    asked = math.prod(sizes)
    if asked < len(devices):
        return np.array(devices[:asked]).reshape(sizes)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, fsdp, tensor = sizes
    if data % slices:
        raise ConfigError(
            f"MESH ({shape}) does not fit {slices} slices: `data` spans the slices; use a multiple of {slices}"
        )
    try:
        return _along_the_network((data // slices, fsdp, tensor), slices, devices, split=False)
    except NotImplementedError:  # a mesh axis would have to split an axis of the physical network
        return _along_the_network((data // slices, fsdp, tensor), slices, devices, split=True)


def _along_the_network(sizes: tuple[int, int, int], slices: int, devices: list[Any], split: bool) -> np.ndarray:
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=split)
    return mesh_utils.create_hybrid_device_mesh(sizes, (slices, 1, 1), devices, allow_split_physical_axes=split)
