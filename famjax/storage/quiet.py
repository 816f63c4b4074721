"""Orbax without its tracebacks: each of its threads prints one, for an error that reaches us anyway."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No line of Orbax's log below CRITICAL. Only where every error is caught and told in words."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level

    def but_for_late_ones(raised: Any) -> None:
        # When one array's write has failed, Orbax closes the event loop that the others would report to.
        if str(raised.exc_value) != "Event loop is closed":
            hook(raised)

    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = but_for_late_ones
    try:
        yield
    finally:
        logger.setLevel(level)
        if sys.unraisablehook is but_for_late_ones:
            sys.unraisablehook = hook
