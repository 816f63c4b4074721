"""How many requests a server answers: clients that ask one request after the other, for `famjax bench serve`.

Any server that speaks the API may be asked, so that servers can be held against each other. A client is a thread with
a connection of its own; it streams its answers, so that the time to the first token is seen.

    python -m famjax.bench.load_test < LOAD.json        what `over_clients` starts for each round; imports no jax
"""

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from famjax.bench.measure import paired_ratio, spread
from famjax.config import ConfigError
from famjax.config.text import BadText, json_of

# A word that every vocabulary has, in prompts of different beginnings, so that no server answers from a cache.
_WORD = " word"


class Took(NamedTuple):
    """One request: seconds to first token and end, tokens read (None if the server does not say) and made."""

    first: float
    whole: float
    read: int | None
    made: int


class Target(NamedTuple):
    """A server: its name in the report, its address, and the name of its model there.

    Attributes:
      vocab_size: prompts are random token ids below it; 0: prompts are texts.
    """

    name: str
    url: str
    model: str
    vocab_size: int = 0


def over_clients(
    targets: Sequence[Target], clients: Sequence[int], requests: int, prompt_tokens: int, max_tokens: int, rounds: int,
    tell: Callable[[str, int, int], None], reference: str = "",
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns one entry for each number of clients and server.

    The servers take turns, so that other load on the machine weighs on all of them. Before the first round of a number
    of clients, each server answers one request per client that is not counted.

    Args:
      targets: the servers; all get the same prompts, if `vocab_size` is the same.
      clients: numbers of clients at once.
      requests: of each client in a round.
      prompt_tokens: of a prompt (words, of a text).
      max_tokens: of an answer; greedy, and nothing keeps a model from ending it earlier.
      rounds: turns of each server; rates are medians over them.
      tell: what is measured, how much of it is done, of how much.
      reference: name of the server that the tokens/s of all are divided by, round by round.

    Raises:
      ConfigError: a server does not answer.
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
    """A server's requests of one round, and the seconds of all together."""

    seconds: float
    took: list[Took]


def _rates(turns: list[_Turn]) -> dict[str, Any]:
    """The spread of rates over rounds, and of seconds over all requests; `by_round`: tokens/s."""
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


def _run(
    target: Target, clients: int, requests: int, prompt_tokens: int, max_tokens: int, seed: int
) -> _Turn:  # fmt: skip
    """A round of clients, in a process of their own: they share no interpreter with a server that runs in this one.
    Raises `ConfigError` if a request failed."""
    load = {"target": target, "clients": clients, "requests": requests, "prompt_tokens": prompt_tokens,
            "max_tokens": max_tokens, "seed": seed}  # fmt: skip
    command = [sys.executable, "-m", "famjax.bench.load_test"]
    child = subprocess.run(command, input=json.dumps(load).encode(), stdout=subprocess.PIPE, check=True)
    found = json_of(child.stdout, "the result of the clients")
    if "error" in found:
        raise ConfigError(f"{target.url} did not answer: {found['error']}")
    return _Turn(found["seconds"], [Took(*one) for one in found["took"]])


def main() -> None:
    """The clients' process: reads the load from standard input, prints seconds and `Took`s, or the first error."""
    load = json_of(sys.stdin.buffer.read(), "the load")
    target = Target(*load["target"])
    took: list[Took] = []
    failed: list[Exception] = []

    def client(number: int) -> None:
        """Its requests, one after the other."""
        rng = np.random.default_rng((load["seed"], number))
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
    """What an answer that is an error says."""
    try:
        found = json_of(content, "the answer")
        return _message(found.get("error") or found.get("detail"))
    except (BadText, AttributeError):
        return ascii(content[:200].decode("utf-8", "replace"))


def _message(error: Any) -> str:
    """Of the API's error object, or of a text in its place; printable, in one line."""
    return ascii(error.get("message") if isinstance(error, dict) else error)[:300]


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.strip().removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            yield json_of(data, "an event of the server")


if __name__ == "__main__":
    main()
