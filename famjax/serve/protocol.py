"""HTTP/1.1 with a time limit on request headers, against clients that are slow on purpose."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Maximum seconds to receive the headers of a request, from the start of the connection; for later requests of the same
# connection, from the first byte.
HEADER_SECONDS = 30.0


class Impatient(H11Protocol):
    """uvicorn's protocol with a time limit on request headers; uvicorn alone waits forever for the rest of them.

    uvicorn closes connections that are idle between two requests (`timeout_keep_alive`). `http.py` limits the time
    between pieces of a body and the duration of an answer.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time limit; called by asyncio."""
        super().connection_made(transport)
        self._begin_to_wait()

    def data_received(self, data: bytes) -> None:
        """Passes data to uvicorn, and ends the time limit if the headers are complete; called by asyncio."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._begin_to_wait()
        else:
            self._cease_to_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the time limit; called by asyncio."""
        self._cease_to_wait()
        super().connection_lost(exc)

    def _begin_to_wait(self) -> None:
        if self._limit is None:
            self._limit = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _cease_to_wait(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
