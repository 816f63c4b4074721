"""Converts the harness's results to our format (`results.json`, the page, paired comparison of models).

A metric that is a mean over examples (accuracy, exact match) gets the interval of our own tasks, and models are
compared on the examples that both answered. For any other (perplexity, corpus F1) the harness's value is kept, with
an interval from its standard error.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from famjax.evals import results
from famjax.evals.reports.page import HARNESS
from famjax.evals.runner import PROMPT_SHOWN
from famjax.evals.samples import Sample, key_of
from famjax.evals.statistics import Z95

# The harness's output types to kinds of tasks; all others are "score".
KINDS = {"multiple_choice": "choose", "generate_until": "generate"}


def task_name(name: str) -> str:
    """Returns the name in our results of a task of the harness, or of several with commas."""
    return f"{HARNESS}{name}"


def settings_of(found: dict[str, Any], name: str, version: str) -> dict[str, Any]:
    """Returns the settings that define a task."""
    config = found["configs"][name]
    return {
        "lm_eval": version, "version": found["versions"].get(name), "fewshot": found["n-shot"].get(name),
        "limit": found["config"].get("limit"), "chat": bool(found.get("chat_template")),
        "output_type": config["output_type"],
    }  # fmt: skip


def samples_of(
    found: dict[str, Any], name: str, settings: dict[str, Any], identity: str, count: Callable[[str], int]
) -> list[Sample]:
    """Returns a task's answers, one per document, from the harness's results.

    `name` is the harness's name of the task, `settings` are from `settings_of`, `identity` is the model's fingerprint,
    and `count` returns the number of tokens of a text.
    """
    # A task's files may change without its name or version, so the requests are part of the key.
    asked = [[line["doc_id"], line["arguments"], line["target"]] for line in found["samples"][name]]
    key = key_of(identity, task_name(name), settings | {"asked": sorted(asked, key=lambda one: one[0])})
    kind = KINDS.get(settings["output_type"], "score")
    means = {
        (metric, chosen) for metric, chosen, _, _ in _metrics(found, name) if _is_mean(found, name, metric, chosen)
    }
    by_document: dict[int, list[dict[str, Any]]] = {}
    for line in found["samples"][name]:
        by_document.setdefault(line["doc_id"], []).append(line)
    samples = []
    for number, lines in sorted(by_document.items()):
        first = lines[0]
        context = str(first["arguments"][0][0])
        values = {
            _label(metric, line["filter"]): float(line[metric])
            for line in lines for metric in line["metrics"] if (metric, line["filter"]) in means
        }  # fmt: skip
        samples.append(Sample(
            task_name(name), f"{number:08d}", f"{number:08d}", key, count(context), 0, context[-PROMPT_SHOWN:],
            _answer(first, kind), [str(first["target"])], "stop", values, {},
        ))  # fmt: skip
    return samples


def summary(found: dict[str, Any], name: str, settings: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
    """Summarizes a model's answers to a task, in the format of `results.summarize`."""
    summarized: dict[str, Any] = {
        "kind": KINDS.get(settings["output_type"], "score"),
        "n": len(samples), "documents": len(samples), "tokens": sum(sample.tokens for sample in samples),
        "truncated": {"examples": 0, "tokens": 0},  # `FamjaxLM` never truncates
        "unreadable": {"examples": 0, "first": []}, "tokens_not_read_again": 0,
        "settings": settings, "metrics": {}, "misses": results.misses(samples), "key": samples[0].key,
    }  # fmt: skip
    means = results.metrics_of(samples)
    for metric, chosen, value, error in _metrics(found, name):
        label = _label(metric, chosen)
        low, high = (value - Z95 * error, value + Z95 * error) if error is not None else (None, None)
        metric_row = {"value": value, "low": low, "high": high, "n": len(samples)}
        summarized["metrics"][label] = means.get(label) or metric_row
    return summarized


def _metrics(found: dict[str, Any], name: str) -> Iterator[tuple[str, str, float, float | None]]:
    """Yields (metric, filter, value, standard error or None) of a task."""
    row = found["results"][name]
    for key, value in row.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr") or not _is_number(value):
            continue
        error = row.get(f"{metric}_stderr,{chosen}")
        yield metric, chosen, float(value), float(error) if _is_number(error) else None


def _is_mean(found: dict[str, Any], name: str, metric: str, chosen: str) -> bool:
    """Returns whether the harness's value is the mean of the examples' values."""
    values = [line.get(metric) for line in found["samples"][name] if line["filter"] == chosen]
    if not values or not all(map(_is_number, values)):
        return False
    return bool(np.isclose(np.mean(np.asarray(values, float)), found["results"][name][f"{metric},{chosen}"], rtol=1e-9))


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number)) and math.isfinite(value)


def _label(metric: str, chosen: str) -> str:
    return metric if chosen == "none" else f"{metric}, {chosen}"


def _answer(line: dict[str, Any], kind: str) -> Any:
    """Returns the generated text, the index of the most probable choice, or the log probability."""
    answers = line["filtered_resps"]
    if kind == "generate":
        return str(answers[0])
    numbers = [float(np.ravel(np.asarray(one, object))[0]) for one in answers]
    return int(np.argmax(numbers)) if kind == "choose" else numbers[0]
