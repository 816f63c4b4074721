"""Times of things that take turns. A machine's speed drifts while it is measured, so that two things
measured one after the other differ for reasons of their own; in turns, the drift meets both."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Clock = Callable[[], float]


class Spread(NamedTuple):
    """Median and range of some measurements."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, least and largest."""
    return Spread(statistics.median(values), min(values), max(values))


def alternate(
    runs: Mapping[str, Callable[[], None]], repeats: int, clock: Clock = time.perf_counter,
    on_turn: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each run, in turns: A B C, then C B A, and so on, so that none is always first.

    Args:
      runs: by name; each returns when its work is done.
      repeats: turns.
      clock: seconds.
      on_turn: called with runs done and runs in all.

    Returns:
      For each name its times, the i-th of all names from the same turn.
    """
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
    """Of the ratio of two runs, turn by turn."""
    return spread([a / b for a, b in zip(times[above], times[below], strict=True)])


def peak_rss_mib() -> float:
    """The most memory that this process has held, everything included, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
