"""Turns and ratios, on a clock that the test moves."""

import pytest

from famjax.bench.measure import alternate, paired_ratio, spread


class Clock:
    """A clock that advances only when a run does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def runs(self, seconds: dict[str, list[float]]) -> dict:
        """Runs by name that take these seconds, one after the other."""

        def run(name: str, left: list[float]):
            def work() -> None:
                self.order.append(name)
                self.now += left.pop(0)

            return work

        return {name: run(name, list(times)) for name, times in seconds.items()}


def test_runs_take_turns() -> None:
    """A B, B A, A B: none is always first, and each gets its own seconds."""
    clock = Clock()
    seconds = {"a": [1.0, 2.0, 4.0], "b": [2.0, 3.0, 5.0]}
    told: list[tuple[int, int]] = []
    times = alternate(clock.runs(seconds), 3, clock, lambda done, total: told.append((done, total)))
    assert clock.order == ["a", "b", "b", "a", "a", "b"]
    assert times == seconds
    assert told == [(i, 6) for i in range(1, 7)]


def test_ratios_pair_the_turns() -> None:
    """On a machine that becomes four times slower, the ratio of two equal runs stays 1, turn by turn."""
    times = {"a": [1.0, 2.0, 4.2], "b": [1.0, 2.0, 4.0]}
    ratio = paired_ratio(times, "a", "b")
    assert ratio.median == 1.0
    assert (ratio.low, ratio.high) == (1.0, pytest.approx(1.05))
    assert spread(times["a"]).median / spread(times["b"]).median == 1.0


def test_turns_of_different_numbers_have_no_ratio() -> None:
    """A run that is missing from a turn is a mistake of ours."""
    with pytest.raises(ValueError):
        paired_ratio({"a": [1.0], "b": [1.0, 2.0]}, "a", "b")
