"""Trainings in child processes that are killed, stopped and resumed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from famjax.infer.load import load
from famjax.nn.weights import parameter_shapes
from famjax.storage import steps
from famjax.storage.checkpoint import load_model
from tests.train import processes

STEPS = 90


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, cache) -> Path:
    """The uninterrupted training."""
    folder = tmp_path_factory.mktemp("straight") / "m"
    code, _, err = processes.finish(processes.start(processes.command(folder, TRAIN_STEPS=STEPS), cache))
    assert code == 0, err
    return folder


def losses(folder: Path) -> list[tuple]:
    return [
        (line["step"], line["loss"], line["exact_match"], line["gradient_norm"]) for line in processes.lines(folder)
    ]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Returns every array of the last step: weights, optimizer, passed FAM."""
    import orbax.checkpoint as ocp

    found = {}
    for part in (steps.WEIGHTS, steps.TRAINING):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(steps.step_dir(folder.absolute(), STEPS) / part)
        found |= {part + jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return found


def assert_same_training(folder: Path, straight: Path) -> None:
    assert [step for step, *_ in losses(straight)] == [*range(7, STEPS, 7), STEPS]
    assert losses(folder) == losses(straight)
    one, other = arrays(folder), arrays(straight)
    assert one.keys() == other.keys() and any("passed_fam" in name for name in one)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def kill_often(folder: Path, cache: Path, kills: int, draw: random.Random, **macros: object) -> int:
    """Trains with `kills` SIGKILLs at random moments, then to the end; returns how many found a checkpoint."""
    words, behind = processes.command(folder, TRAIN_STEPS=STEPS, **macros), 0
    for number in range(kills):
        process = processes.start(words, cache)
        processes.wait_for_step(folder, 7 + number * STEPS // (kills + 2), process)
        time.sleep(draw.uniform(0, 0.4))
        process.kill()
        processes.finish(process)
        if steps.latest_step(folder) is not None:
            load_model(folder, parameter_shapes)
            behind += 1
    code, out, err = processes.finish(processes.start(words, cache))
    assert code == 0, err
    assert not behind or "continuing" in out
    return behind


def test_kill_minus_nine_changes_no_bit(tmp_path, cache, straight, capfd):
    """SIGKILL twice at random moments, also during saves and deletions: after each the newest checkpoint is intact, and
    in the end losses, weights, optimizer state and passed FAM equal those of the uninterrupted training."""
    assert kill_often(tmp_path / "m", cache, 2, random.Random()) >= 1
    assert "damaged" not in capfd.readouterr().err
    assert_same_training(tmp_path / "m", straight)
    assert steps.all_steps(tmp_path / "m") == [STEPS - 5, STEPS]


@pytest.mark.slow
def test_kill_minus_nine_twelve_times(tmp_path, cache, straight):
    """The same with twelve kills, every step saved, one checkpoint kept besides the best."""
    (tmp_path / "m").mkdir()
    macros = {"CHECKPOINT_PERIOD": 1, "KEEP_CHECKPOINTS": 1, "TrainConfig.keep_best_metric": "loss"}
    assert kill_often(tmp_path / "m", cache, 12, random.Random(), **macros) >= 10
    assert_same_training(tmp_path / "m", straight)


def test_sigterm_saves_and_ends_well(tmp_path, cache, straight):
    """SIGTERM: the step is finished and saved, the exit code is 0, one line reports it; the same command then completes
    the training, equal bit for bit, though it was saved between two log lines."""
    words = processes.command(tmp_path / "m", TRAIN_STEPS=STEPS, CHECKPOINT_PERIOD=0)
    process = processes.start(words, cache)
    processes.wait_for_step(tmp_path / "m", 21, process)
    process.send_signal(signal.SIGTERM)
    code, out, err = processes.finish(process)
    step = steps.latest_step(tmp_path / "m")
    assert code == 0, err
    assert 21 <= step < STEPS
    assert f"stopped by SIGTERM after step {step} of {STEPS}; step {step} is saved in {tmp_path / 'm'}" in out
    assert err.count("SIGTERM") == 1
    code, out, err = processes.finish(processes.start(words, cache))
    assert code == 0 and f"from step {step}\n" in out
    assert losses(tmp_path / "m") == losses(straight)


# Takes a minute to save step 15, and creates the file {mark} when it begins to.
SLOW_SAVE = """
import time
from famjax.storage import steps
original = steps.record_step
def slow(folder):
    if "/15.orbax" in str(folder):
        open({mark!r}, "w").close()
        time.sleep(60)
    original(folder)
steps.record_step = slow
"""


def in_slow_save(folder: Path, cache: Path) -> subprocess.Popen:
    """Starts a training in `folder`; returns its process when it saves step 15."""
    mark = folder.parent / "saving"
    words = processes.command(folder, TRAIN_STEPS=100000)
    process = processes.start(words, cache, SLOW_SAVE.format(mark=str(mark)))
    deadline = time.monotonic() + processes.LIMIT
    while process.poll() is None and not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("first", "second"), [
    pytest.param(signal.SIGTERM, signal.SIGTERM, marks=pytest.mark.slow), (signal.SIGINT, signal.SIGINT),
])  # fmt: skip
def test_a_second_signal_ends_at_once(tmp_path, cache, first, second):
    """While step 15 takes a minute to save, the first signal waits for it. The second does not: the exit code is 128
    plus its number, and step 10 is intact."""
    process = in_slow_save(tmp_path / "m", cache)
    process.send_signal(first)
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    while process.poll() is None:
        process.send_signal(second)  # again and again: two that arrive before Python handles one count as one
        time.sleep(0.5)
    assert time.monotonic() - began < 30  # on a busy machine too; the save takes 60 s
    code, _, err = processes.finish(process)
    assert code == 128 + second and "ended at once" in err
    assert steps.all_steps(tmp_path / "m") == [5, 10]
    load(tmp_path / "m")


def test_control_c_says_what_is_saved(tmp_path, cache):
    """SIGINT: exit code 130, and one line with the step from which the next start resumes."""
    process = processes.start(processes.command(tmp_path / "m", TRAIN_STEPS=100000), cache)
    processes.wait_for_step(tmp_path / "m", 21, process)
    process.send_signal(signal.SIGINT)
    code, _, err = processes.finish(process)
    step = steps.latest_step(tmp_path / "m")
    assert code == 130 and step % 5 == 0
    last = err.splitlines()[-1]
    assert last.startswith("famjax train: interrupted after step ")
    assert f"; step {step} is saved in {tmp_path / 'm'}; run the same command to resume" in last
    assert "Traceback" not in err


@pytest.mark.slow
def test_control_c_waits_for_no_save_for_ever(tmp_path, cache):
    """While step 15 takes a minute to save: the process is ended `GRACE_SECONDS` later, and step 10 is intact."""
    process = in_slow_save(tmp_path / "m", cache)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, _, err = processes.finish(process)
    assert code == 130 and time.monotonic() - began < 15
    assert f"; step 10 is saved in {tmp_path / 'm'}" in err.splitlines()[-1]
    assert steps.all_steps(tmp_path / "m") == [5, 10]


def interrupt_often(folder: Path, cache: Path, times: int, draw: random.Random) -> list[float]:
    """Sends Ctrl-C at random moments, from the first second of a process on; returns the seconds until it ended.

    Every step is logged and saved, so that most moments are during some write."""
    words, seconds = processes.command(folder, TRAIN_STEPS=100000, LOG_PERIOD=1, CHECKPOINT_PERIOD=1), []
    for number in range(times):
        process = processes.start(words, cache)
        if number % 4:  # in the loop; else during start-up
            newest = steps.latest_step(folder) or 0
            processes.wait_for_step(folder, newest + draw.randrange(1, 8), process)
            time.sleep(draw.uniform(0, 0.2))
        else:
            time.sleep(draw.uniform(1, 6))
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        code, _, err = processes.finish(process)
        seconds.append(time.monotonic() - began)
        assert code == 130, (number, code, err)
        assert "famjax train: interrupted" in err.splitlines()[-1] and "Traceback" not in err, err
        if steps.latest_step(folder) is not None:
            load_model(folder, parameter_shapes)
    return seconds


@pytest.mark.slow
def test_control_c_at_random_moments(tmp_path, cache):
    """A few times: exit code 130, within the limit, a readable checkpoint."""
    assert max(interrupt_often(tmp_path / "m", cache, 4, random.Random())) < 15


@pytest.mark.slow
def test_control_c_many_times_on_a_busy_machine(tmp_path, cache):
    """The same often, next to two processes that use the CPU all the time."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        seconds = interrupt_often(tmp_path / "m", cache, 40, random.Random())
    finally:
        for process in busy:
            process.kill()
            process.wait()
    print(f"{len(seconds)} interrupts, at most {max(seconds):.1f} s, median {sorted(seconds)[len(seconds) // 2]:.1f} s")
    assert max(seconds) < 15


def test_a_second_trainer_is_refused_and_a_dead_one_locks_nobody_out(tmp_path, cache):
    """While one training runs, another into the same directory ends with code 2 and one line that names the first, and
    changes nothing. Once the first is killed, its lock is released, though the file still exists."""
    words = processes.command(tmp_path / "m", TRAIN_STEPS=100000)
    process = processes.start(words, cache)
    processes.wait_for_step(tmp_path / "m", 7, process)
    code, out, err = processes.finish(processes.start(words, cache))
    assert code == 2 and err.count("\n") == 1
    assert f"another training (process {process.pid} on " in err and "is using MODEL_DIR" in err
    assert process.poll() is None
    process.kill()
    processes.finish(process)
    assert (tmp_path / "m" / ".lock").exists()
    done = max(line["step"] for line in processes.lines(tmp_path / "m"))
    code, _, err = processes.finish(processes.start(processes.command(tmp_path / "m", TRAIN_STEPS=done + 30), cache))
    assert code == 0, err
    assert not (tmp_path / "m" / ".lock").exists()
