"""`famjax eval`: what models remember, side by side."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from famjax.cli.flags import (
    add_dtype_argument,
    add_gin_arguments,
    add_memory_arguments,
    add_mesh_argument,
    memory_overrides,
)
from famjax.config import ConfigError

if TYPE_CHECKING:
    from famjax.config import EvalConfig

NAME = "eval"
HELP = """Evaluate model directories side by side: the pass key, texts of yours, long-context tasks.

  famjax eval --model runs/tiny_fam --model runs/tiny_bswa --output runs/compare
  famjax eval --model runs/fam --model runs/bswa --texts 'heldout/*.txt' --output runs/texts
  famjax eval --model runs/fam --task niah_single,recall --lengths 1k,4k,16k --output runs/needles
  famjax eval --model runs/fam --lm-eval hellaswag,lambada_openai --limit 100 --output runs/harness
  famjax eval --list
  famjax eval --compare runs/needles runs/needles_of_another

Without --task, the pass key at every alignment of filler and block. Generated tasks have so many tokens as
--lengths says, of each model's own tokenizer, exactly. Documents are read by streaming, so memory does not
grow with their length; what several questions share is read once.

The output directory gets results.json (each number with n, a 95% interval, what was truncated), samples.jsonl
(each question and answer, as they come: an evaluation that was stopped goes on with the same command),
report.html and plots. docs/evaluation.md tells every task and where its data is.
"""

# Flags that are fields of `EvalConfig`.
SAME = ("filler_blocks", "keys", "seed", "longest", "lengths", "depths", "examples", "filler", "split", "chat",
        "max_new_tokens", "part", "mesh", "dtype")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax eval`."""
    parser.add_argument("--model", action="append", default=[], metavar="DIR", help="may be given several times")
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME,NAME",
        help="what to evaluate (passkey); may be given several times",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="show the tasks, and leave")
    parser.add_argument("--output", metavar="DIR", help="where results go (the first model's directory)")
    parser.add_argument(
        "--compare", nargs="+", metavar="RUN", help="output directories of evaluations, to be shown side by side"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of keys, needles and words (1)")
    parser.add_argument("--again", action="store_true", help="answer anew what was answered before")
    parser.add_argument(
        "--part", metavar="I/N", help="ask part I of N only, as one of N processes (docs/evaluation.md)"
    )
    _add_task_arguments(parser)
    _add_harness_arguments(parser)
    add_mesh_argument(parser)
    add_dtype_argument(parser)
    add_memory_arguments(parser)
    add_gin_arguments(parser, default_files=("gin/runs/eval.gin",))


def _add_task_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the tasks read and ask")
    group.add_argument("--lengths", type=_lengths, metavar="N,N", help="of generated tasks, tokens: 1k,4k,128k")
    group.add_argument(
        "--depths", type=_fractions, metavar="X,X", help="where the needle is, 0 to 1 (0,0.25,0.5,0.75,1)"
    )
    group.add_argument("--examples", type=int, metavar="N", help="of each length (50), or the first N of a data set")
    group.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="TASK=PATH",
        help="where a task's data set is; PATH for the only one",
    )
    group.add_argument(
        "--chat", action=argparse.BooleanOptionalAction,
        help="use the model's chat template (yes, if it has one, in babi and kv_retrieval; no, in tasks of lm-eval)",
    )  # fmt: skip
    group.add_argument("--split", metavar="NAME", help="part of a data set (validation or test, as the task has it)")
    group.add_argument("--filler", metavar="FILES", help="text that hides the needles (the pass key's five sentences)")
    group.add_argument("--longest", type=_length, metavar="N", help="tokens read of a document at most (all)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="made for an answer at most (the task's own)")
    group.add_argument(
        "--texts", action="append", default=[], metavar="FILES",
        help="the task text: text or JSON lines files, for example 'heldout/*.txt'; may be given several times",
    )  # fmt: skip
    group.add_argument("--filler-blocks", type=_numbers, metavar="N,N", help="of passkey: lengths of filler, in blocks")
    group.add_argument("--keys", type=int, metavar="N", help="of passkey: keys for each alignment (1)")


def _add_harness_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tasks of lm-evaluation-harness (docs/lm_eval.md)")
    group.add_argument(
        "--lm-eval", metavar="TASK,TASK", help="its names, or paper-gpt3, long, ...; writes lm_eval.json"
    )
    group.add_argument("--limit", type=int, metavar="N", help="examples of each task (all)")
    group.add_argument("--fewshot", type=int, metavar="N", help="examples before each question (the task's own)")
    group.add_argument("--include-path", metavar="DIR", help="tasks of yours, as YAML")
    group.add_argument("--cache", default="", metavar="FILE", help="answers to keep, from which it goes on")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; write for example 1,4,16,64") from None


def _length(text: str) -> int:
    units = {"k": 2**10, "m": 2**20}
    unit = units.get(text[-1:].lower(), 1)
    try:
        return int(float(text[:-1]) * unit) if unit > 1 else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no length; write for example 4096, 4k or 1m") from None


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(_length(part) for part in text.split(","))


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of depths; write for example 0,0.5,1") from None


def run(args: argparse.Namespace) -> int:
    """Evaluates; settings, model directories and data sets are checked before jax is loaded where that can be."""
    if args.list:
        print(_list(), end="")
        return 0
    if args.compare:
        return _compare(args)
    if args.lm_eval is not None:
        return _harness(args)
    from famjax.evals.tasks.catalog import check
    from famjax.storage.model_dir import read_config

    config = _config(args)
    config.validate()
    check(config.tasks, config)
    for path in config.model_dirs:
        read_config(path)
    if config.output_dir and Path(config.output_dir).is_file():
        raise ConfigError(f"--output {config.output_dir} is a file; name a directory")

    from famjax.evals.run import run as evaluate
    from famjax.process.compilation_cache import enable

    enable()
    evaluate(config)
    return 0


def _harness(args: argparse.Namespace) -> int:
    from famjax.evals.harness.run import HarnessConfig, run
    from famjax.storage.model_dir import read_config, split_step

    evaluation = _config(args)
    if not evaluation.model_dirs:
        raise ConfigError("no model to evaluate; add --model DIR")
    output = args.output or str(split_step(evaluation.model_dirs[0])[0])
    config = HarnessConfig(
        evaluation.model_dirs, args.lm_eval, output, args.limit, args.fewshot, evaluation.batch_size, bool(args.chat),
        args.include_path, args.cache, memory_overrides(args), evaluation.dtype or "auto",
    )  # fmt: skip
    config.validate()
    for path in config.model_dirs:
        read_config(path)
    from famjax.process.compilation_cache import enable

    enable()
    run(config)
    return 0


def _config(args: argparse.Namespace) -> "EvalConfig":
    from famjax.cli.gin_config import load
    from famjax.config import EvalConfig

    config, _ = load(EvalConfig, args.gin_files, args.gin_search_paths, args.gin_bindings)
    named = {name: getattr(args, name) for name in SAME} | {"output_dir": args.output}
    named |= {"task": ",".join(args.task)} if args.task else {"task": "text"} if args.texts else {}
    named |= {"sources": tuple(args.texts)} if args.texts else {}
    named |= {"data": tuple(args.data)} if args.data else {}
    named |= {"again": True} if args.again else {}
    given = {name: value for name, value in named.items() if value is not None} | memory_overrides(args)
    dirs = tuple(args.model) or tuple(path for path in config.model_dirs if path)
    return dataclasses.replace(config, model_dirs=dirs, **given)


def _list() -> str:
    from famjax.evals.tasks.catalog import TASKS

    width = max(map(len, TASKS))
    lines = [f"  {name:<{width}}  {entry.summary}{f'; needs {entry.needs}' if entry.needs else ''}\n"
             for name, entry in TASKS.items()]  # fmt: skip
    seqios = "Tasks of seqio: --task seqio:NAME --gin.EvalConfig.modules=\"('the.module',)\", which registers it.\n"
    return f"famjax eval --task NAME, one or several of\n\n{''.join(lines)}\n{seqios}"


def _compare(args: argparse.Namespace) -> int:
    from famjax.evals.reports.compare import compare

    compare(args.compare, args.output)
    return 0
