"""Figures of docs/serve.md, which `famjax bench serve` has measured, and how pages of docs/ keep their figures."""

import json
from pathlib import Path

import pytest

from tests.studies import script

pages, serving = script("pages"), script("serving")
Page = pages.Page


def spread(low: float, median: float, high: float) -> dict[str, float]:
    return {"median": median, "low": low, "high": high}


def row(name: str, clients: int, rate: float, over: float, read: float | None = 128.0) -> dict:
    return {
        "name": name, "clients": clients, "requests": 4 * clients, "rounds": 3, "prompt_tokens": 128, "max_tokens": 64,
        "read_tokens": read, "made_tokens": 63.5, "requests_per_second": spread(1, 2, 3),
        "tokens_per_second": spread(rate - 1, rate, rate + 1),
        "tokens_per_second_over_reference": spread(over, over, over), "first_token_seconds": spread(0.125, 0.25, 0.5),
        "answer_seconds": spread(1, 1.5, 2),
    }  # fmt: skip


MEASURED = {
    "machine": {
        "processor": "Some Processor", "cores": 2, "time": "2026-01-02 03:04:05", "load_before": 0.25,
        "load_after": 1.5, "versions": {"python": "3.11", "famjax": "0.1.0", "jax": "0.10", "optax": "1"},
        "system": "of a host",
    },
    "settings": {
        "name": "m", "clients": [1, 8], "requests": 4, "prompt_tokens": 128, "answer_tokens": 64, "repeats": 3,
        "model": {"memory": {"block_size": 256, "memory_segments": 3, "fam_length": 16, "kind": "fam"}},
    },
    "serving": [
        row("famjax serve", 1, 40.0, 1.0), row("another | one", 1, 20.0, 0.5, None),
        row("famjax serve", 8, 160.0, 3.25), row("famjax serve --max-rows 1", 8, 40.0, 1.0),
    ],
}  # fmt: skip


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """A page with markers and no results yet, in place of docs/serve.md."""
    there = serving.PAGE._replace(path=tmp_path / "serve.md", results=tmp_path / "serving.json")
    there.path.write_text("before\n<!-- serving -->\nold\n<!-- end of serving -->\nafter\n")
    there.results.write_text("{}")
    return there


def run(page: Page, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["serving.py", *words])
    return pages.publish(page, "", "serving", serving.kept, "famjax bench serve")


def test_the_page_has_what_was_measured(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine, load, versions and settings, a line for each row, and what batching gains; kept by name, replaced and
    removed. Nothing of the machine's own names is kept."""
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(MEASURED))
    assert run(page, monkeypatch, f"A model={bench}") == 0
    text = page.path.read_text()
    assert text.startswith("before\n<!-- serving -->\n**A model**")
    assert text.endswith("of one row.\n<!-- end of serving -->\nafter\n")
    for words in (
        "block 256, 3 memory segments, FAM 16", "reads 128 tokens and makes at most 64", "per client in each of 3",
        "2 cores of Some Processor; load average 0.25 before, 1.50 after; python 3.11, famjax 0.1.0, jax 0.10. 2026",
        "| 8 | famjax serve | 128 / 64 | 2.00 (1.00-3.00) | 160.0 (159.0-161.0) | 3.25 | 0.25 (0.12-0.50) | 1.50 (1.0",
        "| 1 | another / one | ? / 64 |", "With 8 clients, batching gives 3.25 times the tokens/s of one row.",
    ):  # fmt: skip
        assert words in text, words
    assert "of a host" not in page.results.read_text() and "optax" not in page.results.read_text()
    count = lambda: page.path.read_text().count("**: block 256")
    assert run(page, monkeypatch, f"Another={bench}") == 0 and count() == 2
    assert run(page, monkeypatch, "A model=", f"Another={bench}") == 0 and count() == 1
    assert run(page, monkeypatch, "Another=") == 0
    empty = "before\n<!-- serving -->\nNo figures are published yet.\n<!-- end of serving -->\nafter\n"
    assert page.path.read_text() == empty


def test_other_files_are_refused(page: Page, tmp_path: Path, monkeypatch, capsys) -> None:
    """A file that is missing, no JSON, or of another measurement; nothing is written."""
    other, broken, alike = (tmp_path / name for name in ("other.json", "broken.json", "alike.json"))
    other.write_text("{}")
    broken.write_text("no JSON")
    alike.write_text('{"serving": 3}')
    before = [place.read_text() for place in (page.path, page.results)]
    for words in (f"name={other}", "name=none.json", f"={other}", f"name={broken}", f"name={alike}"):
        assert run(page, monkeypatch, words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert [place.read_text() for place in (page.path, page.results)] == before
