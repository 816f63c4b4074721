"""`famjax compare`: trains and evaluates several memories with the same model, task and budget."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from famjax.cli import side_by_side
from famjax.cli.flags import add_gin_arguments, distinct_numbers
from famjax.config import ConfigError, EvalConfig

NAME = "compare"
HELP = """Train several memories on one task with one budget, evaluate them, write one report.

  famjax compare --memories fam,bswa,sinks,infini --output runs/compare
  famjax compare --memories fam,my_memory.gin --seeds 0,1,2 --tokens 6m --output runs/mine

A memory is the name of a file in gin/memories, or a gin file of your own. It is loaded after the task's
gin file (--gin_file, default: gin/experiments/compare.gin) and may change only the memory settings. All
models of a seed start from the same weights, except those that a memory adds, and read the same batches
in the same order. They train one after the other and are then evaluated on the pass key.

The report, comparison.html and comparison.json, has accuracy against length and against bytes of state,
with 95% intervals, added weights and costs of each memory, training curves, and runs that diverged. The
same command resumes an interrupted comparison.
"""

TASK = "gin/experiments/compare.gin"
DIVERGED = "diverged.json"


class Subject(NamedTuple):
    """One training of the comparison: a memory and a seed."""

    memory: str
    gin_file: str
    seed: int
    job: side_by_side.Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax compare`."""
    parser.add_argument("--memories", default="fam,bswa,sinks,infini", metavar="NAME,NAME", help="names or gin files")
    parser.add_argument(
        "--output", default="runs/compare", metavar="DIR", help="output directory (default: runs/compare)"
    )
    parser.add_argument(
        "--tokens", type=_tokens, metavar="N", help="tokens per training: 500k, 2m (default: the task's)"
    )
    parser.add_argument(
        "--seeds", type=distinct_numbers, default=(0,), metavar="N,N",
        help="seeds of weights and documents (default: 0)",
    )  # fmt: skip
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="parallel trainings (default: 1)")
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--filler-blocks", type=distinct_numbers, default=(1, 2, 4, 8, 16, 64), metavar="N,N",
        help="blocks of filler between key and question (default: 1,2,4,8,16,64)",
    )  # fmt: skip
    group.add_argument("--keys", type=int, default=1, metavar="N", help="keys per alignment (default: 1)")
    group.add_argument(
        "--alignments", type=int, default=0, metavar="N", help="offsets of the filler in a block (default: 0, all)"
    )
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, evaluates and reports. All settings are checked first."""
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; name a directory")
    if args.at_once < 1:
        raise ConfigError(f"--at-once is {args.at_once}; it must be at least 1")
    subjects = _subjects(args, output)
    check_alike(subjects)
    evaluation = EvalConfig(
        model_dirs=("none",), output_dir=str(output / "evaluation"), filler_blocks=args.filler_blocks, keys=args.keys,
        alignments=args.alignments, key_digits=subjects[0].job.config.passkey.key_digits,
    )  # fmt: skip
    evaluation.validate()

    diverged = train(subjects, output, args.at_once)
    trained = [one for one in subjects if one.job.name not in diverged]
    if not trained:
        raise RuntimeError(f"every training diverged; {output / DIVERGED} has the reasons")
    from famjax.evals import memories
    from famjax.evals.run import run as evaluate
    from famjax.process.compilation_cache import enable

    enable()
    dirs = tuple(one.job.config.model_dir for one in trained)
    results = evaluate(dataclasses.replace(evaluation, model_dirs=dirs), trained[0].job.config.longest_filler)
    rows = {model["model_dir"]: model["passkey"] for model in results["models"]}
    runs = [
        memories.Run(one.memory, one.gin_file, one.seed, one.job.config, rows.get(one.job.config.model_dir, []),
                     diverged.get(one.job.name, ""))
        for one in subjects
    ]  # fmt: skip
    data, page = memories.write(output, memories.summarize(runs))
    print(f"wrote {data} and {page}")
    return 0


def _subjects(args: argparse.Namespace, output: Path) -> list[Subject]:
    """Returns all trainings by seed and memory, validated."""
    task, memories = args.gin_files or [TASK], _memories(args.memories)
    found = []
    for seed in args.seeds:
        for memory, path in memories.items():
            bindings = [*args.gin_bindings, f"RANDOM_SEED={seed}"]
            files, name = [*task, path], f"{memory}_seed{seed}"
            one = side_by_side.job(name, files, bindings, output)
            if args.tokens:
                steps = args.tokens // (one.config.batch_size * one.config.sequence_length)
                if not steps:
                    raise ConfigError(
                        f"--tokens {args.tokens} is less than a step's {one.config.batch_size} rows of "
                        f"{one.config.sequence_length} tokens; give at least "
                        f"{one.config.batch_size * one.config.sequence_length}"
                    )
                one = side_by_side.job(name, files, [*bindings, f"TRAIN_STEPS={steps}"], output)
            found.append(Subject(memory, path, seed, one))
    return found


def _memories(text: str) -> dict[str, str]:
    """Returns the gin file of each memory by name."""
    found: dict[str, str] = {}
    for word in (word.strip() for word in text.split(",") if word.strip()):
        name = Path(word).stem
        if name in found:
            raise ConfigError(f"--memories {text}: {name} is there twice; name each once")
        found[name] = word if word.endswith(".gin") else f"gin/memories/{word}.gin"
    if not found:
        raise ConfigError("--memories is empty; for example fam,bswa,sinks,infini")
    return found


def check_alike(subjects: list[Subject]) -> None:
    """Raises `ConfigError` if trainings differ in more than their memory and their seed, or cannot be compared."""
    plain = lambda config: dataclasses.replace(
        config, model_dir="", seed=0, model=dataclasses.replace(config.model, memory=type(config.model.memory)())
    )
    first = subjects[0]
    config = first.job.config
    if config.task != "passkey" or config.carries_memory or len(config.passkey.stages) > 1:
        raise ConfigError(
            "famjax compare needs the task 'passkey' with one stage and a stream_share of 0, so that all memories "
            f"read the same batches; see {TASK}"
        )
    for other in subjects[1:]:
        ours, theirs = dataclasses.asdict(plain(config)), dataclasses.asdict(plain(other.job.config))
        for name in ours:
            if ours[name] != theirs[name]:
                raise ConfigError(
                    f"{other.gin_file} changes {name}, not the memory alone: {theirs[name]!r}, where {first.gin_file} "
                    f"has {ours[name]!r}; settings of the task go into --gin_file"
                )
        blocks = [one.job.config.model.memory.block_size for one in (first, other)]
        if blocks[0] != blocks[1]:
            raise ConfigError(
                f"{other.gin_file} has block_size {blocks[1]}, {first.gin_file} {blocks[0]}: lengths are counted in "
                f"blocks; use one BLOCK_SIZE"
            )


def train(subjects: list[Subject], output: Path, at_once: int) -> dict[str, str]:
    """Trains what is not finished yet. Returns the errors of diverged runs by name; other failures are raised."""
    from famjax.storage.model_dir import write_text

    path = output / DIVERGED
    diverged: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    waiting = [one.job for one in subjects if one.job.name not in diverged]
    while waiting:
        now, waiting = waiting[:at_once], waiting[at_once:]
        try:
            side_by_side.train(now, at_once)
        except RuntimeError as error:
            bad = next((job for job in now if _has_diverged(job, str(error))), None)
            if bad is None:
                raise
            print(f"{bad.name} diverged: {error}", file=sys.stderr)
            diverged[bad.name] = str(error)
            write_text(path, json.dumps(diverged, indent=2) + "\n")
            waiting = [job for job in now if job is not bad] + waiting
    return diverged


def _has_diverged(job: side_by_side.Job, said: str) -> bool:
    return f"the training of {job.name} failed" in said and "FloatingPointError" in said


def _tokens(text: str) -> int:
    units: dict[str, Any] = {"k": 10**3, "m": 10**6, "b": 10**9}
    unit = units.get(text[-1:].lower(), 1)
    number = text[:-1] if unit > 1 else text
    if not number.replace(".", "", 1).isdecimal() or not float(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens; write for example 500k or 2m")
    return round(float(number) * unit)
