"""A training sharded over a mesh of eight devices equals that of one device.

`sharded_runs.py` computes on eight simulated devices in a child process; its results are compared here.
"""

import dataclasses
import json
import math
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

from famjax.config import TrainConfig
from famjax.infer.load import load
from famjax.train.loop import train
from tests import eight_devices, tiny
from tests.tiny import assert_close
from tests.train import sharded_runs
from tests.train.sharded_runs import CASES, LENGTH, SLOW_CASES, STEPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder with the results of the runs on eight devices."""
    path = tmp_path_factory.mktemp("sharded")
    errors = eight_devices.run("tests.train.sharded_runs", path)
    # The compiler's warning if it can only reshard an array by gathering all of it on every device.
    assert "Involuntary full rematerialization" not in errors
    return path


@pytest.fixture(scope="module")
def results(folder):
    with open(folder / "results.pickle", "rb") as file:
        return pickle.load(file)


@pytest.fixture(scope="module")
def slow_results(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded")
    errors = eight_devices.run("tests.train.sharded_runs", path, "slow")
    assert "Involuntary full rematerialization" not in errors
    with open(path / "slow.pickle", "rb") as file:
        return pickle.load(file)


def assert_trees_close(actual, desired, relative):
    jax.tree.map(lambda a, b: assert_close(a, b, relative), actual, desired)


ALL = [*CASES, *SLOW_CASES]


def parts_by_name(tree):
    """Returns {path: the shape of one device's shard, or None}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None or isinstance(x, tuple))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_the_cases_cover_what_they_should(results):
    """Every mesh with FAM and with BSWA, with and without microbatches, every kind of heads; eight devices."""
    assert results["devices"] == 8
    assert all(math.prod(mesh) == 8 for _, mesh, _ in ALL)
    for mesh in ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)):
        on_mesh = [(model.split()[0], microbatches) for model, sizes, microbatches in ALL if sizes == mesh]
        assert {memory for memory, _ in on_mesh} >= {"fam", "bswa"}
        assert {microbatches for _, microbatches in on_mesh} == {1, 2}
    assert {model.split()[1] for model, _, _ in ALL} == {"multi-head", "grouped", "multi-query"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_equals_that_of_one_device(results, case):
    """Losses of ten steps, gradients of the first, weights after the last, the passed FAM, and the memories of streams
    equal those of one device, which takes its batch whole and its logits unchunked. Documents, lengths and loss weights
    differ from row to row."""
    equals_one_device(results, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES, ids=str)
def test_training_on_more_meshes_equals_that_of_one_device(slow_results, case):
    equals_one_device(slow_results, case)


def equals_one_device(results, case):
    """All results of a training, with a step that is compiled once: its results have the shardings of its arguments."""
    got, one = results[case], results[case[0]]
    assert got["compilations"] == 1
    start = tiny.parameters(sharded_runs.model_config(case[0]))
    # With a gate the base is frozen, and FAM's prompt and LoRA are trained.
    moved = (lambda params: params["fam"]["prompt"]) if case[0].startswith("gate") else (lambda p: p["embedding"])
    assert len(one["loss"]) == STEPS and np.abs(moved(one["params"]) - moved(start)).max() > 0.01
    if (perturbed := results.get((case[0], "perturbed"))) is not None:
        for name in ("loss", "z_loss", "gradient_norm"):
            tiny.assert_equal_up_to_rounding(got[name], one[name], [other[name] for other in perturbed])
        for name in ("gradient", "params", *["passed_fam"] * bool(one["passed_fam"].size)):
            leaves = [jax.tree.leaves(tree[name]) for tree in (got, one, *perturbed)]
            for actual, desired, *others in zip(*leaves, strict=True):
                tiny.assert_equal_up_to_rounding(actual, desired, others)
        return
    assert_close(got["loss"], one["loss"], 1e-5)
    assert_close(got["z_loss"], one["z_loss"], 1e-5)
    assert_close(got["gradient_norm"], one["gradient_norm"], 1e-5)
    assert_trees_close(got["gradient"], one["gradient"], 5e-5)
    assert_trees_close(got["params"], one["params"], 2e-5)
    np.testing.assert_array_equal(got["correct"], one["correct"])
    assert_close(got["passed_fam"], one["passed_fam"], 1e-5)
    assert got["passed_updates"] == one["passed_updates"]
    assert (got["memory"] is not None) == case[0].startswith("stream")
    assert_trees_close(got["memory"], one["memory"], 2e-5)


def test_weights_and_their_moments_are_cut_by_the_rules(results):
    """Shapes of one device's shards; axes that do not divide over `tensor` are replicated."""
    parts = results["fam grouped", (2, 2, 2), 2]["parts"]
    assert parts["embedding"] == (16, 8)  # [V 32, D 16]: tensor 2, fsdp 2
    assert parts["layers"]["attention"]["key"] == (2, 8, 1, 4)  # [L, D 16, K 2, H]
    assert parts["layers"]["feed_forward"]["down"] == (2, 16, 8)  # [L, E 32, D 16]
    assert parts["fam"]["prompt"] == (2, 8)
    parts = results["bswa multi-query", (1, 2, 4), 2]["parts"]
    assert parts["layers"]["attention"]["query"] == (2, 8, 1, 4)
    assert parts["layers"]["attention"]["key"] == (2, 8, 1, 4)  # one key/value head: replicated
    for case in CASES:
        parts, moments = (parts_by_name(results[case][kind]) for kind in ("parts", "moment_parts"))
        frozen = {name for name, part in moments.items() if part is None}
        assert moments == parts | dict.fromkeys(frozen)
        assert bool(frozen) == case[0].startswith("gate")
    pairs = results["gate grouped", (2, 2, 2), 2]["parts"]["layers"]["lora"]
    # Both mesh axes shard every A or B that has heads or the inner width; fsdp shards the others.
    assert (pairs["query"]["a"], pairs["query"]["b"]) == ((2, 8, 3), (2, 3, 2, 2))  # [L, D 16, r], [L, r, 4, H 4]
    assert (pairs["output"]["a"], pairs["output"]["b"]) == ((2, 2, 2, 3), (2, 3, 8))
    assert (pairs["up"]["a"], pairs["up"]["b"]) == ((2, 8, 3), (2, 3, 8))  # [L, r, E 32]: tensor 2 and fsdp 2
    assert (pairs["down"]["a"], pairs["down"]["b"]) == ((2, 8, 3), (2, 3, 8))


def test_weights_are_created_in_parts_and_do_not_depend_on_the_mesh(results):
    """The same random weights on 1 and on 2x2x2 devices, bit for bit; each device initialises its shards only."""
    (one, whole), (cut, parts) = results["created"]
    jax.tree.map(np.testing.assert_array_equal, cut, one)
    assert whole["embedding"] == (32, 16) and parts["embedding"] == (16, 8)


def test_memory_is_cut_by_rows_and_heads(results):
    """A text in two calls, with the memory sharded between them: outputs and memory equal those of one device."""
    pairs, shapes, parts = results["memory"]
    for got, one in pairs:
        assert_close(got, one, 1e-5)
    assert shapes.layers.k == (2, 8, 2, 2, 4, 4) and parts.layers.k == (2, 2, 2, 1, 4, 4)  # [L, B, R, K, S, H]
    assert shapes.layers.fam == (2, 8, 1, 2, 16) and parts.layers.fam == (2, 2, 1, 2, 16)  # [L, B, P, F, D]
    assert parts.position == (2,)


def test_the_fused_kernel_runs_on_every_device_s_part(results):
    """Rows and heads sharded over 2x2x2: outputs and gradients of queries, keys, values and FAM equal `attend`'s."""
    for got, one in results["fused"]:
        assert_trees_close(got, one, 1e-5)


def test_weights_are_gathered_and_gradients_summed_once_a_layer(results):
    """With FAM's scan over three blocks in a layer, and the loss over chunks, every collective runs at most once for
    each of the two layers."""
    found = results["communication"]
    layers = sharded_runs.model_config("fam multi-head").num_layers
    assert LENGTH // 4 > layers == 2 and {runs for _, _, runs in found} == {1, layers}
    assert sum(kind.startswith("all-gather") and runs == layers for kind, _, runs in found) >= 7
    assert sum(kind.startswith(("reduce-scatter", "all-reduce")) and runs == layers for kind, _, runs in found) >= 7


def test_what_is_told_of_a_training_does_not_depend_on_the_mesh(results):
    """The memory's diagnostics on 2x2x2 devices equal one device's, and so does the layer that a bad step names."""
    (one, said), (cut, said_cut) = results["looked at"]
    assert one.keys() == cut.keys() and len(one) == 5
    for name in one:
        assert_close(cut[name], one[name], 1e-5)
    assert said_cut == said and "layer 1 is the first" in said


def test_checkpoints_move_between_meshes(results):
    """Weights, optimizer state and passed FAM, written on 2x2x2, are the same bit for bit on 1x2x4 and on 8x1x1, with
    the shardings of those meshes."""
    written, found = results["moved"]
    for read, placed in found:
        assert placed
        jax.tree.map(np.testing.assert_array_equal, read, written)


def test_a_checkpoint_of_eight_devices_is_read_where_there_is_one(folder, results):
    """`famjax eval` and other verbs name no mesh."""
    assert len(jax.devices()) == 1
    written, _ = results["moved"]
    model = load(folder / "moved")
    np.testing.assert_array_equal(model.embedding[...], written[0]["embedding"])


def test_a_training_continues_on_another_mesh(folder, tmp_path):
    """Two steps on 2x2x2, two more on one device: the losses of four steps on one device."""
    straight = TrainConfig(model_dir=str(tmp_path / "straight"), **sharded_runs.RESUMED)
    train(straight, "# run\n")
    train(dataclasses.replace(straight, model_dir=str(folder / "resumed")), "# run\n")
    logs = [Path(path, "metrics.jsonl").read_text() for path in (folder / "resumed", straight.model_dir)]
    cut, whole = ([json.loads(line) for line in log.splitlines()] for log in logs)
    assert [line["step"] for line in cut] == [1, 2, 3, 4]
    assert_close([line["loss"] for line in cut], [line["loss"] for line in whole], 1e-5)
    assert {line["compilations"] for line in cut + whole} == {1}


def test_of_the_24b_model_no_large_array_is_whole_anywhere(results):
    """On fsdp 8 every weight and every moment of Adam above 1 MiB is sharded at least eight ways. Nothing is computed;
    24.5e9 weights and 1.05e9 of embedding (paper, Table 3)."""
    found, total = results["large"]
    assert total == pytest.approx(24.5e9 + 1.05e9, rel=2e-3)
    adamw = {path: ways for path, (size, ways) in found.items() if path.startswith("adamw") and size > 2**20}
    assert len(adamw) >= 3 * 8
    assert min(adamw.values()) >= 8
    # Adafactor's means over the axis sharded by fsdp are replicated, and small: 7 MiB for 7.5e9 weights.
    whole = [size for path, (size, ways) in found.items() if size > 2**20 and ways < 8]
    assert max(whole, default=0) <= 7 * 2**20
