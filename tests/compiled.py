"""Which programs JAX compiles."""

import contextlib
import logging
import re
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the programs that are compiled inside, in any thread."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.extend(re.findall(r"^Compiling jit\((\w+)\)", record.getMessage()))
    log = logging.getLogger("jax._src.interpreters.pxla")
    log.addHandler(handler)
    jax.config.update("jax_log_compiles", True)
    try:
        yield found
    finally:
        jax.config.update("jax_log_compiles", False)
        log.removeHandler(handler)
