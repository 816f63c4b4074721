"""Orbax without its tracebacks: each of its threads prints one, for an error that reaches us anyway."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No line of Orbax's log below CRITICAL. Only where every error is caught and told in words."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
