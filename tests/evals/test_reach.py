"""The reach of window and segments, compared with the attention masks token by token; results by reach."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from famjax.attention.masks import block_window, within_window
from famjax.cli.main import main
from famjax.evals.reach import BEYOND, INSIDE, OUTSIDE, PARTLY, Reach
from famjax.evals.reports import report
from famjax.evals.results import by_reach, summarize
from famjax.evals.runner import Runner
from famjax.evals.samples import Sample
from famjax.evals.statistics import wilson_interval
from famjax.evals.tasks.base import Example, Task
from famjax.storage.checkpoint import save_model
from tests import tiny
from tests.evals.test_runner import CODEC, Parrot, tokens

LENGTH = 40


def sees(config, layer: int) -> np.ndarray:
    """Returns bool [query, key]: whether a layer's attention lets the query see the key."""
    q, k = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None]
    memory = config.layer(layer).memory
    mask = block_window(q, k, memory.block_size, memory.memory_segments)
    return mask & within_window(q, k, 0, memory.token_window) if memory.token_window else mask


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_segments": 0}, {"memory_segments": 1}, {"memory_segments": 2, "num_layers": 3},
        {"memory_segments": 2, "token_window": 7}, {"memory_segments": 2, "token_window": 9, "num_layers": 3},
        {"layer_pattern": ("local", "global"), "local_window": 3, "num_layers": 4},
    ],
)  # fmt: skip
def test_sides_are_those_of_the_masks(changes):
    """Inside: some layer sees the key directly. Beyond all layers: no path through the layers leads from the key to the
    query, by powers of the masks. Checked for every query and key."""
    config = tiny.config(**changes)
    reach = Reach.of(config)
    masks = [sees(config, layer) for layer in range(config.num_layers)]
    one, chain = np.logical_or.reduce(masks), np.eye(LENGTH, dtype=bool)
    for mask in masks:  # the last layer's queries, on the left, see what the layers before it have read
        chain = mask @ chain
    for q in range(LENGTH):
        for k in range(q + 1):
            expected = INSIDE if one[q, k] else OUTSIDE if chain[q, k] else BEYOND
            assert reach.side(q, k, k) == expected, (q, k)


def test_a_needle_is_outside_only_if_none_of_it_is_seen():
    """Blocks of 4, one segment, two layers, a query at 17: one layer sees from 12 on, both from 8 on. The farther of
    two needles decides; distances are from a needle's first token to the question's last."""
    reach = Reach(4, 1, (0, 0))
    sides = {(13, 14): INSIDE, (12, 15): INSIDE, (11, 12): PARTLY, (9, 11): OUTSIDE, (7, 8): OUTSIDE, (5, 7): BEYOND}
    for needle, side in sides.items():
        assert reach.about([needle], 18) == {"distances": [17 - needle[0]], "reach": side}
    assert reach.about([(15, 16), (11, 13)], 18) == {"distances": [2, 6], "reach": PARTLY}
    assert reach.about([(4, 5), (13, 13)], 18) == {"distances": [13, 4], "reach": BEYOND}
    assert reach.as_dict() == {
        "block_size": 4, "memory_segments": 1, "layers": 2, "one_layer_tokens": 4, "all_layers_tokens": 8,
    }  # fmt: skip


def test_the_split_is_in_results_samples_page_and_tables(tmp_path, capsys):
    """For the pass key and for a needle at several depths: each sample has its distance and side, each side n and
    Wilson's interval of its samples, in the terminal and on the page."""
    config = tiny.config(vocab_size=256, block_size=64, memory_segments=1)
    save_model(tmp_path / "m", config, tiny.parameters(config))
    out = tmp_path / "out"
    words = ["eval", "--gin.BATCH_SIZE=4", "--model", str(tmp_path / "m"), "--output", str(out)]
    words += ["--task", "passkey,passkey_depth", "--filler-blocks", "0,1", "--gin.EvalConfig.alignments=4"]
    assert main([*words, "--lengths", "300,500", "--examples", "5"]) == 0
    (model,) = json.loads((out / "results.json").read_text())["models"]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    printed, page = " ".join(capsys.readouterr().out.split()), (out / "report.html").read_text()
    for told in model["tasks"].values():
        mine = [sample for sample in samples if sample["key"] == told["key"]]
        assert told["reach"]["one_layer_tokens"] == 64 and len(mine) == told["n"]
        counted = dict.fromkeys((INSIDE, PARTLY, OUTSIDE, BEYOND), 0)
        for sample in mine:
            query = sample["tokens"] - 1
            (distance,) = sample["about"]["distances"]
            inside = query // 64 - (query - distance) // 64 <= 1
            assert inside == (sample["about"]["reach"] == INSIDE)
            side = sample["about"]["reach"]
            counted[side] += 1
            counted[OUTSIDE] += side == BEYOND
            end = sample["about"]["needle"] if told["settings"].get("lengths") else query - distance + 4
            assert (side in (OUTSIDE, BEYOND)) == (query // 64 - end // 64 > 1)
        rows = {row["side"]: row for row in told["by_reach"]}
        assert {side: n for side, n in counted.items() if n} == {side: row["n"] for side, row in rows.items()}
        for row in rows.values():
            metric = row["metrics"]["exact_match"]
            low, high = wilson_interval(round(metric["value"] * row["n"]), row["n"])
            assert (metric["low"], metric["high"]) == (low, high)
            assert f"{metric['value']:.3f} ({low:.2f}-{high:.2f}), n {row['n']}" in printed
            assert f"{row['distance'][0]:,} to {row['distance'][1]:,}" in page
    by_length = {row["side"]: row["by_length"] for row in model["tasks"]["passkey_depth"]["by_reach"]}
    assert sum(row["n"] for side in (INSIDE, PARTLY, OUTSIDE) for row in by_length.get(side, [])) == 10
    assert "inside the reach of one layer" in printed and "of these, beyond all layers" in printed
    assert "one layer reaches 1 block, 64 tokens, before its block of 64; 2 layers together 128" in page


def test_a_side_tells_the_distance_of_the_farthest_needles():
    """The minimum and the maximum over samples of the distance to a sample's farthest needle, also by length."""
    sample = lambda length, distances: Sample("t", str(length), "", "", length, 0, "", "", [], "", {"match": 1.0},
                                              {"length": length, "distances": distances, "reach": OUTSIDE})  # fmt: skip
    (row,) = by_reach([sample(30, [2, 6]), sample(20, [13, 4]), sample(30, [9, 9])], 4)
    assert (row["side"], row["n"], row["distance"]) == (OUTSIDE, 3, [6, 13])
    assert [(part["length"], part["n"]) for part in row["by_length"]] == [(20, 1), (30, 2)]


def test_models_that_reach_differently_have_their_own_n():
    """A side without needles shows `n 0`; notes name the models with each reach."""
    sample = lambda i, side: Sample("t", str(i), str(i), "", 9, 0, "", "", [], "", {"match": float(i < 2)},
                                    {"length": 9, "distances": [i], "reach": side})  # fmt: skip
    task, models = Task("t", "generate", list, {"match": lambda said, targets: 1.0}), []
    for name, sides, segments in (("near", [OUTSIDE, BEYOND] * 2, 0), ("far", [INSIDE] * 4, 3)):
        reach = Reach(4, segments, (0,))
        told = summarize(task, [sample(i, side) for i, side in enumerate(sides)], [], 4) | {"reach": reach.as_dict()}
        models.append({"name": name, "tasks": {"t": told}})
    report.print_task(models, "t", Console(file=(text := io.StringIO()), width=300))
    lines = {line.strip("│┃ ").split("│")[0].strip(): line for line in text.getvalue().splitlines()}
    cells = lambda label: [cell.strip() for cell in lines[label].strip("│").split("│")[3:]]
    assert cells("inside the reach of one layer") == ["n 0", "0.500 (0.15-0.85), n 4"]
    assert cells("outside it") == ["0.500 (0.15-0.85), n 4", "n 0"]
    assert cells("of these, beyond all layers") == ["0.500 (0.09-0.91), n 2", "n 0"]
    words = " ".join(text.getvalue().split())
    assert "near: one layer reaches 0 blocks, 0 tokens" in words and "far: one layer reaches 3 blocks" in words


def test_a_truncated_example_is_on_no_side():
    """The truncated part may contain the needle."""
    example = Example("a", tokens(" q"), tokens("<yes>" + "x" * 30), targets=("yes",), needles=((1, 3),))
    task = Task("t", "generate", lambda: [example], {"match": lambda said, targets: 1.0}, max_new_tokens=3)
    (cut,) = Runner(Parrot(), CODEC, longest=20, reach=Reach(4, 1, (0,))).run(task)
    (whole,) = Runner(Parrot(), CODEC, reach=Reach(4, 1, (0,))).run(task)
    assert cut.truncated and "reach" not in cut.about
    assert whole.about["distances"] == [35] and whole.about["reach"] == BEYOND
