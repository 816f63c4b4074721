"""The service behind the routes: engine, tokenizer and sessions of a model, and the work of one request on them."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from famjax.config import ConfigError
from famjax.config.text import without_mark
from famjax.infer.chat import Turns
from famjax.infer.codec import Codec
from famjax.infer.session import Session
from famjax.nn.model import Transformer
from famjax.serve.engine import Engine
from famjax.serve.errors import ApiError
from famjax.serve.fields import Asked
from famjax.serve.jobs import Ask, Done, Event, Failed, Full, Generated, Job, Read, Refused
from famjax.serve.metrics import Metrics
from famjax.serve.settings import MIB, ServeConfig
from famjax.serve.store import Store

# Minimum tokens of an uploaded text per job, except for its last one.
UPLOAD_TOKENS = 2**14


class Service:
    """The state that all routes share.

    Attributes:
      ready: whether the engine works on requests; until then they wait.
      vocab_size: number of tokens of the model.
      codec, chat_codec: the model directory's tokenizer for plain texts and for chats, which may have other end-of-text
        tokens.
      store: the sessions; None without a folder for them.
      uploads: threads for uploads.
      uploads_running: number of texts that are being uploaded.
      sessions_waiting: number of requests that wait until they may load their session.
      beginning: number of accepted requests that are to submit jobs, which a server that stops waits for.

    Raises:
      ConfigError: the directory has no tokenizer that fits the model.
    """

    def __init__(self, model: Transformer, model_dir: str, config: ServeConfig):
        self.config, self.metrics = config, Metrics()
        self.ready = False
        self.vocab_size = model.config.vocab_size
        self.codec = Codec(model_dir, self.vocab_size)
        # A second codec, since `Turns` adds the token that ends a turn to its `ends`, which does not end plain texts.
        self.chat_codec = Codec(model_dir, self.vocab_size)
        self._turns: Turns | ConfigError
        try:
            self._turns = Turns(self.chat_codec.template, self.chat_codec)
        except ConfigError as error:
            self._turns = error
        cache_bytes = int(config.prefix_cache_mib * MIB)
        self.engine = Engine(model, config.max_rows, config.max_waiting, cache_bytes)
        self.store = Store(config.sessions, model) if config.sessions else None
        # A thread per upload, which waits for the client and the engine. `uploading` limits uploads to the same number.
        self.uploads = ThreadPoolExecutor(max_workers=config.max_rows, thread_name_prefix="upload")
        self.uploads_running = 0
        # At most `max_rows` sessions are loaded, however many requests wait.
        self._places = asyncio.Semaphore(config.max_rows)
        self.sessions_waiting = self.beginning = 0  # changed only in the event loop's thread

    # --- interpreting requests --------------------------------------------------------------------

    def sessions(self) -> Store:
        """Returns the store. Raises `ApiError` 400 if the server has no folder for sessions."""
        if self.store is None:
            raise ApiError(400, "this server keeps no sessions; start it with --sessions DIR", param="session")
        return self.store

    def check(self, asked: Asked) -> None:
        """Raises `ApiError` (400, 404) if a request can be refused without reading its session or the queue."""
        if asked.model not in (None, self.config.name):
            raise ApiError(
                404, f"there is no model {ascii(asked.model)[:80]}; this server has {self.config.name!r}",
                param="model", code="model_not_found",
            )  # fmt: skip
        if asked.n > self.config.max_rows:
            raise ApiError(400, f"n is {asked.n}; this server has {self.config.max_rows} rows", param="n")
        if asked.session is not None:
            self.sessions().path(asked.session)
            if asked.n > 1 or len(asked.prompts) > 1:
                raise ApiError(400, "a session has one text: give one prompt, and n 1", param="session")

    def prompts(self, asked: Asked, start: Session | None) -> list[np.ndarray]:
        """Returns the int32 token ids of each prompt, which continues the session `start` if there is one; a chat is
        one prompt. Raises `ApiError` 400 if a prompt is empty or has a token that is unknown to the model, or if the
        chat template or the session does not accept the messages."""
        if asked.messages:
            return [self._conversation(asked.messages, start)]
        encode = lambda text: self.codec.encode(text, fresh=start is None)
        with _bad_request("prompt"):
            ids = [encode(p) if isinstance(p, str) else np.asarray(p, np.int32) for p in asked.prompts]
        if start is None and not all(map(len, ids)):
            raise ApiError(400, "the prompt is empty: give it a character", param="prompt")
        return ids

    def _conversation(self, messages: list[dict[str, str]], start: Session | None) -> np.ndarray:
        if isinstance(self._turns, ConfigError):
            raise ApiError(400, str(self._turns), param="messages") from self._turns
        with _bad_request("messages"):
            if start is None:
                return self._turns.conversation(messages)
            if len(messages) > 1 or messages[0]["role"] != "user":
                raise ConfigError("the session remembers what was said: send the new user message alone")
            return self._turns.following(messages[0]["content"], np.asarray(start.recent[0]))

    def stops(self, asked: Asked) -> list[str]:
        """Returns the request's stop texts and, for a chat without a template, the beginning of a user turn."""
        own = self._turns.stops if asked.messages and isinstance(self._turns, Turns) else []
        return [*asked.stops, *own]

    def codec_for(self, asked: Asked) -> Codec:
        """Returns the codec for chats or for plain texts."""
        return self.chat_codec if asked.messages else self.codec

    def max_tokens(self, asked: Asked) -> int:
        """Returns the maximum number of tokens per answer."""
        return self.config.max_tokens if asked.max_tokens is None else asked.max_tokens

    def ask(self, asked: Asked, tokens: np.ndarray, start: Session | None) -> Ask:
        """Returns the job for one prompt, for `Engine.submit`. `start` is the session to continue, or None."""
        codec, stops = self.codec_for(asked), self.stops(asked)
        return Ask(
            tokens=tokens, start=start, max_tokens=self.max_tokens(asked), samples=asked.n, sampling=asked.sampling,
            seed=asked.seed, stops=codec.token_stops(stops), stream=lambda before: codec.stream(stops, before),
            by_token=bool(stops) and asked.session is not None and not codec.is_bytes, top=asked.top,
            score_prompt=asked.echo and asked.top is not None, keep=asked.session is not None,
        )  # fmt: skip

    # --- uploads ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def accepted(self) -> Iterator[None]:
        """Counts a request as one that is to submit jobs. Raises `ApiError` 503 if the server is stopping."""
        if self.engine.draining:
            raise refusal(Refused("the server is stopping"))
        self.beginning += 1
        try:
            yield
        finally:
            self.beginning -= 1

    async def place_for_session(self) -> Callable[[], None]:
        """Waits until fewer than `max_rows` sessions are in use, and returns a function that frees this one's place.
        Raises `ApiError` 429 if `max_waiting` requests wait already."""
        used, waiting = self.engine.load()
        if (waiting := waiting + self.sessions_waiting) >= self.config.max_waiting:
            raise refusal(Full(f"{used} rows are in use and {waiting} requests wait"))
        self.sessions_waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.sessions_waiting -= 1
        return self._places.release

    @contextlib.contextmanager
    def uploading(self) -> Iterator[None]:
        """Counts an upload for the duration of the `with` block. Raises `ApiError` 429 if `max_rows` uploads are
        running; each holds the memory of a row, and clients may be slow."""
        if self.uploads_running == self.config.max_rows:
            raise refusal(Full(f"{self.config.max_rows} texts are being uploaded"))
        self.uploads_running += 1  # needs no lock: changed only in the event loop's thread
        try:
            with self.accepted():
                yield
        finally:
            self.uploads_running -= 1

    def read(self, pieces: Iterable[bytes], start: Session | None) -> Session:
        """Returns the session after a text that arrives in pieces of UTF-8, which may end within a character; a byte
        order mark is removed. `start`, the session that it continues, is donated; None starts a new text. It blocks, so
        it must not run in the event loop.

        Raises:
          ApiError: 400 if a new text is empty or a token is unknown to the model, 500 if the text cannot be read, 503
            if the engine stops.
        """
        for ids in self._tokens(pieces, fresh=start is None):
            ended: queue.SimpleQueue[Event] = queue.SimpleQueue()
            try:
                self.engine.submit(Ask(ids, start, keep=True), ended.put, more=True)  # it was accepted
            except Refused as error:
                raise refusal(error) from error
            while not isinstance(event := ended.get(), Done | Failed):
                pass
            if isinstance(event, Failed):
                raise ApiError(503 if event.stopping else 500, event.message)
            start = event.session
        if start is None:
            raise ApiError(400, "the text is empty; send a character")
        return start

    def _tokens(self, pieces: Iterable[bytes], fresh: bool) -> Iterator[np.ndarray]:
        with _bad_request(None):
            yield from _gathered(self.codec.chunks(without_mark(pieces, "the text"), fresh))


@contextlib.contextmanager
def _bad_request(param: str | None) -> Iterator[None]:
    """Raises a `ConfigError`, which is about the client's text, as `ApiError` 400."""
    try:
        yield
    except ConfigError as error:
        raise ApiError(400, str(error), param=param) from error


def _gathered(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the chunks, joined to at least `UPLOAD_TOKENS` tokens each, except for the last."""
    waiting: list[np.ndarray] = []
    for chunk in chunks:
        if len(chunk):
            waiting.append(chunk)
        if sum(map(len, waiting)) >= UPLOAD_TOKENS:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def refusal(error: Refused) -> ApiError:
    """Returns the error for a job that the engine refuses: 429 if the queue is full, 503 if the engine is stopping."""
    if isinstance(error, Full):
        return ApiError(429, f"the server is busy: {error}; try again", code="busy", retry_after=1)
    return ApiError(503, str(error), code="stopping", retry_after=10)


class Work:
    """One request: its jobs in the engine, and the session that it locks until `end`."""

    def __init__(self, service: Service, asked: Asked):
        self.service, self.asked = service, asked
        self.prompts: list[np.ndarray] = []  # token ids of each, after `begin`
        self._held = contextlib.ExitStack()
        self._jobs: list[Job] = []
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def begin(self) -> None:
        """Locks and loads the session, if the request names one, and submits a job per prompt. Raises `ApiError` if the
        request is invalid or refused. Call `end` in any case."""
        service, asked = self.service, self.asked
        service.check(asked)
        with service.accepted():
            start = None
            if asked.session is not None:
                store = service.sessions()
                self._held.enter_context(store.writing(asked.session))
                self._held.callback(await service.place_for_session())
                start = await asyncio.to_thread(store.load, asked.session)
            self.prompts = await asyncio.to_thread(service.prompts, asked, start)
            loop = asyncio.get_running_loop()
            for number, tokens in enumerate(self.prompts):
                more = number > 0 or asked.session is not None  # then it has waited for its place already
                try:
                    ask = service.ask(asked, tokens, start)
                    self._jobs.append(service.engine.submit(ask, self._teller(loop, number), more=more))
                except Refused as error:
                    raise refusal(error) from error

    def _teller(self, loop: asyncio.AbstractEventLoop, number: int) -> Callable[[Event], None]:
        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no one waits for the event
                loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        return tell

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yields (number of the prompt, event) until all jobs are done.

        The session is written before the end of its answer is yielded, since a client may leave when it has that.

        Raises:
          ApiError: 500 if a job fails, 503 if the server stops.
        """
        left = len(self._jobs)
        held: list[tuple[int, Event]] = []
        reads_only = self.service.max_tokens(self.asked) == 0
        while left:
            number, event = await self._events.get()
            if isinstance(event, Failed):
                raise ApiError(503 if event.stopping else 500, event.message)
            if isinstance(event, Done):
                left -= 1
                if event.session is not None and self.asked.session is not None:
                    await finished(self.service.sessions().save, self.asked.session, event.session)
            held.append((number, event))
            ended = event.ended if isinstance(event, Generated) else reads_only and isinstance(event, Read)
            if ended and self.asked.session is not None:
                continue  # `Done` follows
            for one in held:
                yield one
            held.clear()

    def end(self) -> None:
        """Cancels the jobs and unlocks the session, whatever has happened before."""
        for job in self._jobs:
            self.service.engine.cancel(job)
        self._held.close()


async def finished(function: Callable[..., None], *args: Any) -> None:
    """Runs a function in a thread and waits until it has returned, even if the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class Pipe:
    """Passes the pieces of a body from the event loop to a thread, which iterates over the pipe."""

    def __init__(self) -> None:
        self._pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(maxsize=4)
        self._closed = threading.Event()

    async def put(self, piece: bytes | BaseException | None) -> None:
        """Adds a piece, and waits while the pipe is full. None ends the text; an exception is raised by `__iter__`."""
        while not self._closed.is_set():
            try:
                return self._pieces.put_nowait(piece)
            except queue.Full:
                await asyncio.sleep(0.005)

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self._pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def close(self) -> None:
        """Closes the pipe when the reading thread has ended: further pieces are dropped."""
        self._closed.set()

    @property
    def closed(self) -> bool:
        """Whether the reading thread has ended."""
        return self._closed.is_set()
