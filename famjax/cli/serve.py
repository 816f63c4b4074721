"""`famjax serve`: an OpenAI-compatible server with named memories."""

import argparse
import importlib.util
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from famjax.cli.flags import add_infer_arguments, settle, utf8
from famjax.config import ConfigError, memory_overrides
from famjax.process import interrupts
from famjax.serve.settings import ServeConfig, read_keys

if TYPE_CHECKING:
    from famjax.serve.server import Server

NAME = "serve"
HELP = """An OpenAI-compatible server: completions, chat, and named memories of a fixed size.

  famjax serve --model runs/llama --sessions memories
  curl -T book.txt http://127.0.0.1:8000/v1/sessions/book/text
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"session": "book", "messages": [{"role": "user", "content": "Who did it?"}]}'

http://127.0.0.1:8000/ is a page to chat. It listens on loopback unless --host names another address; then give
--api-key-file. After Ctrl-C or SIGTERM, running requests have --grace seconds to finish. docs/serve.md has all routes.
"""
PACKAGES = ("starlette", "uvicorn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax serve`."""
    where = parser.add_argument_group("server")
    where.add_argument(
        "--host", default=ServeConfig.host, metavar="NAME", help=f"address to listen on (default: {ServeConfig.host})"
    )
    where.add_argument(
        "--port", type=int, default=ServeConfig.port, metavar="N", help="port (default: 8000; 0: a free one)"
    )
    where.add_argument("--sessions", metavar="DIR", help="folder of session files (default: no named sessions)")
    where.add_argument(
        "--name", type=utf8, metavar="TEXT", help="model name for clients (default: the directory's name)"
    )
    where.add_argument("--api-key-file", metavar="FILE", help="API keys, one per line; clients must send one")
    where.add_argument(
        "--warm-up", action=argparse.BooleanOptionalAction, default=True,
        help="compile before the first request; the next start reads the programs from the cache (default: yes)",
    )  # fmt: skip
    much = parser.add_argument_group("limits")
    for flag, kind, what in (
        ("max-rows", int, "maximum batch size"), ("max-waiting", int, "maximum queued requests"),
        ("max-tokens", int, "tokens per chat answer if the request sets no limit; /v1/completions has the API's 16"),
        ("max-body-mib", float, "maximum size of a JSON body"), ("timeout", float, "seconds per request"),
        ("grace", float, "seconds for running requests when the server stops"),
        ("prefix-cache-mib", float, "size of the prefix cache; 0 disables it"),
    ):  # fmt: skip
        default = getattr(ServeConfig, flag.replace("-", "_"))
        much.add_argument(f"--{flag}", type=kind, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.set_defaults(max_tokens=None)  # gin can set it; see `settle`
    add_infer_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until a signal arrives. Everything that can be checked is checked before the model is loaded."""
    settle(args)
    config = settings_of(args)
    check_installed()
    from famjax.serve.server import listen, locked
    from famjax.storage.model_dir import read_config

    read_config(args.model)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("famjax.serve").setLevel(logging.INFO)
    for noisy in ("uvicorn.error", "jax", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with listen(config.host, config.port) as taken, locked(config):
        from famjax.infer.load import load
        from famjax.process.compilation_cache import enable
        from famjax.process.progress import Progress
        from famjax.serve.engine import bytes_of_row
        from famjax.serve.server import Server

        enable()
        with Progress(f"loading {args.model}"):
            model = load(args.model, args.mesh, args.dtype, **memory_overrides(args))
            server = Server(model, str(args.model), config, taken)
        row = bytes_of_row(model) / 2**20
        ready = f"{config.name} on {server.url}, {config.max_rows} rows of {row:.3g} MiB of memory each"
        _until_signal(server, config, ready, args.warm_up)
    return 0


def settings_of(args: argparse.Namespace) -> ServeConfig:
    """Returns the validated settings. Raises `ConfigError`, also for a public address without API keys."""
    names = ("host", "port", "max_rows", "max_waiting", "max_tokens", "max_body_mib", "timeout", "grace")
    config = ServeConfig(
        name=args.name or Path(args.model).resolve().name, prefix_cache_mib=args.prefix_cache_mib,
        sessions=Path(args.sessions) if args.sessions else None,
        keys=read_keys(args.api_key_file) if args.api_key_file else (), **{name: getattr(args, name) for name in names},
    )  # fmt: skip
    config.validate()
    if not config.loopback and not config.keys:
        raise ConfigError(f"--host {config.host} can be reached from other machines; add --api-key-file FILE")
    return config


def check_installed() -> None:
    """Raises `ConfigError` if the extra `serve` is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"famjax serve needs {' and '.join(missing)}: pip install -e '.[serve]'")


def _until_signal(server: "Server", config: ServeConfig, ready: str, warm_up: bool) -> None:
    def stopping(number: int) -> str:
        seconds = min(config.grace, interrupts.GRACE_SECONDS) if number == signal.SIGINT else config.grace
        return f"accepts no more requests; running ones have {seconds:g} s to finish"

    kept = lambda: "sessions of complete answers"
    with interrupts.handled("famjax serve", signal.SIGTERM), interrupts.held(kept, stopping):
        server.begin_to_listen()
        try:
            if warm_up:
                _warm_up(server, config.max_rows)
            server.begin_to_answer()
            if not interrupts.requested():
                print(ready, file=sys.stderr, flush=True)
            while server.alive and not interrupts.requested():
                time.sleep(0.1)
        finally:
            server.stop()


def _warm_up(server: "Server", max_rows: int) -> None:
    """Compiles the programs of the server; stops early if a signal arrives."""
    from famjax.process.progress import Progress
    from famjax.serve.warm_up import programs, warm_up

    model = server.service.engine.model
    total = programs(max_rows, model.config.memory.block_size)
    with Progress("compiling", total, "programs") as progress:
        for _ in warm_up(model, max_rows):
            progress.advance()
            if interrupts.requested():
                return
