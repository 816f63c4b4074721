"""`famjax inspect` from a model directory to files, and the sentences of its summary."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from famjax.cli.main import main
from famjax.data.passkey_text import Writer
from famjax.data.vocabulary import ByteVocabulary
from famjax.evals.inspect import report
from famjax.evals.inspect.summary import sentences
from famjax.storage.checkpoint import save_model
from tests import tiny

CONFIG = tiny.config(vocab_size=256, block_size=16, memory_segments=1, fam_length=2)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m"
    save_model(path, CONFIG, tiny.parameters(CONFIG))
    return path


def strictly(path: Path) -> dict:
    """Reads JSON, failing on NaN, which many readers reject."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


class Links(HTMLParser):
    """Collects everything that a page would fetch, and every id."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        links = [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.fetched += [link for link in links if not link.startswith(("#", "data:"))]


def test_pass_keys(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """All files are written; each length has a row with every replacement; the page fetches nothing and its pictures
    share no ids; the summary of the file is printed."""
    words = ["inspect", "--model", str(model_dir), "--passkey", "2", "1", "--documents", "3", "--output", str(tmp_path)]
    assert main(words) == 0
    found = strictly(tmp_path / "inspect.json")
    assert [row["filler_blocks"] for row in found["recall"]] == [1, 2]
    for row in found["recall"]:
        assert row["instead"].keys() == {"kept", "fresh", "zero", "swapped"} and row["documents"] == 3
        assert row["instead"]["kept"]["answer_moves"]["mean"] == 0 != row["instead"]["swapped"]["answer_moves"]["mean"]
    attention = np.array(found["attention"]["input"])
    assert attention.shape == (2, 2, 3)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-4)
    page = (tmp_path / "inspect.html").read_text()
    links = Links(page)
    assert links.fetched == []
    assert len({name.split("-")[0] for name in links.ids}) == page.count("<svg") == 3
    assert (tmp_path / "inspect.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.startswith(found["summary"][0])
    assert found["summary"][0].split(":")[0] in page
    assert found["write_gates"] is None and "write_gate_mean" not in found["by_block"] and "Gates of" not in page


def test_gates_of_updates(tmp_path: Path) -> None:
    """A model with gated updates: gates by layer and block in the JSON, between 0 and 1, with those at the key and
    after it; a sentence and a table in the page. The key's block is that of its last digit."""
    config = tiny.with_memory(CONFIG, fam_update="gated")
    save_model(tmp_path / "m", config, tiny.parameters(config))
    words = ["inspect", "--model", str(tmp_path / "m"), "--passkey", "2", "--documents", "2", "--output", str(tmp_path)]
    assert main(words) == 0
    found = strictly(tmp_path / "inspect.json")
    document = Writer(ByteVocabulary()).document(found["document"]["answer"], 2 * 16)
    key_block, full = document.mention[-1] // 16, len(document.tokens) // 16
    assert found["document"]["key_block"] == key_block
    mean, low, high = (np.array(found["by_block"][f"write_gate_{x}"][:full], float) for x in ("mean", "min", "max"))
    assert (low >= 0).all() and (low <= mean).all() and (mean <= high).all() and (high <= 1).all()
    gates = found["write_gates"]
    assert [gates[where]["updates"] for where in ("all", "at_key", "after_key")] == [full, 1, full - 1 - key_block]
    np.testing.assert_allclose(gates["at_key"]["mean"], mean[key_block], atol=1e-5)
    np.testing.assert_allclose(gates["after_key"]["mean"], mean[key_block + 1 :].mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(gates["all"]["max"], high.max(axis=0), atol=1e-5)
    page = (tmp_path / "inspect.html").read_text()
    assert any(line.startswith("The gates of FAM's updates") for line in found["summary"])
    assert "Gates of FAM&#x27;s updates" in page and Links(page).fetched == []


def test_means_are_over_layers_with_fam(tmp_path: Path) -> None:
    """FAM in one layer of two: null in the other, and the sentences have the figures of that layer alone."""
    config = tiny.with_memory(CONFIG, fam_layers="-+")
    save_model(tmp_path / "m", config, tiny.parameters(config))
    words = ["inspect", "--model", str(tmp_path / "m"), "--passkey", "2", "--documents", "2", "--output", str(tmp_path)]
    assert main(words) == 0
    found = strictly(tmp_path / "inspect.json")
    shares, by_block = found["attention"], found["by_block"]
    assert found["maps"]["layers"] == [1]
    for which in ("input", "answer"):
        assert [head[1] for head in shares[which][0]] == [None, None] and None not in np.ravel(shares[which][1])
    assert np.ravel(shares["fam_queries"][0]).tolist() == [None] * 4
    curves = {name: [row for row in by_block[name] if row != [None, None]] for name in by_block if name != "block"}
    assert all(row[0] is None and row[1] is not None for rows in curves.values() for row in rows)
    mean = lambda name: np.mean([row[1] for row in curves[name]])
    said = " ".join(found["summary"])
    assert f"Input queries give FAM {np.mean(shares['input'][1], axis=0)[1]:.1%} of their attention" in said
    assert f"predict the answer it is {np.mean(shares['answer'][1], axis=0)[1]:.1%}, at most" in said
    assert f"FAM's queries give {np.mean(shares['fam_queries'][1], axis=0)[0]:.1%} of their attention" in said
    assert f"by {mean('fam_change'):.1%} of its norm (cosine to the old FAM: {mean('fam_cosine'):.3f})" in said
    first, last = (curves["fam_rms"][i][1] for i in (0, -1))
    assert f"{first:.2f} after the first update, {last:.2f} after {len(curves['fam_rms'])}." in said


def test_a_text_with_an_answer(model_dir: Path, tmp_path: Path) -> None:
    """The answer's tokens are reported separately; passages are repeated after 1, 2 and 4 updates."""
    for name, seed in (("one", 0), ("other", 1)):
        letters = np.random.default_rng(seed).choice(list("abcdef \n"), 16 * 6 + 3)
        (tmp_path / name).write_text("".join(letters))
    words = ["inspect", "--model", str(model_dir), "--input", str(tmp_path / "one"), "--other", str(tmp_path / "other")]
    assert main([*words, "--answer", " yes", "--places", "3", "--output", str(tmp_path / "out")]) == 0
    found = strictly(tmp_path / "out/inspect.json")
    assert found["document"]["tokens"] == 16 * 6 + 3 + 4
    assert [row["updates"] for row in found["recall"]] == [1, 2, 4]
    assert [row["in_window"] for row in found["recall"]] == [True, False, False]
    assert all(row["against"] == "swapped" for row in found["recall"])
    assert list(found["knock_out"]) == ["kept", "fresh", "zero", "swapped"]
    assert all("answer_moves" in one for one in found["knock_out"].values())
    assert found["attention"]["answer"] is not None


def test_the_other_text_is_truncated_too(model_dir: Path, tmp_path: Path) -> None:
    """With --longest 64, the FAM of the other text is that of its first 64 bytes."""
    letters = np.random.default_rng(0).choice(list("abcdef \n"), (2, 16 * 6))
    for name, text in (("one", letters[0]), ("other", letters[1]), ("first", letters[1][:64])):
        (tmp_path / name).write_text("".join(text))
    found = []
    for other in ("other", "first"):
        words = ["--model", str(model_dir), "--input", str(tmp_path / "one"), "--other", str(tmp_path / other)]
        assert main(["inspect", *words, "--longest", "64", "--output", str(tmp_path / "out")]) == 0
        found.append(strictly(tmp_path / "out/inspect.json"))
    assert found[0]["document"]["tokens"] == 64
    assert found[0]["knock_out"] == found[1]["knock_out"] and found[0]["recall"] == found[1]["recall"]
    assert found[0]["knock_out"]["swapped"] != found[0]["knock_out"]["fresh"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--input FILE"),
        (["--passkey", "0"], "at least 1"),
        (["--input", "no/such.txt"], "no/such.txt is not a file"),
        (["--passkey", "1", "--answer", "x"], "need --input"),
        (["--passkey", "1", "--documents", "1"], "documents is 1; it must be at least 2"),
        (["--passkey", "1", "--input", "x", "--places", "2"], "give either --input"),
        (["--input", "x", "--documents", "1"], "--documents has no effect on a text; leave it out, or use --passkey"),
        (["--input", "x", "--seed", "1"], "--seed has no effect on a text"),
        (["--passkey", "1", "--places", "8"], "--places has no effect on the pass key; leave it out, or use --input"),
        (["--passkey", "1", "--longest", "0"], "--longest has no effect on the pass key"),
        (["--passkey", "1", "--fam-length", "0"], "nothing to inspect"),
    ],
)
def test_mistakes_are_one_line(words, said, model_dir, tmp_path, capsys) -> None:
    """Exit code 2 before any work."""
    assert main(["inspect", "--model", str(model_dir), "--output", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--input", "--other"])
def test_a_text_in_another_encoding_is_refused(flag, model_dir, tmp_path, capsys) -> None:
    """Its letters would be read as replacement characters, which the results would not show."""
    words = {}
    for name, encoding in (("--input", "utf-8"), ("--other", "utf-8"), (flag, "latin-1")):
        words[name] = tmp_path / f"{name}.txt"
        words[name].write_bytes(("Les Misérables, of a café. " * 4).encode(encoding))
    flags = [str(word) for pair in words.items() for word in pair]
    assert main(["inspect", "--model", str(model_dir), "--output", str(tmp_path / "out"), *flags]) == 2
    assert f"{words[flag]}: this is not UTF-8 text" in capsys.readouterr().err and not (tmp_path / "out").exists()


def found_with(to_fam: float, change: float, lost: float) -> dict:
    """Returns the findings of a model with one layer and one head."""
    moves = {"mean": -lost, "low": -lost, "high": -lost, "n": 4}
    curve = lambda value: [[None], [value], [value]]
    return {
        "attention": {"input": [[[0, to_fam, 1 - to_fam]]], "answer": None, "fam_queries": [[[0.25, 0.75]]]},
        "uniform_share": 0.1,
        "by_block": {"fam_change": curve(change), "fam_cosine": curve(0.5), "fam_rms": curve(1.0)},
        "knock_out": {"kept": {"rest_moves": moves | {"mean": 0.0}}, "swapped": {"rest_moves": moves}},
        "recall": [],
    }


@pytest.mark.parametrize(
    ("to_fam", "change", "lost", "said"),
    [
        (0.2, 0.3, 1.5, "written and read: with another document's FAM the text after loses 1.500 nats"),
        (0.003, 0.3, 0.0, "written but not read: input queries give FAM 0.30% of their attention"),
        (0.2, 0.3, 0.0, "written and attended to, but its content does not matter"),
        (0.2, 0.3, -0.5, "does not help here: with another document's FAM the text after gains 0.500 nats"),
        (0.2, 0.001, 0.0, "not written: an update changes 0.10% of FAM"),
        (0.2, 0.001, -0.5, "with another document's FAM the text after gains 0.500 nats per token."),
        (0.2, 0.001, 1.5, "read but hardly written"),
    ],
)
def test_the_verdict(to_fam: float, change: float, lost: float, said: str) -> None:
    """Each possible verdict; a FAM that another one surpasses is not said to have no effect."""
    assert said in sentences(found_with(to_fam, change, lost))[0]


def test_recall_falls_after_its_best() -> None:
    """A model that recalls nothing after few updates, but all after more, does not "fall below one half" at the few."""
    rows = [{"updates": n, "exact_match": share} for n, share in ((3, 0.2), (18, 1.0), (258, 0.7), (1026, 0.1))]
    said = lambda rows: sentences(found_with(0.2, 0.3, 1.5) | {"recall": rows})[-1]
    assert said(rows) == "Recall is 100% at 18 FAM updates, and falls below one half at 1026."
    assert "100% at 18 FAM updates, and stays at or above one half up to 258" in said(rows[:3])


def test_one_passage_shows_no_gain() -> None:
    """Neither a passage nor an answer that is there once has an interval, and its gain is not called significant."""
    gain = lambda mean, low, high, n: {"mean": mean, "low": low, "high": high, "n": n}
    row = lambda updates, one: {"updates": updates, "in_window": False, "against": "fresh", "gain": one}
    found = found_with(0.2, 0.3, 1.5)
    found["knock_out"]["swapped"]["answer_moves"] = gain(-0.5, None, None, 1)
    one = row(4, gain(2.0, None, None, 1))
    said = sentences(found | {"recall": [row(1, gain(0.3, 0.1, 0.5, 6)), one]})
    assert "changes the answer by -0.500 and the rest by -1.500 (-1.500 to -1.500)." in said[3]
    assert "significant (95%) at 1 of 1 distances, the farthest 1 updates (0.300)" in said[-1]
    assert sentences(found | {"recall": [one]})[-1].startswith("Too few passages")


def test_lines_have_the_colors_of_the_bar() -> None:
    """Layers 2 and 3 of four have FAM: their lines have the colors at the ends of the bar beside them."""
    nothing = [None, None]
    by_block = {"block": [0, 1], **{name: [[*nothing, 1.0, 2.0]] * 2 for name in ("fam_rms", "fam_change")}}
    _, (left, middle) = plt.subplots(1, 2)
    report._curves(left, middle, by_block | {"input_to_fam": by_block["fam_rms"]}, report._shades(2, 3))
    (bar,) = (axes for axes in middle.figure.axes if axes not in (left, middle))
    colors = bar._colorbar.mappable.to_rgba([2, 3])
    assert bar.get_ylim() == (2, 3)
    np.testing.assert_array_equal([line.get_color() for line in middle.lines[2:]], colors)
    plt.close("all")
