"""`famjax bench`: training and inference speed of a configuration, compared with its baselines and with peers."""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from famjax.cli.flags import add_gin_arguments, add_memory_arguments, memory_overrides, numbers
from famjax.config import ConfigError, ModelConfig
from famjax.process.progress import Progress

NAME = "bench"
HELP = """Measure a configuration: time, tokens per second, memory.

  famjax bench                      training steps: FAM, BSWA, full causal attention (2 minutes on 2 cores)
  famjax bench infer                prefill, and decoding after texts of 1k to 1M tokens: FAM, BSWA, full attention
                                    with a KV cache
  famjax bench infer --peers        against transformers, both with the same random Llama: --llama tiny, small
  famjax bench serve                famjax serve under 1, 4 and 16 concurrent clients, with a random Llama (--llama):
                                    requests/s, tokens/s, time to the first token
  famjax bench serve --url http://127.0.0.1:9000 --served NAME     compare with another running server of the API
                                    (transformers serve, vllm serve); prompts are then texts
  famjax bench --prefill            streamed prefill of 8 to 1024 blocks: FAM and BSWA
  famjax bench --questions 30       questions about one text of the longest of --blocks, prefilled once or per question
  famjax bench --peers              training steps against torch models with a memory (pip install -e '.[peers]'):
                                    block-recurrent-transformer-pytorch, transformers Mistral (full, sliding window),
                                    infini-transformer-pytorch, recurrent-memory-transformer-pytorch
  famjax bench --size paper-ratio   block 1024, FAM 64

Variants alternate in one process; ratios are medians over rounds, with their range. Other load on the
machine distorts the figures. Writes bench.json and bench.png to --output.
"""
# Also used by famjax.bench.sizes, which is too heavy to import for a help page.
SIZE_NAMES = ("peers", "tiny", "paper-ratio")
VARIANTS = ("FAM", "BSWA", "full")
# Text lengths (tokens) of `infer`: on its own, and against a model whose cost is quadratic in the length.
LENGTHS_READ, LENGTHS_BESIDE = (1024, 8192, 65536, 1048576), (2048, 8192)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax bench`."""
    parser.add_argument(
        "what", nargs="?", choices=("train", "infer", "serve"), default="train", help="what to measure (default: train)"
    )
    parser.add_argument(
        "--size", choices=SIZE_NAMES, help="model size, if no gin file sets the model (default: peers; infer: tiny)"
    )
    parser.add_argument("--lengths", type=numbers, metavar="N,N", help="sequence lengths in tokens")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens per training step, at each sequence length")
    parser.add_argument(
        "--variants", type=_names, default=VARIANTS, metavar="A,B", help=f"variants to compare ({','.join(VARIANTS)})"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--prefill", action="store_true", help="measure streamed prefill instead of training")
    parser.add_argument(
        "--blocks", type=numbers, default=(8, 64, 256, 1024), metavar="N,N", help="prefill: text lengths in blocks"
    )
    parser.add_argument("--rows", type=int, metavar="B", help="batch size of prefill and questions")
    parser.add_argument("--questions", type=int, metavar="N", help="measure N questions about one text instead")
    parser.add_argument("--peers", action="store_true", help="compare with torch peers instead")
    parser.add_argument(
        "--llama", choices=("tiny", "small"), default="tiny", help="infer --peers, serve: 4M or 97M weights"
    )
    parser.add_argument(
        "--full-to", type=int, default=8192, metavar="N",
        help="infer: longest text for full attention (default: 8192)",
    )  # fmt: skip
    serve = parser.add_argument_group("serve")
    serve.add_argument(
        "--clients", type=numbers, default=(1, 4, 16), metavar="N,N", help="concurrent clients (default: 1,4,16)"
    )
    serve.add_argument("--requests", type=int, default=4, metavar="N", help="requests per client (default: 4)")
    serve.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="tokens per prompt (default: 128)")
    serve.add_argument("--answer-tokens", type=int, default=64, metavar="N", help="tokens per answer (default: 64)")
    serve.add_argument("--url", metavar="TEXT", help="address of another server to compare with")
    serve.add_argument("--served", metavar="NAME", help="name of the other server's model")
    parser.add_argument(
        "--output", default="runs/bench", metavar="DIR",
        help="directory for bench.json and bench.png (default: runs/bench)",
    )  # fmt: skip
    add_memory_arguments(parser)
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark. Settings are checked before jax is imported."""
    from famjax.bench.sizes import SIZES, check_lengths
    from famjax.process import cpu

    args.size = args.size or ("tiny" if args.what == "infer" else "peers")
    size = SIZES[args.size]
    model = _model(args, size.model)
    tokens, lengths = args.tokens or size.tokens, args.lengths or size.lengths
    rows = args.rows or size.prefill_rows
    if args.repeats < 1:
        raise ConfigError(f"--repeats is {args.repeats}; it must be at least 1")
    if args.questions is not None and args.questions < 1:
        raise ConfigError(f"--questions is {args.questions}; it must be at least 1")
    if args.what == "infer":
        lengths = args.lengths or (LENGTHS_BESIDE if args.peers else LENGTHS_READ)
        if min(lengths) < 1:
            raise ConfigError(f"--lengths {min(lengths)} is too short; it must be at least 1")
    elif args.what == "serve":
        _check_serving(args)
    elif args.prefill or args.questions:
        _check_blocks(args.blocks)
    else:
        check_lengths(lengths[:1] if args.peers else lengths, tokens, model.memory.block_size)
    if args.peers:
        from famjax.bench.peers import PACKAGES, check_installed

        check_installed(PACKAGES[:2] if args.what == "infer" else PACKAGES)

    os.environ["XLA_FLAGS"] = cpu.xla_flags(os.environ.get("XLA_FLAGS", ""))
    from famjax.bench import report
    from famjax.bench.machine import describe
    from famjax.bench.measure import peak_rss_mib

    cores = len(cpu.cores())
    settings = {"size": args.size, "model": dataclasses.asdict(model), "repeats": args.repeats}
    results: dict[str, Any] = {"machine": describe(cores), "settings": settings}
    with Progress(f"measuring {args.size}") as progress:
        _measure(args, model, rows, tokens, lengths, cores, results, _on_run(progress))
    results["peak_rss_mib"] = peak_rss_mib()
    report.write(args.output, results)
    report.print_tables(results)
    print(f"{args.output}/{report.BENCH_JSON}, {args.output}/{report.PLOT_PNG}")
    return 0


def _measure(
    args: argparse.Namespace, model: ModelConfig, rows: Any, tokens: int, lengths: tuple[int, ...], cores: int,
    results: dict[str, Any], tell: Callable[[str, int, int], None],
) -> None:  # fmt: skip
    """Runs the requested measurement and stores it in `results`."""
    from famjax.bench import suites

    if args.what == "serve":
        results["serving"] = _serving(args, tell)
    elif args.what == "infer":
        results["inference"] = _inference(args, model, lengths, cores, tell)
    elif args.prefill:
        results["prefill"] = suites.prefill(model, rows, args.blocks, args.repeats, tell)
    elif args.questions:
        from famjax.bench.questions import questions

        results["questions"] = questions(model, max(args.blocks), args.questions, args.rows or 8, args.repeats, tell)
    elif args.peers:
        results["peers"] = suites.beside_peers(model, tokens // lengths[0], lengths[0], args.repeats, cores, tell)
    else:
        results["training"] = suites.training(model, tokens, lengths, args.repeats, args.variants, tell)


def _check_serving(args: argparse.Namespace) -> None:
    from famjax.cli.serve import check_installed

    for name in ("requests", "prompt_tokens", "answer_tokens"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    if args.peers or args.gin_files or args.prefill or args.questions:
        raise ConfigError("famjax bench serve measures the Llama of --llama; other servers are named with --url")
    if min(args.clients) < 1:
        raise ConfigError(f"--clients {min(args.clients)} is too few; it must be at least 1")
    if bool(args.url) != bool(args.served):
        raise ConfigError("--url and --served go together; add the missing one")
    check_installed()


def _serving(args: argparse.Namespace, tell: Callable[..., None]) -> list[dict[str, Any]]:
    """Measures famjax serve with and without batching, then the server of --url."""
    from famjax.bench import inference
    from famjax.infer.load import load
    from famjax.serve.load_test import Target, over_clients
    from famjax.serve.server import running
    from famjax.serve.settings import ServeConfig

    measured = (args.clients, args.requests, args.prompt_tokens, args.answer_tokens, tell)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        ours = _imported_llama(args, Path(folder))
        vocab_size = inference.LLAMAS[args.llama]["vocab_size"]
        most = max(args.clients)
        for name, rows in (("famjax serve", most), ("famjax serve --max-rows 1", 1)):
            config = ServeConfig("llama", port=0, max_rows=rows, max_waiting=most, grace=0, prefix_cache_mib=0)
            with running(load(ours), str(ours), config) as server:
                results += over_clients(Target(name, server.url, "llama", vocab_size), *measured)
    if args.url:
        results += over_clients(Target(args.served, args.url, args.served), *measured)
    return results


def _imported_llama(args: argparse.Namespace, folder: Path) -> Path:
    """Writes the Llama of --llama to `folder/theirs`, imports it, and returns the model directory."""
    from famjax.bench import inference
    from famjax.cli.main import main

    theirs, ours = folder / "theirs", folder / "ours"
    inference.write_llama(args.llama, theirs)
    memory = {"block_size": 512, "memory_segments": 3, "fam_length": 64} | memory_overrides(args)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in memory.items()]
    if main(["import-hf", str(theirs), str(ours), *flags]):
        raise ConfigError("the model could not be imported")
    return ours


def _inference(
    args: argparse.Namespace, model: ModelConfig, lengths: tuple[int, ...], cores: int, tell: Callable[..., None]
) -> list[dict[str, Any]]:
    from famjax.bench import inference

    if not args.peers:
        return inference.over_lengths(model, lengths, args.full_to, args.repeats, tell)
    with tempfile.TemporaryDirectory() as folder:
        ours = _imported_llama(args, Path(folder))
        theirs = Path(folder, "theirs")
        return inference.beside_transformers(args.llama, theirs, ours, lengths, args.repeats, cores, tell)


def _model(args: argparse.Namespace, preset: ModelConfig) -> ModelConfig:
    model = preset
    if args.gin_files:
        from famjax.cli.gin_config import load_model_config

        model = load_model_config(args.gin_files, args.gin_search_paths, args.gin_bindings)
    elif args.gin_bindings:
        raise ConfigError("--gin.NAME=VALUE needs a --gin_file that defines the name, e.g. gin/models/fam_tiny.gin")
    model = dataclasses.replace(model, memory=dataclasses.replace(model.memory, **memory_overrides(args)))
    model.validate()
    return model


def _check_blocks(blocks: tuple[int, ...]) -> None:
    """All texts are read in device calls of one size, so `blocks` are multiples of the shortest text, at most 8."""
    least = max(1, min(8, *blocks))
    for count in blocks:
        if count < 1 or count % least:
            raise ConfigError(f"--blocks {count} is not a multiple of {least}")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in VARIANTS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(VARIANTS)}")
    return names


def _on_run(progress: Progress) -> Callable[[str, int, int], None]:
    """Returns a callback (what, done, total) that shows the current measurement and the remaining rounds."""
    current = ""

    def tell(what: str, done: int, total: int) -> None:
        nonlocal current
        if what != current:
            progress.stage(what, total if total > 1 else 0, "rounds")
            current = what
        progress.reach(done)

    return tell
