"""An evaluation from model directories to files: load, ask, print, write."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import famjax
from famjax.config import ConfigError, EvalConfig, ModelConfig
from famjax.data.passkey_text import Writer
from famjax.data.vocabulary import vocabulary_of
from famjax.evals import results
from famjax.evals.engine import ModelEngine
from famjax.evals.reach import Reach
from famjax.evals.reports import language_report, page, report
from famjax.evals.runner import Runner
from famjax.evals.samples import Sample, SampleFile, file_name, key_of, read
from famjax.evals.tasks import catalog, language, passkey
from famjax.evals.tasks.base import Example, Task, Unreadable
from famjax.infer.codec import Codec
from famjax.infer.fingerprint import fingerprint
from famjax.infer.load import load
from famjax.nn.model import Transformer, with_memory
from famjax.nn.weights import each_parameter
from famjax.process import interrupts
from famjax.process.progress import Progress
from famjax.storage.model_dir import read_config, split_step

# Settings of a model that change how it is computed, not what.
_HOW = ("scan_layers", "unroll_blocks", "remat", "attention_kernel", "embedding_std")


class Subject(NamedTuple):
    """A model to evaluate, before it is loaded."""

    path: str
    config: ModelConfig
    codec: Codec
    tasks: list[Task]


def describe(config: ModelConfig) -> str:
    """A model's memory in a few words, for a legend."""
    memory = config.memory
    other = "BSWA" if memory.kind == "fam" else f"BSWA and {memory.kind}"
    fam = f"FAM {memory.fam_length}" if memory.fam_length else other
    return f"{fam}, {memory.memory_segments} memory segments, block {memory.block_size}"


def run(config: EvalConfig, trained_filler_tokens: int = 0) -> dict[str, Any]:
    """Evaluates every model on every task, prints tables, writes `results.json`, `samples.jsonl` and plots.

    Answers are written as they come. What an earlier, interrupted evaluation into the same directory has answered
    with the same model and settings is not asked again.

    Args:
      config: the evaluation.
      trained_filler_tokens: longest filler in training, marked in the plot of the pass key; 0 where unknown.

    Raises:
      ConfigError: a setting, a data set or a model directory that cannot be used, before anything is evaluated.
    """
    config.validate()
    with Progress("looking at the data"):
        subjects = [_subject(path, config) for path in config.model_dirs]
    _report_bad(subjects)
    names = names_of(config.model_dirs)
    output = Path(config.output_dir or split_step(config.model_dirs[0])[0])
    models: list[dict[str, Any]] = []
    answers: list[dict[str, list[Sample]]] = []
    edges = language.position_edges(subjects[0].config.memory.block_size)
    kept = lambda: f"the answers so far are in {output}; the same command goes on"
    with (
        interrupts.saying(kept),
        SampleFile(output / file_name(config.part_of)) as file,
        Progress("evaluating") as progress,
    ):
        for name, subject in zip(names, subjects, strict=True):
            entry, found = _evaluate(name, subject, config, edges, file, progress)
            models.append(entry)
            answers.append(found)
    if config.part:
        count = sum(len(samples) for found in answers for samples in found.values())
        print(f"{file.path} has {count} answers of part {config.part}; the same command without --part, once all parts "
              f"are done, makes the results")  # fmt: skip
        return {"models": models}
    side_by_side(models, answers, edges, config.seed)
    _as_before(models, answers, subjects, trained_filler_tokens)
    told = {
        "task": config.task, "seed": config.seed, "keys": config.keys, "version": famjax.__version__,
        "settings": json.loads(json.dumps(dataclasses.asdict(config), default=str)), "models": models,
    }  # fmt: skip
    data, shown = page.write(output, told)
    written = [data, *_show(models, config, output), shown]
    print(f"wrote {', '.join(map(str, written[:-1]))} and {written[-1]}")
    return told


def names_of(model_dirs: Sequence[str]) -> list[str]:
    """The ends of the paths, as much of each as tells all apart."""
    paths = [Path(path).resolve().parts for path in model_dirs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return list(model_dirs)


def _subject(path: str, config: EvalConfig) -> Subject:
    """A model's settings and tasks. Its tasks are made here, so that what they lack is told before any work."""
    overrides = {name: value for name in ("block_size", "memory_segments", "fam_length")
                 if (value := getattr(config, name)) is not None}  # fmt: skip
    model = with_memory(read_config(path), **overrides)
    codec = _codec(path, model, config)
    tasks = [catalog.make(name, config, codec, model.memory.block_size) for name in config.tasks]
    return Subject(path, model, codec, tasks)


def _report_bad(subjects: Sequence[Subject]) -> None:
    """Prints, before any work, what of each task's data is left out because it cannot be read."""
    for task in {task.name: task for subject in subjects for task in subject.tasks}.values():
        if task.bad:
            first = task.bad[0]
            what = "one place" if len(task.bad) == 1 else f"{len(task.bad)} places"
            message = f"{task.name}: {what} of the data cannot be read, first {first.place}: {first.reason}"
            print(message, file=sys.stderr)


def _codec(path: str, model: ModelConfig, config: EvalConfig) -> Codec:
    """The model's vocabulary. The pass key alone is content with a model that knows no more than ASCII."""
    if config.tasks != ("passkey",):
        return Codec(path, model.vocab_size)
    codec = Codec.of(vocabulary_of(split_step(path)[0]))
    Writer(codec.vocabulary).check(model.vocab_size)
    return codec


def model_fingerprint(model: Transformer) -> str:
    """Of weights and all settings that matter to what it says, its memory's too."""
    settings = {name: value for name, value in dataclasses.asdict(model.config).items() if name not in _HOW}
    return fingerprint(json.dumps(settings, sort_keys=True, default=str), each_parameter(model))


def entry_of(name: str, path: str, model: Transformer) -> dict[str, Any]:
    """A model in the results, before any task."""
    return {
        "name": name, "model_dir": str(path), "label": f"{name} ({describe(model.config)})",
        "fingerprint": model_fingerprint(model), "model": dataclasses.asdict(model.config), "tasks": {},
    }  # fmt: skip


def _evaluate(
    name: str,
    subject: Subject,
    config: EvalConfig,
    edges: tuple[int, ...],
    file: SampleFile,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, list[Sample]]]:
    """One model's entry of the results, and its answers by task."""
    overrides = {field: getattr(config, field) for field in ("block_size", "memory_segments", "fam_length")}
    progress.stage(f"loading {name}")
    model = load(subject.path, config.mesh, config.dtype, **overrides)
    entry = entry_of(name, subject.path, model)
    reach = Reach.of(model.config)
    found: dict[str, list[Sample]] = {}
    for task in subject.tasks:
        settings = {"longest": config.longest, "new": task.max_new_tokens, "edges": edges[1], **task.settings}
        key = key_of(entry["fingerprint"], task.name, settings)
        unreadable: list[Unreadable] = []
        progress.stage(f"{name}: {task.name}", task.count, "examples")
        runner = Runner(ModelEngine(model, config.batch_size), subject.codec, key, config.longest, edges, reach=reach)
        samples = ask(runner, task, config, file, unreadable, progress.advance)
        found[task.name] = samples
        if not samples and not config.part:
            raise ConfigError(f"{task.name} has no example; is its data set empty?")
        if not samples:
            continue
        summary = results.summarize(task, samples, unreadable, model.config.memory.block_size, config.seed)
        told_reach = {"reach": reach.told()} if "by_reach" in summary else {}
        entry["tasks"][task.name] = summary | told_reach | {"key": key}
    return entry, found


def ask(
    runner: Runner, task: Task, config: EvalConfig, file: SampleFile, unreadable: list[Unreadable],
    advance: Callable[[int], Any] = lambda n: None,
) -> list[Sample]:  # fmt: skip
    """A model's answers to a task, or to its part: those that the directory has already, and new ones, which are
    appended to the file."""
    samples: dict[str, Sample] = {}
    if not config.again:
        samples = {sample.id: sample for sample in read(file.path.parent, runner.key)}
    asked: set[str] = set()  # an earlier evaluation may have asked more

    def examples() -> Iterator[Example | Unreadable]:
        for example in _part(task.examples(), *config.part_of):
            if isinstance(example, Example):
                asked.add(example.id)
                advance(example.id in samples)
            yield example

    for sample in runner.run(dataclasses.replace(task, examples=examples), set(samples), unreadable.append):
        file.add(sample)
        samples[sample.id] = sample
        advance(1)
    file.sync()
    return sorted((sample for id, sample in samples.items() if id in asked), key=lambda sample: sample.id)


def _part(examples: Iterable[Example | Unreadable], part: int, parts: int) -> Iterator[Example | Unreadable]:
    """Every so many-th document with all that is asked about it; what cannot be read belongs to the first part."""
    number, unit = -1, None
    for example in examples:
        if isinstance(example, Unreadable):
            if part == 1:
                yield example
            continue
        number, unit = number + (example.unit != unit), example.unit
        if number % parts == part - 1:
            yield example


def side_by_side(
    models: Sequence[dict[str, Any]], answers: Sequence[dict[str, list[Sample]]], edges: tuple[int, ...], seed: int
) -> None:
    """Adds what compares: `less_than_first` by position, and `against_first`, the metrics' differences, also
    `_by_length`.

    The first is the first model that has answered a task.
    """
    for name in dict.fromkeys(name for found in answers for name in found):
        asked = [(model, found[name]) for model, found in zip(models, answers, strict=True) if name in found]
        if any(sample.sums for sample in asked[0][1]):
            found = results.by_position([samples for _, samples in asked], edges, seed)
            for i, ((model, _), read_of) in enumerate(zip(asked, found, strict=True)):
                model["tasks"][name] |= {"by_position": read_of.rows, "metrics": read_of.metrics}
                model["tasks"][name] |= {"against_first": read_of.against_first} if i else {}
            continue
        for model, samples in asked[1:]:
            model["tasks"][name]["against_first"] = results.paired(samples, asked[0][1], seed)
            model["tasks"][name]["against_first_by_length"] = results.paired_by_length(samples, asked[0][1], seed)


def _as_before(
    models: list[dict[str, Any]], answers: list[dict[str, list[Sample]]], subjects: Sequence[Subject], trained: int
) -> None:
    """Adds `passkey` and `text`, the rows of these two tasks by themselves."""
    for entry, found, subject in zip(models, answers, subjects, strict=True):
        if "passkey" in found:
            rows = passkey.rows(found["passkey"], subject.config.memory.block_size)
            entry |= {"trained_filler_tokens": trained, "passkey": rows}
        if "text" in found:
            entry["text"] = entry["tasks"]["text"]["by_position"]


def _show(models: list[dict[str, Any]], config: EvalConfig, output: Path) -> list[Path]:
    """Prints tables and draws plots; where the plots are."""
    written = []
    for name in config.tasks:
        if name == "passkey":
            report.print_table(models)
            written.append(output / report.PLOT_PNG)
            report.plot(written[-1], models)
        elif "by_position" in models[0]["tasks"][name]:
            language_report.print_table(models, name)
            written.append(output / f"{name if name != 'text' else 'language'}.png")
            language_report.plot(written[-1], models, name)
        else:
            report.print_task(models, name)
    return written
