"""The harness's results in our format, against values computed by hand."""

import pytest

from famjax.evals.harness import converted
from famjax.evals.results import paired
from famjax.evals.statistics import wilson_interval


def line(number: int, chosen: str = "none", context: str = "q", responses=((-1.0, True),), **metrics) -> dict:
    """Returns a document's answer as the harness logs it."""
    return {
        "doc_id": number, "target": 1, "arguments": [(context, " a")], "filtered_resps": list(responses),
        "filter": chosen, "metrics": list(metrics), **metrics,
    }  # fmt: skip


def results(output_type: str, row: dict, lines: list[dict]) -> dict:
    return {
        "results": {"t": {"alias": "t", **row}}, "samples": {"t": lines},
        "configs": {"t": {"output_type": output_type}}, "versions": {"t": 2.0}, "n-shot": {"t": 3},
        "config": {"limit": None}, "chat_template": None,
    }  # fmt: skip


def of(found: dict) -> tuple[dict, list]:
    settings = converted.settings_of(found, "t", "0.4.13")
    samples = converted.samples_of(found, "t", settings, "model", len)
    return converted.summary(found, "t", settings, samples), samples


def test_means_have_the_intervals_of_our_own_tasks_and_other_numbers_the_harness_error() -> None:
    """Three of four correct: Wilson's interval. A perplexity, which is not a mean over examples: +-1.96 standard
    errors, no value in the samples, and therefore no paired difference."""
    lines = [line(n, context="abcd" * (n + 1), acc=float(n != 2), perplexity=-1.0 - n,
                  responses=((-3.0, False), (-1.0, True), (-2.0, False))) for n in (3, 0, 2, 1)]  # fmt: skip
    row = {"acc,none": 0.75, "acc_stderr,none": 0.25, "perplexity,none": 12.18, "perplexity_stderr,none": 2.0}
    summary, samples = of(results("multiple_choice", row, lines))
    low, high = wilson_interval(3, 4)
    assert summary["metrics"]["acc"] == {"value": 0.75, "low": low, "high": high, "n": 4}
    assert summary["metrics"]["perplexity"]["low"] == pytest.approx(12.18 - 1.96 * 2, abs=1e-3)
    assert [sample.values for sample in samples] == [{"acc": 1.0}, {"acc": 1.0}, {"acc": 0.0}, {"acc": 1.0}]
    assert [sample.tokens for sample in samples] == [4, 8, 12, 16] and summary["tokens"] == 40
    assert {sample.answer for sample in samples} == {1} and summary["kind"] == "choose"
    assert [miss["id"] for miss in summary["misses"]] == [samples[2].id]


def test_filters_are_metrics_of_their_own() -> None:
    """The same answers under two filters are one document with two metrics."""
    values = {(0, "strict"): 1, (0, "lax"): 0, (1, "strict"): 1, (1, "lax"): 1}
    lines = [line(n, chosen, responses=("7",), exact_match=value) for (n, chosen), value in values.items()]
    row = {"exact_match,strict": 1.0, "exact_match,lax": 0.5, "exact_match_stderr,strict": "N/A"}
    summary, samples = of(results("generate_until", row, lines))
    assert {name: one["value"] for name, one in summary["metrics"].items()} == {
        "exact_match, strict": 1.0, "exact_match, lax": 0.5,
    }  # fmt: skip
    assert summary["n"] == len(samples) == 2 and samples[0].answer == "7"


def test_models_are_compared_on_the_examples_that_both_answered() -> None:
    answers = [(1.0, 0.0, 1.0), (0.0, 0.0)]
    found = [
        of(results("multiple_choice", {"acc,none": sum(values) / len(values)},
                   [line(n, acc=value) for n, value in enumerate(values)]))[1]
        for values in answers
    ]  # fmt: skip
    gap = paired(found[1], found[0])["acc"]
    assert gap["mean"] == -0.5 and gap["n"] == 2


def test_a_number_that_is_none_is_left_out() -> None:
    """The mean of an empty collection is NaN: it is omitted, without an error."""
    summary, _ = of(results("multiple_choice", {"acc,none": float("nan")}, [line(0, acc=float("nan"))]))
    assert summary["metrics"] == {}


def test_answers_to_changed_files_are_other_answers() -> None:
    """The same task and version with one edited question: old answers are not reused."""
    row = {"acc,none": 1.0}
    before, same, after = (
        of(results("multiple_choice", row, [line(0, context=context, acc=1.0)]))[1][0].key
        for context in ("a", "a", "b")
    )
    assert before == same != after
