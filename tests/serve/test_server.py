"""`famjax serve`: answers equal those of `famjax generate`, and requests do not know each other."""

import json
import threading
from pathlib import Path

import pytest

from famjax.cli.main import main
from famjax.serve.server import Server
from tests.serve.running import ask, chat, complete, connection, model_folder, serve

PROMPT = "Grüße, 世界! What now?"
SAMPLED = {"temperature": 1.1, "top_p": 0.9, "top_k": 40, "seed": 5}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("serve") / "model")


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    with serve(model_dir, sessions=tmp_path_factory.mktemp("sessions"), max_rows=8) as running:
        yield running


@pytest.fixture(scope="module")
def generated(model_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """The texts of `famjax generate` for prompts of a file."""
    folder = tmp_path_factory.mktemp("generated")

    def run(prompts: list[str], *flags: object, samples: int = 1, tokens: int = 12) -> list[str]:
        source, output = folder / "in.jsonl", folder / "out.jsonl"
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        files = ["--input", source, "--output", output, "--max-tokens", tokens, "--samples", samples]
        assert main(["generate", "--model", str(model_dir), *map(str, files), *map(str, flags)]) == 0
        return [json.loads(line)["text"] for line in output.read_text(encoding="utf-8").splitlines()]

    return run


SAMPLED_FLAGS = ("--temperature", "1.1", "--top-p", "0.9", "--top-k", "40", "--seed", "5")


def test_completions_are_those_of_generate(server: Server, generated) -> None:
    """Greedy and sampled, one prompt, several and samples of each, text or token ids: the same texts."""
    greedy = generated([PROMPT])[0]
    one = complete(server, PROMPT, max_tokens=12, temperature=0)
    assert one.status == 200 and one.json["choices"][0]["text"] == greedy
    assert one.json["choices"][0]["finish_reason"] == "length"
    assert one.json["usage"]["prompt_tokens"] == len(PROMPT.encode()) and one.json["usage"]["completion_tokens"] == 12
    ids = complete(server, list(PROMPT.encode()), max_tokens=12, temperature=0, echo=True).json
    assert ids["choices"][0]["text"] == PROMPT + greedy
    prompts = [PROMPT, "a", "four" * 9]
    wanted = generated(prompts, *SAMPLED_FLAGS, samples=2)
    several = complete(server, prompts, max_tokens=12, n=2, **SAMPLED).json
    assert [choice["index"] for choice in several["choices"]] == list(range(6))
    assert [choice["text"] for choice in several["choices"]] == wanted


def test_a_stream_is_the_answer_in_pieces(server: Server) -> None:
    """Chunks joined are the text of the whole answer; the usage comes last."""
    whole = complete(server, PROMPT, max_tokens=30, **SAMPLED).json
    options = {"stream": True, "stream_options": {"include_usage": True}}
    line = complete(server, PROMPT, max_tokens=30, **SAMPLED, **options)
    assert line.headers["content-type"].startswith("text/event-stream")
    events = line.content.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == whole["choices"][0]["text"]
    assert chunks[-1]["usage"]["completion_tokens"] == 30 and chunks[-1]["choices"] == []
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]][-1] == "length"


def test_a_stream_has_no_other_ends_of_lines(server: Server) -> None:
    """Unicode's line separators in a text do not end a line of the stream, whichever of them a client knows."""
    prompt = "a\x85b\u2028c\u2029 \x1c é"
    stream = complete(server, prompt, max_tokens=1, echo=True, stream=True).content.decode()
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    assert events.pop() == "[DONE]"
    assert json.loads(events[0])["choices"][0]["text"] == prompt


def test_stops(server: Server, generated) -> None:
    """A text ends before its stop, that of another request in the same batch does not."""
    free = complete(server, PROMPT, max_tokens=12, temperature=0).json["choices"][0]["text"]
    stop = free[2:4]
    stopped = complete(server, PROMPT, max_tokens=12, temperature=0, stop=["never said", stop], logprobs=1).json
    assert stopped["choices"][0]["text"] == free[: free.index(stop)]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert "".join(stopped["choices"][0]["logprobs"]["tokens"]) == stopped["choices"][0]["text"]


def test_thirty_two_clients(server: Server, generated) -> None:
    """Clients of mixed lengths at once, a third of which leave in the middle of a stream: every answer is the one of
    `famjax generate`, and all rows are free again."""
    prompts = [f"{i} says " + "word " * (i * 7 % 40) for i in range(32)]
    wanted = generated(prompts, *SAMPLED_FLAGS, tokens=20)
    found: dict[int, str] = {}

    def client(i: int) -> None:
        if i % 3 == 2:
            line = connection(server)
            body = {"prompt": prompts[i], "max_tokens": 5000, "stream": True}
            line.request("POST", "/v1/completions", json.dumps(body))
            line.getresponse().read(10)
            line.close()
        else:
            found[i] = complete(server, prompts[i], max_tokens=20, **SAMPLED).json["choices"][0]["text"]

    threads = [threading.Thread(target=client, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: wanted[i] for i in range(32) if i % 3 != 2}
    server.service.engine.drain(60)
    server.service.engine._draining = False
    assert server.service.engine.load() == (0, 0)


@pytest.mark.slow
def test_scores(server: Server, model_dir: Path, tmp_path: Path) -> None:
    """Log probabilities of prompt and answer are those of `famjax score` of the whole text; the best token of a
    greedy answer is the token itself."""
    got = complete(server, PROMPT, max_tokens=8, temperature=0, echo=True, logprobs=3).json["choices"][0]["logprobs"]
    made = complete(server, PROMPT, max_tokens=8, temperature=0, logprobs=0).json["choices"][0]["logprobs"]
    count = len(PROMPT.encode())
    assert len(got["token_logprobs"]) == count + 8 and got["token_logprobs"][0] is None
    assert made["token_logprobs"] == pytest.approx(got["token_logprobs"][count:], rel=1e-4)
    for logprob, best in zip(got["token_logprobs"][count:], got["top_logprobs"][count:], strict=True):
        assert len(best) == 3 and logprob == max(best.values())
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"tokens": list(PROMPT.encode())}))
    assert main(["score", "--model", str(model_dir), "--input", str(source), "--output", str(output)]) == 0
    assert got["token_logprobs"][1:count] == pytest.approx(json.loads(output.read_text())["logprobs"], rel=1e-4)


def test_a_common_beginning_is_read_once(server: Server, model_dir: Path) -> None:
    """A prompt that was read, and one that shares a beginning with two others: the tokens of a server without a cache,
    and the usage says how much was cached."""
    book = "It was a dark and stormy night; the rain fell in torrents. " * 3
    questions = [book + q for q in ("Who?", "When did it rain?", "Why?", "Who?", "Why? And then?")]
    with serve(model_dir, prefix_cache_mib=0) as plain:
        wanted = [complete(plain, q, max_tokens=16, temperature=0, logprobs=5).json["choices"][0] for q in questions]
        assert complete(plain, questions[0], max_tokens=1).json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    cached = []
    for question, choice in zip(questions, wanted, strict=True):
        answer = complete(server, question, max_tokens=16, temperature=0, logprobs=5).json
        assert answer["choices"][0] == choice
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    shared = len(book) // 8 * 8
    assert cached[0] == 0 and cached[2] == shared and cached[3] >= shared and cached[4] >= shared
    text = ask(server, "GET", "/metrics").content.decode()
    hits = next(line for line in text.splitlines() if line.startswith("famjax_prefix_cache_hits_total "))
    assert float(hits.split()[1]) >= 3


def test_chat(server: Server) -> None:
    """Without a template a chat is User: and Assistant:, the same as a completion of that text."""
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    answer = ask(server, "POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 9, "temperature": 0}).json
    text = complete(server, "Be kind.\nUser: Hi\nAssistant:", max_tokens=9, temperature=0, stop="\nUser:").json
    assert answer["choices"][0]["message"] == {
        "role": "assistant", "content": text["choices"][0]["text"], "refusal": None
    }  # fmt: skip
    scores = chat(server, "Hi", max_tokens=3, logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]["content"]
    assert len(scores) == 3 and all(len(place["top_logprobs"]) == 2 for place in scores)


@pytest.mark.slow
def test_memory_stays_flat(model_dir: Path, tmp_path: Path) -> None:
    """The resident memory of the process after 2,000 requests of all kinds is that after 400, within 5%: neither
    answers, sessions, the cache of beginnings nor programs pile up."""
    import numpy as np

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    with serve(model_dir, sessions=tmp_path / "s", max_rows=4, prefix_cache_mib=0.1) as server:

        def client(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(100):
                prompt = rng.integers(0, 256, rng.integers(1, 100)).tolist()
                more = [{}, {"n": 2}, {"logprobs": 2}, {"stream": True}, {"session": f"s{rng.integers(10**6) % 5}"}]
                found = complete(server, prompt, max_tokens=5, **more[int(rng.integers(5))])
                assert found.status in (200, 409)

        after = []
        for turn in range(5):
            threads = [threading.Thread(target=client, args=(4 * turn + i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            after.append(resident())
        assert server.service.engine.cache.bytes <= 0.1 * 2**20
    assert after[-1] < after[0] * 1.05
