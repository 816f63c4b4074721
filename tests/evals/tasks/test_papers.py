"""The paper's tasks, from every published form of their data sets; a bad row only skips itself."""

import copy
import csv
import functools
import json
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from famjax.cli.main import main
from famjax.config import ConfigError, EvalConfig
from famjax.data.vocabulary import ByteVocabulary, load_vocabulary
from famjax.evals.runner import Runner
from famjax.evals.tasks import catalog, rows
from famjax.evals.tasks.base import Example, Unreadable
from famjax.infer.codec import Codec
from tests.evals.tasks import schemas
from tests.evals.test_runner import Parrot
from tests.pretrained import tokenizers_of_ours

CODEC = Codec.of(ByteVocabulary())
NAMES = [name for name, entry in catalog.TASKS.items() if entry.module == "papers"]


def make(name: str, data: str, **settings):
    return catalog.make(name, EvalConfig(data=(f"{name}={data}",), **settings), CODEC, 64)


def text(tokens) -> str:
    return bytes(tokens.tolist()).decode()


def shown(examples) -> list[tuple]:
    """Returns the examples as text."""
    return [
        (one.id, one.group, text(one.context), text(one.prompt), one.targets, tuple(map(text, one.choices)), one.answer)
        for one in examples
    ]


def write_folder(folder, table: list[dict], splits: bool) -> str:
    """Writes a folder as `save_to_disk` of Hugging Face datasets does, with or without splits, in two shards."""
    inside = folder / "test" if splits else folder
    inside.mkdir(parents=True)
    for i, part in enumerate((table[:1], table[1:])):
        whole = pyarrow.Table.from_pylist(part)
        with pyarrow.ipc.new_stream(str(inside / f"data-{i}.arrow"), whole.schema) as writer:
            writer.write_table(whole)
    (inside / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"data-{i}.arrow"} for i in (0, 1)]}))
    if splits:
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return str(folder)


def test_narrative_qa_reads_alike_from_every_form(tmp_path):
    """JSON lines, Parquet, folders of `save_to_disk` with and without splits, and the original repository: the story
    precedes its questions, and each has two correct answers."""
    table = schemas.narrative_qa()
    whole = pyarrow.Table.from_pylist(table)
    (tmp_path / "parquet").mkdir()
    pyarrow.parquet.write_table(whole, tmp_path / "parquet" / "test-00000.parquet")
    forms = [
        schemas.write_jsonl(tmp_path / "test.jsonl", table), str(tmp_path / "parquet"),
        str(tmp_path / "parquet" / "*.parquet"), write_folder(tmp_path / "plain", table, False),
        write_folder(tmp_path / "splits", table, True),
    ]  # fmt: skip
    expected = shown(make("narrative_qa", forms[0]).examples())
    assert [one[1] for one in expected] == ["b1", "b1", "b2"]
    assert expected[0][2:5] == (
        schemas.BOOK, "\n\nQuestion: Where was the key?\nAnswer:", ("Under the oak", "Beneath an oak tree"),
    )  # fmt: skip
    for form in forms[1:]:
        assert shown(make("narrative_qa", form).examples()) == expected
    original = schemas.write_original_narrative_qa(tmp_path / "original")
    one, missing = make("narrative_qa", original).examples()
    assert shown([one])[0][2:4] == expected[0][2:4] and one.targets == ("Under the oak", "Beneath, an oak")
    assert "b9.content" in missing.reason


def test_splits_of_the_original_repository_have_the_names_of_others(tmp_path):
    """Its qaps.csv calls the validation split `valid`; a split that it does not have is named."""
    original = schemas.write_original_narrative_qa(tmp_path / "original")
    table = tmp_path / "original" / "qaps.csv"
    table.write_text(table.read_text().replace(",test,", ",valid,"))
    found = [shown([next(iter(make("narrative_qa", original, split=split).examples()))])
             for split in ("validation", "valid")]  # fmt: skip
    assert found[0] == found[1]
    with pytest.raises(ConfigError, match="narrative_qa has no example; .*original is empty, or has no split 'dev_2'"):
        make("narrative_qa", original, split="dev_2")


def test_a_story_is_read_once_for_its_questions(tmp_path):
    """Three questions prefill two stories."""
    task = make("narrative_qa", schemas.write_jsonl(tmp_path / "test.jsonl", schemas.narrative_qa()))
    parrot = Parrot()
    parrot.generate = lambda asks, *rest: ((i, np.zeros(0, np.int32), True) for i in range(len(asks)))
    samples = list(Runner(parrot, CODEC).run(task))
    assert len(samples) == 3 and len(parrot.was_read) == 2
    assert set(samples[0].values) == {"rouge_l", "f1", "exact_match"}


def test_qasper_has_all_answers_of_a_question(tmp_path):
    """Rows with one id become one question; the paper is the context, the question follows it."""
    first, second = make("qasper", schemas.write_jsonl(tmp_path / "v.jsonl", schemas.qasper())).examples()
    assert first.targets == ("400 hours", "Four hundred hours") and second.targets == ("Three",)
    assert text(first.context) == schemas.PAPER.strip() == text(second.context) and first.group == second.group
    assert text(second.prompt) == "\n\nQuestion: How many layers?\nAnswer:"


def test_quality_reads_alike_from_scrolls_and_from_its_own_files(tmp_path):
    """Four options, one of which contains "(B)", and the index of the correct one."""
    scrolls = list(make("quality", schemas.write_jsonl(tmp_path / "s.jsonl", schemas.quality())).examples())
    own = list(make("quality", schemas.write_jsonl(tmp_path / "o.jsonl", schemas.original_quality())).examples())
    for one, other in zip(scrolls, own, strict=True):
        assert text(one.context).strip() == text(other.context).strip() == schemas.BOOK.strip()
        assert shown([one])[0][3:] == shown([other])[0][3:]
    assert [one.answer for one in scrolls] == [0, 2]
    assert [text(choice) for choice in scrolls[0].choices] == [f" {option}" for option in schemas.OPTIONS]
    assert scrolls[0].choice_sizes == tuple(1 + len(option) for option in schemas.OPTIONS)


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_one_space_is_before_an_option(tmp_path, kind):
    """Also if the tokenizer adds one itself, as those of Llama 2 and Mistral do."""
    codec = Codec.of(load_vocabulary(str(tokenizers_of_ours.write(tmp_path, kind))))
    data = schemas.write_jsonl(tmp_path / "s.jsonl", schemas.quality())
    first, *_ = catalog.make("quality", EvalConfig(data=(data,)), codec, 64).examples()
    for option, choice in zip(schemas.OPTIONS, first.choices, strict=True):
        whole = codec.vocabulary.decode(np.concatenate([first.prompt, choice]))
        assert whole.endswith(f"\nAnswer: {option}")


def test_xlsum_asks_for_a_summary(tmp_path):
    """The text comes first, then the request."""
    (one,) = make("xlsum", schemas.write_jsonl(tmp_path / "x.jsonl", schemas.xlsum())).examples()
    assert (text(one.context), text(one.prompt), one.targets) == (
        schemas.BOOK, "\n\nSummary:", ("A key was found.",),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["pg19", "isabelle"])
def test_texts_are_predicted_from_files_and_rows(tmp_path, name):
    """Every token but the first is scored, with its bytes; an unreadable file and an empty one are reported."""
    ending = "txt" if name == "pg19" else "thy"
    for file, content in (("a", "théory A".encode()), ("b", b"\xff\xfe"), ("c", b"x")):
        (tmp_path / f"{file}.{ending}").write_bytes(content)
    good, bad, short = make(name, str(tmp_path / f"*.{ending}")).examples()
    assert bytes([*good.prompt, *good.scored]).decode() == "théory A" and good.size == 8
    assert "not UTF-8" in bad.reason and "no token" in short.reason
    with pytest.raises(ConfigError, match=r"no .jsonl, .* name other files, for example '.*/\*.txt'"):
        make(name, str(tmp_path))  # of a folder, only row files are found
    table = [{"short_book_title": "A", "publication_date": 1, "url": "", "text": "théory A"}]
    (row,) = make(name, schemas.write_jsonl(tmp_path / "r.jsonl", table)).examples()
    assert row.about["name"] == "A" and np.array_equal(row.scored, good.scored)


@pytest.mark.slow
def test_tfds_and_the_hub_say_what_is_missing(tmp_path, monkeypatch):
    """An unknown data set or a missing network is one line that says what to do; TFDS's bytes and arrays become text
    and lists."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"tfds:no_such_set"):
        list(make("xlsum", "tfds:no_such_set").examples())
    with pytest.raises(ConfigError, match=r"hub:no/such.* (pip install datasets|pass local files with --data)"):
        list(make("xlsum", "hub:no/such").examples())
    fields = {"a": b"text", "b": {"c": np.array([b"x", b"y"], object)}, "n": np.int64(3)}
    assert rows._decoded(fields) == {"a": "text", "b": {"c": ["x", "y"]}, "n": 3}


DOCUMENT = {"document": {"id": "d", "text": "A text."}, "question": {"text": "a"}}
BAD = {
    "narrative_qa": ({"question": {"text": "a"}}, "it has no document.id"),
    "narrative_qa, one answer": (DOCUMENT | {"answers": {"text": "abc"}}, "answers.text is not a list of texts"),
    "narrative_qa, no texts": (DOCUMENT | {"answers": {"text": [1]}}, "answers.text is not a list of texts"),
    "narrative_qa, no list": (DOCUMENT | {"answers": None}, "answers is not a list of objects"),
    "narrative_qa, none": (DOCUMENT | {"answers": []}, "it has no answer"),
    "quality, numbers": (
        {"article": "A text.", "questions": [{"question": "q", "options": [1, 2], "gold_label": 1}]},
        "options is not a list of texts",
    ),
    "quality, none": ({"article": "A text.", "questions": []}, "it has no question"),
    "quality, truth": (
        {"article": "A text.", "questions": [{"question": "q", "options": ["a", "b"], "gold_label": True}]},
        "gold_label True is not one of 2 options",
    ),
    "qasper": ({"id": "1", "input": "no paper", "output": "x"}, "a question, an empty line and a paper"),
    "quality": ({"id": "1", "input": "q\n\nno options", "output": "x"}, "options"),
    "xlsum": ({"id": "1", "text": "", "summary": "x"}, "text is not a text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_costs_itself_only(tmp_path, name):
    """A partial line, JSON that is not an object, missing fields: each is reported with file, line and reason; the
    other rows are read."""
    good = {"narrative_qa": schemas.narrative_qa, "qasper": schemas.qasper, "quality": schemas.quality,
            "xlsum": schemas.xlsum}[name.partition(",")[0]]()  # fmt: skip
    row, reason = BAD[name]
    name = name.partition(",")[0]
    path = schemas.write_jsonl(tmp_path / "d.jsonl", ['{"a": \n', "\n", "[1]\n", row, *good])
    found = list(make(name, path).examples())
    bad = [one for one in found if isinstance(one, Unreadable)]
    assert [one.place for one in bad] == [f"{path}:1", f"{path}:3", f"{path}:4"]
    assert "not JSON" in bad[0].reason and "not a JSON object" in bad[1].reason and reason in bad[2].reason
    clean = make(name, schemas.write_jsonl(tmp_path / "clean.jsonl", good)).examples()
    assert shown(one for one in found if isinstance(one, Example)) == shown(clean)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_data_set_is_told_with_what_to_type(name, tmp_path, capsys):
    """One line before any work; the same for a path that does not exist."""
    with pytest.raises(ConfigError, match=f"add --data {name}=PATH, PATH being"):
        catalog.make(name, EvalConfig(), CODEC, 64)
    with pytest.raises(ConfigError, match="there is no file"):
        make(name, str(tmp_path / "nothing.jsonl"))


def test_data_of_several_tasks_is_told_apart(tmp_path, capsys):
    """`--data TASK=PATH` for each task; a path without a task is for the tasks that have none. A wrong split's error
    lists the others."""
    config = EvalConfig(data=("xlsum=a", "b"))
    assert [config.data_of(name) for name in ("xlsum", "qasper")] == ["a", "b"]
    folder = write_folder(tmp_path / "splits", schemas.narrative_qa(), True)
    with pytest.raises(ConfigError, match="has no split 'dev' but train, test; name one with --split"):
        make("narrative_qa", folder, split="dev")
    first = list(make("narrative_qa", folder, examples=2).examples())
    assert len(first) == 2
    assert main(["eval", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in catalog.TASKS)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yields the paths of all fields and list entries of a row, outer ones first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield (*path, key)
        yield from places(one, (*path, key))


def damaged(row: dict) -> Iterator[dict]:
    """Yields the row with each of its fields replaced by a value of every JSON type, and without it."""
    for *outer, last in places(row):
        for value in (None, True, 0, 1.5, "", "a text", [], [None], [1], ["a"], [[]], [{}], {}, {"text": None}, GONE):
            copy_of = copy.deepcopy(row)
            inside = functools.reduce(operator.getitem, outer, copy_of)
            if value is GONE:
                del inside[last]
            else:
                inside[last] = value
            yield copy_of


GONE = object()
SCHEMAS = [(name, schema) for name, schemas_of in schemas.ROWS.items() for schema in schemas_of]


@pytest.mark.parametrize(("name", "schema"), SCHEMAS)
def test_no_damage_to_a_row_is_more_than_that_row(tmp_path, name, schema):
    """For every reader, every field and every JSON type: the row is read or reported, never lost, and never an error
    of Python; what is read consists of texts."""
    good = schema()
    path = schemas.write_jsonl(tmp_path / "d.jsonl", good)
    asked = lambda found: sum(max(1, len(one.targets)) if isinstance(one, Example) else 1 for one in found)
    least = asked(make(name, path).examples())
    for row in damaged(good[0]):
        found = list(make(name, schemas.write_jsonl(tmp_path / "d.jsonl", [row, *good])).examples())
        assert asked(found) > least, row
        assert all(isinstance(target, str) for one in found if isinstance(one, Example) for target in one.targets), row


@pytest.mark.parametrize("column", ["document_id", "set", "question", "answer1", "answer2"])
def test_a_column_that_the_repository_of_narrative_qa_lacks_is_named(tmp_path, column):
    """A file without one of its columns, and a row with an empty one, which is skipped; no other split is read."""
    folder = schemas.write_original_narrative_qa(tmp_path / "original")
    head, first, *others = (tmp_path / "original" / "qaps.csv").read_text().splitlines()
    written = dict(zip(head.split(","), next(csv.reader([first])), strict=True))
    with open(tmp_path / "original" / "qaps.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, head.split(","))
        rows.writeheader()
        rows.writerows([written | {column: ""}, written])
    bad = [one for one in make("narrative_qa", folder).examples() if isinstance(one, Unreadable)]
    assert [f"{column} is not a text" in one.reason for one in bad] == [True] * (column != "set")
    with open(tmp_path / "original" / "qaps.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, [name for name in written if name != column], extrasaction="ignore")
        rows.writeheader()
        rows.writerow(written)
    with pytest.raises(ConfigError, match=f"row 1: it has no {column}"):
        make("narrative_qa", folder)
