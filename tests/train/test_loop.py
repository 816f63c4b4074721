"""The training as a user sees it: files, progress, and resuming."""

import dataclasses
import json

import numpy as np
import pytest

from famjax.config import ConfigError, OptimizerConfig, PassKeyConfig, TrainConfig
from famjax.infer.load import load
from famjax.storage import steps
from famjax.storage.checkpoint import save_model
from famjax.train.loop import train
from famjax.train.watching.metrics import MetricsLog
from tests import slow, tiny
from tests.train import beginning

MODEL = tiny.config(vocab_size=128, block_size=32, memory_segments=0, fam_length=3, random_state_passing=0.5)


def settings(model_dir, **changes) -> TrainConfig:
    given = {"model": MODEL, "sequence_length": 320, "batch_size": 2, "steps": 6, "log_period": 1}
    given |= {"passkey": PassKeyConfig(stages=(1,), text_tokens=8), "optimizer": OptimizerConfig(warmup_steps=2)}
    return TrainConfig(model_dir=str(model_dir), **(given | changes))


def run(model_dir, **changes) -> TrainConfig:
    config = settings(model_dir, **changes)
    train(config, "# settings\n")
    return config


def metrics(model_dir) -> list[dict]:
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


def dies_in_step(number: int, monkeypatch) -> list[int]:
    """Interrupts the running training when it logs this step; returns a list that receives its steps."""
    writes, original = [], MetricsLog.write

    def killed(self, step, values):
        writes.append(step)
        if step == number:
            raise KeyboardInterrupt
        original(self, step, values)

    monkeypatch.setattr(MetricsLog, "write", killed)
    return writes


@pytest.mark.parametrize("kind", slow.but(["bswa", "fam", "fam with streams and noise"], "bswa", "fam"))
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, kind):
    """Six steps at once, and six steps killed in the fourth and resumed from a checkpoint at two: equal losses, bit for
    bit, each step logged once, equal weights. With random state passing, carried memories, noise and the optimizer's
    state."""
    changes = {"bswa": {"fam_length": 0}, "fam": {}}.get(kind, {"fam_noise": 0.1, "random_state_passing": 0.0})
    given = {"model": dataclasses.replace(MODEL, memory=dataclasses.replace(MODEL.memory, **changes))}
    if "streams" in kind:
        given["passkey"] = PassKeyConfig(stages=(1,), text_tokens=8, stream_share=0.5, stream_gated=False)
    run(tmp_path / "straight", **given)
    writes = dies_in_step(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **given, checkpoint_period=2)
    monkeypatch.undo()
    assert writes == [1, 2, 3, 4]
    run(tmp_path / "cut", **given, checkpoint_period=2)
    straight, cut = metrics(tmp_path / "straight"), metrics(tmp_path / "cut")
    assert [line["step"] for line in cut] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in cut] == [line["loss"] for line in straight]
    assert [line["exact_match"] for line in cut] == [line["exact_match"] for line in straight]
    weights = [load(tmp_path / name).embedding[...] for name in ("straight", "cut")]
    np.testing.assert_array_equal(*weights)


def test_a_finished_training_is_left_alone(tmp_path, capsys):
    """A second run reports it and changes no file."""
    config = run(tmp_path / "m", steps=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*")}
    train(config, "# other\n")
    assert "is trained already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*")}


def test_a_damaged_line_of_metrics_is_dropped(tmp_path):
    """Bytes that a crash of the machine has left, which are no text, do not stop a training that resumes."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\x00{"ste\n{"step": 2}\n{"step": 3}\n')
    MetricsLog(tmp_path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_training_lowers_the_loss(tmp_path):
    """Forty steps on bytes of one format: far below the first loss, and below a uniform distribution."""
    run(tmp_path / "m", steps=40, optimizer=OptimizerConfig(learning_rate=0.02, warmup_steps=5))
    losses = [line["loss"] for line in metrics(tmp_path / "m")]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert np.mean(losses[-5:]) < np.log(128)
    assert (tmp_path / "m" / "config.gin").read_text() == "# settings\n"


def damage(model_dir, step, part):
    victim = next(path for path in sorted((model_dir / "checkpoints" / str(step) / part / "d").iterdir()))
    victim.write_bytes(victim.read_bytes()[:-1])
    return victim


@pytest.mark.parametrize("part", slow.but(["weights", "training"], "weights"))
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, part):
    """Damage in any part of step 6: it is reported in one line, step 4 is resumed, and log lines after it are dropped;
    the final result is unchanged, and the damaged step is written again."""
    run(tmp_path / "straight", steps=8, log_period=3)
    settings = {"checkpoint_period": 2, "log_period": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("famjax.train.loop.jit_step", fail_in_step(7))
        with pytest.raises(RuntimeError, match="in step 7"):
            run(tmp_path / "m", steps=8, **settings)
    assert steps.all_steps(tmp_path / "m") == [4, 6]
    victim = damage(tmp_path / "m", 6, part)
    capsys.readouterr()
    run(tmp_path / "m", steps=8, **settings)
    out, err = capsys.readouterr()
    assert f"step 6 ({victim} is missing or damaged) is damaged; step 4, the one before, is intact\n" in err
    assert f"continuing {tmp_path / 'm'} from step 4\n" in out
    straight, repaired = metrics(tmp_path / "straight"), metrics(tmp_path / "m")
    assert [line["step"] for line in repaired] == [3, 6, 8]
    assert [line["loss"] for line in repaired] == [line["loss"] for line in straight]
    assert steps.all_steps(tmp_path / "m") == [6, 8]
    assert all(steps.damage(tmp_path / "m", step, ["weights", "training", "progress"]) == "" for step in (6, 8))


def fail_in_step(number):
    """Returns a step function that raises after this many steps."""
    from famjax.train.step import jit_step

    def failing(*args):
        step_fn, done = jit_step(*args), []

        def step(state, batch):
            done.append(0)
            if len(done) == number:
                raise RuntimeError(f"in step {number}")
            return step_fn(state, batch)

        step._cache_size = step_fn._cache_size
        return step

    return failing


def test_a_training_without_a_whole_checkpoint_is_not_begun_anew(tmp_path):
    """If all are damaged, the error names them, and no file changes."""
    run(tmp_path / "m", steps=4, checkpoint_period=2)
    damage(tmp_path / "m", 2, "training")
    damage(tmp_path / "m", 4, "weights")
    before = sorted((tmp_path / "m").rglob("*"))
    with pytest.raises(ConfigError, match="step 4 .* is damaged, as is step 2 .*; restore one from a copy") as raised:
        run(tmp_path / "m", steps=6, checkpoint_period=2)
    assert "\n" not in str(raised.value)
    assert sorted((tmp_path / "m").rglob("*")) == before


def test_a_training_is_not_continued_with_another_optimizer_or_model(tmp_path):
    """One line names the first difference; no earlier step is tried, nothing is deleted."""
    run(tmp_path / "m", steps=4, checkpoint_period=2)
    with pytest.raises(ConfigError, match="cannot be resumed with these settings .*opt_state.*use those of its config"):
        run(tmp_path / "m", steps=6, optimizer=OptimizerConfig(name="lion", warmup_steps=2))
    longer = dataclasses.replace(MODEL, memory=dataclasses.replace(MODEL.memory, fam_length=5))
    with pytest.raises(ConfigError, match="holds a model with fam_length 3, not 5; use an empty directory"):
        run(tmp_path / "m", steps=6, model=longer)
    assert steps.all_steps(tmp_path / "m") == [2, 4]


def test_a_model_that_no_training_wrote_is_not_trained_over(tmp_path):
    """An imported model can be started from, not resumed."""
    save_model(tmp_path / "m", MODEL, tiny.parameters(MODEL))
    with pytest.raises(ConfigError, match="set INITIAL_CHECKPOINT_PATH to it"):
        run(tmp_path / "m")
    assert steps.all_steps(tmp_path / "m") == [0]


def test_minutes_and_the_best(tmp_path, monkeypatch, capsys):
    """A checkpoint is due after its minutes, whatever the step; the one with the best logged metric is kept."""
    clock = iter(range(0, 10_000, 30))  # half a minute a step
    monkeypatch.setattr("famjax.train.saving.now", lambda: next(clock))
    settings = {"checkpoint_minutes": 1.4, "keep_checkpoints": 9, "keep_best_metric": "exact_match"}
    run(tmp_path / "m", steps=8, keep_best_mode="max", **settings)
    due = steps.all_steps(tmp_path / "m")
    assert due[-1] == 8 and len(due) > 2 and {b - a for a, b in zip(due[:-2], due[1:-1], strict=True)} <= {2, 3}
    best = json.loads((tmp_path / "m" / "best.json").read_text())["checkpoints"]
    assert [line["exact_match"] for line in best] == [
        max(metrics(tmp_path / "m")[step - 1]["exact_match"] for step in due)
    ]
    run(tmp_path / "n", steps=2, keep_best_metric="exact_mach")
    assert "step 2 has no metric 'exact_mach', so it cannot be the best; it has" in capsys.readouterr().err


@pytest.mark.parametrize("source_fam", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_training_starts_from_another_models_weights(tmp_path, capsys, source_fam):
    """INITIAL_CHECKPOINT_PATH: the first loss is that of the other model; a missing prompt is new."""
    source = dataclasses.replace(MODEL, memory=dataclasses.replace(MODEL.memory, fam_length=source_fam))
    params = tiny.parameters(source, seed=5)
    save_model(tmp_path / "source", source, params)
    still = OptimizerConfig(learning_rate=0.0)
    run(tmp_path / "m", steps=1, optimizer=still, initial_checkpoint=str(tmp_path / "source"))
    trained = load(tmp_path / "m")
    np.testing.assert_array_equal(trained.embedding[...], params["embedding"])
    if source_fam:
        np.testing.assert_array_equal(trained.fam.prompt[...], params["fam"]["prompt"])
    out = capsys.readouterr().out
    assert ("new: fam/prompt [3, 12]" in out) == (source_fam == 0)
    assert f"taken: {11 if source_fam == 0 else 12} of 12 arrays" in out


@pytest.mark.parametrize(("source_fam", "line"), [
    (5, "partly taken: fam/prompt, the last 3 of 5 rows"),
    (2, "partly taken: fam/prompt, 2 rows as the last ones; the 1 before them are new"),
])  # fmt: skip
def test_a_prompt_of_another_length_is_taken_by_its_last_rows(tmp_path, capsys, source_fam, line):
    """Rows keep their positions, which are counted from the block's end; missing rows before them are new."""
    source = dataclasses.replace(MODEL, memory=dataclasses.replace(MODEL.memory, fam_length=source_fam))
    params = tiny.parameters(source, seed=5)
    save_model(tmp_path / "source", source, params)
    still = OptimizerConfig(learning_rate=0.0)
    run(tmp_path / "m", steps=1, optimizer=still, initial_checkpoint=str(tmp_path / "source" / "checkpoints" / "0"))
    rows = min(source_fam, 3)
    np.testing.assert_array_equal(load(tmp_path / "m").fam.prompt[...][-rows:], params["fam"]["prompt"][-rows:])
    out = capsys.readouterr().out
    assert line in out and "taken: 11 of 12 arrays" in out


def test_a_prompt_that_is_not_asked_for_is_left(tmp_path, capsys):
    """Without FAM: only the source's other weights."""
    save_model(tmp_path / "source", MODEL, tiny.parameters(MODEL))
    without = dataclasses.replace(MODEL, memory=dataclasses.replace(MODEL.memory, fam_length=0))
    run(tmp_path / "m", steps=1, model=without, initial_checkpoint=str(tmp_path / "source"))
    assert "left out: fam/prompt [3, 12]" in capsys.readouterr().out


def test_weights_of_another_shape_are_refused_before_anything_is_written(tmp_path):
    """One line gives the reason; no model directory is created."""
    other = tiny.config(vocab_size=128, d_model=8, block_size=32, memory_segments=0, fam_length=3)
    save_model(tmp_path / "source", other, tiny.parameters(other))
    with pytest.raises(ConfigError, match="other shapes"):
        run(tmp_path / "m", initial_checkpoint=str(tmp_path / "source"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "name, value, refused",
    [
        ("activation", "gelu", True), ("norm_eps", 0.5, True), ("attention_cap", 3.0, True),
        ("dtype", "bfloat16", False), ("remat", "full", False), ("embedding_std", 0.5, False),
        ("layer_pattern", ("global", "global"), False), ("rope_base", 7.0, False),
    ],
)  # fmt: skip
def test_weights_of_another_architecture_are_refused(tmp_path, name, value, refused):
    """Settings that change no shape but what is computed, in a dry run too; those of execution are free, and RoPE's,
    which are stretched for longer blocks, are reported."""
    save_model(tmp_path / "source", MODEL, tiny.parameters(MODEL))
    other = dataclasses.replace(MODEL, **{name: value})
    given = {"model": other, "initial_checkpoint": str(tmp_path / "source"), "steps": 1}
    if refused:
        for use in (lambda config: train(config, ""), beginning.reported):
            with pytest.raises(ConfigError, match=f"were trained with {name} .*, not {value}"):
                use(settings(tmp_path / "m", **given))
        assert not (tmp_path / "m").exists()
    else:
        said = beginning.reported(settings(tmp_path / "m", **given))
        assert ("changed: rope_base 7.0, was 100.0" in said) == (name == "rope_base")


def test_an_evaluation_needs_a_period_and_a_function(tmp_path):
    """Neither has an effect without the other, so one alone is refused."""
    with pytest.raises(ConfigError, match="EVAL_PERIOD is 0, and `evaluate` is given"):
        train(settings(tmp_path / "m"), "", lambda model, step: {})
    with pytest.raises(ConfigError, match="EVAL_PERIOD is 2, and `evaluate` is not given"):
        train(settings(tmp_path / "m", eval_period=2), "")
    assert not (tmp_path / "m").exists()


def test_a_mesh_of_more_devices_than_there_are_is_refused_before_anything_is_written(tmp_path):
    """One line gives their number."""
    with pytest.raises(ConfigError, match="asks for 2 devices, but this job has 1; use at most 1"):
        run(tmp_path / "m", mesh={"fsdp": 2})
    assert not (tmp_path / "m").exists()


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    """The last checkpoint is kept; the message says what to change."""
    with pytest.raises(FloatingPointError, match="lower LEARNING_RATE"):
        run(tmp_path / "m", steps=20, optimizer=OptimizerConfig(learning_rate=1e30, warmup_steps=0, clip_norm=0.0))
