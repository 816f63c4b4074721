"""Bodies in, answers out: what every route needs of HTTP, and the checks before any of them."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from famjax.config.text import BadText, checked, json_of
from famjax.serve.errors import ApiError
from famjax.serve.metrics import Metrics
from famjax.serve.settings import MIB, ServeConfig

log = logging.getLogger("famjax.serve")

# Of a client that left before its answer; nobody receives it.
CLIENT_GONE = 499
# A client that is silent for longer while it sends a body has left, or keeps a place on purpose.
SILENT_SECONDS = 60.0
# For the end of a stream, which a client that has ceased to read does not take.
LAST_SECONDS = 5.0
# Paths that need no key: they say nothing of the model's work.
OPEN = ("/", "/health")


def error_response(error: ApiError) -> Response:
    """The API's error object."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body, error.status, headers)


async def pieces_of(request: Request, seconds: float, most: float | None = None) -> AsyncIterator[bytes]:
    """The body as it comes. Raises `ApiError` if it is larger than `most` bytes, or the client is silent for `seconds`
    or `SILENT_SECONDS`, whichever is less."""
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
    """The body as JSON. Raises `ApiError`."""
    content = b"".join([piece async for piece in pieces_of(request, config.timeout, config.max_body_mib * MIB)])
    try:
        return checked(json_of(content, "the body"), "the body")
    except BadText as error:
        raise ApiError(400, str(error), code="bad_json") from error
    except RecursionError as error:  # lists in lists, too deep for the check of their texts
        raise ApiError(400, "the body: this JSON is nested too deeply", code="bad_json") from error


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response], seconds: float) -> Response:
    """The response of `work`, which is cancelled if the client leaves or the time is over."""
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
    """Server-sent events; the iterator is closed when the client leaves, the time is over, or all is sent."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], seconds: float):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._chunks, self._seconds = chunks, seconds
        # The length of a stream is not known before its end.
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        task, gone = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()  # raises what has failed
        finally:
            await _cancelled(task, gone)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        body = lambda text, more=True: send({"type": "http.response.body", "body": text.encode(), "more_body": more})
        try:
            # Closed before the last words: a client that does not read them must not keep its rows meanwhile.
            async with contextlib.aclosing(self._chunks) as chunks, asyncio.timeout(self._seconds):  # type: ignore[type-var]
                async for chunk in chunks:
                    await body(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n")
            last = "[DONE]"
        except TimeoutError:
            error = ApiError(504, f"the answer was not complete within {self._seconds:g} s", code="timeout")
            last = json.dumps(error.body)
        except ApiError as error:
            last = json.dumps(error.body)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await body(f"data: {last}\n\n")
                await body("", False)


class Guard:
    """In front of all routes: who may ask, a line in the log and a count for each request, no traceback for clients.

    A page of another site, open in a browser on this machine, must not talk to a server on loopback: a request with
    an `Origin` other than the server's own is refused, and so is one for a host name that is not the loopback's,
    which somebody's DNS may have pointed here.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics):
        self._app, self._config, self._metrics = app, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
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
        # A path of a client reaches neither the log nor the counts, only the route that it has matched.
        route = getattr(scope.get("route"), "path", "unknown")
        seconds = time.monotonic() - begin
        method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE") else "other"
        self._metrics.request(route, status, seconds)
        log.info("%s %s %d %.3f s%s", method, route, status, seconds, scope.get("log", ""))

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if self._config.loopback and _name(host) not in ("localhost", "127.0.0.1", "::1", self._config.host):
            raise ApiError(403, "this server answers on loopback; ask for localhost or 127.0.0.1", code="bad_host")
        origin = request.headers.get("origin")
        if origin is not None and _authority(origin) != host.lower():
            raise ApiError(403, "requests of pages of other sites are refused", code="bad_origin")
        if request.url.path in OPEN:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if self._config.keys and not (scheme.lower() == "bearer" and self._config.allows(key.strip())):
            raise ApiError(401, "this server needs a key: Authorization: Bearer KEY", code="invalid_api_key")


def _name(host: str) -> str:
    """The name in a Host header, without a port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
