"""How far long work is, in a log and on a terminal."""

import subprocess
import sys

import pytest

from famjax.process import progress as module
from famjax.process.progress import Progress


class Clock:
    """Seconds that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "FIRST_SECONDS", 5.0)
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def lines(monkeypatch, capsys, work: list[tuple[float, float]], *args) -> list[str]:
    """What is printed when (seconds, amount) is done one after the other."""
    clock = Clock(monkeypatch)
    progress = Progress(*args)
    for seconds, amount in work:
        clock.now += seconds
        progress.advance(amount) if amount else None
        progress.tick()
    progress.__exit__()
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_from_time_to_time(monkeypatch, capsys) -> None:
    """The first after 5 seconds, then every 10, and the end of what was shown.

    The time left is by the rate after the first part, which compiled.
    """
    told = lines(monkeypatch, capsys, [(4, 1e9), (1, 1e9), (9, 1e9), (1, 1e9), (1, 12e9)], "importing m", 16e9, "GB")
    assert told == [
        "importing m: 2.00 of 16.00 GB, 0:14 left", "importing m: 4.00 of 16.00 GB, 0:44 left",
        "importing m: 16.00 of 16.00 GB",
    ]  # fmt: skip
    told = lines(monkeypatch, capsys, [(2, 1000), (4, 8000), (1, 1000)], "reading", 0, "tokens")
    assert told == ["reading: 9,000 tokens, 2,000 tokens/s", "reading: 10,000 tokens, 1,800 tokens/s"]


def test_nothing_done_yet_and_quick_work(monkeypatch, capsys) -> None:
    """Loading and compiling have no count and show the elapsed time; stages of less than 5 seconds print nothing."""
    assert lines(monkeypatch, capsys, [(6, 0), (60, 0)], "loading m") == [
        "loading m: 0:06 so far",
        "loading m: 1:06 so far",
    ]
    assert lines(monkeypatch, capsys, [(6, 0), (10, 0)], "reading", 0, "tokens") == [
        "reading: compiling, 0:06 so far",
        "reading: compiling, 0:16 so far",
    ]
    told = lines(monkeypatch, capsys, [(6, 0), (10, 5)], "scoring", 9, "tokens")
    assert told[0] == "scoring: 0 of 9 tokens, compiling, 0:06 so far"
    assert "compiling" not in told[1]
    assert lines(monkeypatch, capsys, [(4.9, 5)], "scoring", 9, "tokens") == []


def test_a_stage_starts_its_own_clock(monkeypatch, capsys) -> None:
    """Its counts, and its 5 seconds."""
    clock = Clock(monkeypatch)
    progress = Progress("loading m")
    clock.now += 4
    progress.stage("scoring", 100, "tokens")
    clock.now += 4
    progress.reach(10)
    progress.tick()
    clock.now += 1
    progress.reach(20)
    progress.tick()
    assert capsys.readouterr().err == "scoring: 20 of 100 tokens, 10 tokens/s, 0:08 left\n"


def test_a_terminal_loses_its_line(monkeypatch, capsys) -> None:
    """It is written over, and gone when the work ends."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = Clock(monkeypatch)
    progress = Progress("loading m")
    clock.now += 2
    progress.tick()
    progress.tick()
    progress.__exit__()
    assert capsys.readouterr().err == "\r\x1b[Kloading m: 0:02 so far\r\x1b[K"


def test_work_that_holds_the_main_thread_is_told() -> None:
    """Nothing calls `advance` while a program compiles; the line comes all the same, and ends with the work."""
    code = (
        "import time\nfrom famjax.process import progress\nprogress.FIRST_SECONDS = 0.1\n"
        "with progress.Progress('compiling'):\n    time.sleep(1.5)\nprogress.LINE_SECONDS = 0\ntime.sleep(0.7)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stderr
    assert told.startswith("compiling: 0:0") and told.count("\n") == 1


def test_clock() -> None:
    """Hours are shown if there are any."""
    assert [module.clock(s) for s in (0, 59.4, 59.6, 309, 3909)] == ["0:00", "0:59", "1:00", "5:09", "1:05:09"]
