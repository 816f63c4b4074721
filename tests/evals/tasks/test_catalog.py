"""The table of tasks says which settings a task reads, and the command line refuses those that none reads."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from famjax.cli.main import main
from famjax.config import EvalConfig
from famjax.data.documents import labelled_documents
from famjax.evals.tasks import catalog
from famjax.evals.tasks.base import Example
from famjax.infer.codec import Codec
from tests.evals.tasks import schemas
from tests.infer.test_chat import CHATML
from tests.pretrained import tokenizers_of_ours

# Another value of every setting that some task reads and others do not.
OTHER = {
    "lengths": (1600,), "depths": (0.9, 0.1), "examples": 1, "filler": "more.txt", "filler_blocks": (1,), "keys": 2,
    "alignments": 3, "key_digits": 4, "max_new_tokens": 3, "split": "train", "chat": False, "data": "twice",
    "sources": ("more.txt",),
}  # fmt: skip
BASE = EvalConfig(
    lengths=(1500,), examples=9, filler_blocks=(0,), alignments=2, sources=("*.txt",)
)  # fmt: skip
# Data that are named otherwise than their task: a file among those of its folder, and one whose name is read.
FILES = {"kv_retrieval": "kv_retrieval/test.jsonl", "babi": "qa1_test.txt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every data set `once`, and `twice` in one; a tokenizer with a chat template; texts."""
    folder = tmp_path_factory.mktemp("data")
    tokenizers_of_ours.write(folder / "model", "byte-level")
    (folder / "model" / "chat_template.jinja").write_text(CHATML)
    (folder / "some.txt").write_text("It was a dark night. The key lay under the oak.")
    (folder / "more.txt").write_text("A short tale of a fox. It had no end.")
    for times, name in enumerate(("once", "twice"), start=1):
        for task, (rows, *_) in schemas.ROWS.items():
            schemas.write_jsonl(folder / name / task / "train.jsonl", rows())
            for split in ("test", "validation"):
                schemas.write_jsonl(folder / name / task / f"{split}.jsonl", rows() * 2 * times)
        (folder / name / "wikitext").write_text(schemas.WIKITEXT * times)
        other = schemas.BABI.replace("Mary", "Sandra") if times > 1 else ""
        (folder / name / FILES["babi"]).write_text(schemas.BABI + other)
    return folder


def made(name: str, folder: Path, **settings: Any) -> tuple[Any, ...]:
    """Returns what a model is asked with these settings, and how much it may answer."""
    data = f"{settings.pop('data', 'once')}/{FILES.get(name, name)}"
    config = dataclasses.replace(BASE, task=name, data=(f"{name}={data}",), **settings)
    documents = labelled_documents(name, config.mqar, config.tracking)
    codec = Codec.of(documents.vocabulary) if documents else Codec(folder / "model", 400)
    task = catalog.make(name, config, codec, 64)
    found = [(one.id, one.digest()) for one in task.examples() if isinstance(one, Example)]
    assert found
    return found, task.max_new_tokens if task.kind == "generate" else 0


@pytest.mark.parametrize("name", catalog.TASKS)
def test_a_task_reads_what_changes_it(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Entry.reads` has exactly the settings another value of which changes the examples or the answers' length."""
    monkeypatch.chdir(folder)
    before = made(name, folder)
    changed = {field for field, value in OTHER.items() if made(name, folder, **{field: value}) != before}
    assert changed == set(catalog.TASKS[name].reads)


@pytest.mark.parametrize("name", [name for name, entry in catalog.TASKS.items() if "lengths" in entry.reads])
def test_a_length_given_twice_is_evaluated_once(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the examples of the lengths in their order."""
    monkeypatch.chdir(folder)
    short, long = (made(name, folder, lengths=(length,), examples=2)[0] for length in (1500, 1600))
    assert made(name, folder, lengths=(1600, 1500, 1600), examples=2)[0] == long + short


ONE = ["--data=lambada=once/lambada/test.jsonl"]
UNREAD = [
    ("", ["--lengths=64"], "--lengths"), ("", ["--examples=3"], "--examples"), ("", ["--depths=0.5"], "--depths"),
    ("", ["--max-new-tokens=9"], "--max-new-tokens"), ("", ["--chat"], "--chat"), ("", ["--data=x"], "--data"),
    ("recall", ["--filler-blocks=1"], "--filler-blocks"), ("recall", ["--keys=9"], "--keys"),
    ("recall", ["--filler=some.txt"], "--filler"), ("recall", ["--split=foo"], "--split"),
    ("recall", ["--data=nope=x.jsonl"], "--data"), ("recall", ["--data=recall=x.jsonl"], "--data"),
    ("recall,copy", ["--texts=some.txt"], "--texts"), ("variable_tracking", ["--depths=0.5"], "--depths"),
    ("recall", ["--gin.EvalConfig.alignments=2"], "--gin.EvalConfig.alignments"),
    ("lambada", [*ONE, "--split=foo"], "--split"), ("wikitext", ["--data=once/wikitext", "--split=foo"], "--split"),
    ("kv_retrieval", ["--data=once/kv_retrieval", "--split=foo"], "--split"),
    ("lambada", [*ONE, "--data=nope=x"], "--data nope=x"), ("lambada", [*ONE, "--data=x"], "--data x"),
    ("lambada", ["--data=lambada=x", *ONE], "--data lambada=x"),
    ("lambada,recall", [*ONE, "--data=recall=x"], "--data recall=x"),
    ("seqio:mine", ["--lengths=64"], "--lengths"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "words", "named"), UNREAD)
def test_settings_that_no_task_reads_are_refused(
    task: str,
    words: list[str],
    named: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """One line that names the flag, before any work; `--data` of a task that is not evaluated, or given twice, too."""
    monkeypatch.chdir(folder)
    assert main(["eval", "--model", "no/such", *(["--task", task] if task else []), *words]) == 2
    error = capsys.readouterr().err
    assert f"{named} has no effect" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("passkey,recall", ["--filler-blocks=1", "--depths=0.5", "--gin.EvalConfig.alignments=2"]),
        ("lambada", ["--data=once/lambada", "--split=validation"]),
        ("lambada,recall", ["--data=once/lambada", "--lengths=64"]),
        ("lambada,piqa", ["--data=lambada=once/lambada", "--data=once/piqa"]),
        ("", ["--texts=some.txt"]),
    ],
)
def test_one_task_that_reads_a_setting_is_enough(
    task: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The next check is that of the model."""
    monkeypatch.chdir(folder)
    assert main(["eval", "--model", "no/such", *(["--task", task] if task else []), *words]) == 2
    assert "no/such does not exist" in capsys.readouterr().err


def test_a_path_without_its_task_is_for_one_task_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Several tasks would read one data set, each in its own way; one line says what to write instead."""
    monkeypatch.chdir(folder)
    words = ["--task", "lambada,recall,wikitext", "--data", "once/lambada/test.jsonl"]
    assert main(["eval", "--model", "no/such", *words]) == 2
    error = capsys.readouterr().err
    assert "once/lambada/test.jsonl does not say of which task it is; write --data lambada=PATH --data wik" in error
    assert error.count("\n") == 1
