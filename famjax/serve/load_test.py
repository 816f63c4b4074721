"""How many requests a server answers: clients that ask one request after the other, for `famjax bench serve`.

Any server that speaks the API may be asked, so that servers can be held against each other. A client is a thread with
a connection of its own; it streams its answers, so that the time to the first token is seen.
"""

import http.client
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from famjax.config import ConfigError
from famjax.config.text import json_of

# A word that every vocabulary has, in prompts of different beginnings, so that no server answers from a cache.
_WORD = " word"


class Took(NamedTuple):
    """One request: seconds to its first token and to its end, and tokens made."""

    first: float
    whole: float
    tokens: int


class Target(NamedTuple):
    """A server: its address, the name of its model there, and how it is asked.

    Attributes:
      vocab_size: prompts are random token ids below it; 0: prompts are texts.
    """

    name: str
    url: str
    model: str
    vocab_size: int = 0


def over_clients(
    target: Target, clients: Sequence[int], requests: int, prompt_tokens: int, max_tokens: int,
    tell: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """One entry for each number of clients, after a first run of each that compiles.

    Args:
      target: the server.
      clients: numbers of clients at once.
      requests: of each client.
      prompt_tokens: of a prompt (words, of a text).
      max_tokens: of an answer; greedy, and servers are asked to ignore nothing, so that it may be shorter.
      tell: what is measured, how much of it is done, of how much.
    """
    results = []
    for count in clients:
        tell(f"{target.name}: {count} clients, warming up", 0, 1)
        _run(target, count, 1, prompt_tokens, max_tokens, seed=0)
        tell(f"{target.name}: {count} clients", 0, 1)
        begin = time.monotonic()
        took = _run(target, count, requests, prompt_tokens, max_tokens, seed=count)
        seconds = time.monotonic() - begin
        first = sorted(one.first for one in took)
        results.append({
            "name": target.name, "clients": count, "requests": len(took), "prompt_tokens": prompt_tokens,
            "max_tokens": max_tokens, "seconds": seconds, "requests_per_second": len(took) / seconds,
            "tokens_per_second": sum(one.tokens for one in took) / seconds,
            "first_token_seconds": {
                "median": statistics.median(first), "low": first[0], "high": first[-1],
            },
        })  # fmt: skip
    return results


def _run(
    target: Target, clients: int, requests: int, prompt_tokens: int, max_tokens: int, seed: int
) -> list[Took]:  # fmt: skip
    """All clients at once, each with its requests one after the other."""
    took: list[Took] = []
    failed: list[Exception] = []

    def client(number: int) -> None:
        rng = np.random.default_rng((seed, number))
        try:
            for _ in range(requests):
                took.append(_request(target, _prompt(target, prompt_tokens, rng), max_tokens))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise ConfigError(f"{target.url} did not answer: {failed[0]}")
    return took


def _prompt(target: Target, tokens: int, rng: np.random.Generator) -> Any:
    if target.vocab_size:
        return rng.integers(0, target.vocab_size, tokens).tolist()
    return f"{rng.integers(10**9)}" + _WORD * (tokens - 1)


def _request(target: Target, prompt: Any, max_tokens: int) -> Took:
    """A streamed completion. The number of tokens is the usage's, or that of the chunks if there is none."""
    where = urlsplit(target.url)
    line = http.client.HTTPConnection(where.hostname or "", where.port, timeout=600)
    body = {"model": target.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    begin = time.monotonic()
    try:
        line.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = line.getresponse()
        if response.status != 200:
            raise ConfigError(f"status {response.status}: {ascii(response.read()[:200])}")
        first, chunks, usage = 0.0, 0, None
        for chunk in _events(response):
            if "error" in chunk:
                raise ConfigError(str(chunk["error"].get("message")))
            if any(choice.get("text") or choice.get("finish_reason") for choice in chunk.get("choices", ())):
                first = first or time.monotonic() - begin
                chunks += 1
            usage = chunk.get("usage") or usage
        tokens = usage["completion_tokens"] if usage else chunks
        return Took(first, time.monotonic() - begin, tokens)
    finally:
        line.close()


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.strip().removeprefix(b"data: ")
        if line.startswith(b"data: ") and data != b"[DONE]":
            yield json_of(data, "an event of the server")
