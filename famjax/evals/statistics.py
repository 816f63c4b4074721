"""Intervals for counted successes."""

import math

# The normal quantile of a two-sided interval of 95%.
Z95 = 1.959963984540054


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion; sensible at 0 and at all of n. Source: Wilson (1927).

    Example: 0 of 64 gives (0, 0.057), 64 of 64 gives (0.943, 1).
    """
    if trials <= 0:
        raise ValueError("no trials: an interval needs at least one")
    share = successes / trials
    weight = z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == trials else middle + half
