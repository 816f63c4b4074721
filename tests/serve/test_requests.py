"""What is wrong with a request is told in the API's error object, and nothing of it brings the server down."""

import json
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from famjax.cli.main import main
from famjax.serve import fields
from famjax.serve.errors import ApiError
from famjax.serve.page import PAGE
from famjax.serve.server import listen
from tests.serve.running import ask, chat, complete, connection, model_folder, serve


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("serve") / "model")


@pytest.fixture(scope="module")
def server(model_dir: Path):
    with serve(model_dir, max_rows=2, max_waiting=1, max_body_mib=0.01) as running:
        yield running


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "there is no prompt"), ({"prompt": []}, "not empty"), ({"prompt": [1.5]}, "a text, token ids"),
        ({"prompt": [300]}, "outside the vocabulary 0..255"), ({"prompt": [[-1]]}, "outside the vocabulary"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens is -1; it must be 0 to"),
        ({"prompt": "a", "max_tokens": "many"}, "max_tokens is 'many'; it must be a whole number"),
        ({"prompt": "a", "n": True}, "n is True"), ({"prompt": "a", "temperature": "hot"}, "temperature is 'hot'"),
        ({"prompt": "a", "temperature": -1}, "temperature is -1"), ({"prompt": "a", "top_p": 0}, "top_p is 0"),
        ({"prompt": "a", "seed": 2**32}, "seed is 4294967296"), ({"prompt": "a", "stop": [""]}, "1 to 128 bytes"),
        ({"prompt": "a", "stop": 5}, "stop is 5"), ({"prompt": "a", "stop": ["x"] * 17}, "at most 16"),
        ({"prompt": "a", "logprobs": 6}, "logprobs is 6"), ({"prompt": "a", "stream": 1}, "stream is 1"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, "'logit_bias' is not supported"),
        ({"prompt": "a", "best_of": 3}, "'best_of' is not supported"), ({"prompt": "a", "why": 1}, "'why' is no field"),
        ({"prompt": "a", "stream_options": {}}, ""), ({"prompt": "a", "logit_bias": {}, "suffix": None}, ""),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "needs stream: true"), ([1], "a JSON object"),
        ({"prompt": "a", "stream_options": []}, "stream_options takes"), ({"prompt": "a", "stop": False}, "is False"),
        ({"prompt": "a", "stop": [[["x"]]]}, "stop is a list of 1"), ({"prompt": "a", "best_of": True}, "supported"),
        ({"prompt": ["a"] * 1025}, "prompt has 1025 texts"), ({"prompt": "a", "temperature": 1e-300}, "1e-30 to 1e+30"),
        ({"prompt": "a", "frequency_penalty": False}, "'frequency_penalty' is not supported"),
        ({"prompt": "a", "user": "me", "metadata": {"a": "b"}, "frequency_penalty": 0.0, "best_of": 1}, ""),
        ({"prompt": "a", "stream": True, "stream_options": {"include_usage": None, "include_obfuscation": False}}, ""),
    ],
)  # fmt: skip
def test_fields_of_completions(body: object, said: str) -> None:
    """A message that names the field and what it takes; fields that ask for nothing are taken."""
    if not said:
        fields.completion(body, 256)
        return
    with pytest.raises(ApiError, match=re.escape(said)) as error:
        fields.completion(body, 256)
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": []}, "at least one message"), ({"messages": [{"role": "user"}]}, "content must be a text"),
        ({"messages": [{"content": "x"}]}, "an object with role and content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only parts of type text"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "tool_calls is not supported"),
        ({"top_logprobs": 2}, "needs logprobs"), ({"max_tokens": 2, "max_completion_tokens": 2}, "give one"),
        ({"tools": [{}]}, "'tools' is not supported"), ({"prompt": "x"}, "'prompt' is no field"),
        ({"reasoning_effort": "high"}, "'reasoning_effort' is not supported"),
        ({"response_format": {"type": "json_object"}}, "'response_format' is not supported"),
    ],
)  # fmt: skip
def test_fields_of_chats(change: dict, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        fields.chat({"messages": [{"role": "user", "content": "x"}]} | change)


def test_bodies(server) -> None:
    """Not JSON, not UTF-8, half a character, nested too deeply, too large, declared or not."""
    post = lambda content: ask(server, "POST", "/v1/completions", content)
    for content, said in (
        (b"{", "not JSON"), (b"\xff{}", "not UTF-8"), (b'{"prompt": "\\ud800"}', "half a surrogate pair"),
        (b"[" * 5000, "nested"), (b'{"prompt": "a", "n": 1, "n": 2}', "'n' is given twice"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature is nan"), (b"", "not JSON"),
    ):  # fmt: skip
        answer = post(content)
        assert answer.status == 400 and said in answer.error, answer.content
    assert post(b'{"prompt": "' + b"a" * 20000 + b'"}').status == 413
    line = connection(server)
    line.request(
        "POST", "/v1/completions", iter([b"a" * 6000] * 3), {"Transfer-Encoding": "chunked"}, encode_chunked=True
    )
    assert line.getresponse().status == 413
    line.close()
    assert complete(server, "a", model="other").status == 404
    assert complete(server, "a", n=3).status == 400
    assert complete(server, "").status == complete(server, "a", session="me").status == 400
    role = ask(server, "POST", "/v1/chat/completions", {"messages": [{"role": "judge", "content": "x"}]})
    assert role.status == 400 and "'judge' is not one of" in role.error
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("PUT", "/v1/sessions/me/text")):
        answer = ask(server, method, f"{path}?max_tokens=2", {"prompt": "a", "max_tokens": 1})
        assert answer.status == 400 and "'max_tokens' is no field of this URL" in answer.error
    assert ask(server, "GET", "/none").error == "there is no such path"
    assert ask(server, "GET", "/v1/completions").status == 405
    assert complete(server, "a", max_tokens=0, echo=True).json["choices"][0]["text"] == "a"
    assert chat(server, "hello", max_tokens=2).status == 200


def test_a_full_server_says_so(server) -> None:
    """With two rows at work and one request waiting, the next is answered 429 with Retry-After; the one that waits gets
    its answer once a client leaves."""
    busy = []
    for _ in range(2):
        line = connection(server)
        line.request("POST", "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 10**6, "stream": True}))
        busy.append((line, line.getresponse()))
        busy[-1][1].read(10)
    waiting: list = []
    thread = threading.Thread(target=lambda: waiting.append(complete(server, "a", max_tokens=2)))
    thread.start()
    while server.service.engine.load() != (2, 1):
        time.sleep(0.05)
    refused = complete(server, "b", max_tokens=2)
    assert refused.status == 429 and refused.headers["Retry-After"] == "1" and "busy" in refused.error
    text = ask(server, "GET", "/metrics").content.decode()
    assert "famjax_rows_running 2\n" in text and "famjax_requests_waiting 1\n" in text
    for line, response in busy:
        response.close()
        line.close()
    thread.join(timeout=300)
    assert waiting[0].status == 200


def test_a_request_that_waits_has_not_loaded_its_session(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one row: while one session is in use, a second waits without its memory and a third is refused; once the
    first client leaves, the second gets its answer."""
    with serve(model_dir, sessions=tmp_path / "s", max_rows=1, max_waiting=1) as server:
        loaded: list[str] = []
        load = server.service.sessions().load
        monkeypatch.setattr(server.service.store, "load", lambda name: loaded.append(name) or load(name))
        line = connection(server)
        body = {"prompt": "x", "max_tokens": 10**6, "stream": True, "session": "one"}
        line.request("POST", "/v1/completions", json.dumps(body))
        response = line.getresponse()
        response.read(10)
        waiting: list = []
        thread = threading.Thread(target=lambda: waiting.append(complete(server, "a", max_tokens=2, session="two")))
        thread.start()
        deadline = time.monotonic() + 300
        while server.service.sessions_waiting < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "famjax_requests_waiting 1\n" in ask(server, "GET", "/metrics").content.decode()
        assert complete(server, "b", max_tokens=2, session="three").status == 429 and loaded == ["one"]
        response.close()
        line.close()
        thread.join(timeout=300)
        assert waiting[0].status == 200 and loaded == ["one", "two"]


def test_a_stream_whose_client_leaves_while_it_waits(model_dir: Path, tmp_path: Path) -> None:
    """It holds neither a place in the queue nor its session."""
    with serve(model_dir, sessions=tmp_path / "s", max_rows=1, max_waiting=1) as server:
        lines = []
        for name in ("one", "two"):
            line = connection(server)
            body = {"prompt": "x", "max_tokens": 10**6, "stream": True, "session": name}
            line.request("POST", "/v1/completions", json.dumps(body))
            lines.append(line)
            if name == "one":
                response = line.getresponse()
                response.read(10)
        deadline = time.monotonic() + 300
        for wanted in (1, 0):
            while server.service.sessions_waiting != wanted:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            lines[1].close()
        assert ask(server, "DELETE", "/v1/sessions/two").status == 404  # not 409: nobody holds it
        response.close()
        lines[0].close()


def test_a_model_whose_name_has_a_slash(model_dir: Path) -> None:
    """As names of organisations have: found whether or not a client quotes the slash."""
    with serve(model_dir, name="ours/tiny") as server:
        for path in ("ours/tiny", "ours%2Ftiny"):
            assert ask(server, "GET", f"/v1/models/{path}").json["id"] == "ours/tiny"
        assert "no such model" in ask(server, "GET", "/v1/models/tiny").error


def test_who_may_ask(model_dir: Path) -> None:
    """Pages of other sites, names that point here, and clients without a key are refused; the page itself is not."""
    from famjax.serve.settings import _hashed

    with serve(model_dir, keys=(_hashed("one"), _hashed("two")), timeout=0.5) as server:
        host = server.url.removeprefix("http://")
        models = lambda **headers: ask(server, "GET", "/v1/models", headers=headers).status
        assert models() == models(Authorization="Bearer three") == models(Authorization="Basic one") == 401
        assert models(Authorization="Bearer one") == models(Authorization="bearer two") == 200
        key = {"Authorization": "Bearer one"}
        assert models(**key, Origin="http://evil.example") == models(**key, Host="evil.example") == 403
        assert models(**key, Origin=f"http://{host}") == 200
        page = ask(server, "GET", "/")
        assert page.status == 200 and page.content.decode() == PAGE and "frame" in str(page.headers).lower()
        # A client that sends nothing more, and an answer that takes too long.
        line = connection(server)
        line.putrequest("POST", "/v1/completions")
        line.putheader("Authorization", "Bearer one")
        line.putheader("Content-Length", "100")
        line.endheaders(b"{")
        assert line.getresponse().status == 408
        line.close()
        body = {"prompt": "x", "max_tokens": 10**6}
        assert ask(server, "POST", "/v1/completions", body, key).status == 504
        stream = ask(server, "POST", "/v1/completions", {**body, "stream": True}, key)
        assert stream.status == 200 and b'"code": "timeout"' in stream.content and b"[DONE]" not in stream.content


def test_the_page_asks_this_server_alone() -> None:
    """Every path that its script fetches is a route; it loads nothing from elsewhere, and sets no HTML from text."""
    for path in ('"/v1/models"', '"/v1/sessions"', "`/v1/sessions/${", "/memory`", '"/v1/chat/completions"'):
        assert path in PAGE
    assert "innerHTML" not in PAGE and "src=" not in PAGE and "href=" not in PAGE
    assert PAGE.replace("http://www.w3.org/2000/svg", "").count("http") == 0


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's script")
def test_the_page_chats(model_dir: Path, tmp_path: Path) -> None:
    """Its script, with plain objects as elements: the answer of the same request, the tokens read, a bar a layer."""
    with serve(model_dir, sessions=tmp_path / "s", max_rows=1, max_tokens=5) as server:
        (tmp_path / "page.html").write_bytes(ask(server, "GET", "/").content)
        command = ["node", str(Path(__file__).parent / "page.mjs"), str(tmp_path / "page.html"), server.url]
        shown = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=300).stdout)
        tokens = ask(server, "GET", "/v1/sessions/me").json["tokens"]
    assert shown["model"] == "tiny" and shown["bars"] == 2
    assert [kind for kind, _ in shown["log"]] == ["user", "model"] and shown["log"][0][1] == "Hello"
    assert tokens == len("User: Hello\nAssistant:") + 5 and shown["facts"].startswith(f"{tokens} tokens read")
    assert shown["sessions"] == [["me", f"{tokens} tokens"]]


def test_help_names_the_limits_of_both_routes(capsys: pytest.CaptureFixture[str]) -> None:
    """--max-tokens is that of chats alone; completions have the API's own."""
    assert main(["serve", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "per chat answer if the request sets no limit; /v1/completions has the API's 16 (default: 256)" in said


def test_mistakes_of_the_command(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text("# none\n")
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for flags, said in (
            (["--host", "0.0.0.0"], "add --api-key-file"), (["--api-key-file", str(tmp_path / "keys")], "has no key"),
            (["--max-rows", "0"], "--max-rows is 0; it must be at least 1"), (["--port", "70000"], "--port is 70000"),
            (["--sessions", str(tmp_path / "keys")], "is a file"), (["--port", port], "choose another, or --port 0"),
            (["--timeout", "0"], "--timeout is 0; it must be more than 0"),
            (["--host", "127.0..1"], "--host 127.0..1 --port 8000: this is no host name"),
            (["--max-tokens", "0"], "--max-tokens is 0"),
            *(([flag, value], f"{flag} is {value}; it must be") for value in ("inf", "nan")
              for flag in ("--timeout", "--grace", "--max-body-mib", "--prefix-cache-mib")),
            (["--max-tokens", "3000000000"], "--max-tokens is 3000000000; it must be at most 2147483647"),
            (["--model", "none"], "none"),
        ):  # fmt: skip
            assert main(["serve", "--model", str(model_dir), *flags]) == 2
            assert said in capsys.readouterr().err
