"""HTTP for all routes: request bodies, responses and streams, and a middleware that checks and logs every request."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from famjax.config.text import BadText, checked, json_of
from famjax.serve.errors import ApiError
from famjax.serve.metrics import Metrics
from famjax.serve.settings import MIB, ServeConfig

log = logging.getLogger("famjax.serve")

# Status in the log and the metrics if the client disconnects before its answer; no client receives it.
CLIENT_GONE = 499
# Maximum seconds between two pieces of a body. A client that is silent for longer is gone, or holds a slot on purpose.
SILENT_SECONDS = 60.0
# Maximum seconds to send the end of a stream, since a client that no longer reads would block it.
LAST_SECONDS = 5.0
# Paths that need no API key, since they reveal nothing about requests.
OPEN = ("/", "/health")


def error_response(error: ApiError) -> Response:
    """Returns the response for an error: the API's error object, with its status and headers."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body, error.status, headers)


async def pieces_of(request: Request, seconds: float, most: float | None = None) -> AsyncIterator[bytes]:
    """Yields the body, of at most `most` bytes (None: any), in pieces as they arrive, at most `seconds` apart
    (`SILENT_SECONDS` if that is less). Raises `ApiError` 413 if the body is too large, 408 if the client is silent for
    too long."""
    seconds = min(seconds, SILENT_SECONDS)
    declared, size = request.headers.get("content-length", ""), 0
    if most is not None and declared.isascii() and declared.isdigit() and int(declared[:18]) > most:
        raise _too_large(most)
    stream = request.stream()
    while True:
        try:
            piece = await asyncio.wait_for(anext(stream), seconds)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ApiError(408, f"nothing of the body came for {seconds:g} s; send it again") from None
        size += len(piece)
        if most is not None and size > most:
            raise _too_large(most)
        yield piece


def _too_large(most: float) -> ApiError:
    size = f"{most / MIB:g} MiB" if most >= MIB else f"{most:g} bytes"
    return ApiError(
        413, f"the body is larger than {size}; longer texts go to PUT /v1/sessions/NAME/text", code="too_large"
    )


async def json_body(request: Request, config: ServeConfig) -> Any:
    """Returns the body, parsed as JSON. Raises `ApiError`: 400 if it is invalid, else see `pieces_of`."""
    content = b"".join([piece async for piece in pieces_of(request, config.timeout, config.max_body_mib * MIB)])
    try:
        return checked(json_of(content, "the body", once=True), "the body")
    except BadText as error:
        raise ApiError(400, str(error), code="bad_json") from error
    except RecursionError as error:  # nested too deeply for `checked`, which is recursive
        raise ApiError(400, "the body: this JSON is nested too deeply", code="bad_json") from error


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response], seconds: float) -> Response:
    """Returns the response of `work`, or one with status 499 if the client disconnects first, which cancels `work`.
    Raises `ApiError` 504 if `work` takes more than `seconds`; it is cancelled."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(request.receive))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if gone in done:
            return Response(status_code=CLIENT_GONE)
        raise ApiError(504, f"the answer was not complete within {seconds:g} s; ask for less", code="timeout")
    finally:
        await _cancelled(task, gone)


async def _until_gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


class EventStream(Response):
    """A stream of server-sent events, which ends with `[DONE]` or an error object.

    Args:
      chunks: JSON objects to send. The iterator is closed at its end, if the client disconnects, or after the time.
      seconds: maximum duration of the request.
      end: called in any case, also if `chunks` was never started.
      spent: seconds that the request has taken so far.
    """

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncIterator[dict[str, Any]], seconds: float, end: Callable[[], None], spent: float = 0.0
    ):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._chunks, self._seconds, self._end, self._left = chunks, seconds, end, seconds - spent
        # The length of a stream is not known in advance.
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream, as an ASGI application."""
        task, gone = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()  # raises the exception of the task, if there is one
        finally:
            await _cancelled(task, gone)
            self._end()

    async def _send(self, send: Send) -> None:
        begun = False
        body = lambda text, more=True: send({"type": "http.response.body", "body": text.encode(), "more_body": more})
        try:
            # `chunks` is closed before the end is sent, so that a client that no longer reads does not hold its rows.
            async with contextlib.aclosing(self._chunks) as chunks, asyncio.timeout(self._left):  # type: ignore[type-var]
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                begun = True
                async for chunk in chunks:
                    # ASCII, since some clients end a line at Unicode's line separators too.
                    await body(f"data: {json.dumps(chunk)}\n\n")
            last = "[DONE]"
        except TimeoutError:
            error = ApiError(504, f"the answer was not complete within {self._seconds:g} s", code="timeout")
            last = json.dumps(error.body)
        except ApiError as error:
            last = json.dumps(error.body)
        if not begun:  # the client does not even take the headers
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await body(f"data: {last}\n\n")
                await body("", False)


class Guard:
    """Middleware around all routes: checks access, logs and counts each request, and hides tracebacks from clients.

    A page of another site that is open in a browser on this machine must not access a server on loopback. So requests
    are refused if their `Origin` differs from the server's own, or if a server on loopback is addressed by another host
    name, which may be DNS rebinding.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics):
        self._app, self._config, self._metrics = app, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, as an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.monotonic(), CLIENT_GONE
        begun = False

        async def noting(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
            await send(message)

        scope["begin"] = begin
        try:
            self._check(Request(scope))
            await self._app(scope, receive, noting)
        except ApiError as error:
            if not begun:
                await error_response(error)(scope, receive, noting)
        except ClientDisconnect:
            pass
        except Exception as error:
            log.exception("an answer failed")
            if not begun:
                failure = ApiError(500, f"the server failed: {type(error).__name__}")
                await error_response(failure)(scope, receive, noting)
        # The log and the metrics have the route that was matched, never the path that the client sent.
        route = getattr(scope.get("route"), "path", "unknown")
        seconds = time.monotonic() - begin
        method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE") else "other"
        self._metrics.request(route, status, seconds)
        log.info("%s %s %d %.3f s%s", method, route, status, seconds, scope.get("log", ""))

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if self._config.loopback and _parts(f"//{host}").hostname not in (
            "localhost", "127.0.0.1", "::1", self._config.host,
        ):  # fmt: skip
            raise ApiError(403, "this server answers on loopback; ask for localhost or 127.0.0.1", code="bad_host")
        origin = request.headers.get("origin")
        if origin is not None and _parts(origin).netloc.lower() != host.lower():
            raise ApiError(403, "requests of pages of other sites are refused", code="bad_origin")
        if request.url.path in OPEN:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if self._config.keys and not (scheme.lower() == "bearer" and self._config.allows(key.strip())):
            raise ApiError(401, "this server needs a key: Authorization: Bearer KEY", code="invalid_api_key")


def _parts(url: str) -> SplitResult:
    """Returns the parts of a URL; empty ones if it is invalid."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
