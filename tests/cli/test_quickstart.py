"""`famjax quickstart`: two trainings, one comparison."""

import json
import sys

import pytest

from famjax.cli import quickstart
from famjax.cli.main import main


def test_a_failed_training_is_told_with_its_last_words(tmp_path, monkeypatch, capfd):
    """The other training is ended, the exit code is 1, the line names the model, the reason and the log."""
    original = quickstart._job

    def job(name, output, args):
        code = "import sys; sys.exit('no space left')" if name == "bswa" else "import time; time.sleep(600)"
        return original(name, output, args)._replace(command=[sys.executable, "-c", code])

    monkeypatch.setattr(quickstart, "_job", job)
    assert main(["quickstart", "--output", str(tmp_path / "out")]) == 1
    error = capfd.readouterr().err
    assert "the training of bswa failed: no space left" in error
    assert str(tmp_path / "out" / "bswa.log") in error


def test_the_verdict_tells_the_worst_trained_length_and_every_longer_one():
    """No number is said that the table does not show."""
    rows = [
        {"filler_blocks": n, "filler_tokens": 64 * n + 31.5, "exact_match": match}
        for n, match in ((1, 1.0), (16, 0.97), (32, 0.5), (64, 0.25))
    ]
    none = [row | {"exact_match": 0.01 * (row["filler_blocks"] == 1)} for row in rows]
    models = [{"name": "fam", "passkey": rows}, {"name": "bswa", "passkey": none}]
    said = quickstart._verdict({"models": models}, longest=17 * 64 - 1)
    assert said == (
        "fam: at least 0.97 exact match up to 16 blocks of filler, the longest in training; "
        "beyond, 0.50 at 32, 0.25 at 64\nbswa: at most 0.01 exact match, at any length"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--steps", "0"], "TRAIN_STEPS is 0"), (["--output", __file__], "is a file"), (["--stpes", "3"], "--steps")],
)
def test_mistakes_are_one_line_before_any_training(tmp_path, words, said, capfd):
    """Exit code 2, one line, nothing written."""
    assert main(["quickstart", "--output", str(tmp_path / "out"), *words]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_quickstart_from_end_to_end_and_again(tmp_path, capfd):
    """Trains both models, writes results and plot; a second run trains nothing and finds the same."""
    words = ["quickstart", "--output", str(tmp_path), "--steps", "3"]
    assert main(words) == 0
    first = json.loads((tmp_path / "results.json").read_text())
    assert [model["name"] for model in first["models"]] == ["fam", "bswa"]
    assert (tmp_path / "passkey.png").is_file()
    assert "fam: at most" in capfd.readouterr().out
    lines = {name: (tmp_path / name / "metrics.jsonl").read_text() for name in ("fam", "bswa")}
    assert main(words) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == first
    assert lines == {name: (tmp_path / name / "metrics.jsonl").read_text() for name in ("fam", "bswa")}
    assert "trained already" in (tmp_path / "fam.log").read_text()
