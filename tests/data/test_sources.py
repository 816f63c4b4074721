"""Documents by index: files, lines, JSON lines, Arrow tables; and users' mistakes in them."""

import gzip
import json
import re

import fsspec
import pyarrow
import pytest

from famjax.config import ConfigError, SourceConfig
from famjax.data import line_index, sources
from famjax.data.sources import open_source
from tests.data import text

DOCUMENTS = ["", "one", "zwei Wörter\nin zwei Zeilen\n", "x" * 1000]
OBJECTS = [{"text": "plain"}, {"inputs": "Wie?", "targets": "So."}, {"targets": "no question"}, {"text": "ü\n"}]
FIELDS = [("", "plain"), ("Wie?", "So."), ("", "no question"), ("", "ü\n")]


def documents(path, **settings):
    source = open_source(SourceConfig(str(path), **settings))
    return [source.document(i)[:2] for i in range(len(source))]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_a_document(tmp_path, packed):
    """In the order of their paths, byte for byte, decompressed if the name ends in .gz."""
    for i, content in enumerate(DOCUMENTS):
        raw = content.encode()
        (tmp_path / f"{i}.txt{'.gz' * packed}").write_bytes(gzip.compress(raw) if packed else raw)
    assert documents(tmp_path / "*.txt*") == [("", content) for content in DOCUMENTS]
    assert documents(tmp_path / f"1.txt{'.gz' * packed}") == [("", "one")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("chunk", [1, 2, 7, 2**24])
@pytest.mark.parametrize("name", ["some.txt", "some.txt.gz"])
def test_a_line_is_a_document(tmp_path, monkeypatch, name, chunk, end):
    """Without line ends; blank lines are skipped; the last line needs no end. For any chunk size."""
    monkeypatch.setattr(line_index, "CHUNK", chunk)
    raw = end.join(["", "one", "", "  ", "zwei", "x", "y z", ""]).encode() + b"last"
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    wanted = [("", line) for line in ("one", "zwei", "x", "y z", "last")]
    assert documents(tmp_path / name, kind="lines") == wanted
    assert open_source(SourceConfig(str(tmp_path / name), kind="lines")).first() == ("", "one", "")


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines(tmp_path, packed):
    """Texts, and questions with answers; several files are indexed consecutively, including empty ones."""
    content = "\n".join(map(json.dumps, OBJECTS)).encode()
    pack = gzip.compress if packed else bytes
    for name, raw in (("a", content), ("b", b""), ("c", b"\n" + content + b"\n\n")):
        (tmp_path / f"{name}.jsonl{'.gz' * packed}").write_bytes(pack(raw))
    assert documents(tmp_path / "*.jsonl*") == FIELDS * 2


def test_fields_of_other_names_and_a_separator(tmp_path):
    """Field names are configurable; the separator belongs to the inputs, and is added only if there are some."""
    path = text.write_jsonl(tmp_path / "a.jsonl", [{"q": "Wie?", "a": "So."}, {"q": "", "a": "Ja."}, {"body": "text"}])
    found = documents(path, inputs_field="q", targets_field="a", text_field="body", separator="\n")
    assert found == [("Wie?\n", "So."), ("", "Ja."), ("", "text")]


@pytest.mark.parametrize("part", [1, 5, 8, 90, 10_000])
def test_parts_of_a_file_are_the_file(tmp_path, part):
    """Split at line ends if there are some, never within a character; concatenated, they are the text."""
    content = "Zeile eins\nzwei\n\n" + "ö" * 40 + "\nEnde " + "x" * 30
    (tmp_path / "a.txt").write_text(content)
    (tmp_path / "b.txt").write_text("kurz\n")
    found = [targets for _, targets in documents(tmp_path / "*.txt", part_bytes=part)]
    assert "".join(found) == content + "kurz\n"
    if part == 90:
        assert found == ["Zeile eins\nzwei\n\n" + "ö" * 40 + "\n", "Ende " + "x" * 30, "kurz\n"]


def test_parts_without_lines_are_cut_between_characters(tmp_path, monkeypatch):
    """No line ends nearby: at the next whole character."""
    monkeypatch.setattr(sources, "LONGEST_LINE", 3)
    (tmp_path / "a.txt").write_text("öäü" * 9)
    found = [targets for _, targets in documents(tmp_path / "a.txt", part_bytes=7)]
    assert "".join(found) == "öäü" * 9 and len(found) == 8 and all(found)


def test_a_part_may_begin_with_json(tmp_path):
    """Only the start of a file shows that it contains JSON lines; a book has them in its middle."""
    (tmp_path / "a.txt").write_text('Some text:\n{"a": 1}\n')
    assert documents(tmp_path / "a.txt", part_bytes=11) == [("", "Some text:\n"), ("", '{"a": 1}\n')]
    (tmp_path / "a.txt").write_text('{"a": 1}\nSome text\n')
    with pytest.raises(ConfigError, match="its first line is a JSON object"):
        documents(tmp_path / "a.txt", part_bytes=9)


def test_only_text_files_are_split(tmp_path):
    """Lines and JSON lines are documents already, so that `part_bytes` would be ignored."""
    for name in ("a.jsonl", "b.txt"):
        (tmp_path / name).write_text('{"text": "some text"}\n')
    for name, kind in (("a.jsonl", "auto"), ("b.txt", "lines"), ("b.txt", "jsonl")):
        assert len(documents(tmp_path / name, kind=kind)) == 1
        with pytest.raises(ConfigError, match=f"part_bytes 9 has no effect on .*{name}, of kind '(lines|jsonl)'"):
            documents(tmp_path / name, kind=kind, part_bytes=9)


def test_remote_paths(tmp_path):
    """Whatever fsspec reads: globs, gzip, ranges of bytes."""
    files = fsspec.filesystem("memory")
    files.pipe("/famjax/docs/1.txt", b"one")
    files.pipe("/famjax/docs/2.txt.gz", gzip.compress(b"two"))
    files.pipe("/famjax/some.jsonl", "\n".join(map(json.dumps, OBJECTS)).encode())
    files.pipe("/famjax/some.jsonl.gz", gzip.compress("\n".join(map(json.dumps, OBJECTS)).encode()))
    assert documents("memory://famjax/docs/*") == [("", "one"), ("", "two")]
    assert documents("memory://famjax/some.jsonl") == FIELDS
    assert documents("memory://famjax/some.jsonl.gz") == FIELDS


def save_to_disk(folder, rows, shards, table=pyarrow.Table.from_pylist):
    """Writes what `datasets.Dataset.save_to_disk` writes for these rows."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        part = table(rows[len(rows) * i // shards : len(rows) * (i + 1) // shards])
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, part.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_format_type": None, "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("shards", [1, 3])
def test_hugging_face_datasets_on_disk(tmp_path, shards):
    """All rows of all files in order; other columns do not matter."""
    save_to_disk(tmp_path / "text", [{"text": f"row {i}", "label": i} for i in range(8)], shards)
    assert documents(tmp_path / "text") == [("", f"row {i}") for i in range(8)]
    pairs = [{"inputs": f"{i}?", "targets": f"{i}!", "text": "no"} for i in range(5)]
    save_to_disk(tmp_path / "pairs", pairs, shards)
    assert documents(tmp_path / "pairs") == [(f"{i}?", f"{i}!") for i in range(5)]


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n{"text": }\n', r"a.jsonl:3: this is not JSON \(Expecting value at column 10\)"),
        (b'{"text": "a"}\n[1]\n', r"a.jsonl:2: a document is a JSON object, not list"),
        (b'{"txt": "a"}\n', r'a.jsonl:1: a document has "text", or "inputs" and "targets"; this one has txt'),
        (b'{"text": 5}\n', r'a.jsonl:1: "text" must be a string, not int'),
        (b'{"inputs": ["a"], "targets": "b"}\n', r'a.jsonl:1: "inputs" must be a string, not list'),
        (b'\n{"text": "\xff"}\n', r"a.jsonl:2: this is not UTF-8 text \(invalid start byte at byte 10\)"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_lines_are_named(tmp_path, content, message, packed):
    """File and line as an editor counts them."""
    path = tmp_path / f"a.jsonl{'.gz' * packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    source = open_source(SourceConfig(str(path)))
    with pytest.raises(ConfigError, match=message.replace("a.jsonl", f"a.jsonl{'.gz' * packed}")):
        for i in range(len(source)):
            source.document(i)
    if content.count(b"\n") == 1:
        with pytest.raises(ConfigError, match=message.replace("a.jsonl", f"a.jsonl{'.gz' * packed}")):
            source.first()


def test_missing_files(tmp_path):
    """A missing path, a glob without a match, a folder instead of its files."""
    for path, message in {
        f"{tmp_path}/no.txt": "there is no file .*no.txt",
        f"{tmp_path}/*.txt": r"no file matches .*\*.txt",
        "nonsense://a/b.txt": "nonsense",
        str(tmp_path): r"is a directory without a state.json, .*name them: .*/\*.txt",
    }.items():
        with pytest.raises(ConfigError, match=message):
            open_source(SourceConfig(path))
    with pytest.raises(ConfigError, match=r"is a directory; name its files, for example .*/\*.txt"):
        open_source(SourceConfig(str(tmp_path), kind="lines"))


def test_a_missing_driver_is_named(monkeypatch):
    """`gs://` without gcsfs says what to install."""
    with pytest.raises(ConfigError, match="gs://bucket/a.txt: .*gcsfs"):
        open_source(SourceConfig("gs://bucket/a.txt"))


def test_damaged_files(tmp_path):
    """Truncated or invalid gzip, text that is not UTF-8, invalid Arrow."""
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc" * 999)[:-9])
    (tmp_path / "b.txt.gz").write_bytes(b"plain")
    (tmp_path / "c.txt").write_bytes(b"ok \xff")
    for name, message in {"a.txt.gz": "complete gzip", "b.txt.gz": "complete gzip", "c.txt": r"byte at byte 3"}.items():
        with pytest.raises(ConfigError, match=message):
            documents(tmp_path / name)
    for name in ("a.txt.gz", "b.txt.gz"):
        with pytest.raises(ConfigError, match="not a complete gzip"):
            documents(tmp_path / name, kind="lines")
    save_to_disk(tmp_path / "d", [{"text": "a"}], 1)
    next((tmp_path / "d").glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=re.escape("data-00000-of-00001.arrow is not an Arrow file")):
        documents(tmp_path / "d")


def test_nothing_to_read(tmp_path):
    """No line in the files, or no text in the documents: reported, not waited for."""
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ConfigError, match="a.jsonl has no documents"):
        open_source(SourceConfig(str(tmp_path / "a.jsonl"))).first()
    with pytest.raises(ConfigError, match="a.jsonl has no documents"):
        text.batches_of(text.config(tmp_path / "a.jsonl"), 1)
    text.write_texts(tmp_path / "empty", [0, 0, 0])
    with pytest.raises(ConfigError, match="no document has any text"):
        text.batches_of(text.config(tmp_path / "empty" / "*.txt"), 1)


def test_splits_of_a_dataset_are_named(tmp_path):
    """A folder of splits is not a split."""
    save_to_disk(tmp_path / "all" / "train", [{"text": "a"}], 1)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ConfigError, match="has the splits train, test; name one of them, for example .*/all/train"):
        documents(tmp_path / "all")


def test_text_without_a_utf8_form(tmp_path):
    """JSON can encode half of a surrogate pair, which has no UTF-8 form."""
    path = text.write_jsonl(tmp_path / "a.jsonl", [{"text": "a\ud800"}])
    with pytest.raises(ConfigError, match="half a surrogate pair"):
        text.batches_of(text.config(path), 1)
