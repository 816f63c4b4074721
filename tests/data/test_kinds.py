"""Which reader reads which file: names and contents, alone and in mixtures; no file is read as another kind."""

import glob
import gzip
import itertools
import json
import os
from pathlib import Path

import pytest

from famjax.config import ConfigError, EvalConfig, SourceConfig
from famjax.config.text import BOM
from famjax.data import files, kinds
from famjax.data.pieces import Filler
from famjax.data.sources import open_source
from famjax.data.vocabulary import ByteVocabulary
from famjax.evals.tasks import language
from famjax.evals.tasks.base import Unreadable, check_readable
from famjax.evals.tasks.rows import rows

TEXT = "A plain text.\nWith two lines.\n"
OBJECTS = [{"text": "first"}, {"text": "second\n"}]
JSON = "".join(json.dumps(one) + "\n" for one in OBJECTS)
TEXT_NAMES = ("a.txt", "B.TXT", "a.text", "c.thy", "book", "c.py", "x.tex", "v1.2 final.txt", "a.md")
JSON_NAMES = ("a.jsonl", "A.JSONL", "b.json", "B.Ndjson", "x.y.jsonl")
BESIDE = ("README.md", "readme.txt", "LICENSE", "Licence.txt", "NOTICE", "dataset_infos.json", "metadata.json",
          "_SUCCESS", "SHA256SUMS", "CITATION.cff", "a.txt~")  # fmt: skip
HIDDEN = (".DS_Store", ".gitattributes", "._a.jsonl", ".a.txt.swp")
REFUSED = sorted(ending for endings in kinds.REFUSED.values() for ending in endings)
ENDS = ("", ".gz", ".GZ")


def write(path, text, ending=""):
    content = text if isinstance(text, bytes) else text.encode()
    path = path.with_name(path.name + ending)
    path.write_bytes(gzip.compress(content) if ending else content)
    return path


def texts(pattern, **settings):
    source = open_source(SourceConfig(str(pattern), **settings))
    found = [source.document(i).targets for i in range(len(source))]
    assert source.first().targets == found[0]
    return found


@pytest.mark.parametrize("ending", ENDS)
def test_names_alone(tmp_path, ending):
    """The last suffix decides, whatever its case and whether the file is compressed; the same by name and by glob."""
    wanted = {name: [TEXT] for name in TEXT_NAMES} | {name: [o["text"] for o in OBJECTS] for name in JSON_NAMES}
    for number, (name, documents) in enumerate(wanted.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = write(folder / name, JSON if name in JSON_NAMES else TEXT, ending)
        for hidden in HIDDEN:
            write(folder / hidden, b"\0\1\xff")
        assert texts(path) == texts(folder / "*") == documents, name


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.permutations(("a.txt", "b.JSONL", "c.csv", "d.parquet", "e"), 2))
)
def test_mixtures_are_refused_whatever_comes_first(tmp_path, one, other):
    """Files of two kinds in a glob: refused by name, for training and for evaluation alike."""
    for name in (f"1{one}", f"2{other}"):
        write(tmp_path / name, JSON if "JSON" in name else TEXT)
    if {kinds.kind_of(one), kinds.kind_of(other)} == {"text"}:
        assert texts(tmp_path / "*") == [TEXT, TEXT]
        return
    for read in (texts, lambda pattern: list(rows(str(pattern), "test"))):
        with pytest.raises(ConfigError, match=r"several kinds|does not read"):
            read(tmp_path / "*")


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("name", ["train.jsonl", "book.txt"])
def test_what_lies_beside_data_is_not_read_with_it(tmp_path, name, beside):
    """README and similar files in a glob are refused by name; named directly, or with a kind, each is read."""
    write(tmp_path / name, JSON if name.endswith("l") else TEXT)
    write(tmp_path / beside, TEXT)
    with pytest.raises(ConfigError, match=f"has {beside} beside the data; name the data alone, for example .*/\\*"):
        texts(tmp_path / "*")
    assert len(texts(tmp_path / "*", kind="lines")) == 4
    if not beside.endswith(".json"):
        assert texts(tmp_path / beside) == [TEXT]


@pytest.mark.parametrize("ending", REFUSED)
def test_other_formats_are_refused_by_name(tmp_path, ending):
    """Alone, in upper case, and among valid files; the message says what to do and is one line."""
    for name in (f"a{ending}", f"a{ending.upper()}", f"a.tar{ending}"):
        path = write(tmp_path / name, TEXT)
        with pytest.raises(ConfigError, match=f"{name}: famjax does not read \\{ending} files here; ") as error:
            texts(path)
        assert "\n" not in str(error.value)
        path.unlink()
    write(tmp_path / f"b{ending}", TEXT)
    write(tmp_path / "a.txt", TEXT)
    with pytest.raises(ConfigError, match=r"name the others alone \(.*/\*\.txt\)"):
        texts(tmp_path / "*")


@pytest.mark.parametrize("name", ["a.txt", "train_json", "data.jsonl.1"])
@pytest.mark.parametrize("content", [JSON, "\n\n" + JSON, BOM + JSON.encode(), b"PK\3\4\0\0", b"abc\0"])
def test_content_that_contradicts_its_name(tmp_path, name, content):
    """JSON lines or binary data under the name of a text file: refused, unless the kind is set."""
    path = write(tmp_path / name, content)
    with pytest.raises(ConfigError, match="SourceConfig.kind"):
        texts(path)
    with pytest.raises(ConfigError, match="SourceConfig.kind"):
        texts(path, part_bytes=10_000)
    plain = content if isinstance(content, str) else content.removeprefix(BOM).decode()
    assert texts(path, kind="text") == [plain]


def test_twice_and_archives(tmp_path):
    """A file and its compressed copy would be the same document twice."""
    write(tmp_path / "a.txt", TEXT)
    write(tmp_path / "a.txt", TEXT, ".gz")
    with pytest.raises(ConfigError, match="a.txt.gz packed and unpacked"):
        texts(tmp_path / "*")
    with pytest.raises(ConfigError, match="it is an archive"):
        texts(write(tmp_path / "b.tar", TEXT, ".gz"))


# --- byte order marks, encodings, half surrogate pairs ---------------------------------------------


@pytest.mark.parametrize("ending", ENDS)
def test_a_byte_order_mark_is_no_text(tmp_path, ending):
    """At the start of a file, in every reader of files."""
    for name, content in (("a.txt", TEXT), ("a.jsonl", JSON), ("c.csv", "text,n\r\nfirst,1\r\n"), ("empty.jsonl", "")):
        write(tmp_path / name, BOM + content.encode(), ending)
    text, lines = tmp_path / f"a.txt{ending}", tmp_path / f"a.jsonl{ending}"
    assert texts(text) == [TEXT] and texts(lines) == ["first", "second\n"]
    assert texts(text, kind="lines") == TEXT.splitlines()
    if not ending:
        for part in (1, 2, 3, 4, 9, 100):
            assert "".join(texts(text, part_bytes=part) if part > 3 else parts(text, part)) == TEXT
    with pytest.raises(ConfigError, match="has no documents"):
        open_source(SourceConfig(str(tmp_path / f"empty.jsonl{ending}"))).first()
    assert not len(open_source(SourceConfig(str(tmp_path / f"empty.jsonl{ending}"))))
    assert [row.fields for row in rows(str(lines), "test")] == OBJECTS
    assert [row.fields for row in rows(str(tmp_path / f"c.csv{ending}"), "test")] == [{"text": "first", "n": "1"}]
    assert Filler(str(text)).sentences[0] == "A plain text."


def parts(path, size):
    source = open_source(SourceConfig(str(path), part_bytes=size))
    return [source.document(i).targets for i in range(len(source))]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(tmp_path, encoding):
    """A file in UTF-16 is never read as text of zero bytes."""
    for name, content in (("a.txt", TEXT), ("a.jsonl", JSON)):
        path = write(tmp_path / name, content.encode(encoding))
        with pytest.raises(ConfigError, match="UTF-16|UTF-32|zero bytes|not JSON") as error:
            texts(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("half", [r"\ud83d", r"a \udc00 b", r"\ude00\ud83d", r"\ud83d\ud83d\ude00"])
def test_half_a_surrogate_pair_has_a_place(tmp_path, half):
    """File and line, in the reader of training and of evaluation; a whole pair is one character."""
    path = write(tmp_path / "a.jsonl", '{"text": "ok \\ud83d\\ude00"}\n\n{"text": "' + half + '"}\n')
    source = open_source(SourceConfig(str(path)))
    assert source.document(0).targets == "ok 😀"
    with pytest.raises(ConfigError, match=r"a.jsonl:3: \"text\" has half a surrogate pair \(\\ud[8-f]"):
        source.document(1)
    _, bad = rows(str(path), "test")
    assert isinstance(bad, Unreadable) and bad.place == f"{path}:3" and "half a surrogate" in bad.reason
    kept = write(tmp_path / "b.jsonl", '{"text": "ok", "user": "' + half + '"}\n')
    assert texts(kept) == ["ok"]  # fields that are not read may be invalid


# --- one bad file among good ones ------------------------------------------------------------------

BAD = {
    "latin": ("b.txt", "Café".encode("latin-1")), "broken gzip": ("b.txt.gz", gzip.compress(b"x" * 9999)[:-9]),
    "no gzip": ("b.txt.gz", b"plain"), "binary": ("b.txt", b"a\0b"), "utf-16": ("b.txt", TEXT.encode("utf-16")),
    "json": ("b.txt", JSON.encode()), "latin lines": ("b.jsonl", b'{"text": "Caf\xe9"}\n'),
    "broken lines": ("b.jsonl.gz", gzip.compress(JSON.encode() * 999)[:-9]), "no json": ("b.jsonl", b"text\n"),
    "half a pair": ("b.jsonl", b'{"text": "\\ud83d"}\n'), "a number": ("b.jsonl", b'{"text": 5}\n'),
    "a list": ("b.jsonl", b"[1]\n"), "too deep": ("b.jsonl", b"[" * 100_000 + b"\n"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_one_bad_file_costs_itself_alone(tmp_path, what):
    """docs/evaluation.md: it is counted, with place and reason; fatal only if no file can be read."""
    name, content = BAD[what]
    lines = ".jsonl" in name
    for good in ("a", "c"):
        write(tmp_path / f"{good}{'.jsonl' if lines else '.txt'}", '{"text": "good"}\n' if lines else TEXT)
    (tmp_path / name).write_bytes(content)
    config = EvalConfig(sources=(str(tmp_path / "*"),))
    found = list(language.documents(config, ByteVocabulary()))
    assert [isinstance(one, Unreadable) for one in found] == [False, True, False]
    assert found[1].place.startswith(str(tmp_path / name)) and found[1].reason
    assert check_readable(language.documents(config, ByteVocabulary()), "document of text")
    alone = EvalConfig(sources=(str(tmp_path / name),))
    with pytest.raises(ConfigError, match="no document of text can be read; .*b.*: "):
        check_readable(language.documents(alone, ByteVocabulary()), "document of text")
    if lines:
        found = list(rows(str(tmp_path / "*"), "test"))
        readable = [row.fields["text"] for row in found if not isinstance(row, Unreadable)]
        assert readable.count("good") == 2
        # a number is a valid row; the task reports that its text is not a string
        assert (len(found) > len(readable)) == (what != "a number")


def test_one_bad_table_costs_itself_alone(tmp_path):
    """Parquet and CSV: rows before the damage, and the files after it."""
    import pyarrow
    import pyarrow.parquet

    for name in ("a", "b", "c"):
        pyarrow.parquet.write_table(pyarrow.table({"text": [name]}), tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.csv").write_text(f"text,n\n{name},1\n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "b.csv").write_bytes(b"text,n\nCaf\xe9,1\n")
    for kind in ("parquet", "csv"):
        found = list(rows(str(tmp_path / f"*.{kind}"), "test"))
        assert [isinstance(one, Unreadable) for one in found] == [False, True, False]
        assert found[1].place == str(tmp_path / f"b.{kind}")


@pytest.mark.parametrize("pattern", ["*/*.txt", "**/*.txt", "*/*", "a/../*/*.txt"])
def test_globs_do_not_enter_hidden_folders(tmp_path, pattern):
    """As `glob.glob`: copies that editors and version control keep are no documents. Asked for by name, they are."""
    home = tmp_path / ".home"  # a hidden folder above the glob does not matter
    for name in ("a/one.txt", ".git/two.txt", ".ipynb_checkpoints/one-checkpoint.txt", "a/.three.txt"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    wanted = {os.path.realpath(path) for path in glob.glob(str(home / pattern), recursive=True)}
    assert {os.path.realpath(path) for path in files.expand(str(home / pattern))} == wanted
    assert len(wanted) == 1
    assert [Path(path).name for path in files.expand(str(home / ".git/*.txt"))] == ["two.txt"]
    assert [Path(path).name for path in files.expand(str(home / ".g*/*.txt"))] == ["two.txt"]


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (("train.jsonl", "dev.jsonl", "test.jsonl"), "validation", ["dev.jsonl"]),
        (("train.jsonl", "dev.jsonl", "test.jsonl"), "test", ["test.jsonl"]),
        (("train.jsonl", "test.csv"), "test", ["test.csv"]),
        (("test.jsonl", "test_no_labels.jsonl", "testtrain.jsonl"), "test", ["test.jsonl"]),
        (("test-00000-of-00002.jsonl", "test-00001-of-00002.jsonl", "train-00000-of-00001.jsonl"), "test",
         ["test-00000-of-00002.jsonl", "test-00001-of-00002.jsonl"]),
        (("english_train.jsonl", "english_test.jsonl", "english_val.jsonl"), "test", ["english_test.jsonl"]),
        (("train_v1.jsonl", "test_v1.jsonl"), "test", ["test_v1.jsonl"]),
        (("train0.jsonl", "test0.jsonl", "test1.jsonl"), "test", ["test0.jsonl", "test1.jsonl"]),
        (("training.jsonl", "testing.jsonl"), "test", ["testing.jsonl"]),
        (("squad-train.jsonl", "squad-test.jsonl"), "test", ["squad-test.jsonl"]),
        (("Q.v1.0.1.train.jsonl", "Q.v1.0.1.dev.jsonl"), "validation", ["Q.v1.0.1.dev.jsonl"]),
        (("english_train.jsonl", "english_test.jsonl"), "english_test", ["english_test.jsonl"]),
        (("validation_matched.jsonl", "train.jsonl"), "validation", ["validation_matched.jsonl"]),
        (("one.jsonl", "two.jsonl"), "test", ["one.jsonl", "two.jsonl"]),
        (("Valid.jsonl", "train.jsonl"), "validation", ["Valid.jsonl"]),
        (("train.jsonl", "dev.jsonl"), "test", "no file of the split 'test' but of dev, train; name one with --split"),
        (("test.jsonl", "test.csv"), "test", "several kinds"),
    ],
)  # fmt: skip
def test_a_split_of_a_folder_is_its_own_files(tmp_path, names, split, chosen):
    """Rows of training are never among those of a test, whatever the endings."""
    for name in names:
        (tmp_path / name).write_text(f"text\n{name}\n" if name.endswith("csv") else json.dumps({"text": name}) + "\n")
    if isinstance(chosen, str):
        with pytest.raises(ConfigError, match=chosen):
            list(rows(str(tmp_path), split))
    else:
        assert [row.fields["text"] for row in rows(str(tmp_path), split)] == chosen
