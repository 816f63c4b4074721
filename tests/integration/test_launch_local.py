"""`famjax launch --target local` for real, what takes long; `test_processes.py` has a job of two that is killed."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from famjax.launch.processes import free_port
from tests.integration.jobs import ROOT, SETTINGS, alone, kill_one, launched, losses, metrics, metrics_so_far, trained
from tests.integration.jobs import words as train_words

SUPERVISED = ("--supervise", "--backoff-seconds", "0.1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the settings and the cache of compiled programs."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "run.gin").write_text(SETTINGS)
    return folder


def killed_and_started_again(place: Path, processes: int, victim: int, steps: int) -> None:
    name = f"killed_{processes}"
    with launched(place, processes, train_words(place, name, steps, processes), *SUPERVISED) as running:
        kill_one(place, running, name, victim)
        code, out, err = running.end()
    assert code == 0, out + err
    said = [line for line in err.splitlines() if line.startswith("famjax launch: ")]
    assert len(said) == 1 and said[0].startswith("famjax launch: the job ended with exit code 137 at step "), err
    assert "restart 1 in 0.1 s, from the checkpoint of step " in said[0]
    trained(launched(place, processes, train_words(place, f"straight_{processes}", steps, processes)))
    np.testing.assert_array_equal(losses(place, name), losses(place, f"straight_{processes}"))


@pytest.mark.slow
def test_four_processes_where_the_coordinator_is_killed(place):
    """Four processes, of which the first one dies: started again, every loss is that of a job that was left alone."""
    killed_and_started_again(place, 4, victim=0, steps=24)


@pytest.mark.slow
def test_the_quickstart_has_the_same_losses_on_four_processes(place):
    """The model and data of the quickstart, 6 steps: four processes with two rows each have the losses of one
    process with all eight rows, but for the order in which float32 sums are taken; and the same evaluations, a task
    that scores, one that writes answers, and texts."""
    gin = ["--gin_file", "gin/experiments/tiny_fam.gin", "--gin.TRAIN_STEPS=6", "--gin.LOG_PERIOD=1"]
    evaluated = {"task": "passkey,recall,text", "sources": ("README.md",), "longest": 500, "examples": 4,
                 "lengths": (512,), "alignments": 4, "filler_blocks": (1, 2), "batch_size": 4}  # fmt: skip
    gin += ["--gin.EVAL_PERIOD=6", *(f"--gin.in_training/EvalConfig.{n}={v!r}" for n, v in evaluated.items())]
    run = lambda name, mesh: ["train", *gin, f"--gin.MODEL_DIR={str(place / name)!r}", f"--gin.MESH={mesh}"]
    trained(launched(place, 4, run("quick_4", '{"data": 4}')), 600)
    trained(alone(place, 1, *run("quick_1", '{"data": 1}')))
    np.testing.assert_allclose(losses(place, "quick_4"), losses(place, "quick_1"), rtol=2e-5)
    four, one = ({name: value for line in metrics(place, run) for name, value in line.items() if "eval/" in name}
                 for run in ("quick_4", "quick_1"))  # fmt: skip
    assert four.keys() == one.keys() and len(four) >= 6
    np.testing.assert_allclose(list(four.values()), [one[name] for name in four], rtol=2e-5)


HANG = """
import os, sys, time
if "train" in sys.argv and os.environ.get("JAX_PROCESS_ID") == "1" and not os.path.exists({marker!r}):
    import famjax.train.feed as feed
    real = feed.Feed.next
    def stuck_in_the_feed(self, calls=[]):
        calls.append(1)
        if len(calls) == 4:
            open({marker!r}, "w").close()
            time.sleep(10**6)
        return real(self)
    feed.Feed.next = stuck_in_the_feed
"""


@pytest.mark.slow
def test_a_hang_leaves_the_stacks_of_all_processes_and_is_started_again(place):
    """One of two processes never comes back from reading its fourth batch, the other waits for it in the step: after
    so long without a step both stacks are in one file, which shows where, and the job goes on to its end."""
    words = train_words(place, "hanging", 8, 2)
    with launched(place, 2, words, *SUPERVISED, "--hang-seconds", "30", PYTHONPATH=hanging(place, "one")) as running:
        code, out, err = running.end(600)
    assert code == 0, out + err
    (file,) = (place / "hanging" / "stacks").iterdir()
    first, second = file.read_text().split("--- process ")[1:]
    assert "stuck_in_the_feed" in second and "stuck_in_the_feed" not in first
    assert "in after" in first or "in _train" in first
    assert "made no step for 30 s at step 3 of 8; restart 1" in err
    assert len(losses(place, "hanging")) == 8


@pytest.mark.slow
def test_a_supervisor_on_each_host(place):
    """As on a pod: two supervisors, each with one process of the job, which know nothing of each other. The job hangs
    (both write stacks), then a process is killed: each time both start theirs again, which meet, and go on to the
    losses of a job that was left alone."""
    words = train_words(place, "hosts", 40, 2)
    port = str(free_port())
    path = hanging(place, "two")
    there = [{"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i),
              "PYTHONPATH": path} for i in range(2)]  # fmt: skip
    with (
        launched(place, 1, words, *SUPERVISED, "--hang-seconds", "30", **there[0]) as first,
        launched(place, 1, words, *SUPERVISED, "--hang-seconds", "30", **there[1]) as second,
    ):
        began = time.monotonic()
        while len(metrics_so_far(place, "hosts")) < 8:  # it hung before its fourth step, so this is the second attempt
            assert time.monotonic() - began < 600 and first.process.poll() is None and second.process.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{second.process.pid}/task/{second.process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        ends = [running.end(600) for running in (first, second)]
    assert [code for code, _, _ in ends] == [0, 0], ends
    stacks = sorted(file.read_text() for file in (place / "hosts" / "stacks").iterdir())
    assert len(stacks) == 2 and sum("stuck_in_the_feed" in text for text in stacks) == 1
    for _, _, err in ends:
        assert "restart 1 in 0.1 s" in err and "restart 2 in 0.1 s" in err and "restart 3" not in err
    trained(launched(place, 2, train_words(place, "one_host", 40, 2)), 600)
    np.testing.assert_array_equal(losses(place, "hosts"), losses(place, "one_host"))


def hanging(place: Path, name: str) -> str:
    """A PYTHONPATH with which process 1 hangs, once."""
    site = place / f"site_{name}"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HANG.format(marker=str(place / f"hung_{name}")))
    return f"{site}:{ROOT}"
