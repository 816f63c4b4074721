"""`famjax bench serve`: its flags, and the servers that it measures."""

import argparse
import contextlib
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from famjax.bench.measure import Tell
from famjax.cli.flags import distinct_numbers
from famjax.config import ConfigError, memory_overrides
from famjax.config.checks import at_least, flag_of

# Names of our servers in the report: with batching, and with one row, which answers requests sequentially.
BATCH, ONE_ROW = "famjax serve", "famjax serve --max-rows 1"
NAME = "measured"  # name of the model in requests to our servers
ROUNDS = 3
DEFAULTS = {"clients": (1, 4, 16), "requests": 4, "prompt_tokens": 128, "answer_tokens": 64}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax bench serve`."""
    group = parser.add_argument_group("serve")
    group.add_argument(
        "--model", metavar="DIR", help="also infer --peers: model directory (default: the random Llama of --llama)"
    )
    group.add_argument("--clients", type=distinct_numbers, metavar="N,N", help="concurrent clients (default: 1,4,16)")
    group.add_argument("--requests", type=int, metavar="N", help="requests per client (default: 4)")
    group.add_argument("--prompt-tokens", type=int, metavar="N", help="tokens per prompt (default: 128)")
    group.add_argument("--answer-tokens", type=int, metavar="N", help="tokens per answer (default: 64)")
    group.add_argument("--url", metavar="URL", help="address of another running server to compare with")
    group.add_argument("--model-name", metavar="NAME", help="name of the model on the server of --url")
    group.add_argument(
        "--label", metavar="TEXT", help="name of the server of --url in the report (default: its address)"
    )


def check(args: argparse.Namespace) -> None:
    """Sets the flags that were not given. Raises `ConfigError` for invalid or conflicting ones."""
    from famjax.cli.serve import check_installed

    for name, value in DEFAULTS.items():
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    args.llama = args.llama or "tiny"
    for name in ("requests", "prompt_tokens", "answer_tokens"):
        at_least(flag_of(name), getattr(args, name), 1)
    if min(args.clients) < 1:
        raise ConfigError(f"--clients {min(args.clients)} is too few; it must be at least 1")
    if bool(args.url) != bool(args.model_name):
        raise ConfigError("--url and --model-name go together; add the missing one")
    if args.label and not args.url:
        raise ConfigError("--label names the server of --url; add --url")
    if args.label in (BATCH, ONE_ROW):
        raise ConfigError(f"--label {args.label!r} is the name of a server that is measured anyway; choose another")
    if args.url:
        _check_url(args.url)
    if args.model:
        from famjax.storage.model_dir import read_config

        read_config(args.model)
    check_installed()


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "http" and parts.hostname and (parts.port or 80) and parts.path in ("", "/")
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username:
        raise ConfigError(f"--url {url} must be http://HOST:PORT, without a path; requests go to /v1/completions there")


def settings_of(args: argparse.Namespace, config: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the entry of `bench.json`: the load, and the model."""
    names = ("clients", "requests", "prompt_tokens", "answer_tokens", "repeats")
    model = Path(args.model).resolve().name if args.model else f"random Llama, {args.llama}"
    return {"name": model, "model": config, **{name: getattr(args, name) for name in names}}


def measure(args: argparse.Namespace, model_dir: Path, vocab_size: int, tell: Tell) -> list[dict[str, Any]]:
    """Returns measurements of famjax serve with and without batching, and of the server of --url.

    The servers are measured in alternation. Ours run in this process, where they share the weights and the device.
    """
    from famjax.bench.load_test import Target, over_clients
    from famjax.infer.load import load
    from famjax.process.compilation_cache import enable
    from famjax.serve.server import running
    from famjax.serve.settings import ServeConfig
    from famjax.serve.warm_up import warm_up

    enable()
    most = max(args.clients)
    # Another server has another vocabulary, so all servers get the same prompts as text (`Target.vocab_size` 0).
    vocab_size = 0 if args.url else vocab_size
    model = load(model_dir, **memory_overrides(args))
    with contextlib.ExitStack() as stack:
        targets = []
        for name, rows in ((BATCH, most), (ONE_ROW, 1)):
            tell(f"compiling for {rows} rows", 0, 1)
            deque(warm_up(model, rows), maxlen=0)
            config = ServeConfig(NAME, port=0, max_rows=rows, max_waiting=most, grace=0, prefix_cache_mib=0)
            url = stack.enter_context(running(model, str(model_dir), config)).url
            targets.append(Target(name, url, NAME, vocab_size))
        if args.url:
            targets.append(Target(args.label or args.url, args.url.rstrip("/"), args.model_name))
        requests = (args.clients, args.requests, args.prompt_tokens, args.answer_tokens, args.repeats)
        return over_clients(targets, *requests, tell, reference=ONE_ROW)
