"""Converts the compiler's counts to seconds: an estimate, never a measurement.

compute      cycles / clock                 the compiler's own estimate of every fusion
kernels      max(FLOPs / (peak / 2), bytes / HBM bandwidth)      Pallas kernels, from their cost estimates
collectives  bytes sent / bandwidth of one ICI axis, both directions; DCN between slices is not modelled
a step       between max(compute + kernels, collectives), fully overlapped, and their sum, not overlapped
"""

import dataclasses
from typing import Any

from famjax.plan.topology import Figures

# Assumption: attention's products have 128 columns, which fill half of a 256-wide matrix unit.
KERNEL_EFFICIENCY = 0.5
# Fraction of HBM that a program should not exceed: the runtime and the next batch need some too.
COMFORT = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated seconds of one run of a program.

    Attributes:
      by_part: seconds of the compiler's cycles, by part.
      kernels, collectives: seconds of Pallas kernels and of collectives, as above.
    """

    by_part: dict[str, float]
    kernels: float
    collectives: float

    @property
    def compute(self) -> float:
        """Seconds of all computation."""
        return sum(self.by_part.values()) + self.kernels

    @property
    def longest(self) -> float:
        """Seconds without overlap; the report uses this as the step time."""
        return self.compute + self.collectives

    @property
    def shortest(self) -> float:
        """Seconds with all collectives overlapped with compute."""
        return max(self.compute, self.collectives)


def estimate(raw: dict[str, Any], figures: Figures, peak_flops: float) -> Estimate:
    """Estimates the time of a finished compilation (`compile.py`). `peak_flops` is the peak FLOP/s of one device."""
    seconds = 0.0
    for kernel in raw["kernels"]:
        by_flops = kernel["flops"] / (KERNEL_EFFICIENCY * peak_flops)
        seconds += kernel["runs"] * max(by_flops, kernel["bytes_accessed"] / figures.memory_bytes_per_second)
    sent = sum(one["sent"] for one in raw["collectives"])
    by_part = {part: cycles / figures.clock_hz for part, cycles in raw["cycles"].items()}
    return Estimate(by_part, seconds, sent / figures.link_bytes_per_second)


def binds(peak: int, found: Estimate | None, figures: Figures) -> str:
    """Returns what limits the program: memory, collectives or compute."""
    if found is None or peak > COMFORT * figures.hbm_bytes:
        return "memory"
    return "collectives" if found.collectives > found.compute else "compute"
