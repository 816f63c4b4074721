"""Results from answers: metrics with 95% intervals, by length, FAM updates, depth and position; paired comparisons.

The bootstrap resamples documents: questions about one book are drawn together. Two models are compared on the examples
that both answered.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from famjax.config import ConfigError
from famjax.evals.reach import BEYOND, INSIDE, OUTSIDE, PARTLY
from famjax.evals.samples import Sample, updates
from famjax.evals.statistics import gap_interval, mean_interval, ratio_interval
from famjax.evals.tasks import labelled, language
from famjax.evals.tasks.base import Task, Unreadable
from famjax.evals.tasks.language import Sums

# Number of unreadable examples, and of misses, that results list.
REASONS_SHOWN = 20
MISSES_SHOWN = 3
# Bootstrap samples for corpus metrics, and the largest corpus for which they are computed.
REDRAWN, MOST_REDRAWN = 200, 1000


def summarize(task: Task, samples: Sequence[Sample], unreadable: Sequence[Unreadable], block_size: int,
              seed: int = 0) -> dict[str, Any]:  # fmt: skip
    """Summarizes a model's answers to a task, one or more, for `results.json`. `block_size` is the model's, to compute
    the number of FAM updates, `seed` the bootstrap's."""
    shared = collections.Counter((s.group, s.about["context"]) for s in samples if s.about.get("context"))
    summary: dict[str, Any] = {
        "kind": task.kind,
        "n": len(samples),
        "documents": len({sample.group for sample in samples}),
        "tokens": sum(sample.tokens + round(sum(sample.sums.get("tokens", ()))) for sample in samples),
        "truncated": {
            "examples": sum(sample.truncated > 0 for sample in samples),
            "tokens": sum(sample.truncated for sample in samples),
        },
        "unreadable": {"examples": len(unreadable), "first": [one._asdict() for one in unreadable[:REASONS_SHOWN]]},
        "tokens_not_read_again": sum((count - 1) * context for (_, context), count in shared.items()),
        "settings": dict(task.settings),
    }
    if framed := sum(language.FRAMED in sample.about for sample in samples):
        summary[language.FRAMED] = framed
    if task.kind == "generate":
        summary |= {
            "unfinished": sum(sample.finish == "length" for sample in samples),
            "empty": sum(not str(sample.answer).strip() for sample in samples),
            "max_new_tokens": task.max_new_tokens,
        }
    summary["metrics"] = metrics_of(samples, seed)
    summary["metrics"] |= _ratios(task, samples, seed) | _of_all_together(task, samples, seed)
    by = lambda key: _by(samples, key, block_size, seed)
    if any("length" in sample.about for sample in samples):
        summary["by_length"] = by(lambda sample: {"length": sample.about["length"]})
        power = lambda number: 1 << (number.bit_length() - 1) if number else 0  # the largest that is at most the number
        summary["by_updates"] = by(lambda sample: {"updates_from": power(updates(sample, block_size))})
    if task.kind == "label" and samples:
        summary["tables"] = labelled.tables(task, samples, seed)
    if any("source" in sample.about for sample in samples):
        summary["by_source"] = by(lambda sample: _named(sample, "source", "length", "position"))
    if any("depth" in sample.about for sample in samples):
        text = "length" if "by_length" in summary else "source"
        summary["by_depth"] = by(lambda sample: {name: sample.about[name] for name in (text, "depth")})
    if any("reach" in sample.about for sample in samples):
        summary["by_reach"] = by_reach(samples, block_size, seed)
    if samples and not task.by_position:
        summary["misses"] = misses(samples)
    return summary


def _of_all_together(task: Task, samples: Sequence[Sample], seed: int) -> dict[str, dict[str, Any]]:
    """Returns the corpus metrics, with bootstrapped intervals if there are at most `MOST_REDRAWN` examples."""
    if not task.corpus_metrics or task.pairs is None:
        return {}
    found = {sample.id: sample for sample in samples}
    pairs = list(task.pairs({id: sample.answer for id, sample in found.items()}))

    def values(chosen: Iterable[int]) -> dict[str, float]:
        targets, answers = zip(*((pairs[i][1], pairs[i][2]) for i in chosen), strict=True)
        found = [metric(list(targets), list(answers)) for metric in task.corpus_metrics]
        return {name: number for one in found for name, value in one.items() if (number := _number(value)) is not None}

    whole = values(range(len(pairs)))
    units: dict[str, list[int]] = {}
    for i, (id, *_) in enumerate(pairs):
        units.setdefault(found[id].group, []).append(i)
    drawn: list[dict[str, float]] = []
    if len(units) > 1 and len(pairs) <= MOST_REDRAWN:
        rng, parts = np.random.default_rng(seed), list(units.values())
        for _ in range(REDRAWN):
            drawn.append(values(i for part in rng.integers(0, len(parts), len(parts)) for i in parts[part]))
    bounds = lambda name: np.quantile([one[name] for one in drawn], (0.025, 0.975)).tolist() if drawn else (None, None)
    return {
        name: dict(zip(("value", "low", "high", "n"), (value, *bounds(name), len(pairs)), strict=True))
        for name, value in whole.items()
    }


def _ratios(task: Task, samples: Sequence[Sample], seed: int) -> dict[str, dict[str, Any]]:
    """Returns the `task.ratios`, weighted by length, with intervals bootstrapped by document."""
    found: dict[str, dict[str, Any]] = {}
    if not task.ratios or not samples:
        return found
    _, inverse = np.unique([sample.group for sample in samples], return_inverse=True)
    by_unit = lambda values: np.bincount(inverse, np.asarray(values, np.float64))
    nats = by_unit([-float(sample.answer) for sample in samples])
    for name, ratio in task.ratios.items():
        counts = by_unit([sample.about[ratio.per] if ratio.per else 1.0 for sample in samples])
        ends = (float(nats.sum() / counts.sum()), *ratio_interval(nats, counts, seed))
        value, low, high = (None if end is None else ratio.of(end) for end in ends)
        found[name] = {"value": value, "low": low, "high": high, "n": len(samples)}
    return found


def _named(sample: Sample, *names: str) -> dict[str, Any]:
    """Returns the entries of `sample.about` with these names."""
    return {name: sample.about[name] for name in names if name in sample.about}


def by_reach(samples: Sequence[Sample], block_size: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns the metrics by the needle's place: inside, partly inside or outside the reach of one layer.

    A fourth row has those outside that are also beyond the reach of all layers together. Empty rows are left out.

    A row has `distance`, the minimum and maximum distance in tokens to the farthest needle, and, if there are several
    lengths, its own rows by length. Truncated examples are not counted.
    """
    rows = []
    among_of = {INSIDE: (INSIDE,), PARTLY: (PARTLY,), OUTSIDE: (OUTSIDE, BEYOND), BEYOND: (BEYOND,)}
    for side, among in among_of.items():
        same = [sample for sample in samples if sample.about.get("reach") in among]
        if not same:
            continue
        far = [max(sample.about["distances"]) for sample in same]
        (row,) = _by(same, lambda sample, side=side: {"side": side}, block_size, seed)  # type: ignore[misc]
        row["distance"] = [min(far), max(far)]
        if len({sample.about.get("length") for sample in samples}) > 1:
            row["by_length"] = _by(same, lambda sample: _named(sample, "length"), block_size, seed)
        rows.append(row)
    return rows


def _number(value: Any) -> float | None:
    """Unwraps a number, possibly from a seqio metric value; returns None for anything else (text, histograms)."""
    value = getattr(value, "value", value)
    is_number = bool(np.isscalar(value) and np.isreal(value))
    return float(value) if is_number else None


def misses(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Returns the worst answers by the first metric, among those below 1, for inspection."""
    first = next(iter(samples[0].values), "")
    worst = sorted((sample for sample in samples if sample.values.get(first, 1.0) < 1), key=lambda s: s.values[first])
    names = ("id", "prompt", "answer", "targets")
    return [{name: getattr(sample, name) for name in names} for sample in worst[:MISSES_SHOWN]]


def metrics_of(samples: Sequence[Sample], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Returns mean, 95% interval and n of every metric, over the samples that have it: a text of which no byte is
    predicted has no bits per byte."""
    found = {}
    for name in dict.fromkeys(name for sample in samples for name in sample.values):
        having = [sample for sample in samples if name in sample.values]
        values = [sample.values[name] for sample in having]
        low, high = mean_interval(values, [sample.group for sample in having], seed)
        found[name] = {"value": float(np.mean(values)), "low": low, "high": high, "n": len(values)}
    return found


def paired(one: Sequence[Sample], other: Sequence[Sample], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Returns each metric's mean difference `one` - `other` on the examples for which both have it, with 95%
    intervals."""
    theirs = {sample.id: sample for sample in other}
    both = [(sample, theirs[sample.id]) for sample in one if sample.id in theirs]
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for sample, match in both for name in sample.values if name in match.values):
        having = [(ours, match) for ours, match in both if name in ours.values and name in match.values]
        gaps = np.array([ours.values[name] - match.values[name] for ours, match in having])
        _, inverse = np.unique([ours.group for ours, _ in having], return_inverse=True)
        low, high = ratio_interval(np.bincount(inverse, gaps), np.bincount(inverse).astype(np.float64), seed)
        found[name] = {"mean": float(gaps.mean()), "low": low, "high": high, "n": len(having)}
    return found


def paired_by_length(one: Sequence[Sample], other: Sequence[Sample], seed: int = 0) -> list[dict[str, Any]]:
    """Returns `paired` for each length or number of filler blocks, ascending; samples with neither are ignored."""
    rows = []
    for name in ("length", "filler_blocks"):
        lengths = sorted({sample.about[name] for sample in one if name in sample.about})
        for length in lengths:
            same = [sample for sample in one if sample.about.get(name) == length]
            rows.append({name: length, "metrics": paired(same, other, seed)})
    return [row for row in rows if row["metrics"]]


def _by(
    samples: Sequence[Sample], key: Callable[[Sample], dict[str, Any]], block_size: int, seed: int
) -> list[dict[str, Any]]:
    """Returns a row for each value of `key`, in ascending order."""
    rows = []
    order = lambda sample: tuple(key(sample).values())
    for _, group in itertools.groupby(sorted(samples, key=order), order):
        same = list(group)
        numbers = [updates(sample, block_size) for sample in same]
        extra: dict[str, Any] = {"n": len(same), "truncated": sum(sample.truncated > 0 for sample in same)}
        extra |= {"fam_updates": float(np.mean(numbers)), "metrics": metrics_of(same, seed)}
        rows.append(key(same[0]) | extra)
    return rows


class ByPosition(NamedTuple):
    """A model's results of language modelling.

    Attributes:
      rows: from `language.summary`, compared with the first model.
      metrics: over all tokens.
      against_first: the metrics minus those of the first model, paired by document; empty, and no row is compared, if
        a document was truncated at another place than the first model's.
    """

    rows: list[dict[str, Any]]
    metrics: dict[str, dict[str, Any]]
    against_first: dict[str, dict[str, Any]]


def by_position(models: Sequence[Sequence[Sample]], edges: Sequence[int], seed: int = 0) -> list[ByPosition]:
    """Returns each model's results on the documents that all of them scored, by buckets [edge, next edge). Raises
    `ConfigError` if they have no document in common."""
    both = set.intersection(*({sample.id for sample in samples} for samples in models))
    if not both:
        raise ConfigError("these models were evaluated on different documents; none is common to all")
    same = [sorted((sample for sample in samples if sample.id in both), key=lambda sample: sample.id)
            for samples in models]  # fmt: skip
    edges = language.up_to(edges, itertools.chain(*same))
    sums = [language.sums_of(samples, edges) for samples in same]
    rows = [language.summary(one, edges, sums[0], seed) for one in sums]
    found = [ByPosition(row, *_of_all_tokens(one, sums[0], seed)) for row, one in zip(rows, sums, strict=True)]
    # Texts truncated to a number of tokens of each model's own end at other places: a difference would mean nothing.
    ends = [[language.end_of(sample) for sample in samples] for samples in same]
    alone = lambda rows: [row | {"less_than_first": None} for row in rows]
    return [one if end == ends[0] else ByPosition(alone(one.rows), one.metrics, {})
            for one, end in zip(found, ends, strict=True)]  # fmt: skip


def _of_all_tokens(sums: Sums, first: Sums, seed: int) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Returns the metrics over all tokens, and their differences from the first model's."""
    found: dict[str, dict[str, Any]] = {}
    gaps: dict[str, dict[str, Any]] = {}
    for name, above, below in (("next_token_accuracy", "correct", "tokens"), ("bits_per_byte", "bits", "sizes")):
        ours, theirs = ((getattr(one, above).sum(axis=1), getattr(one, below).sum(axis=1)) for one in (sums, first))
        if not ours[1].sum() or not theirs[1].sum():
            continue
        n, value, other = len(ours[0]), *(float(over.sum() / under.sum()) for over, under in (ours, theirs))
        low, high = ratio_interval(*ours, seed)
        found[name] = {"value": value, "low": low, "high": high, "n": n}
        low, high = gap_interval(ours, theirs, seed)
        gaps[name] = {"mean": value - other, "low": low, "high": high, "n": n}
    return found, gaps
