"""HTTP/1.1 for clients that may be slow on purpose: the headers of a request must come within a limit."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds for the headers of a request, from the connection's first moment, or from the first byte of its next request.
HEADER_SECONDS = 30.0


class Impatient(H11Protocol):
    """uvicorn's protocol, which alone waits for ever for a client that sends one header and nothing more.

    A connection that is silent between two requests is uvicorn's to close (`timeout_keep_alive`); a body's silence and
    an answer's time are bounded where bodies are read and answers made.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio has it."""
        super().connection_made(transport)
        self._begin_to_wait()

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._begin_to_wait()
        else:
            self._cease_to_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        self._cease_to_wait()
        super().connection_lost(exc)

    def _begin_to_wait(self) -> None:
        if self._limit is None:
            self._limit = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _cease_to_wait(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
