"""`famjax bench`: training and inference speed of a configuration, compared with its baselines and with peers."""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from famjax.bench.measure import Tell
from famjax.bench.sizes import SIZES, check_lengths, variants
from famjax.cli import bench_serve
from famjax.cli.flags import add_gin_arguments, add_memory_arguments, check_folder, distinct_numbers, refuse
from famjax.config import ConfigError, ModelConfig, memory_overrides
from famjax.config.checks import at_least, flag_of
from famjax.process.progress import Progress

NAME = "bench"
HELP = """Measure a configuration: time, tokens per second, memory.

  famjax bench                      training steps: FAM, BSWA, full causal attention (2 minutes on 2 cores)
  famjax bench infer                prefill, and decoding after texts of 1k to 1M tokens: FAM, BSWA, full attention
                                    with a KV cache
  famjax bench infer --peers        against transformers, both with the same random Llama (--llama tiny, small), or with
                                    the weights of --model DIR, FAM aside
  famjax bench serve --model DIR    famjax serve under 1, 4 and 16 concurrent clients, with and without batching:
                                    requests/s, tokens/s, time to the first token; without --model a random Llama
  famjax bench serve --model DIR --url http://127.0.0.1:9000 --model-name NAME     compare with another running server
                                    of the API (transformers serve, vllm serve); prompts are then texts
  famjax bench --prefill            streamed prefill of 8 to 1024 blocks: FAM and BSWA
  famjax bench --questions 30       questions about one text of the longest of --blocks, prefilled once or per question
  famjax bench --peers              training steps against torch models with a memory (pip install -e '.[peers]'):
                                    block-recurrent-transformer-pytorch, transformers Mistral (full, sliding window),
                                    infini-transformer-pytorch, recurrent-memory-transformer-pytorch
  famjax bench --size paper-ratio   block 1024, FAM 64

Variants alternate in one process; ratios are medians over rounds, with their range. Other load on the
machine distorts the figures. Writes bench.json and bench.png to --output.
"""
VARIANTS = ("FAM", "BSWA", "full")
# Text lengths (tokens) of `infer`: without peers, and against a peer whose cost is quadratic in the length.
LENGTHS_READ, LENGTHS_BESIDE = (1024, 8192, 65536, 1048576), (2048, 8192)
BLOCKS, FULL_TO = (8, 64, 256, 1024), 8192
# Flags, as in `args`, that each measurement reads, beside those of all.
GIN = ("gin_files", "gin_bindings", "gin_search_paths")
READ_BY = {
    "train": ("size", "lengths", "tokens", "variants", *GIN),
    "train --prefill": ("prefill", "size", "blocks", "rows", *GIN),
    "train --questions": ("questions", "size", "blocks", "rows", *GIN),
    "train --peers": ("peers", "size", "lengths", "tokens", *GIN),
    "infer": ("size", "lengths", "full_to", *GIN), "infer --peers": ("peers", "lengths", "llama", "model"),
    "serve": ("llama", "model", "url", "model_name", "label", *bench_serve.DEFAULTS),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax bench`."""
    parser.add_argument(
        "what", nargs="?", choices=("train", "infer", "serve"), default="train", help="what to measure (default: train)"
    )
    parser.add_argument(
        "--size", choices=SIZES, help="model size, if no gin file sets the model (default: peers; infer: tiny)"
    )
    parser.add_argument("--lengths", type=distinct_numbers, metavar="N,N", help="sequence lengths in tokens")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens per training step, at each sequence length")
    parser.add_argument(
        "--variants", type=_names, metavar="A,B", help=f"variants to compare (default: {','.join(VARIANTS)})"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help=f"rounds (default: 5; serve: {bench_serve.ROUNDS})")
    parser.add_argument("--prefill", action="store_true", help="measure streamed prefill instead of training")
    parser.add_argument(
        "--blocks", type=distinct_numbers, metavar="N,N",
        help=f"prefill, questions: text lengths in blocks (default: {','.join(map(str, BLOCKS))})",
    )  # fmt: skip
    parser.add_argument("--rows", type=int, metavar="B", help="batch size of prefill and questions")
    parser.add_argument("--questions", type=int, metavar="N", help="measure N questions about one text instead")
    parser.add_argument("--peers", action="store_true", help="compare with torch peers instead")
    parser.add_argument(
        "--llama", choices=("tiny", "small"),
        help="infer --peers, serve: 4M or 97M weights (default: tiny, which is 4M)",
    )  # fmt: skip
    parser.add_argument(
        "--full-to", type=int, metavar="N", help=f"infer: longest text for full attention (default: {FULL_TO})",
    )  # fmt: skip
    bench_serve.add_arguments(parser)
    parser.add_argument(
        "--output", default="runs/bench", metavar="DIR",
        help="directory for bench.json and bench.png (default: runs/bench)",
    )  # fmt: skip
    add_memory_arguments(parser)
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark. Settings are checked before jax is imported."""
    if args.repeats is None:
        args.repeats = bench_serve.ROUNDS if args.what == "serve" else 5
    at_least("--repeats", args.repeats, 1)
    _check_read(args)
    check_folder("--output", args.output)
    if args.model:
        refuse(args, ("llama",), "with --model; leave it out")
    if args.what == "serve":
        bench_serve.check(args)
        return _reported(args, "servers", lambda results, tell, cores: _serving(args, results, tell))
    for name, least in (("rows", 1), ("tokens", 1), ("questions", 1), ("full_to", 0)):
        if (value := getattr(args, name)) is not None:
            at_least(flag_of(name), value, least)
    args.blocks, args.llama = args.blocks or BLOCKS, args.llama or "tiny"
    args.full_to = FULL_TO if args.full_to is None else args.full_to
    args.size = args.size or ("tiny" if args.what == "infer" else "peers")
    size = SIZES[args.size]
    model = _model(args, size.model)
    tokens, lengths = args.tokens or size.tokens, args.lengths or size.lengths
    rows = args.rows or size.prefill_rows
    args.variants = args.variants or tuple(variants(model, lengths[0]))
    if absent := set(args.variants) - set(variants(model, lengths[0])):
        raise ConfigError(f"--variants {absent.pop()}: fam_length is 0, so the model has no FAM; leave it out")
    if args.what == "infer":
        lengths = args.lengths or (LENGTHS_BESIDE if args.peers else LENGTHS_READ)
        if min(lengths) < 1:
            raise ConfigError(f"--lengths {min(lengths)} is too short; it must be at least 1")
    elif args.prefill or args.questions:
        least = max(1, min(8, *args.blocks))  # the size of all prefill calls
        if uneven := [count for count in args.blocks if count < 1 or count % least]:
            raise ConfigError(f"--blocks {uneven[0]} is not a multiple of {least}")
    else:
        if args.peers and len(args.lengths or ()) > 1:
            raise ConfigError("--lengths has several lengths, but peers are compared at one; name one")
        check_lengths(lengths[:1] if args.peers else lengths, tokens, model.memory.block_size)
    if args.peers:
        from famjax.bench.peers import PACKAGES, check_installed

        check_installed(PACKAGES[:2] if args.what == "infer" else PACKAGES)

    def measure(results: dict[str, Any], tell: Tell, cores: int) -> None:
        size_of = ", ".join(args.gin_files) or args.model or args.size
        results["settings"] = {"size": size_of, "model": dataclasses.asdict(model), "repeats": args.repeats}
        _measure(args, model, rows, tokens, lengths, cores, results, tell)

    return _reported(args, args.size, measure)


def _check_read(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for a flag that the measurement would not read."""
    asked = [name for name in ("prefill", "questions", "peers") if getattr(args, name) not in (None, False)]
    kinds = [f"{args.what} --{name}" for name in asked]
    kind = next((one for one in kinds if one in READ_BY), args.what)
    others = [name for names in READ_BY.values() for name in names if name not in READ_BY[kind]]
    refuse(args, others, f"on the measurement {kind!r}; leave it out")


def _reported(args: argparse.Namespace, what: str, measure: Callable[[dict[str, Any], Tell, int], None]) -> int:
    """Runs `measure`, then writes and prints its results with a description of the machine and its load."""
    from famjax.process import cpu

    os.environ["XLA_FLAGS"] = cpu.xla_flags(os.environ.get("XLA_FLAGS", ""))
    from famjax.bench import report
    from famjax.bench.machine import describe, load
    from famjax.bench.measure import peak_rss_mib

    cores = len(cpu.cores())
    machine = describe(cores)
    results: dict[str, Any] = {"machine": machine}
    with Progress(f"measuring {what}") as progress:
        measure(results, _on_run(progress), cores)
    machine["load_after"] = load()
    results["peak_rss_mib"] = peak_rss_mib()
    report.write(args.output, results)
    report.print_tables(results)
    print(f"{args.output}/{report.BENCH_JSON}, {args.output}/{report.PLOT_PNG}")
    return 0


def _measure(
    args: argparse.Namespace, model: ModelConfig, rows: Any, tokens: int, lengths: tuple[int, ...], cores: int,
    results: dict[str, Any], tell: Tell,
) -> None:  # fmt: skip
    """Runs the requested measurement and stores it in `results`."""
    from famjax.bench import suites

    if args.what == "infer":
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


def _serving(args: argparse.Namespace, results: dict[str, Any], tell: Tell) -> None:
    """Measures servers of the model directory --model, or of a random Llama imported for this measurement."""
    from famjax.storage.model_dir import read_config

    with tempfile.TemporaryDirectory() as folder:
        model_dir = Path(args.model) if args.model else _imported_llama(args, Path(folder))
        config = read_config(model_dir)
        config = config.with_memory(**memory_overrides(args))
        config.validate()
        results["settings"] = bench_serve.settings_of(args, dataclasses.asdict(config))
        results["serving"] = bench_serve.measure(args, model_dir, config.vocab_size, tell)


def _imported_llama(args: argparse.Namespace, folder: Path) -> Path:
    """Writes the Llama of --llama to `folder/theirs`, imports it, and returns the model directory."""
    from famjax.bench import inference
    from famjax.cli.main import main

    theirs, ours = folder / "theirs", folder / "ours"
    inference.write_llama(args.llama, theirs)
    memory = {"block_size": 512, "memory_segments": 3, "fam_length": 64} | memory_overrides(args)
    flags = [f"{flag_of(name)}={value}" for name, value in memory.items()]
    if main(["import-hf", str(theirs), str(ours), *flags]):
        raise ConfigError("the model could not be imported")
    return ours


def _inference(
    args: argparse.Namespace, model: ModelConfig, lengths: tuple[int, ...], cores: int, tell: Tell
) -> list[dict[str, Any]]:
    from famjax.bench import inference
    from famjax.cli.main import main

    if not args.peers:
        return inference.over_lengths(model, lengths, args.full_to, args.repeats, tell)
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours, memory = Path(folder, "theirs"), args.model, memory_overrides(args)
        if not ours:
            ours, memory = _imported_llama(args, Path(folder)), {}
        elif main(["export-hf", ours, str(theirs)]):
            raise ConfigError(f"{ours} could not be exported, so transformers cannot load it")
        rows = inference.beside_transformers(theirs, Path(ours), memory, lengths, args.repeats, cores, tell)
    return [{"size": Path(args.model).resolve().name if args.model else args.llama, **row} for row in rows]


def _model(args: argparse.Namespace, preset: ModelConfig) -> ModelConfig:
    model = preset
    if args.model:
        from famjax.storage.model_dir import read_config

        model = read_config(args.model)
    elif args.gin_files:
        from famjax.cli.gin_config import load_model_config

        model = load_model_config(args.gin_files, args.gin_search_paths, args.gin_bindings)
    elif args.gin_bindings or args.gin_search_paths:
        raise ConfigError("--gin.NAME=VALUE needs a --gin_file that defines the name, e.g. gin/models/fam_tiny.gin")
    model = model.with_memory(**memory_overrides(args))
    model.validate()
    if model.memory.kind != "fam":  # its row would be named BSWA, since it has no FAM
        raise ConfigError(f"the model's memory is of kind {model.memory.kind!r}; only FAM and BSWA are measured")
    return model


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in VARIANTS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(VARIANTS)}")
        if names.count(name) > 1:
            raise argparse.ArgumentTypeError(f"{name!r} is there twice; name each once")
    return names


def _on_run(progress: Progress) -> Tell:
    """Returns a callback (measurement, runs done, total runs) that shows both on the progress line."""
    current = ""

    def tell(what: str, done: int, total: int) -> None:
        nonlocal current
        if what != current:
            progress.stage(what, total if total > 1 else 0, "rounds")
            current = what
        progress.reach(done)

    return tell
