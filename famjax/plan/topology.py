"""Performance figures of TPU versions, in addition to `config/tpu.py`, and meshes for a topology."""

import dataclasses
import math

from famjax.config import MESH_AXES, ConfigError
from famjax.config.tpu import CHIPS, Topology, parse, written

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Figures:
    """Figures of one JAX device: a chip, or half a chip of tpu7x.

    Attributes:
      hbm_bytes: HBM available to a program, from the compiler's out-of-memory message.
      clock_hz: inferred: peak FLOP/s / (matrix units x FLOPs per cycle). Converts the compiler's cycles to seconds.
      link_bytes_per_second: bandwidth of one ICI axis, both directions; from the published figure of a chip.
      memory_bytes_per_second: published HBM bandwidth.
    """

    hbm_bytes: int
    clock_hz: float
    link_bytes_per_second: float
    memory_bytes_per_second: float


FIGURES = {
    "v5e": Figures(int(15.75 * GIB), 1.5e9, 9e10, 8.2e11),
    "v5p": Figures(int(95.73 * GIB), 1.75e9, 1.8e11, 2.77e12),
    "v6e": Figures(int(31.24 * GIB), 1.75e9, 1.8e11, 1.64e12),
    "tpu7x": Figures(int(94.74 * GIB), 2.2e9, 1e11, 3.7e12),
}
# For longer mesh axes the v5p compiler all-reduces zero-padded shards instead of all-gathering.
LONGEST_FSDP = 32


def planned(text: str, slices: int = 1) -> Topology:
    """Returns the topology of a name such as `v5p:4x4x4`. Raises `ConfigError`, which lists the TPU versions that can
    be planned, if it is unknown or cannot be."""
    try:
        topology = parse(text, slices)
    except ConfigError as error:
        stop = "" if str(error).endswith("?") else "."
        raise ConfigError(f"{error}{stop} Known: {known()}") from error
    if topology.chip.name not in FIGURES:
        raise ConfigError(
            f"{topology.chip.name} cannot be planned: the compiler has two devices per chip, but a job has one. "
            f"Known: {known()}"
        )
    return topology


def known() -> str:
    """Returns all TPU versions in a line: `v5e:1x1 to 16x16 (256 chips, 64 hosts), 15.75 GiB per chip; ...`."""
    lines = []
    for name, one in FIGURES.items():
        chip = CHIPS[name]
        least, large = ("1x1", Topology(chip, (16, 16))) if chip.dims == 2 else ("2x2x1", Topology(chip, (8, 8, 8)))
        more = " and more" if chip.dims == 3 else ""
        lines.append(f"{name}:{least} to {written(large.shape)}{more} ({large.chips} chips, {large.hosts} hosts), "
                     f"{one.hbm_bytes * chip.devices / GIB:g} GiB per chip")  # fmt: skip
    return "; ".join(lines)


def figures(topology: Topology) -> Figures:
    """Returns the figures of a device of this topology."""
    return FIGURES[topology.chip.name]


def check_mesh(mesh: dict[str, int], topology: Topology, batch_size: int, microbatches: int) -> None:
    """Raises `ConfigError`, with a suggestion, unless the mesh has the topology's number of devices and `data` is a
    multiple of its slices."""
    sizes = tuple(mesh.get(axis, 1) for axis in MESH_AXES)
    data, _, tensor = sizes
    if math.prod(sizes) == topology.devices and data % topology.slices == 0:
        return
    shape = ", ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    slices = f"{topology.slices} x " if topology.slices > 1 else ""
    hosts = "1 host" if topology.hosts == 1 else f"{topology.hosts} hosts"
    has = f"{slices}{topology} has {topology.devices} devices ({topology.chips} chips on {hosts})"
    better = propose(topology, batch_size // microbatches, tensor)
    if math.prod(sizes) == topology.devices:
        has = f"`data` runs across the {topology.slices} slices and must be a multiple of their number"
    raise ConfigError(f'MESH ({shape}) is {math.prod(sizes)} devices, but {has}; use for example --gin.MESH="{better}"')


def propose(topology: Topology, rows: int, tensor: int = 1) -> dict[str, int]:
    """Returns a mesh of all devices: mainly `fsdp`, then `data`; `tensor` only if there are too few rows."""
    return meshes(topology, rows, tensor)[0]


def meshes(topology: Topology, rows: int, tensor: int = 1) -> list[dict[str, int]]:
    """Returns all meshes that divide `rows` rows evenly, the most promising first."""
    devices, slices = topology.devices, topology.slices
    found = []
    for t in _divisors(devices // slices):
        for fsdp in _divisors(devices // slices // t):
            data = devices // t // fsdp
            if rows % (data * fsdp) == 0:
                # The requested `tensor` first, then small `tensor`, then large `fsdp` up to LONGEST_FSDP.
                rank = (t != tensor, t, fsdp > LONGEST_FSDP, -fsdp if fsdp <= LONGEST_FSDP else fsdp)
                found.append((rank, {"data": data, "fsdp": fsdp, "tensor": t}))
    return [mesh for _, mesh in sorted(found, key=lambda one: one[0])] or [{"data": 1, "fsdp": 1, "tensor": devices}]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
