"""From the compiler's counts to seconds: an estimate, never a measurement.

compute      cycles / clock                 the compiler's own estimate of every fusion
kernels      max(FLOPs / (peak / 2), bytes / HBM's rate)      hand-written ones, by the costs that they state
collectives  bytes sent / one axis of the slice's network, both directions; not the network between slices
a step       between max(compute + kernels, collectives), all overlapped, and their sum, nothing overlapped
"""

import dataclasses
from typing import Any

from famjax.plan.topology import Figures

# Attention multiplies by 128 columns at a time, which fill a matrix unit of 256 by half; an assumption.
KERNEL_EFFICIENCY = 0.5
# More of its memory than this a program should not need: the runtime and the next batch want some, too.
COMFORT = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one run of a program.

    Attributes:
      by_part: of the compiler's cycles.
      kernels, collectives: see above.
    """

    by_part: dict[str, float]
    kernels: float
    collectives: float

    @property
    def compute(self) -> float:
        """Everything that the device computes."""
        return sum(self.by_part.values()) + self.kernels

    @property
    def longest(self) -> float:
        """Nothing overlaps: what the report takes for a step."""
        return self.compute + self.collectives

    @property
    def shortest(self) -> float:
        """All collectives run beside other work."""
        return max(self.compute, self.collectives)


def estimate(raw: dict[str, Any], figures: Figures, peak_flops: float) -> Estimate:
    """Of a finished compilation (`compile.py`). peak_flops: of one device."""
    seconds = 0.0
    for kernel in raw["kernels"]:
        by_flops = kernel["flops"] / (KERNEL_EFFICIENCY * peak_flops)
        seconds += kernel["runs"] * max(by_flops, kernel["bytes_accessed"] / figures.memory_bytes_per_second)
    sent = sum(one["sent"] for one in raw["collectives"])
    by_part = {part: cycles / figures.clock_hz for part, cycles in raw["cycles"].items()}
    return Estimate(by_part, seconds, sent / figures.link_bytes_per_second)


def binds(peak: int, found: Estimate | None, figures: Figures) -> str:
    """What limits the program: memory, collectives or compute."""
    if found is None or peak > COMFORT * figures.hbm_bytes:
        return "memory"
    return "collectives" if found.collectives > found.compute else "compute"
