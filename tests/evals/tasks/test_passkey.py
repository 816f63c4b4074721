"""The pass-key evaluation: it counts what the model answers, document by document."""

import itertools
import json

import numpy as np
import pytest

from famjax.cli.main import main
from famjax.config import EvalConfig
from famjax.data.passkey_text import Writer
from famjax.data.vocabulary import ByteVocabulary, load_vocabulary
from famjax.evals.engine import ModelEngine
from famjax.evals.runner import Runner
from famjax.evals.samples import Sample, updates_between
from famjax.evals.tasks import passkey
from famjax.infer.codec import Codec
from famjax.storage.checkpoint import save_model
from tests import tiny
from tests.pretrained import tokenizers_of_ours

BYTES = Writer(ByteVocabulary())
CONFIG = tiny.config(vocab_size=128, block_size=16, memory_segments=0, fam_length=2)


def first_choices(config, params, doc) -> np.ndarray:
    """Returns the argmax of the whole-sequence model after each token of a document."""
    tokens = np.zeros((1, 320), np.int32)
    tokens[0, : len(doc.tokens)] = doc.tokens
    hidden, _ = tiny.whole(config, params, tokens)
    return (np.asarray(hidden[0], np.float64) @ np.asarray(params["embedding"], np.float64).T).argmax(-1)


@pytest.mark.parametrize(("fam_length", "tokens"), [(0, "bytes"), (2, "bytes"), (2, "byte-level")])
def test_exact_match_and_tokens_are_those_of_whole_documents(fam_length, tokens, tmp_path, monkeypatch):
    """Streaming in batches counts the same hits as scoring each document whole, on its own.

    An untrained model has no hits, so half of the documents get the model's own greedy answer and must count as hits;
    the others must not.
    """
    folder = tokenizers_of_ours.write(tmp_path, "byte-level")
    writer = BYTES if tokens == "bytes" else Writer(load_vocabulary(str(folder)))
    sizes = {"vocab_size": 128 if tokens == "bytes" else writer.vocabulary.size}
    config = tiny.config(**sizes, block_size=16, memory_segments=0, fam_length=fam_length)
    params = tiny.parameters(config)
    model = tiny.build(config, params)
    settings = EvalConfig(model_dirs=("x",), filler_blocks=(2,), batch_size=6, key_digits=2)
    docs = [doc for doc in passkey.documents(2, 16, settings, writer)]
    for i, doc in enumerate(docs):
        for t in doc.answer if i % 2 else ():
            doc.tokens[t] = first_choices(config, params, doc)[t - 1]
    expected = [first_choices(config, params, doc)[doc.answer - 1] == doc.tokens[doc.answer] for doc in docs]
    hits = np.array([one.all() for one in expected])
    assert hits[1::2].all()
    assert not hits[::2].any()
    monkeypatch.setattr(passkey, "documents", lambda *_: docs)
    codec = Codec.of(writer.vocabulary)
    task = passkey.task("passkey", settings, codec, 16)
    (row,) = passkey.rows(list(Runner(ModelEngine(model, 6), codec).run(task)), 16)
    assert row["documents"] == 16
    assert row["exact_match"] == hits.mean()
    assert row["token_accuracy"] == pytest.approx(np.concatenate(expected).mean())
    assert row["misses_by_alignment"] == list(range(0, 16, 2))


def test_every_alignment_once_a_key_and_keys_of_their_own_seed():
    """Each length has block_size * keys documents, with filler of n blocks + 0..S-1 tokens."""
    settings = EvalConfig(model_dirs=("x",), keys=3)
    docs = passkey.documents(4, 64, settings, BYTES)
    fillers = sorted(len(doc.tokens) - len(BYTES.document("00000", 0).tokens) for doc in docs)
    assert fillers == sorted(3 * list(range(256, 320)))
    other = passkey.documents(4, 64, EvalConfig(model_dirs=("x",), keys=3, seed=2), BYTES)
    assert any((a.tokens != b.tokens).any() for a, b in zip(docs, other, strict=True))


def test_alignments_are_spread_over_a_block():
    """All of them, or as many as asked for at equal distances; a row has the mean filler of its alignments, each of
    which counts once."""
    asked = lambda number: passkey.alignments(16, EvalConfig(model_dirs=("x",), alignments=number))
    assert asked(4) == [0, 4, 8, 12] and asked(3) == [0, 5, 10] and asked(1) == [0]
    assert asked(0) == asked(16) == asked(99) == list(range(16))
    values, samples = {"exact_match": 1.0, "next_token_accuracy": 1.0}, []
    for i, alignment in enumerate((0, 5, 10, 10)):
        about = {"filler_blocks": 2, "alignment": alignment, "needle": 0, "answer_tokens": 5}
        samples.append(Sample("passkey", f"2/{i}", f"2/{i}", "", 40, 0, "", "", [], "", values, about))
    (row,) = passkey.rows(samples, 16)
    assert (row["filler_blocks"], row["filler_tokens"], row["documents"]) == (2, 37.0, 4)


def test_tokens_of_answers_count_alike():
    """3 of 5 tokens of a key and both tokens of another one are 5 of 7."""
    samples = []
    for i, (tokens, accuracy) in enumerate(((5, 0.6), (2, 1.0))):
        about = {"filler_blocks": 1, "alignment": i, "needle": 0, "answer_tokens": tokens}
        values = {"exact_match": float(accuracy == 1), "next_token_accuracy": accuracy}
        samples.append(Sample("passkey", f"1/{i}", f"1/{i}", "", 40, 0, "", "", [], "", values, about))
    (row,) = passkey.rows(samples, 16)
    assert row["token_accuracy"] == pytest.approx(5 / 7) and row["misses_by_alignment"] == [0]


def test_updates_are_the_block_edges_between_key_and_question():
    """A key in block 1 with its question in block 4 is carried over three block boundaries. An answer at the start of a
    block is predicted by the last token of the block before."""
    for needle, answer in itertools.combinations(range(20), 2):
        ends = sum((t + 1) % 4 == 0 for t in range(needle, answer - 1))
        assert updates_between(needle, answer, 4) == ends
    doc = BYTES.document("12345", 100)
    edges = sum(1 for t in range(doc.mention[-1], doc.answer[0] - 1) if (t + 1) % 64 == 0)
    about = {"filler_blocks": 1, "alignment": 36, "needle": int(doc.mention[-1]), "answer_tokens": 5}
    config = EvalConfig(model_dirs=("x",), filler_blocks=(1,), keys=1)
    for example, one in zip(passkey.task("passkey", config, Codec.of(BYTES.vocabulary), 64).examples(),
                            passkey.documents(1, 64, config, BYTES), strict=True):  # fmt: skip
        assert example.about["needle"] == one.mention[-1]  # the key is complete there
    values = {"exact_match": 1.0, "next_token_accuracy": 1.0}
    sample = Sample("passkey", "1/0", "1/0", "", int(doc.answer[0]), 0, "", "", [], "", values, about)
    (row,) = passkey.rows([sample], 64)
    assert row["fam_updates"] == edges
    assert (row["low"], row["high"], row["exact_match"]) == (pytest.approx(0.2065, abs=1e-4), 1.0, 1.0)


def test_eval_command_writes_table_results_and_plot(tmp_path, capsys):
    """`famjax eval` on two models prints the values of results.json."""
    for name, fam_length in (("fam", 2), ("bswa", 0)):
        config = tiny.config(vocab_size=128, block_size=16, memory_segments=0, fam_length=fam_length)
        save_model(tmp_path / name, config, tiny.parameters(config))
    models = [word for name in ("fam", "bswa") for word in ("--model", str(tmp_path / name))]
    assert main(["eval", *models, "--output", str(tmp_path / "out"), "--filler-blocks", "1,3"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [model["name"] for model in results["models"]] == ["fam", "bswa"]
    assert [row["filler_blocks"] for row in results["models"][0]["passkey"]] == [1, 3]
    printed = capsys.readouterr().out
    for model in results["models"]:
        for row in model["passkey"]:
            assert f"{row['exact_match']:.3f} ({row['low']:.2f}-{row['high']:.2f})" in printed
    assert (tmp_path / "out" / "passkey.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "add --model DIR"),
        (["--model", "no/such"], "no/such does not exist"),
        (["--model", "x", "--filler-blocks", "1,b"], "write for example 1,4,16,64"),
        (["--model", "x", "--filler-blocks=-1"], "at least 0"),
        (["--model", "x", "--longest", "1"], "longest is 1, which leaves no token to predict; use at least 2"),
        (["--model", "x", "--gin.MIXTURE_OR_TASK_NAME='paskey'"], "did you mean 'passkey'"),
    ],
)
def test_mistakes_are_one_line(words, said, capsys):
    """Exit code 2 and one line that says what to do."""
    assert main(["eval", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
