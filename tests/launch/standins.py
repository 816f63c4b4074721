"""Stand-ins for `gcloud`, `kubectl`, `sbatch`: they record their calls and answer as a test defines."""

import json
import os
import sys
from pathlib import Path

import pytest

# Answers are [exit code, standard output, standard error], by what is asked, in turn; the last one again and again.
PROGRAM = """#!{python} -SE
import json, os, re, shutil, sys
here = {here!r}
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
text = sys.stdin.read() if "--filename=-" in words else ""
key = next((w for w in words[1:] if w in ("create", "describe", "delete", "scp", "get", "logs", "wait")), words[0])
remote = re.search(r"worker[.]sh (\\w+)", " ".join(words))
key = remote[1] if remote else key
if "--dry-run=server" in words:
    key = "dry-run"
if key == "scp":
    shutil.copy(next(w for w in words if w.endswith(".tar.gz") and w.startswith("/")), here + "/bundle.tar.gz")
with open(here + "/calls", "a") as file:
    file.write(json.dumps([key, words, text]) + "\\n")
answers = json.load(open(here + "/answers.json")).get(key, [])
with open(here + "/calls") as file:
    before = sum(json.loads(line)[0] == key for line in file) - 1
code, out, err = answers[min(before, len(answers) - 1)] if answers else (0, "", "")
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class StandIns:
    """What was called, and what is answered."""

    def __init__(self, folder: Path):
        self.folder = folder

    def answer(self, **answers: list) -> None:
        """`create=[[1, "", "no quota"]]`; `_` means `-`."""
        found = {key.replace("_", "-"): value for key, value in answers.items()}
        (self.folder / "answers.json").write_text(json.dumps(found))

    @property
    def calls(self) -> list[tuple[str, list[str], str]]:
        """Returns (action, all words, standard input) of each call, in order."""
        path = self.folder / "calls"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def asked(self) -> list[str]:
        return [key for key, _, _ in self.calls]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> StandIns:
    """Puts them first on PATH."""
    programs = folder / "bin"
    programs.mkdir()
    for name in names:
        path = programs / name
        path.write_text(PROGRAM.format(python=sys.executable, here=str(folder)))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    found = StandIns(folder)
    found.answer()
    return found


# Values that a shell, YAML, gin or Kubernetes would each read in its own way.
HOSTILE = '/gcs/b/it\'s "quoted" $(touch oops) `id` $HOME %j {x}\\ ; rm -rf #&|é'
