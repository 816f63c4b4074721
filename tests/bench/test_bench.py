"""`famjax bench` itself, at a size that takes seconds."""

import dataclasses
import json

import pytest

from famjax.bench import inference, peers
from famjax.bench.load_test import Target, over_clients
from famjax.bench.questions import questions
from famjax.bench.sizes import SIZES, check_lengths, variants
from famjax.cli.main import main
from famjax.config import ConfigError
from tests import tiny
from tests.serve.running import model_folder, serve

SMALL = ["--size", "tiny", "--block-size", "8", "--fam-length", "2", "--repeats", "2"]


def test_every_size_is_a_model_that_works() -> None:
    """Its settings are valid, and so are its sequence lengths."""
    for size in SIZES.values():
        size.model.validate()
        check_lengths(size.lengths, size.tokens, size.model.memory.block_size)


def test_variants_differ_in_memory_alone() -> None:
    """BSWA is FAM without FAM; full attention is one block as long as the row."""
    model = SIZES["peers"].model
    found = variants(model, 2048)
    memories = {name: config.memory for name, config in found.items()}
    assert {dataclasses.replace(config, memory=model.memory) for config in found.values()} == {model}
    assert memories["FAM"] == model.memory
    assert memories["BSWA"] == dataclasses.replace(model.memory, fam_length=0)
    assert memories["full"].block_size == 2048
    assert (memories["full"].memory_segments, memories["full"].fam_length) == (0, 0)


def test_training_is_measured(tmp_path) -> None:
    """Rates are tokens over seconds; weights differ by the prompt; the ratio lies within the times' range."""
    arguments = ["--lengths", "16", "--tokens", "32", "--variants", "FAM,BSWA", "--output", str(tmp_path)]
    assert main(["bench", *SMALL, *arguments]) == 0
    results = json.loads((tmp_path / "bench.json").read_text())
    (row,) = results["training"]
    fam, bswa = row["variants"]
    assert (fam["name"], bswa["name"], row["rows"]) == ("FAM", "BSWA", 2)
    assert fam["weights"] - bswa["weights"] == 2 * 64
    assert fam["tokens_per_second"] == pytest.approx(32 / fam["step_seconds"]["median"])
    low = fam["step_seconds"]["low"] / bswa["step_seconds"]["high"]
    high = fam["step_seconds"]["high"] / bswa["step_seconds"]["low"]
    assert low <= row["fam_to_bswa"]["low"] <= row["fam_to_bswa"]["high"] <= high
    assert results["settings"]["model"]["memory"]["block_size"] == 8
    assert {"processor", "cores", "versions", "load_before"} <= set(results["machine"])


@pytest.mark.slow
def test_prefill_is_measured(tmp_path, capsys) -> None:
    """Every length has its row, in the file and in the table."""
    arguments = ["--prefill", "--blocks", "2,8", "--rows", "1", "--output", str(tmp_path)]
    assert main(["bench", *SMALL, *arguments]) == 0
    results = json.loads((tmp_path / "bench.json").read_text())
    assert [row["blocks"] for row in results["prefill"]] == [2, 8]
    shown = capsys.readouterr().out
    for row in results["prefill"]:
        assert [entry["name"] for entry in row["variants"]] == ["FAM", "BSWA"]
        for entry in row["variants"]:
            assert f"{entry['tokens_per_second']:,.0f}" in shown


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["nothing", "peers", "peers of a model"])
def test_inference_is_measured(beside, tmp_path, capsys, monkeypatch) -> None:
    """Every length and model has its row. What is kept of a text grows with full attention and with transformers'
    cache, twice as much for twice the text, and not with ours."""
    from famjax.bench import inference

    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    monkeypatch.setitem(inference.LLAMAS, "tiny", small | {"num_hidden_layers": 2, "vocab_size": 64})
    alone = beside == "nothing"
    more = ["--full-to", "80"] if alone else ["--peers"]
    if beside == "peers of a model":
        theirs, ours = tmp_path / "theirs", tmp_path / "ours"
        inference.write_llama("tiny", theirs)
        assert main(["import-hf", str(theirs), str(ours), "--block-size", "16", "--fam-length", "4"]) == 0
        more += ["--model", str(ours)]
    arguments = ["--lengths", "40,80", *more, "--memory-segments", "1", "--output", str(tmp_path)]
    sized = SMALL if alone else SMALL[SMALL.index("--size") + 2 :]  # beside transformers the model has the size
    assert main(["bench", "infer", *sized, *arguments]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    rows = found["inference"]
    if beside == "peers of a model":
        assert {row["size"] for row in rows} == {"ours"} and found["settings"]["model"]["vocab_size"] == 64
    last = "full" if alone else "transformers"
    assert [(row["name"], row["length"]) for row in rows] == [(n, t) for t in (40, 80) for n in ("FAM", "BSWA", last)]
    held = [row["held_mib"] for row in rows]
    assert held[:2] == held[3:5]
    assert 1.4 * held[2] < held[5]
    for row in rows:
        assert row["read_tokens_per_second"] == pytest.approx(row["length"] / row["read_seconds"]["median"])
    assert "decode tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("memory", "names"),
    [({"fam_length": 0}, ["BSWA", "full"]), ({"token_window": 3}, ["FAM", "BSWA", "full"])],
)
def test_rows_of_inference_are_what_their_names_say(memory, names, monkeypatch) -> None:
    """A model without FAM has no row of FAM, and full attention keeps the whole text if the model has a window."""
    held = {}

    def measured(runners, length, *more):
        held.update({name: runner.held_mib() for name, runner in runners.items()})
        return [{"name": name} for name in runners]

    monkeypatch.setattr(inference, "_at_length", measured)
    rows = inference.over_lengths(tiny.config(**memory), (16,), 16, 1, lambda *words: None)
    assert [row["name"] for row in rows] == names
    whole = (16 + inference.NEW) * 2 * 2 * 2 * 4 * 4  # keys and values of 2 layers with 2 heads of 4 float32
    assert held["full"] * 2**20 >= whole


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["infer", "--lengths", "0"], "--lengths 0"),
        (["--lengths", "1000"], "use 1024"),
        (["--lengths", "2048", "--tokens", "5000"], "use --tokens 4096"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--prefill", "--blocks", "8,12"], "--blocks 12"),
        (["--variants", "FAM,other"], "'other' is not one of"),
        (["--fam-length", "300"], "fam_length 300"),
        (["--prefill", "--rows", "0"], "--rows is 0"),
        (["--tokens", "-2048", "--lengths", "2048"], "--tokens is -2048"),
        (["infer", "--full-to", "-1"], "--full-to is -1"),
        (["--lengths", "2048,2048"], "each once"),
        (["--prefill", "--blocks", "8,8"], "each once"),
        (["--variants", "FAM,FAM"], "'FAM' is there twice"),
        (["--variants", "FAM,BSWA", "--fam-length", "0"], "--variants FAM: fam_length is 0"),
        (["--peers", "--lengths", "2048,4096"], "peers are compared at one"),
        (["--output", __file__], "is a file; name a directory"),
        (["--gin_search_paths", "a"], "needs a --gin_file"),
        (["--gin_file", "gin/models/fam_tiny.gin", "--gin_file", "gin/memories/infini.gin"], "of kind 'infini'"),
        (["serve", "--model", "x", "--llama", "tiny"], "--llama has no effect with --model"),
        (["infer", "--peers", "--model", "x", "--llama", "tiny"], "--llama has no effect with --model"),
        (["infer", "--peers", "--model", "no/such"], "no/such"),
    ],
)
def test_mistakes_cost_one_line(arguments, words, capsys) -> None:
    """Exit code 2, and what to do instead, before anything is compiled."""
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--prefill", "--questions", "3"], "--questions"), (["--prefill", "--lengths", "64"], "--lengths"),
        (["--prefill", "--variants", "FAM"], "--variants"), (["--questions", "3", "--tokens", "64"], "--tokens"),
        (["--full-to", "64"], "--full-to"), (["infer", "--blocks", "8"], "--blocks"),
        (["infer", "--prefill"], "--prefill"),
        (["infer", "--peers", "--size", "tiny"], "--size"), (["infer", "--peers", "--gin_file", "a.gin"], "--gin_file"),
        (["--llama", "tiny"], "--llama"), (["serve", "--rows", "2"], "--rows"), (["--rows", "2"], "--rows"),
        (["--clients", "3"], "--clients"), (["infer", "--requests", "3"], "--requests"),
        (["--label", "x"], "--label"), (["--model-name", "x"], "--model-name"), (["--model", "x"], "--model"),
        (["infer", "--model", "x"], "--model"),
        (["serve", "--gin.BLOCK_SIZE=3"], "--gin settings"),
        (["serve", "--gin_search_paths", "a"], "--gin_search_paths"),
    ],
)  # fmt: skip
def test_flags_of_another_measurement_are_refused(words: list[str], flag: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", *words]) == 2
    assert f"{flag} has no effect on the measurement" in capsys.readouterr().err


def test_missing_peers_are_named(monkeypatch, capsys) -> None:
    """Without torch, `--peers` reports how to install it."""
    monkeypatch.setattr(peers, "PACKAGES", ("no_such_package",))
    assert main(["bench", "--peers"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.splitlines() == [error]
    assert "no-such-package" in error
    assert "pip install -e '.[peers]'" in error


def test_rows_must_be_whole() -> None:
    """Lengths and tokens that fit pass; the others say what would."""
    check_lengths((512, 1024), 2048, 256)
    with pytest.raises(ConfigError, match="use --tokens 3072"):
        check_lengths((1536,), 4096, 256)


@pytest.mark.slow
def test_questions_about_one_text_read_it_once() -> None:
    """Of 5 questions about a text of 6 blocks: how much each way reads, and their ratio turn by turn."""
    told = []
    found = questions(tiny.config(), 6, 5, 2, 2, lambda *words: told.append(words))
    asked = found["read"]["alone"] - 5 * 24
    assert 5 * 10 <= asked < 5 * 40 and found["read"]["shared"] <= 24 + asked
    seconds = found["seconds"]
    assert seconds["alone"]["low"] / seconds["shared"]["high"] <= found["speed_up"]["median"]
    assert told[-1] == ("questions", 4, 4)


SERVING = ["--clients", "1,3", "--requests", "2", "--prompt-tokens", "20", "--answer-tokens", "5", "--repeats", "2"]


@pytest.mark.slow
def test_serving_is_measured(tmp_path, capsys, monkeypatch) -> None:
    """Each number of clients has a row with the batch and one without; rates are requests and tokens over seconds; the
    ratio of a server to itself is 1, and that of two servers lies within their rates' range."""
    from famjax.bench import inference

    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    monkeypatch.setitem(inference.LLAMAS, "tiny", small | {"num_hidden_layers": 2, "vocab_size": 300})
    memory = ["--block-size", "16", "--memory-segments", "1", "--fam-length", "2"]
    assert main(["bench", "serve", *SERVING, *memory, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "bench.json").read_text())
    assert results["settings"]["model"]["memory"]["block_size"] == 16
    rows = results["serving"]
    names = ("famjax serve", "famjax serve --max-rows 1")
    assert [(row["name"], row["clients"]) for row in rows] == [(name, count) for count in (1, 3) for name in names]
    for row, one_row in zip(rows, [x for x in rows[1::2] for _ in range(2)], strict=True):
        assert row["requests"] == 2 * row["clients"] and row["read_tokens"] == 20 and 0 < row["made_tokens"] <= 5
        rate, over = row["tokens_per_second"], row["tokens_per_second_over_reference"]
        assert 0 < rate["low"] <= 5.001 * row["requests_per_second"]["high"]
        assert 0 < row["first_token_seconds"]["low"] <= row["answer_seconds"]["low"]
        beside = one_row["tokens_per_second"]
        assert rate["low"] / beside["high"] <= over["low"] <= over["high"] <= rate["high"] / beside["low"]
        assert over["median"] == 1 or row is not one_row
    shown = capsys.readouterr().out
    assert "famjax serve --max-rows 1" in shown and results["machine"]["processor"] in shown


@pytest.mark.slow
def test_another_server_gets_the_same_load(tmp_path) -> None:
    """`--url`, with this project's own server as the other one: three rows for each number of clients, which have read
    and made the same tokens, since all got the same texts."""
    model = model_folder(tmp_path / "model")
    with serve(model, name="theirs", max_rows=3) as server:
        other = ["--url", server.url, "--model-name", "theirs", "--label", "the other"]
        assert main(["bench", "serve", "--model", str(model), *other, *SERVING, "--output", str(tmp_path)]) == 0
        with pytest.raises(ConfigError, match="status 404: .there is no model"):
            over_clients([Target("other", server.url, "nobody")], (1,), 1, 8, 2, 1, lambda *words: None)
    rows = json.loads((tmp_path / "bench.json").read_text())["serving"]
    assert [row["name"] for row in rows] == 2 * ["famjax serve", "famjax serve --max-rows 1", "the other"]
    for three in (rows[:3], rows[3:]):
        assert len({(row["read_tokens"], row["made_tokens"]) for row in three}) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--requests", "0"], "--requests is 0"), (["--clients", "0,1"], "--clients 0 is too few"),
        (["--url", "http://127.0.0.1:9"], "--url and --model-name go together"),
        (["--url", "https://a:9", "--model-name", "m"], "must be http://HOST:PORT"),
        (["--url", "http://a:9/v1", "--model-name", "m"], "without a path"),
        (["--url", "http://a:x", "--model-name", "m"], "must be http://HOST:PORT"),
        (["--label", "x"], "add --url"), (["--lengths", "8"], "--lengths has no effect"), (["--model", "none"], "none"),
    ],
)  # fmt: skip
def test_mistakes_of_serving(flags, words, capsys) -> None:
    """Exit code 2 and one line, before a server starts."""
    assert main(["bench", "serve", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1
