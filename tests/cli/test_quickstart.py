"""`famjax quickstart`: two trainings, one comparison."""

import json
import sys

import pytest

from famjax.cli import quickstart, side_by_side
from famjax.cli.main import main, parse


@pytest.fixture(autouse=True)
def nothing_shipped(monkeypatch):
    """`tests/infer/test_shipped.py` has the model that the quickstart shows first."""
    monkeypatch.setattr(quickstart, "_show_shipped", lambda model_dir: None)


def test_a_failed_training_is_told_with_its_last_words(tmp_path, monkeypatch, capfd):
    """The other training is ended, the exit code is 1, the line names the model, the reason and the log."""
    original = side_by_side.job

    def job(name, *rest):
        code = "import sys; sys.exit('no space left')" if name == "bswa" else "import time; time.sleep(600)"
        return original(name, *rest)._replace(command=[sys.executable, "-c", code])

    monkeypatch.setattr(side_by_side, "job", job)
    assert main(["quickstart", "--output", str(tmp_path / "out")]) == 1
    error = capfd.readouterr().err
    assert "the training of bswa failed: no space left" in error
    assert str(tmp_path / "out" / "bswa.log") in error


@pytest.mark.parametrize(
    ("words", "update", "steps"), [([], "gated", 1200), (["--paper"], "feedback", 2400), (["--steps", "7"], "gated", 7)]
)
def test_twins_differ_from_fam_in_their_memory_alone(tmp_path, words, update, steps):
    """The update that was asked for, and the same documents and steps for all."""
    args = parse(quickstart, [*words, "--twins", "0,2", "--seed", "3"])
    fam, *twins = (job.config for job in quickstart._jobs(args, tmp_path))
    assert (fam.model.memory.fam_update, fam.model.memory.fam_length, fam.steps) == (update, 8, steps)
    assert [twin.model.memory.memory_segments for twin in twins] == [0, 2]
    for twin in twins:
        assert twin.model.memory.fam_length == 0
        assert (twin.steps, twin.seed, twin.passkey) == (fam.steps, 3, fam.passkey)


def test_the_verdict_tells_the_worst_trained_length_and_every_longer_one():
    """Every number of the verdict is also in the table."""
    rows = [
        {"filler_blocks": n, "filler_tokens": 64 * n + 31.5, "exact_match": match}
        for n, match in ((1, 1.0), (16, 0.97), (32, 0.5), (64, 0.25))
    ]
    none = [row | {"exact_match": 0.01 * (row["filler_blocks"] == 1)} for row in rows]
    models = [{"name": "fam", "passkey": rows}, {"name": "bswa", "passkey": none}]
    said = quickstart._verdict({"models": models}, longest=17 * 64 - 1)
    assert said == (
        "fam: at least 0.97 exact match up to 16 blocks of filler, the lengths that training backpropagated through; "
        "beyond, 0.50 at 32, 0.25 at 64\nbswa: at most 0.01 exact match, at any length"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "TRAIN_STEPS is 0"),
        (["--twins", "0,x"], "such as 0,1,2"),
        (["--twins", "1,1"], "each once"),
        (["--output", __file__], "is a file"),
        (["--no-training", "--texts", "x"], "leave --texts away"),
        (["--no-training", "--twins", "0"], "--twins has no effect with --no-training"),
        (["--no-training", "--seed", "0"], "--seed has no effect with --no-training"),
        (["--no-training", "--steps", "3"], "--steps has no effect with --no-training"),
        (["--no-training", "--keys", "1"], "--keys has no effect with --no-training"),
        (["--no-training", "--paper"], "--paper has no effect with --no-training"),
        (["--texts", "x", "--keys", "1"], "--keys has no effect with --texts"),
        (["--texts", "x", "--paper"], "--paper has no effect with --texts"),
        (["--stpes", "3"], "--steps"),
    ],
)
def test_mistakes_are_one_line_before_any_training(tmp_path, words, said, capfd):
    """Exit code 2, one line, nothing written."""
    assert main(["quickstart", "--output", str(tmp_path / "out"), *words]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_training_that_was_told_to_stop_is_not_taken_for_finished(tmp_path, monkeypatch, capfd):
    """It saves and exits with 0; one line reports it, and no evaluation follows."""
    original = side_by_side.job
    leave = [sys.executable, "-c", "pass"]
    monkeypatch.setattr(side_by_side, "job", lambda *args: original(*args)._replace(command=leave))
    assert main(["quickstart", "--output", str(tmp_path / "out")]) == 1
    assert "the training of fam was stopped at step 0" in capfd.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()


def test_the_verdict_on_texts_has_the_near_the_far_and_all(tmp_path):
    """Numbers of the table, with their intervals."""
    row = lambda start, end, mean: {
        "from": start,
        "to": end,
        "less_than_first": {"mean": mean, "low": -1.0, "high": 0.5},
    }
    texts = [row(0, 64, -0.25), row(64, 128, -0.5), row(128, 4096, -0.75), row(0, None, -0.625)]
    models = [{"name": "fam", "text": []}, {"name": "bswa", "text": texts}]
    assert quickstart._verdict_on_texts({"models": models}).splitlines() == [
        "fam - bswa from 0 to 63, bits per byte: -0.250 (-1.000 to +0.500)",
        "fam - bswa from 128 to 4,095, bits per byte: -0.750 (-1.000 to +0.500)",
        "fam - bswa over all, bits per byte: -0.625 (-1.000 to +0.500)",
    ]


def test_texts_that_are_not_there_are_told_before_any_training(tmp_path, capfd):
    """One line says how to get some."""
    assert main(["quickstart", "--texts", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert "launch/studies/debian_texts.py" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_quickstart_on_texts_from_end_to_end(tmp_path, capfd):
    """Streams of a few files: both models train, held-out texts are compared, a plot is there."""
    for folder, files in (("train", 8), ("heldout", 2)):
        (tmp_path / "texts" / folder).mkdir(parents=True)
        for i in range(files):
            (tmp_path / "texts" / folder / f"{i}.txt").write_text(f"line {i} of a text\n" * (40 + 10 * i))
    words = ["quickstart", "--texts", str(tmp_path / "texts"), "--output", str(tmp_path / "out"), "--steps", "2"]
    assert main(words) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [model["name"] for model in results["models"]] == ["fam", "bswa"] and results["task"] == "text"
    assert (tmp_path / "out" / "language.png").is_file()
    assert "over all" in capfd.readouterr().out


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
