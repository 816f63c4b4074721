"""Trainings beside each other: what a signal to the process that started them does to them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from famjax.cli import side_by_side
from famjax.config import ConfigError, TrainConfig
from famjax.storage import lock

# A job that is no training: it says that it runs, and what ended it.
JOB = """
import pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1])
def end(number, frame):
    (place / "ended").write_text(str(number))
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
(place / "runs").write_text("")
time.sleep(600)
"""
ALL = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if these tests are a background job of a shell
from pathlib import Path
from famjax.cli import side_by_side
from famjax.config import TrainConfig
from famjax.process import interrupts
jobs = []
for place in map(Path, sys.argv[1:]):
    command = [sys.executable, "-c", {job!r}, str(place)]
    jobs.append(side_by_side.Job(place.name, TrainConfig(model_dir=str(place / "m"), steps=3), command, place / "log"))
side_by_side.POLL_SECONDS = 600  # no signal waits for it
with interrupts.handled("famjax compare"):
    side_by_side.train(jobs)
"""


def test_the_log_of_a_running_training_is_not_emptied(tmp_path: Path) -> None:
    """The same comparison started twice: its training is refused, and the first one's log stays as it is."""
    config = TrainConfig(model_dir=str(tmp_path / "m"), steps=3)
    job = side_by_side.Job("a", config, [sys.executable, "-c", "print(1)"], tmp_path / "log")
    job.log.write_text("step 2\n")
    with lock.held(config.model_dir), pytest.raises(ConfigError, match="another training .* is using MODEL_DIR"):
        side_by_side.train([job])
    assert job.log.read_text() == "step 2\n"


@pytest.mark.parametrize(("number", "send"), [
    (signal.SIGTERM, os.kill), (signal.SIGINT, os.kill), (signal.SIGINT, os.killpg),
])  # fmt: skip
def test_a_signal_ends_all_trainings(tmp_path: Path, number: signal.Signals, send: Callable[[int, int], None]) -> None:
    """They get SIGTERM, which lets them save, and nothing else, also if a terminal sends Ctrl-C to the whole process
    group; none outlives the process that started them."""
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    words = [sys.executable, "-c", ALL.format(job=JOB), *map(str, places)]
    here = Path(__file__).parents[2]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=here, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not all((place / "runs").exists() for place in places):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        send(process.pid, number)
        error = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "the same command resumes" in error
    assert [(place / "ended").read_text() for place in places] == [str(int(signal.SIGTERM))] * 2


def test_time_left_counts_the_steps_since_a_run_was_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is resumed at step 900 of 1,000 and does 20 steps in 40 s has 160 s left; one that waits says nothing,
    and its time begins when it starts."""
    job = side_by_side.Job("late", TrainConfig(model_dir=str(tmp_path), steps=1000), [], tmp_path / "log")
    now, at = [0.0], [900]
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(side_by_side, "_news", lambda job: (at[0], "loss 1"))
    display = side_by_side._Display([job])
    for now[0], at[0] in ((500.0, 900), (540.0, 920)):
        display.show(job, done=False)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "train late: step 900/1000  loss 1"
    assert second == "train late: step 920/1000  loss 1  2:40 left"


def test_a_line_of_skipped_steps_has_no_loss(tmp_path: Path) -> None:
    """Metrics are null in the log if all steps since the last line were skipped."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": null, "accuracy": null}\n')
    job = side_by_side.Job("fam", TrainConfig(model_dir=str(tmp_path)), [], tmp_path / "log")
    assert side_by_side._news(job) == (3, "loss none  accuracy none")
