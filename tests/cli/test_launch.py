"""Errors that `famjax launch` reports before anything starts; tests/launch has each target."""

import pytest

from famjax.cli import main
from famjax.launch.supervisor import UNFINISHED


def launch(*words: str) -> int:
    return main.main(["launch", *words])


LOCAL = ("--target", "local", "--gin_file", "gin/experiments/tiny_fam.gin", "--gin.MODEL_DIR='runs/none'")


@pytest.mark.parametrize(("words", "message"), [
    ((), "no target; add --target local, tpu-vm, gke, slurm"),
    (("--target", "locl"), "argument --target: invalid choice: 'locl'"),
    (("--target", "local"), "no settings: add --gin_file FILE, for example gin/experiments/tiny_fam.gin"),
    ((*LOCAL, "--processes", "4"), "MESH needs 1 devices, but 4 processes with one device each have 4; set "
     "--processes 1, or --gin.MESH='{\"data\": 4}'"),
    ((*LOCAL, "--processes", "0"), "--processes is 0; it must be at least 1"),
    ((*LOCAL, "--port", "70000"), "--port 70000 is not a port; use 1024 to 65535, or 0 for a free one"),
    ((*LOCAL, "--port", "5000"), "--port has no effect with one process; leave it out"),
    ((*LOCAL, "--restarts", "-1"), "--restarts is -1; it must be at least 0"),
    ((*LOCAL, "--name", "a"), "--name is not a flag of target local; famjax launch --help lists its flags"),
    ((*LOCAL, "--gin.TRAIN_STEP=3"), "--gin.TRAIN_STEP: there is no macro TRAIN_STEP; did you mean TRAIN_STEPS"),
    ((*LOCAL, "--gin.INITIAL_CHECKPOINT_PATH='nowhere'"), "nowhere does not exist"),
    ((*LOCAL, "--gin.MODEL_DIR='gs://b/x'"), "MODEL_DIR gs://b/x is not a file system path; mount the bucket"),
])  # fmt: skip
def test_mistakes_are_one_line(capfd, monkeypatch, words, message):
    """Exit code 2; no process was started, which here would be one too many."""
    monkeypatch.setattr("famjax.launch.processes.Attempt._start", lambda *_: pytest.fail("a process was started"))
    assert launch(*words) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"famjax launch: {message}") and err.count("\n") == 1


def test_dry_run_shows_each_process(capfd):
    """The printed commands have each process's variables, quoted for a shell, and the settings of restarts."""
    words = [*LOCAL[:-1], "--gin.MODEL_DIR='it is $HOME'", "--processes", "2", '--gin.MESH={"data": 2}']
    assert launch(*words, "--restarts", "3", "--port", "4711", "--dry-run") == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0] == "# process 0" and out[2] == "# process 1"
    told = "env JAX_COORDINATOR_ADDRESS=127.0.0.1:4711 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 JAX_LOCAL_DEVICE_IDS=1 "
    assert out[3].startswith(told)
    assert out[3].endswith("""'--gin.MODEL_DIR='"'"'it is $HOME'"'"'' '--gin.MESH={"data": 2}'""")
    assert "up to 3 times without progress" in out[4]
    assert out[4].endswith(
        "; after 1800 s without a step or 3600 s without the first step, stacks are saved and it is restarted"
    )
    assert launch(*LOCAL, "--restarts", "1", "--hang-seconds", "0", "--dry-run") == 0
    assert (
        capfd.readouterr()
        .out.splitlines()[-1]
        .endswith("after 10 s; after 3600 s without the first step, stacks are saved and it is restarted")
    )


def test_the_exit_code_of_an_unfinished_job_is_nobody_elses():
    """Not 0 to 2, which famjax means otherwise, and none of a signal's."""
    assert 2 < UNFINISHED < 126
