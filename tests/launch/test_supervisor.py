"""When a job is restarted, and when not; programs of a few lines replace the training."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from famjax.config import ConfigError
from famjax.jobs import liveness
from famjax.launch import processes, supervisor
from famjax.launch.processes import Attempt
from famjax.launch.supervisor import UNFINISHED, Supervision, Supervisor

# How often it was started before is `n`; `tell(step)` is what a training does after a step, of 10.
HEAD = """
import os, signal, sys, time
from famjax.jobs.liveness import Beat, answer
answer()
mark = os.path.join(sys.argv[1], "starts" + os.environ.get("JAX_PROCESS_ID", ""))
open(mark, "a").write("x")
n = len(open(mark).read()) - 1
def tell(step):
    Beat(10).step(step)
"""
QUICK = Supervision(restarts=3, hang_seconds=0, backoff_seconds=0.01)


def supervise(tmp_path: Path, program: str, settings: Supervision = QUICK, count: int = 1) -> Supervisor:
    """A supervisor of `count` processes that run this program."""
    command = (sys.executable, "-c", HEAD + program)
    start = lambda notes: Attempt([str(tmp_path)], count, notes=notes, program=command)
    return Supervisor(start, str(tmp_path / "model"), settings)


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts").read_text())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nobody is waited for long."""
    monkeypatch.setattr(supervisor, "OTHERS_SECONDS", 0.05)
    monkeypatch.setattr(processes, "STACK_SECONDS", 0.3)


def test_a_finished_training_is_left_alone(tmp_path):
    """Exit code 0 after the last step; also for a program that reports no steps."""
    assert supervise(tmp_path, "tell(10)").run() == 0
    assert starts(tmp_path) == 1
    assert supervise(tmp_path, "pass").run() == 0


def test_failures_without_progress_are_counted(tmp_path, capfd):
    """One more attempt than restarts, each of which comes as far as the first; the pause doubles."""
    assert supervise(tmp_path, "tell(4); sys.exit(3)").run() == 3
    assert starts(tmp_path) == 4
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("; ")[1].split(",")[0] for line in lines[:-1]] == [
        "restart 1 in 0.01 s", "restart 2 in 0.02 s", "restart 3 in 0.04 s",
    ]  # fmt: skip
    assert lines[-1] == (
        "famjax launch: the job ended with exit code 3 at step 4 of 10; 4 attempts made no progress, so it is not "
        "restarted"
    )


def test_progress_counts_anew(tmp_path):
    """Attempts that each get a step further continue beyond the limit, up to the end."""
    assert supervise(tmp_path, "tell(n + 1); sys.exit(0 if n == 9 else 1)").run() == 0
    assert starts(tmp_path) == 10


@pytest.mark.parametrize("code", [2, 130])
def test_a_mistake_or_an_interrupt_is_not_repeated(tmp_path, code):
    """What a user got wrong would be wrong again."""
    assert supervise(tmp_path, f"tell(3); sys.exit({code})").run() == code
    assert starts(tmp_path) == 1


def test_a_job_that_another_told_to_stop_goes_on(tmp_path, capfd):
    """Preemption of another host: this one saves and leaves with 0 before its last step. It is started again."""
    assert supervise(tmp_path, "tell(10 if n else 5)").run() == 0
    assert starts(tmp_path) == 2
    assert "the job was stopped at step 5 of 10; restart 1" in capfd.readouterr().err


@pytest.mark.parametrize("answer", ["signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); ", ""])
def test_told_to_stop_it_says_unfinished(tmp_path, answer):
    """SIGTERM for the supervisor: passed on, nothing is started again, and the exit code says that there is more to
    do, whether the training could save or was only starting."""
    job = supervise(tmp_path, answer + "tell(5); time.sleep(60)")

    def stop() -> None:
        while job.attempt is None or liveness.read(job.attempt.progress_file(0)) is None:
            time.sleep(0.01)
        job.stop(signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert job.run() == UNFINISHED
    assert starts(tmp_path) == 1


def test_told_to_stop_between_two_attempts(tmp_path):
    """During the pause: no further attempt."""
    job = supervise(tmp_path, "sys.exit(1)", Supervision(restarts=3, backoff_seconds=60))
    threading.Timer(1.5, lambda: job.stop(signal.SIGTERM)).start()
    assert job.run() in (UNFINISHED, 1)
    assert starts(tmp_path) == 1


HANG = """
def stuck_here():
    time.sleep(60)
tell(3)
if n == 0 and os.environ["JAX_PROCESS_ID"] == "1":
    stuck_here()
if n == 0:
    time.sleep(60)
tell(10)
"""


def test_a_hang_is_noticed_told_and_started_again(tmp_path, capfd):
    """No step within the limit: the stacks of all processes lie in one file, which shows who stands where; both are
    ended, though they would not have gone by themselves, and the next attempt finishes."""
    settings = Supervision(restarts=1, hang_seconds=1.0, backoff_seconds=0.01)
    assert supervise(tmp_path, HANG, settings, count=2).run() == 0
    assert starts_of(tmp_path, "0") == starts_of(tmp_path, "1") == 2
    (file,) = (tmp_path / "model" / "stacks").iterdir()
    _, first, second = file.read_text().split("--- process ")
    assert "in stuck_here" in second and "in stuck_here" not in first and "<module>" in first
    err = capfd.readouterr().err
    assert f"the job made no step for 1 s; every thread's stack is in {file}" in err
    assert "the job made no step for 1 s at step 3 of 10; restart 1" in err


@pytest.mark.parametrize("hang_seconds", [1.0, 0.0])
def test_a_start_that_hangs_has_a_limit_of_its_own(tmp_path, capfd, hang_seconds):
    """Before the first step its own limit counts, also if there is none between steps, and 0 is none."""
    settings = Supervision(restarts=0, hang_seconds=hang_seconds, start_seconds=2.0)
    began = time.monotonic()
    assert supervise(tmp_path, "time.sleep(60)", settings).run() == 128 + signal.SIGKILL
    assert time.monotonic() - began > 2.0
    assert "the job made no step for 2 s before its first step" in capfd.readouterr().err
    assert supervise(tmp_path, "time.sleep(1.5)", Supervision(restarts=0, hang_seconds=1, start_seconds=0)).run() == 0


def starts_of(tmp_path: Path, process: str) -> int:
    return len((tmp_path / f"starts{process}").read_text())


def test_limits_are_checked():
    """One line on a number that cannot work."""
    with pytest.raises(ConfigError, match="--restarts is -1; it must be at least 0"):
        Supervision(restarts=-1).validate()
    with pytest.raises(ConfigError, match="--hang-seconds is less than 1"):
        Supervision(hang_seconds=0.5).validate()


def test_a_beat_is_read_as_it_was_told(tmp_path):
    """The step and the last one; nothing before the first, nor of a half-written file, nor without a supervisor."""
    path = tmp_path / "progress"
    assert liveness.read(path) is None
    beat = liveness.Beat(7, {liveness.PROGRESS: str(path)})
    beat.step(1)
    assert liveness.read(path) == (1, 7)
    beat.step(2)  # too soon to matter
    assert liveness.read(path) == (1, 7)
    beat.step(7)  # the last one always
    assert liveness.read(path) == (7, 7)
    path.write_text("")
    assert liveness.read(path) is None
    liveness.Beat(7, {}).step(7)
    assert os.listdir(tmp_path) == ["progress"]
