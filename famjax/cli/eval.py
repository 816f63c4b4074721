"""`famjax eval`: evaluates models and compares them."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from famjax.cli.flags import (
    add_dtype_argument,
    add_gin_arguments,
    add_memory_arguments,
    add_mesh_argument,
    check_folder,
    length,
    lengths,
    numbers,
    refuse,
)
from famjax.config import OVERRIDES, ConfigError, memory_overrides

if TYPE_CHECKING:
    from famjax.config import EvalConfig

NAME = "eval"
HELP = """Evaluate and compare model directories: pass-key retrieval, your texts, long-context tasks.

  famjax eval --model runs/tiny_fam --model runs/tiny_bswa --output runs/compare
  famjax eval --model runs/fam --model runs/bswa --texts 'heldout/*.txt' --output runs/texts
  famjax eval --model runs/fam --task niah_single,recall --lengths 1k,4k,16k --output runs/needles
  famjax eval --model runs/fam --lm-eval hellaswag,lambada_openai --limit 100 --output runs/harness
  famjax eval --list
  famjax eval --compare runs/needles runs/needles_of_another

The default task is the pass key, at every offset of the filler relative to the block boundaries. Generated
tasks have exactly the number of tokens that --lengths gives, in each model's own tokenizer. Documents are
streamed, so memory does not grow with their length; a context that questions share is prefilled once.

The output directory gets results.json (each number with n, a 95% interval, and counts of truncation),
samples.jsonl (questions and answers, appended as they finish: the same command resumes an interrupted
evaluation), report.html and plots. docs/evaluation.md describes every task and where its data comes from.
"""

# Flags that are fields of `EvalConfig`.
SAME = ("filler_blocks", "keys", "seed", "longest", "lengths", "depths", "examples", "filler", "split", "chat",
        "max_new_tokens", "part", "mesh", "dtype")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax eval`."""
    parser.add_argument("--model", action="append", default=[], metavar="DIR", help="model directory; repeatable")
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME,NAME",
        help="tasks to evaluate; repeatable (default: passkey)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the tasks and exit")
    parser.add_argument("--output", metavar="DIR", help="output directory (default: the first model's directory)")
    parser.add_argument(
        "--compare", nargs="+", metavar="RUN", help="compare finished evaluations, given by their output directories"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of keys, needles and words (default: 1)")
    parser.add_argument("--again", action="store_true", help="re-run examples that already have answers")
    parser.add_argument(
        "--part", metavar="I/N", help="evaluate part I of N only, as one of N processes (docs/evaluation.md)"
    )
    _add_task_arguments(parser)
    _add_harness_arguments(parser)
    add_mesh_argument(parser)
    add_dtype_argument(parser)
    add_memory_arguments(parser)
    add_gin_arguments(parser, default_files=("gin/runs/eval.gin",))


def _add_task_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings of tasks")
    group.add_argument("--lengths", type=lengths, metavar="N,N", help="tokens of generated tasks: 1k,4k,128k")
    group.add_argument(
        "--depths", type=_fractions, metavar="X,X",
        help="position of the needle, from 0 to 1 (default: 0,0.25,0.5,0.75,1)",
    )  # fmt: skip
    group.add_argument(
        "--examples", type=int, metavar="N",
        help="examples per length (default: 50), or the first N of a data set (default: all)",
    )  # fmt: skip
    group.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="TASK=PATH",
        help="path of a task's data set; PATH alone for one task only",
    )
    group.add_argument(
        "--chat", action=argparse.BooleanOptionalAction,
        help="use the model's chat template (default: in babi and kv_retrieval if it has one; not in lm-eval tasks)",
    )  # fmt: skip
    group.add_argument("--split", metavar="NAME", help="split of a data set (default: the task's, validation or test)")
    group.add_argument(
        "--filler", metavar="FILES", help="haystack text around the needles (default: the pass key's five sentences)"
    )
    group.add_argument(
        "--longest", type=length, metavar="N", help="truncate each document to N tokens (default: no limit)"
    )
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="maximum tokens per answer (default: the task's)"
    )
    group.add_argument(
        "--texts", action="append", default=[], metavar="FILES",
        help="files of the task text, plain or JSON lines, for example 'heldout/*.txt'; repeatable",
    )  # fmt: skip
    group.add_argument("--filler-blocks", type=numbers, metavar="N,N", help="passkey: filler lengths in blocks")
    group.add_argument("--keys", type=int, metavar="N", help="passkey: keys per alignment (default: 1)")


def _add_harness_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tasks of lm-evaluation-harness (docs/lm_eval.md)")
    group.add_argument(
        "--lm-eval", metavar="TASK,TASK", help="task names, or a list: paper-gpt3, long, ...; writes lm_eval.json"
    )
    group.add_argument("--limit", type=int, metavar="N", help="examples per task (default: all)")
    group.add_argument("--fewshot", type=int, metavar="N", help="few-shot examples (default: the task's)")
    group.add_argument("--include-path", metavar="DIR", help="directory of your own tasks, as YAML")
    group.add_argument("--cache", default="", metavar="FILE", help="cache of answers, from which a stopped run resumes")


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of depths; write for example 0,0.5,1") from None


# Flags, as in `args`, of one kind of evaluation.
OURS = (*(name for name in SAME if name not in ("chat", "dtype")), "task", "data", "texts", "again")
HARNESS = ("limit", "fewshot", "include_path", "cache")
MODELS = ("model", *OVERRIDES, "dtype", "chat", "gin_bindings")
# Settings of `EvalConfig` that the tasks of --lm-eval read, and macros of gin/runs/eval.gin for others.
READ_BY_HARNESS = ("model_dirs", "output_dir", "batch_size", "dtype", *OVERRIDES)
MACROS_OF_OURS = ("MIXTURE_OR_TASK_NAME", "RANDOM_SEED", "MESH")


def run(args: argparse.Namespace) -> int:
    """Runs the evaluation. Checks settings and model directories, and data sets if possible, before jax is imported."""
    if args.list:
        others = ("compare", "output", "lm_eval", *OURS, *HARNESS, *MODELS)
        refuse(args, others, "with --list, which evaluates nothing; leave it out")
        print(_list(), end="")
        return 0
    if args.compare:
        refuse(args, ("lm_eval", *OURS, *HARNESS, *MODELS), "with --compare, which evaluates nothing; leave it out")
        check_folder("--output", args.output or "")
        from famjax.evals.reports.compare import compare

        compare(args.compare, args.output)
        return 0
    if args.lm_eval is not None:
        refuse(args, OURS, "on the tasks of --lm-eval; leave it out (docs/lm_eval.md)")
        return _harness(args)
    refuse(args, HARNESS, "without --lm-eval; --examples limits a data set")
    from famjax.evals.tasks.catalog import check
    from famjax.storage.model_dir import read_config

    config = _config(args)
    config.validate()
    check(config.tasks, config)
    _check_read(args, config)
    for path in config.model_dirs:
        read_config(path)
    check_folder("--output", config.output_dir)

    from famjax.evals.run import run as evaluate
    from famjax.process.compilation_cache import enable

    enable()
    evaluate(config)
    return 0


def _check_read(args: argparse.Namespace, config: "EvalConfig") -> None:
    """Raises `ConfigError` for a setting on the command line, or a data set, that no evaluated task reads."""
    from famjax.evals.tasks.catalog import SEQIO, TASKS, read_by

    reads = {name: read_by(name, config) for name in config.tasks}
    unread = {*SEQIO, *(one for entry in TASKS.values() for one in entry.reads)}.difference(*reads.values())
    why = f"on {' and '.join(reads)}, evaluated here; leave it out, or name a --task that reads it (docs/evaluation.md)"
    refuse(args, sorted({"sources": "texts"}.get(name, name) for name in unread & {*SAME, "sources", "data"}), why)
    bound = {binding.partition("=")[0].strip() for binding in args.gin_bindings}
    for name in sorted(unread):
        if f"EvalConfig.{name}" in bound:
            raise ConfigError(f"--gin.EvalConfig.{name} has no effect {why}")
    _check_data(args, config, [name for name in reads if "data" in reads[name]])


def _check_data(args: argparse.Namespace, config: "EvalConfig", names: Sequence[str]) -> None:
    """Raises `ConfigError` for a `--data` that none of the tasks `names` reads, or without a task if several do."""
    read = {name: config.data_of(name) for name in names}
    known = {given.partition("=")[0] for given in config.data if "=" in given}
    without = [name for name in names if read[name] and name not in known]
    if len(without) > 1:
        each = " ".join(f"--data {name}=PATH" for name in without)
        raise ConfigError(f"--data {read[without[0]]} does not say of which task it is; write {each}")
    for given in args.data:
        name, named, path = given.partition("=")
        if path != read.get(name) if named else given not in read.values():
            raise ConfigError(f"--data {given} has no effect: write TASK=PATH once for each task, TASK being "
                              f"{' or '.join(read)}")  # fmt: skip


def _harness(args: argparse.Namespace) -> int:
    from famjax.evals.harness.run import HarnessConfig, run
    from famjax.storage.model_dir import read_config, split_step

    evaluation = _config(args)
    for name in (binding.partition("=")[0].strip() for binding in args.gin_bindings):
        scope, _, field = name.rpartition(".")
        if name in MACROS_OF_OURS or (scope.endswith("Config") and field not in READ_BY_HARNESS):
            raise ConfigError(f"--gin.{name} has no effect on the tasks of --lm-eval; leave it out (docs/lm_eval.md)")
    if not evaluation.model_dirs:
        raise ConfigError("no model to evaluate; add --model DIR")
    output = evaluation.output_dir or str(split_step(evaluation.model_dirs[0])[0])
    config = HarnessConfig(
        evaluation.model_dirs, args.lm_eval, output, args.limit, args.fewshot, evaluation.batch_size, bool(args.chat),
        args.include_path, args.cache, memory_overrides(evaluation), evaluation.dtype or "auto",
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
    seqios = "seqio tasks: --task seqio:NAME --gin.EvalConfig.modules=\"('module',)\", which registers NAME.\n"
    return f"famjax eval --task NAME,NAME, from\n\n{''.join(lines)}\n{seqios}"
