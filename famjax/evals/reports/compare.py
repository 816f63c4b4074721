"""Compares separate evaluations: the results of several output directories in one table and one page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import famjax
from famjax.config import ConfigError
from famjax.evals.reports import language_report, page, report
from famjax.evals.run import names_of, side_by_side
from famjax.evals.samples import Sample, read
from famjax.evals.tasks import language

# Settings of a task on which the question of an id depends, beside fields of its documents (`tasks/labelled.py`). Other
# settings say which questions are asked, or where their data is.
ASKS = ("seed", "depths", "filler", "key_digits")


def compare(runs: Sequence[str], output: str | None = None) -> dict[str, Any]:
    """Prints the models of all runs side by side, with paired differences on the examples that both models answered.

    Args:
      runs: output directories of `famjax eval`.
      output: directory for `results.json` and `report.html`; None only prints.

    Returns:
      The content of `results.json`.

    Raises:
      ConfigError: a directory has no results, or its answers are missing; or the runs asked different questions; or
        `output` has the results of an evaluation.
    """
    if output is not None and (lost := page.task_of(output)):
        raise ConfigError(f"--output {output} has the results of {lost}, which would be replaced; name another folder")
    models: list[dict[str, Any]] = []
    answers: list[dict[str, list[Sample]]] = []
    for run in runs:
        for model in _models(run):
            models.append(model)
            answers.append(_answers(run, model))
    _name(models)
    for name in dict.fromkeys(name for found in answers for name in found):
        _check_same(name, [(model, found[name]) for model, found in zip(models, answers, strict=True) if name in found])
    edges = language.position_edges(models[0]["first_block"])
    side_by_side(models, answers, edges, 0)
    settings = {"compared": list(runs)}
    content = {"runs": list(runs), "models": models, "version": famjax.__version__, "settings": settings}
    for name in dict.fromkeys(name for found in answers for name in found):
        asked = [model for model in models if name in model["tasks"]]
        if "by_position" in asked[0]["tasks"][name]:
            language_report.print_table(asked, name)
        else:
            report.print_task(asked, name)
    if output is not None:
        data, shown = page.write(output, content)
        print(f"wrote {data} and {shown}")
    return content


def _models(run: str) -> list[dict[str, Any]]:
    path = Path(run) / report.RESULTS_JSON
    if not path.is_file():
        raise ConfigError(f"{run} has no {report.RESULTS_JSON}; name output directories of famjax eval")
    content = json.loads(path.read_text(encoding="utf-8"))
    models = content.get("models", []) if isinstance(content, dict) else []
    if not models or not all(map(_is_current, models)):
        raise ConfigError(f"{path} was not written by this version of famjax eval; run the evaluation again")
    # The blocks of a run's first model are the buckets of its results by position.
    return [model | {"run": run, "first_block": models[0]["model"]["memory"]["block_size"]} for model in models]


def _is_current(model: dict[str, Any]) -> bool:
    """Returns whether an entry has the fields of this version; earlier ones had `documents` as one text."""
    fields = [task.get("settings", {}).get("documents", {}) for task in model.get("tasks", {}).values()]
    return "tasks" in model and "fingerprint" in model and all(isinstance(one, dict) for one in fields)


def _answers(run: str, model: dict[str, Any]) -> dict[str, list[Sample]]:
    """Returns a model's answers by task, those that its results count."""
    found = {}
    for name, summary in model["tasks"].items():
        others = set(summary.get("not_counted", ()))
        counted = (sample for sample in read(run, summary["key"]) if sample.id not in others)
        samples = sorted(counted, key=lambda sample: sample.id)
        if not samples:
            raise ConfigError(f"{run} has no answers of {model['name']} to {name}; they were moved or deleted")
        if len(samples) != summary["n"]:
            raise ConfigError(f"{run} has {len(samples)} answers of {model['name']} to {name}, but its results are of "
                              f"{summary['n']}; run this evaluation to its end")  # fmt: skip
        found[name] = samples
    return found


def _asks(summary: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a task on which the question of an id depends."""
    settings = summary.get("settings", {})
    fields = settings.get("documents", {})
    return {name: settings[name] for name in ASKS if name in settings} | {
        name: value for name, value in fields.items() if name not in ("blocks", "pairs")
    }


def _check_same(task: str, asked: list[tuple[dict[str, Any], list[Sample]]]) -> None:
    """Raises `ConfigError` unless examples of one id are the same for all models: equal settings of the questions,
    answers and texts, and for results by position equal buckets, and as much of each text."""
    (first, reference), *others = asked
    theirs = {sample.id: sample for sample in reference}
    by_position = any(sample.sums for sample in reference)
    for model, samples in others:
        runs = f"{first['run']} and {model['run']}"
        if by_position and model["first_block"] != first["first_block"]:
            blocks = f"{first['first_block']} and {model['first_block']}"
            raise ConfigError(f"{runs} have results by position in blocks of {blocks} tokens; evaluate these models in "
                              f"one command to compare them")  # fmt: skip
        before, ours = (_asks(one["tasks"][task]) for one in (first, model))
        differs = [f"{name} is {value!r} and {ours[name]!r}" for name, value in before.items()
                   if name in ours and value != ours[name]]  # fmt: skip
        if differs and any(sample.id in theirs for sample in samples):
            raise ConfigError(f"{runs} asked different questions of {task}: {differs[0]}; evaluate both with the same "
                              f"data, settings and seed")  # fmt: skip
        for sample in samples:
            other = theirs.get(sample.id, sample)
            if by_position and language.end_of(sample) != language.end_of(other):
                raise ConfigError(f"{runs} scored more and less of example {sample.id} of {task}, which was truncated; "
                                  f"evaluate both with the same --longest, or, if their tokenizers differ, without "
                                  f"it")  # fmt: skip
            texts = other.about.get("text"), sample.about.get("text")
            questions = [(one.targets, one.about.get("alignment")) for one in (other, sample)]
            if questions[0] != questions[1] or (all(texts) and texts[0] != texts[1]):
                raise ConfigError(f"{runs} asked different questions: example {sample.id} of {task} is not the same; "
                                  f"evaluate both with the same data, settings and seed")  # fmt: skip


def _name(models: list[dict[str, Any]]) -> None:
    """Prefixes names that occur more than once with their run."""
    names = [model["name"] for model in models]
    runs = list(dict.fromkeys(model["run"] for model in models))
    called = dict(zip(runs, names_of(runs), strict=True))
    for model, name in zip(models, names, strict=True):
        if names.count(name) > 1:
            model["name"] = f"{called[model['run']]}/{name}"
