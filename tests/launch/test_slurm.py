"""`famjax launch --target slurm`: its script run by a real bash, with stand-ins for `sbatch`, `srun` and `scontrol`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from famjax.cli import main
from famjax.cli.gin_config import load_train_config
from famjax.launch.slurm import OWN
from tests.launch.standins import install

SRUN = """#!{python} -SE
import json, os, signal, sys, time
json.dump(sys.argv[1:], open({here!r} + "/srun", "w"))
open({here!r} + "/cores", "w").write(os.environ.get("SRUN_CPUS_PER_TASK", "None"))
def left(*_):
    time.sleep(0.3)
    sys.exit({code})
signal.signal(signal.SIGTERM, left)
open({here!r} + "/up", "w").close()
if {waits}:
    time.sleep(60)
sys.exit({code})
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    found = install(tmp_path, monkeypatch, "sbatch", "scontrol", "squeue", "scancel")
    found.answer(sbatch=[[0, "4711;cluster\n", ""]])
    return found


def launch(gin: list[str], model_dir: Path, *flags: str) -> int:
    words = ["--name", "fam-1", "--nodes", "2", "--gpus-per-node", "8"]
    return main.main(["launch", "--target", "slurm", *words, *gin, f"--gin.MODEL_DIR={str(model_dir)!r}", *flags])


@pytest.fixture
def place(tmp_path):
    """A MODEL_DIR whose name a shell, Slurm and gin would each read in its own way."""
    return tmp_path / 'it\'s "my" $(touch oops) `id` 100%j run'


def run_script(tmp_path: Path, place: Path, code: int, send: int = 0, **variables: str) -> subprocess.CompletedProcess:
    """What Slurm does with the script; a signal comes once the step is up."""
    srun = tmp_path / "bin/srun"
    srun.write_text(SRUN.format(python=sys.executable, here=str(tmp_path), code=code, waits=bool(send)))
    srun.chmod(0o755)
    environment = os.environ | {"SLURM_JOB_ID": "4711"} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(["bash", str(place / "launch/fam-1.sh")], env=environment, **pipes)
    if send:
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        process.send_signal(send)  # Slurm sends it to the step as well:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), send)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def test_files_and_submission(slurm, gin, place, capfd):
    """The script, the settings and the log lie in MODEL_DIR/launch; the log's name is no pattern but for the job's."""
    assert launch(gin, place, "--time", "1-12:00", "--partition", "gpu", "--sbatch=--constraint=h100") == 0
    there = place / "launch"
    log = str(there / "fam-1").replace("%", "%%") + "-%j.log"
    assert slurm.calls[0][1] == ["sbatch", "--parsable", f"--output={log}", str(there / "fam-1.sh")]
    lines = (there / "fam-1.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert asked == {
        "--job-name=fam-1", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--open-mode=append", "--requeue",
        "--signal=TERM@180", "--time=1-12:00", "--partition=gpu", "--constraint=h100",
    }  # fmt: skip
    config, _ = load_train_config([str(there / "fam-1.gin")])
    assert config.model_dir == str(place)
    assert "fam-1 is submitted as job 4711" in capfd.readouterr().err


def test_the_step_gets_its_words_whole(slurm, gin, place, tmp_path):
    """Through bash, quotes and dollars in MODEL_DIR and all; the exit code is the step's."""
    setup = tmp_path / "set up.sh"
    setup.write_text("export FROM_SETUP=1\n")
    launch(gin, place, "--setup", str(setup))
    done = run_script(tmp_path, place, 3)
    assert done.returncode == 3 and done.stderr == ""
    words = json.loads((tmp_path / "srun").read_text())
    assert words[:5] == ["--kill-on-bad-exit=0", sys.executable, "-m", "famjax", "launch"]
    assert words[-2:] == ["--gin_file", str(place / "launch/fam-1.gin")]
    assert slurm.asked == ["sbatch"] and not Path("oops").exists()


@pytest.mark.parametrize("cores", [None, "7"])
def test_the_step_has_the_cores_of_the_job(slurm, gin, place, tmp_path, monkeypatch, cores):
    """Since Slurm 22.05, `srun` takes `--cpus-per-task` of the job only from SRUN_CPUS_PER_TASK; without the flag the
    cluster's default stays."""
    monkeypatch.delenv("SRUN_CPUS_PER_TASK", raising=False)
    launch(gin, place, *(["--cpus-per-task", cores] if cores else []))
    run_script(tmp_path, place, 0, **({"SLURM_CPUS_PER_TASK": cores} if cores else {}))
    assert (tmp_path / "cores").read_text() == str(cores)


@pytest.mark.parametrize(("count", "queued"), [("0", True), ("9", True), ("10", False)])
def test_a_time_limit_queues_it_again(slurm, gin, place, tmp_path, count, queued):
    """SIGTERM before the limit: the step saves and leaves with 75, the script waits for it and queues the job again,
    up to the limit of restarts."""
    launch(gin, place)
    done = run_script(tmp_path, place, 75, signal.SIGTERM, SLURM_RESTART_COUNT=count)
    assert done.returncode == 75
    requeue = ["scontrol", "requeue", "4711"]
    assert [words for _, words, _ in slurm.calls[1:]] == [requeue] * queued


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_other_ends_are_not_queued_again(slurm, gin, place, tmp_path, code):
    """Finished, failed, mistaken or killed: the job ends with that code."""
    launch(gin, place)
    assert run_script(tmp_path, place, code).returncode == code
    assert slurm.asked == ["sbatch"]


def test_the_filled_script_passes_shellcheck(slurm, gin, place):
    """With a MODEL_DIR full of quotes and dollars in it, which are to stay as they are (SC2016)."""
    launch(gin, place)
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    checked = subprocess.run(
        [program, "--exclude=SC2016", place / "launch/fam-1.sh"], capture_output=True, text=True, check=False
    )
    assert checked.stdout == "" and checked.returncode == 0


def test_a_refusal_and_later_parts(slurm, gin, place, capfd):
    """sbatch's own words; squeue and scancel by name."""
    slurm.answer(sbatch=[[1, "", "sbatch: error: invalid partition specified: gpu\n"]])
    assert launch(gin, place) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == ("famjax launch: fam-1 was not submitted: sbatch: error: invalid partition specified: gpu; nothing "
                    "is running")  # fmt: skip
    assert not place.exists(), "no job has these settings: others must not be refused"
    slurm.answer(sbatch=[[0, "4711\n", ""], [1, "", "sbatch: error: invalid partition specified: gpu\n"]])
    slurm.folder.joinpath("calls").unlink()
    assert (launch(gin, place, "--gin.LEARNING_RATE=0.5"), launch(gin, place, "--gin.LEARNING_RATE=0.5")) == (0, 1)
    assert (place / "launch/fam-1.gin").is_file() and (place / "launch/fam-1.sh").is_file(), "the first job reads them"
    for action, program in (("status", "squeue"), ("delete", "scancel")):
        assert main.main(["launch", "--target", "slurm", "--name", "fam-1", "--do", action]) == 0
        assert slurm.calls[-1][1] == [program, "--name=fam-1", "--me"]


@pytest.mark.parametrize(("flags", "message"), [
    (["--nodes", "3"], "MESH (data 2 x fsdp 8 x tensor 1) is for 16 devices, but 3 nodes with 8 GPUs have 24; "),
    (["--time", "soon"], "--time 'soon' is not a Slurm time; write for example 24:00:00 or 2-12:00"),
    (["--sbatch=--x=a b"], "--sbatch '--x=a b' is not --NAME=VALUE without spaces and quotes"),
    (["--sbatch=--x=a\n#SBATCH --y"], "--sbatch '--x=a\\n#SBATCH --y' is not --NAME=VALUE"),
    (["--sbatch=--nodes=4"], "--sbatch=--nodes=4: the script sets what --nodes would change; leave it out, or use"),
    (["--sbatch=--array=0-3"], "--sbatch=--array=0-3: the script sets what --array would change; leave it out"),
    (["--cpus-per-task", "0"], "--cpus-per-task is 0; it must be at least 1"),
    (["--do", "status"], "--gin_file has no effect with --do status; leave it out"),
    (["--setup", "nowhere.sh"], "--setup nowhere.sh is not a file"),
    (["--name", "a\nb"], "--name 'a\\nb' is not a valid job name"),
])  # fmt: skip
def test_mistakes_are_told_first(slurm, gin, place, capfd, flags, message):
    """One line, exit code 2, nothing is written or called."""
    assert launch(gin, place, *flags) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"famjax launch: {message}") and err.count("\n") == 1
    assert slurm.calls == [] and not place.exists()


def test_the_settings_of_a_submitted_job_are_not_replaced(slurm, gin, place, capfd):
    """A job reads them when it starts, and after every requeue: the same ones may be submitted again, others not."""
    assert launch(gin, place) == launch(gin, place) == 0
    before = (place / "launch/fam-1.gin").read_bytes()
    capfd.readouterr()
    assert launch(gin, place, "--gin.LEARNING_RATE=0.5") == 2
    err = capfd.readouterr().err
    assert "fam-1.gin has other settings, which a job of this name reads" in err and err.count("\n") == 1
    assert (place / "launch/fam-1.gin").read_bytes() == before and slurm.asked == ["sbatch"] * 2


def test_every_option_of_the_script_is_its_own(slurm, gin, place, capfd):
    """What the script sets cannot be set again: the last line of a name would win, after the checks of the mesh."""
    flags = ["--time", "1:00", "--partition", "p", "--account", "a", "--qos", "q", "--cpus-per-task", "2"]
    assert launch(gin, place, *flags) == 0
    script = (place / "launch/fam-1.sh").read_text().splitlines()
    names = {line.removeprefix("#SBATCH --").partition("=")[0] for line in script if line.startswith("#SBATCH ")}
    assert names | {"output"} <= set(OWN)


def test_dry_run_shows_the_files_and_writes_none(slurm, gin, place, capfd):
    """The script and the settings as they would be submitted."""
    assert launch(gin, place, "--dry-run") == 0
    out = capfd.readouterr().out
    assert slurm.calls == [] and not place.exists()
    launch(gin, place)
    for name in ("fam-1.sh", "fam-1.gin"):
        assert (place / "launch" / name).read_text().rstrip() in out
