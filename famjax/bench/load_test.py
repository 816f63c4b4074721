"""Measures the throughput and latency of servers under N concurrent clients, for `famjax bench serve`.

Any server with the API's `/v1/completions` can be measured, so servers can be compared. A client is a thread that sends
one request after the other, each over its own connection. Answers are streamed, to measure the time to the first token.

    python -m famjax.bench.load_test < LOAD.json        runs one round; started by `over_clients`, does not import jax
"""

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from famjax.bench.measure import Tell, paired_ratio, spread
from famjax.config import ConfigError
from famjax.config.text import BadText, json_of

# Repeated in text prompts, which begin with a random number so that no server answers from a prefix cache. No prompt
# occurs twice, in any round or with any number of clients.
_WORD = " word"


class Took(NamedTuple):
    """Measurements of one request.

    Attributes:
      first: seconds to the first token.
      whole: seconds to the end of the answer.
      read: tokens of the prompt; None if the server does not report usage.
      made: tokens of the answer.
    """

    first: float
    whole: float
    read: int | None
    made: int


class Target(NamedTuple):
    """A server to measure: its name in the report, its address `http://HOST:PORT`, and the name of the model on it.

    Prompts are random token ids below `vocab_size`, or texts if it is 0.
    """

    name: str
    url: str
    model: str
    vocab_size: int = 0


def over_clients(
    targets: Sequence[Target], clients: Sequence[int], requests: int, prompt_tokens: int, max_tokens: int, rounds: int,
    tell: Tell, reference: str = "",
) -> list[dict[str, Any]]:  # fmt: skip
    """Measures every server with every number of clients.

    The servers take turns, so that other load on the machine affects all of them. Before the first round with a number
    of clients, each server answers one warm-up request per client.

    Args:
      targets: the servers; those with the same `vocab_size` get the same prompts.
      clients: numbers of concurrent clients.
      requests: requests per client in a round.
      prompt_tokens: tokens per prompt; words if prompts are texts.
      max_tokens: maximum tokens per answer; decoding is greedy, and a model may end its answer earlier.
      rounds: number of rounds; rates are medians over rounds.
      tell: called with (current measurement, rounds done, total rounds).
      reference: name of the server by whose tokens/s those of all servers are divided, round by round; empty: none.

    Returns:
      One entry per number of clients and server: the load, mean tokens read and made per request, and the spread of
      requests/s, tokens/s, seconds to the first token and seconds per answer.

    Raises:
      ConfigError: a request failed.
    """
    results: list[dict[str, Any]] = []
    for count in clients:
        what = f"{count} client{'s' * (count > 1)}"
        tell(f"{what}, warming up", 0, 1)
        for target in targets:
            _run(target, count, 1, prompt_tokens, max_tokens, seed=0)
        turns: list[list[_Turn]] = [[] for _ in targets]
        for number in range(rounds):
            tell(what, number, rounds)
            order = range(len(targets)) if number % 2 == 0 else reversed(range(len(targets)))
            for which in order:
                turns[which].append(_run(targets[which], count, requests, prompt_tokens, max_tokens, seed=1 + number))
        asked = {"clients": count, "requests": count * requests, "rounds": rounds, "prompt_tokens": prompt_tokens,
                 "max_tokens": max_tokens}  # fmt: skip
        found = [{"name": target.name, **asked, **_rates(own)} for target, own in zip(targets, turns, strict=True)]
        rates = {entry["name"]: entry.pop("by_round") for entry in found}
        for entry in found:
            over = paired_ratio(rates, entry["name"], reference) if reference else None
            entry["tokens_per_second_over_reference"] = over and over._asdict()
        results += found
    return results


class _Turn(NamedTuple):
    """A server's requests in one round, and the round's duration in seconds."""

    seconds: float
    took: list[Took]


def _rates(turns: list[_Turn]) -> dict[str, Any]:
    """Returns the spread of rates over rounds and of seconds over requests, and `by_round`, the tokens/s by round."""
    every = [one for turn in turns for one in turn.took]
    read = [one.read for one in every if one.read is not None]
    made = [sum(one.made for one in turn.took) / turn.seconds for turn in turns]
    over = lambda values: spread(values)._asdict()
    return {
        "read_tokens": statistics.mean(read) if read else None,
        "made_tokens": statistics.mean(one.made for one in every),
        "requests_per_second": over([len(turn.took) / turn.seconds for turn in turns]),
        "tokens_per_second": over(made), "by_round": made,
        "first_token_seconds": over([one.first for one in every]),
        "answer_seconds": over([one.whole for one in every]),
    }  # fmt: skip


def _run(target: Target, clients: int, requests: int, prompt_tokens: int, max_tokens: int, seed: int) -> _Turn:
    """Runs one round in a child process, so that clients do not share the interpreter with a server in this process.
    Raises `ConfigError` if a request fails."""
    load = {"target": target, "clients": clients, "requests": requests, "prompt_tokens": prompt_tokens,
            "max_tokens": max_tokens, "seed": seed}  # fmt: skip
    command = [sys.executable, "-m", "famjax.bench.load_test"]
    child = subprocess.run(command, input=json.dumps(load).encode(), stdout=subprocess.PIPE, check=True)
    found = json_of(child.stdout, "the result of the clients")
    if "error" in found:
        raise ConfigError(f"{target.url} did not answer: {found['error']}")
    return _Turn(found["seconds"], [Took(*one) for one in found["took"]])


def main() -> None:
    """Runs one round: reads the load (JSON) from stdin, prints its seconds and `Took`s, or the first error, as JSON."""
    load = json_of(sys.stdin.buffer.read(), "the load")
    target = Target(*load["target"])
    took: list[Took] = []
    failed: list[Exception] = []

    def client(number: int) -> None:
        """Sends the requests of one client, one after the other."""
        rng = np.random.default_rng((load["seed"], load["clients"], number))
        try:
            for _ in range(load["requests"]):
                took.append(_request(target, _prompt(target, load["prompt_tokens"], rng), load["max_tokens"]))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(load["clients"])]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begin
    print(json.dumps({"error": str(failed[0])} if failed else {"seconds": seconds, "took": took}))


def _prompt(target: Target, tokens: int, rng: np.random.Generator) -> Any:
    if target.vocab_size:
        return rng.integers(0, target.vocab_size, tokens).tolist()
    return f"{rng.integers(10**9)}" + _WORD * (tokens - 1)


def _request(target: Target, prompt: Any, max_tokens: int) -> Took:
    """Measures one streamed completion. Tokens are counted by the server's usage, or as chunks if it reports none.
    Raises `ConfigError` if the server returns an error, or an answer without chunks."""
    where = urlsplit(target.url)
    line = http.client.HTTPConnection(where.hostname or "", where.port, timeout=600)
    body = {"model": target.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    begin = time.monotonic()
    try:
        line.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = line.getresponse()
        if response.status != 200:
            raise ConfigError(f"status {response.status}: {_reason(response.read())}")
        first, chunks, usage = 0.0, 0, None
        for chunk in _events(response):
            if error := chunk.get("error"):
                raise ConfigError(_message(error))
            if any(choice.get("text") or choice.get("finish_reason") for choice in chunk.get("choices", ())):
                first = first or time.monotonic() - begin
                chunks += 1
            usage = chunk.get("usage") or usage
        if not chunks:
            raise ConfigError("the answer has no chunks; does it stream /v1/completions?")
        read, made = (usage["prompt_tokens"], usage["completion_tokens"]) if usage else (None, chunks)
        return Took(first, time.monotonic() - begin, read, made)
    finally:
        line.close()


def _reason(content: bytes) -> str:
    """Returns the message of an error response; its first bytes if it is not in the API's format."""
    try:
        found = json_of(content, "the answer")
        return _message(found.get("error") or found.get("detail"))
    except (BadText, AttributeError):
        return ascii(content[:200].decode("utf-8", "replace"))


def _message(error: Any) -> str:
    """Returns the message of the API's error object, or of a text in its place, as one line of ASCII."""
    return ascii(error.get("message") if isinstance(error, dict) else error)[:300]


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.strip().removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            yield json_of(data, "an event of the server")


if __name__ == "__main__":
    main()
