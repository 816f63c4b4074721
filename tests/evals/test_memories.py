"""The report of `famjax compare`: what is pooled over seeds, its tables and charts."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from famjax.config import MemoryConfig
from famjax.evals import memories, memories_page, statistics
from famjax.evals.reports import charts
from famjax.evals.yardsticks import yardstick
from tests.cli.test_compare import TASKS, config_of


def test_summary_and_page(tmp_path: Path) -> None:
    """Counts are pooled over seeds; intervals are Wilson's for one seed and over seeds for two; a memory that diverged
    in one seed has the other's numbers, one that diverged in all has none; texts are escaped."""
    bounds = lambda hits: dict(zip(("low", "high"), statistics.wilson_interval(hits, 10), strict=True))
    row = lambda blocks, hits: {"blocks": blocks, "tokens": 64 * blocks + 31.5, "updates": blocks + 1, "documents": 10,
                                "value": hits / 10} | bounds(hits)  # fmt: skip
    (tmp_path / "a").mkdir()
    logged = [{"step": step, "loss": 5.0 / step, "exact_match": 0.1} for step in range(1, 101)]
    (tmp_path / "a" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    fam, infini = config_of("fam"), config_of("infini")
    object.__setattr__(fam, "model_dir", str(tmp_path / "a"))
    runs = [
        memories.Run("fam", "fam.gin", 0, fam, [row(1, 10), row(4, 9)]),
        memories.Run("fam", "fam.gin", 1, fam, [row(1, 8), row(4, 0)]),
        memories.Run("infini", "infini.gin", 0, infini, [row(1, 5), row(4, 1)]),
        memories.Run("infini", "infini.gin", 1, infini, [], "the loss is nan"),
        memories.Run("<b>", "b.gin", 0, infini, [], "it broke"),
    ]
    found = memories.summarize(runs, yardstick(fam))
    assert found["budget"] == {"steps": 1500, "tokens": 1500 * 8 * 448} and found["seeds"] == [0, 1]
    one, two, three = found["memories"]
    assert [length["value"] for length in one["lengths"]] == [0.9, 0.45]
    assert one["lengths"][0]["by_seed"] == {"0": 1.0, "1": 0.8}
    assert (one["lengths"][1]["low"], one["lengths"][1]["high"]) == (0.0, 0.9)  # over two seeds
    assert two["lengths"][0]["documents"] == 10 and two["lengths"][0]["low"] == pytest.approx(0.2366, abs=1e-3)
    assert two["diverged"] == [{"seed": 1, "said": "the loss is nan"}] and three["lengths"] == []
    assert one["added_weights"] == 8 * 64 and two["added_weights"] == 3 * 2
    # A ring of one block; FAM in float32 with keys and values, or a matrix and its normaliser.
    ring = 3 * 2 * 64 * 64 * 4
    assert one["state_bytes"] == ring + 3 * 3 * 8 * 64 * 4 + 8
    assert two["state_bytes"] == ring + 3 * 2 * (32 * 32 + 32) * 4 + 8
    points = one["curves"][0]["points"]
    assert points[-1] == {"tokens": 100 * 8 * 448, "loss": 0.05, "right": 0.1} and len(points) <= 40
    _, page = memories_page.write(tmp_path, found)
    text = page.read_text()
    assert "over seeds; of infini, of which one seed is left, over its documents." in text
    assert "<b>" not in text and "&lt;b&gt;" in text and "seed 1: the loss is nan" in text
    assert json.loads((tmp_path / memories_page.COMPARISON_JSON).read_text()) == found


def test_a_curve_has_the_color_of_its_memory(tmp_path: Path) -> None:
    """Also after a memory without results and without a log."""
    row = {"blocks": 1, "tokens": 64.0, "updates": 1, "documents": 9, "value": 0.5, "low": 0.2, "high": 0.8}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    fam, infini = config_of("fam"), dataclasses.replace(config_of("infini"), model_dir=str(tmp_path))
    runs = [memories.Run("fam", "fam.gin", 0, fam, [], "it broke")]
    runs.append(memories.Run("infini", "infini.gin", 0, infini, [row], "", [{"label": "pairs", "rows": [
        {"length": 64, "at": 4, "n": 9, "value": 0.5, "low": 0.2, "high": 0.8}]}]))  # fmt: skip
    found = memories.summarize(runs, yardstick(fam))
    drawn = memories_page._drawn(found, found["memories"], found["memories"][1:])
    assert len(drawn) == 6
    assert all(charts.color(1).lower() in svg and charts.color(0).lower() not in svg for _, svg in drawn)


def test_tables_of_seeds_are_pooled_by_their_predictions(tmp_path: Path) -> None:
    """Accuracy by bin over two seeds weighs each by its predictions; the page has the tables, rates and FLOPs."""
    config = config_of("fam", task=TASKS[1])
    of_length = {"blocks": 2, "tokens": 128, "updates": 2.0, "documents": 6, "low": 0.1, "high": 0.9}
    row = lambda value: of_length | {"value": value}
    table = lambda n, value: {"label": "blocks between pair and question", "rows": [
        {"length": 128, "at": at, "n": n, "value": value, "low": 0.0, "high": 1.0} for at in (0, 1)]}  # fmt: skip
    runs = [
        memories.Run("fam", "fam.gin", 0, config, [row(0.5)], "", [table(30, 0.5)]),
        memories.Run("fam", "fam.gin", 1, config, [row(1.0)], "", [table(10, 1.0)]),
    ]
    rates = {"fam": [{"rate": 3e-3, "loss": 0.5, "best": True}, {"rate": 1e-2, "loss": None, "best": False}]}
    also = [{"memory": "fam", "seed": 1, "learning_rate": 1e-2, "said": "<nan>"}]
    found = memories.summarize(runs, yardstick(config), 10**12, rates, also)
    (one,) = found["memories"]
    assert one["lengths"][0]["value"] == 0.75 and one["lengths"][0]["documents"] == 12
    cells = [(cell["at"], cell["n"], cell["value"]) for cell in one["tables"][0]["rows"]]
    assert cells == [(0, 40, 0.625), (1, 40, 0.625)]
    assert found["metric"] == "accuracy" and found["budget"] == {"flops": 10**12}
    assert one["training_flops"] == pytest.approx(one["flops_per_token"] * one["tokens"])
    assert found["chance"] == 1 / config.mqar.values
    page = memories_page.page(found)
    for words in ("Accuracy by blocks between pair and question, 128 tokens", "0.003", "diverged", "&lt;nan&gt;",
                  "accuracy at 2 blocks against bytes of state", "against GFLOPs of training"):  # fmt: skip
        assert words in page


def test_rows_are_those_of_the_results() -> None:
    """The pass key's rows and a labelled task's have the same names, from the entries that `famjax eval` writes."""
    names = {"blocks", "tokens", "updates", "documents", "value", "low", "high"}
    metric = {"value": 0.5, "low": 0.2, "high": 0.8, "n": 10}
    by_length = [{"length": 128, "n": 10, "fam_updates": 2.0, "metrics": {"accuracy": metric}}]
    key = {"filler_blocks": 2, "filler_tokens": 159.5, "fam_updates": 3.0, "documents": 10, "exact_match": 0.5}
    entry = {
        "tasks": {"mqar": {"by_length": by_length, "tables": ["a table"]}},
        "passkey": [key | {"low": 0.2, "high": 0.8}],
    }
    labels, keys = yardstick(config_of("fam", task=TASKS[1])), yardstick(config_of("fam"))
    assert names <= labels.rows(entry)[0].keys() and names == keys.rows(entry)[0].keys()
    assert labels.rows(entry)[0]["blocks"] == keys.rows(entry)[0]["blocks"] == 2
    assert labels.tables(entry) == ["a table"] and keys.tables(entry) == []
    assert labels.evaluation({"blocks": (1, 3)}).lengths == (64, 192)
    assert keys.evaluation({"blocks": (1, 3)}).filler_blocks == (1, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fam_length": 8}, "fam"), ({"fam_length": 8, "fam_update": "gated"}, "fam, gated"),
        ({"fam_length": 0}, "none"),
        ({"fam_length": 0, "segments_hold": "outputs"}, "feedback segments"),
        ({"fam_length": 0, "kind": "infini"}, "infini"),
    ],
)  # fmt: skip
def test_the_report_names_the_kind_of_a_memory(settings, words):
    """Two memories whose settings differ in more than a number have different names."""
    assert memories_page._kind(dataclasses.asdict(MemoryConfig(**settings))) == words


def test_lines_of_skipped_steps_have_no_loss(tmp_path: Path) -> None:
    """Their metrics are null in the log, and are no part of means and curves."""
    lines = [{"step": 1, "loss": 2.0, "accuracy": 0.5}, {"step": 2, "loss": None, "accuracy": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert memories.final_loss(str(tmp_path), 0.5) == 2.0
    assert memories.curve(str(tmp_path), 10) == [{"tokens": 10, "loss": 2.0, "right": 0.5}]


def test_the_last_losses_and_an_even_curve(tmp_path: Path) -> None:
    """The mean of a share of the losses, at least one; points of a curve are as far apart, up to the last line."""
    assert memories.final_loss(str(tmp_path), 0.3) == math.inf
    lines = [{"step": step, "loss": 91.0 - step, "accuracy": 0.5} for step in range(1, 91)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert memories.final_loss(str(tmp_path), 0.1) == sum(range(1, 10)) / 9
    assert memories.final_loss(str(tmp_path), 0.001) == 1.0
    points = memories.curve(str(tmp_path), 10)
    assert [point["tokens"] for point in points] == [30 * i for i in range(1, 31)] and memories.MOST_POINTS == 40
    assert points[-1] == {"tokens": 900, "loss": 1.0, "right": 0.5}
