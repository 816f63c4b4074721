"""The routes of the server: OpenAI's API, sessions, health, metrics, and the chat page."""

import asyncio
import codecs
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from famjax.serve import fields
from famjax.serve.answers import Answer
from famjax.serve.engine import bytes_of_row
from famjax.serve.errors import ApiError
from famjax.serve.fields import Asked
from famjax.serve.http import EventStream, Guard, error_response, json_body, pieces_of, unless_gone
from famjax.serve.jobs import Generated
from famjax.serve.page import PAGE
from famjax.serve.service import Pipe, Service, Work, finished

# Maximum bytes of a session file in addition to its tensors, for the header.
_HEADER = 2**20
# Content security policy of the page: it loads no other files and sends requests only to this server.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def _without_query(endpoint: Any) -> Any:
    """Returns an endpoint that refuses fields in the URL, since no path of the API reads one."""

    async def answer(request: Request) -> Response:
        if (name := next(iter(request.query_params), None)) is not None:
            raise ApiError(
                400, f"{ascii(name[:60])} is no field of this URL; give fields in the body", param=name[:60],
                code="unsupported_field",
            )  # fmt: skip
        response: Response = await endpoint(request)
        return response

    return answer


def build(service: Service) -> Starlette:
    """Returns the ASGI application of a service."""
    routes = _Routes(service)
    paths: list[tuple[str, str, Any]] = [
        ("GET", "/", routes.page), ("GET", "/health", routes.health), ("GET", "/metrics", routes.metrics),
        ("GET", "/v1/models", routes.models), ("GET", "/v1/models/{name:path}", routes.model),
        ("POST", "/v1/completions", routes.completions), ("POST", "/v1/chat/completions", routes.chat),
        ("GET", "/v1/sessions", routes.sessions), ("POST", "/v1/sessions", routes.fork),
        ("GET", "/v1/sessions/{name}", routes.session), ("DELETE", "/v1/sessions/{name}", routes.delete),
        ("GET", "/v1/sessions/{name}/memory", routes.memory), ("PUT", "/v1/sessions/{name}/text", routes.read_text),
        ("GET", "/v1/sessions/{name}/file", routes.download), ("PUT", "/v1/sessions/{name}/file", routes.upload),
    ]  # fmt: skip

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_response(error)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {404: "there is no such path", 405: "the path has no such method"}.get(error.status_code, "refused")
        return error_response(ApiError(error.status_code, message))

    return Starlette(
        routes=[
            Route(path, _without_query(endpoint) if "/v1/" in path else endpoint, methods=[method])
            for method, path, endpoint in paths
        ],
        middleware=[Middleware(Guard, config=service.config, metrics=service.metrics)],
        exception_handlers={ApiError: refused, HTTPException: unknown},
    )


class _Routes:
    def __init__(self, service: Service):
        self._service, self._config = service, service.config

    # --- about the server -------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": _POLICY, "X-Frame-Options": "DENY"})

    async def health(self, request: Request) -> Response:
        ready = self._service.ready
        return JSONResponse({"status": "ok" if ready else "warming up"}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        engine = self._service.engine
        cache = engine.cache
        used, waiting = engine.load()
        counters = {
            "prompt_tokens_total": ("Tokens read, of prompts and uploaded texts.", engine.read_tokens),
            "completion_tokens_total": ("Tokens generated.", engine.made_tokens),
            "prefix_cache_hits_total": ("Prompts whose beginning was cached.", cache.hits),
            "prefix_cache_misses_total": ("Prompts of a block or more whose beginning was not.", cache.misses),
            "prefix_cache_tokens_total": ("Tokens of prompts that were cached.", cache.tokens),
        }
        gauges = {
            "rows_running": ("Rows in use.", used),
            "rows_max": ("Maximum of rows in use.", self._config.max_rows),
            "requests_waiting": ("Prompts that wait for rows.", waiting + self._service.sessions_waiting),
            "uploads_running": ("Texts that are being uploaded.", self._service.uploads_running),
            "row_bytes": ("Memory of a row.", bytes_of_row(engine.model)),
            "prefix_cache_bytes": ("Kept memories of common beginnings.", cache.bytes),
        }
        return PlainTextResponse(self._service.metrics.text(counters, gauges), media_type="text/plain; version=0.0.4")

    def _model(self) -> dict[str, Any]:
        kept = self._config.sessions is not None
        return {"id": self._config.name, "object": "model", "created": 0, "owned_by": "famjax", "sessions": kept}

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] != self._config.name:
            raise ApiError(404, "there is no such model; GET /v1/models lists them", code="model_not_found")
        return JSONResponse(self._model())

    # --- answers ----------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        body = await json_body(request, self._config)
        return await self._answer(request, fields.completion(_with_header(request, body), self._service.vocab_size))

    async def chat(self, request: Request) -> Response:
        body = await json_body(request, self._config)
        return await self._answer(request, fields.chat(_with_header(request, body)))

    async def _answer(self, request: Request, asked: Asked) -> Response:
        work = Work(self._service, asked)
        answer = self._streamed if asked.stream else self._whole
        return await unless_gone(request, answer(request, work), self._config.timeout)

    async def _streamed(self, request: Request, work: Work) -> Response:
        """Returns a stream. A request is refused with an HTTP status, before a stream begins with status 200."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await work.begin()
        except BaseException:
            work.end()
            raise
        return EventStream(self._chunks(request, work), self._config.timeout, work.end, loop.time() - began)

    async def _whole(self, request: Request, work: Work) -> Response:
        try:
            await work.begin()
            answer = Answer(self._service, work.asked, work.prompts)
            async for number, event in work.events():
                self._note(request, event)
                for _ in answer.take(number, event):
                    pass
            request.scope["log"] = _counts(answer)
            return JSONResponse(answer.whole())
        finally:
            work.end()

    async def _chunks(self, request: Request, work: Work) -> AsyncIterator[dict[str, Any]]:
        try:
            answer = Answer(self._service, work.asked, work.prompts)
            async for number, event in work.events():
                self._note(request, event)
                for chunk in answer.take(number, event):
                    yield chunk
            request.scope["log"] = _counts(answer)
            if work.asked.include_usage:
                yield answer.last_chunk()
        finally:
            work.end()

    def _note(self, request: Request, event: Any) -> None:
        if isinstance(event, Generated) and "begin" in request.scope:
            self._service.metrics.first_token(asyncio.get_running_loop().time() - request.scope.pop("begin"))

    # --- sessions ---------------------------------------------------------------------------------

    async def sessions(self, request: Request) -> Response:
        found = await asyncio.to_thread(self._service.sessions().list)
        return JSONResponse({"object": "list", "data": found})

    async def session(self, request: Request) -> Response:
        return await self._described(request.path_params["name"])

    async def _described(self, name: str, status: int = 200) -> Response:
        return JSONResponse(await asyncio.to_thread(self._service.sessions().describe, name), status)

    async def memory(self, request: Request) -> Response:
        store = self._service.sessions()
        return JSONResponse(await asyncio.to_thread(store.picture, request.path_params["name"]))

    async def delete(self, request: Request) -> Response:
        store, name = self._service.sessions(), request.path_params["name"]
        with store.writing(name):
            await finished(store.delete, name)
        return JSONResponse({"id": name, "object": "session", "deleted": True})

    async def fork(self, request: Request) -> Response:
        store, body = self._service.sessions(), await json_body(request, self._config)
        if (
            not isinstance(body, dict)
            or set(body) != {"name", "from"}
            or not all(isinstance(x, str) for x in body.values())
        ):
            raise ApiError(400, 'give {"name": NEW, "from": OLD}; a new text goes to PUT /v1/sessions/NAME/text')
        with store.writing(body["name"]):
            await finished(store.fork, body["from"], body["name"])
        return await self._described(body["name"], 201)

    async def download(self, request: Request) -> Response:
        store, name = self._service.sessions(), request.path_params["name"]
        content = await asyncio.to_thread(store.content, name)
        disposition = f'attachment; filename="{name}.safetensors"'
        return Response(content, media_type="application/octet-stream", headers={"Content-Disposition": disposition})

    async def upload(self, request: Request) -> Response:
        store, name = self._service.sessions(), request.path_params["name"]
        most = bytes_of_row(self._service.engine.model) + _HEADER
        with store.writing(name):
            content = b"".join([piece async for piece in pieces_of(request, self._config.timeout, most)])
            await finished(store.put, name, content)
        return await self._described(name)

    async def read_text(self, request: Request) -> Response:
        """Prefills a text of any length into a session, in constant memory. On an error the session is unchanged."""
        store, name = self._service.sessions(), request.path_params["name"]
        with store.writing(name), self._service.uploading():
            start = await asyncio.to_thread(store.load, name)
            pipe = Pipe()
            reading = asyncio.get_running_loop().run_in_executor(self._service.uploads, self._service.read, pipe, start)
            reading.add_done_callback(lambda done: _ended(done, pipe))
            try:
                await _feed(pipe, request, self._config.timeout)
                session = await reading
            except BaseException as error:
                # Wait until the reading thread has ended, since the session is in use until then.
                await pipe.put(error if isinstance(error, ApiError) else ApiError(499, "the client has left"))
                with contextlib.suppress(Exception):
                    await asyncio.wait([reading])
                raise
            await finished(store.save, name, session)
        return await self._described(name)


def _ended(reading: asyncio.Future[Any], pipe: Pipe) -> None:
    """Closes the pipe. Takes the reading's exception, since nobody awaits it if the client has left: asyncio would log
    an error when it is freed."""
    pipe.close()
    if not reading.cancelled():
        reading.exception()


async def _feed(pipe: Pipe, request: Request, seconds: float) -> None:
    """Puts the body into the pipe. Raises `ApiError` 400 if the body is not UTF-8; see also `http.pieces_of`."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        async for piece in pieces_of(request, seconds):
            decoder.decode(piece)
            await pipe.put(piece)
            if pipe.closed:  # the reading thread has failed, so the rest of the body is not needed
                return
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the text is not UTF-8 ({error.reason})", code="bad_text") from error
    await pipe.put(None)


def _with_header(request: Request, body: Any) -> Any:
    """Returns the body, with the session of the header X-Session if there is one. Raises `ApiError` 400 if the body
    names another session."""
    name = request.headers.get("x-session")
    if name is None or not isinstance(body, dict):
        return body
    if body.get("session") not in (None, name):
        raise ApiError(400, "the header X-Session and the field session name different sessions", param="session")
    return {**body, "session": name}


def _counts(answer: Answer) -> str:
    usage = answer.usage()
    return f" {usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
