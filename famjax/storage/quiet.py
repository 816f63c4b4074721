"""Silences tracebacks that Orbax's threads print for errors that the caller receives anyway."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides Orbax's log messages below CRITICAL, for code that catches and reports every error itself."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level

    def except_late_ones(raised: Any) -> None:
        # When one array's write has failed, Orbax closes the event loop that the others would report to.
        if str(raised.exc_value) != "Event loop is closed":
            hook(raised)

    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = except_late_ones
    try:
        yield
    finally:
        logger.setLevel(level)
        if sys.unraisablehook is except_late_ones:
            sys.unraisablehook = hook
