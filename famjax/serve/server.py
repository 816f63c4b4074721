"""Runs and stops a server: its socket, and the thread of its event loop."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator

import uvicorn

from famjax.config import ConfigError
from famjax.nn.model import Transformer
from famjax.serve.app import build
from famjax.serve.protocol import Impatient
from famjax.serve.service import Service
from famjax.serve.settings import ServeConfig
from famjax.storage import lock

log = logging.getLogger("famjax.serve")

# Maximum seconds to send answers to their clients after the engine has stopped.
LAST_SECONDS = 5


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket. Raises `ConfigError` if the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(2048)  # so a port in use is reported before the model is loaded; clients wait
    except (OSError, UnicodeError) as error:  # the latter is of a host name with an empty or a long part
        reason = error.strerror if isinstance(error, OSError) else "this is no host name"
        raise ConfigError(f"--host {host} --port {port}: {reason}; choose another, or --port 0") from error
    return taken


class Server:
    """A server of one model. The event loop and the engine each run in a thread of their own.

    The tokenizer and the chat template are those of `model_dir`. Without `taken`, a listening socket, it opens one for
    `config.host` and `config.port`.

    Raises:
      ConfigError: the socket cannot be opened, or the directory has no tokenizer that fits the model.
    """

    def __init__(self, model: Transformer, model_dir: str, config: ServeConfig, taken: socket.socket | None = None):
        self._config = config
        self._socket = taken or listen(config.host, config.port)
        self.service = Service(model, model_dir, config)
        # Always h11 and asyncio's event loop, even if others are installed, so that only these need tests.
        settings = uvicorn.Config(
            build(self.service), http=Impatient, loop="asyncio", ws="none", lifespan="off", log_config=None,
            access_log=False, proxy_headers=False, server_header=False, timeout_keep_alive=30,
            timeout_graceful_shutdown=LAST_SECONDS,
        )  # fmt: skip
        self._uvicorn = uvicorn.Server(settings)
        serve = lambda: asyncio.run(self._uvicorn.serve(sockets=[self._socket]))
        self._thread = threading.Thread(target=serve, name="http", daemon=True)

    @property
    def url(self) -> str:
        """Base URL of the server, without a path."""
        port = self._socket.getsockname()[1]
        host = self._config.host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self) -> None:
        """Starts the event loop and the engine, and returns."""
        self.begin_to_listen()
        self.begin_to_answer()

    def begin_to_listen(self) -> None:
        """Starts the event loop. Requests wait for `begin_to_answer`; until then `/health` answers 503."""
        self._thread.start()

    def begin_to_answer(self) -> None:
        """Starts the engine, which works on requests."""
        self.service.ready = True
        self.service.engine.start()

    @property
    def alive(self) -> bool:
        """Whether the event loop runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Waits up to `config.grace` seconds for running requests, fails the rest, and stops the event loop."""
        self.service.engine.drain(self._config.grace, more=lambda: self.service.beginning > 0)
        self.service.engine.stop()
        self._uvicorn.should_exit = True
        self._thread.join(timeout=self._config.grace + LAST_SECONDS + 5)  # sessions may still be written
        self.service.uploads.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def running(model: Transformer, model_dir: str, config: ServeConfig) -> Iterator[Server]:
    """Runs a server inside the `with` block. Raises `ConfigError` as `locked` and `Server` do."""
    with locked(config):
        server = Server(model, model_dir, config)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def locked(config: ServeConfig) -> Iterator[None]:
    """Locks the folder of sessions inside the `with` block, so that two servers do not write the same files. Raises
    `ConfigError` if another server holds the lock, or the folder cannot be written."""
    if config.sessions is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(config.sessions))
        except ConfigError as error:
            message = f"--sessions {config.sessions} cannot be used: another server holds it, or it cannot be written"
            raise ConfigError(message) from error
        yield
