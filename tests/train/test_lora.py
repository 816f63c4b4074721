"""Training with LoRA and prompt tuning: what changes, what is saved, and what it starts and resumes from."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from famjax.cli.main import main
from famjax.config import ConfigError, LoraConfig, OptimizerConfig, PassKeyConfig, TrainConfig
from famjax.infer.load import load
from famjax.nn.weights import create, parameter_shapes, parameters
from famjax.storage import base, steps
from famjax.storage.arrays import leaves
from famjax.storage.checkpoint import load_model, save_model
from famjax.storage.pieces import Weights
from famjax.train import initial, optim
from famjax.train.loop import train
from famjax.train.watching.metrics import MetricsLog
from tests import tiny
from tests.tiny import assert_close

PLAIN = tiny.config(
    vocab_size=128, block_size=32, memory_segments=0, fam_length=3, random_state_passing=0.5, param_dtype="bfloat16"
)
LORA = LoraConfig(rank=2, dropout=0.25)
MODEL = dataclasses.replace(PLAIN, lora=LORA)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A whole model, in bfloat16."""
    folder = tmp_path_factory.mktemp("source") / "base"
    save_model(folder, PLAIN, tiny.parameters(PLAIN, seed=5))
    return folder


def run(model_dir, source, **changes) -> None:
    given = {"model": MODEL, "sequence_length": 320, "batch_size": 2, "steps": 4, "log_period": 1}
    given |= {"passkey": PassKeyConfig(stages=(1,), text_tokens=8), "diagnostics_period": 0, "checkpoint_period": 2}
    given |= {"optimizer": OptimizerConfig(learning_rate=0.01, schedule="constant", warmup_steps=0)}
    train(TrainConfig(model_dir=str(model_dir), initial_checkpoint=str(source), **(given | changes)), "# settings\n")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, source):
    """Four steps of LoRA on that model."""
    folder = tmp_path_factory.mktemp("tuned") / "lora"
    run(folder, source)
    return folder


def weights(model_dir) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in leaves(load_model(model_dir, parameter_shapes)[1]).items()}


def losses(model_dir) -> list[float]:
    return [json.loads(line)["loss"] for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


def changed(model_dir, source) -> set[str]:
    """Returns the weights that differ from the source's, or that it lacks."""
    before, after = weights(source), weights(model_dir)
    return {path for path in after if path not in before or (before[path] != after[path]).any()}


def test_lora_and_the_prompt_are_trained_and_nothing_else(source, tuned):
    """After four steps on a bfloat16 base, the prompt and every A and B have changed, and all other weights are
    unchanged bit for bit; LoRA and the prompt are float32."""
    found = changed(tuned, source)
    pairs = {path for path in leaves(parameter_shapes(MODEL)) if path.startswith("layers/lora/")}
    assert len(pairs) == 14 and found == pairs | {"fam/prompt"}
    after = weights(tuned)
    assert all((after[path] != 0).any() for path in pairs if path.endswith("/b"))
    assert {str(after[path].dtype) for path in found} == {"float32"}
    assert {str(after[path].dtype) for path in after if path not in found} == {"bfloat16"}


@pytest.mark.slow
def test_prompt_tuning_trains_the_prompt_alone(source, tmp_path):
    """Without LoRA: one weight changes, one is saved, and the whole model is loaded."""
    optimizer = OptimizerConfig(trained="prompt", learning_rate=0.01, warmup_steps=0)
    run(tmp_path / "m", source, model=PLAIN, optimizer=optimizer, steps=2)
    assert changed(tmp_path / "m", source) == {"fam/prompt"}
    assert stored(tmp_path / "m", 2) == {"fam/prompt"}


def test_what_is_new_is_told_in_a_line(source):
    """LoRA's arrays are one entry, also in a dry run; they keep their initial values."""
    told = "new: LoRA of rank 2, 14 arrays"
    assert initial.check(source, MODEL).endswith("new, or partly new: LoRA of rank 2, 14 arrays")
    fresh = parameters(create(MODEL))
    params, lines = initial.adopt(source, MODEL, fresh, parameter_shapes)
    assert lines.splitlines()[1:] == ["  taken: 12 of 26 arrays, 3,840 weights", f"  {told}"]
    jax.tree.map(np.testing.assert_array_equal, params["layers"]["lora"], fresh["layers"]["lora"])


def stored(model_dir, step) -> set[str]:
    """Returns the paths of the weights stored in a step itself."""
    about = json.loads((model_dir / "checkpoints" / str(step) / "weights" / "_METADATA").read_text())
    return {"/".join(key["key"] for key in entry["key_metadata"]) for entry in about["tree_metadata"].values()}


def test_a_checkpoint_holds_what_is_trained_and_where_the_rest_is(source, tuned):
    """Steps have LoRA and the prompt; base.json names the source's step. Loaded at once, and piece by piece."""
    pairs = {path for path in leaves(parameter_shapes(MODEL)) if path.startswith("layers/lora/")}
    for step in (2, 4):
        assert stored(tuned, step) == pairs | {"fam/prompt"}
    pointer = json.loads((tuned / "base.json").read_text())
    assert (pointer["path"], pointer["step"]) == (str(source), 0)
    whole, pieces = weights(tuned), Weights(tuned)
    assert pieces.shapes == {path: leaf.shape for path, leaf in whole.items()}
    for path, leaf in whole.items():
        np.testing.assert_array_equal(pieces.read(path), leaf)
        assert pieces.dtypes[path] == leaf.dtype
    np.testing.assert_array_equal(pieces.read("layers/attention/key", 1), whole["layers/attention/key"][1])
    with_less_fam, params = load_model(tuned / "checkpoints" / "2", parameter_shapes, fam_length=2)
    assert with_less_fam.memory.fam_length == 2 and params["fam"]["prompt"].shape == (2, 12)


def test_killed_and_resumed_is_the_same_training(source, tuned, tmp_path, monkeypatch):
    """Killed in the third step and resumed from a checkpoint at two: the same losses and weights, bit for bit, with
    dropout, whose draws are functions of (seed, step)."""
    original = MetricsLog.write

    def killed(self, step, values):
        if step == 3:
            raise KeyboardInterrupt
        original(self, step, values)

    monkeypatch.setattr(MetricsLog, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", source)
    monkeypatch.undo()
    run(tmp_path / "cut", source)
    assert losses(tmp_path / "cut") == losses(tuned)
    one, other = weights(tmp_path / "cut"), weights(tuned)
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def test_the_first_loss_is_the_bases(source, tuned, tmp_path):
    """Without dropout, before any step, LoRA's loss is that of the plain model; with dropout too, since B = 0."""
    run(tmp_path / "plain", source, model=PLAIN, steps=1)
    assert losses(tmp_path / "plain")[0] == losses(tuned)[0]
    assert stored(tmp_path / "plain", 1) == set(leaves(parameter_shapes(PLAIN)))  # all weights are saved
    assert not (tmp_path / "plain" / "base.json").exists()


def copied(tuned, tmp_path, **pointer):
    folder = shutil.copytree(tuned, tmp_path / "copy")
    values = json.loads((folder / "base.json").read_text()) | pointer
    (folder / "base.json").write_text(json.dumps(values))
    return folder


def test_a_base_that_is_gone_or_another_one_is_refused(source, tuned, tmp_path):
    """One line names the base and what to do, wherever the model is read. A moved base is found by its new path; other
    weights at that path are not the same base."""
    gone = copied(tuned, tmp_path, path=str(tmp_path / "moved"))
    for read in (load, Weights, lambda folder: run(folder, source, steps=6)):
        with pytest.raises(ConfigError, match=r"moved.* does not exist; .*base\.json"):
            read(gone)
    shutil.copytree(source, tmp_path / "moved")
    before, after = weights(tuned), weights(gone)
    for path in before:
        np.testing.assert_array_equal(before[path], after[path])
    shutil.rmtree(tmp_path / "moved")
    save_model(tmp_path / "moved", PLAIN, tiny.parameters(PLAIN, seed=6))
    for read in (load, Weights):
        with pytest.raises(ConfigError, match="has other weights than those that .*copy was trained on"):
            read(gone)
    (gone / "base.json").write_text('{"path": 3}')
    with pytest.raises(ConfigError, match=r"base\.json is damaged"):
        load(gone)


def test_a_damaged_base_is_told_apart_from_a_damaged_step(tuned, source, tmp_path):
    """A truncated file of the base is named; no older step is tried."""
    broken = shutil.copytree(source, tmp_path / "broken")
    folder = copied(tuned, tmp_path, path=str(broken))
    largest = max((broken / "checkpoints" / "0" / "weights").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=f"base.*{largest.name} is missing or damaged"):
        load(folder)


@pytest.mark.slow
def test_a_second_stage_follows_the_first(tuned, tmp_path):
    """A training that starts from a step of a LoRA training keeps its pairs, saves its own and refers to that step,
    which refers to the base; another rank, or none, is refused with the remedy."""
    before = weights(tuned / "checkpoints" / "2")
    run(tmp_path / "second", tuned / "checkpoints" / "2", steps=1, optimizer=OptimizerConfig(learning_rate=0.0))
    found = base.read(tmp_path / "second")
    assert (found.path, found.step) == (tuned, 2)
    after = weights(tmp_path / "second")
    for path in before:
        np.testing.assert_array_equal(before[path], after[path])
    for model in (PLAIN, dataclasses.replace(MODEL, lora=LoraConfig(rank=3))):
        with pytest.raises(ConfigError, match="has LoRA of rank 2.*export-hf"):
            run(tmp_path / "other", tuned, model=model)
    assert not (tmp_path / "other").exists()


def test_lora_may_begin_in_an_earlier_layer_but_not_in_a_later_one(source, tmp_path):
    """Trained in layer 1 alone, the pairs of layer 0 are unused: a second stage that has them starts from the same
    function, and trains them. One that begins later would lose trained pairs."""
    late = dataclasses.replace(MODEL, lora=dataclasses.replace(LORA, first_layer=1))
    run(tmp_path / "late", source, model=late, steps=2)
    tokens = tiny.tokens(MODEL, 1, 40)
    scores = lambda folder: np.asarray(jax.jit(lambda model: model.logits(model(tokens)[0]))(load(folder)))
    still = OptimizerConfig(learning_rate=0.0)
    run(tmp_path / "all", tmp_path / "late", steps=1, optimizer=still)
    assert_close(scores(tmp_path / "all"), scores(tmp_path / "late"))
    assert (scores(tmp_path / "all") != scores(source)).any()
    assert initial.check(tmp_path / "late", MODEL).endswith("; changed: LoRA from layer 0, was 1")
    with pytest.raises(ConfigError, match="its first_layer or an earlier one"):
        initial.check(tmp_path / "all", late)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_the_optimizer_knows_no_frozen_weight(name):
    """Every array of its state belongs to LoRA or to FAM."""
    config = TrainConfig(model=MODEL, optimizer=OptimizerConfig(name=name))
    trained, frozen = optim.split_frozen(config.tuning, tiny.parameters(MODEL))
    state = optim.optimizer(config.optimizer, 10).init(trained)
    paths = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(state) if leaf.ndim]
    assert paths and all("['lora']" in path or "['fam']" in path for path in paths)
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(tiny.parameters(PLAIN))) - 1


def test_which_weights_are_trained():
    """auto follows LORA_RANK; patterns take precedence."""
    of = lambda model, **settings: TrainConfig(model=model, optimizer=OptimizerConfig(**settings)).tuning
    assert (of(PLAIN).trained, of(MODEL).trained, of(MODEL, trained="all").trained) == ("all", "lora", "all")
    frozen = lambda config, path: config.settings_of(path)["frozen"]
    both = of(MODEL, parameters={"*/scale": {"frozen": False}, "layers/lora/key/*": {"frozen": True}})
    expected = {"final_norm/scale": False, "layers/lora/query/a": False, "layers/lora/key/a": True, "embedding": True}
    assert {path: frozen(both, path) for path in expected} == expected
    prompt = of(MODEL, trained="prompt")
    assert frozen(prompt, "layers/lora/query/a") and not frozen(prompt, "fam/prompt")


@pytest.mark.slow
def test_a_pattern_that_trains_more_saves_more(source, tmp_path):
    """Norms in addition to LoRA: they are trained, saved and loaded."""
    optimizer = OptimizerConfig(learning_rate=0.1, warmup_steps=0, parameters={"*/scale": {"frozen": False}})
    run(tmp_path / "m", source, steps=1, optimizer=optimizer)
    moved = {"final_norm/scale", "layers/attention_norm/scale", "layers/ff_norm/scale"}
    assert moved <= stored(tmp_path / "m", 1) and moved <= changed(tmp_path / "m", source)
    assert steps.latest_step(tmp_path / "m") == 1


def test_an_imported_gate_is_opened_and_saved(tmp_path, source):
    """From a model without a gate, such as an older import: new, closed, half open in the checkpoint between, open at
    the end, and loaded. Training further without the gate is refused."""
    gated = dataclasses.replace(MODEL, memory=dataclasses.replace(MODEL.memory, fam_gate=True))
    run(tmp_path / "opened", source, model=gated, fam_opening_steps=4, distillation=0.5)
    at = lambda step: load_model(tmp_path / "opened" / "checkpoints" / str(step), parameter_shapes)[1]
    gates = [at(step)["fam"]["gate"] for step in (2, 4)]
    np.testing.assert_array_equal(gates[0], np.full((2, 2), 0.5))
    np.testing.assert_array_equal(gates[1], np.ones((2, 2)))
    lines = [json.loads(line) for line in (tmp_path / "opened" / "metrics.jsonl").read_text().splitlines()]
    assert [line["fam_gate"] for line in lines] == [0.25, 0.5, 0.75, 1.0]
    assert all(line["distillation_loss"] > 0 for line in lines)
    with pytest.raises(ConfigError, match="has a gate for FAM: set fam_gate to True"):
        initial.check(tmp_path / "opened", MODEL)


@pytest.mark.parametrize("fam", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_an_export_has_the_memory_of_the_model_and_not_of_its_base(fam, tmp_path):
    """A base with gated updates. Fine-tuned without FAM, the export has no memory; with a frozen one, it has the
    base's."""
    gated = dataclasses.replace(PLAIN, memory=dataclasses.replace(PLAIN.memory, fam_update="gated"))
    params = tiny.parameters(gated, seed=5)
    save_model(tmp_path / "base", gated, params)
    model = dataclasses.replace(gated, lora=LORA, memory=dataclasses.replace(gated.memory, fam_length=fam))
    frozen = {path: {"frozen": True} for path in ("fam/*", "layers/memory/*") if fam}
    optimizer = OptimizerConfig(learning_rate=0.01, schedule="constant", warmup_steps=0, parameters=frozen)
    run(tmp_path / "m", tmp_path / "base", model=model, optimizer=optimizer, steps=1)
    assert main(["export-hf", str(tmp_path / "m"), str(tmp_path / "out")]) == 0
    file = tmp_path / "out" / "fam.safetensors"
    assert file.exists() == bool(fam)
    if fam:
        found = safetensors.numpy.load_file(file)
        gate = {f"layers.memory.{name}": leaf for name, leaf in params["layers"]["memory"].items()}
        assert found.keys() == {"fam_prompt", *gate}
        jax.tree.map(np.testing.assert_array_equal, found, gate | {"fam_prompt": params["fam"]["prompt"]})
