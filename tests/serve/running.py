"""A tiny model behind a server in this process, on a free port of loopback."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from famjax.infer.load import load
from famjax.serve.server import Server, running
from famjax.serve.settings import ServeConfig
from famjax.storage import checkpoint
from tests import tiny

# Blocks of 8, so that prompts of a few words have edges.
CONFIG = tiny.config(vocab_size=256, block_size=8)


def model_folder(folder: Path, seed: int = 0) -> Path:
    """A model directory whose tokens are bytes."""
    checkpoint.save_model(folder, CONFIG, tiny.parameters(CONFIG, seed))
    return folder


@contextlib.contextmanager
def serve(model_dir: Path, **settings: Any) -> Iterator[Server]:
    """A server of this model inside."""
    config = ServeConfig(**{"name": "tiny", "port": 0, "grace": 5.0, **settings})
    config.validate()
    with running(load(model_dir), str(model_dir), config) as server:
        yield server


class Answer:
    """Status, headers and body of a response."""

    def __init__(self, response: http.client.HTTPResponse):
        self.status, self.headers, self.content = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        """The message of the API's error object."""
        assert set(self.json) == {"error"} and set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]["message"]


def connection(server: Server) -> http.client.HTTPConnection:
    url = urlsplit(server.url)
    return http.client.HTTPConnection(url.hostname, url.port, timeout=300)


def ask(server: Server, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """One request. `body` is bytes, or something to be sent as JSON."""
    line = connection(server)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    line.request(method, path, content, headers or {})
    answer = Answer(line.getresponse())
    line.close()
    return answer


def complete(server: Server, prompt: Any, **fields: Any) -> Answer:
    return ask(server, "POST", "/v1/completions", {"prompt": prompt, **fields})


def chat(server: Server, text: str, **fields: Any) -> Answer:
    return ask(server, "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})
