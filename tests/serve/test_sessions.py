"""Named memories: kept, taken up, forked, filled with a text, carried away and brought back."""

import asyncio
import errno
import gc
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from famjax.cli.main import main
from famjax.config import ConfigError
from famjax.infer import session as sessions
from famjax.serve.errors import ApiError
from famjax.serve.jobs import Done, Generated, Read
from famjax.serve.server import locked
from famjax.serve.service import Work
from famjax.serve.settings import ServeConfig
from famjax.serve.store import Store
from tests.serve.running import ask, chat, complete, connection, model_folder, serve

BOOK = ("It was a dark and stormy night; the rain fell in torrents, Grüße. " * 9).encode()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("serve") / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sessions")


@pytest.fixture(scope="module")
def server(model_dir: Path, folder: Path):
    with serve(model_dir, sessions=folder, max_rows=4) as running:
        yield running


def greedy(server, prompt: str, **fields) -> str:
    answer = complete(server, prompt, max_tokens=6, temperature=0, **fields)
    assert answer.status == 200, answer.content
    return answer.json["choices"][0]["text"]


def test_a_session_that_cannot_be_saved_is_an_error_of_the_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream, which has begun by then, ends with an error object too, not in the middle of a message."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sessions, "save", full)
    store = Store.__new__(Store)
    store._folder, store._model, store._known = tmp_path, None, {}
    with pytest.raises(ApiError, match=r"'me' cannot be saved \(No space left on device\), and is unchanged") as error:
        store.save("me", None)
    assert error.value.status == 500


def test_a_memory_survives_the_server(model_dir: Path, tmp_path: Path) -> None:
    """Two turns on one server and two on the next answer like four on one, and like `famjax chat`; the file keeps its
    size; a canary of another session changes nothing."""
    turns = ["one", "two two", "three", "four"]
    with serve(model_dir, sessions=tmp_path / "a") as server:
        whole = [chat(server, turn, session="me", max_tokens=6, temperature=0).json for turn in turns]
        chat(server, "canary " * 20, session="other", max_tokens=6, temperature=0)
        again = [chat(server, turn, session="again", max_tokens=6, temperature=0).json for turn in turns]
        size = ask(server, "GET", "/v1/sessions/me").json["bytes"]
    with serve(model_dir, sessions=tmp_path / "b") as server:
        first = [chat(server, turn, session="me", max_tokens=6, temperature=0).json for turn in turns[:2]]
    with serve(model_dir, sessions=tmp_path / "b") as server:
        rest = [chat(server, turn, session="me", max_tokens=6, temperature=0).json for turn in turns[2:]]
        info = ask(server, "GET", "/v1/sessions/me").json
    said = lambda answers: [answer["choices"][0]["message"]["content"] for answer in answers]
    assert said(whole) == said(again) == said(first + rest)
    assert abs(info["bytes"] - size) < 64
    # One turn after the other of `famjax chat`, which hides spaces that an answer begins with.
    lines = tmp_path / "lines"
    lines.write_text("".join(turn + "\n" for turn in turns))
    command = [sys.executable, "-m", "famjax", "chat", "--model", str(model_dir), "--max-tokens", "6"]
    told = subprocess.run(command, stdin=lines.open(), capture_output=True, check=True).stdout.decode()
    assert told == "".join(text.lstrip() + "\n" for text in said(whole))


def test_a_book_is_read_into_a_session(server, model_dir: Path, tmp_path: Path) -> None:
    """A text that is uploaded in chunks is the memory of `famjax generate --state-out`, array by array; what follows
    is answered as behind the whole text; a fork goes on without changing what it came from."""
    line = connection(server)
    # One cuts a character, two the byte order mark, which is not read.
    pieces = iter([b"\xef", b"\xbb\xbf" + BOOK[:1], BOOK[1:64], BOOK[64:300], BOOK[300:]])
    line.request("PUT", "/v1/sessions/book/text", pieces, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    info = json.loads(line.getresponse().read())
    assert (info["id"], info["tokens"], info["same_model"], info["in_use"]) == ("book", len(BOOK), True, False)
    (tmp_path / "book.txt").write_bytes(BOOK)
    flags = ["--prompt-file", str(tmp_path / "book.txt"), "--max-tokens", "0", "--state-out", str(tmp_path / "state")]
    assert main(["generate", "--model", str(model_dir), *flags]) == 0
    mine, theirs = ask(server, "GET", "/v1/sessions/book/file").content, (tmp_path / "state").read_bytes()
    (tmp_path / "mine").write_bytes(mine)
    one, other = sessions.read_file(tmp_path / "mine"), sessions.read_file(tmp_path / "state")
    assert one.metadata == other.metadata and len(mine) == len(theirs)
    for name, array in other.tensors.items():
        np.testing.assert_allclose(one.tensors[name], array, rtol=1e-4, atol=1e-5)
    fork = ask(server, "POST", "/v1/sessions", {"name": "fork", "from": "book"})
    assert (fork.status, fork.json["tokens"]) == (201, len(BOOK))
    wanted = greedy(server, BOOK.decode() + "Who?")
    assert greedy(server, "Who?", session="fork") == wanted
    assert ask(server, "GET", "/v1/sessions/fork").json["tokens"] == len(BOOK) + 4 + 6
    assert ask(server, "GET", "/v1/sessions/book/file").content == mine
    # In two parts, the second of which comes later; then the file under another name.
    ask(server, "PUT", "/v1/sessions/parts/text", BOOK[:100])
    ask(server, "PUT", "/v1/sessions/parts/text", BOOK[100:])
    assert complete(server, "Who?", max_tokens=6, temperature=0, session="parts").json["choices"][0]["text"] == wanted
    assert ask(server, "PUT", "/v1/sessions/copy/file", mine).json["tokens"] == len(BOOK)
    header = ask(server, "POST", "/v1/completions", {"prompt": "Who?", "max_tokens": 6, "temperature": 0},
                 {"X-Session": "copy"})  # fmt: skip
    assert header.json["choices"][0]["text"] == wanted
    picture = ask(server, "GET", "/v1/sessions/book/memory").json
    assert len(picture["layers"]) == 2 and all(len(layer["fam"]) == 2 for layer in picture["layers"])
    fam = other.tensors["1.fam"][0]
    assert picture["layers"][1]["fam"] == pytest.approx(np.sqrt((fam**2).mean(-1)).tolist(), rel=1e-3)
    names = [one["id"] for one in ask(server, "GET", "/v1/sessions").json["data"]]
    assert names == ["book", "copy", "fork", "parts"]
    for name in names:
        assert ask(server, "DELETE", f"/v1/sessions/{name}").json["deleted"]
    assert ask(server, "GET", "/v1/sessions").json["data"] == []


def test_one_writer_at_a_time(server) -> None:
    """While a request changes a session, a second one is told so; one that is cut off changes nothing."""
    greedy(server, "begin", session="busy")
    before = ask(server, "GET", "/v1/sessions/busy/file").content
    line = connection(server)
    body = {"prompt": "on", "session": "busy", "stream": True, "max_tokens": 100000}
    line.request("POST", "/v1/completions", json.dumps(body))
    response = line.getresponse()
    response.read(20)
    second = complete(server, "x", session="busy", max_tokens=1)
    assert second.status == 409 and "in use by another request" in second.error
    assert ask(server, "DELETE", "/v1/sessions/busy").status == 409
    assert ask(server, "GET", "/v1/sessions/busy").json["in_use"]
    response.close()
    line.close()
    until = time.monotonic() + 120
    while ask(server, "GET", "/v1/sessions/busy").json["in_use"] and time.monotonic() < until:
        time.sleep(0.05)
    assert ask(server, "GET", "/v1/sessions/busy/file").content == before
    assert greedy(server, "x", session="busy")
    # An upload whose client leaves in the middle.
    line = connection(server)
    line.putrequest("PUT", "/v1/sessions/cut/text")
    line.putheader("Content-Length", "1000")
    line.endheaders(b"only a part")
    line.close()
    while complete(server, "x", session="cut", max_tokens=1).status == 409 and time.monotonic() < until:
        time.sleep(0.05)
    assert ask(server, "GET", "/v1/sessions/cut").json["tokens"] == 2


def test_mistakes(server, model_dir: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each is an error object with its status, nothing is logged as an error of the server, and the server lives on."""
    get = lambda path, method="GET", body=None: ask(server, method, path, body)
    assert get("/v1/sessions/none").status == get("/v1/sessions/none", "DELETE").status == 404
    for name in ("..", "a%2Fb", "%2e%2e", ".hidden", "x" * 65, "a%00b", "%C3%A9"):
        assert get(f"/v1/sessions/{name}/file").status in (400, 404)
        assert complete(server, "x", session=name).status == 400
    assert not list(folder.parent.glob("*.safetensors"))
    greedy(server, "x", session="there")
    assert get("/v1/sessions", "POST", {"name": "there", "from": "there"}).status == 409
    assert get("/v1/sessions", "POST", {"name": "new", "from": "none"}).status == 404
    assert get("/v1/sessions", "POST", {"name": "new"}).status == 400
    bad = get("/v1/sessions/bad/text", "PUT", b"abc\xff")
    assert bad.status == 400 and "not UTF-8" in bad.error
    assert get("/v1/sessions/bad/text", "PUT", b"").status == 400
    assert get("/v1/sessions/bad/file", "PUT", b"nothing").status == 400
    assert get("/v1/sessions/bad/file", "PUT", bytes(3 * 2**20)).status == 413
    other = model_folder(tmp_path / "other", seed=7)
    flags = ["--prompt", "x", "--max-tokens", "1", "--state-out", str(tmp_path / "theirs")]
    assert main(["generate", "--model", str(other), *flags]) == 0
    refused = get("/v1/sessions/bad/file", "PUT", (tmp_path / "theirs").read_bytes())
    assert refused.status == 400 and "by another model" in refused.error and str(tmp_path) not in refused.error
    (folder / "theirs.safetensors").write_bytes((tmp_path / "theirs").read_bytes())
    assert complete(server, "x", session="theirs").status == 409
    assert not get("/v1/sessions/theirs").json["same_model"]
    assert get("/v1/sessions/bad").status == 404
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    whole = ask(server, "POST", "/v1/chat/completions", {"messages": messages, "session": "there"})
    assert whole.status == 400 and "send the new user message alone" in whole.error
    assert complete(server, ["a", "b"], session="there").status == complete(server, "a", n=2, session="there").status
    assert complete(server, "a", n=2, session="there").status == 400
    config = ServeConfig("tiny", port=0, sessions=folder)
    with pytest.raises(ConfigError, match="another server holds it"), locked(config):
        pass
    gc.collect()
    assert not [one for one in caplog.records if one.name == "asyncio"]


def test_sessions_of_other_settings_are_listed_as_such(server, model_dir: Path, folder: Path, tmp_path: Path) -> None:
    """Of the same weights, but with other memory settings or another dtype: refused, and the list says so before."""
    for name, flag in (("settings", ("--memory-segments", "0")), ("dtype", ("--dtype", "bfloat16"))):
        flags = ["--prompt", "x", "--max-tokens", "0", "--state-out", str(folder / f"{name}.safetensors"), *flag]
        assert main(["generate", "--model", str(model_dir), *flags]) == 0
        assert complete(server, "x", session=name).status == 409
        assert not ask(server, "GET", f"/v1/sessions/{name}").json["same_model"]
        assert ask(server, "DELETE", f"/v1/sessions/{name}").status == 200


@pytest.mark.parametrize("most", [0, 5])
def test_the_end_of_an_answer_says_that_its_session_is_written(most: int) -> None:
    """A client may leave once it has the finish reason, which comes with the last tokens."""
    order: list[str] = []

    async def run() -> None:
        store = SimpleNamespace(save=lambda name, session: order.append(f"{name} is written"))
        work = Work(
            SimpleNamespace(sessions=lambda: store, max_tokens=lambda asked: most), SimpleNamespace(session="me")
        )
        work._jobs = [None]
        generated = [Generated(0, "a", np.zeros(2, np.int32)), Generated(0, "b", np.zeros(3, np.int32), ended="length")]
        for event in (Read(0, np.zeros(1, np.int32)), *generated[: most and 2], Done("the session")):
            work._events.put_nowait((0, event))
        async for _, event in work.events():
            order.append(type(event).__name__)

    asyncio.run(run())
    assert order == [*["Read", "Generated"][: most and 2], "me is written", "Generated" if most else "Read", "Done"]


KILLED = """
import sys
from pathlib import Path
from types import SimpleNamespace
from famjax.storage.model_dir import write_bytes
print("ready", flush=True)
for n in range(10**9):
    write_bytes(sys.argv[1], bytes([n % 251]) * 3_000_000)
"""


def test_kill_while_a_session_is_written(tmp_path: Path) -> None:
    """kill -9 at any moment leaves one whole file, the old one or the new one."""
    path = tmp_path / "a.safetensors"
    for wait in (0.0, 0.05, 0.11):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while not path.exists():
                time.sleep(0.001)
            time.sleep(wait)
            process.kill()
        content = path.read_bytes()
        assert len(content) == 3_000_000 and content == content[:1] * 3_000_000


@pytest.mark.slow
def test_the_command(model_dir: Path, tmp_path: Path) -> None:
    """`famjax serve`: SIGTERM lets a running answer finish, keeps its session and ends with 0; a key is needed where
    keys are given; the log has a line for each request, and no text of a client."""
    keys = tmp_path / "keys"
    keys.write_text("# of tests\nsecret\n")
    command = [sys.executable, "-m", "famjax", "serve", "--model", str(model_dir), "--port", "0"]
    command += ["--sessions", str(tmp_path / "s"), "--api-key-file", str(keys), "--name", "m", "--grace", "120"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        lines: list[str] = []
        while "http://" not in (line := process.stderr.readline()):
            assert line, lines
            lines.append(line)
        port = int(line.split("http://127.0.0.1:")[1].split(",")[0])
        reader = threading.Thread(target=lambda: lines.extend(process.stderr))
        reader.start()

        def request(method: str, path: str, body: dict | None = None, key: str = "secret"):
            line = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
            line.request(method, path, json.dumps(body), {"Authorization": f"Bearer {key}"})
            return line.getresponse()

        assert request("GET", "/v1/models", key="wrong").status == 401
        assert request("GET", "/health", key="").status == 200
        evil = "/v1/none%0A2026 forged"
        assert request("GET", evil.replace(" ", "%20")).status == 404
        body = {"prompt": "x", "max_tokens": 400, "temperature": 0, "session": "me", "stream": True}
        response = request("POST", "/v1/completions", body)
        response.read(20)
        os.kill(process.pid, signal.SIGTERM)
        assert response.read().decode().endswith("data: [DONE]\n\n")
        assert process.wait(timeout=300) == 0
        reader.join()
    assert sessions.read_file(tmp_path / "s/me.safetensors").metadata["position"] == "400"
    log = "".join(lines)
    assert "POST /v1/completions 200" in log and "forged" not in log and "secret" not in log
