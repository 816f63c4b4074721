"""Cases of a table that `make test` leaves to `make test-slow`, because its other cases show the same promise."""

from collections.abc import Iterable
from typing import Any

import pytest


def but(cases: Iterable[str], *slow: str) -> list[Any]:
    """The cases for `pytest.mark.parametrize`, those named `slow` marked so. Raises `KeyError` for one that is none."""
    cases = list(cases)
    if unknown := set(slow) - set(cases):
        raise KeyError(f"no such cases: {sorted(unknown)}")
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in cases]
