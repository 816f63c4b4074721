"""Timing of alternating runs. A machine's speed drifts during a benchmark; alternation exposes all runs
to the same drift, which consecutive measurements would mistake for a difference."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Clock = Callable[[], float]
# Called with (current measurement, runs done, total runs).
Tell = Callable[[str, int, int], None]


class Spread(NamedTuple):
    """Median and range of measurements."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Returns median, minimum and maximum."""
    return Spread(statistics.median(values), min(values), max(values))


def alternate(
    runs: Mapping[str, Callable[[], None]], repeats: int, clock: Clock = time.perf_counter,
    on_turn: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Times the runs in alternating order, for `repeats` rounds: A B C, then C B A, and so on, so that none is always
    first. Calls `on_turn` with (runs done, total runs). Returns for each name its times in seconds; the i-th entries of
    all names are from the same round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names, done = list(runs), 0
    for turn in range(repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            began = clock()
            runs[name]()
            times[name].append(clock() - began)
            done += 1
            if on_turn is not None:
                on_turn(done, repeats * len(names))
    return times


def paired_ratio(times: Mapping[str, Sequence[float]], above: str, below: str) -> Spread:
    """Returns the spread of times[above] / times[below], paired by round."""
    return spread([a / b for a, b in zip(times[above], times[below], strict=True)])


def peak_rss_mib() -> float:
    """Returns the peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
