"""Intervals against published values."""

import pytest

from famjax.evals.statistics import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe (1998), Table I, method 3: Wilson's score interval, 95%.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_gives_newcombes_table(successes, trials, low, high):
    """Published limits to four digits, and their mirror images for failures."""
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_no_trials_is_an_error():
    """Without trials there is no interval."""
    with pytest.raises(ValueError, match="no trials"):
        wilson_interval(0, 0)
