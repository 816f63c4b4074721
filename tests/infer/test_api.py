"""`famjax.load`, `score` and `generate` give what the verbs give, and importing famjax imports nothing."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import famjax
from famjax.cli.main import main
from famjax.config import ConfigError
from famjax.infer import session as sessions
from famjax.storage import checkpoint
from tests import tiny

CONFIG = tiny.config(vocab_size=256)
PROMPT = "Grüße, 世界! What now?"
DOCUMENTS = [list(range(60, 97)), PROMPT, [3], "a" * 16]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "model"
    checkpoint.save_model(folder, CONFIG, tiny.parameters(CONFIG))
    return folder


@pytest.fixture(scope="module")
def model(model_dir: Path):
    return famjax.load(model_dir)


def lines(verb: str, model_dir: Path, folder: Path, rows: list[dict], *flags: str) -> list[dict]:
    """What `famjax VERB --input --output` writes."""
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = ["--model", str(model_dir), "--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    assert main([verb, *paths, *flags]) == 0
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_importing_famjax_imports_no_other_module() -> None:
    """Not even one of the standard library; libtpu, which the command line hides, stays as it is."""
    program = "import sys; before = set(sys.modules); import famjax; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['famjax']\n"


def test_a_name_that_famjax_lacks() -> None:
    with pytest.raises(AttributeError, match="'famjax' has no attribute 'nonsense'"):
        famjax.nonsense  # noqa: B018
    assert set(famjax.__all__) == {"load", "score", "generate"}


@pytest.mark.parametrize("streaming", [False, True])
def test_score_is_famjax_score(model, model_dir: Path, tmp_path: Path, streaming: bool) -> None:
    """The same numbers: those of the output file, which has nine digits, are the float32 values."""
    rows = [{"text": one} if isinstance(one, str) else {"tokens": one} for one in DOCUMENTS]
    expected = lines("score", model_dir, tmp_path, rows, *["--streaming"] * streaming)
    for found, line in zip(famjax.score(model, DOCUMENTS, streaming=streaming), expected, strict=True):
        assert (found.tokens, found.logprobs.dtype) == (line["tokens"], np.float32)
        assert np.array_equal(found.logprobs, np.array(line["logprobs"], np.float32))
        assert found.sum == pytest.approx(line["sum"], abs=1e-6)


def test_settings_of_the_memory_are_those_of_the_flags(model_dir: Path, tmp_path: Path) -> None:
    """fam_length=0 and another window, as `--fam-length 0 --memory-segments 2`."""
    changed = famjax.load(model_dir, fam_length=0, memory_segments=2)
    flags = ("--fam-length", "0", "--memory-segments", "2")
    (line,) = lines("score", model_dir, tmp_path, [{"text": PROMPT}], *flags)
    (found,) = famjax.score(changed, [PROMPT])
    assert np.array_equal(found.logprobs, np.array(line["logprobs"], np.float32))


def test_generate_is_famjax_generate(model, model_dir: Path, tmp_path: Path) -> None:
    """One prompt, as text, bytes and file, and several: text, token ids and how it ended."""
    how = {"temperature": 1.1, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.2, "seed": 5}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in how.items()]
    prompts = [PROMPT, "a"]
    expected = lines(
        "generate", model_dir, tmp_path, [{"prompt": one} for one in prompts], "--max-tokens", "12", *flags
    )
    whole = lambda answer: {"text": answer.text, "tokens": answer.tokens, "finish": answer.finish}
    wanted = [{name: line[name] for name in ("text", "tokens", "finish")} for line in expected]
    assert [whole(one) for one in famjax.generate(model, prompts, 12, **how)] == wanted
    pieces: list[str] = []
    for prompt in (PROMPT, PROMPT.encode(), io.BytesIO(b"\xef\xbb\xbf" + PROMPT.encode())):  # as in a file of Windows
        answer = famjax.generate(model, prompt, 12, on_text=pieces.append, **how)
        assert whole(answer) == wanted[0]
    assert "".join(pieces) == wanted[0]["text"] * 3
    assert famjax.generate(model, [], 12) == []


def test_a_stop_ends_the_answer(model, model_dir: Path, tmp_path: Path) -> None:
    """As `--stop` does; the stop text is no part of the answer."""
    free = famjax.generate(model, PROMPT, 12).tokens
    stop = os.fsdecode(bytes(free[5:7]))
    (line,) = lines("generate", model_dir, tmp_path, [{"prompt": PROMPT}], "--max-tokens", "12", "--stop", stop)
    answer = famjax.generate(model, PROMPT, 12, stop=["never said", stop])
    assert (answer.text, answer.tokens, answer.finish) == (line["text"], line["tokens"], "stop")
    assert line["finish"] == "stop"


def test_a_session_continues_and_can_be_used_twice(model, model_dir: Path, tmp_path: Path) -> None:
    """Read, kept in a file, taken up by the command line and by Python: the text of the whole prompt at once."""
    whole = famjax.generate(model, "book " + PROMPT, 12)
    read = famjax.generate(model, "book ", 0)
    assert read.tokens == [] and int(read.session.memory.position[0]) == 4
    for session in (read.session, read.session):
        assert famjax.generate(model, PROMPT, 12, session=session).text == whole.text
    model.save_session(tmp_path / "book.session", read.session)
    assert famjax.generate(model, PROMPT, 12, session=model.load_session(tmp_path / "book.session")).text == whole.text
    files = ("--state-in", str(tmp_path / "book.session"), "--max-tokens", "12")
    (line,) = lines("generate", model_dir, tmp_path, [{"prompt": PROMPT}], *files)
    assert line["text"] == whole.text
    assert famjax.generate(model, [PROMPT, ""], 12, session=read.session)[0].text == whole.text
    first = famjax.generate(model, "book " + PROMPT, 5)
    assert first.tokens + famjax.generate(model, "", 7, session=first.session).tokens == whole.tokens


def test_a_session_belongs_to_its_model(model, model_dir: Path, tmp_path: Path) -> None:
    """Equal shapes or not, a session of other weights, memory settings or dtype is neither continued nor saved as this
    model's; the same directory loaded again continues it, also after a trip through `jax.tree` or a file."""
    read = famjax.generate(model, "book ", 0).session
    checkpoint.save_model(tmp_path / "other", CONFIG, tiny.parameters(CONFIG, seed=1))
    others = {
        "was made by another model": famjax.load(tmp_path / "other"),
        "was made with fam_length 2, the model has 0": famjax.load(model_dir, fam_length=0),
        "was made with memory_segments 1, the model has 2": famjax.load(model_dir, memory_segments=2),
        "was made in float32, the model computes in bfloat16": famjax.load(model_dir, dtype="bfloat16"),
    }
    for message, other in others.items():
        for use in (
            lambda: famjax.generate(other, PROMPT, 5, session=read),  # noqa: B023
            lambda: famjax.generate(other, [PROMPT], 5, session=read),  # noqa: B023
            lambda: other.save_session(tmp_path / "no.session", read),  # noqa: B023
        ):
            with pytest.raises(ConfigError, match=f"^the session {message}[^\n]*$"):
                use()
    assert not (tmp_path / "no.session").exists()
    again, expected = famjax.load(model_dir), famjax.generate(model, PROMPT, 5, session=read).tokens
    again.save_session(tmp_path / "read.session", jax.device_get(read))
    for session in (read, jax.tree.map(np.array, read), model.load_session(tmp_path / "read.session")):
        assert famjax.generate(again, PROMPT, 5, session=session).tokens == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: famjax.load("no/such/dir"), "no/such/dir does not exist"),
        (lambda m: famjax.load(m.model_dir, fam_length=3), "fam_length 3 is not possible"),
        (lambda m: famjax.score(m, "abc"), "give famjax.score a list"),
        (lambda m: famjax.score(m, ["a", ""]), "document 2 is empty"),
        (lambda m: famjax.score(m, [[1, 256]]), "document 1: token 256 is outside the vocabulary 0..255"),
        (lambda m: famjax.score(m, [[1.5]]), "neither a text nor a sequence of token ids"),
        (lambda m: famjax.score(m, ["a"], batch_size=0), "batch_size is 0"),
        (lambda m: famjax.generate(m, ""), "the prompt is empty"),
        (lambda m: famjax.generate(m, ["a", ""]), "prompt 2 is empty"),
        (lambda m: famjax.generate(m, "a", -1), "max_tokens is -1"),
        (lambda m: famjax.generate(m, "a", temperature=-1.0), "temperature is -1"),
        (lambda m: famjax.generate(m, "a", seed=-1), "seed is -1"),
        (lambda m: famjax.generate(m, "a", stop="b"), "give a list of texts"),
        (lambda m: famjax.generate(m, io.StringIO("a")), 'open it with open(path, "rb")'),
        (lambda m: famjax.generate(m, "a", session="book.session"), "session is a str that names no model; give one"),
        (lambda m: famjax.generate(m, "a", session=sessions.start(m.model)), "LoadedModel.load_session(FILE)"),
        (lambda m: famjax.load(m.model_dir, fam_lenght=0), "'fam_lenght' is not one of block_size, memory_segments"),
        (lambda m: famjax.load(m.model_dir, fam_lenght=0), "did you mean 'fam_length'?"),
        (lambda m: famjax.load(m.model_dir, fam_length=2.0), "fam_length is 2.0; it must be a whole number"),
        (lambda m: famjax.load(m.model_dir, fam_length=True), "fam_length is True"),
        (lambda m: famjax.load(m.model_dir, block_size="4"), "block_size is '4'"),
        (lambda m: famjax.load(m.model_dir, dtype="float16"), "dtype 'float16' is not one of float32, bfloat16"),
        (lambda m: famjax.load(m.model_dir, mesh={"model": 2}), "MESH axis 'model' is not one of data, fsdp, tensor"),
        (lambda m: famjax.load(m.model_dir, mesh={"tensor": "2"}), "MESH axis tensor is '2'"),
        (lambda m: famjax.score(m, None), "documents is a NoneType"),
        (lambda m: famjax.score(m, {"the cat sat": "x"}), "documents is a dict; give a list of texts"),
        (lambda m: famjax.score(m, {"a", "b"}), "documents is a set; give a list"),
        (lambda m: famjax.score(m, frozenset("ab")), "documents is a frozenset"),
        (lambda m: famjax.score(m, b"ab"), "documents is a bytes"),
        (lambda m: famjax.score(m, bytearray(b"ab")), "documents is a bytearray"),
        (lambda m: famjax.score(m, [b"ab"]), "document 1 is neither a text nor a sequence of token ids"),
        (lambda m: famjax.score(m, ["a", bytearray(b"ab")]), "document 2 is neither a text"),
        (lambda m: famjax.score(m, [memoryview(b"ab")]), "document 1 is neither a text"),
        (lambda m: famjax.score(m, [{1: 2}]), "document 1 is neither a text"),
        (lambda m: famjax.score(m, [{1, 2}]), "document 1 is neither a text"),
        (lambda m: famjax.generate(m, bytearray(b"a")), "prompt is a bytearray"),
        (lambda m: famjax.generate(m, {"a": "b"}), "prompt is a dict"),
        (lambda m: famjax.score(m, ["a"], batch_size=2.5), "batch_size is 2.5"),
        (lambda m: famjax.score(m, ["a", "b\ud800"]), "document 2 has the lone surrogate '\\ud800' at index 1"),
        (lambda m: famjax.score(m, [[1, [2]]]), "document 1 is neither a text"),
        (lambda m: famjax.generate(m, "a", 5.7), "max_tokens is 5.7; it must be a whole number"),
        (lambda m: famjax.generate(m, "a", True), "max_tokens is True"),
        (lambda m: famjax.generate(m, "a", "5"), "max_tokens is '5'"),
        (lambda m: famjax.generate(m, "a", 2**31), "max_tokens is 2147483648; it must be at most 2147483647"),
        (lambda m: famjax.generate(m, "a", seed=1.7), "seed is 1.7"),
        (lambda m: famjax.generate(m, "a", temperature="1"), "temperature is '1'; it must be a number"),
        (lambda m: famjax.generate(m, "a", top_k=2.5), "top_k is 2.5"),
        (lambda m: famjax.generate(m, "a", top_p=1.0000001), "top_p is 1.0000001; it must be above 0"),
        (lambda m: famjax.generate(m, "a", stop=[b"a"]), "stop has b'a', which is not a text"),
        (lambda m: famjax.generate(m, "a", stop=5), "stop has 5"),
        (lambda m: famjax.generate(m, "a", stop=["\ud800"]), "a stop text has the lone surrogate"),
        (lambda m: famjax.generate(m, ("a", "b")), "prompt is a tuple; give a text"),
        (lambda m: famjax.generate(m, "\ud800"), "the prompt has the lone surrogate"),
        (lambda m: famjax.generate(m, ["a", "\ud800"]), "prompt 2 has the lone surrogate"),
        (lambda m: m.load_session("none.session"), "none.session is missing"),
    ],
)
def test_mistakes(model, call, message: str) -> None:
    """One line each, as `ConfigError`, before the model computes."""
    with pytest.raises(ConfigError) as caught:
        call(model)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer_scores_tokens(tmp_path: Path) -> None:
    """Only text needs a tokenizer."""
    config = tiny.config()
    checkpoint.save_model(tmp_path / "m", config, tiny.parameters(config))
    model = famjax.load(tmp_path / "m")
    assert famjax.score(model, [np.arange(9)])[0].tokens == 9
    with pytest.raises(ConfigError, match="no tokenizer for text"):
        famjax.score(model, ["abc"])
