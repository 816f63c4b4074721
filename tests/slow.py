"""Slow cases of parametrized tests: `make test` leaves them to `make test-slow`, because the other cases show the same
promise."""

from collections.abc import Iterable
from typing import Any

import pytest


def but(cases: Iterable[str], *slow: str) -> list[Any]:
    """Returns the cases for `pytest.mark.parametrize`, with those named in `slow` marked. Raises `KeyError` for an
    unknown one."""
    cases = list(cases)
    if unknown := set(slow) - set(cases):
        raise KeyError(f"no such cases: {sorted(unknown)}")
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in cases]
