"""`launch/tpu_vm/worker.sh` run for real, on this machine, with a small program in the place of famjax."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from famjax.launch.shipped import find
from tests.launch.standins import HOSTILE

# What it does is its first word.
PROGRAM = """#!{python}
import signal, sys, time
print("words", sys.argv[3:], flush=True)
if sys.argv[3] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(75)))
    time.sleep(60)
sys.exit(int(sys.argv[3]))
"""


@pytest.fixture
def worker(tmp_path):
    """A function that runs a verb of the script in a job's folder, whose name has a blank; and that folder."""
    root = tmp_path / "famjax job"
    (root / "launch/tpu_vm").mkdir(parents=True)
    (root / "job").mkdir()
    (root / ".venv/bin").mkdir(parents=True)
    shutil.copy(find("launch/tpu_vm/worker.sh"), root / "launch/tpu_vm")
    python = root / ".venv/bin/python"
    python.write_text(PROGRAM.format(python=sys.executable))
    python.chmod(0o755)

    def run(*verb: str) -> subprocess.CompletedProcess:
        script = str(root / "launch/tpu_vm/worker.sh")
        return subprocess.run(["bash", script, *verb], capture_output=True, text=True, timeout=60, check=False)

    run.root = root
    yield run
    if (root / "job/pid").exists():
        try:
            os.killpg(int((root / "job/pid").read_text()), signal.SIGKILL)
        except ProcessLookupError:
            return


def give(root: Path, *words: str) -> None:
    (root / "job/words").write_bytes(b"".join(word.encode() + b"\0" for word in words))


def test_words_arrive_as_they_are_and_the_exit_code_comes_back(worker):
    """Blanks, quotes, dollars and line breaks; `follow` shows all output and ends with 100 more than the job."""
    words = ["7", HOSTILE, "a\nb", ""]
    give(worker.root, *words)
    assert "started (pid " in worker("start").stdout
    followed = worker("follow")
    assert followed.returncode == 107
    assert followed.stdout == f"words {words}\n"
    assert "ended with exit code 7" in worker("status").stdout


def test_a_job_that_ends_well(worker):
    """0 is 0, also for a follower that comes late and wants the last lines alone."""
    give(worker.root, "0")
    worker("start")
    assert worker("follow").returncode == 0
    assert worker("follow", "20").returncode == 0


def test_stop_lets_the_job_save_and_start_begins_again(worker):
    """SIGTERM reaches the job; its code is kept; a second start while it runs changes nothing."""
    give(worker.root, "wait")
    worker("start")
    while "words" not in (worker.root / "job/log").read_text():
        time.sleep(0.02)
    assert "running (pid " in worker("status").stdout
    assert "already running" in worker("start").stdout
    assert "SIGTERM sent" in worker("stop").stdout
    followed = worker("follow")
    assert followed.returncode == 175 and followed.stdout.endswith("saved\n")
    give(worker.root, "0")
    worker("start")
    assert worker("follow").returncode == 0
    assert "not running" in worker("stop").stdout


def test_a_job_that_was_cut_off_leaves_its_own_code(worker):
    """As after a VM's restart: no exit code was written. Before any start it is the same."""
    assert worker("follow").returncode == 176
    give(worker.root, "wait")
    worker("start")
    while "words" not in (worker.root / "job/log").read_text():
        time.sleep(0.02)
    pid = int((worker.root / "job/pid").read_text())
    os.killpg(pid, signal.SIGKILL)
    followed = worker("follow")
    assert followed.returncode == 176 and "the job ended without an exit code" in followed.stdout
    assert "not running" in worker("status").stdout


def test_the_script_passes_shellcheck():
    """Every finding counts, of any severity."""
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    words = [program, "--severity=style", find("launch/tpu_vm/worker.sh")]
    checked = subprocess.run(words, capture_output=True, text=True, check=False)
    assert checked.stdout == "" and checked.returncode == 0
