"""Outputs of a training: metrics, events, profiles, a summary; and they do not change the training."""

import dataclasses
import io
import math
import mmap
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from famjax.config import (
    BabiConfig,
    ConfigError,
    DataConfig,
    EvalConfig,
    LoraConfig,
    OptimizerConfig,
    PassKeyConfig,
    TrainConfig,
)
from famjax.data.vocabulary import ByteVocabulary
from famjax.evals.during_training import evaluation
from famjax.infer import scoring
from famjax.infer.load import load
from famjax.mesh.devices import make_mesh
from famjax.nn.weights import parameters
from famjax.process import memory
from famjax.storage import arrays
from famjax.train import optim
from famjax.train.loop import train
from famjax.train.watching.metrics import TensorBoard
from famjax.train.watching.norms import group_norms, group_of, squares
from famjax.train.watching.progress_line import ProgressLine, clock
from famjax.train.watching.summary import summary
from famjax.train.watching.watch import Watch
from tests import tiny
from tests.train.test_loop import MODEL, metrics, run, settings

EVALUATION = EvalConfig(filler_blocks=(1, 2), alignments=2, batch_size=2)
EVALUATED = {f"eval/passkey/exact_match_at_{n}_blocks" for n in (1, 2)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Six steps without any monitoring."""
    folder = tmp_path_factory.mktemp("watch") / "plain"
    run(folder, diagnostics_period=0)
    return folder


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> tuple[Path, list[int], list[int]]:
    """The same six steps with all monitoring: the folder, the steps of evaluations, and the number of programs compiled
    for the evaluation by then."""
    folder, steps, programs = tmp_path_factory.mktemp("watch") / "watched", [], []
    score = evaluation(EVALUATION, ByteVocabulary(), MODEL.memory.block_size)

    def evaluate(model, step):
        values = score(model, step)
        steps.append(step)
        programs.append(scoring._score_window._cache_size())
        return values

    config = settings(folder, diagnostics_period=3, eval_period=2, evaluation=EVALUATION, profile_steps=(2, 3))
    train(config, "# settings\n", evaluate)
    return folder, steps, programs


def events(model_dir: Path) -> list[list[Event]]:
    """Returns the events of each file, oldest first: TFRecord's frames are length, checksum, event, checksum."""
    files = []
    for path in sorted((model_dir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at, found = path.read_bytes(), 0, []
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
        files.append(found)
    return files


def scalars(found: list[Event], tag: str) -> dict[int, float]:
    return {event.step: v.simple_value for event in found for v in event.summary.value if v.tag == tag}


def test_looking_changes_nothing(plain, watched):
    """Diagnostics, evaluation and a profile: equal losses and gradient norms, bit for bit, and equal weights; the step
    is compiled once, and so is the evaluation."""
    folder, steps, programs = watched
    alone, seen = metrics(plain), metrics(folder)
    for name in ("step", "loss", "gradient_norm", "exact_match"):
        assert [line[name] for line in seen] == [line[name] for line in alone]
    jax.tree.map(np.testing.assert_array_equal, *(parameters(load(path)) for path in (plain, folder)))
    assert {line["compilations"] for line in alone + seen} == {1}
    assert steps == [2, 4, 6] and programs[0] == programs[1] == programs[2] > 0


def test_what_a_line_of_metrics_has(watched):
    """Every line has norms by group, which add up to the global norm; diagnostics have one number per layer, and the
    evaluation its names; memory, tokens per second. Values are valid JSON: no NaN."""
    folder, _, _ = watched
    lines = metrics(folder)
    for line in lines:
        of_groups = [line[f"gradient_norm/{g}"] for g in ("embedding", "attention", "feed_forward", "norms", "fam")]
        assert math.hypot(*of_groups) == pytest.approx(line["gradient_norm"], rel=1e-5)
        assert line["host_memory_gib"] > 0.05 and line["tokens_per_second"] > 0 and "mfu" not in line
    with_eval = [line.keys() >= EVALUATED for line in lines]
    assert with_eval == [False, True, False, True, False, True]
    looked = [len(line.get("memory/fam_norm", [])) for line in lines]
    assert looked == [0, 0, 2, 0, 0, 2]
    assert "NaN" not in (folder / "metrics.jsonl").read_text()


def test_tensorboard_has_the_same_numbers(watched):
    """Scalars by step; a list becomes one per layer."""
    folder, _, _ = watched
    (found,) = events(folder)
    for tag in ("loss", "update_norm/fam", "learning_rate"):
        np.testing.assert_allclose(
            list(scalars(found, tag).values()), [line[tag] for line in metrics(folder)], rtol=1e-6
        )
    last = metrics(folder)[-1]
    assert scalars(found, "memory/fam_norm/layer_01")[6] == pytest.approx(last["memory/fam_norm"][1], rel=1e-6)
    assert list(scalars(found, "eval/passkey/exact_match_at_2_blocks")) == [2, 4, 6]


def test_a_profile_and_a_summary_are_there(watched):
    """The profiler's files, written once; and the table that was printed."""
    folder, _, _ = watched
    assert len(list((folder / "profile").rglob("*.xplane.pb"))) == 1
    text = (folder / "summary.txt").read_text()
    total = sum(leaf.size for leaf in jax.tree.leaves(tiny.parameters(MODEL)))
    assert f"weights       {total:,}" in text
    assert "layers/attention/query" in text and "2 x 12 x 2 x 4" in text
    # Float32 weights, and two moments of Adam's with two counts of steps.
    assert f"weights {4 * total / 1024:.1f} KiB, optimizer (adamw) {(8 * total + 8) / 1024:.1f} KiB" in text


def test_how_many_layers_have_fam():
    """The pattern +-- of seven layers is +--+--+: three of them. If all layers have it, the count is left out."""
    F = MODEL.memory.fam_length
    for which, said in (
        ("+--", f"{F} feedback activations a layer in 3 of 7 layers; "),
        ("all", f"{F} feedback activations a layer; "),
    ):
        model = dataclasses.replace(tiny.with_memory(MODEL, fam_layers=which), num_layers=7)
        config = TrainConfig(model_dir="none", model=model, batch_size=1)
        assert said in summary(config, optim.optimizer(config.tuning, 1), make_mesh())


def test_settings_without_effect_are_named():
    """With their reason: those of FAM in a twin without it, and those of documents that continue, if none does."""
    model = tiny.config(memory_segments=0, fam_length=0, random_state_passing=0.0, fam_noise=0.5, stop_gradient=True)
    config = TrainConfig(model_dir="none", model=model, batch_size=1, carried_fam_rms=1.5)
    text = summary(config, optim.optimizer(config.tuning, 1), make_mesh())
    assert [line for line in text.splitlines() if line.startswith("no effect")] == [
        "no effect     stop_gradient True: memory_segments is 0: there is no segment",
        "no effect     fam_noise 0.5: fam_length is 0: there is no FAM",
        "no effect     carried_fam_rms 1.5: no document continues in the next step",
    ]


def test_settings_of_streams_without_any_are_named():
    """Those of the pass key, in a training on it without streams alone."""
    keys = PassKeyConfig(stream_blocks=99, stream_told_again=0.5)
    config = TrainConfig(model_dir="none", model=tiny.config(), passkey=keys)
    why = "PassKeyConfig.stream_share is 0"
    assert config.without_effect.items() >= {("stream_blocks 99", why), ("stream_told_again 0.5", why)}
    for other in ({"passkey": dataclasses.replace(keys, stream_share=0.5)}, {"task": "text"}):
        assert why not in dataclasses.replace(config, **other).without_effect.values()


BEHIND = PassKeyConfig(straddle_behind=4)


@pytest.mark.parametrize(
    ("given", "on", "said"),
    [
        ({"passkey": BEHIND}, {"passkey": dataclasses.replace(BEHIND, straddle_share=0.1)},
         ("straddle_behind 4", "PassKeyConfig.straddle_share is 0")),
        ({"task": "babi", "babi": BabiConfig(straddle_behind=4)}, {"babi": BabiConfig()},
         ("straddle_behind 4", "BabiConfig.straddle_share is 0")),
        ({"carried_fam_share": 0.5}, {"carried_fam_rms": 1.0}, ("carried_fam_share 0.5", "carried_fam_rms is 0")),
        ({"task": "text", "data": DataConfig(repeat_weight=0.5)},
         {"data": DataConfig(repeat_weight=0.5, repeat_segment=8)}, ("repeat_weight 0.5", "repeat_segment is 0")),
    ],
)  # fmt: skip
def test_the_share_or_weight_of_what_is_off_is_named(given, on, said):
    """It is set, but scales something that is switched off; switching that on removes the line."""
    config = TrainConfig(model_dir="none", model=tiny.config(), **given)
    assert said in config.without_effect.items()
    assert said[0] not in dataclasses.replace(config, **on).without_effect


def test_pairs_of_layers_without_lora_do_not_count_as_trained():
    """With `first_layer` 1 of two layers, half of the pairs."""
    lora = LoraConfig(rank=2, projections=("query",), first_layer=1)
    config = TrainConfig(model_dir="none", model=dataclasses.replace(MODEL, lora=lora), batch_size=1)
    pairs = 2 * (12 * 2 + 2 * 2 * 4)  # width 12, two heads of 4
    text = summary(config, optim.optimizer(config.tuning, 1), make_mesh())
    prompt = MODEL.memory.fam_length * 12
    assert f"; {pairs // 2 + prompt:,} are trained ({pairs // 2:,} of LoRA are unused, in layers before 1)\n" in text
    whole = dataclasses.replace(config, model=dataclasses.replace(MODEL, lora=dataclasses.replace(lora, first_layer=0)))
    assert f"; {pairs + prompt:,} are trained\n" in summary(whole, optim.optimizer(whole.tuning, 1), make_mesh())


def test_trained_weights_in_bfloat16_are_reported():
    """They lose small updates. Frozen ones do not matter, nor does LoRA beside them, which is float32."""
    narrow = dataclasses.replace(MODEL, param_dtype="bfloat16")
    said = lambda model: summary(TrainConfig(model_dir="none", model=model), optim.optimizer(OptimizerConfig(), 1),
                                 make_mesh())  # fmt: skip
    assert "rounding      11 trained arrays in bfloat16, which loses changes below 1/512" in said(narrow)
    assert "rounding" not in said(MODEL)
    tuned = TrainConfig(model_dir="none", model=dataclasses.replace(narrow, lora=LoraConfig(rank=2)))
    assert "rounding" not in summary(tuned, optim.optimizer(tuned.tuning, 1), make_mesh())


def test_runs_of_one_second_write_files_of_their_own(tmp_path, monkeypatch):
    """tensorboardX names a file by the second; a quick resumption would overwrite the first run's events."""
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.5)
    for first_step in (0, 3):
        log = TensorBoard(tmp_path, first_step)
        log.write(first_step + 1, {"loss": float(first_step)})
        log.close()
    assert [scalars(found, "loss") for found in events(tmp_path)] == [{1: 0.0}, {4: 3.0}]


def test_a_run_from_the_beginning_hides_one_that_saved_nothing(tmp_path):
    """Killed before its first checkpoint, a training restarts at step 0: older files are hidden from step 1 on."""
    for _ in range(2):
        log = TensorBoard(tmp_path, 0)
        log.write(1, {"loss": 1.0})
        log.close()
    _, second = events(tmp_path)
    (purge,) = [event for event in second if event.HasField("session_log")]
    assert purge.step == 1 and purge.session_log.status == 1


def test_a_run_that_goes_on_repeats_no_step(plain, tmp_path, monkeypatch):
    """Killed in step 6 after a checkpoint at 3, with a line every second step: losses equal those of an uninterrupted
    run, means of two steps, although the line of step 4 averages over both runs; and TensorBoard hides what came after
    step 3 in the first run."""
    run(tmp_path / "straight", log_period=2, checkpoint_period=3, diagnostics_period=0)
    before = Watch.before

    def killed(self, step, state, batch):
        if step == 6:
            raise KeyboardInterrupt
        before(self, step, state, batch)

    monkeypatch.setattr(Watch, "before", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", log_period=2, checkpoint_period=3, diagnostics_period=0)
    monkeypatch.undo()
    run(tmp_path / "cut", log_period=2, checkpoint_period=3, diagnostics_period=0)
    straight, cut = metrics(tmp_path / "straight"), metrics(tmp_path / "cut")
    assert [line["step"] for line in cut] == [2, 4, 6]
    assert [line["loss"] for line in cut] == [line["loss"] for line in straight]
    every = [line["loss"] for line in metrics(plain)]
    assert [line["loss"] for line in straight] == pytest.approx(np.reshape(every, (3, 2)).mean(axis=1), rel=1e-12)
    first, second = events(tmp_path / "cut")
    assert list(scalars(first, "loss")) == [2, 4] and list(scalars(second, "loss")) == [4, 6]
    (purge,) = [event for event in second if event.HasField("session_log")]
    assert purge.step == 4 and purge.session_log.status == 1  # START: hides older files from this step on


def test_norms_by_group_are_those_of_their_weights():
    """Each group's norm is that of all its weights in one vector; squares of layers add up to it."""
    params = tiny.parameters(tiny.config(qk_norm=True, tie_embeddings=False))
    sums = jax.device_get(squares(params))
    assert sums["layers/feed_forward/up"].shape == (2,) and sums["embedding"].shape == ()
    weights = arrays.leaves(params)
    found = group_norms(sums)
    assert set(found) == {"embedding", "attention", "feed_forward", "norms", "fam"}
    for group, norm in found.items():
        members = np.concatenate([np.ravel(leaf) for path, leaf in weights.items() if group_of(path) == group])
        assert norm == pytest.approx(np.linalg.norm(members), rel=1e-6)
    assert group_of("layers/attention/query_norm/scale") == "norms" and group_of("unembedding") == "embedding"


def test_the_progress_line_without_a_terminal(capsys, monkeypatch):
    """Known values are formatted, a line is printed at intervals, and a last one; time left is estimated from the steps
    after the first, which compiled."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    line = ProgressLine("m", 0, 100)
    with line:
        for step, seconds in ((1, 60), (2, 61), (3, 62), (20, 79), (100, 159)):
            now[0] = seconds
            line.tick(step)
            line.show(step, {"loss": 1.2345, "tokens_per_second": 1234.5, "mfu": 0.412}, {"exact_match": 0.5, "odd": 3})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[1] == "m  step 20/100  loss 1.234  1,234 tokens/s  MFU 41.2%  exact match 0.50  odd 3  1:20 left"
    assert lines[2].startswith("m  step 100/100") and "left" not in lines[2]
    assert clock(3909) == "1:05:09"


def test_slow_steps_are_shown_between_logged_ones(capsys, monkeypatch):
    """Without a terminal a step of half a minute is shown, logged or not; the first one, which compiled, says nothing
    about the time left; quick steps are shown no more often than before; a silent line stays so."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    lines = ProgressLine("m", 0, 100), ProgressLine("other", 0, 100, silent=True)
    for step, seconds in ((1, 50), (2, 70), (3, 90), (4, 91), (5, 121)):
        now[0] = seconds
        for line in lines:
            line.tick(step)
            line.between(step, 1.5)
    assert capsys.readouterr().err.splitlines() == [
        "m  step 1/100  loss 1.5", "m  step 3/100  loss 1.5  32:20 left", "m  step 5/100  loss 1.5  28:06 left",
    ]  # fmt: skip
    now[0] = 122
    for line in lines:  # a logged step is shown, however short ago another one was
        line.tick(6)
        line.show(6, {"loss": 1.5, "tokens_per_second": 9.0}, {})
    assert capsys.readouterr().err == "m  step 6/100  loss 1.5  9 tokens/s  22:34 left\n"


def test_the_progress_line_shows_the_name_as_it_is(monkeypatch):
    """In rich's markup `[b]` would be a tag and disappear."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr("famjax.train.watching.progress_line.Console", lambda file: console)
    with ProgressLine("run [b] 1", 0, 10):
        pass
    assert "run [b] 1" in out.getvalue()


def test_memory_of_this_process_is_measured():
    """100 MiB more are measured."""
    before = memory.resident_bytes()
    with mmap.mmap(-1, 100 * 2**20) as block:  # new pages, not ones that were freed before
        block.write(b"x" * len(block))
        assert 90 * 2**20 < memory.resident_bytes() - before < 400 * 2**20


def test_an_evaluation_that_cannot_work_is_told_before_training():
    """The pass key needs ASCII."""
    small = TrainConfig(model_dir="m", model=tiny.config(), eval_period=2, sequence_length=8)
    with pytest.raises(Exception, match="vocab_size is 17; set EVAL_PERIOD to 0"):
        small.validate()


@pytest.mark.parametrize(("name", "value"), [
    ("memory_segments", 0), ("fam_length", 0), ("block_size", 8), ("dtype", "float32"), ("mesh", {"fsdp": 2}),
    ("part", "1/2"), ("again", True), ("model_dirs", ("other",)), ("output_dir", "results"),
])  # fmt: skip
def test_an_evaluation_takes_the_model_as_it_is_trained(name, value):
    """Settings of `famjax eval` that an evaluation during training ignores are refused."""
    model = dataclasses.replace(tiny.config(), vocab_size=128)
    config = TrainConfig(model_dir="m", model=model, eval_period=2, sequence_length=8)
    config.validate()
    evaluation = dataclasses.replace(config.evaluation, **{name: value})
    with pytest.raises(ConfigError, match=f"in_training/EvalConfig.{name} has no effect"):
        dataclasses.replace(config, evaluation=evaluation).validate()


def test_an_evaluation_has_keys_as_long_as_the_trainings():
    """Other keys would be another task, whose numbers say nothing about the training."""
    model = dataclasses.replace(tiny.config(), vocab_size=128)
    keys = PassKeyConfig(key_digits=7)
    config = TrainConfig(model_dir="m", model=model, eval_period=2, sequence_length=8, passkey=keys)
    with pytest.raises(ConfigError, match="evaluates keys of 5 digits, but those of the training have 7 .*=7 too"):
        config.validate()
    dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, key_digits=7)).validate()
    dataclasses.replace(config, eval_period=0).validate()
