"""Jobs of several real processes on this machine, one device each, joined over loopback."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.integration.jobs import (
    FOREVER,
    SETTINGS,
    Running,
    alone,
    environment,
    job,
    kill_one,
    killed,
    launched,
    losses,
    metrics,
    metrics_so_far,
    newest,
    trained,
    words,
)  # fmt: skip

# Of two rows that stream and two that are packed, two processes have one kind each.
TEXT = """
include 'gin/data/streams.gin'
SOURCES = ('README.md', 'docs/*.md')
DataConfig.stream_share = 0.5
EVAL_PERIOD = 2
in_training/EvalConfig.task = 'text'
in_training/EvalConfig.sources = ('docs/bench.md', 'docs/texts.md', 'docs/data.md')
in_training/EvalConfig.longest = 200
in_training/EvalConfig.batch_size = 2
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the settings and the cache of compiled programs."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "run.gin").write_text(SETTINGS)
    (folder / "text.gin").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def cut(place):
    """A training on two processes, one of them killed: what was said, and the step of its checkpoint. A copy of
    what it left is in `cut`."""
    with job(place, 2, *words(place, "killed", FOREVER, 2)) as running:
        seconds, code, out = killed(place, running, "killed", victim=1)
    shutil.copytree(place / "killed", place / "cut")
    return seconds, code, out, newest(place, "cut")


@pytest.fixture(scope="module")
def straight(place, cut):
    """The losses of two processes that were left alone, for some steps more than the killed ones saved."""
    said = trained(job(place, 2, *words(place, "straight", cut[-1] + 20, 2)))
    lines = [line for line in said.splitlines() if "Gloo" not in line]
    return losses(place, "straight"), lines


def assert_float32(actual: np.ndarray, desired: np.ndarray) -> None:
    """As sums of float32 in another order differ, after some steps of training."""
    np.testing.assert_allclose(actual, desired, rtol=2e-5)


def test_a_killed_process_is_named_and_ends_the_others(cut):
    """Within a minute, no hang, no success; the line says from where a new start goes on."""
    seconds, code, out, step = cut
    assert seconds < 60 and code == 128 + signal.SIGKILL
    lines = [line for line in out.splitlines() if "has died" in line]
    assert len(lines) == 1
    assert lines[0].startswith("[0] famjax train: process 1 of 2 (host ")
    assert lines[0].endswith(f") has died; start the job again: it resumes from step {step}")


def test_two_processes_have_the_numbers_of_one(place, straight):
    """The same mesh, of two processes and of two simulated devices in one: the same losses, gradients and answers;
    random state passing is part of it. The step is compiled once, and tokens of all processes are counted."""
    trained(alone(place, 2, *words(place, "simulated", 8, 2)))
    np.testing.assert_allclose(losses(place, "simulated"), straight[0][:8], rtol=1e-6)
    assert {line["compilations"] for line in metrics(place, "straight")} == {1}


@pytest.mark.slow
def test_each_process_reads_its_own_rows(place):
    """Streams, with the memory that they carry, and packed rows: two processes have the losses of two simulated
    devices, and one process goes on from where both have come to in their rows. What they evaluate together on the
    way has one process's numbers: three documents, each counted once."""
    text = ("--gin_file", str(place / "text.gin"))
    trained(job(place, 2, *words(place, "text", 2, 2, *text)))
    trained(alone(place, 2, *words(place, "text_simulated", 4, 2, *text)))
    trained(alone(place, 2, *words(place, "text", 4, 2, *text)))
    np.testing.assert_allclose(losses(place, "text"), losses(place, "text_simulated"), rtol=1e-6)
    names = ("eval/text/bits_per_byte", "eval/text/bits_per_byte_from_100", "eval/text/accuracy")
    one, two = ([line[name] for line in metrics(place, run) if line["step"] == 2 for name in names]
                for run in ("text_simulated", "text"))  # fmt: skip
    assert len(two) == 3 and two[0] > 1
    np.testing.assert_allclose(two, one, rtol=1e-6)


@pytest.mark.slow
def test_sigterm_for_one_process_stops_all_at_the_same_step(place):
    """As when one host of many is taken away: all finish the step, save it and leave with 0; and go on from there."""
    with job(place, 2, *words(place, "preempted", FOREVER, 2)) as running:
        pids = running.process.stderr.readline().split("pids are ")[1].split(", ")
        while len(metrics_so_far(place, "preempted")) < 2:
            assert running.process.poll() is None
            time.sleep(0.05)
        os.kill(int(pids[1]), signal.SIGTERM)
        code, out, _ = running.end(60.0)
    step = newest(place, "preempted")
    assert code == 0
    assert len(metrics(place, "preempted")) == step
    said = [line for line in out.splitlines() if "stopped by SIGTERM" in line]
    assert len(said) == 1 and said[0].startswith(f"[0] stopped by SIGTERM after step {step} of {FOREVER}; step {step}")


def test_only_the_first_process_prints(straight):
    """What people read on standard output is said once, and by process 0."""
    said = [line for line in straight[1] if "] trained " in line or "] next:" in line]
    assert len(said) == 2 and all(line.startswith("[0] ") for line in said)
    assert not [line for line in straight[1] if line.startswith("[1] ")]


@pytest.mark.slow
def test_the_same_number_of_processes_goes_on_to_the_same_bits(place, cut, straight):
    """Killed, started again by `famjax launch`, one process killed again, started again by the supervisor, against
    left alone: every loss equal, bit for bit, each step logged once."""
    steps = words(place, "killed", len(straight[0]), 2)
    with launched(place, 2, steps, "--supervise", "--backoff-seconds", "0.1") as running:
        kill_one(place, running, "killed", victim=1, beyond=cut[-1] + 6)
        code, out, err = running.end()
    assert code == 0, out + err
    said = [line for line in err.splitlines() if line.startswith("famjax launch: ")]
    assert len(said) == 1 and said[0].startswith("famjax launch: the job ended with exit code 137 at step "), err
    assert "; restart 1 in 0.1 s, from the checkpoint of step " in said[0]
    assert f"[0] continuing {place / 'killed'} from step {cut[-1]}" in out and out.count("[0] continuing ") == 2
    np.testing.assert_array_equal(losses(place, "killed"), straight[0])


def test_one_process_goes_on_from_two(place, cut, straight):
    """What two processes have written is read by one with one device, and leads to the same losses."""
    trained(alone(place, 1, *words(place, "cut", cut[-1] + 2, 1)))
    assert_float32(losses(place, "cut"), straight[0][: cut[-1] + 2])


@pytest.mark.slow
def test_two_processes_go_on_from_one(place, straight):
    """And the other way round."""
    trained(alone(place, 1, *words(place, "widened", 4, 1)))
    trained(job(place, 2, *words(place, "widened", 6, 2)))
    assert_float32(losses(place, "widened"), straight[0][:6])


@pytest.mark.slow
def test_the_death_of_the_coordinator_is_named(place):
    """jax aborts the others in C++ at that moment; they still say who it was, last of all."""
    with job(place, 2, *words(place, "headless", FOREVER, 2)) as running:
        seconds, code, out = killed(place, running, "headless", victim=0, steps=1)
    assert seconds < 60 and code == 128 + signal.SIGKILL
    last = [line for line in out.splitlines() if line.startswith("[1] ")][-1]
    assert last.startswith("[1] famjax train: process 0 of 2 (host ")
    assert "), the coordinator, has died; start the job again: it " in last


def test_a_mistake_in_one_process_ends_all_with_its_code(place):
    """Settings that differ are found before anything is computed, and told on both sides."""
    port = "47613"
    members = []
    for i in range(2):
        join = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(i))
        members.append(alone(place, 1, *words(place, "unlike", 2 + i, 2, *join)))
    with members[0], members[1]:
        ends = [member.end(60.0) for member in members]
    assert [code for code, _, _ in ends] == [2, 2]
    assert all("has different settings than process 0; start all processes alike" in err for _, _, err in ends)
    assert not (place / "unlike").exists()


def test_the_launcher_passes_on_what_it_is_told(place):
    """SIGTERM reaches every process, here before any of them can wish to save first; the exit code says that they
    were ended."""
    with job(place, 2, *words(place, "ended", FOREVER, 2)) as running:
        pids = running.process.stderr.readline().split("pids are ")[1].split(", ")
        running.process.send_signal(signal.SIGTERM)
        code, _, _ = running.end(60.0)
    assert code == 128 + signal.SIGTERM
    assert not any(Path(f"/proc/{pid.strip()}").exists() for pid in pids)


def test_what_processes_tell_each_other(place):
    """Gathered values, merged progress, agreement, barriers and whole arrays (`members.py` asserts them), in a job
    that is found as Slurm starts it."""
    members = []
    for i in range(2):
        slurm = {
            "SLURM_JOB_ID": "4242", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i), "SLURM_STEP_NUM_NODES": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.integration.members"]
        members.append(Running(command, environment(place) | slurm))
    with members[0], members[1]:
        ends = [member.end(120.0) for member in members]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert ends[0][1].splitlines()[-1] == "process 0 prints"
    assert "prints" not in ends[1][1]


@pytest.mark.slow
def test_four_processes(place, straight):
    """Four processes have the numbers of four simulated devices, go on where two have stopped (now with all weights
    in every process), and name who dies."""
    straight = (straight[0][:6], straight[1])
    steps = len(straight[0])
    trained(job(place, 4, *words(place, "four", steps, 4)))
    trained(alone(place, 4, *words(place, "four_simulated", steps, 4)))
    np.testing.assert_allclose(losses(place, "four"), losses(place, "four_simulated"), rtol=1e-6)
    assert_float32(losses(place, "four"), straight[0])
    trained(job(place, 2, *words(place, "two_four", steps - 2, 2)))
    trained(job(place, 4, *words(place, "two_four", steps, 4, axis="data")))
    assert_float32(losses(place, "two_four"), straight[0])
    for victim in (0, 2):
        with job(place, 4, *words(place, f"four_{victim}", FOREVER, 4)) as running:
            seconds, code, out = killed(place, running, f"four_{victim}", victim)
        assert seconds < 60 and code == 128 + signal.SIGKILL
        assert sum(f"famjax train: process {victim} of 4 (host " in line for line in out.splitlines()) == 3


@pytest.mark.slow
def test_a_frozen_process_is_named(place):
    """A process that stands still, as on a host that has gone down, closes no connection; silence gives it away."""
    with job(place, 2, *words(place, "frozen", FOREVER, 2)) as running:
        pids = [int(pid) for pid in running.process.stderr.readline().split("pids are ")[1].split(", ")]
        while not metrics_so_far(place, "frozen"):
            assert running.process.poll() is None
            time.sleep(0.1)
        os.kill(pids[1], signal.SIGSTOP)
        began = time.monotonic()
        while Path(f"/proc/{pids[0]}/cmdline").exists() and Path(f"/proc/{pids[0]}/cmdline").read_bytes():
            assert time.monotonic() - began < 60
            time.sleep(0.1)
        os.kill(pids[1], signal.SIGKILL)
        _, out, _ = running.end()
    assert "[0] famjax train: process 1 of 2 (host " in out
    assert "has not been heard from for 40 s" in out
