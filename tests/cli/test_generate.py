"""`famjax generate`: what goes to standard output, files in and out, and mistakes found before any work."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from famjax.cli.generate import PromptSource
from famjax.cli.generate_batch import read_prompts
from famjax.cli.main import main
from famjax.infer.text import TextStream
from famjax.storage import checkpoint
from tests import tiny
from tests.infer.test_decode import naive
from tests.pretrained import tokenizers_of_ours

CONFIG = tiny.config(vocab_size=256)
PROMPT = "Grüße, 世界! What now?"
SAMPLE = ("--temperature", "1.1", "--top-p", "0.9", "--seed", "5")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "model"
    checkpoint.save_model(folder, CONFIG, tiny.parameters(CONFIG))
    return folder


@pytest.fixture
def generate(model_dir: Path, capfdbinary: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Runs the verb and gives its standard output; standard error must stay empty."""

    def run(*flags: object, stdin: bytes = b"") -> str:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(stdin)), isatty=bool))
        code = main(["generate", "--model", str(model_dir), "--max-tokens", "12", *map(str, flags)])
        captured = capfdbinary.readouterr()
        assert (code, captured.err) == (0, b"")
        return captured.out.decode("utf-8")

    return run


def text_of(prompt: bytes, tokens: list[int]) -> str:
    stream = TextStream(before=prompt)
    return stream.feed(tokens) + stream.finish()


def test_text_file_and_pipe_give_the_same_greedy_text(generate, tmp_path: Path) -> None:
    """argmax, token by token, of the layer-major model; nothing else on standard output, no newline added."""
    prompt = PROMPT.encode()
    desired = text_of(prompt, naive(CONFIG, [np.frombuffer(prompt, np.uint8).astype(np.int32)], 12)[0])
    (tmp_path / "prompt").write_bytes(prompt)
    assert generate("--prompt", PROMPT) == desired
    assert generate("--prompt-file", tmp_path / "prompt") == desired
    assert generate("-", stdin=prompt) == desired
    assert generate("--prompt-file", "-", "--top-k", 40, "--temperature", 0, "--seed", 7, stdin=prompt) == desired


@pytest.mark.parametrize(
    "pieces", [(b"\xef\xbb\xbf", b"a prompt"), (b"\xef", b"\xbb\xbfa p", b"rompt"), (b"a prompt",)]
)
def test_a_byte_order_mark_in_a_piece_of_its_own(pieces: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs write it to a pipe before their text: the prompt is the text, of a new session as of a resumed one."""
    waiting = [*pieces, b""]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read1=lambda most: waiting.pop(0))))
    source = PromptSource(SimpleNamespace(input=None, prompt=None, prompt_file="-", state_in="a.session"))
    assert b"".join(source.pieces()) == b"a prompt"


@pytest.mark.parametrize("cut", [1, 8, 9, 24])
def test_read_today_ask_tomorrow(generate, tmp_path: Path, cut: int) -> None:
    """A prompt read in two runs, and an answer made in two runs: the same bytes, characters cut in between included."""
    whole = generate("--prompt", PROMPT, *SAMPLE)
    state = tmp_path / "state"
    (tmp_path / "begin").write_bytes(PROMPT.encode()[:cut])
    assert generate("--prompt-file", tmp_path / "begin", "--max-tokens", 0, "--state-out", state) == ""
    (tmp_path / "rest").write_bytes(PROMPT.encode()[cut:])
    flags = ("--state-in", state, "--state-out", state, "--max-tokens", 5, *SAMPLE)
    first = generate("--prompt-file", tmp_path / "rest", *flags)
    assert first + generate("--state-in", state, "--max-tokens", 7, *SAMPLE) == whole


def test_lines_equal_single_runs(generate, tmp_path: Path) -> None:
    """Rows of unequal lengths side by side say what each prompt gets alone, in the order of the file."""
    prompts = ["a", PROMPT, "four", PROMPT * 3, "a", "eight or"]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": p, "id": 7}) + "\n\n" for p in prompts))
    files = ("--input", source, "--output", output, "--batch-size", 4)
    assert generate(*files, *SAMPLE) == ""
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    assert all(len(line["tokens"]) == 12 and line["finish"] == "length" for line in lines)
    for line in lines[:4]:
        assert line["text"] == generate("--prompt", line["prompt"], *SAMPLE)
        assert line["text"] == text_of(line["prompt"].encode(), line["tokens"])
    assert lines[0] == lines[4]

    # Two samples of each; the first is the one from before. All of them after a session.
    assert generate(*files, *SAMPLE, "--samples", 2) == ""
    pairs = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert pairs[::2] == lines and pairs[1::2] != lines
    assert generate("--prompt", PROMPT, *SAMPLE, "--samples", 2) == "".join(p["text"] + "\n" for p in pairs[2:4])
    state = tmp_path / "state"
    generate("--prompt", "book ", "--max-tokens", 0, "--state-out", state)
    source.write_text(json.dumps({"prompt": "four"}) + "\n" + json.dumps({"prompt": ""}) + "\n")
    generate(*files, *SAMPLE, "--state-in", state)
    texts = [json.loads(line)["text"] for line in output.read_text(encoding="utf-8").splitlines()]
    assert texts == [generate("--prompt", prompt, *SAMPLE) for prompt in ("book four", "book ")]


def test_stop(generate, tmp_path: Path) -> None:
    """The text ends before the stop, `finish` reports it, and tokens are those of the text."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt": PROMPT}))
    files = ("--input", source, "--output", output, *SAMPLE)
    generate(*files)
    free = json.loads(output.read_text(encoding="utf-8"))["tokens"]
    stop = os.fsdecode(bytes(free[5:7]))
    kept = free[: next(n for n in range(2, 12) if free[n - 2 : n] == free[5:7]) - 2]
    generate(*files, "--stop", "never said", "--stop", stop)
    line = json.loads(output.read_text(encoding="utf-8"))
    assert (line["tokens"], line["finish"]) == (kept, "stop")
    assert generate("--prompt", PROMPT, *SAMPLE, "--stop", stop) == line["text"] == text_of(PROMPT.encode(), kept)


def test_a_pipe_from_end_to_end(model_dir: Path) -> None:
    """A prompt that comes in pieces; a reader that leaves after the first bytes is no error."""
    command = [sys.executable, "-m", "famjax", "generate", "--model", str(model_dir), "-", "--max-tokens", "20000"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        for piece in (b"Gr\xc3", b"\xbc\xc3\x9fe" * 3000, b", what now?"):
            process.stdin.write(piece)
            process.stdin.flush()
            time.sleep(0.05)
        process.stdin.close()
        assert process.stdout.read(20)
        process.stdout.close()
        # On a slow machine lines of progress come.
        said = [line for line in process.stderr.read().splitlines() if not line.startswith((b"loading ", b"reading"))]
        assert (said, process.wait(timeout=60)) == ([], 0)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_short_prompt(tmp_path: Path) -> None:
    """The process that read 1,000,000 tokens needed at most 2% more memory than one that read 10,000."""
    config = tiny.config(vocab_size=256, block_size=64)
    checkpoint.save_model(tmp_path / "model", config, tiny.parameters(config))
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    peaks = []
    for length in (10_000, 10_000, 1_000_000):  # the first one compiles, which needs memory of its own
        (tmp_path / "prompt").write_bytes(b"0123456789" * (length // 10))
        flags = ["--prompt-file", str(tmp_path / "prompt"), "--max-tokens", "8"]
        command = [sys.executable, "-m", "famjax", "generate", "--model", str(tmp_path / "model"), *flags]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        peaks.append(usage.ru_maxrss)
    assert peaks[2] <= 1.02 * peaks[1]


def mistake(capfd: pytest.CaptureFixture, *words: object) -> str:
    assert main(["generate", *map(str, words)]) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "no prompt: add --prompt TEXT"),
        (("--prompt", ""), "the prompt is empty"),
        (("--prompt-file", "EMPTY"), "the prompt is empty"),
        (("--prompt-file", "missing.txt"), "missing.txt: No such file"),
        (("--prompt-file", "."), "--prompt-file . is a directory"),
        (("--prompt", "a", "--prompt-file", "b"), "both --prompt and --prompt-file are given"),
        (("--prompt", "a", "-"), "both --prompt and --prompt-file are given"),
        (("--prompt-file", "a", "-"), "both --prompt-file and - are given"),
        (("hello",), "'hello' is not a flag; write --prompt TEXT"),
        (("--prompt", "a", "--input", "b", "--output", "c"), "both --prompt and --input"),
        (("--input", "b"), "--input and --output go together"),
        (("--prompt", "a", "--output", "b"), "--input and --output go together"),
        (("--input", "EMPTY", "--output", "c"), "has no prompts"),
        (("--input", "missing.jsonl", "--output", "c"), "missing.jsonl: No such file"),
        (("--prompt", "a", "--max-tokens", "-1"), "--max-tokens is -1"),
        (("--prompt", "a", "--max-tokens", "0"), "--max-tokens 0 generates nothing"),
        (("--prompt", "a", "--batch-size", "7"), "--batch-size has no effect without --input"),
        (("--prompt", "a", "--samples", "0"), "--samples is 0"),
        (("--prompt", "a", "--samples", "2", "--temperature", "0"), "would all be the same"),
        (("--prompt", "a", "--samples", "2", "--state-out", "s"), "--state-out saves the session of one text"),
        (("--prompt", "a", "--temperature", "-1"), "temperature is -1"),
        (("--prompt", "a", "--top-k", "-1"), "top_k is -1"),
        (("--prompt", "a", "--top-p", "0"), "top_p is 0"),
        (("--prompt", "a", "--max-tokens", "3000000000"), "--max-tokens is 3000000000; it must be at most 2147483647"),
        (("--prompt", "a", "--mesh", "data=2,data=1"), "'data=2,data=1' has an axis twice"),
        (("--prompt", "a", "--repetition-penalty", "0"), "repetition_penalty is 0"),
        (("--prompt", "a", "--seed", "-1"), "--seed is -1"),
        (("--prompt", "a", "--seed", "7"), "--seed 7 has no effect in greedy decoding, the default; add --temperature"),
        (("--prompt", "a", "--seed", "7", "--repetition-penalty", "2"), "--seed 7 has no effect in greedy decoding"),
        (("--prompt", "a", "--stop", ""), "--stop '' has 0 bytes"),
        (("--prompt", "a", "--stop", "x" * 129), "has 129 bytes; it must have 1 to 128"),
        (("--prompt", "a", "--state-out", "no/where"), "--state-out no/where: its directory is missing"),
        (("--prompt", "a", "--state-in", "missing"), "missing is missing"),
        (("--prompt", "a", "--state-in", "EMPTY"), "not a session file"),
        (("--prompt", "a", "--fam-length", "3"), "fam_length 3 is not possible"),
        (("--prompt", "a", "--block-size", "1"), "fam_length 2 is longer than block_size 1"),
    ],
)
def test_mistakes(
    flags: tuple, message: str, model_dir: Path, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, exit code 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").touch()
    assert message in mistake(capfd, "--model", model_dir, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["EMPTY"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "this is not JSON"),
        ('{"prompt": 5}', 'a line must be an object with "prompt", a string'),
        ('{"text": "a"}', 'a line must be an object with "prompt", a string'),
        ('["a"]', 'a line must be an object with "prompt", a string'),
        ('{"prompt": ""}', "the prompt is empty"),
        (r'{"prompt": "\ud800"}', "half a surrogate pair"),
        ('{"prompt": "a", "max_tokens": 5}', "settings are flags, for all prompts; leave out 'max_tokens'"),
        ('{"prompt": "a", "id": 1, "stop": ["x"]}', "leave out 'stop'"),
    ],
)
def test_bad_lines(line: str, message: str, model_dir: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n' + line + "\n")
    error = mistake(
        capfd, "--model", model_dir, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"
    )  # fmt: skip
    assert "in.jsonl:2: " in error and message in error and not (tmp_path / "out.jsonl").exists()


def test_a_prompt_in_another_encoding(model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """UTF-16 by its mark, before the model is loaded; anything else once a tokenizer meets it. Nothing is written."""
    words = ("--max-tokens", "0", "--state-out", tmp_path / "state", "--prompt-file", tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text(PROMPT, encoding="utf-16")
    assert "a.txt: this is not UTF-8 text but UTF-16" in mistake(capfd, "--model", model_dir, *words)
    with_tokenizer = tmp_path / "model"
    config = tiny.config(vocab_size=330)
    checkpoint.save_model(with_tokenizer, config, tiny.parameters(config))
    tokenizers_of_ours.write(with_tokenizer, "byte-level")
    capfd.readouterr()
    (tmp_path / "a.txt").write_text(PROMPT.replace("世界", ""), encoding="latin-1")
    assert "the prompt: this is not UTF-8 text" in mistake(capfd, "--model", with_tokenizer, *words)
    assert not (tmp_path / "state").exists()


def test_other_keys_of_lines_are_the_user_s(tmp_path: Path) -> None:
    """Names and data of a line are no settings, and neither is a setting that is null."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "id": 7, "meta": {"temperature": 1}, "seed": null}\n')
    assert read_prompts(str(tmp_path / "in.jsonl"), may_be_empty=False) == ["a"]


def test_models_that_cannot_write_and_sessions_of_others(model_dir: Path, tmp_path: Path, capfd) -> None:
    other = tiny.config(vocab_size=17)
    checkpoint.save_model(tmp_path / "ids", other, tiny.parameters(other))
    checkpoint.save_model(tmp_path / "other", CONFIG, tiny.parameters(CONFIG, seed=1))
    state = tmp_path / "state"
    model = ("--model", str(model_dir))
    assert main(["generate", *model, "--prompt", PROMPT, "--max-tokens", "0", "--state-out", str(state)]) == 0
    before = state.read_bytes()
    flags = ("--state-in", state, "--state-out", state)
    assert "has 17 tokens and no tokenizer for text" in mistake(capfd, "--model", tmp_path / "ids", "--prompt", "a")
    assert "does not exist" in mistake(capfd, "--model", tmp_path / "none", "--prompt", "a")
    assert "was made by another model" in mistake(capfd, "--model", tmp_path / "other", *flags)
    refused = mistake(capfd, *model, *flags, "--memory-segments", "0")
    assert "made with memory_segments 1, the model has 0; continue it with --memory-segments 1" in refused
    assert state.read_bytes() == before
