"""Packed rows: examples next to each other, in order, with their weights."""

import numpy as np
import pytest

from famjax.config import ConfigError
from famjax.data.examples import Documents, Mixture
from famjax.data.packing import REPEAT_TEXT
from famjax.data.sources import open_source
from famjax.data.text_task import TextTask, check_text_task, make_text_task
from famjax.data.vocabulary import ByteVocabulary
from tests.data import text

EXAMPLES = [{"inputs": "in" * i, "targets": chr(65 + i) * (1 + 2 * i)} for i in range(8)]  # 1, 5, 9, ... 29 tokens


def packed(tmp_path, **changes):
    source = text.write_jsonl(tmp_path / "examples.jsonl", EXAMPLES)
    return text.config(source, shuffle=False, **changes)


def predictions(batches):
    """Returns (token, weight) of each token that a row's positions predict, in reading order, without weight 0."""
    targets = np.concatenate([batch.targets[0] for batch in batches])
    weights = np.concatenate([batch.weights[0] for batch in batches])
    return [(int(t), float(w)) for t, w in zip(targets, weights, strict=True) if w]


def expected(examples):
    """Returns all tokens of all targets except an example's first token, which is not predicted."""
    return [
        (ord(letter), 1.0)
        for example in examples
        for i, letter in enumerate(example["inputs"] + example["targets"])
        if i >= max(1, len(example["inputs"]))
    ]


def test_another_packing_resumes_with_whole_examples(tmp_path):
    """A lane in the middle of an example that was split reads it from its start, also if it is longer than a row."""
    made = {kind: packed(tmp_path, packing=kind) for kind in ("cut", "whole")}
    longest = max(EXAMPLES, key=lambda example: len(example["inputs"] + example["targets"]))
    _, progress = text.read(make_text_task(made["cut"], [0]), 12)
    inside = next(one for one in progress if one["0"]["where"][0] == 7 and one["0"]["token"] > text.T)
    batch, _ = make_text_task(made["whole"], [0]).batch(0, inside)
    assert bytes(batch.tokens[0].tolist()).decode() == (longest["inputs"] + longest["targets"])[: text.T]


def test_an_example_that_has_become_shorter_is_refused(tmp_path):
    """The position of its lane is after its end."""
    made = packed(tmp_path)
    _, progress = text.read(make_text_task(made, [0]), 12)
    inside = next(one for one in progress if one["0"]["where"][0] == 7 and one["0"]["token"] > text.T)
    text.write_jsonl(tmp_path / "examples.jsonl", [*EXAMPLES[:7], {"inputs": "", "targets": "B"}])
    with pytest.raises(
        ConfigError, match=r"was at token \d+ of a document that now has 1, so its position in the data"
    ):
        make_text_task(made, [0]).batch(0, inside)


def test_cut_rows_hold_every_token_in_order(tmp_path):
    """Concatenated rows are the concatenated examples, without padding; every token of an answer is predicted exactly
    once, including the first one of the next row; questions are never predicted."""
    batches = text.batches_of(packed(tmp_path), 15)
    tokens = np.concatenate([batch.tokens[0] for batch in batches])
    joined = "".join(example["inputs"] + example["targets"] for example in EXAMPLES)
    assert bytes(tokens.astype(np.uint8)).decode() == (joined * 3)[: 15 * text.T]
    assert all(batch.count[0] == text.T for batch in batches)
    found, wanted = predictions(batches), expected(EXAMPLES * 3)
    assert len(found) > len(expected(EXAMPLES))
    assert found == wanted[: len(found)]


def test_whole_rows_cut_no_example_that_fits(tmp_path):
    """An example that does not fit starts the next row; one that is longer than a row is truncated."""
    batches = text.batches_of(packed(tmp_path, packing="whole"), 7)
    rows = [bytes(batch.tokens[0].astype(np.uint8)).rstrip(b"\0").decode() for batch in batches]
    one = [example["inputs"] + example["targets"] for example in EXAMPLES]
    assert rows == ["".join(one[:3]), one[3], *(example[:16] for example in one[4:]), "".join(one[:3])]
    assert [int(batch.count[0]) for batch in batches] == [len(row) for row in rows]
    # A inBBB ininCCCCC: the letters of each answer are predicted at the positions before them.
    np.testing.assert_array_equal(np.flatnonzero(batches[0].weights[0]), [2, 3, 4, 9, 10, 11, 12, 13])
    assert not batches[6].weights[0][15]


def test_a_random_segment_is_repeated(tmp_path):
    """Paper section 5: consecutive tokens of the row are repeated at its end, after the announcement, with weight 0.1;
    the announcement has no loss; the rest is unchanged."""
    made = packed(tmp_path, repeat_segment=5, repeat_weight=0.25, sequence_length=64)
    content = 64 - len(REPEAT_TEXT) - 5
    firsts = set()
    tokens = ""
    for batch in text.batches_of(made, 20):
        row = bytes(batch.tokens[0].astype(np.uint8)).decode()
        assert row[content:-5] == REPEAT_TEXT and row[-5:] in row[:content] and batch.count[0] == 64
        firsts.add(row[:content].index(row[-5:]))
        np.testing.assert_array_equal(batch.weights[0, content : 64 - 6], 0)
        np.testing.assert_array_equal(batch.weights[0, 64 - 6 : 63], np.float32(0.25))
        np.testing.assert_array_equal(batch.targets[0, 64 - 6 : 63], batch.tokens[0, 59:])
        assert batch.weights[0, 63] == 0
        tokens += row[:content]
    joined = "".join(example["inputs"] + example["targets"] for example in EXAMPLES)
    assert tokens == (joined * 10)[: len(tokens)]
    assert len(firsts) > 5


def test_segments_are_drawn_for_each_row_step_and_seed(tmp_path):
    """Equal rows repeat other segments, as do those of other steps and seeds."""
    whole = text.text(0, 64 - len(REPEAT_TEXT) - 5)
    source = text.write_jsonl(tmp_path / "a.jsonl", [{"text": whole}])
    drawn = []
    for seed in (0, 1):
        batches = text.batches_of(text.config(source, rows=2, repeat_segment=5, sequence_length=64, seed=seed), 8)
        rows = np.stack([batch.tokens for batch in batches])
        assert {bytes(row[: len(whole)].tolist()).decode() for row in rows.reshape(16, 64)} == {whole}
        drawn += [tuple(map(bytes, rows[:, row, -5:].tolist())) for row in (0, 1)]
    assert len(set(drawn)) == 4 and all(len(set(segments)) > 3 for segments in drawn)


def test_a_short_row_repeats_behind_its_last_token(tmp_path):
    """Padding stays at the row's end; a row with fewer tokens than the segment repeats all of them."""
    source = text.write_jsonl(tmp_path / "a.jsonl", [{"text": "abc"}, {"text": "d" * 27}])
    made = text.config(source, shuffle=False, packing="whole", repeat_segment=8, sequence_length=64)
    batch = text.batches_of(made, 2)[0]
    row = bytes(batch.tokens[0].astype(np.uint8)).rstrip(b"\0").decode()
    assert row[:30] == "abc" + "d" * 27 and row[30:-8] == REPEAT_TEXT and row[-8:] in row[:30]
    alone = text.write_jsonl(tmp_path / "b.jsonl", [{"text": "abc"}, {"text": "d" * 32}])
    made = text.config(alone, shuffle=False, packing="whole", repeat_segment=8, sequence_length=64)
    batch = text.batches_of(made, 2)[0]
    row = bytes(batch.tokens[0].astype(np.uint8)).rstrip(b"\0").decode()
    assert row == "abc" + REPEAT_TEXT + "abc"
    assert batch.count[0] == len(row) and not batch.weights[0, len(row) - 1 :].any()


def test_a_segment_needs_room(tmp_path):
    """Reported before JAX is loaded and before any training."""
    with pytest.raises(ConfigError, match="take 36 tokens of a row of 64; use at most half of it"):
        check_text_task(packed(tmp_path, repeat_segment=12, sequence_length=64))


def test_begin_and_end_of_text(tmp_path):
    """If the vocabulary has them: begin is read and never predicted, end is predicted like the answer."""
    vocabulary = ByteVocabulary(offset=3, eos=1)
    vocabulary.bos = 2
    source = text.write_jsonl(tmp_path / "a.jsonl", [{"inputs": "ab", "targets": "cd"}, {"inputs": "", "targets": ""}])
    made = text.config(source, shuffle=False, vocab_size=259)
    kind = Documents(open_source(made.data.all_sources()[0]), vocabulary, 1, None, True, True)
    task = TextTask(made, [0], vocabulary, {"packed": Mixture([kind], [1.0], [0])})
    batch = text.read(task, 1)[0][0]
    a = 3 + ord("a")
    np.testing.assert_array_equal(batch.tokens[0, :7], [2, a, a + 1, a + 2, a + 3, 1, 2])
    np.testing.assert_array_equal(batch.targets[0, :5], [a, a + 1, a + 2, a + 3, 1])
    np.testing.assert_array_equal(batch.weights[0, :6], [0, 0, 1, 1, 1, 0])
