"""The report: one self-contained file with the content of results.json, which escapes all data."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from famjax.cli.main import main
from famjax.config import ConfigError
from famjax.evals import results, run
from famjax.evals.reports import charts, page, report
from famjax.evals.reports.charts import Line, Point
from famjax.evals.reports.compare import compare
from famjax.evals.samples import Sample, SampleFile
from famjax.evals.tasks import language
from famjax.evals.tasks.base import Task, Unreadable

VOID = {"meta", "line", "circle", "rect", "polyline", "polygon", "br", "use", "path"}
GENERATION = Task("needles", "generate", lambda: [], {"match": lambda said, targets: 0.0},
                  settings={"without_room": {"qa1": 3}})  # fmt: skip
TEXTS = Task("books", "score", lambda: [], by_position=True)


class Page(HTMLParser):
    """Collects the visible text, and checks that every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.seen, self.tags = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.seen.append(data)


def answers(seed: int, better: float) -> dict[str, list[Sample]]:
    """Returns made-up answers to two tasks: needles by depth and length, and books by position."""
    rng = np.random.default_rng(seed)
    needles = [
        Sample("needles", f"{length}/{i}", f"{length}/{i}", f"k{seed}", length, 0, "<script>alert(1)</script> & co",
               "<b>7</b>" if i else "", ["8"], "length", {"match": float(rng.random() < better)},
               {"length": length, "depth": (0.0, 0.5, 1.0)[i % 3], "needle": length // 2})
        for length in (1024, 4096) for i in range(12)
    ]  # fmt: skip
    sums = {"bits": [30.0, 60.0 * better], "correct": [2.0, 4.0], "tokens": [15.0, 30.0], "sizes": [15.0, 30.0]}
    books = [
        Sample("books", f"{i}", f"{i}", f"k{seed}b", 1, 0, "", "", [], "", {"next_token_accuracy": 0.1}, {}, sums)
        for i in range(3)
    ]
    return {"needles": needles, "books": books}


def told(seeds=(1, 2)) -> tuple[list[dict], list[dict]]:
    """Returns results of two models in the format of `famjax eval`, and their answers."""
    models, found = [], []
    for seed, better in zip(seeds, (0.9, 0.4), strict=True):
        mine = answers(seed, better)
        bad = [Unreadable("data<1>.jsonl:7", "not JSON")] if seed == seeds[1] else []
        tasks = {name: results.summarize(task, mine[name], bad, 16)
                 for name, task in (("needles", GENERATION), ("books", TEXTS))}  # fmt: skip
        for name, task in tasks.items():
            task["key"] = mine[name][0].key
        models.append({"name": f"model & {seed}", "label": f"model & {seed} (FAM 2)", "model_dir": "runs/<x>",
                       "fingerprint": "0" * 32, "model": {"memory": {"block_size": 16}}, "tasks": tasks})  # fmt: skip
        found.append(mine)
    return models, found


def test_the_page_is_whole_safe_and_says_what_the_results_say():
    """Every tag is closed; nothing is fetched or run; text from data is shown as text; every value of the results'
    tables is present."""
    models, found = told()
    run.side_by_side(models, found, language.position_edges(16), 0)
    text = page.page({"models": models, "version": "1", "settings": {"task": "needles</pre><script>"}})
    seen = Page(text)
    assert not {"script", "link", "img", "iframe", "b"} & {tag for tag, _ in seen.tags}
    assert not any(name in {"src", "href"} or name.startswith("on") for _, attrs in seen.tags for name in attrs)
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert any(attrs.get("name") == "viewport" for tag, attrs in seen.tags if tag == "meta")
    words = " ".join(seen.seen)
    assert "<script>alert(1)</script> & co" in words and "data<1>.jsonl:7" in words
    for model in models:
        for task in model["tasks"].values():
            for metric in task["metrics"].values():
                assert f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]" in words
    books = [model["tasks"]["books"] for model in models]
    gap = books[1]["against_first"]["bits_per_byte"]
    assert gap["mean"] == pytest.approx(
        books[1]["metrics"]["bits_per_byte"]["value"] - books[0]["metrics"]["bits_per_byte"]["value"]
    )
    assert gap["mean"] == pytest.approx(-books[1]["by_position"][-1]["less_than_first"]["mean"])
    gap = models[1]["tasks"]["needles"]["against_first"]["match"]
    assert gap["mean"] < 0 and f"{gap['mean']:+.3f}" in words
    by_length = models[1]["tasks"]["needles"]["against_first_by_length"]
    assert by_length and all(f"{row['metrics']['match']['mean']:+.3f}" in words for row in by_length)
    for note in ("24 answers at the token limit", "2 answers empty", "1 example could not be read",
                 "3 questions of qa1 too long for the shortest length"):  # fmt: skip
        assert note in words
    maps = [attrs for tag, attrs in seen.tags if tag == "svg" and "depth" in attrs["aria-label"]]
    assert len(maps) == 2  # one a model
    assert any("accuracy against position" in attrs.get("aria-label", "") for _, attrs in seen.tags)


SPOT = r'<title>([^<]*)</title>.*?<use [^>]*?x="([\d.]+)" y="([\d.]+)"'


def test_curves_are_where_their_values_are():
    """A point's y is linear in its value, x is proportional to log(1 + x), and both have their tooltip."""
    points = [Point(x, y, y - 0.1, y + 0.1, f"is {y}") for x, y in ((0, 0.25), (15, 0.5), (255, 1.0))]
    drawn = charts.lines([Line(0, "a & b", points)], "x", "y")
    spots = re.findall(SPOT, drawn, re.DOTALL)
    assert [tooltip for tooltip, *_ in spots] == ["a &amp; b: is 0.25", "a &amp; b: is 0.5", "a &amp; b: is 1.0"]
    xs, ys = ([float(spot[axis]) for spot in spots] for axis in (1, 2))
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(0.5, abs=0.01)  # log2(16) of log2(256)
    assert (ys[0] - ys[1]) / (ys[0] - ys[2]) == pytest.approx(1 / 3, abs=0.01)


def test_a_band_is_an_interval_and_points_without_one_have_none():
    """The band's height is that of the interval, on the scale of the points; a single interval is a bar."""
    points = [Point(0, 0.2, 0.1, 0.4), Point(1, 0.6, 0.5, 0.8), Point(2, 0.7, None, None)]
    axes = Figure().subplots()
    charts.curve(axes, Line(0, "a", points))
    (band,) = axes.collections
    assert {tuple(map(float, corner)) for corner in band.get_paths()[0].vertices} >= {
        (0.0, 0.1), (0.0, 0.4), (1.0, 0.5), (1.0, 0.8),
    }  # fmt: skip
    axes = Figure().subplots()
    charts.curve(axes, Line(0, "a", points[1:]))
    (bar,) = axes.collections
    assert bar.get_segments()[0].tolist() == [[1.0, 0.5], [1.0, 0.8]]


def test_heat_maps_have_a_cell_for_each_value():
    """A cell has its tooltip and is darker for higher values; a missing value has no cell."""
    drawn = charts.heat_map(["0%", "1%"], ["1k", "2k"], [[0.0, 1.0], [None, 0.25]], [["a", "b"], ["", "c"]], "x", "y")
    cells = re.findall(r'<title>(\w)</title>\s*<path [^>]*style="fill: #(\w\w)', drawn)
    shades = {tooltip: int(red, 16) for tooltip, red in cells}
    assert len(cells) == 3 and shades["b"] < shades["c"] < shades["a"]


def test_lengths_have_binary_units():
    """GFLOPs and tokens of a training have decimal ones, as in --flops 5t; small numbers keep two digits."""
    assert [charts.in_units(x) for x in (0, 1.52, 64, 1000, 1024, 1536, 4096, 20000, 2**20)] == [
        "0", "1.5", "64", "1000", "1k", "1.5k", "4k", "20k", "1M",
    ]  # fmt: skip
    assert [charts.in_units(x, 1000) for x in (0.314, 1000, 5000, 500_000, 2e6, 3e9)] == [
        "0.31", "1k", "5k", "500k", "2M", "3G",
    ]  # fmt: skip


def colors_of(drawn: str) -> list[str]:
    """Returns the colors of an SVG's curves, of the palette, in order."""
    return [color for color in charts.COLORS if f"stroke: {color.lower()}" in drawn.lower()]


def test_a_curve_has_the_color_of_its_model_in_every_chart():
    """The legend numbers models over the page; charts of a task that the first was not evaluated on do so too."""
    models, found = told()
    run.side_by_side(models, found, language.position_edges(16), 0)
    table = {"label": "block", "rows": [{"length": 64, "at": 0, "n": 9, "value": 0.5, "low": 0.1, "high": 0.9}]}
    models[1]["tasks"]["needles"]["tables"] = [table]
    del models[0]["tasks"]["needles"], models[0]["tasks"]["books"]
    tasks = [(1, models[1], models[1]["tasks"][name]) for name in ("needles", "books")]
    drawn = [*page._by_length("needles", tasks[:1]), *page._tables(tasks[:1]), *page._by_position(tasks[1:])]
    assert [title for title, _ in drawn] == [
        "match by length", "match by updates of FAM", "accuracy by block, 64 tokens", "next-token accuracy by position",
        "bits per byte by position",
    ]  # fmt: skip
    assert all(colors_of(svg) == [charts.color(1)] for _, svg in drawn)


def printed(models: list[dict], task: str) -> list[list[str]]:
    """Returns the cells of the rows that `print_task` prints."""
    console = Console(file=io.StringIO(), width=200)
    report.print_task(models, task, console)
    lines = console.file.getvalue().splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]


def test_a_row_has_the_results_of_its_length_alone():
    """Models that were evaluated at other lengths have empty cells there, and their own numbers of examples."""
    models, _ = told()
    for model, length in zip(models, (1024, 4096), strict=True):
        summary = model["tasks"]["needles"]
        summary["by_length"] = [row for row in summary["by_length"] if row["length"] == length]
        summary["tables"] = [{"label": "block", "rows": [
            {"length": of, "at": 0, "n": 9, "value": of / 10000, "low": 0.0, "high": 1.0} for of in (512, length)
        ]}]  # fmt: skip
    one, other = (report.value_text(model["tasks"]["needles"]["by_length"][0]["metrics"]["match"]) for model in models)
    models[1]["tasks"]["needles"]["n"] = 7
    assert printed(models, "needles")[:4] == [
        ["1,024", "31", "12", one, ""], ["4,096", "127", "12", "", other],
        ["512, block 0", "", "9", *["0.051 (0.00-1.00)"] * 2],
        ["all", "", "24 / 7", *(report.value_text(model["tasks"]["needles"]["metrics"]["match"]) for model in models)],
    ]  # fmt: skip


def test_names_are_shown_as_they_are(tmp_path, capsys):
    """Brackets are no markup, a dollar no mathematics, and a leading underscore hides no curve of a legend."""
    models, _ = told()
    models[0]["name"], models[1]["name"] = "run[red]", "[/x]"
    report.print_task(models, "needles")
    assert "run[red]" in (seen := capsys.readouterr().out) and "[/x]" in seen
    row = {"filler_tokens": 64.0, "fam_updates": 1.0, "exact_match": 0.5, "low": 0.1, "high": 0.9}
    report.plot(tmp_path / "plot.png", [{"label": "a$x_{$", "passkey": [row]}])
    axes = Figure().subplots()
    charts.curve(axes, Line(0, "_hidden", []))
    charts.curve(axes, Line(1, "runs/" + "x" * 100, []))
    short, long = (text.get_text() for text in axes.legend().get_texts())
    assert short == " _hidden" and long.replace("\n", "") == "runs/" + "x" * 100 and max(map(len, long.split())) <= 48
    models[0]["label"] = "run (old) (FAM 2, block 16)"
    assert ">FAM 2, block 16<" in page._models(models)


def test_runs_that_were_made_apart_are_compared(tmp_path, capsys):
    """Paired differences equal those of one evaluation of both models; models with the same name are distinguished by
    their runs; the page has both."""
    models, found = told()
    together = json.loads(json.dumps(models))
    run.side_by_side(together, found, language.position_edges(16), 0)
    for model, mine in zip(models, found, strict=True):
        folder = tmp_path / f"run{model['name'][-1]}"
        model["name"] = "same"
        folder.mkdir()
        (folder / report.RESULTS_JSON).write_text(json.dumps({"models": [model]}), encoding="utf-8")
        with SampleFile(folder / "samples.jsonl") as file:
            for sample in (sample for samples in mine.values() for sample in samples):
                file.add(sample)
    runs = [str(tmp_path / "run1"), str(tmp_path / "run2")]
    assert main(["eval", "--compare", *runs, "--output", str(tmp_path / "both")]) == 0
    written = json.loads((tmp_path / "both" / "results.json").read_text())
    assert [model["name"] for model in written["models"]] == ["run1/same", "run2/same"]
    for one, other in zip(written["models"], together, strict=True):
        for name in ("needles", "books"):
            assert one["tasks"][name].get("against_first") == other["tasks"][name].get("against_first")
        assert one["tasks"]["books"]["by_position"] == other["tasks"]["books"]["by_position"]
    assert "run2/same" in Page((tmp_path / "both" / "report.html").read_text()).seen
    assert "0.9" in capsys.readouterr().out
    other = (tmp_path / "run2" / "samples.jsonl").read_text()
    moved = re.sub(r'"task": "books", "id": "', '"task": "books", "id": "9', other)
    (tmp_path / "run2" / "samples.jsonl").write_text(moved)
    with pytest.raises(ConfigError, match="none is common to all"):
        compare(runs)
    (tmp_path / "run2" / "samples.jsonl").unlink()
    with pytest.raises(ConfigError, match="no answers of same to needles"):
        compare(runs)
    with pytest.raises(ConfigError, match="name output directories"):
        compare([str(tmp_path)])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("runs/fam", "runs/bswa"), ["fam", "bswa"]),
        (("runs/passkey/fam", "runs/texts/fam", "runs/texts/bswa"), ["passkey/fam", "texts/fam", "texts/bswa"]),
        (("a/runs/x/fam", "b/runs/x/fam"), ["a/runs/x/fam", "b/runs/x/fam"]),
    ],
)
def test_models_are_called_by_as_much_of_their_paths_as_tells_them_apart(paths, names):
    """A table shows `texts/fam`, not the whole path."""
    assert run.names_of(paths) == names


def test_a_model_is_evaluated_once():
    """Its two columns would have one name, and their difference would be 0."""
    with pytest.raises(ConfigError, match="runs/fam and runs/../runs/fam/ are the same model directory"):
        run.names_of(["runs/bswa", "runs/fam", "runs/../runs/fam/"])


def test_pass_key_rows_have_the_counts_of_models_with_other_blocks(capsys):
    """Updates and documents are those of each model, as the tokens of filler are."""
    row = {"filler_blocks": 4, "exact_match": 1.0, "low": 0.9, "high": 1.0}
    sizes = ((32, 144.0, 6.0, 32), (64, 288.0, 5.0, 64))
    models = [
        {"name": f"s{size}", "tasks": {}, "passkey": [row | {"filler_tokens": t, "fam_updates": u, "documents": n}]}
        for size, t, u, n in sizes
    ]
    report.print_table(models)
    out = capsys.readouterr().out
    assert all(text in out for text in ("144 / 288", "6 / 5", "32 / 64"))
