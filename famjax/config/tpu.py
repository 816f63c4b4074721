"""TPU topologies such as `v5p:4x4x4`: chips, hosts, devices, and their names in Google Cloud.

Numbers and names are from Google Cloud's documentation of each TPU version ("TPU configurations", "Plan TPUs in
GKE"). The chips of a slice are connected by ICI; a job may have several slices, connected by DCN.
"""

import dataclasses
import functools
import itertools
import math
import re

from famjax.config.checks import ConfigError, at_least, one_of


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU version.

    Attributes:
      name: name of the version in topologies.
      dims: axes of the ICI network of a slice.
      most: chips of the largest slice.
      cores: TensorCores per chip, which some accelerator types count.
      devices: JAX devices per chip; two TensorCores are one device (v4, v5p) or two (tpu7x).
      accelerator: prefix of its accelerator types: `v5p` in `v5p-128`.
      counts_cores: whether the number of an accelerator type counts cores instead of chips.
      gke: node label `cloud.google.com/gke-tpu-accelerator`.
      runtime: default software version of TPU VMs; empty if only GKE offers the version.
    """

    name: str
    dims: int
    most: int
    cores: int
    devices: int
    accelerator: str
    counts_cores: bool
    gke: str
    runtime: str


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 3, 4096, 2, 1, "v4", True, "tpu-v4-podslice", "tpu-ubuntu2204-base"),
        Chip("v5e", 2, 256, 1, 1, "v5litepod", False, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite"),
        Chip("v5p", 3, 6144, 2, 1, "v5p", True, "tpu-v5p-slice", "v2-alpha-tpuv5"),
        Chip("v6e", 2, 256, 1, 1, "v6e", False, "tpu-v6e-slice", "v2-alpha-tpuv6e"),
        Chip("tpu7x", 3, 9216, 2, 2, "tpu7x", True, "tpu7x", ""),
    )
}
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Larger slices with three axes have sides that are multiples of 4.
SMALL_CUBES = ((1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4))
CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class Topology:
    """The TPU slices of a job: one or several of the same shape.

    Attributes:
      chip: the TPU version.
      shape: chips along each axis of a slice, as given.
      slices: number of slices.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    def __post_init__(self) -> None:
        """Raises `ConfigError` if there is no slice of this shape."""
        at_least("slices", self.slices, 1)
        if tuple(sorted(self.shape)) not in shapes(self.chip):
            near = sorted(shapes(self.chip), key=lambda shape: (abs(math.prod(shape) - math.prod(self.shape)), shape))
            raise ConfigError(
                f"there is no {self.chip.name} slice of {written(self.shape)} chips; nearest are "
                f"{' and '.join(written(shape) for shape in near[:2])}"
            )

    def __str__(self) -> str:
        return f"{self.chip.name}:{written(self.shape)}"

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """JAX devices of all slices; the product of a mesh's axis sizes must equal it."""
        return self.chips * self.chip.devices

    @property
    def chips_per_host(self) -> int:
        """Chips per host: up to 8 chips of v5e or v6e are one host; larger slices have hosts of 4."""
        chips = math.prod(self.shape)
        return chips if self.chip.dims == 2 and chips <= 8 else min(chips, CHIPS_PER_HOST)

    @property
    def hosts_per_slice(self) -> int:
        """Hosts, and therefore processes, of one slice."""
        return math.prod(self.shape) // self.chips_per_host

    @property
    def hosts(self) -> int:
        """Hosts of all slices."""
        return self.slices * self.hosts_per_slice

    @property
    def accelerator_type(self) -> str:
        """Accelerator type of a slice in the Cloud TPU API: `v5p-128` is v5p:4x4x4, `v5litepod-16` is v5e:4x4."""
        chips = math.prod(self.shape)
        return f"{self.chip.accelerator}-{chips * (self.chip.cores if self.chip.counts_cores else 1)}"

    @property
    def gke_topology(self) -> str:
        """Topology of a slice in GKE's notation: the shortest side first, except 2x2x1."""
        shape = sorted(self.shape)
        return "2x2x1" if shape == [1, 2, 2] else written(tuple(shape))


def parse(text: str, slices: int = 1) -> Topology:
    """Parses `v5p:4x4x4`. Raises `ConfigError` for an unknown version or an impossible shape."""
    text = text.strip().lower()
    match = re.fullmatch(r"([^:]+):(\d+(?:x\d+)*)", text)
    if not match:
        if re.fullmatch(r"[a-z0-9]+-\d+", text):  # an accelerator type
            raise ConfigError(f"the topology {text!r} is not written VERSION:SHAPE; {of_accelerator_type(text)} would "
                              f"be {text}")  # fmt: skip
        raise ConfigError(f"the topology {text!r} is not written VERSION:SHAPE; for example v5p:4x4x4 or v5e:4x4")
    one_of("TPU version", match[1], tuple(CHIPS))
    chip, shape = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
    if len(shape) != chip.dims or 0 in shape:
        raise ConfigError(f"the topology {text!r} does not have the {chip.dims} axes of {chip.name}; for example "
                          f"{chip.name}:{'x'.join(['4'] * chip.dims)}")  # fmt: skip
    return Topology(chip, shape, slices)


def of_accelerator_type(name: str, slices: int = 1) -> Topology:
    """Parses an accelerator type such as `v5p-128`, with the most cubic shape. Raises `ConfigError` as `parse` does."""
    prefix, _, number = name.strip().lower().rpartition("-")
    chip = next((chip for chip in CHIPS.values() if prefix in (chip.accelerator, chip.name)), None)
    if chip is None or not number.isdigit():
        known = ", ".join(f"{chip.accelerator}-N" for chip in CHIPS.values())
        raise ConfigError(f"the accelerator type {name!r} is not one of {known}")
    there = {Topology(chip, shape).accelerator_type: shape
             for shape in sorted(shapes(chip), key=lambda shape: -sum(shape))}  # fmt: skip
    name = f"{chip.accelerator}-{number}"  # v5e-16 is v5litepod-16
    if name not in there:
        near = sorted(there, key=lambda other: abs(int(other.rpartition("-")[2]) - int(number)))
        raise ConfigError(f"there is no accelerator type {name}; nearest are {' and '.join(near[:2])}")
    return Topology(chip, there[name], slices)


@functools.cache
def shapes(chip: Chip) -> set[tuple[int, ...]]:
    """Returns all slice shapes of a TPU version, the shortest side first."""
    if chip.dims == 2:
        return set(FLAT)
    sides = range(4, chip.most // 16 + 1, 4)
    large = {
        (a, b, c)
        for a, b in itertools.combinations_with_replacement(sides[:8], 2)
        for c in range(b, chip.most // (a * b) + 1, 4)
    }
    return {*SMALL_CUBES, *large}


def written(shape: tuple[int, ...]) -> str:
    """Formats a shape as `4x4x8`, for (4, 4, 8)."""
    return "x".join(map(str, shape))
