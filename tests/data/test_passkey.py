"""The pass key task: the paper's text, the right targets, a curriculum that opens."""

import json

import numpy as np
import pytest

from famjax.config import ConfigError, PassKeyConfig
from famjax.data.passkey import PassKeyTask
from famjax.data.passkey_text import FILLER, Writer
from famjax.data.vocabulary import ByteVocabulary, decode, encode

BLOCK = 64
WRITER = Writer(ByteVocabulary())
document, overhead = WRITER.document, WRITER.overhead


def task(seed: int = 0, **changes) -> PassKeyTask:
    settings = {"config": PassKeyConfig(), "sequence_length": 22 * BLOCK, "block_size": BLOCK, "batch_size": 4}
    return PassKeyTask(**(settings | {"vocab_size": 256, "seed": seed} | changes))


def test_document_is_the_papers_format_word_for_word():
    """Paper section 5: instruction, key twice, filler, question, answer."""
    doc = document("01234", len(FILLER) * 2)
    assert decode(doc.tokens) == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
        "about the important information there. The pass key is 01234. Remember it. 01234 is the pass key. "
        + FILLER * 2
        + " What is the pass key? The pass key is 01234"
    )


@pytest.mark.parametrize("filler", [0, 1, 63, 64, 89, 90, 1000])
def test_filler_has_exactly_so_many_tokens_and_the_answer_is_where_it_is_said(filler):
    """Lengths are exact; `answer` and `mention` index the key's digits."""
    doc = document("90817", filler)
    assert len(doc.tokens) == overhead("00000") + filler
    assert decode(doc.tokens[doc.answer]) == decode(doc.tokens[doc.mention]) == "90817"
    assert doc.answer[-1] == len(doc.tokens) - 1
    assert decode(doc.tokens[: doc.mention[0]]).endswith("Remember it. ")


def test_byte_vocabulary_round_trip():
    """Ids are UTF-8 bytes, also beyond ASCII."""
    assert decode(encode("naïve €")) == "naïve €"
    assert encode("aé").tolist() == [97, 0xC3, 0xA9]


def test_more_random_tokens_than_a_row_has() -> None:
    """Then all tokens of the other text carry a loss, each once."""
    config = PassKeyConfig(stages=(1,), mention_weight=0.0, text_weight=0.5, text_tokens=10_000)
    batch = task(config=config, sequence_length=6 * BLOCK).batch(0, {"open_stages": 1})[0]
    for row, positions, targets, weights in zip(
        batch.tokens, batch.positions, batch.targets, batch.weights, strict=True
    ):
        at = positions[weights == np.float32(0.5)] + 1
        assert len(at) == len(set(at.tolist())) > 100
        np.testing.assert_array_equal(targets[weights == np.float32(0.5)], row[at])


@pytest.mark.parametrize("open_stages", [1, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_rows_hold_whole_documents_at_block_edges(seed, open_stages):
    """Split at `starts`, a row is documents of the format, padding up to the block's end and nothing else."""
    config = PassKeyConfig()
    batch = task(seed).batch(7, {"open_stages": open_stages})[0]
    longest = 0
    for row, count, starts in zip(batch.tokens, batch.count, batch.starts, strict=True):
        begins = np.flatnonzero(starts) * BLOCK
        assert begins[0] == 0
        for begin, end in zip(begins, [*begins[1:], len(row)], strict=True):
            text = decode(row[begin:end]).rstrip("\0")
            key, filler = text[-5:], len(text) - overhead("00000")
            assert text == decode(document(key, filler).tokens)
            assert end - begin - len(text) < BLOCK or end == len(row)
            longest = max(longest, filler)
        assert count == begins[-1] + len(text)
    assert longest < (config.stages[open_stages - 1] + 1) * BLOCK
    assert longest >= (config.stages[open_stages - 2] * BLOCK if open_stages > 1 else 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_targets_follow_their_positions_and_weights_are_as_configured(seed):
    """A target is the token after its position; answers have weight 1, mentions and other text as configured."""
    config = PassKeyConfig(mention_weight=0.5, text_weight=0.05, text_tokens=7)
    batch = task(seed, config=config).batch(seed, {"open_stages": 2})[0]
    for row, starts, positions, targets, weights in zip(
        batch.tokens, batch.starts, batch.positions, batch.targets, batch.weights, strict=True
    ):
        used = weights > 0
        assert (row[positions + 1] == targets)[used].all()
        assert len(set(positions[used].tolist())) == used.sum(), "a token is weighed once"
        documents = starts.sum()
        assert [(weights == w).sum() for w in np.float32([1.0, 0.5, 0.05])] == [5 * documents, 5 * documents, 7]
        assert not starts[((positions + 1) // BLOCK)[used]][((positions + 1) % BLOCK == 0)[used]].any(), (
            "a document's first token is not predicted from the document before"
        )


def test_batches_depend_on_seed_step_and_progress_alone():
    """A batch is a function of the three; another step or seed gives another one."""
    progress = {"open_stages": 3}
    first, again, other = task(5).batch(9, progress)[0], task(5).batch(9, progress)[0], task(5).batch(10, progress)[0]
    assert all((a == b).all() for a, b in zip(first[:-1], again[:-1], strict=True))
    assert first.kept is None, "no row goes on"
    assert (first.tokens != other.tokens).any()
    assert (first.tokens != task(6).batch(9, progress)[0].tokens).any()


def test_every_alignment_of_the_last_stage_is_drawn():
    """Models fail where answers straddle a block boundary, so training must see all alignments."""
    drawn = set()
    for step in range(120):
        batch = task(batch_size=8).batch(step, {"open_stages": 5})[0]
        drawn |= {int(c) % BLOCK for c in batch.count}
    assert drawn == set(range(BLOCK))


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0.0, 0.13), (1.0, 0.75, 1.0)])
def test_straddling_answers_are_as_frequent_as_asked(share, least, most):
    """By chance 4 of 64 answers straddle a block boundary. At straddle_share 1 all do, except in documents that must
    end early because their row does."""
    pass_key = task(config=PassKeyConfig(straddle_share=share), batch_size=8)
    ends = []
    for step in range(30):
        batch = pass_key.batch(step, {"open_stages": 5})[0]
        ends += [(overhead("00000") + filler) % BLOCK for row in pass_key._answers(batch) for _, filler in row]
    assert least <= np.isin(ends, [1, 2, 3, 4]).mean() <= most
    assert set(ends) >= {1, 2, 3, 4}


@pytest.mark.parametrize("behind", [1, 8])
def test_answers_that_begin_behind_an_edge(behind):
    """Answers begin from 4 tokens before a block boundary to `straddle_behind` tokens after it, equally often."""
    pass_key = task(config=PassKeyConfig(straddle_share=1.0, straddle_behind=behind), batch_size=8)
    begin = []
    for step in range(60):
        batch = pass_key.batch(step, {"open_stages": 5})[0]
        begin += [(overhead("00000") + filler - 5) % BLOCK for row in pass_key._answers(batch) for _, filler in row]
    wanted = [n % BLOCK for n in range(-4, behind)]
    assert set(wanted) <= set(begin)
    assert np.isin(begin, wanted).mean() >= 0.75  # documents that end with their row have no choice
    counts = [begin.count(n) for n in wanted]
    assert min(counts) > 0.5 * max(counts)


def test_a_stage_opens_on_the_newest_stages_exact_match():
    """Correct answers open all stages one by one; answers with one wrong digit open none."""
    pass_key = task(config=PassKeyConfig(open_at=0.8))
    right_progress = wrong_progress = pass_key.start()
    for step in range(400):
        batch = pass_key.batch(step, right_progress)[0]
        right_progress = pass_key.observe(right_progress, batch, np.ones_like(batch.targets, bool))
        batch = pass_key.batch(step, wrong_progress)[0]
        wrong = np.ones_like(batch.targets, bool)
        wrong[:, 2::10] = False  # the third digit of every answer
        wrong_progress = pass_key.observe(wrong_progress, batch, wrong)
    assert right_progress["open_stages"] == 5
    assert right_progress["exact_match"] > 0.99
    assert wrong_progress["open_stages"] == 1
    assert wrong_progress["exact_match"] == 0.0
    assert pass_key.report(right_progress)["filler_blocks"] == 16


@pytest.mark.parametrize(("blocks", "stages"), [(22, (1, 2, 4, 8, 16)), (20, (1, 2, 4, 8)), (6, (1,))])
def test_the_curriculum_ends_where_rows_do(blocks, stages):
    """Short rows leave the last stages out; drawn documents still fit, and the curriculum ends without those stages."""
    pass_key = task(sequence_length=blocks * BLOCK)
    assert pass_key.stages == stages
    progress = pass_key.start()
    for step in range(300):
        batch = pass_key.batch(step, progress)[0]
        progress = pass_key.observe(progress, batch, np.ones_like(batch.targets, bool))
    assert progress["open_stages"] == len(stages)
    assert batch.count.max() <= blocks * BLOCK


def test_impossible_tasks_say_what_to_change():
    """Rows too short for the first stage, stages out of order, a vocabulary without ASCII."""
    with pytest.raises(ConfigError, match="use at least 384"):
        task(sequence_length=5 * BLOCK)
    with pytest.raises(ConfigError, match="ascending order"):
        task(config=PassKeyConfig(stages=(4, 1)))
    with pytest.raises(ConfigError, match="vocab_size 100"):
        task(vocab_size=100)


# --- streams ----------------------------------------------------------------------------------------------------------


def streams(seed: int = 0, **changes) -> PassKeyTask:
    """A task with all stages open, in which most rows are streams."""
    return task(seed, config=PassKeyConfig(stages=(16,), stream_share=0.75, straddle_share=0.25, **changes))


def played(pass_key: PassKeyTask, steps: int, right=lambda step, row: True):
    """Yields batches, and the streams' states before and after each; `right` says which rows answer correctly."""
    progress = pass_key.start()
    for step in range(steps):
        before = progress["streams"]
        batch, progress = pass_key.batch(step, progress)
        correct = np.ones_like(batch.targets, bool)
        correct[[row for row in range(len(correct)) if not right(step, row)]] = False
        progress = pass_key.observe(progress, batch, correct)
        yield batch, before, progress


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_kept_blocks_of_a_stream_and_its_last_part_are_one_document(seed):
    """The tokens that the memory has read before a question, with the question's part, are a document of the format."""
    pass_key = streams(seed)
    kept_text, longest = [""] * 3, 0
    for batch, before, _ in played(pass_key, 30):
        for i in range(3):
            text = decode(batch.tokens[i]).split("\0")[0]
            behind = np.flatnonzero(batch.starts[i][1:])
            text = text[: (behind[0] + 1) * BLOCK] if len(behind) else text
            if before[i] is None:
                assert batch.starts[i, 0]
                kept_text[i] = ""
            else:
                assert not batch.starts[i, 0]
            whole = kept_text[i] + text
            filler = len(whole) - overhead("00000")
            assert whole == decode(document(whole[-5:], filler).tokens)
            kept_text[i] = whole[: len(kept_text[i]) + batch.kept[i] * BLOCK]
            assert "What is" not in kept_text[i], "a question is on a branch"
            longest = max(longest, filler)
    assert longest > 40 * BLOCK
    assert not batch.kept[3], "a row without a stream carries nothing"


def test_a_stream_ends_where_it_was_answered_wrong_or_is_long_enough():
    """Gated, a wrong answer ends a stream; not gated, or if all answers are right, only its length does."""
    wrong = lambda step, row: row != 1 or step % 3 != 2
    lengths = []
    for n, (_, before, progress) in enumerate(played(streams(stream_blocks=64), 120, wrong)):
        assert n % 3 != 2 or progress["streams"][1] is None
        assert all(not entry or entry["read"] < entry["until"] * BLOCK for entry in progress["streams"])
        lengths += [e["read"] // BLOCK for e, now in zip(before, progress["streams"], strict=True) if e and now is None]
    assert max(lengths) >= 16
    assert all(e is None or e["read"] < 64 * BLOCK for e in progress["streams"])
    open_end = [p["streams"] for _, _, p in played(streams(stream_gated=False), 6, lambda step, row: False)]
    assert any(any(entries) for entries in open_end[1:]), "not gated, they go on whatever the answers"


def test_a_stream_that_goes_on_leaves_room_for_one_more_document():
    """It does not state its key, so its part of a row may be short; every answer of the row still has its targets."""
    config = PassKeyConfig(stages=(1,), stream_share=1.0, mention_weight=0.5, text_tokens=3)
    pass_key, most = task(config=config, sequence_length=6 * BLOCK), 0
    for batch, *_ in played(pass_key, 30):
        documents = batch.starts.sum(axis=1) + ~batch.starts[:, 0]
        np.testing.assert_array_equal((batch.weights == 1).sum(axis=1), 5 * documents)
        np.testing.assert_array_equal((batch.weights == 0.5).sum(axis=1), 5 * batch.starts.sum(axis=1))
        most = max(most, documents.max())
    assert most == 2 > 6 // -(-overhead("00000") // BLOCK)


def test_what_a_stream_adds_is_as_long_as_the_filler_of_another_document():
    """Of the stage's lengths, 0 to 17 blocks less one token, also the shortest, counted from what the memory has read;
    a memory that has not read a whole block is not carried."""
    pass_key, added = streams(2), []
    for _, before, progress in played(pass_key, 60):
        for old, new in zip(before, progress["streams"], strict=True):
            if old and new:
                stated = old["lead"] + WRITER.telling_tokens(old["key"], old["introduced"])
                added.append(new["filler"] - max(old["read"] - stated, 0))
    assert len(added) > 80 and 0 <= min(added) < BLOCK and 15 * BLOCK < max(added) < 17 * BLOCK
    config = PassKeyConfig(stages=(1,), stream_share=1.0)
    short = task(config=config, block_size=512, sequence_length=4 * 512, batch_size=8)
    carried = set()
    for batch, before, progress in played(short, 4):
        for kept, old, new in zip(batch.kept, before, progress["streams"], strict=True):
            assert new is None or kept or old
            carried.add((bool(kept or old), new is not None))
    assert carried == {(False, False), (True, False), (True, True)}


def test_long_streams_are_drawn_as_often_as_said():
    """Of lengths from s = 16 to L = 64 blocks a share of (s / n - s / L) / (1 - s / L) has n blocks or more: 500 draws,
    within 4 standard errors."""
    pass_key = task(config=PassKeyConfig(stages=(16,), stream_share=1.0, stream_blocks=64), batch_size=500)
    _, progress = pass_key.batch(0, pass_key.start())
    until = np.array([stream["until"] for stream in progress["streams"]])
    assert until.min() >= 16 and until.max() <= 64
    for n in (20, 24, 32, 48):
        expected = (16 / (n - 0.5) - 1 / 4) / (3 / 4)  # lengths are rounded
        assert abs((until >= n).mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 500)


def test_recall_is_told_by_the_filler_before_the_question():
    """Rows that forget after 32 blocks show it in the recall beyond 32 blocks, and nowhere else."""
    pass_key = streams(1)
    progress = pass_key.start()
    for step in range(200):
        batch, progress = pass_key.batch(step, progress)
        correct = np.ones_like(batch.targets, bool)
        for i, entry in enumerate(progress["streams"]):
            correct[i] = entry["filler"] < 32 * BLOCK
        progress = pass_key.observe(progress, batch, correct)
    report = pass_key.report(progress)
    recall = {int(name.split("/")[1].split("_")[0]): x for name, x in report.items() if name.startswith("recall/")}
    assert set(recall) == {1, 2, 4, 8, 16, 32}
    assert all(x == (age < 32) for age, x in recall.items())


@pytest.mark.parametrize("settings", [{}, {"stream_blocks": 16, "stream_told_again": 0.5, "late_share": 0.5}])
def test_the_entries_of_a_stream_are_json_and_enough_to_go_on(settings):
    """Progress is stored in checkpoints: read back from JSON, the next batch is the same."""
    pass_key, ended = streams(4, **settings), False
    for step, (_, _, progress) in enumerate(played(pass_key, 9)):
        back = json.loads(json.dumps(progress))
        ended |= {} in back["streams"]
        for a, b in zip(
            pass_key.batch(step + 1, progress)[0], streams(4, **settings).batch(step + 1, back)[0], strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert ended == bool(settings)


# --- late keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_stream_at_its_end_is_told_another_key_and_what_it_was_told_before_is_in_its_memory(seed):
    """At share 1 no memory is reset while answers are right; each stretch is a document without introduction: filler,
    the statement of its own key, filler, its question. Only its own filler counts."""
    pass_key = streams(seed, stream_blocks=24, stream_told_again=1.0)
    kept, told, keys, again, progress = [""] * 3, [""] * 3, [set() for _ in range(3)], 0, {}
    for step, (batch, before, progress) in enumerate(played(pass_key, 40)):
        assert not step or not batch.starts[:3, 0].any()
        for i, entry in enumerate(before):
            text = decode(batch.tokens[i]).split("\0")[0]
            behind = np.flatnonzero(batch.starts[i][1:])
            text = text[: (behind[0] + 1) * BLOCK] if len(behind) else text
            if not entry:
                again += entry == {}
                kept[i] = ""
                told[i] = text.split("The pass key is ")[1][:5]
                keys[i].add(told[i])
                assert text.startswith("There is an important") == (entry is None)
                lead = text.split("The pass key is ")[0]
                assert entry is None or (FILLER * 2).startswith(lead)
            whole = kept[i] + text
            assert whole.endswith(f"What is the pass key? The pass key is {told[i]}")
            if progress["streams"][i]:
                filler = whole.split(f"{told[i]} is the pass key. ")[1].split(" What is the pass key?")[0]
                assert progress["streams"][i]["filler"] == len(filler)
            kept[i] = whole[: len(kept[i]) + batch.kept[i] * BLOCK]
    assert again > 20
    assert all(len(one) > 5 for one in keys)


def test_streams_are_told_another_key_as_often_as_asked():
    """At share 0.5 half of the streams that have ended continue, within 4 standard errors; the others restart."""
    goes_on = []
    for batch, before, _ in played(streams(stream_blocks=16, stream_told_again=0.5), 60):
        goes_on += [not starts[0] for starts, entry in zip(batch.starts, before, strict=False) if entry == {}]
    assert len(goes_on) > 60 and abs(np.mean(goes_on) - 0.5) < 4 * np.sqrt(0.25 / len(goes_on))


def test_a_stream_that_was_wrong_is_told_another_key_with_a_fresh_memory():
    """Whatever the share, a memory that has lost its key is discarded."""
    pass_key = streams(1, stream_told_again=1.0)
    for batch, before, _ in played(pass_key, 12, lambda step, row: False):
        assert before == [None] * 3
        assert batch.starts[:3, 0].all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_keys_are_told_behind_filler_as_often_as_asked(share):
    """The filler before the key is stated is less than 2 blocks, and does not count as filler of the key."""
    pass_key = task(config=PassKeyConfig(late_share=share), batch_size=8)
    late = []
    for step in range(40):
        batch = pass_key.batch(step, {"open_stages": 5})[0]
        for row, tokens, starts in zip(pass_key._answers(batch), batch.tokens, batch.starts, strict=True):
            for (_, filler), begin in zip(row, np.flatnonzero(starts) * BLOCK, strict=True):
                text = decode(tokens[begin:])
                lead, behind = text.split("information there. ")[1].split("The pass key is ", 1)
                assert (FILLER * 2).startswith(lead)
                assert len(lead) < 2 * BLOCK
                own = behind.split(" is the pass key. ")[1].split(" What is the pass key?")[0]
                assert filler == len(own)
                late.append(len(lead) > 0)
    assert abs(np.mean(late) - share) < 0.08


def refused(pass_key: PassKeyTask, progress: dict) -> str:
    with pytest.raises(ConfigError) as error:
        pass_key.batch(5, progress)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("had", "now"), [(1.0, 0.5), (0.5, 1.0), (0.5, 0.0), (0.0, 0.5)])
def test_a_resumed_training_needs_its_stream_share(had, now):
    """The number of streams is that of the setting, so a training that had another number is refused."""
    settings = lambda share: {"config": PassKeyConfig(stages=(1,), stream_share=share), "batch_size": 2}
    progress = task(**settings(had)).start()
    task(**settings(had)).batch(5, progress)
    assert f"had {round(2 * had)} rows of streams, stream_share {now:g} of 2 rows is {round(2 * now)}" in refused(
        task(**settings(now)), progress
    )


def test_a_resumed_training_needs_the_stages_that_are_open():
    """Fewer stages, or rows too short for those that are open, are refused; further stages may be added."""
    of = lambda *stages: task(config=PassKeyConfig(stages=stages))
    progress = of(1, 2, 3).start() | {"open_stages": 3}
    assert "has opened 3 stages, but 2 of stages (1, 2) fit into a row; use its stages" in refused(of(1, 2), progress)
    assert "has opened 3 stages, but 2 of stages (1, 2, 99) fit" in refused(of(1, 2, 99), progress)
    of(1, 2, 3, 4).batch(5, progress)
