"""The frame of the command line: help, exit codes, one line on standard error."""

import argparse
import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import famjax
from famjax.cli import eval as eval_verb
from famjax.cli import flags
from famjax.cli import main as cli
from famjax.cli import plan as plan_verb
from famjax.config import ConfigError

HEAVY = ("jax", "flax", "optax", "orbax", "tensorflow", "torch", "numpy", "matplotlib", "rich", "gin")


def line(capsys: pytest.CaptureFixture) -> str:
    """Standard error, which must be one line."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
    return captured.err.strip()


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in cli.VERBS)], ids=lambda words: words[0])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """Help answers without jax, flax, or anything else that takes its time."""
    program = f"""
import sys
from famjax.cli.main import main
code = main({words!r})
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(code or (f"loaded {{loaded}}" if loaded else 0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: famjax" in done.stdout
    assert done.stderr == ""


def test_python_m_famjax_is_famjax() -> None:
    done = subprocess.run([sys.executable, "-m", "famjax", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"famjax {famjax.__version__}\n")


@pytest.mark.parametrize("name", cli.VERBS)
def test_verbs_keep_the_convention(name: str) -> None:
    module = importlib.import_module(cli.VERBS[name].module)
    assert name == module.NAME
    assert module.HELP.strip() and callable(module.add_arguments) and callable(module.run)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no verb 'trian'; did you mean train?"),
        (["xyzzy"], "the verbs are train, data, eval"),
        (
            ["train", "--gin_fiel", "x"],
            "there is no flag --gin_fiel (famjax train --help lists them); did you mean --gin_file?",
        ),
        (["score", "--modle", "x"], "did you mean --model"),
        (["score", "--model"], "expected one argument; see famjax score --help"),
        (["score", "--model", "x"], "required: --input, --output"),
        (["import-hf", "--gin.STEPS=5"], "famjax import-hf takes no gin settings"),
        (["train"], "no settings: add --gin_file"),
        # As Python gives an argument that is in Latin-1.
        (["chat", "--model", "x", "--system", "S\udce9 bref"], "argument --system: 'S\\udce9 bref' is not UTF-8 text"),
        (
            ["inspect", "--model", "x", "--output", "y", "--answer", "\udce9"],
            "argument --answer: '\\udce9' is not UTF-8",
        ),
        (["import-hf", "x", "y", "--fam-text", "\udce9"], "argument --fam-text: '\\udce9' is not UTF-8"),
        (["serve", "--model", "x", "--name", "\udce9"], "argument --name: '\\udce9' is not UTF-8"),
    ],
)
def test_mistakes_in_words(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(words) == 2
    assert message in line(capsys)


def test_nothing_asked_for(capsys: pytest.CaptureFixture) -> None:
    """`famjax` alone shows its verbs, but as nothing was done, that is a mistake."""
    assert cli.main([]) == 2
    assert "quickstart" in capsys.readouterr().out


def raising(error: BaseException) -> SimpleNamespace:
    """A verb whose work ends so."""

    def run(args: argparse.Namespace) -> int:
        raise error

    return SimpleNamespace(NAME="raise", HELP="", add_arguments=lambda parser: None, run=run)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("too\nwide"), 2, "famjax raise: too wide"),
        (
            FileNotFoundError(2, "No such file or directory", "a.txt"),
            2,
            "famjax raise: a.txt: No such file or directory",
        ),
        (PermissionError(13, "Permission denied", "b.txt"), 2, "famjax raise: b.txt: Permission denied"),
        (json.JSONDecodeError("Expecting value", "", 0), 2, "famjax raise: Expecting value"),
        (RuntimeError("first\nsecond"), 1, "famjax raise: RuntimeError: first (--debug shows the traceback)"),
        (KeyError("name"), 1, "famjax raise: KeyError: 'name' (--debug"),
        (KeyboardInterrupt(), 130, "famjax raise: interrupted"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """2 for what a user can put right, 130 when interrupted, 1 otherwise; always one line."""
    monkeypatch.setitem(sys.modules, "a_verb_that_raises", raising(error))
    monkeypatch.setitem(cli.VERBS, "raise", cli.Verb("a_verb_that_raises", ""))
    assert cli.main(["raise"]) == code
    assert line(capsys).startswith(message)


@pytest.mark.parametrize("words", [["--debug", "raise"], ["raise", "--debug"]])
def test_debug_shows_the_traceback(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "a_verb_that_raises", raising(ConfigError("too wide")))
    monkeypatch.setitem(cli.VERBS, "raise", cli.Verb("a_verb_that_raises", ""))
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last)") and error.endswith("famjax raise: too wide\n")


def test_lengths_are_read_alike_by_every_verb() -> None:
    """Units are powers of 1,024; a length is read once."""
    assert flags.lengths("1k,4096,1024,.5K,2m") == (1024, 4096, 512, 2**21)
    for verb in (eval_verb, plan_verb):
        assert cli.parse(verb, ["--lengths", "1k,4k,1024"]).lengths == (1024, 4096)


@pytest.mark.parametrize("verb", ["eval", "plan"])
@pytest.mark.parametrize("length", ["infk", "nank", "1e999m", "k", "many", "1km", "1k,"])
def test_a_length_that_is_none(verb: str, length: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Infinity has no number of tokens."""
    assert cli.main([verb, "--lengths", length]) == 2
    assert f"{length.rpartition(',')[2]!r} is not a length; write for example 4096" in capsys.readouterr().err
