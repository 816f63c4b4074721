"""Evaluates model directories: loads models, runs the tasks, prints tables, writes results."""

import dataclasses
import json
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import famjax
from famjax.config import ConfigError, EvalConfig, ModelConfig, memory_overrides
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
from famjax.infer.fingerprint import fingerprint, settings_of
from famjax.infer.load import load
from famjax.nn.model import Transformer
from famjax.nn.weights import each_parameter
from famjax.process import interrupts
from famjax.process.progress import Progress
from famjax.storage.model_dir import read_config, split_step

# Model settings that change how the model is computed, but not its function.
_HOW = ("scan_layers", "unroll_blocks", "remat", "attention_kernel", "embedding_std")
# Memory settings of the training's loss, which older answers do not have in their fingerprints.
_LOSSES = ("fam_diversity_loss", "fam_reconstruction_loss")


class Subject(NamedTuple):
    """A model to evaluate, before it is loaded.

    Each task has its own codec, since a chat template adds the token that ends an answer, which must not end others.
    """

    path: str
    config: ModelConfig
    tasks: list[tuple[Task, Codec]]


def describe(config: ModelConfig) -> str:
    """Returns a short description of a model's memory, for legends."""
    memory = config.memory
    other = "BSWA" if memory.kind == "fam" else f"BSWA and {memory.kind}"
    fam = f"FAM {memory.fam_length}" if memory.fam_length else other
    return f"{fam}, {memory.memory_segments} memory segments, block {memory.block_size}"


def run(config: EvalConfig, trained_filler_tokens: int = 0) -> dict[str, Any]:
    """Evaluates every model on every task, prints tables, writes `results.json`, `report.html`, `samples.jsonl`, plots.

    Answers are written as they arrive. Examples that an earlier evaluation into the same directory answered with the
    same model and settings are not run again. With `config.part`, only the answers to that part are written.

    `trained_filler_tokens`, the longest filler in training, is marked in the pass-key plot; 0 if unknown.

    Returns:
      The content of `results.json`; of a part, only `models`.

    Raises:
      ConfigError: a setting, data set or model directory is unusable; raised before anything is evaluated.
    """
    config.validate()
    names = names_of(config.model_dirs)
    output = Path(config.output_dir or split_step(config.model_dirs[0])[0])
    with Progress("reading the data"):
        subjects = [_subject(path, config) for path in config.model_dirs]
    tasks = {task.name: task for subject in subjects for task, _ in subject.tasks}
    known = {name: (len(task.bad), task.bad[0]) for name, task in tasks.items() if task.bad}
    _report_bad(known)
    if not config.part:
        page.report_replaced(output, config.task)
    models: list[dict[str, Any]] = []
    answers: list[dict[str, list[Sample]]] = []
    edges = language.position_edges(subjects[0].config.memory.block_size)
    kept = lambda: f"the answers so far are in {output}; run the same command to resume"
    with (
        interrupts.saying(kept),
        SampleFile(output / file_name(config.part_of)) as file,
        Progress("evaluating") as progress,
    ):
        for name, subject in zip(names, subjects, strict=True):
            entry, found = _evaluate(name, subject, config, edges, file, progress)
            models.append(entry)
            answers.append(found)
    _report_bad(_found_bad(models, known))
    if config.part:
        count = sum(len(samples) for found in answers for samples in found.values())
        print(f"{file.path} has {count} answers of part {config.part}; when all parts are done, run the same command "
              f"without --part to write the results")  # fmt: skip
        return {"models": models}
    side_by_side(models, answers, edges, config.seed)
    _add_rows(models, answers, subjects, trained_filler_tokens)
    content = {
        "task": config.task, "seed": config.seed, "keys": config.keys, "version": famjax.__version__,
        "settings": json.loads(json.dumps(dataclasses.asdict(config), default=str)), "models": models,
    }  # fmt: skip
    data, shown = page.write(output, content)
    written = [data, *_show(models, config, output), shown]
    print(f"wrote {', '.join(map(str, written[:-1]))} and {written[-1]}")
    return content


def names_of(model_dirs: Sequence[str]) -> list[str]:
    """Returns names of the models: the shortest suffixes of their paths that are distinct. Raises `ConfigError` if a
    model is given twice."""
    paths = [Path(path).resolve().parts for path in model_dirs]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            first, second = model_dirs[paths.index(path)], model_dirs[number]
            raise ConfigError(f"{first} and {second} are the same model directory; leave one of them out")
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _subject(path: str, config: EvalConfig) -> Subject:
    """Returns a model's settings and tasks. Making the tasks here reports missing data before any work."""
    model = read_config(path).with_memory(**memory_overrides(config))
    codec = _codec(path, model, config)
    codecs = [codec.copy() for _ in config.tasks]
    tasks = [catalog.make(name, config, own, model.memory.block_size)
             for name, own in zip(config.tasks, codecs, strict=True)]  # fmt: skip
    return Subject(path, model, list(zip(tasks, codecs, strict=True)))


def _found_bad(models: Sequence[dict[str, Any]], known: Container[str]) -> dict[str, tuple[int, Unreadable]]:
    """Returns the number of unreadable examples of each task that are not `known` before its evaluation, and the first
    of them."""
    found = {}
    for name, summary in ((name, summary) for model in models for name, summary in model["tasks"].items()):
        if name not in known and (bad := summary["unreadable"])["examples"]:
            found[name] = bad["examples"], Unreadable(**bad["first"][0])
    return found


def _report_bad(bad: Mapping[str, tuple[int, Unreadable]]) -> None:
    """Prints the number of unreadable examples of each task, and the first of them."""
    for name, (count, first) in bad.items():
        what = "one place" if count == 1 else f"{count} places"
        message = f"{name}: {what} of the data cannot be read; the first is {first.place}: {first.reason}"
        print(message, file=sys.stderr)


def _codec(path: str, model: ModelConfig, config: EvalConfig) -> Codec:
    """Returns the model's tokenizer. The pass-key task alone also works with an ASCII vocabulary."""
    if config.tasks != ("passkey",):
        return Codec(path, model.vocab_size)
    codec = Codec.of(vocabulary_of(split_step(path)[0]))
    Writer(codec.vocabulary).check(model.vocab_size)
    return codec


def entry_of(name: str, path: str, model: Transformer) -> dict[str, Any]:
    """Returns a model's entry in the results, with no tasks yet. Its fingerprint is of the weights and of all settings
    that affect the outputs, including the memory's."""
    settings = settings_of(model.config, _HOW)
    settings["memory"] = {name: value for name, value in settings["memory"].items() if name not in _LOSSES}
    mark = fingerprint(json.dumps(settings, sort_keys=True, default=str), each_parameter(model))
    return {
        "name": name, "model_dir": str(path), "label": f"{name} ({describe(model.config)})",
        "fingerprint": mark, "model": dataclasses.asdict(model.config), "tasks": {},
    }  # fmt: skip


def _evaluate(
    name: str, subject: Subject, config: EvalConfig, edges: tuple[int, ...], file: SampleFile, progress: Progress
) -> tuple[dict[str, Any], dict[str, list[Sample]]]:
    """Returns a model's entry in the results, and its answers by task."""
    progress.stage(f"loading {name}")
    model = load(subject.path, config.mesh, config.dtype, **memory_overrides(config))
    entry = entry_of(name, subject.path, model)
    reach = Reach.of(model.config)
    found: dict[str, list[Sample]] = {}
    for task, codec in subject.tasks:
        settings = {"longest": config.longest, "new": task.max_new_tokens, "edges": edges[1], **task.settings}
        key = key_of(entry["fingerprint"], task.name, settings)
        unreadable: list[Unreadable] = []
        progress.stage(f"{name}: {task.name}", task.count, "examples")
        runner = Runner(ModelEngine(model, config.batch_size), codec, key, config.longest, edges, reach=reach)
        others: set[str] = set()
        samples = answer(runner, task, config, file, unreadable, progress.advance, others)
        found[task.name] = samples
        if not samples and not config.part:
            raise ConfigError(f"{task.name} has no example; is its data set empty?")
        if not samples:
            continue
        summary = results.summarize(task, samples, unreadable, model.config.memory.block_size, config.seed)
        reach_entry = {"reach": reach.as_dict()} if "by_reach" in summary else {}
        entry["tasks"][task.name] = summary | reach_entry | {"key": key, "not_counted": sorted(others)}
    return entry, found


def answer(
    runner: Runner, task: Task, config: EvalConfig, file: SampleFile, unreadable: list[Unreadable],
    advance: Callable[[int], Any] = lambda n: None, others: set[str] | None = None,
) -> list[Sample]:  # fmt: skip
    """Returns a model's answers to a task, or to `config.part` of it, sorted by id.

    Answers that are already in the directory are reused unless `config.again`, or their example has changed, as after a
    change of the data; new ones are appended to the file, and unreadable examples to `unreadable`. `advance` is called
    with the number of examples that were answered. The ids of answers in the directory that are not returned are added
    to `others`: to more examples, or to some that were removed since.
    """
    known = {sample.id: sample for sample in read(file.path.parent, runner.key)}
    samples: dict[str, Sample] = {} if config.again else dict(known)
    asked: set[str] = set()  # an earlier evaluation may have run more examples
    done: set[str] = set()  # those of them that were answered before, and have not changed since

    def judge_again(before: Sample, example: Example) -> None:
        """Updates the metrics of a text: they may depend on the other examples, or be those of another version."""
        if task.kind == "generate" and (values := task.judged(before.answer, example)) != before.values:
            samples[example.id] = dataclasses.replace(before, values=values)
            file.add(samples[example.id])

    def examples() -> Iterator[Example | Unreadable]:
        for example in _part(task.examples(), *config.part_of):
            if isinstance(example, Example):
                asked.add(example.id)
                before = samples.get(example.id)
                if before is not None and before.question == example.digest():
                    done.add(example.id)
                    advance(1)
                    judge_again(before, example)
            yield example

    for sample in runner.run(dataclasses.replace(task, examples=examples), done, unreadable.append):
        file.add(sample)
        samples[sample.id] = sample
        advance(1)
    file.sync()
    if others is not None:
        others |= known.keys() - asked
    return sorted((sample for id, sample in samples.items() if id in asked), key=lambda sample: sample.id)


def _part(examples: Iterable[Example | Unreadable], part: int, parts: int) -> Iterator[Example | Unreadable]:
    """Yields every `parts`-th document with all of its questions; unreadable examples belong to the first part."""
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
    """Adds paired comparisons to the models' entries: `against_first` (and `_by_length`), or `by_position` with
    `less_than_first`.

    The reference is the first model that has answers to the task.
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
            # The same number of blocks is another text if the blocks differ.
            unlike = name == "passkey" and _block_size(model) != _block_size(asked[0][0])
            first = [] if unlike else asked[0][1]
            model["tasks"][name]["against_first"] = results.paired(samples, first, seed)
            model["tasks"][name]["against_first_by_length"] = results.paired_by_length(samples, first, seed)


def _block_size(model: dict[str, Any]) -> int:
    """Returns the block size of a model, from its entry in the results."""
    return int(model["model"]["memory"]["block_size"])


def _add_rows(
    models: list[dict[str, Any]], answers: list[dict[str, list[Sample]]], subjects: Sequence[Subject], trained: int
) -> None:
    """Adds the rows of the tasks `passkey` and `text` as entries of these names."""
    for entry, found, subject in zip(models, answers, subjects, strict=True):
        if "passkey" in found:
            rows = passkey.rows(found["passkey"], subject.config.memory.block_size)
            entry |= {"trained_filler_tokens": trained, "passkey": rows}
        if "text" in found:
            entry["text"] = entry["tasks"]["text"]["by_position"]


def _show(models: list[dict[str, Any]], config: EvalConfig, output: Path) -> list[Path]:
    """Prints tables and draws plots. Returns the plots' paths."""
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
