"""A server that runs: the socket, the thread of its event loop, and how it stops."""

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

# Seconds that answers get to reach their clients after the engine has ended them.
LAST_SECONDS = 5


def listen(host: str, port: int) -> socket.socket:
    """A socket, taken before the model is loaded. Raises `ConfigError` if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(2048)  # so that a port in use is found now; clients wait until the model is loaded
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}; choose another, or --port 0") from error
    return taken


class Server:
    """A model behind a socket.

    Args:
      model: the model.
      model_dir: for its tokenizer and chat template.
      config: settings, validated.
      taken: the socket; None takes one of `config`.

    Attributes:
      url: where it answers.
      service: engine, sessions and settings.
    """

    def __init__(self, model: Transformer, model_dir: str, config: ServeConfig, taken: socket.socket | None = None):
        self._config = config
        self._socket = taken or listen(config.host, config.port)
        self.service = Service(model, model_dir, config)
        # h11 and asyncio's own loop whatever else is installed: one implementation to test.
        settings = uvicorn.Config(
            build(self.service), http=Impatient, loop="asyncio", ws="none", lifespan="off", log_config=None,
            access_log=False, proxy_headers=False, server_header=False, timeout_keep_alive=30,
            timeout_graceful_shutdown=LAST_SECONDS,
        )  # fmt: skip
        self._uvicorn = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    @property
    def url(self) -> str:
        """Of the server, without a path."""
        port = self._socket.getsockname()[1]
        host = self._config.host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self) -> None:
        """Begins to answer; returns at once."""
        self.begin_to_listen()
        self.begin_to_answer()

    def begin_to_listen(self) -> None:
        """Takes requests, which wait for `begin_to_answer`; until then `/health` says so."""
        self._thread.start()

    def begin_to_answer(self) -> None:
        """Works on requests."""
        self.service.ready = True
        self.service.engine.start()

    @property
    def alive(self) -> bool:
        """The event loop runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Lets requests at work finish within the grace, ends the rest with an error, and returns."""
        self.service.engine.drain(self._config.grace)
        self.service.engine.stop()
        self._uvicorn.should_exit = True
        self._thread.join(timeout=self._config.grace + LAST_SECONDS + 5)  # sessions are being written
        self.service.uploads.shutdown(wait=False, cancel_futures=True)

    def _serve(self) -> None:
        asyncio.run(self._uvicorn.serve(sockets=[self._socket]))


@contextlib.contextmanager
def running(
    model: Transformer, model_dir: str, config: ServeConfig, taken: socket.socket | None = None
) -> Iterator[Server]:  # fmt: skip
    """A server that answers inside. Raises `ConfigError` if another one uses the folder of sessions."""
    with locked(config):
        server = Server(model, model_dir, config, taken)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def locked(config: ServeConfig) -> Iterator[None]:
    """Holds the folder of sessions, so that two servers do not write the same files."""
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
