"""Users' files are decoded in one place, `config/text.py`; other readers of text are listed here, with a reason."""

import ast
from pathlib import Path

import numpy as np
import pytest

from famjax.config.text import BOM, BadText, texts_of, without_mark

PACKAGE = Path(__file__).parents[1] / "famjax"
# Readers of files that famjax or the system writes, or that a library must open; and readers of users' files as bytes.
OWN = {
    "storage/model_dir.py", "storage/base.py", "jobs/liveness.py", "storage/steps.py", "storage/checkpoint.py",
    "process/memory.py", "storage/pieces.py", "storage/unfinished.py", "jobs/peers.py", "jobs/distributed.py",
    "plan/dump.py", "plan/child.py", "plan/costs.py", "train/watching/metrics.py", "cli/side_by_side.py",
    "evals/samples.py", "evals/reports/compare.py", "evals/run.py", "launch/slurm.py", "launch/processes.py",
    "launch/tpu_vm.py", "bench/machine.py", "infer/session.py", "data/seqio_vocabulary.py",
    "storage/lock.py", "cli/compare_runs.py", "evals/memories.py",
}  # fmt: skip
DECODERS = {
    "config/text.py": "the one place",
    "config/model.py": "the text of model.json, read by storage/model_dir.py",
    "data/sources.py": "a look whether a text is JSON",
    "data/vocabulary.py": "a tokenizer's files", "data/symbols.py": "a task's own vocabulary, written by famjax",
    "data/tokenizer_folder.py": "a tokenizer's files", "evals/tasks/rows.py": "TFDS gives bytes",
    "evals/tasks/seqio_task.py": "TFDS gives bytes", "pretrained/folder.py": "config.json of a model",
    "cli/export_hf.py": "config.json of a model", "bench/load_test.py": "what a server answers, shown in an error",
    "data/books.py": "a book in the encoding that its header names, if it is not UTF-8",
    "pretrained/gguf_header.py": "texts in a binary file, where a token may be a byte order mark",
}  # fmt: skip


def readers(path: Path) -> set[str]:
    """Returns the lines that decode text: `x.read_text`, `json.loads`, `open` for reading text,
    `bytes.decode(encoding)`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function, words = node.func, [a.value for a in node.args if isinstance(a, ast.Constant)]
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        encodings = {"utf-8", "utf-8-sig", "latin-1", "ascii"} & {word for word in words if isinstance(word, str)}
        named = any(keyword.arg == "encoding" for keyword in node.keywords)
        writes = any(isinstance(word, str) and word[:1] in "wax" and len(word) < 4 for word in words)
        if (
            (name == "read_text" and isinstance(function, ast.Attribute))
            or (name in ("loads", "load") and getattr(getattr(function, "value", None), "id", "") == "json")
            or (name == "open" and named and not writes)
            or (name == "decode" and encodings)
        ):
            found.add(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_users_text_is_decoded_in_one_place(path: Path) -> None:
    """New readers must use `config/text.py`, which handles byte order marks, encodings and lone surrogates."""
    name = path.relative_to(PACKAGE).as_posix()
    if name not in OWN and name not in DECODERS:
        assert not readers(path), "read users' files with famjax.config.text or famjax.data.files"


def test_the_lists_name_files() -> None:
    """Every listed file exists and still reads text."""
    for name in OWN | set(DECODERS):
        assert readers(PACKAGE / name), name


@pytest.mark.parametrize("seed", range(3))
def test_a_text_in_pieces(seed: int) -> None:
    """Only the byte order mark at its beginning is removed, whichever pieces it comes in."""
    text = "Grüße, \ufeff世界! 🙂 " * 3
    data = BOM + text.encode()
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(data) + 1, 9)).tolist()
    for at in ([*cuts, len(data)], [1, 2, len(data)], [3, len(data)], range(1, len(data) + 1), [len(data)]):
        pieces = [data[a:b] for a, b in zip([0, *at], at, strict=False)]
        assert "".join(texts_of(without_mark(pieces, "book.txt"), "book.txt")) == text
    for short in (b"", b"a", b"ab", BOM):
        assert b"".join(without_mark([short], "book.txt")) == short.removeprefix(BOM)


@pytest.mark.parametrize(
    ("data", "reason"),
    [("é".encode("utf-16"), "but UTF-16"), (b"abc\xe9 d", "byte at byte 3"), (b"abc\xe4\xb8", "end of data at byte 3")],
)
def test_pieces_that_are_no_text(data: bytes, reason: str) -> None:
    """Another encoding is refused with the place of its first byte, wherever the text is cut."""
    for at in range(len(data) + 1):
        with pytest.raises(BadText, match=f"book.txt: .*{reason}"):
            list(texts_of(without_mark([data[:at], data[at:]], "book.txt"), "book.txt"))
