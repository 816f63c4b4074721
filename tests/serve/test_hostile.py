"""Clients that mean harm, or are broken: none of them makes the server fail, keeps rows, or ends the work of others."""

import asyncio
import contextlib
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from famjax.config import ConfigError
from famjax.infer import session as sessions
from famjax.serve import fields, protocol, service
from famjax.serve import http as serve_http
from famjax.serve.engine import Engine
from famjax.serve.errors import ApiError
from famjax.serve.http import EventStream
from famjax.serve.jobs import Ask
from famjax.serve.reading import Reading
from famjax.serve.server import Server
from tests.serve.running import ask, chat, complete, connection, model_folder, serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sessions")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    model_dir = model_folder(tmp_path_factory.mktemp("serve") / "model")
    with serve(model_dir, sessions=folder, max_rows=4) as running:
        yield running


# Of every kind that JSON has, at and beyond the limits of what a field may be.
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.0, -0.5, 1.5, 1e-320, 1e308, float("inf"), float("nan"), "",
    "a", "\0", "é" * 200, [], [[]], [0], [-1], [10**30], [None], [True], ["a", 1], [["a"]], {}, {"type": "text"}, [{}],
    [{"role": "user"}], [{"role": "user", "content": [{"type": "text", "text": 1}]}], {"include_usage": 1},
]  # fmt: skip


def test_odd_values_of_every_field() -> None:
    """Each field with each value, and pairs of them: understood, or refused with status 400."""
    rng = np.random.default_rng(0)
    names = sorted({*fields._SHARED, *fields._NEUTRAL, *fields._LABELS, "prompt", "echo", "messages", "top_logprobs",
                    "max_completion_tokens"})  # fmt: skip
    bases: list[tuple[Any, dict[str, Any]]] = [
        (lambda body: fields.completion(body, 256), {"prompt": "a"}),
        (fields.chat, {"messages": [{"role": "user", "content": "a"}]}),
    ]
    refused = 0
    for read, base in bases:
        for name in names:
            for value in ODD:
                other = {names[int(rng.integers(len(names)))]: ODD[int(rng.integers(len(ODD)))]}
                for body in (base | {name: value}, base | other | {name: value}, {name: value}):
                    try:
                        read(body)
                    except ApiError as error:
                        assert error.status == 400 and len(str(error)) < 400
                        json.dumps(error.body)
                        refused += 1
    assert refused > 1000


def test_numbers_at_their_limits(server: Server) -> None:
    """The smallest and largest values of sampling give text, and no scores that are not finite."""
    limits = {"temperature": (1e-30, 1e30), "top_k": (1, 2**31 - 1), "top_p": (1e-30, 1), "seed": (0, 2**32 - 1),
              "repetition_penalty": (1e-30, 1e30)}  # fmt: skip
    for name, values in limits.items():
        for value in values:
            answer = complete(server, "a b c", max_tokens=4, **{name: value})
            assert answer.status == 200 and answer.json["usage"]["completion_tokens"] == 4, (name, value)


def test_bodies_that_break_parsers(server: Server) -> None:
    """Nested lists up to and beyond what a parser follows, numbers of thousands of digits: status 400 in a line."""
    for depth in (100, 900, 960, 975, 980, 985, 990, 995, 1000, 5000, 100_000):
        for field in ("prompt", "stop", "why", "stream_options"):
            body = '{"prompt": "a", "' + field + '": ' + "[" * depth + "]" * depth + "}"
            answer = ask(server, "POST", "/v1/completions", body.encode())
            assert answer.status == 400 and len(answer.error) < 400, (depth, field)
    for number in ("1" * 4000, "1" * 5000, "-" + "9" * 400, "1e999", "NaN"):
        body = '{"prompt": "a", "max_tokens": ' + number + "}"
        assert ask(server, "POST", "/v1/completions", body.encode()).status == 400
    assert complete(server, "a", max_tokens=1).status == 200


def test_files_that_are_no_sessions(server: Server, folder: Path) -> None:
    """What somebody has put into the folder: listed, not continued (409), not shown (409), and can be deleted."""
    complete(server, "one two", session="good", max_tokens=2)
    good = (folder / "good.safetensors").read_bytes()
    tensors = safetensors.numpy.load(good)
    bad = {
        "empty": b"", "text": b"hello " * 50, "half": good[: len(good) // 2],
        "other": safetensors.numpy.save({"a": np.zeros(3)}), "keys": safetensors.numpy.save({"0.k": np.zeros(3)}),
        "flat": safetensors.numpy.save({f"0.{part}": np.float32(1)[None][0:1] for part in ("k", "v", "fam")}),
    }  # fmt: skip
    for name, content in bad.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    listed = ask(server, "GET", "/v1/sessions")
    assert listed.status == 200
    assert {one["id"] for one in listed.json["data"] if not one["same_model"]} == set(bad)
    for name, content in bad.items():
        assert complete(server, "x", session=name, max_tokens=1).status == 409
        assert ask(server, "PUT", f"/v1/sessions/{name}/text", b"x").status == 409
        picture = ask(server, "GET", f"/v1/sessions/{name}/memory")
        assert picture.status == (409 if name != "flat" else picture.status) and picture.status < 500
        assert ask(server, "PUT", "/v1/sessions/new/file", content).status == 400
        assert ask(server, "DELETE", f"/v1/sessions/{name}").status == 200
    assert ask(server, "GET", "/v1/sessions/new").status == 404 and set(tensors) > {"recent"}


def test_a_session_file_with_tokens_of_no_vocabulary(server: Server, folder: Path, tmp_path: Path) -> None:
    """Its tensors have the right names, shapes and types; its last tokens are none, negative, or beyond the vocabulary.
    It is refused with status 400, before anybody's work can meet it."""
    complete(server, "one two", session="good", max_tokens=2)
    file = sessions.read_file(folder / "good.safetensors")
    changes = {"beyond": (-1, 256), "far": (-1, 2**31 - 1), "negative": (-1, -7), "a hole": (-2, -1)}
    for name, (at, token) in changes.items():
        tensors = {key: np.array(x) for key, x in file.tensors.items()}
        tensors["recent"][at] = token
        answer = ask(server, "PUT", "/v1/sessions/bad/file", safetensors.numpy.save(tensors, file.metadata))
        assert answer.status == 400 and "last tokens" in answer.error, name
    tensors["recent"][:] = -1
    answer = ask(server, "PUT", "/v1/sessions/bad/file", safetensors.numpy.save(tensors, file.metadata))
    assert answer.status == 400 and "has read nothing" in answer.error
    same = safetensors.numpy.save({key: np.array(x) for key, x in file.tensors.items()}, file.metadata)
    assert ask(server, "PUT", "/v1/sessions/bad/file", same).status == 200
    assert chat(server, "Hi", session="bad", max_tokens=2).status == 200


def test_a_session_that_vanishes(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is deleted between two looks at it: 404, and the list is that of the others."""
    complete(server, "one", session="stays", max_tokens=1)
    shutil.copy(folder / "stays.safetensors", folder / "goes.safetensors")
    there = Path.is_file

    def is_file(path: Path) -> bool:
        found = there(path)
        if path.name == "goes.safetensors":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", is_file)
    names = {one["id"] for one in ask(server, "GET", "/v1/sessions").json["data"]}
    assert "stays" in names and "goes" not in names
    for path in ("", "/file", "/memory"):
        monkeypatch.undo()
        shutil.copy(folder / "stays.safetensors", folder / "goes.safetensors")
        monkeypatch.setattr(Path, "is_file", is_file)
        assert ask(server, "GET", f"/v1/sessions/goes{path}").status == 404


def test_a_prompt_that_fails_ends_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one prompt raises: its request gets 500 without a traceback, one that is at work gets its whole answer,
    and all rows are free afterwards."""
    window = Reading.window

    def fails(reading: Reading, cache: Any) -> int:
        if reading.job.ask.tokens.tolist() == list(b"bad"):
            raise FloatingPointError("secret of the machine")
        return window(reading, cache)

    wanted = complete(server, "good", max_tokens=300, temperature=0).json["choices"][0]["text"]
    monkeypatch.setattr(Reading, "window", fails)
    met: list[Any] = []
    decode = Engine._decode

    def and_meanwhile(engine: Engine) -> None:
        decode(engine)
        if not met:  # the other is in the batch
            met.append(server.service.engine.submit(bad, events.append))

    events: list[Any] = []
    asked = fields.completion({"prompt": "bad", "max_tokens": 5}, 256)
    bad = server.service.ask(asked, np.frombuffer(b"bad", np.uint8).astype(np.int32), None)
    monkeypatch.setattr(Engine, "_decode", and_meanwhile)
    assert complete(server, "good", max_tokens=300, temperature=0).json["choices"][0]["text"] == wanted
    alone = complete(server, "bad", max_tokens=5)
    assert alone.status == 500 and "FloatingPointError" in alone.error and "secret" not in alone.error
    assert [type(event).__name__ for event in events] == ["Failed"]
    server.service.engine.drain(60)
    server.service.engine._draining = False
    assert server.service.engine.load() == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_scores_of_a_prompt_that_are_not_finite(server: Server, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are an error, as in `famjax score`, and no NaN in a response, which is not JSON."""
    scores = Reading.scores

    def one_is_nan(reading: Reading) -> Any:
        found = scores(reading)
        return found._replace(logprob=np.where(np.arange(len(found.logprob)) == 1, np.nan, found.logprob))

    monkeypatch.setattr(Reading, "scores", one_is_nan)
    answer = complete(server, "good", max_tokens=0, echo=True, logprobs=1, stream=stream)
    assert answer.status == (200 if stream else 500) and b"NaN" not in answer.content
    assert b"scores are not finite" in answer.content


def test_a_prompt_without_room_ends_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a new row cannot be allocated: its request gets 500, one that is at work gets its whole answer."""
    wanted = complete(server, "good", max_tokens=100, temperature=0).json["choices"][0]["text"]
    met: list[Any] = []
    events: list[Any] = []
    decode = Engine._decode

    def no_room(model: Any) -> None:
        raise MemoryError

    def and_meanwhile(engine: Engine) -> None:
        decode(engine)
        if not met:  # the other is in the batch
            monkeypatch.setattr("famjax.serve.engine.start", no_room)
            met.append(engine.submit(Ask(np.zeros(1, np.int32)), events.append))

    monkeypatch.setattr(Engine, "_decode", and_meanwhile)
    assert complete(server, "good", max_tokens=100, temperature=0).json["choices"][0]["text"] == wanted
    assert [event.message for event in events] == ["there is no room for another row; start with fewer --max-rows"]
    server.service.engine.drain(60)
    server.service.engine._draining = False
    assert server.service.engine.load() == (0, 0)


def test_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection takes nothing more after the first chunk: when the time is over the answer is let go (its rows are
    free) before the server tries to say so, and it does not wait for the client to take that."""
    monkeypatch.setattr(serve_http, "LAST_SECONDS", 0.2)
    order: list[str] = []

    async def chunks():
        try:
            while True:
                yield {"choices": []}
        finally:
            order.append("let go")

    async def send(message: Any) -> None:
        body = message.get("body", b"")
        if b"timeout" in body:
            order.append("said so")
        if body:
            await asyncio.Event().wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    asyncio.run(
        asyncio.wait_for(EventStream(chunks(), 0.2, lambda: order.append("end"))({"type": "http"}, receive, send), 60)
    )
    assert order == ["let go", "said so", "end"]


def test_an_upload_whose_reader_fails(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of any length is sent while its reading has failed: the answer comes before its end."""

    def fails(reading: Reading, cache: Any) -> int:
        raise FloatingPointError

    monkeypatch.setattr(Reading, "window", fails)
    line, sent = connection(server), 0
    line.putrequest("PUT", "/v1/sessions/long/text")
    line.putheader("Content-Length", str(2**40))
    line.endheaders()
    line.sock.settimeout(0.05)
    deadline = time.monotonic() + 300
    answer = b""
    while not answer and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # the buffers are full, or the server has closed the connection
            sent += line.sock.send(b"word " * 10_000)
        with contextlib.suppress(TimeoutError):
            answer = line.sock.recv(1000)
    line.close()
    assert answer.startswith(b"HTTP/1.1 500") and sent < 2**30
    assert ask(server, "GET", "/v1/sessions/long").status == 404


@pytest.mark.parametrize("asked_before", [False, True])
def test_headers_that_never_end(server: Server, monkeypatch: pytest.MonkeyPatch, asked_before: bool) -> None:
    """A client that sends its headers byte by byte is left, with its first request and with a later one."""
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 3.0)
    line = connection(server)
    line.connect()
    if asked_before:
        line.request("GET", "/health")
        assert line.getresponse().read()
    line.sock.settimeout(0.05)
    line.sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    deadline, answer = time.monotonic() + 300, None
    while answer is None and time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            try:
                line.sock.send(b"x")
                answer = line.sock.recv(1000)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
    line.close()
    assert answer == b""
    # Whoever sends whole headers has the time of a request for the rest.
    late, body = connection(server), b'{"prompt": "late", "max_tokens": 1}'
    late.putrequest("POST", "/v1/completions")
    late.putheader("Content-Length", str(len(body)))
    late.endheaders()
    time.sleep(4.0)
    late.send(body)
    assert late.getresponse().status == 200
    late.close()


def test_slow_uploads_keep_nobody_waiting(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many texts as there are rows, none of which continues: an answer is made, one more text is refused at once,
    and when one has ended there is place."""
    monkeypatch.setattr(serve_http, "SILENT_SECONDS", 600.0)
    lines = []
    for number in range(4):
        line = connection(server)
        line.putrequest("PUT", f"/v1/sessions/slow{number}/text")
        line.putheader("Content-Length", "4")
        line.endheaders(b"ab")
        lines.append(line)
    deadline = time.monotonic() + 300
    while b"famjax_uploads_running 4\n" not in ask(server, "GET", "/metrics").content:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    refused = ask(server, "PUT", "/v1/sessions/fifth/text", b"text")
    assert refused.status == 429 and refused.headers["Retry-After"] and "4 texts are being uploaded" in refused.error
    assert complete(server, prompt="who waits?", max_tokens=2).status == 200
    for line in lines:
        line.send(b"cd")
    assert [line.getresponse().status for line in lines] == [200] * 4
    assert ask(server, "PUT", "/v1/sessions/fifth/text", b"text").status == 200
    for name in ("slow0", "slow1", "slow2", "slow3", "fifth"):
        ask(server, "DELETE", f"/v1/sessions/{name}")


@pytest.mark.parametrize("at_once", [4, service.UPLOAD_TOKENS])
def test_a_server_that_stops_waits_for_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Between two pieces of its text, when the engine has nothing to do, and before it has anything to do. What comes
    later is refused."""
    monkeypatch.setattr(service, "UPLOAD_TOKENS", at_once)
    with serve(model_folder(tmp_path / "model"), sessions=tmp_path / "s", grace=300.0) as server:
        line = connection(server)
        line.putrequest("PUT", "/v1/sessions/long/text")
        line.putheader("Content-Length", "9")
        line.endheaders(b"first ")
        deadline = time.monotonic() + 300
        read = 5 if at_once == 4 else 0
        while server.service.engine.read_tokens < read or not server.service.uploads_running:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while ask(server, "POST", "/v1/completions", {"prompt": "a"}).status != 503:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert ask(server, "PUT", "/v1/sessions/late/text", b"text").status == 503
        line.send(b"end")
        answer = line.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["tokens"] == 9
        stopping.join(timeout=300)
        assert not stopping.is_alive()


def test_a_token_that_the_model_does_not_know(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tokenizer with more tokens than the model has: status 400, of a prompt as of a text that is uploaded."""

    def unknown(*_: Any, **__: Any) -> Any:
        raise ConfigError("token 256 of this text is not in the model's vocabulary")

    monkeypatch.setattr(server.service.codec, "encode", unknown)
    monkeypatch.setattr(server.service.codec, "chunks", lambda *_, **__: (unknown() for _ in "a"))
    for answer in (complete(server, "a"), ask(server, "PUT", "/v1/sessions/unknown/text", b"a")):
        assert answer.status == 400 and answer.error == "token 256 of this text is not in the model's vocabulary"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_every_path_with_every_method(server: Server, method: str) -> None:
    """Names that lead out of the folder, are too long, or have bytes that no name has; bodies that fit nothing: never a
    500, and never a file outside."""
    names = ("a", "..", "%2e%2e", "..%2f..%2fetc", "a%00b", "a" * 65, "a%0Ab", "%ff", ".lock", "con.", "a.safetensors")
    ends = ("", "/text", "/file", "/memory", "/none")
    paths = [f"/v1/sessions/{name}{end}" for name in names for end in ends]
    paths += [
        "/v1/models/a%2Fb",
        "/v1/models/tiny",
        "/v1/models/",
        "/v1/sessions",
        "/v1/completions",
        "/v1/chat/completions",
        "//",
        "/*",
    ]
    before = sorted(path.name for path in server.service.sessions()._folder.parent.iterdir())
    for path in paths:
        for body in (None, b"{}", b'{"name": "../x", "from": "../y"}')[: 3 if method in ("POST", "PUT") else 1]:
            answer = ask(server, method, path, body)
            assert answer.status < 500, (path, body, answer.content)
    assert sorted(path.name for path in server.service.sessions()._folder.parent.iterdir()) == before
