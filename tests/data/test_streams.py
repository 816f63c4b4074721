"""Document streams: every document whole, once per epoch, wherever blocks, rows and steps end."""

from pathlib import Path

import numpy as np
import pytest

from famjax.config import ConfigError, SourceConfig
from famjax.data.examples import number_to_join
from famjax.data.text_task import make_text_task
from tests.data import text


@pytest.mark.parametrize("size", text.EDGES)
def test_documents_of_one_size(tmp_path, size):
    """A document of any size is unchanged by streaming; it starts at a block boundary, and `starts` marks exactly those
    blocks."""
    texts = text.write_texts(tmp_path, [size] * 3)
    batches = text.batches_of(text.config(tmp_path / "*.txt", stream_share=1.0), 30)
    documents = text.stream(batches, 0)
    assert len(documents) == (30 * text.T // text.S - 1) // -(-size // text.S)
    for epoch in range(len(documents) // 3):
        assert sorted(documents[3 * epoch : 3 * epoch + 3]) == sorted(texts)
    every = -(-size // text.S)
    starts = np.concatenate([batch.starts[0] for batch in batches])
    np.testing.assert_array_equal(starts, np.arange(len(starts)) % every == 0)


def test_each_document_once_an_epoch_and_empty_ones_never(tmp_path):
    """All edge sizes and two empty files in one stream: each epoch is a permutation of those with text, and differs
    from the epoch before."""
    texts = text.write_texts(tmp_path, [*text.EDGES, 0, 0])
    documents = text.stream(text.batches_of(text.config(tmp_path / "*.txt", stream_share=1.0), 60), 0)
    epochs = [documents[i : i + 10] for i in range(0, len(documents) - 9, 10)]
    assert len(epochs) >= 4
    assert all(sorted(epoch) == sorted(texts[:10]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize(("documents", "rows"), [(10, 3), (2, 4), (1, 3)])
def test_lanes_share_an_epoch_out(tmp_path, documents, rows):
    """Lane r of n has the positions r, r + n, ... of the endless sequence of epochs: each document once in each of
    them, also with fewer documents than lanes."""
    texts = text.write_texts(tmp_path, list(text.EDGES[:documents]))
    batches = text.batches_of(text.config(tmp_path / "*.txt", stream_share=1.0, rows=rows), 40)
    lanes = [text.stream(batches, row) for row in range(rows)]
    for epoch in range(3):
        places = range(epoch * documents, (epoch + 1) * documents)
        assert sorted(lanes[place % rows][place // rows] for place in places) == sorted(texts)


def test_without_shuffling_documents_come_in_their_order(tmp_path):
    """`shuffle` False is the order of the sorted paths, epoch after epoch."""
    texts = text.write_texts(tmp_path, [5, 20, 1])
    documents = text.stream(text.batches_of(text.config(tmp_path / "*.txt", stream_share=1.0, shuffle=False), 10), 0)
    assert documents[:9] == texts * 3


def test_other_seeds_have_other_orders(tmp_path):
    """The order depends on the seed."""
    text.write_texts(tmp_path, list(text.EDGES))
    orders = [
        tuple(text.stream(text.batches_of(text.config(tmp_path / "*.txt", stream_share=1.0, seed=seed), 20), 0))
        for seed in (0, 1, 0)
    ]
    assert orders[0] == orders[2] != orders[1]


def test_joined_documents_are_texts_without_a_reset(tmp_path):
    """Lanes read their documents in the order of a run without joining, in texts of 1 to N of them: each text is a
    document of the stream, without padding between its parts; half have at most the root of N documents."""
    texts = text.write_texts(tmp_path, list(text.EDGES))
    settings = {"stream_share": 1.0, "rows": 2}
    apart = text.batches_of(text.config(tmp_path / "*.txt", **settings), 900)
    joined = text.batches_of(text.config(tmp_path / "*.txt", join_documents=16, **settings), 900)
    drawn = []
    for lane in range(2):
        found = text.stream(joined, lane)
        plain = "".join(text.stream(apart, lane))  # it has more padding, so fewer documents
        assert len(plain) > 5000 and "".join(found).startswith(plain)
        numbers = [sum(letter.isupper() for letter in one) for one in found]
        assert min(numbers) == 1 and max(numbers) <= 16
        share = sum(number <= 3 for number in numbers) / len(numbers)  # of log(17), log(4) is 0.489
        assert abs(share - np.log(4) / np.log(17)) < 4 * np.sqrt(0.25 / len(numbers))
        drawn.append(numbers[:50])
    assert drawn[0] != drawn[1]
    assert {one for one in text.stream(apart, 0)} <= set(texts)


def test_numbers_of_joined_documents_have_a_uniform_logarithm():
    """n of 1 to N has the probability log((n + 1) / n) / log(N + 1): 4,000 draws, within 4 standard errors."""
    rng = np.random.default_rng(0)
    found = np.bincount([number_to_join(rng, 6) for _ in range(4000)], minlength=7) / 4000
    expected = np.array([0.0, *(np.log((n + 1) / n) / np.log(7) for n in range(1, 7))])
    assert (abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_joined_documents_resume_and_are_known(tmp_path):
    """From any step's progress the batches are those of an uninterrupted run; with another number the position is lost,
    which is said, and without streams the setting is refused."""
    text.write_texts(tmp_path, list(text.EDGES))
    joined = lambda number: text.config(tmp_path / "*.txt", stream_share=0.5, rows=4, join_documents=number)
    task = lambda number: make_text_task(joined(number), range(4))
    batches, seen = text.read(task(5), 30)
    for step in range(0, 30, 7):
        again, _ = text.read(task(5), 30 - step, step, seen[step])
        for ours, theirs in zip(again, batches[step:], strict=True):
            np.testing.assert_array_equal(ours.tokens, theirs.tokens)
            np.testing.assert_array_equal(ours.starts, theirs.starts)
    for had, now in ((5, 1), (1, 5), (5, 6)):
        progress = text.read(task(had), 3)[1][-1]
        with pytest.raises(ConfigError, match=f"had join_documents {had}, not {now}, so its position in the data is"):
            text.read(task(now), 1, 3, progress)
    progress = text.read(task(1), 3)[1][-1]
    del progress["data"]["join_documents"]  # as in a checkpoint from before the setting
    text.read(task(1), 1, 3, progress)
    with pytest.raises(ConfigError, match="had join_documents 1, not 5"):
        text.read(task(5), 1, 3, progress)
    with pytest.raises(ConfigError, match=r"join_documents 5 is a setting of streams.*DataConfig.stream_share = 1.0"):
        text.config(tmp_path / "*.txt", join_documents=5)


def mixed(folder, **changes):
    """Two streamed rows and two packed rows, on two sources, one of them for all rows."""
    text.write_texts(folder / "long", [50, 33, 17, 90])
    some = text.write_jsonl(folder / "some.jsonl", [{"inputs": "q" * i, "targets": "a" * (9 - i)} for i in range(7)])
    sources = (SourceConfig(f"{folder}/long/*.txt", weight=2.0), SourceConfig(some, rows="packed"))
    settings = {"rows": 4, "stream_share": 0.5, "repeat_segment": 3, "packing": "whole", "sequence_length": 64}
    return text.config(*sources, **(settings | changes))


@pytest.mark.parametrize("packing", ["cut", "whole"])
def test_a_resumed_run_reads_the_same(tmp_path, packing):
    """From the progress at any step, through JSON and in a new task, the batches are those of an uninterrupted run."""
    made = mixed(tmp_path, packing=packing)
    batches, progress = text.read(make_text_task(made, range(4)), 12)
    for step in range(12):
        again, _ = text.read(make_text_task(made, range(4)), 12 - step, step, progress[step])
        for one, other in zip(batches[step:], again, strict=True):
            text.assert_same(one, other)


def test_an_old_progress_reads_the_same_in_a_task_that_is_ahead(tmp_path):
    """Cached state of a task does not affect batches."""
    task = make_text_task(mixed(tmp_path), range(4))
    batches, progress = text.read(task, 6)
    for step in (4, 0, 5, 2):
        text.assert_same(task.batch(step, progress[step])[0], batches[step])


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0], [1], [2], [3]], [[3], [0, 1, 2]]])
def test_any_number_of_processes_reads_the_same(tmp_path, parts):
    """Rows split over processes: together the batches of one process, and progress whose union can be resumed by
    another number of processes."""
    made = mixed(tmp_path)
    whole, progress = text.read(make_text_task(made, range(4)), 8)
    after = {}
    for rows in parts:
        batches, seen = text.read(make_text_task(made, rows), 5)
        for one, other in zip(whole, batches, strict=False):
            text.assert_same(one, other, rows)
        assert all(not name[0].isdigit() or int(name) in rows for name in seen[-1])
        after |= seen[-1]
    assert after == progress[5]
    for rows in ([0, 1, 2, 3], [1, 2]):
        batches, _ = text.read(make_text_task(made, rows), 3, 5, after)
        for one, other in zip(whole[5:], batches, strict=True):
            text.assert_same(one, other, rows)


def test_the_first_rows_stream_and_the_others_start_afresh(tmp_path):
    """`stream_share` of the rows continue their documents; packed rows start each step with the initial memory."""
    made = mixed(tmp_path)
    batches, _ = text.read(make_text_task(made, range(4)), 8)
    for batch in batches:
        np.testing.assert_array_equal(batch.starts[2:, 0], True)
        np.testing.assert_array_equal(batch.starts[2:, 1:], False)
    for row in (0, 1):
        assert set(text.stream(batches, row)) <= {path.read_text() for path in (tmp_path / "long").iterdir()}
        assert not all(batch.starts[row, 0] for batch in batches)
    assert made.carries_memory


def test_sources_are_mixed_by_their_weights(tmp_path):
    """Documents are drawn from each source in proportion to its weight, whatever their number, for each lane."""
    a = text.write_jsonl(tmp_path / "a.jsonl", [{"text": "aaaa"}])
    b = text.write_jsonl(tmp_path / "b.jsonl", [{"text": "bbbb"}] * 50)
    made = text.config(SourceConfig(a, weight=3.0), SourceConfig(b), stream_share=1.0, rows=4)
    tokens = np.concatenate([batch.tokens for batch in text.batches_of(made, 100)], axis=1)
    assert 0.70 < (tokens == ord("a")).mean() < 0.80  # 1600 documents: 4.6 standard deviations
    assert len({row.tobytes() for row in tokens}) == 4  # every lane has its own draws


def test_a_changed_data_set_is_told(tmp_path):
    """A position among ten documents is invalid among eleven, as is one of rows that changed their kind."""
    text.write_texts(tmp_path, [5] * 10)
    made = text.config(tmp_path / "*.txt", stream_share=1.0)
    _, progress = text.read(make_text_task(made, [0]), 2)
    (tmp_path / "new.txt").write_text("more")
    with pytest.raises(ConfigError, match=r"had \[\[10\]\] documents, not \[\[11\]\].*start in an empty MODEL_DIR"):
        make_text_task(made, [0]).batch(2, progress[-1])
    packed = text.config(tmp_path / "*.txt")
    with pytest.raises(ConfigError, match="had 1 rows that stream, not 0"):
        make_text_task(packed, [0]).batch(2, progress[-1])


def test_a_position_belongs_to_its_documents_in_their_order(tmp_path) -> None:
    """With as many documents: other sources, their order, settings or first document, another seed, no shuffling. A
    moved folder is the same data, and a checkpoint of a version that did not say so resumes."""
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 40)
    a, b, c = (str(tmp_path / f"{name}.txt") for name in "abc")
    make = lambda *sources, **settings: make_text_task(text.config(*sources, stream_share=1.0, **settings), [0])
    _, progress = text.read(make(a, b), 1)
    for task, message in (
        (make(b, a), "other sources than .*b.txt, .*a.txt"), (make(a, c), "other sources"),
        (make(a, SourceConfig(b, weight=2.0)), "other sources"), (make(a, b, seed=7), "seed 0, not 7"),
        (make(a, b, shuffle=False), "shuffle True, not False"), (make(a, b, eos=False), "eos True, not False, so its"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"the training to resume had {message}"):
            task.batch(1, progress[-1])
    batch, _ = make(a, b).batch(1, progress[-1])
    (tmp_path / "moved").mkdir()
    moved = [(tmp_path / "moved" / Path(path).name) for path in (a, b)]
    for path in moved:
        path.write_text(path.stem * 40)
    older = progress[-1] | {"data": {name: progress[-1]["data"][name] for name in ("rows", "streams", "examples")}}
    for task, before in ((make(*map(str, moved)), progress[-1]), (make(a, b), older)):
        np.testing.assert_array_equal(task.batch(1, before)[0].tokens, batch.tokens)
    moved[0].write_text("x" * 40)
    with pytest.raises(ConfigError, match="other sources"):
        make(*map(str, moved)).batch(1, progress[-1])


def test_epochs_are_reported(tmp_path):
    """Documents read divided by documents in total, by the rows of this process."""
    text.write_texts(tmp_path, [4] * 8)
    task = make_text_task(text.config(tmp_path / "*.txt", stream_share=1.0, rows=2), range(2))
    _, progress = text.read(task, 3)  # 3 rows of 4 documents by each of 2 lanes
    assert task.report(progress[-1]) == {"epochs": 3.0}
