"""`famjax compare`: trains and evaluates several memories with the same model, task and budget."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from famjax.cli.compare_runs import DIVERGED, Subject, chosen, missing, subjects_of, train
from famjax.cli.flags import add_gin_arguments, check_folder, distinct_numbers, rates
from famjax.config import ConfigError, EvalConfig
from famjax.config.checks import at_least

NAME = "compare"
HELP = """Train several memories on one task with one budget, evaluate them, write one report.

  famjax compare --memories fam,bswa,sinks,infini --output runs/compare
  famjax compare --memories fam,my_memory.gin --seeds 0,1,2 --tokens 6m --output runs/mine
  famjax compare --gin_file gin/experiments/compare_mqar.gin --learning-rates 1e-3,3e-3,1e-2 --output runs/mqar
  famjax compare --gin_file gin/experiments/compare_s5.gin --flops 5t --output runs/s5
  famjax compare --memories fam,fam:previous_fams=2,fam:fam_position=zero --output runs/ablation

A memory is the name of a file in gin/memories, or a gin file of your own. It is loaded after the task's
gin file (--gin_file, default: gin/experiments/compare.gin) and may change only the memory settings.
NAME:FIELD=VALUE:... is a memory with other settings, fields of MemoryConfig (docs/architecture.md). All
models of a seed start from the same weights, except those that a memory adds, and read the same batches
in the same order. They train one after the other and are then evaluated.

The report, comparison.html and comparison.json, has accuracy against length, bytes of state and FLOPs,
with 95% intervals, added weights and costs of each memory, training curves, and runs that diverged. The
same command resumes an interrupted comparison.
"""

# Flags of the evaluation, of which each task supports some, with their smallest values.
EVALUATION = {"blocks": 0, "keys": 1, "alignments": 0, "examples": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax compare`."""
    parser.add_argument("--memories", default="fam,bswa,sinks,infini", metavar="NAME,NAME", help="names or gin files")
    parser.add_argument(
        "--output", default="runs/compare", metavar="DIR", help="output directory (default: runs/compare)"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--tokens", type=_count, metavar="N", help="tokens per training: 500k, 2m (default: the task's)"
    )
    budget.add_argument(
        "--flops", type=_count, metavar="N",
        help="model FLOPs per training instead: 800g, 5t; cheaper memories then read more tokens",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=distinct_numbers, default=(0,), metavar="N,N",
        help="seeds of weights and documents (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--learning-rates", type=rates, default=(), metavar="X,X",
        help="train every memory with each; the report has the one with the lowest training loss (default: the task's)",
    )  # fmt: skip
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="parallel trainings (default: 1)")
    parser.add_argument(
        "--part", default="", metavar="I/N",
        help="train only part I of N here; the report is written once all trainings are in the output directory",
    )  # fmt: skip
    _add_evaluation(parser)
    add_gin_arguments(parser)


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--blocks", "--filler-blocks", type=distinct_numbers, metavar="N,N",
        help="lengths in blocks: of a document, or of the pass key's filler "
             "(default: 1,2,4,8,16,64; else those of the training, and 2 and 4 times the longest)",
    )  # fmt: skip
    group.add_argument("--examples", type=int, metavar="N", help="documents per length and kind (default: 50)")
    group.add_argument("--keys", type=int, metavar="N", help="pass key: keys per alignment (default: 1)")
    group.add_argument(
        "--alignments", type=int, metavar="N", help="pass key: offsets of the filler in a block (default: 0, all)"
    )


def run(args: argparse.Namespace) -> int:
    """Trains, evaluates and writes the report. All settings are checked first."""
    from famjax.data.generated import check_generated_task
    from famjax.evals.yardsticks import yardstick

    output = Path(args.output)
    check_folder("--output", output)
    at_least("--at-once", args.at_once, 1)
    part, parts = EvalConfig(part=args.part).part_of
    subjects = subjects_of(args, output)
    task = yardstick(subjects[0].job.config)
    evaluation = dataclasses.replace(
        task.evaluation(_flags(args, task.flags)), model_dirs=("none",), output_dir=str(output / "evaluation")
    )
    evaluation.validate()
    for one in subjects:
        check_generated_task(one.job.config)

    diverged = train(subjects[part - 1 :: parts], output, args.at_once, args.part)
    if args.part and (absent := missing(subjects, diverged)):
        print(f"part {args.part} is trained; the report needs {len(absent)} of {len(subjects)} trainings that are not "
              f"in {output}: {', '.join(absent)}")  # fmt: skip
        return 0
    if all(one.job.name in diverged for one in subjects):
        raise RuntimeError(f"every training diverged; {output / DIVERGED} has the reasons")
    data, page = _report(args, output, subjects, evaluation, diverged)
    print(f"wrote {data} and {page}")
    return 0


def _report(
    args: argparse.Namespace, output: Path, subjects: list[Subject], evaluation: EvalConfig, diverged: dict[str, str]
) -> tuple[Path, Path]:
    """Evaluates the chosen trainings and writes the report. Returns the paths of its JSON and HTML files."""
    from famjax.evals import memories
    from famjax.evals.memories_page import write
    from famjax.evals.run import run as evaluate
    from famjax.evals.yardsticks import yardstick
    from famjax.process.compilation_cache import enable

    task = yardstick(subjects[0].job.config)
    kept, tried = chosen(subjects, diverged)
    trained = [one for one in kept if one.job.name not in diverged]
    enable()
    dirs = tuple(one.job.config.model_dir for one in trained)
    results = evaluate(dataclasses.replace(evaluation, model_dirs=dirs), trained[0].job.config.longest_filler)
    found = {model["model_dir"]: model for model in results["models"]}
    runs = []
    for one in kept:
        model = found.get(one.job.config.model_dir)
        rows, tables = ([], []) if model is None else (task.rows(model), task.tables(model))
        said = diverged.get(one.job.name, "")
        runs.append(memories.Run(one.memory, one.gin_file, one.seed, one.job.config, rows, said, tables))
    also = [
        {"memory": one.memory, "seed": one.seed, "learning_rate": one.rate, "said": diverged[one.job.name]}
        for one in subjects if one.job.name in diverged and one not in kept
    ]  # fmt: skip
    return write(output, memories.summarize(runs, task, args.flops or 0, tried, also))


def _flags(args: argparse.Namespace, known: tuple[str, ...]) -> dict[str, Any]:
    """Returns the given flags of the evaluation. Raises `ConfigError` for one that is too small or not of this task."""
    given = {name: getattr(args, name) for name in EVALUATION if getattr(args, name) is not None}
    for name, value in given.items():
        if name not in known:
            has = ", ".join(f"--{one}" for one in known)
            raise ConfigError(f"--{name} is not a setting of this task's evaluation, which has {has}")
        at_least(name, min(value) if isinstance(value, tuple) else value, EVALUATION[name])
    return given


def _count(text: str) -> int:
    units: dict[str, Any] = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12, "p": 10**15}
    unit = units.get(text[-1:].lower(), 1)
    number = text[:-1] if unit > 1 else text
    try:
        found = round(float(number) * unit)
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens or FLOPs; write for example 500k or 2m")
    return found
