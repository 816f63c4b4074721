"""Runs the harness's tasks on model directories and writes the results."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import famjax
from famjax.config import ConfigError
from famjax.config.checks import at_least, nearest, reason_of
from famjax.data.vocabulary import has_vocabulary, vocabulary_files
from famjax.evals.harness.tasks import LISTS, expand
from famjax.evals.samples import SAMPLES_JSONL, Sample, SampleFile, read
from famjax.storage.model_dir import split_step, write_text

RESULTS = "lm_eval.json"


@dataclasses.dataclass(frozen=True)
class HarnessConfig:
    """Settings of an evaluation with the harness.

    Attributes:
      model_dirs: model directories.
      tasks: comma-separated names of the harness's tasks and groups, or of `tasks.LISTS`.
      output_dir: directory of `lm_eval.json` and the samples of each model and task.
      limit: maximum number of examples per task; None: all.
      num_fewshot: few-shot examples before each question; None: the task's default.
      batch_size: maximum number of rows in a batch.
      chat: apply the model directory's chat template.
      include_path: a folder with additional tasks (YAML).
      cache: file name of the harness's cache of answers, to resume a stopped evaluation; empty: no cache.
      memory: overrides of the model's memory settings.
      dtype: compute dtype; see `FamjaxLM`.
    """

    model_dirs: tuple[str, ...]
    tasks: str
    output_dir: str
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    chat: bool = False
    include_path: str | None = None
    cache: str = ""
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    dtype: str = "auto"

    def validate(self) -> None:
        """Raises `ConfigError` for the first invalid setting."""
        if not expand(self.tasks):
            raise ConfigError(f"--lm-eval names no task; give comma-separated names, or one of {', '.join(LISTS)}")
        at_least("--limit", 1 if self.limit is None else self.limit, 1)
        at_least("--fewshot", self.num_fewshot or 0, 0)
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ConfigError(f"--include-path {self.include_path} is not a folder; name one with YAML files of tasks")


def run(config: HarnessConfig) -> dict[str, Any]:
    """Evaluates all models on all tasks, prints the harness's tables, writes the results and returns them. Raises
    `ConfigError` if the harness is not installed, a task is unknown, or a task's data or a model cannot be loaded."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError("--lm-eval needs lm-evaluation-harness: pip install -e '.[lm-eval]'") from error
    from famjax.evals.harness import converted
    from famjax.evals.reports import page
    from famjax.evals.run import names_of

    models = names_of(config.model_dirs)
    page.report_replaced(config.output_dir, converted.task_name(config.tasks))
    names = expand(config.tasks)
    manager = TaskManager(include_path=config.include_path)
    known = set(manager.all_tasks)
    for name in names:
        if name not in known and not Path(name).is_file():
            hint = nearest(name, known) or "; `lm_eval ls tasks` lists all"
            raise ConfigError(f"the harness has no task {name!r}{hint}")
    found: dict[str, Any] = {}
    entries: list[dict[str, Any]] = []
    answers: list[dict[str, list[Sample]]] = []
    for name, path in zip(models, config.model_dirs, strict=True):
        found[path], entry, samples = _of_model(name, path, names, manager, config)
        entries.append(entry)
        answers.append(samples)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for number, (path, results) in enumerate(found.items()):
        _write_samples(output, number if len(found) > 1 else None, results.pop("samples", {}))
        results["config"]["model"] = path
    write_text(output / RESULTS, _json(found, indent=1) + "\n")
    _write_results(output, entries, answers, config)
    return found


def _write_results(
    output: Path, entries: list[dict[str, Any]], answers: list[dict[str, list[Sample]]], config: HarnessConfig
) -> None:
    """Writes `results.json`, `samples.jsonl` and `report.html` in our format; prints tables if there are several
    models."""
    from famjax.evals.harness import converted
    from famjax.evals.reports import page, report
    from famjax.evals.run import side_by_side

    side_by_side(entries, answers, (), 0)
    with SampleFile(output / SAMPLES_JSONL) as file:
        for samples in (samples for found in answers for samples in found.values()):
            known = {sample.id for sample in read(output, samples[0].key)}
            for sample in samples:
                if sample.id not in known:
                    file.add(sample)
        file.sync()
    content = {
        "task": converted.task_name(config.tasks), "version": famjax.__version__,
        "settings": dataclasses.asdict(config), "models": entries,
    }  # fmt: skip
    data, shown = page.write(output, content)
    for task in entries[0]["tasks"] if len(entries) > 1 else ():
        report.print_task(entries, task)
    print(f"wrote {output / RESULTS}, {data} and {shown}")


def _of_model(
    name: str, path: str, names: list[str], manager: Any, config: HarnessConfig
) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[Sample]]]:
    """Returns a model's results in the harness's format, its entry in ours, and its answers by task."""
    import datasets
    import lm_eval
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    from famjax.evals.harness import converted
    from famjax.evals.harness.model import FamjaxLM
    from famjax.evals.run import entry_of

    model = FamjaxLM(path, config.batch_size, dtype=config.dtype, **config.memory)
    entry = entry_of(name, path, model.model)
    # The harness finds a cached answer by its request alone.
    cache = f"{config.cache}-{Path(path).name}-{_identity(path, entry['fingerprint'])}" if config.cache else None
    try:
        results = simple_evaluate(
            model, tasks=names, num_fewshot=config.num_fewshot, limit=config.limit, task_manager=manager,
            apply_chat_template=config.chat, use_cache=cache, batch_size=config.batch_size,
        )  # fmt: skip
    except (
        ConnectionError,
        datasets.exceptions.DatasetNotFoundError,
        datasets.exceptions.DataFilesNotFoundError,
    ) as error:
        raise ConfigError(
            f"a task's data is not cached and cannot be downloaded ({reason_of(error)}); download it on a machine with "
            "a network and copy the cache of `datasets`, or write a task that names local files (docs/lm_eval.md)"
        ) from error
    print(f"{path}\n{make_table(results)}")
    if results.get("groups"):
        print(make_table(results, "groups"))
    answers: dict[str, list[Sample]] = {}
    for task in results["samples"]:
        settings = converted.settings_of(results, task, lm_eval.__version__)
        count = lambda text: len(model.tok_encode(text))
        samples = converted.samples_of(results, task, settings, entry["fingerprint"], count)
        summary = converted.summary(results, task, settings, samples) if samples else {}
        if summary.get("metrics"):  # a task may have no numeric metric
            answers[converted.task_name(task)] = samples
            entry["tasks"][converted.task_name(task)] = summary
    return dict(results), entry, answers


def _identity(path: str, fingerprint: str) -> str:
    """Returns a hash, 12 hexadecimal digits, of a model's weights and settings, and of its tokenizer's files."""
    found, folder = hashlib.sha256(fingerprint.encode()), split_step(path)[0]
    for name, content in sorted(vocabulary_files(str(folder) if has_vocabulary(folder) else "bytes").items()):
        found.update(name.encode() + content)
    return found.hexdigest()[:12]


def _write_samples(output: Path, number: int | None, samples: dict[str, list[Any]]) -> None:
    """Writes one JSON lines file per task; `number` distinguishes models."""
    for task, rows in samples.items():
        name = "_".join(["lm_eval_samples", *([str(number)] if number is not None else []), task.replace("/", "_")])
        write_text(output / f"{name}.jsonl", "".join(_json(row) + "\n" for row in rows))


def _json(value: Any, indent: int | None = None) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, indent=indent)
