"""Scripts of launch/studies/, which make the figures of docs/: what they train and ask is possible, how they count."""

import argparse
import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from famjax.cli import compare, compare_runs
from famjax.cli import main as cli
from famjax.cli.gin_config import load_train_config
from famjax.config import ConfigError, EvalConfig
from famjax.data.vocabulary import ByteVocabulary
from famjax.evals.tasks import catalog
from famjax.infer.codec import Codec
from tests import tiny
from tests.studies import script


def told(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of all verbs that a script would run, none of which is run."""
    said: list[list[str]] = []
    monkeypatch.setattr(module.verbs, "famjax", lambda *words, quiet=False: said.append([str(word) for word in words]))
    return said


def test_every_training_of_the_memory_study_is_possible(tmp_path) -> None:
    """No two runs have the same settings, and each is validated as by `famjax train`."""
    study = script("memory_study")
    runs = study.all_runs()
    jobs = study.jobs(list(runs.values()), argparse.Namespace(folder=tmp_path, gin=[]))
    assert [job.name for job in jobs] == list(runs)
    settings = {repr(job.config).replace(job.config.model_dir, "") for job in jobs}
    assert len(settings) == len(jobs) > 25
    waves = study.waves([runs[name] for name in ("block1024_seed1", "long_seed1", "base", "block256_seed1")])
    assert [[run.name for run in wave] for wave in waves] == [
        ["long_seed1", "base"],
        ["block256_seed1"],
        ["block1024_seed1"],
    ]
    assert set(script("memory_results").PLOTTED) <= set(runs)


def test_the_memory_study_counts_wrong_answers_by_their_place(tmp_path) -> None:
    """Two evaluations, by hand: answers that start 1 before, 0, 5 after, and half a block from a boundary."""
    study, results = script("memory_study"), script("memory_results")
    run = study.Run("one", "recipe", "", asked=(study.Asked("1"), study.Asked("2")))
    places = ((127, 0.0), (128, 0.0), (130, 1.0)), ((69, 0.0), (96, 0.0), (61, 1.0))
    for output, samples in zip(results.evaluations(run, tmp_path), places, strict=True):
        output.mkdir()
        lines = [json.dumps({"tokens": n, "values": {"exact_match": match}}) for n, match in samples]
        (output / "samples.jsonl").write_text("\n".join(lines) + "\n")
    found = results.misses(run, tmp_path, 64)
    assert found == [-32, -1, 0, 5]
    rows = [{"recall": [{"documents": 4}, {"documents": 2}], "misses": found}]
    assert results.where_it_fails(rows) == ["Of 6 answers 4 are wrong; 2 of these start within 3 tokens of a boundary."]


def test_the_minutes_of_a_resumed_training_are_those_of_all_its_processes(tmp_path) -> None:
    """Two processes: 90 and 30 seconds."""
    lines = [{"step": step, "seconds": seconds} for step, seconds in ((1, 30.0), (2, 90.0), (2, 10.0), (3, 30.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert script("memory_results").minutes(tmp_path / "metrics.jsonl") == 2.0


def test_the_tables_of_the_memory_study_have_the_lengths_that_all_rows_were_asked_at() -> None:
    results = script("memory_results")
    row = lambda about, blocks: {
        "about": about, "steps": 2400, "tokens": 13.5e6, "flops": 2e12, "minutes": 4.6,
        "recall": [{"filler_blocks": n, "exact_match": n / 64, "low": 0.1, "high": 0.9} for n in blocks],
    }  # fmt: skip
    lines = results.table([row("first", (1, 16, 64)), row("second", (16, 64, 256))])
    assert lines[0] == "|  | 16 blocks | 64 blocks | steps | tokens | TFLOPs | minutes |"
    assert lines[2:] == [
        "| first | 0.25 (0.10-0.90) | 1.00 (0.10-0.90) | 2,400 | 13.5M | 2 | 4.6 |",
        "| second | 0.25 (0.10-0.90) | 1.00 (0.10-0.90) | 2,400 | 13.5M | 2 | 4.6 |",
    ]


def test_what_the_evaluation_shown_asks_for_is_known(tmp_path, monkeypatch) -> None:
    """All its words are flags that the verbs have, and the models that it compares are those that it trains."""
    show = script("show_evaluation")
    said = told(show, monkeypatch)
    monkeypatch.setattr(show, "picture", lambda report: None)
    monkeypatch.setattr("sys.argv", ["show_evaluation.py", str(tmp_path), "texts"])
    assert show.main() == 0
    assert [words[0] for words in said] == ["quickstart", "quickstart", "eval"]
    verbs = [importlib.import_module(f"famjax.cli.{words[0]}") for words in said]
    parsed = [cli.parse(verb, words[1:]) for verb, words in zip(verbs, said, strict=True)]
    assert parsed[2].model == [f"{tmp_path}/{task}/{name}" for task in ("passkey", "texts") for name in show.MODELS]
    tasks = [one for task in parsed[2].task for one in task.split(",")]
    settings = EvalConfig(tuple(parsed[2].model), task=",".join(tasks), lengths=parsed[2].lengths, examples=1)
    for name in set(tasks) - {"text", "passkey"}:
        task = catalog.make(name, settings, Codec.of(ByteVocabulary()), 64)
        lengths = [len(example.context) + len(example.prompt) for example in task.examples()]
        assert sorted({length for length in lengths}) == list(parsed[2].lengths)


EVERY_STAGE = ["carries", "carries", "keeps", "reads", "wide"]


def test_the_story_of_the_published_model_asks_for_what_the_verbs_know(tmp_path, monkeypatch) -> None:
    """From import to export: every command parses, the models evaluated are the last one trained and both imports, and
    every training starts from what an earlier command has made."""
    story = script("real_model_story")
    said: list[list[str]] = []

    def famjax(*words: object, quiet: bool = False) -> None:
        said.append([str(word) for word in words])
        if words[0] == "score":
            Path(str(words[words.index("--output") + 1])).write_text('{"logprobs": [-1.0, -2.0]}\n')

    monkeypatch.setattr(story.verbs, "famjax", famjax)
    monkeypatch.setattr(story.fetch_smollm2, "main", lambda words: 0)
    compared: list[Path] = []
    monkeypatch.setattr(story.verbs, "compare_with_transformers", lambda *places: compared.extend(places[:2]))
    for name in ("book.txt", "wiki.txt"):
        (tmp_path / name).write_text("text")
    glob = str(tmp_path / "b*.txt")
    texts = ["--texts", glob, "--wikitext", str(tmp_path / "wiki.txt")]
    for flags, trained, shows in (
        ([], ["carries", "carries", "keeps"], ["eval"]),
        (texts, EVERY_STAGE, ["eval", "eval", "eval"]),
        (["--twin"], ["carries", "carries", "keeps", "twin_carries", "twin_carries", "twin_keeps"], ["eval"]),
        (["--twin", *texts], [*EVERY_STAGE, *(f"twin_{name}" for name in EVERY_STAGE)], ["eval", "eval", "eval"]),
        (["--quick"], ["carries"], ["eval"]),
    ):
        out = tmp_path / "_".join(flags[:1] + trained[-1:])
        out.mkdir()
        monkeypatch.setattr("sys.argv", ["real_model_story.py", str(out), *flags])
        said.clear()
        assert story.main() == 0
        order = ["import-hf", "import-hf", "score", "score", *(["train"] * len(trained)), *shows, "export-hf"]
        assert [words[0] for words in said] == order
        parsed = [
            cli.parse(importlib.import_module(f"famjax.cli.{words[0].replace('-', '_')}"), words[1:]) for words in said
        ]
        trainings, shown = parsed[4 : 4 + len(trained)], parsed[4 + len(trained)]
        made = {"fam_imported", "twin_imported"}
        for one, name in zip(trainings, trained, strict=True):
            bindings = dict(binding.split("=", 1) for binding in one.gin_bindings)
            assert Path(eval_text(bindings["INITIAL_CHECKPOINT_PATH"])).name in made
            assert eval_text(bindings["MODEL_DIR"]) == str(out / name)
            made.add(name)
        twin = "--twin" in flags
        last = trained[-1].removeprefix("twin_")
        models = [last, f"twin_{last}"] if twin else [last]
        named = lambda one: ([Path(model).name for model in one.model], one.memory_segments)
        evaluated = [named(one) for one in parsed[4 + len(trained) : -1]]
        if "--texts" in flags:
            assert evaluated == [(models, None), (["fam_imported"], 5), ([last, "fam_imported"], 3)]
            assert "MEMORY_SEGMENTS = 3" in Path(trainings[-1].gin_files[0]).read_text()
            assert ("MEMORY_SEGMENTS=5" in trainings[-1].gin_bindings) == twin
        else:
            assert evaluated == [([*models, "fam_imported", "twin_imported"], None)]
        assert (f"TEXTS={glob!r}" in trainings[-1].gin_bindings) == ("--texts" in flags)
        assert compared[-2:] == [out / last, out / f"exported_{last}"]
    assert f"TRAIN_STEPS={story.QUICK_STEPS}" in trainings[0].gin_bindings and tuple(shown.filler_blocks) == (0, 1, 4)


def eval_text(value: str) -> str:
    """The text of a gin value in quotes."""
    return value.strip("'\"")


def test_the_texts_study_trains_what_it_names_and_pairs_models_of_one_seed(tmp_path) -> None:
    """Kinds differ in nothing but FAM, its updates and segments; a difference is taken seed by seed, by hand here; and
    a run that is not understood is refused."""
    study = script("texts_study")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_text("a" * 3000)
    runs = study.parsed("bswa_m1,fam_m1,gated_m1")
    configs = [run.job(3, 20, 64, tmp_path / "out", tmp_path / "train").config for run in runs]
    memories = [config.model.memory for config in configs]
    assert [(m.fam_length, m.memory_segments, m.fam_update) for m in memories] == [
        (0, 1, "feedback"), (16, 1, "feedback"), (16, 1, "gated"),
    ]  # fmt: skip
    assert {(config.seed, config.steps, config.model.memory.block_size) for config in configs} == {(3, 20, 64)}
    row = lambda bits: [{"from": 0, "to": 128, "bits_per_byte": bits}, {"from": 0, "to": None, "bits_per_byte": bits}]
    found = {"bswa_m1": [row(2.0), row(2.5)], "fam_m1": [row(1.5), row(2.4)], "gated_m1": [row(2.0), row(2.5)]}
    head, _, first, last = study.table(runs, found)
    assert head.split(" | ")[1:4] == ["BSWA, M = 1", "FAM, M = 1", "gated FAM, M = 1"]
    assert first.startswith("| 0 to 127 | 2.250 | 1.950 | 2.250 | -0.300 (-0.500 to -0.100) | +0.000 ")
    assert last.startswith("| all | ")
    with pytest.raises(ConfigError, match="'fam_m' is no run; use KIND_mM"):
        study.parsed("bswa_m0,fam_m")


def test_a_run_of_the_texts_study_that_starts_from_another_one(tmp_path) -> None:
    """It goes on with that one's weights of the same seed, with its own segments and in another order of the texts, and
    is compared with the BSWA that is trained in the same two parts, not with one of as many segments."""
    study = script("texts_study")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_text("a" * 3000)
    runs = study.parsed("bswa_m1,bswa_m0_then_m1,gated_m0_then_m1")
    assert [run.name for run in runs] == ["bswa_m1", "bswa_m0_then_m1", "gated_m0_then_m1"]
    last = runs[2]
    assert last.first == study.parsed("gated_m0")[0] and runs[0].first is None
    config = last.job(2, 20, 128, tmp_path / "out", tmp_path / "train").config
    first = last.first.job(2, 20, 128, tmp_path / "out", tmp_path / "train").config
    assert (first.model.memory.memory_segments, config.model.memory.memory_segments) == (0, 1)
    assert config.initial_checkpoint == first.model_dir and config.seed != first.seed
    assert first.model.memory.fam_update == config.model.memory.fam_update == "gated"
    assert study.in_order(runs, 30, 20) == [(study.parsed("bswa_m0,gated_m0"), 20), (runs, 30)]
    assert study.in_order(study.parsed("bswa_m0,bswa_m0_then_m1"), 30, None) == [
        (study.parsed("bswa_m0"), 30), (runs[1:2], 30),
    ]  # fmt: skip
    row = lambda bits: [{"from": 0, "to": None, "bits_per_byte": bits}]
    found = {"bswa_m1": [row(1.0)], "bswa_m0_then_m1": [row(2.0)], "gated_m0_then_m1": [row(1.5)]}
    head, _, only = study.table(runs, found)
    assert "gated FAM - BSWA, M = 0, then 1" in head and "gated FAM - BSWA, M = 1" not in head
    assert only.endswith("| -0.500 (-0.500 to -0.500) |")


def test_joined_texts_have_every_document_once_and_no_more_than_asked(tmp_path) -> None:
    study, train = script("texts_study"), tmp_path / "train"
    train.mkdir()
    for i in range(40):
        (train / f"{i:02}.txt").write_text(f"<{i:02}>")
    texts = [path.read_text() for path in sorted(study.join(train, tmp_path, 8).glob("*.txt"))]
    assert sorted("".join(texts).split("<")[1:]) == [f"{i:02}>" for i in range(40)]
    assert min(map(len, texts)) // 4 == 1 and 4 < max(map(len, texts)) // 4 <= 8
    again = study.join(train, tmp_path / "again", 8)
    assert texts == [path.read_text() for path in sorted(again.glob("*.txt"))]


def test_the_texts_study_refuses_the_folder_of_another_one(tmp_path, monkeypatch, capsys) -> None:
    """A training on single documents is not one on joined texts: exit code 2, one line, and nothing is trained."""
    study, out = script("texts_study"), tmp_path / "out"
    for part in ("train", "heldout"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.txt").write_text("a" * 3000)
    model_dir = out / "bswa_m0_0"
    bindings = [f"MODEL_DIR={str(model_dir)!r}", f"SOURCES=({str(tmp_path / 'train' / '*.txt')!r},)"]
    model_dir.mkdir(parents=True)
    (model_dir / "config.gin").write_text(load_train_config([study.BSWA], (), bindings)[1])
    arguments = ["--runs", "bswa_m0", "--seeds", "0", "--join", "8"]
    monkeypatch.setattr("sys.argv", ["texts_study.py", str(out), str(tmp_path), *arguments])
    assert study.main() == 2
    error = capsys.readouterr().err
    assert "was trained with other settings" in error and "joined_8" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("memory_study", ["--only", "base", "--only", "bases"], "no run is called bases; there are"),
        ("memory_study", ["--gin", "TRAIN_STEP=3"], "did you mean TRAIN_STEPS"),
        ("memory_study", ["--at-once", "0"], "--at-once is 0"),
        ("texts_study", [".", "--at-once", "-1"], "--at-once is -1"),
        ("texts_study", [".", "--runs", "fam_m0,fam_m0"], "--runs has fam_m0 twice"),
        ("texts_study", [".", "--seeds", "0,0"], "each once"),
        ("texts_study", [".", "--first-steps", "9"], "no run starts from another one"),
        ("texts_study", [".", "--runs", "fam_m0,fam_m0_then_m1", "--first-steps", "9"], "--runs has fam_m0, which"),
        ("texts_study", [".", "--seeds", "a"], "write numbers"),
    ],
)
def test_mistakes_in_the_arguments_of_a_study(name, arguments, said, tmp_path, monkeypatch, capsys) -> None:
    """Exit code 2, and what is wrong in the last line, before any training."""
    study = script(name)
    monkeypatch.setattr(study.side_by_side, "train", lambda *words: pytest.fail("a training was started"))
    monkeypatch.setattr("sys.argv", [f"{name}.py", str(tmp_path / "out"), *arguments])
    try:
        code = study.main()
    except SystemExit as leaving:  # of argparse
        code = leaving.code
    assert code == 2 and said in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_page_loses_no_figures_by_mistake(tmp_path, capsys) -> None:
    """`NAME=` removes a result; NAME alone, where `=FILE` was forgotten, is refused."""
    pages = script("pages")
    (tmp_path / "page.md").write_text("<!-- x -->\n<!-- end of x -->\n")
    page = pages.Page(tmp_path / "page.md", tmp_path / "page.json", {"x": list})
    page.write({"one": {}, "two": {}})
    add = lambda word: pages.add(page, [word], "part", dict, "famjax bench")
    assert add("one") == 2 and list(page.read()) == ["one", "two"]
    assert "'one' is not NAME=FILE" in capsys.readouterr().err
    assert add("one=") == 0 and list(page.read()) == ["two"]


def test_every_training_of_the_papers_ablations_is_possible(tmp_path) -> None:
    """Each is validated as by `famjax compare`, and its memories differ."""
    study = script("paper_ablations")
    for name in study.ABLATIONS:
        words = [str(word) for word in study.words(name, tmp_path, "0", 1)]
        subjects = compare_runs.subjects_of(cli.parse(compare, words[1:]), tmp_path)
        memories = [one.job.config.model.memory for one in subjects]
        assert len(memories) > 1 and all(one not in memories[:i] for i, one in enumerate(memories)), name


def test_trainings_of_facts_are_possible_each_from_the_one_before(tmp_path, monkeypatch, capsys) -> None:
    """Every training has valid settings and another task than the one before, and those in books need both files."""
    facts = script("real_model_facts")
    out, books = tmp_path / "out", tmp_path / "book.txt"
    (tmp_path / "qa1_single_train.txt").write_text("1 Mary moved to the hall.\n2 Where is Mary? \thall\t1\n")
    books.write_text("A book.")
    chains = (out, facts.WORDS, facts.IN_BOOKS, []), (out / "gated", facts.GATED, facts.GATED_IN_BOOKS, ["--gated"])
    model = tiny.config(num_layers=30, block_size=32, fam_length=16, memory_segments=0, fam_gate=True)
    for at, words, in_books, _ in chains:
        for name in ("fam_imported", *(stage.name for stage in (*words, *in_books))):
            (at / name).mkdir(parents=True, exist_ok=True)
            (at / name / "model.json").write_text(model.to_json())
    said = told(facts, monkeypatch)
    with_books = ["--babi", str(tmp_path), "--books", str(books), "--seed", "5"]

    def run(*flags: str) -> int:
        said.clear()
        monkeypatch.setattr("sys.argv", ["real_model_facts.py", str(out), *flags])
        return facts.main()

    starts = []
    for at, words, in_books, which in chains:
        assert run(*which) == 0 and [verb for verb, *_ in said] == ["train"] * len(words)
        assert run(*which, *with_books) == 0 and [verb for verb, *_ in said] == ["train"] * len([*words, *in_books])
        before, tasks, models = "fam_imported", [], []
        for _, *flags in said:
            given = cli.parse(importlib.import_module("famjax.cli.train"), flags)
            config, _ = load_train_config(given.gin_files, (), given.gin_bindings)
            config.validate()
            assert config.initial_checkpoint == str(at / before) and config.seed == 5
            before = Path(config.model_dir).name
            models.append(config.model)
            tasks.append((config.mqar, config.babi, config.task, config.sequence_length))
        starts.append(models[0])
        assert all(one != other for one, other in zip(tasks, tasks[1:], strict=False))
        assert tasks[-1][1].folder == str(tmp_path) and tasks[-1][1].books == (str(books),)
        # A later run in DIR does not start from models of two steps.
        (at / "quick" / "fam_imported").mkdir(parents=True)
        assert run(*which, *with_books, "--quick") == 0 and all("--gin.TRAIN_STEPS=2" in flags for flags in said)
        places = [word for flags in said for word in flags if "MODEL_DIR" in word or "INITIAL" in word]
        assert len(places) == 2 * len(said) and all(f"'{at}/quick/" in word for word in places)
    plain, gated = starts  # that differ in FAM's updates alone
    assert (gated.memory.fam_update, gated.memory.fam_gradient_blocks) == ("gated", 8)
    same = {name: getattr(plain.memory, name) for name in ("fam_update", "fam_update_noise", "fam_gradient_blocks")}
    assert dataclasses.replace(gated, memory=dataclasses.replace(gated.memory, **same)) == plain
    for flags, why in (
        (["--babi", str(tmp_path)], "--babi and --books need each other"),
        (["--babi", str(out), "--books", str(books)], "has no qa1_*_train.txt of bAbI v1.2"),
        (["--babi", str(tmp_path), "--books", str(out / "*.txt")], "--books: no file matches"),
    ):
        with pytest.raises(SystemExit):
            run(*flags)
        assert why in capsys.readouterr().err


def test_the_table_of_recall_is_the_mean_and_range_over_seeds() -> None:
    """Runs are grouped by their names without seeds; runs that were not evaluated alike are refused."""
    table = script("recall_pages")
    recall = lambda *values, documents=64: [
        {"filler_blocks": blocks, "documents": documents, "exact_match": value}
        for blocks, value in zip((1, 16), values, strict=False)
    ]
    models = [{"name": "fam_seed0", "passkey": recall(1.0, 0.5)}, {"name": "fam_seed1", "passkey": recall(0.5, 0.25)},
              {"name": "before", "passkey": recall(0.0, 0.0)}]  # fmt: skip
    lines = table.section("AMD EPYC", table.kept("quickstart", {"models": models}))
    assert lines[0] == "**AMD EPYC**, 64 documents at each length; mean and range over the seeds:"
    assert lines[2:] == [
        "| | seeds | 1 block | 16 blocks |", "|---|---|---|---|", "| fam | 2 | 0.75 (0.50-1.00) | 0.38 (0.25-0.50) |",
        "| before | 1 | 0.00 | 0.00 |",
    ]  # fmt: skip
    runs = [{"about": f"{part} of, seed {n}", "part": part, "recall": recall(1.0, 1.0)}
            for part in ("ablations", "segments") for n in range(3)]  # fmt: skip
    assert [list(table.kept(part, {"runs": runs})["rows"]) for part in ("ablations", "segments")] == [
        ["ablations of"], ["segments of"],
    ]  # fmt: skip
    for other in ([{"name": "b", "passkey": recall(1.0)}], [{"name": "b", "passkey": recall(1.0, 1.0, documents=8)}]):
        with pytest.raises(ValueError, match="2 runs"):
            table.kept("quickstart", {"models": [*models[:1], *other]})


def test_the_page_of_benchmarks_has_the_sides_of_the_window_that_all_models_have() -> None:
    """In a long text no fact may be in the window: then there is no row for it."""
    page = script("benchmarks_page")
    right = lambda value: {"value": value, "low": 0.0, "high": 1.0, "n": 4}
    of = lambda name, **sides: {"name": name, "tasks": {"babi": {"by_reach": [
        {"side": side, "metrics": {"word_match": right(value)}} for side, value in sides.items()
    ]}}}  # fmt: skip
    both, far = of("one", inside=1.0, outside=0.5), of("two", outside=0.25)
    assert page.kept({"models": [both]}) == {"babi": {"inside": {"one": right(1.0)}, "outside": {"one": right(0.5)}}}
    assert page.kept({"models": [both, far]}) == {"babi": {"outside": {"one": right(0.5), "two": right(0.25)}}}
    assert page.section("A", page.kept({"models": [far]}))[-1] == "| the fact outside of it | 4 | 0.250 (0.000-1.000) |"


def test_tables_of_a_terminal_as_markdown() -> None:
    """Header, rule and rows, in the order of the terminal's table, below its title."""
    from rich.table import Table

    shown = Table(title="training step")
    for name in ("model", "tokens/s"):
        shown.add_column(name)
    shown.add_row("FAM", "1,442")
    assert script("bench_page").markdown(shown) == [
        "Training step:", "", "| model | tokens/s |", "|---|---|", "| FAM | 1,442 |",
    ]  # fmt: skip
