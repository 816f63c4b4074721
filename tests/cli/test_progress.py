"""How far long work is, told where there is no terminal to draw on."""

import pytest

from famjax.cli.progress import BytesProgress


def test_bytes_are_told_in_lines_from_time_to_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """In a log: one line for what took long enough, with what is done of all of it; nothing of what is quick."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with BytesProgress(4 * 10**9, "imported") as progress:
        progress.advance(10**9)
        clock[0] += 9.0
        progress.advance(10**9)
        clock[0] += 1.0
        progress.advance(10**9)
        progress.advance(10**9)
    assert capsys.readouterr().err == "imported 3.00 of 4.00 GB\n"
