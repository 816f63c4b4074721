"""`famjax data`: what a person sees of the rows, and the mistakes that are found on the way."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from famjax.cli.gin_config import load_train_config
from famjax.cli.main import main
from famjax.config import SourceConfig
from famjax.data import rows
from famjax.data.show import Piece, Totals, blocks_of, plain, shorten
from famjax.data.vocabulary import ByteVocabulary

BASE = ["--gin_file", "gin/models/fam_tiny.gin", "--gin_file", "gin/runs/pretrain.gin"]
SMALL = ["--gin.BLOCK_SIZE=16", "--gin.TASK_FEATURE_LENGTHS={'targets': 32}", "--gin.BATCH_SIZE=2"]


def shown(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert main(["data", *BASE, *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def streams(path: Path) -> list[str]:
    return ["--gin_file", "gin/data/streams.gin", f"--gin.SOURCES=('{path}',)", *SMALL, "--gin.FAM_LENGTH=2"]


def test_a_stream_as_a_person_sees_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Blocks, where documents begin and continue, and correct counts: 40 bytes make 3 blocks, one of 8."""
    (tmp_path / "a.txt").write_text("0123456789abcdef" * 2 + "end\nend.")
    out = shown(capsys, *streams(tmp_path / "*.txt"), "--gin.BATCH_SIZE=1", "--steps", "2", "--width", "0")
    assert "text: rows of 32 tokens in blocks of 16; 1 stream\n" in out
    assert f"{tmp_path}/*.txt: 1 documents for all rows, weight 1" in out
    first, second = out.split("\n\n")[1:3]
    assert first.splitlines()[1:] == ["  block 0   > ¶0123456789abcdef", "  block 1     0123456789abcdef"]
    assert "step 1, row 0, stream, continued from the previous step: 1 document begins, 24 tokens" in second
    assert second.splitlines()[1:] == ["  block 0     end↵end.", "  block 1   > ¶0123456789abcdef"]
    assert "2 batches, streams: 2 documents begin, 56 tokens, 98.2% with a loss, 8 of padding (12.5%)" in out


def test_questions_stand_in_braces(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Packed rows: what has no loss, or a small one, is marked; each document's beginning too."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"inputs": "1+1? ", "targets": "2."}) + "\n")
    files = ["--gin_file", "gin/data/packed.gin", f"--gin.SOURCES=('{tmp_path}/a.jsonl',)", "--gin.FAM_LENGTH=2"]
    settings = [*SMALL, "--gin.TASK_FEATURE_LENGTHS={'targets': 64}", "--gin.DataConfig.repeat_segment=7"]
    out = shown(capsys, *files, *settings, "--show", "1", "--width", "0")
    assert "2 packed (whole)" in out
    blocks = [line for line in out.splitlines() if line.startswith("  block")]
    assert blocks[:3] == [
        "  block 0   > ¶{1+1? }2.¶{1+1? }2.¶{1+}",
        "  block 1     {1? }2.¶{1+1? }2.{[rep}",
        "  block 2     {eat random segme}",
    ]
    assert blocks[3].startswith("  block 3     {nt]:}{0.1: ")


def test_a_generated_task_as_a_person_sees_it(capsys: pytest.CaptureFixture) -> None:
    """The pass key's rows: documents begin at block edges and end with their answers, and padding is not shown."""
    settings = [*SMALL, "--gin.FAM_LENGTH=2", "--gin.BLOCK_SIZE=64", "--gin.TASK_FEATURE_LENGTHS={'targets': 768}"]
    out = shown(capsys, *settings, "--show", "2", "--width", "0", "--gin.PassKeyConfig.text_tokens=0")
    assert "passkey: 2 rows of 768 tokens in blocks of 64\n" in out
    blocks = [line[14:] for line in out.splitlines() if line.startswith("  block")]
    documents = "".join(blocks).split("¶")[1:]
    assert len(blocks) == 24 and len(documents) >= 2 and f"1 batch: {len(documents)} documents begin" in out
    for document in documents:
        key = document[-5:]
        assert key.isdigit() and document.startswith("{There is an important info")
        plain_text = document.replace("{", "").replace("}", "")
        assert f"The pass key is {key}. Remember it. {key} is the pass key." in plain_text
        assert f"What is the pass key? The pass key is {key}" in plain_text


def test_fine_tuning_needs_no_model_dir_either(capsys: pytest.CaptureFixture) -> None:
    """`gin/runs/finetune.gin` requires MODEL_DIR, which this verb does not use."""
    files = ["--gin_file", "gin/runs/finetune.gin", "--gin.INITIAL_CHECKPOINT_PATH='runs/base'"]
    task = ["--gin.MIXTURE_OR_TASK_NAME='passkey'", "--gin.TASK_FEATURE_LENGTHS={'targets': 1536}"]
    assert "passkey: 2 rows of 1536 tokens in blocks of 64" in shown(capsys, *files, *task, "--gin.BATCH_SIZE=2")


def test_counting_all_documents(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`--check` reads every document once."""
    for i, size in enumerate((5, 100, 0, 17)):
        (tmp_path / f"{i}.txt").write_text("x" * size)
    out = shown(capsys, *streams(tmp_path / "*.txt"), "--check")
    assert "4 documents, 122 tokens; shortest 0, median 11, longest 100; 10 blocks; 1 empty ones are skipped" in out


def test_a_bad_line_is_found_by_the_check(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An error deep in the files, which training would hit after days."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 40 + "oops\n")
    words = ["data", *BASE, *streams(tmp_path / "a.jsonl"), "--gin.BATCH_SIZE=1"]
    assert main([*words, "--check"]) == 2
    assert "a.jsonl:41: this is not JSON" in capsys.readouterr().err


def test_files_without_text_are_found_by_the_check(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A training would stop at its first batch."""
    (tmp_path / "a.txt").write_text("")
    assert main(["data", *BASE, *streams(tmp_path / "*.txt"), "--check"]) == 2
    out, error = capsys.readouterr()
    assert "1 documents, 0 tokens" in out and "no document has any text" in error and error.count("\n") == 1


def test_all_bad_lines_are_found_by_one_check(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of all sources; the readable documents are counted. The error names the first."""
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\noops\n{"text": 5}\n{"text": "abcde"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "abc"}\n{"txt": "abc"}\n')
    words = ["data", *BASE, *streams(tmp_path / "?.jsonl"), "--gin.BATCH_SIZE=1", "--check"]
    assert main(words) == 2
    out, error = capsys.readouterr()
    assert "3 documents, 11 tokens; shortest 3" in out and "0 empty" in out
    assert "a.jsonl:3: " in out and "b.jsonl:2: " in out
    assert "a.jsonl:2: this is not JSON" in error and error.endswith("; 2 more above\n") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--check"], "--check reads the files of the task 'text'; for 'passkey' use --show and --steps"),
        (["--gin.MIXTURE_OR_TASK_NAME='babi'"], "the task 'babi' needs a copy of bAbI"),
        (["--gin_file", "gin/data/streams.gin"], "the task 'text' has no sources; set --gin.DataConfig.sources"),
        (["--gin_file", "gin/data/streams.gin", "--gin.SOURCES=('/no/*.txt',)"], "no file matches /no/*.txt"),
        (["--gin_file", "gin/data/streams.gin", "--gin.SOURCES=(5,)"], "sources has 5; it must be a path"),
        (["--show", "-1"], "--show is -1; it must be at least 0"),
        (["--check", "--show", "2"], "--show has no effect with --check"),
        (["--check", "--steps", "1"], "--steps has no effect with --check"),
        (["--check", "--width", "0"], "--width has no effect with --check"), (["--steps", "0"], "--steps is 0"),
        (["--gin_file", "gin/data/mixed.gin"], "a source has no path; set SourceConfig.path"),
        (
            ["--gin_file", "gin/data/streams.gin", "--gin.SOURCES=('setup.py',)", "--gin.DataConfig.stream_share=0.01"],
            "stream_share 0.01 of 8 rows is less than one row; use at least 0.125",
        ),
        (
            ["--gin_file", "gin/data/mixed.gin", "--gin.DOCUMENTS='README.md'", "--gin.INSTRUCTIONS='README.md'",
             "--gin.DataConfig.stream_share=1.0", "--gin.documents/SourceConfig.rows='packed'"],
            "8 rows are streams, but no source serves them",
        ),
    ],
)  # fmt: skip
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", *BASE, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("verb", ["train", "data"])
def test_data_is_looked_at_without_jax(tmp_path: Path, verb: str) -> None:
    """Missing files and wrong vocabularies cost no start of jax; nor does looking at rows."""
    words = [verb, *BASE, *streams(tmp_path / "*.txt"), f"--gin.MODEL_DIR='{tmp_path}/m'"]
    program = f"""
import sys
from famjax.cli.main import main
code = main({words!r})
open({str(tmp_path / "a.txt")!r}, "w").write("text")
code = code if {verb!r} == "train" else 2 * (main({words!r}) == 0)
sys.exit(code if "jax" not in sys.modules else 99)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "no file matches" in done.stderr and not (tmp_path / "m").exists()


def test_gin_files_of_data(tmp_path: Path) -> None:
    """Streams, packed rows, both, and seqio: what the files of gin/data say arrives, and comes back from config.gin."""
    for file, bindings, reached in (
        ("streams", ["SOURCES=('a', 'b')"], lambda c: c.data.sources == ("a", "b") and c.data.stream_share == 1),
        ("packed", ["SOURCES=('a',)"], lambda c: c.data.repeat_segment == 256 and c.data.packing == "whole"),
        ("mixed", ["DOCUMENTS='a'", "INSTRUCTIONS='b'"], lambda c: c.data.sources == (
            SourceConfig("a", rows="streams"), SourceConfig("b", rows="packed"))),
        ("seqio", ["MIXTURE_OR_TASK_NAME='m'", "USE_CACHED_TASKS=True", "MIXTURE_OR_TASK_MODULES=('x.y',)",
                   "TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}"],
         lambda c: c.task == "m" and c.data.use_cached and c.data.modules == ("x.y",) and c.sequence_length == 640),
    ):  # fmt: skip
        files = [BASE[1], BASE[3], f"gin/data/{file}.gin"]
        config, text = load_train_config(files, (), ["MODEL_DIR='m'", *bindings])
        assert reached(config), file
        config.validate()
        (tmp_path / "config.gin").write_text(text)
        assert load_train_config([str(tmp_path / "config.gin")])[0] == config


def test_tasks_imported_by_a_gin_file(tmp_path: Path) -> None:
    """T5X's way: `import` in a gin file registers the task; the check of names knows it, and rows are shown."""
    (tmp_path / "lines.txt").write_text("hello\n")
    (tmp_path / "tasks_of_mine.py").write_text(
        "import seqio\nfrom famjax.data.seqio_vocabulary import FileVocabulary\n"
        f"seqio.TaskRegistry.add('mine', seqio.TextLineDataSource({{'train': {str(tmp_path / 'lines.txt')!r}}}),\n"
        "    preprocessors=[lambda ds: ds.map(lambda line: {'targets': line}), seqio.preprocessors.tokenize],\n"
        "    output_features={'targets': seqio.Feature(FileVocabulary('bytes'), add_eos=False)})\n"
    )
    gin = "import tasks_of_mine\ninclude 'gin/models/fam_tiny.gin'\ninclude 'gin/runs/pretrain.gin'\n"
    (tmp_path / "mine.gin").write_text(gin + "MIXTURE_OR_TASK_NAME = 'mine'\nBATCH_SIZE = 1\n")
    words = ["data", "--gin_file", str(tmp_path / "mine.gin"), "--gin.TASK_FEATURE_LENGTHS={'targets': 64}"]
    program = (
        f"import sys; sys.path.append({str(tmp_path)!r}); from famjax.cli.main import main; sys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "block 0   > ¶hello¶hello¶hello" in done.stdout


def test_pieces_of_a_block() -> None:
    """A change of weight and a document's beginning cut the text; a long block loses its middle."""
    row = rows.empty(8, 2)
    tokens = np.frombuffer(b"abcdef", np.uint8).astype(np.int32)
    example = rows.Example(tokens, np.array([0, 0, 1, 1, 0.5, 1], np.float32))
    row.starts[0] = True
    rows.put(row, 0, example, 0, 8)
    blocks = blocks_of(row, ByteVocabulary())
    assert blocks == [
        [Piece("ab", 0.0, True), Piece("cd", 1.0, False)],
        [Piece("e", 0.5, False), Piece("f", 1.0, False)],
    ]
    assert [plain(block) for block in blocks] == ["¶{ab}cd", "{0.5: e}f"]
    assert Totals().add(row) == (1, 1, 6, 2, 4)
    assert shorten([Piece("abcdef", 1.0, True), Piece("ghijkl", 0.0, False)], 6) == [
        Piece("abcd … ", 1.0, True), Piece("kl", 0.0, False)
    ]  # fmt: skip
    assert shorten([Piece("abcdefghi", 1.0, True)], 6) == [Piece("abcd … hi", 1.0, True)]
