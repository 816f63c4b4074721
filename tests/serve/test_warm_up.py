"""What is compiled before the first request, and how `famjax serve` starts and stops."""

import contextlib
import http.client
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from famjax.infer.load import load
from famjax.serve import batch
from famjax.serve.jobs import Ask, Job
from famjax.serve.server import Server
from famjax.serve.settings import ServeConfig
from famjax.serve.warm_up import programs, warm_up
from famjax.storage import checkpoint
from tests import tiny
from tests.serve.running import ask, complete, model_folder, serve

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the programs that are compiled inside, in any thread."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.extend(re.findall(r"^Compiling jit\((\w+)\)", record.getMessage()))
    log = logging.getLogger("jax._src.interpreters.pxla")
    log.addHandler(handler)
    jax.config.update("jax_log_compiles", True)
    try:
        yield found
    finally:
        jax.config.update("jax_log_compiles", False)
        log.removeHandler(handler)


def test_no_request_compiles(tmp_path: Path) -> None:
    """After a warm-up, prompts of all lengths, alone and in batches of all sizes, with stop texts and with a session,
    in memory and from its file, find their programs compiled."""
    config = tiny.config(vocab_size=257, block_size=16)  # of no other test
    checkpoint.save_model(tmp_path / "model", config, tiny.parameters(config))
    with compilations() as found:
        names = list(warm_up(load(tmp_path / "model"), 6))
    assert len(names) == programs(6, 16) == 7 and names[-1] == "decoding of 6 rows"
    assert (found.count("read_rows"), found.count("decode_rows")) == (4, 3)
    with serve(tmp_path / "model", sessions=tmp_path / "s", max_rows=6) as server, compilations() as found:
        for length in (1, 2, 3, 17, 40, 300):
            assert complete(server, "x" * length, max_tokens=5, temperature=0.5).status == 200
        for samples in (2, 4, 6):
            assert complete(server, "some words", max_tokens=70, n=samples, stop=["never"]).status == 200
        for prompt in ("some words", "and some more"):
            assert complete(server, prompt, max_tokens=5, session="a").status == 200
        assert not {"read_rows", "decode_rows", "put_row", "take_row"} & set(found), found


def test_health_while_a_server_warms_up(tmp_path: Path) -> None:
    """It is 503 until the server works on requests; one that came before is answered then."""
    config = ServeConfig("tiny", port=0, grace=5.0)
    server = Server(load(model_folder(tmp_path / "model")), str(tmp_path / "model"), config)
    server.begin_to_listen()
    try:
        health = ask(server, "GET", "/health")
        assert (health.status, health.json) == (503, {"status": "warming up"})
        answers: list[int] = []
        early = threading.Thread(target=lambda: answers.append(complete(server, "x", max_tokens=1).status))
        early.start()
        server.begin_to_answer()
        early.join()
        assert answers == [200] and ask(server, "GET", "/health").json == {"status": "ok"}
    finally:
        server.stop()


def test_a_server_that_stops_before_it_is_ready(tmp_path: Path) -> None:
    """Requests that wait end with an error, without the seconds of grace."""
    config = ServeConfig("tiny", port=0, grace=600.0)
    server = Server(load(model_folder(tmp_path / "model")), str(tmp_path / "model"), config)
    server.begin_to_listen()
    answers: list[int] = []
    early = threading.Thread(target=lambda: answers.append(complete(server, "x", max_tokens=1).status))
    early.start()
    while not server.service.engine.load()[1]:
        time.sleep(0.01)
    server.stop()
    early.join()
    assert answers == [503]


@contextlib.contextmanager
def command(model_dir: Path, cache: Path, *flags: str, devices: int = 1) -> Iterator[tuple[int, list[str]]]:
    """`famjax serve` in a process of its own, ended by SIGTERM: its port, and what it prints on standard error."""
    words = [sys.executable, "-m", "famjax", "serve", "--model", str(model_dir), "--port", "0", *flags]
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        lines: list[str] = []
        try:
            while "http://" not in (line := process.stderr.readline()):
                assert line, lines
                lines.append(line)
            yield int(line.split("http://127.0.0.1:")[1].split(",")[0]), lines
            process.send_signal(signal.SIGTERM)
            lines.extend(process.stderr)
            assert process.wait(60) == 0, lines
        finally:
            process.kill()


@pytest.mark.slow
def test_two_devices_and_a_second_start(tmp_path: Path) -> None:
    """With `--mesh` over two simulated devices the answers are those of one device. The second start of the same
    command compiles nothing, before or after its first request. SIGTERM is answered in the words of a server."""
    model_dir, cache = model_folder(tmp_path / "model"), tmp_path / "cache"
    prompts, answers = ["a", "It was a dark and stormy night; " * 3], []
    body = {"prompt": prompts, "n": 2, "max_tokens": 12, "temperature": 0.8, "seed": 3}
    with serve(model_dir) as server:
        one = [choice["text"] for choice in ask(server, "POST", "/v1/completions", body).json["choices"]]
    cached = []
    for _ in range(2):
        with command(model_dir, cache, "--mesh", "tensor=2", "--max-rows", "4", devices=2) as (port, lines):
            line = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
            line.request("POST", "/v1/completions", json.dumps(body))
            answers.append([choice["text"] for choice in json.loads(line.getresponse().read())["choices"]])
        stopping = "SIGTERM: accepts no more requests; running ones have 30 s to finish; a second signal "
        assert f"{stopping}ends the process at once\n" in lines
        cached.append(sorted(path.name for path in cache.iterdir()))
    assert answers == [one, one]
    assert cached[0] == cached[1] and len(cached[0]) > 6


def test_a_batch_has_no_other_sizes_than_those_that_are_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows join and leave at random, up to a maximum that is no power of 4."""
    for name in ("put_row", "take_row", "join_rows", "start"):  # memories do not matter here
        monkeypatch.setattr(batch, name, lambda *_: object())
    config = tiny.config(vocab_size=257)
    running, rng = batch.Batch(tiny.build(config, tiny.parameters(config)), 10), np.random.default_rng(0)
    job, seen = Job(Ask(np.zeros(1, np.int32), max_tokens=1), lambda event: None), set()
    for _ in range(300):
        if len(running.rows) < 10 and rng.random() < 0.3 + 0.4 * (len(seen) < 3):
            running.join(batch.Row(job, 0, object()), object())  # type: ignore[arg-type]
        elif running.rows:
            running.leave(running.rows[int(rng.integers(len(running.rows)))])
        seen.add(len(running._rows))
    assert seen == {0, *batch.batch_sizes(10)} == {0, 1, 4, 10}
