"""A whole evaluation of model directories: what it reuses of an earlier one, and which runs can be compared."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from famjax.cli.main import main
from famjax.config import ConfigError, EvalConfig, MqarConfig
from famjax.evals.harness import run as harness
from famjax.evals.reports.compare import _check_same, _name, compare
from famjax.evals.run import _subject, run, side_by_side
from famjax.evals.samples import Sample
from famjax.storage import checkpoint
from tests import tiny
from tests.evals.tasks.test_benchmarks import write_kv
from tests.infer.test_chat import CHATML
from tests.pretrained import tokenizers_of_ours

S = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two byte models; the second has blocks of half the size."""
    folder = tmp_path_factory.mktemp("models")
    for name, block in (("one", S), ("other", S // 2)):
        config = tiny.config(vocab_size=257, block_size=block)
        checkpoint.save_model(folder / name, config, tiny.parameters(config))
    return folder


def texts(folder: Path, **files: str) -> str:
    """Writes text files, and returns their glob."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return str(folder / "*.txt")


def evaluate(model: Path, output: Path, **settings: Any) -> dict[str, Any]:
    """The only model's entry."""
    (entry,) = run(EvalConfig(model_dirs=(str(model),), output_dir=str(output), batch_size=4, **settings))["models"]
    return entry


def lines(output: Path) -> int:
    return len((output / "samples.jsonl").read_text().splitlines())


def test_after_a_change_of_the_data_only_what_changed_is_asked_again(models: Path, tmp_path: Path) -> None:
    """A file is rewritten and another one comes first, so that all later documents have other numbers: the results are
    those of a new directory. Without a change, nothing is asked again."""
    glob = texts(tmp_path / "t", b="The first text.", c="Another one, which is longer.", d="The last.")
    asked = {"task": "text", "sources": (glob,)}
    evaluate(models / "one", tmp_path / "out", **asked)
    evaluate(models / "one", tmp_path / "out", **asked)
    assert lines(tmp_path / "out") == 3
    texts(tmp_path / "t", c="Another one, which has changed.")
    evaluate(models / "one", tmp_path / "out", **asked)
    assert lines(tmp_path / "out") == 4
    texts(tmp_path / "t", a="It comes first.")
    again = evaluate(models / "one", tmp_path / "out", **asked)
    fresh = evaluate(models / "one", tmp_path / "fresh", **asked)
    assert again["tasks"]["text"] == fresh["tasks"]["text"]
    # So does a comparison, which reads the answers: of several to one example, the last.
    both = compare([str(tmp_path / "out"), str(tmp_path / "fresh")])["models"]
    assert both[0]["tasks"]["text"]["by_position"] == both[1]["tasks"]["text"]["by_position"]


def test_documents_that_are_not_read_or_truncated_are_reported_in_the_terminal(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Texts and pass keys have the counts below their tables; the first place that cannot be read is on stderr, also of
    tasks that find it during the evaluation."""
    glob = texts(tmp_path / "t", a="The first text, which is the longest.", b="x", c="")
    asked = {"task": "text,passkey", "sources": (glob,), "filler_blocks": (4,), "longest": 16}
    tasks = evaluate(models / "one", tmp_path / "out", **asked)["tasks"]
    shown = capsys.readouterr()
    assert tasks["text"]["unreadable"]["examples"] == 2 and tasks["text"]["truncated"]["examples"] == 1
    below = " ".join(shown.out.split())
    assert "one: 1 truncated, 2 unreadable" in below and f"one: {tasks['passkey']['n']} truncated" in below
    first = f"{tmp_path / 't' / 'b.txt'}: there is no token to predict"
    assert f"text: 2 places of the data cannot be read; the first is {first}\n" in shown.err


def test_books_with_header_and_licence_are_predicted_whole_and_counted(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A text is predicted as it is, as in training; how many have Project Gutenberg's header is in terminal, results
    and report."""
    frame = "*** {} OF THE PROJECT GUTENBERG EBOOK X ***\n"
    book = f"\ufeffThe Project Gutenberg eBook of X\n{frame.format('START')}Text.\n{frame.format('END')}Licence.\n"
    glob = texts(tmp_path / "t", a="The first text, which mentions Project Gutenberg.", b=book)
    found = evaluate(models / "one", tmp_path / "out", task="text", sources=(glob,))["tasks"]["text"]
    assert found["with_gutenberg_header"] == 1 and found["n"] == 2
    assert found["tokens"] >= len(book) - 1
    assert "1 with header and licence of Project Gutenberg in the" in " ".join(capsys.readouterr().out.split())
    assert "1 text with header and licence of Project Gutenberg" in (tmp_path / "out" / "report.html").read_text()


def test_results_of_other_tasks_are_replaced_with_a_line(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Another task and one of the harness say before any work whose results they replace; the same tasks and one more
    do not, and the first ones are of their answers."""
    words = ["eval", "--model", str(models / "one"), "--output", str(tmp_path), "--lengths", "256", "--examples", "2"]
    assert main([*words, "--task", "recall"]) == 0
    before = (tmp_path / "results.json").read_bytes()
    harness_words = [*words[:5], "--lm-eval", "no_such_task"]
    for other, code in (harness_words, 2), ([*words, "--task", "copy"], 0):
        capsys.readouterr()
        assert main(other) == code
        error = capsys.readouterr().err
        assert f"replaces the results of recall in {tmp_path}/results.json, unless you name another directory" in error
        assert ("for both in one, evaluate --task recall,copy" in error) == ("--task" in other)
    capsys.readouterr()
    assert main([*words, "--task", "copy,recall"]) == 0 and lines(tmp_path) == 4
    assert "replaces" not in capsys.readouterr().err
    (entry,) = json.loads((tmp_path / "results.json").read_text())["models"]
    (alone,) = json.loads(before)["models"]
    assert list(entry["tasks"]) == ["copy", "recall"] and entry["tasks"]["recall"] == alone["tasks"]["recall"]
    for broken in ("{", "[1]"):  # nothing is lost: written anew
        (tmp_path / "results.json").write_text(broken)
        assert main([*words, "--task", "recall"]) == 0 and '"recall"' in (tmp_path / "results.json").read_text()


def test_a_comparison_is_of_the_results_not_of_all_answers_in_the_folder(models: Path, tmp_path: Path) -> None:
    """A document that was removed since, and one that an unfinished evaluation has answered, are in samples.jsonl."""
    glob = texts(tmp_path / "t", a="The first text.", b="Another one, which is longer.", c="The last.")
    asked = {"task": "text", "sources": (glob,)}
    evaluate(models / "one", tmp_path / "out", **asked)
    (tmp_path / "t" / "c.txt").unlink()
    alone = evaluate(models / "one", tmp_path / "out", **asked)["tasks"]["text"]
    (told,) = compare([str(tmp_path / "out")])["models"]
    assert alone["n"] == 2 and told["tasks"]["text"]["metrics"] == alone["metrics"]
    answers = tmp_path / "out" / "samples.jsonl"
    answers.write_text(answers.read_text() + answers.read_text().replace('"id": "000001"', '"id": "000007"'))
    with pytest.raises(ConfigError, match="out has 3 answers of one to text, but its results are of 2; run this eval"):
        compare([str(tmp_path / "out")])


def test_runs_that_asked_other_questions_are_not_compared(models: Path, tmp_path: Path) -> None:
    """Other texts under the same names, other seeds of a generated task, other buckets of positions."""
    for name in ("t", "u"):
        asked = {"task": "text", "sources": (texts(tmp_path / name, a=f"A text of {name}.", b="The same."),)}
        evaluate(models / "one", tmp_path / f"text_{name}", **asked)
        evaluate(models / "other", tmp_path / f"other_{name}", **asked)
    for seed in (1, 9):
        evaluate(models / "one", tmp_path / f"seed_{seed}", task="recall", lengths=(256,), examples=2, seed=seed)
    refused = lambda *names: compare([str(tmp_path / name) for name in names])
    with pytest.raises(ConfigError, match="different questions: example 000000 of text is not the same"):
        refused("text_t", "text_u")
    with pytest.raises(ConfigError, match=r"of recall: seed is 1 and 9; evaluate both with the same data.* and seed"):
        refused("seed_1", "seed_9")
    with pytest.raises(ConfigError, match="in blocks of 8 and 4 tokens; evaluate these models in one command"):
        refused("text_t", "other_t")
    assert len(refused("text_t", "text_t")["models"]) == 2


def asked(run: str, truncated: int = 0, **settings: Any) -> tuple[dict[str, Any], list[Sample]]:
    """A model's entry and its answer to one example without targets, of a task with these settings."""
    sums = {"tokens": [15.0], "sizes": [15.0]} if "sources" in settings else {}
    sample = Sample("task", "1/0", "1/0", "key", 1, truncated, "", -1.0, [], "", {"exact_match": 0.0}, {}, sums)
    return {"run": run, "first_block": S, "tasks": {"task": {"settings": settings}}}, [sample]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"seed": 1}, {"seed": 2}, "of task: seed is 1 and 2;"),
        ({"depths": [0.0, 1.0]}, {"depths": [1.0, 0.0]}, r"depths is \[0.0, 1.0\] and \[1.0, 0.0\];"),
        ({"filler": ""}, {"filler": "book.txt"}, "filler is '' and 'book.txt';"),
        ({"key_digits": 5}, {"key_digits": 6}, "key_digits is 5 and 6;"),
        (
            {"documents": dataclasses.asdict(MqarConfig())}, {"documents": dataclasses.asdict(MqarConfig(values=8))},
            "values is 16 and 8;",
        ),
        ({"sources": []}, {"sources": [], "truncated": 30}, "1/0 of task, which was truncated; .* the same --longest"),
        # Which questions are asked, in the fields of these documents and in others.
        ({"seed": 1, "keys": 1, "lengths": [64]}, {"seed": 1, "keys": 2, "lengths": [64, 128]}, ""),
        (
            {"documents": dataclasses.asdict(MqarConfig())},
            {"documents": dataclasses.asdict(MqarConfig(blocks=(1,), pairs=(2,)))}, "",
        ),
        # The settings of an older version, which had fewer.
        ({"seed": 1}, {"seed": 1, "filler": ""}, ""),
    ],
)  # fmt: skip
def test_questions_without_a_shown_answer_are_the_same_too(one: Any, other: Any, said: str) -> None:
    """A key has no targets to compare, and needles at other depths have the same ones."""
    both = [asked("a", **one), asked("b", **other)]
    if not said:
        _check_same("task", both)
        return
    with pytest.raises(ConfigError, match=f"^a and b .*{said}"):
        _check_same("task", both)
    both[1][1][0] = dataclasses.replace(both[1][1][0], id="2/0")  # no example in common
    _check_same("task", both)


def test_a_key_at_another_offset_is_another_question() -> None:
    """`EvalConfig.alignments` sets the offset of example i of the pass key."""
    both = [asked("a"), asked("b")]
    for (_, samples), at in zip(both, (3, 12), strict=True):
        samples[0] = dataclasses.replace(samples[0], about={"filler_blocks": 1, "alignment": at})
    with pytest.raises(ConfigError, match="^a and b asked different questions: example 1/0 of task is not the same"):
        _check_same("task", both)


def test_the_same_number_of_other_blocks_is_another_question() -> None:
    """The pass key after eight blocks of 8 and of 4 tokens is no pair; models with equal blocks are compared."""
    entry = lambda block: {"model": {"memory": {"block_size": block}}, "tasks": {"passkey": {}}}
    about = {"filler_blocks": 8}
    answers = [{"passkey": [Sample("passkey", "8/0", "8/0", "", 9, 0, "", -1.0, [], "", {"exact_match": value}, about)]}
               for value in (1.0, 0.0, 0.0)]  # fmt: skip
    models = [entry(S), entry(S // 2), entry(S)]
    side_by_side(models, answers, (), 0)
    assert models[1]["tasks"]["passkey"] == {"against_first": {}, "against_first_by_length": []}
    assert models[2]["tasks"]["passkey"]["against_first"]["exact_match"]["mean"] == -1.0


def test_a_chat_template_ends_the_answers_of_its_own_tasks_only(tmp_path: Path) -> None:
    """An answer to a plain prompt does not depend on the other tasks of the command."""
    config = tiny.config(vocab_size=400)
    checkpoint.save_model(tmp_path, config, tiny.parameters(config))
    tokenizers_of_ours.write(tmp_path, "byte-level")
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    data = (f"kv_retrieval={write_kv(tmp_path, 5, 1)}",)
    subject = _subject(str(tmp_path), EvalConfig(task="niah_single,kv_retrieval", lengths=(1500,), data=data))
    assert {task.name: codec.ends for task, codec in subject.tasks} == {"niah_single": [5], "kv_retrieval": [5, 1]}


def test_models_of_runs_with_one_name_are_told_apart() -> None:
    """Runs are called by as much of their paths as distinguishes them, if their models have the same names."""
    models = [{"name": name, "run": run} for name, run in (("m", "x/out"), ("m", "y/out"), ("n", "y/out"))]
    _name(models)
    assert [model["name"] for model in models] == ["x/out/m", "y/out/m", "n"]


def test_a_comparison_replaces_no_run(tmp_path: Path) -> None:
    """The results of a run are read again by later comparisons. Those of older versions are refused."""
    results = tmp_path / "results.json"
    models = [{"fingerprint": "", "tasks": {"s5": {"settings": {"documents": "Tracking()"}}}}]
    results.write_text(json.dumps({"task": "s5,mqar", "models": models}))
    before = results.read_text()
    for runs in ([str(tmp_path)], [str(tmp_path / "other")]):
        with pytest.raises(ConfigError, match="has the results of s5,mqar, which would be replaced; name another"):
            compare(runs, str(tmp_path / "."))
    with pytest.raises(ConfigError, match="was not written by this version of famjax eval"):
        compare([str(tmp_path)], str(tmp_path / "both"))
    assert results.read_text() == before and not (tmp_path / "both").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lm-eval", "x", "--part", "1/2"], "--part has no effect on the tasks of --lm-eval"),
        (["--lm-eval", "x", "--mesh", "data=2"], "--mesh has no effect on the tasks of --lm-eval"),
        (["--lm-eval", "x", "--seed", "0"], "--seed has no effect"),
        (["--lm-eval", "x", "--task", "recall"], "--task has no effect"),
        (["--lm-eval", "x", "--gin.MESH={'data': 2}"], "--gin.MESH has no effect on the tasks of --lm-eval"),
        (["--lm-eval", "x", "--gin.EvalConfig.longest=9"], "--gin.EvalConfig.longest has no effect"),
        (["--limit", "3"], "--limit has no effect without --lm-eval"), (["--fewshot", "0"], "--fewshot has no effect"),
        (["--list"], "--model has no effect with --list"),
        (["--list", "--seed", "0"], "--seed has no effect with --list"),
        (["--compare", "a", "b", "--list"], "--compare has no effect with --list"),
        (["--compare", "a", "b", "--model", "c"], "--model has no effect with --compare"),
        (["--compare", "a", "b", "--gin.BATCH_SIZE=3"], "--gin settings has no effect with --compare"),
    ],
)  # fmt: skip
def test_flags_of_another_kind_of_evaluation_are_refused(
    words: list[str], message: str, models: Path, capsys: pytest.CaptureFixture
) -> None:
    model = [] if "--compare" in words else ["--model", str(models / "one")]
    assert main(["eval", *model, *words]) == 2
    assert message in capsys.readouterr().err


def test_gin_settings_of_models_hold_for_the_harness(models: Path, tmp_path: Path, monkeypatch) -> None:
    """The memory, the batch and the output directory, as for other tasks; a flag overrides them."""
    seen: list[harness.HarnessConfig] = []
    monkeypatch.setattr(harness, "run", seen.append)
    words = ["eval", "--model", str(models / "one"), "--lm-eval", "x", "--gin.FAM_LENGTH=0", "--gin.BATCH_SIZE=3"]
    words.append(f"--gin.OUTPUT_DIR={str(tmp_path / 'out')!r}")
    assert main(words) == 0 and main([*words, "--fam-length", "1", "--output", str(tmp_path)]) == 0
    assert [one.memory for one in seen] == [{"fam_length": 0}, {"fam_length": 1}]
    assert [one.output_dir for one in seen] == [str(tmp_path / "out"), str(tmp_path)]
    assert [one.batch_size for one in seen] == [3, 3]


def test_every_flag_belongs_to_some_kind_of_evaluation() -> None:
    """A new flag of `famjax eval` must be listed, or it would be ignored in silence by another kind."""
    import argparse

    from famjax.cli import eval as verb

    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    known = {*verb.OURS, *verb.HARNESS, *verb.MODELS, "list", "compare", "lm_eval", "output", "help"}
    flags = {action.dest for action in parser._actions} - {"gin_files", "gin_search_paths"}
    assert {flag for flag in flags if not flag.startswith("gin.")} <= known
