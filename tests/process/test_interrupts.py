"""Ctrl-C: exit code 130, at any moment, within a limit, with a description of what is saved."""

import signal
import subprocess
import sys
import time

import pytest

from famjax.cli.main import VERBS
from famjax.process import interrupts
from tests.train.processes import hearing

START = """
import signal, sys, threading, time
from famjax.process import interrupts
def ready(): print("ready", flush=True)
"""
FOREVER = "ready(); lock = threading.Lock(); lock.acquire(); lock.acquire()"  # in C; no handler of Python runs there


def interrupted(
    program: str, signals: int = 1, apart: float = 0.5, wait: float = 0.0
) -> tuple[int, str, str, float]:  # fmt: skip
    """Runs a program that gets Ctrl-C `wait` seconds after it prints `ready`: (exit code, standard output, standard
    error, seconds)."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with hearing():
        process = subprocess.Popen([sys.executable, "-c", START + program], **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(wait)
    began = time.monotonic()
    for number in range(signals):
        time.sleep(apart if number else 0)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.monotonic() - began


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_ends_with_130(verb: str) -> None:
    """Before a verb writes anything, Ctrl-C ends it at once with one line, even if the main thread waits in C."""
    program = f"""
import importlib
from famjax.cli import main as cli
cli.parse = lambda module, words: None
def run(args): {FOREVER}
importlib.import_module(cli.VERBS[{verb!r}].module).run = run
sys.argv = ["famjax", {verb!r}]
sys.exit(cli.main())
"""
    code, out, err, _ = interrupted(program)
    assert (code, out, err) == (130, "", f"famjax {verb}: interrupted\n")


def test_between_units_of_work() -> None:
    """Inside of `held`, the unit is finished and `check` raises, with a description of what is saved."""
    program = """
done = []
try:
    with interrupts.handled("famjax x"), interrupts.held(lambda: f"{len(done)} units are saved"):
        while True:
            ready() if not done else None
            time.sleep(0.3)
            done.append(0)
            interrupts.check()
except KeyboardInterrupt as error:
    print(error, len(done))
"""
    code, out, err, _ = interrupted(program)
    assert (code, out) == (0, "interrupted; 1 units are saved 1\n")
    assert err == "Ctrl-C: stops after this step; a second one ends the process at once\n"


def test_the_end_of_held_is_a_check_too() -> None:
    """The last write is complete before the process ends, and nested ones do not interrupt the outer one."""
    program = """
with interrupts.handled("famjax x"):
    try:
        with interrupts.held():
            with interrupts.held():
                ready(); time.sleep(0.3)
            print("whole", flush=True)
    except KeyboardInterrupt:
        print("then interrupted")
"""
    assert interrupted(program)[:2] == (0, "whole\nthen interrupted\n")


@pytest.mark.parametrize("signals", [1, 2])
def test_what_never_ends_is_ended(signals: int) -> None:
    """A unit that never ends is ended after `GRACE_SECONDS`, or by the second Ctrl-C; both report what is saved."""
    grace = 60 if signals == 2 else 0.5
    program = f"""
interrupts.GRACE_SECONDS = {grace}
with interrupts.handled("famjax x"), interrupts.held(lambda: "step 5 is saved"):
    {FOREVER}
"""
    code, _, err, seconds = interrupted(program, signals)
    last = err.splitlines()[-1]
    assert code == 130 and last.startswith("famjax x: ") and last.endswith("; step 5 is saved")
    assert ("ended at once" in last) == (signals == 2)
    assert seconds < interrupts.GRACE_SECONDS + 5


def test_one_ctrl_c_that_comes_twice_is_one() -> None:
    """The terminal and a parent process both forward it."""
    program = """
try:
    with interrupts.handled("famjax x"), interrupts.held():
        ready(); time.sleep(0.5); interrupts.check()
except KeyboardInterrupt:
    print("between units")
"""
    assert interrupted(program, signals=2, apart=0.0)[:2] == (0, "between units\n")


def test_a_conversation_notes_it_and_a_prompt_raises() -> None:
    """`noted` collects, `raised` restores Python's own behaviour; after both, Ctrl-C ends the process again."""
    program = """
def strike(): signal.raise_signal(signal.SIGINT)
with interrupts.handled("famjax x"):
    for _ in range(100):
        with interrupts.noted() as seen:
            strike()
        assert seen == [signal.SIGINT], seen
        try:
            with interrupts.raised():
                strike()
        except KeyboardInterrupt:
            continue
        raise AssertionError
    ready()
    time.sleep(60)
"""
    assert interrupted(program)[0] == 130


def test_the_handlers_from_before_return() -> None:
    """A program that calls `train` has its own handler afterwards; one that ignores Ctrl-C, as background jobs of a
    shell do, still ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with interrupts.handled("famjax x", signal.SIGTERM):
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        with interrupts.handled():
            pass
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interrupts.handled():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


EARLY = """
import runpy
class Started:  # `famjax.cli` is what the command imports first
    def find_spec(self, name, path, target=None):
        if name == "famjax.cli":
            ready()
sys.meta_path.insert(0, Started())
for name in [name for name in sys.modules if name.startswith("famjax")]:
    del sys.modules[name]
sys.argv = ["famjax", "train", "--gin_file", "gin/experiments/tiny_fam.gin", "--gin.MODEL_DIR='none'", "--dry-run"]
runpy.run_module("famjax", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("seconds", [0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5])
def test_while_the_command_is_imported(seconds: float) -> None:
    """From the first import on, Ctrl-C ends the command with 130 and one line."""
    code, _, err, _ = interrupted(EARLY, wait=seconds)
    assert (code, err.splitlines()[-1:]) == (130, ["famjax train: interrupted"])
    assert "Traceback" not in err


def test_what_a_server_says() -> None:
    """A program that is no training describes itself what a signal leads to."""
    program = """
with interrupts.handled("famjax x", signal.SIGTERM), interrupts.held(None, lambda number: f"{number} ends the work"):
    signal.raise_signal(signal.SIGTERM)
    ready()
    time.sleep(60)
"""
    code, _, err, _ = interrupted(program)
    assert code == 130
    assert err.splitlines()[0] == "SIGTERM: 15 ends the work; a second signal ends the process at once"
