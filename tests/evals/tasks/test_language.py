"""Bits per byte and accuracy by position, compared with plain sums; intervals; the command end to end."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from famjax.cli.main import main
from famjax.config import ConfigError, EvalConfig
from famjax.data import sources
from famjax.data.vocabulary import ByteVocabulary, load_vocabulary
from famjax.evals import results
from famjax.evals.during_training import evaluation
from famjax.evals.engine import ModelEngine
from famjax.evals.reports import language_report
from famjax.evals.runner import Runner
from famjax.evals.samples import Sample
from famjax.evals.tasks import language
from famjax.evals.tasks.base import Example, Task, Unreadable
from famjax.evals.tasks.language import Document, Sums
from famjax.infer.codec import Codec
from famjax.storage.checkpoint import save_model
from tests import tiny
from tests.pretrained import tokenizers_of_ours

CONFIG = tiny.config(vocab_size=256, memory_segments=1)


def random_documents(lengths: list[int], seed: int) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [Document(str(n), rng.integers(0, 256, n).astype(np.int32), 2.0 * (n - 1)) for n in lengths]


def read(model, documents: list[Document], edges, rows: int) -> Sums:
    """Returns the runner's answers on documents."""
    examples = [
        Example(str(i), document.tokens[:1], scored=document.tokens[1:], size=document.size)
        for i, document in enumerate(documents)
    ]
    task = Task("text", "score", lambda: examples, by_position=True)
    runner = Runner(ModelEngine(model, rows), Codec.of(ByteVocabulary()), edges=edges)
    return language.sums_of(sorted(runner.run(task), key=lambda sample: int(sample.id)), edges)


def test_buckets_double_from_the_first_block_on():
    """[0, S), [S, 2S), [2S, 4S), ... up to the longest document; a single bucket if all documents are short."""
    assert language.position_edges(4, 23) == (0, 4, 8, 16, 23)
    assert language.position_edges(4, 16) == (0, 4, 8, 16)
    assert language.position_edges(4, 3) == (0, 4)


@pytest.mark.parametrize("seed", [0, 1])
def test_sums_are_those_of_every_token_by_its_position(seed):
    """Each token but a document's first counts once, in the bucket of its position, with -log2 of its probability from
    a forward pass over the whole document."""
    params = tiny.parameters(CONFIG, seed)
    model = tiny.build(CONFIG, params)
    documents = random_documents([2, 9, 4, 21, 5, 8], seed)
    edges = language.position_edges(4, 21)
    sums = read(model, documents, edges, rows=4)
    for i, document in enumerate(documents):
        padded = np.zeros((1, 24), np.int32)
        padded[0, : len(document.tokens)] = document.tokens
        hidden, _ = tiny.whole(CONFIG, params, padded, count_B=np.array([len(document.tokens)], np.int32))
        logprobs = jax.nn.log_softmax(model.logits(hidden[0]), axis=-1)
        bits, tokens, correct = np.zeros((3, len(edges) - 1))
        for t in range(1, len(document.tokens)):
            bucket = next(b for b in range(len(edges) - 1) if edges[b] <= t < edges[b + 1])
            bits[bucket] -= float(logprobs[t - 1, document.tokens[t]]) / math.log(2)
            tokens[bucket] += 1
            correct[bucket] += int(np.argmax(logprobs[t - 1])) == document.tokens[t]
        np.testing.assert_allclose(sums.bits[i], bits, rtol=1e-4)
        np.testing.assert_array_equal(sums.tokens[i], tokens)
        np.testing.assert_array_equal(sums.correct[i], correct)
        np.testing.assert_allclose(sums.sizes[i], 2 * tokens)  # two bytes a token


def made_up(documents: int, extra: float, seed: int) -> Sums:
    """Returns documents of very different difficulty, all harder by `extra` bits per byte."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(50, 400, (documents, 2)).astype(float)
    hard = rng.uniform(0.5, 6, (documents, 1))
    noise = np.random.default_rng(seed + 1 if extra else seed + 2).normal(0, 0.01, tokens.shape)
    return Sums((hard + extra + noise) * tokens, 0.5 * tokens, tokens, tokens)


def test_a_difference_on_the_same_documents_is_seen_through_their_spread():
    """With documents between .5 and 6 bits, the mean's interval is far wider than .05, the paired difference's is
    not."""
    one, other = made_up(40, 0.0, 3), made_up(40, 0.05, 3)
    rows = language.summary(one, (0, 4, 8), other)
    assert [row["to"] for row in rows] == [4, 8, None]
    for row in rows:
        assert row["bits_per_byte_high"] - row["bits_per_byte_low"] > 0.5
        gap = row["less_than_first"]
        assert 0.04 < gap["low"] < gap["mean"] < gap["high"] < 0.06
        assert gap["mean"] == pytest.approx(0.05, abs=0.005)
        assert row["accuracy"] == row["accuracy_low"] == row["accuracy_high"] == 0.5
    total = rows[-1]
    assert total["tokens"] == one.tokens.sum() and total["bits_per_byte"] == pytest.approx(
        one.bits.sum() / one.sizes.sum()
    )


def test_a_bucket_that_no_document_reaches_is_left_out():
    """Only buckets with tokens have rows."""
    sums = made_up(5, 0.0, 1)
    sums.tokens[:, 1] = sums.sizes[:, 1] = sums.bits[:, 1] = sums.correct[:, 1] = 0
    assert [row["to"] for row in language.summary(sums, (0, 4, 8), sums)] == [4, None]


def test_tokenizers_that_make_fewer_tokens_have_fewer_buckets(capsys):
    """Rows are of the same positions, and a difference is one of bits per byte there, also where a bucket has other
    bytes."""
    first, other = made_up(5, 0.0, 1), made_up(5, 0.5, 2)
    first.tokens[:, 1] = first.sizes[:, 1] = first.bits[:, 1] = first.correct[:, 1] = 0
    other = dataclasses.replace(other, sizes=other.sizes * (2.0, 1.0))
    rows = [language.summary(one, (0, 4, 8), first) for one in (first, other)]
    assert [[row["to"] for row in of] for of in rows] == [[4, None], [4, 8, None]]
    assert rows[1][1]["less_than_first"] is None
    for row, with_it in ((rows[1][0], rows[0][0]), (rows[1][2], rows[0][1])):
        gap = row["less_than_first"]
        assert gap["mean"] == pytest.approx(with_it["bits_per_byte"] - row["bits_per_byte"])
        assert gap["low"] < gap["mean"] < gap["high"]
    models = [{"name": name, "tasks": {"text": {"by_position": of}}} for name, of in zip("ab", rows, strict=True)]
    language_report.print_table(models)
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line[1:-1]] for line in lines]
    assert [line[0] for line in cells] == ["0 to 3", "4 to 7", "all"]
    assert cells[1][3] == "" and cells[1][4] == language_report._cell(rows[1][1]) and cells[1][5] == ""
    assert cells[2][3] == language_report._cell(rows[0][1])
    assert cells[2][2] == f"{rows[0][1]['tokens']:,} / {rows[1][2]['tokens']:,}"


def test_a_text_of_one_token_has_no_bits_per_byte():
    """With a tokenizer that has an end but no beginning, its end alone is predicted, which has no bytes."""
    texts = [Sample("text", name, name, "", 1, 0, "", -1.0, [], "", {"exact_match": 0.0} | more, {})
             for name, more in (("a", {"bits_per_byte": 3.0}), ("b", {}), ("c", {"bits_per_byte": 1.0}))]  # fmt: skip
    for order in (texts, texts[::-1]):
        found = results.metrics_of(order)
        assert found["bits_per_byte"]["value"] == 2.0 and found["bits_per_byte"]["n"] == 2
        assert found["exact_match"]["n"] == 3
    sums = made_up(2, 0.0, 1)
    sums = dataclasses.replace(sums, sizes=sums.sizes * (1.0, 0.0))
    assert [row["to"] for row in language.summary(sums, (0, 4, 8), sums)] == [4, None]


def test_one_document_has_no_interval():
    """With a single document, values have no interval in the results, the table and the page."""
    sums = made_up(5, 0.0, 1)
    sums.tokens[1:, 1] = sums.sizes[1:, 1] = sums.bits[1:, 1] = sums.correct[1:, 1] = 0
    first, last, whole = language.summary(sums, (0, 4, 8), sums)
    assert last["documents"] == 1 and last["bits_per_byte"] == pytest.approx(sums.bits[0, 1] / sums.sizes[0, 1])
    assert last["bits_per_byte_low"] is last["accuracy_high"] is last["less_than_first"]["low"] is None
    assert first["bits_per_byte_low"] is not None and whole["bits_per_byte_low"] is not None
    assert language_report.gap_text(last["less_than_first"]) == "+0.0000"
    assert language_report.gap_text({"mean": -0.25, "low": -1.0, "high": 0.5}, 3) == "-0.250 (-1.000 to +0.500)"


def test_documents_stand_for_their_bytes(tmp_path):
    """A document with nothing to predict is counted and skipped; if all are, that is an error."""
    (tmp_path / "a.txt").write_text("héllo world")  # 12 bytes
    (tmp_path / "b.txt").write_text("x")
    config = EvalConfig(model_dirs=("m",), task="text", sources=(str(tmp_path / "*.txt"),))
    (tmp_path / "c.txt").write_text("")
    document, *short = language.documents(config, ByteVocabulary())
    assert short == [Unreadable(str(tmp_path / name), "there is no token to predict") for name in ("b.txt", "c.txt")]
    assert bytes(document.tokens.tolist()) == "héllo world".encode() and document.size == 11
    example, *skipped = language.task("text", config, Codec.of(ByteVocabulary())).examples()
    assert skipped == short
    assert (len(example.prompt), len(example.scored), example.size) == (1, 11, 11)
    alone = EvalConfig(sources=(str(tmp_path / "b.txt"),))
    with pytest.raises(ConfigError, match="no document of text can be read; .*b.txt: there is no token to predict"):
        language.task("text", alone, Codec.of(ByteVocabulary()))


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_bits_are_per_byte_of_what_is_predicted(tmp_path, kind):
    """After a begin-of-text token that is the whole text, else the text without its first token."""
    vocabulary = load_vocabulary(str(tokenizers_of_ours.write(tmp_path, kind)))
    text = sources.Document("", "The lamp is über there.", "")
    assert (
        vocabulary.bos is not None and language.in_tokens(text, vocabulary).size == len("The lamp is über there.") + 1
    )
    vocabulary.bos = None
    document = language.in_tokens(text, vocabulary)
    rest = vocabulary.decode(document.tokens[1:-1]).encode()
    assert document.size == len(rest) < 24


def test_the_command_compares_models_on_texts(tmp_path, capsys):
    """FAM and its BSWA baseline: results.json has a row per bucket on the same documents, a difference of 0 from
    itself, and there is a plot."""
    (tmp_path / "a.txt").write_text("The quick brown fox.")
    (tmp_path / "b.txt").write_text("jumps over the lazy dog")
    for name, fam in (("fam", 2), ("bswa", 0)):
        config = tiny.config(vocab_size=256, fam_length=fam)
        save_model(tmp_path / name, config, tiny.parameters(config))
    command = ["eval", "--model", str(tmp_path / "fam"), "--model", str(tmp_path / "bswa"), "--texts"]
    both = ["--task", "text,copy", "--lengths", "200", "--examples", "2"]
    assert main([*command, str(tmp_path / "*.txt"), *both, "--output", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    fam, bswa = (model["text"] for model in results["models"])
    assert [row["to"] for row in fam] == [row["to"] for row in bswa] == [4, 8, 16, 23, None]
    assert fam[-1]["tokens"] == 19 + 22 and fam[0]["less_than_first"]["mean"] == 0
    for one, other in zip(fam, bswa, strict=True):
        assert other["less_than_first"]["mean"] == pytest.approx(one["bits_per_byte"] - other["bits_per_byte"])
    assert fam[-1]["bits_per_byte"] != bswa[-1]["bits_per_byte"]
    assert (tmp_path / "out" / "language.png").stat().st_size > 10_000
    copied = [model["tasks"]["copy"] for model in results["models"]]
    assert [(one["n"], one["by_length"][0]["length"]) for one in copied] == [(2, 200)] * 2
    samples = (tmp_path / "out" / "samples.jsonl").read_text()
    assert samples.count("\n") == 2 * (2 + 2)
    values = [json.loads(line)["values"] for line in samples.splitlines() if '"task": "copy"' in line]
    mean = sum(one["next_token_accuracy"] for one in values[:2]) / 2
    assert copied[0]["metrics"]["next_token_accuracy"]["value"] == pytest.approx(mean)
    # The same command finds all answers and runs nothing.
    before = (tmp_path / "out" / "results.json").read_text()
    assert main([*command, str(tmp_path / "*.txt"), *both, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "samples.jsonl").read_text() == samples
    assert (tmp_path / "out" / "results.json").read_text() == before
    assert main([*command, str(tmp_path / "none*.txt")]) == 2
    assert "none*.txt" in capsys.readouterr().err


def test_texts_are_evaluated_while_a_model_trains(tmp_path):
    """The logged metrics during training equal those of the summary: over all positions and over the second half; other
    tasks may be evaluated with them."""
    (tmp_path / "a.txt").write_text("The quick brown fox jumps over the lazy dog")
    (tmp_path / "b.txt").write_text("and the cat sat on the mat")
    config = EvalConfig(
        task="text,copy", lengths=(100,), examples=2, sources=(str(tmp_path / "*.txt"),), longest=32, batch_size=2
    )
    model = tiny.build(CONFIG, tiny.parameters(CONFIG))
    numbers = evaluation(config, ByteVocabulary(), CONFIG.memory.block_size)(model, 7)
    cut = [Document(d.name, d.tokens[:32], min(d.size, 31.0)) for d in language.documents(config, ByteVocabulary())]
    sums = read(model, cut, (0, 16, 32), 2)
    _, far, whole = language.summary(sums, (0, 16, 32), sums)
    assert numbers["text/bits_per_byte"] == pytest.approx(whole["bits_per_byte"])
    assert numbers["text/bits_per_byte_from_16"] == pytest.approx(far["bits_per_byte"])
    assert numbers["text/accuracy"] == pytest.approx(whole["accuracy"])
    assert far["bits_per_byte"] != whole["bits_per_byte"]
    copied = {name for name in numbers if name.startswith("copy/")}
    assert copied == {"copy/exact_match", "copy/next_token_accuracy", "copy/exact_match_at_100"}
