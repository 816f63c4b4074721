"""The trainings of a comparison: creates them, checks that only their memories differ, and selects those to report."""

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from famjax.cli import side_by_side
from famjax.config import ConfigError, MemoryConfig, TrainConfig
from famjax.config.checks import known_fields

TASK = "gin/experiments/compare.gin"
DIVERGED = "diverged.json"
# Share of a training's logged losses, the last ones, whose mean chooses a learning rate.
LAST = 0.1


class Subject(NamedTuple):
    """One training of the comparison: a memory, a seed, and a learning rate (None: the task's)."""

    memory: str
    gin_file: str
    seed: int
    job: side_by_side.Job
    rate: float | None = None


def subjects_of(args: argparse.Namespace, output: Path) -> list[Subject]:
    """Returns all trainings, by seed, memory and learning rate. Raises `ConfigError` if a setting is invalid, a
    variant, such as fam:sinks=8, changes a setting that its memory ignores, or trainings differ in more than their
    memory (`check_alike`)."""
    task, memories = args.gin_files or [TASK], _memories(args.memories)
    _check_bindings(args)

    def make(seed: int, memory: str, rate: float | None, steps: int = 0) -> Subject:
        gin_file, changes = memories[memory]
        bindings = [*args.gin_bindings, *changes, f"RANDOM_SEED={seed}"]
        bindings += [] if rate is None else [f"LEARNING_RATE={rate!r}"]
        bindings += [f"TRAIN_STEPS={steps}"] if steps else []
        of_rate = "" if rate is None else f"_lr{rate:g}"
        name = f"{re.sub(r'[^A-Za-z0-9.+-]', '_', memory)}{of_rate}_seed{seed}"
        job = side_by_side.job(name, [*task, gin_file], bindings, output, args.gin_search_paths)
        for field in (change.partition("=")[0].strip() for change in memory.split(":")[1:]):
            if why := job.config.model.memory.unused(field):  # it would be reported as a variant, but be the same
                raise ConfigError(f"--memories {memory}: {field} has no effect, since {why}; leave it out")
        return Subject(memory, gin_file, seed, job, rate)

    rates = args.learning_rates or (None,)
    subjects = [make(seed, memory, rate) for seed in args.seeds for memory in memories for rate in rates]
    check_alike(subjects)
    names = [one.job.name for one in subjects]
    if again := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two trainings would both be {output / again[0]}; their names or rates are too close")
    if not (args.tokens or args.flops):
        return subjects
    first = {one.memory: one.job.config for one in reversed(subjects)}
    steps = {memory: _steps(config, args.tokens, args.flops) for memory, config in first.items()}
    return [make(one.seed, one.memory, one.rate, steps[one.memory]) for one in subjects]


def _check_bindings(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for a gin setting that a flag of the comparison sets, too."""
    flags = {"MODEL_DIR": "--output", "RANDOM_SEED": "--seeds"}
    flags |= {"LEARNING_RATE": "--learning-rates"} if args.learning_rates else {}
    flags |= {"TRAIN_STEPS": "--tokens" if args.tokens else "--flops"} if args.tokens or args.flops else {}
    for name in (binding.partition("=")[0].strip() for binding in args.gin_bindings):
        if name in flags:
            raise ConfigError(f"--gin.{name} is set for every training by {flags[name]}; leave it out")


def _steps(config: TrainConfig, tokens: int | None, flops: int | None) -> int:
    """Returns the training steps within a budget. Raises `ConfigError` if it does not cover one step."""
    of_step = config.batch_size * config.sequence_length
    if tokens:
        if tokens < of_step:
            raise ConfigError(
                f"--tokens {tokens} is less than a step's {config.batch_size} rows of {config.sequence_length} tokens; "
                f"give at least {of_step}"
            )
        return tokens // of_step
    from famjax.evals.memories import training_flops

    cost, budget = training_flops(dataclasses.replace(config, steps=1)), flops or 0
    if budget < cost:
        raise ConfigError(f"--flops {budget} is less than a step's {math.ceil(cost)}; give at least that")
    return int(budget // cost)


def _memories(text: str) -> dict[str, tuple[str, list[str]]]:
    """Returns by name the gin file of each memory, and the gin bindings of a variant."""
    found: dict[str, tuple[str, list[str]]] = {}
    for word in (word.strip() for word in text.split(",") if word.strip()):
        file, *changes = (part.strip() for part in word.split(":"))
        name = ":".join([Path(file).stem, *changes])
        fields = [change.partition("=")[0].strip() for change in changes]
        if len(set(fields)) < len(fields):
            raise ConfigError(f"--memories {word}: a field is there twice; name each once")
        if name in found:
            raise ConfigError(f"--memories {text}: {name} is there twice; name each once")
        gin_file = file if file.endswith(".gin") else f"gin/memories/{file}.gin"
        found[name] = gin_file, [_binding(change, word) for change in changes]
    if not found:
        raise ConfigError("--memories is empty; for example fam,bswa,sinks,infini")
    return found


def _binding(change: str, word: str) -> str:
    """Returns the gin binding of FIELD=VALUE. Raises `ConfigError` for an unknown field or an invalid value."""
    field, is_given, value = (part.strip() for part in change.partition("="))
    kinds = {one.name: one.type for one in dataclasses.fields(MemoryConfig)}
    if not is_given or not value:
        raise ConfigError(f"--memories {word}: {change!r} is not FIELD=VALUE, for example fam:previous_fams=2")
    known_fields(MemoryConfig, {field: value})
    if kinds[field] in ("str", str):
        return f"MemoryConfig.{field}={value!r}"
    # Numbers and booleans mean the same in gin; `check_types` of the configuration does the rest.
    if not re.fullmatch(r"[-+0-9.e]+|True|False", value):
        raise ConfigError(f"--memories {word}: {field} is {value!r}, not a number, True or False")
    return f"MemoryConfig.{field}={value}"


def check_alike(subjects: Sequence[Subject]) -> None:
    """Raises `ConfigError` if trainings with the same learning rate differ in more than memory and seed, or if two
    memories are the same under two names."""
    plain = lambda config: dataclasses.replace(
        config, model_dir="", seed=0, model=dataclasses.replace(config.model, memory=type(config.model.memory)())
    )
    for other in subjects:
        first = next(one for one in subjects if one.rate == other.rate)
        ours, theirs = (dataclasses.asdict(plain(one.job.config)) for one in (first, other))
        for name in ours:
            if ours[name] != theirs[name]:
                raise ConfigError(
                    f"{other.gin_file} changes {name}, not the memory alone: {theirs[name]!r}, where {first.gin_file} "
                    f"has {ours[name]!r}; settings of the task go into --gin_file"
                )
        for same in subjects:
            if same.memory != other.memory and same.job.config.model.memory == other.job.config.model.memory:
                raise ConfigError(f"--memories: {other.memory} and {same.memory} are the same memory; leave one out")
        blocks = [one.job.config.model.memory.block_size for one in (first, other)]
        if blocks[0] != blocks[1]:
            raise ConfigError(
                f"{other.gin_file} has block_size {blocks[1]}, {first.gin_file} {blocks[0]}: lengths are counted in "
                f"blocks; use one BLOCK_SIZE"
            )


def train(subjects: Sequence[Subject], output: Path, at_once: int, part: str = "") -> dict[str, str]:
    """Runs the trainings that are not finished, and returns the errors of all diverged ones by name.

    With `part` (`--part I/N`), diverged trainings are recorded in a separate file, so that parts on several machines
    may share the output directory. The result includes those of all parts. One whose directory was deleted, to train it
    again, has not diverged.

    Raises:
      ConfigError: the output directory has a training, finished or diverged, with other settings.
      RuntimeError: a training failed for another reason, or was stopped.
    """
    from famjax.storage.model_dir import write_text

    side_by_side.check_same(one.job for one in subjects)

    stem = Path(DIVERGED).stem
    name = f"{stem}-{part.replace('/', '-of-')}.json" if part else DIVERGED
    files = sorted(output.glob(f"{stem}*.json"))
    there = lambda job: (output / job).is_dir()
    known = {
        path.name: {job: said for job, said in json.loads(path.read_text(encoding="utf-8")).items() if there(job)}
        for path in files
    }
    others = {job: said for file, lines in known.items() if file != name for job, said in lines.items()}
    ours: dict[str, str] = known.get(name, {})
    waiting = [one.job for one in subjects if one.job.name not in ours | others]
    while waiting:
        try:
            side_by_side.train(waiting, at_once)
            break
        except side_by_side.TrainingFailed as error:
            if "FloatingPointError" not in str(error):
                raise
            print(f"{error.job.name} diverged: {error}", file=sys.stderr)
            ours[error.job.name] = str(error)
            write_text(output / name, json.dumps(ours, indent=2) + "\n")
            waiting = [job for job in waiting if job not in (error.job, *error.finished)]
    return others | ours


def missing(subjects: Sequence[Subject], diverged: dict[str, str]) -> list[str]:
    """Returns the names of trainings that have neither finished nor diverged, for example those of other parts."""
    from famjax.storage.steps import latest_step

    done = lambda config: (latest_step(config.model_dir) or 0) >= config.steps
    return [one.job.name for one in subjects if one.job.name not in diverged and not done(one.job.config)]


def chosen(
    subjects: Sequence[Subject], diverged: dict[str, str]
) -> tuple[list[Subject], dict[str, list[dict[str, Any]]]]:
    """Returns the trainings with each memory's best learning rate, and for each memory the rates with their losses.

    The best rate is the one at which the fewest seeds diverged; of several, the one with the lowest training loss: the
    mean over the last tenth of the log and over seeds. Each document is used once, so this is the loss on documents
    that the model was not trained on before. None of them is in the report.
    """
    from famjax.evals.memories import final_loss

    tried: dict[str, list[dict[str, Any]]] = {}
    best: dict[str, float | None] = {}
    for memory in dict.fromkeys(one.memory for one in subjects):
        ours = [one for one in subjects if one.memory == memory]
        found: dict[float | None, tuple[int, float]] = {}
        for rate in dict.fromkeys(one.rate for one in ours):
            same = [one for one in ours if one.rate == rate]
            good = [one for one in same if one.job.name not in diverged]
            losses = [final_loss(one.job.config.model_dir, LAST) for one in good]
            found[rate] = len(same) - len(good), sum(losses) / len(losses) if losses else math.inf
        best[memory] = min(found, key=lambda rate: found[rate])
        tried[memory] = [
            {"rate": rate, "loss": None if bad else loss, "best": rate == best[memory]}
            for rate, (bad, loss) in found.items() if rate is not None
        ]  # fmt: skip
    return [one for one in subjects if one.rate == best[one.memory]], tried
