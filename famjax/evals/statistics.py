"""Confidence intervals: Wilson's for proportions, and the bootstrap over documents for means and ratios."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

# The normal quantile of a two-sided interval of 95%.
Z95 = 1.959963984540054
# Bootstrap samples, and the maximum number of counts in memory at a time.
DRAWS, AT_ONCE = 2000, 2**22
# (low, high); (None, None) for a single unit or equal values, which give no estimate of the variance.
Interval = tuple[float, float] | tuple[None, None]


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Returns Wilson's score interval for a proportion; also valid at 0 and n successes. Source: Wilson (1927).

    Example: 0 of 64 gives (0, 0.057), 64 of 64 gives (0.943, 1).

    Raises:
      ValueError: there are no trials.
    """
    if trials <= 0:
        raise ValueError("no trials: an interval needs at least one")
    share = successes / trials
    weight = Z95**2 / trials
    middle = (share + weight / 2) / (1 + weight)
    half = Z95 / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == trials else middle + half


def mean_interval(values: Sequence[float], units: Sequence[str], seed: int = 0) -> Interval:
    """Returns the 95% interval of a mean. Values of one unit (questions about one document) are resampled together.

    If all values are 0 or 1 with one value per unit, it is Wilson's interval; if all values of several units are the
    same 0 or 1, Wilson's with one trial per unit. Everything else is bootstrapped by unit, but other values that are
    all the same give no interval: its width would be 0, however few they are.
    """
    array = np.asarray(values, np.float64)
    number, inverse = np.unique(np.asarray(units), return_inverse=True)
    counted = bool(np.isin(array, (0.0, 1.0)).all())
    if counted and len(number) == len(array):
        return wilson_interval(int(array.sum()), len(array))
    if counted and len(number) > 1 and len(set(array.tolist())) == 1:
        return wilson_interval(len(number) if array[0] else 0, len(number))
    if len(number) > 1 and np.ptp(array) == 0:
        return None, None
    sums, counts = np.bincount(inverse, array), np.bincount(inverse).astype(np.float64)
    return ratio_interval(sums, counts, seed)


def ratio_interval(above: np.ndarray, below: np.ndarray, seed: int = 0) -> Interval:
    """Returns the bootstrap 95% interval of sum(above) / sum(below), both [units]."""
    return gap_interval((above, below), (np.zeros(len(below)), below), seed)


def gap_interval(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], seed: int = 0) -> Interval:
    """Returns the paired 95% interval of the difference of two ratios of sums, (above, below) each: both are
    resampled with the same units, of which at least two must count.

    The bootstrap samples are drawn in parts of about `AT_ONCE` counts, so memory is bounded.
    """
    if (one[1] > 0).sum() < 2:
        return None, None
    gaps = []
    for drawn in _drawn(len(one[0]), seed):
        ours, theirs = ((drawn @ above, drawn @ below) for above, below in (one, other))
        some = (ours[1] > 0) & (theirs[1] > 0)
        gaps.append(ours[0][some] / ours[1][some] - theirs[0][some] / theirs[1][some])
    low, high = np.quantile(np.concatenate(gaps), (0.025, 0.975))
    return float(low), float(high)


def _drawn(units: int, seed: int) -> Iterator[np.ndarray]:
    """Yields float64 [samples, units]: how often each unit occurs in each bootstrap sample, `DRAWS` samples in all."""
    at_once = max(1, min(DRAWS, AT_ONCE // units))
    for i in range(-(-DRAWS // at_once)):
        rng = np.random.default_rng(seed if at_once == DRAWS else [seed, i])
        yield rng.multinomial(units, np.full(units, 1 / units), at_once).astype(float)
