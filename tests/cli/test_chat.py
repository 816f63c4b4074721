"""`famjax chat`: one conversation, in one process or in several, with a file that does not grow."""

import io
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from famjax.cli.main import main
from famjax.infer import decode
from famjax.storage import checkpoint
from tests import tiny

CONFIG = tiny.config(vocab_size=256, block_size=8)
# The memory's size does not depend on the text, that of its position's digits does.
NEARLY = 16


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    checkpoint.save_model(folder, CONFIG, tiny.parameters(CONFIG))
    return folder


@pytest.fixture
def say(model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]):
    """Lines to a conversation; its answers."""

    def run(lines: str, *flags: str) -> bytes:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        assert main(["chat", "--model", str(model_dir), "--max-tokens", "6", *flags]) == 0
        return capsysbinary.readouterr().out

    return run


def test_a_conversation_in_two_processes_is_one(say, tmp_path: Path) -> None:
    """The second half, by a process that has only the file, is answered as by the one that heard all; the file of
    four turns is as large as that of one; /save copies it; /reset makes the first answer again."""
    path = str(tmp_path / "a.session")
    whole = say("one\ntwo two\n\nthree\nfour\n")
    first = say("one\ntwo two\n", "--session", path)
    size = Path(path).stat().st_size
    second = say("three\nfour\n", "--session", path)
    assert first + second == whole and second
    assert abs(Path(path).stat().st_size - size) <= NEARLY
    copy = tmp_path / "copy.session"
    say(f"/save {copy} \n", "--session", path)
    assert copy.is_file()  # the space after it is not part of its name
    assert say("five\n", "--session", str(copy)) == say("five\n", "--session", path)
    again = say("/help\n/reset\none\n", "--session", path)
    assert again and whole.startswith(again)


def test_ctrl_c_ends_an_answer_only(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text generated until then is kept, and the conversation continues."""
    real = decode.generate

    def interrupted(*args, **kwargs):
        for made in real(*args, **kwargs | {"tokens_per_call": 1}):
            os.kill(os.getpid(), signal.SIGINT)
            yield made

    monkeypatch.setattr(decode, "generate", interrupted)
    path = str(tmp_path / "a.session")
    say("one\ntwo\n", "--session", path)
    assert Path(path).exists()


def test_a_line_of_a_pipe_in_another_encoding(model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary) -> None:
    """The lines before it are answered; it is refused by its number."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("naïve\n".encode() + "naïve\n".encode("latin-1"))))
    assert main(["chat", "--model", str(model_dir), "--max-tokens", "6"]) == 2
    out, err = capsysbinary.readouterr()
    assert out.count(b"\n") >= 1 and b"standard input, line 2: this is not UTF-8 text" in err


def test_decoding_is_compiled_once_in_a_conversation(say, monkeypatch: pytest.MonkeyPatch) -> None:
    real, called = decode.compile_beside, []
    monkeypatch.setattr(decode, "compile_beside", lambda *args: called.append(args) or real(*args))
    assert say("one\ntwo\n").count(b"\n") >= 2
    assert len(called) == 1


def test_a_system_prompt_comes_too_late_for_a_session(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first turn is in the memory already, which is said; after /reset the prompt is that of a new conversation."""
    path, flags = str(tmp_path / "a.session"), ("--system", "Be kind.")
    with_it = say("one\n", *flags)
    say("one\n", "--session", path)
    monkeypatch.setattr(sys, "stderr", errors := io.StringIO())
    assert say("two\n/reset\none\n", "--session", path, *flags).endswith(with_it)
    assert "--system has no effect until /reset" in errors.getvalue()


def test_mistakes(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, said in (
        (["--session", str(tmp_path)], "is a directory"), (["--session", "none/a"], "directory is missing"),
        (["--max-tokens", "0"], "at least 1"), (["--top-p", "2"], "top_p"),
        (["--seed", "7"], "--seed 7 has no effect in greedy decoding"),
    ):  # fmt: skip
        assert main(["chat", "--model", str(model_dir), *flags]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}", "(no system)"),
        ("", "chat template ignores system messages; leave them out"),
    ],
)
def test_a_template_without_system_messages(
    template: str, said: str, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--system is refused before the model is loaded, whether the template rejects it or ignores it."""
    shutil.copytree(model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints"))
    turns = "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
    (tmp_path / "model/chat_template.jinja").write_text(template + turns)
    assert main(["chat", "--model", str(tmp_path / "model"), "--system", "Be kind."]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
