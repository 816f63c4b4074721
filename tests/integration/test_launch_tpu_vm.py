"""`famjax launch --target tpu-vm` from its first step to its last, with this machine in the place of the TPU VM.

The stand-in for `gcloud` carries out what it is told: it copies, and runs remote commands in a folder of its own. So
what is copied is run: the bundle, its script, the supervisor and a training. Only the packages are not installed.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.jobs import SETTINGS, Running, alone, environment, losses, trained
from tests.integration.jobs import words as train_words

GCLOUD = """#!{python} -SE
import os, subprocess, sys
words, home = sys.argv[1:], {home!r}
with open(home + "/calls", "a") as file:
    file.write(" ".join(words[2:5]) + "\\n")
if "describe" in words:
    print('{{"state": {{"state": "ACTIVE"}}}}')
if "scp" in words:
    source, target = words[4], words[5].split(":")[1]
    subprocess.run(["cp", source, home + "/" + target], check=True)
if "ssh" in words:
    command = next(word for word in words if word.startswith("--command=")).removeprefix("--command=")
    sys.exit(subprocess.run(["bash", "-c", command], cwd=home).returncode)
"""
# The environment is there already, but for pip.
PYTHON = """#!/bin/bash
[[ $2 == pip ]] && exit 0
[[ $1 == -c && $2 == *libtpu* ]] && echo none && exit 0
exec {python} "$@"
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "run.gin").write_text(SETTINGS)
    for path, text in (("bin/gcloud", GCLOUD), ("famjax-fam/.venv/bin/python", PYTHON)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text.format(python=sys.executable, home=str(tmp_path)))
        (tmp_path / path).chmod(0o755)
    return tmp_path


@pytest.mark.slow
def test_what_is_copied_is_what_trains(place: Path):
    """The bundle trains there as the checkout does here: the same losses, its log is shown, and the code is its own."""
    words = train_words(place, "run", 4, 8, f"--gin.MODEL_DIR={str(place / 'it is $HOME')!r}", "--gin.BATCH_SIZE=8")
    command = ["launch", "--target", "tpu-vm", "--name", "fam", "--zone", "us-east5-a", "--topology", "v5e:2x4",
               "--delete-after", "success", *words[1:]]  # fmt: skip
    there = environment(place, 8) | {"PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    with Running([sys.executable, "-m", "famjax", *command], there) as running:
        code, out, err = running.end()
    assert code == 0, out + err
    assert (place / "calls").read_text().splitlines() == [
        "queued-resources create fam", "queued-resources describe fam", f"tpu-vm scp {scp_source(place)}",
        "tpu-vm ssh fam", "tpu-vm ssh fam", "tpu-vm ssh fam", "queued-resources delete fam",
    ]  # fmt: skip
    assert (
        "trained 4 steps" in out and err.splitlines()[-1] == "famjax launch: the training is finished; fam is deleted"
    )
    assert (place / "famjax-fam/famjax/cli/main.py").is_file()
    trained(alone(place, 8, *train_words(place, "here", 4, 8, "--gin.BATCH_SIZE=8")))
    np.testing.assert_array_equal(losses(place, "it is $HOME"), losses(place, "here"))


def scp_source(place: Path) -> str:
    """The bundle's path here, a folder that is gone by now."""
    return next(line.split()[-1] for line in (place / "calls").read_text().splitlines() if " scp " in line)
