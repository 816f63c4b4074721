"""Rows of text beside a generated task: both as they are alone, across steps, and settings that cannot be."""

import dataclasses
import json

import numpy as np
import pytest

from famjax.config import ConfigError, DataConfig, LoraConfig, PassKeyConfig, SourceConfig, TrainConfig
from famjax.data.generated import check_generated_task, make_generated_task
from famjax.data.joined import of_text
from famjax.data.text_task import make_text_task
from famjax.train.loop import train
from famjax.train.start import first_batch
from tests import tiny
from tests.data import text

BLOCK, LENGTH = 32, 320
KEYS = PassKeyConfig(key_digits=2, stages=(1,), text_tokens=5, stream_share=0.5, text_weight=0.25)


@pytest.fixture
def files(tmp_path):
    """Five texts of at most two rows."""
    text.write_texts(tmp_path / "texts", [700, 30, 400, 90, 320])
    return tmp_path / "texts"


def config_of(files, keys: PassKeyConfig = KEYS, share: float = 0.5, **data) -> TrainConfig:
    model = tiny.config(vocab_size=256, block_size=BLOCK, memory_segments=0, fam_length=2, random_state_passing=0.0)
    return TrainConfig(
        model_dir=str(files.parent / "m"), model=model, passkey=keys, batch_size=4, sequence_length=LENGTH,
        data=DataConfig(sources=(str(files / "*.txt"),), text_share=share, **data),
    )  # fmt: skip


def alone(config: TrainConfig):
    """Returns both parts of the task as tasks of their own."""
    own = dataclasses.replace(config, batch_size=2, data=dataclasses.replace(config.data, text_share=0.0))
    return make_generated_task(own), make_text_task(of_text(config), range(2))


def together(config: TrainConfig, steps: int, first: int = 0, progress=None):
    """Returns batches and the progress before and after each, through JSON; every second answer is correct."""
    task = make_generated_task(config)
    seen, batches = [task.start() if progress is None else progress], []
    for step in range(first, first + steps):
        batch, after = task.batch(step, json.loads(json.dumps(seen[-1])))
        correct = np.full(batch.targets.shape, step % 2 == 0)
        correct[2:] = False  # predictions of the text
        batches.append(batch)
        seen.append(task.observe(after, batch, correct))
    return batches, seen


@pytest.mark.parametrize(("streams", "segment"), [(0.0, 0), (1.0, 0), (0.0, 100)])
def test_both_parts_are_what_they_are_alone(files, streams, segment):
    """The first rows are those of the pass key for their share of the batch; the others those of the text, with a loss,
    of 0.25 times its weight there, on as many of its tokens as a row of the pass key has targets."""
    config = config_of(files, stream_share=streams, repeat_segment=segment, repeat_weight=0.5)
    config.validate()
    batches, seen = together(config, 6)
    keys, texts = alone(config)
    mine, theirs = keys.start(), texts.start()
    for step, batch in enumerate(batches):
        first, mine = keys.batch(step, mine)
        second, theirs = texts.batch(step, theirs)
        mine = keys.observe(mine, first, np.full(first.targets.shape, step % 2 == 0))
        text.assert_same(batch, first, slice(2))
        for name in ("tokens", "count", "starts"):
            np.testing.assert_array_equal(getattr(batch, name)[2:], getattr(second, name))
        np.testing.assert_array_equal(batch.kept[2:], LENGTH // BLOCK)
        for row in range(2):
            used = batch.weights[2 + row] > 0
            places = batch.positions[2 + row][used]
            assert len(places) == min((second.weights[row] > 0).sum(), batch.targets.shape[1])
            assert len(set(places)) == len(places)
            np.testing.assert_array_equal(batch.weights[2 + row][used], 0.25 * second.weights[row][places])
            np.testing.assert_array_equal(batch.targets[2 + row][used], second.targets[row][places])
    assert {key: value for key, value in seen[-1].items() if key != "text"} == mine
    assert seen[-1]["text"] == theirs
    assert any((batch.weights[2:] == 0.125).any() for batch in batches) == bool(segment)
    assert (not all(batch.starts[2:, 0].all() for batch in batches)) == bool(streams)


def test_the_shape_of_a_batch_is_known_without_the_text(files):
    """Plans need no data: the first batch without opened files has the shapes of one with them."""
    config = config_of(files)
    batch, _ = make_generated_task(config).batch(0, make_generated_task(config).start())
    missing = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=("gone/*.txt",)))
    assert [np.shape(one) for one in first_batch(missing)] == [np.shape(one) for one in batch]


def test_a_batch_depends_on_step_and_progress_alone(files):
    """Batches from any step on, from its progress, are those of an uninterrupted run; targets change with steps."""
    config = config_of(files)
    batches, seen = together(config, 5)
    for step in (1, 3):
        again, after = together(config, 5 - step, step, seen[step])
        for one, other in zip(batches[step:], again, strict=True):
            text.assert_same(one, other)
        assert after[-1] == seen[-1]
    assert (batches[0].positions[2:] != batches[1].positions[2:]).any()


def test_tokens_with_a_loss_are_drawn_for_each_row_and_seed(tmp_path):
    """Of equal rows of text each has a loss on other tokens, and so has the row of another seed."""
    text.write_texts(tmp_path / "texts", [LENGTH])
    tasks = [make_generated_task(dataclasses.replace(config_of(tmp_path / "texts"), seed=seed)) for seed in (0, 1)]
    batch, other = (task.batch(0, task.start())[0] for task in tasks)
    np.testing.assert_array_equal(batch.tokens[2:], np.tile(other.tokens[2], (2, 1)))
    drawn = {tuple(row) for row in (*batch.positions[2:].tolist(), *other.positions[2:].tolist())}
    assert len(drawn) == 4


def test_a_resumed_training_is_the_uninterrupted_one(files):
    """Four steps with distillation, at once and in two halves: equal losses and epochs of text."""
    plain = config_of(files, stream_share=1.0)
    model = dataclasses.replace(plain.model, lora=LoraConfig(rank=1))
    config = dataclasses.replace(plain, model=model, distillation=1.0, log_period=1, steps=4, checkpoint_period=2,
                                 diagnostics_period=0)  # fmt: skip
    logged = []
    for name, stops in (("whole", (4,)), ("halves", (2, 4))):
        folder = files.parent / name
        for stop in stops:
            # The rate must not depend on the number of steps.
            optimizer = dataclasses.replace(config.optimizer, schedule="constant", warmup_steps=0)
            train(dataclasses.replace(config, model_dir=str(folder), steps=stop, optimizer=optimizer), "# settings\n")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logged.append([(line["loss"], line["distillation_loss"], line["epochs"]) for line in lines])
    assert logged[0] == logged[1]
    assert len(logged[0]) == 4
    assert logged[0][-1][1] > 0 and logged[0][-1][2] > 0


def test_progress_of_other_rows_is_refused(files):
    """A training that had no rows of text, or another number of them, cannot resume with these."""
    config = config_of(files)
    keys, _ = alone(config)
    task = make_generated_task(config)
    with pytest.raises(ConfigError, match="had no rows of text"):
        task.batch(0, keys.start())
    other = make_generated_task(dataclasses.replace(config, batch_size=6))
    with pytest.raises(ConfigError, match="had 2 rows of streams, stream_share 0.5 of 2 rows is 1"):
        task.batch(0, other.start())
    config = config_of(files, dataclasses.replace(KEYS, stream_share=0.0))
    other = make_generated_task(dataclasses.replace(config, batch_size=6))
    with pytest.raises(ConfigError, match="rows of a batch"):
        make_generated_task(config).batch(0, other.start())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "parity"}, "not to 'parity'"),
        ({"task": "text"}, "not to 'text'"),
        ({"data": DataConfig(text_share=0.5)}, "there is no text"),
        ({"batch_size": 1}, "at least one row must be text and one not"),
        ({"share": 0.1}, "is 0 rows"),
        ({"share": 0.9}, "is 4 rows"),
        ({"stream_share": 0.1}, "stream_share 0.1 of 2 rows is less than one row"),
        ({"sources": (SourceConfig(path="a.txt", rows="streams"),)}, "2 rows are packed, but no source serves them"),
        (
            {"sources": ("a.txt", SourceConfig(path="b.txt", rows="streams"))},
            "no row reads b.txt, whose rows are 'streams'; set stream_share, or its rows to 'all'",
        ),
        ({"share": 0.0}, "DataConfig.sources has no effect on the task 'passkey': 'text' reads it, and passkey and"),
    ],
)
def test_settings_that_cannot_work(files, changes, message):
    """Refused before anything is read."""
    data = {name: changes.pop(name) for name in ("stream_share", "share") if name in changes}
    made = config_of(files, **data)
    if sources := changes.pop("sources", None):
        changes = {"data": dataclasses.replace(made.data, sources=sources)}
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(made, **changes).validate()


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ("passkey", {"stream_share": 0.5}, "'passkey', which reads no text; set PassKeyConfig.stream_share"),
        ("s5", {"stream_share": 0.5}, "DataConfig.stream_share has no effect on the task 's5'"),
        ("passkey", {"repeat_segment": 5}, "DataConfig.repeat_segment has no effect on the task 'passkey'"),
        ("text", {"sources": ("a.txt",), "stream_share": 1.0, "repeat_segment": 5}, "since all rows are streams"),
    ],
)
def test_settings_of_rows_that_do_not_exist(task, data, message):
    """Streams of a task that reads no text, and a segment to repeat without packed rows, are refused: nothing else
    would say that they are ignored."""
    model = tiny.config(vocab_size=256, block_size=BLOCK)
    made = TrainConfig(model_dir="m", model=model, task=task, sequence_length=320, data=DataConfig(**data))
    with pytest.raises(ConfigError, match=message):
        made.validate()


def test_text_that_cannot_be_read_is_refused_before_training(files):
    """As for the task `text`: by the check that runs before jax is imported."""
    config = config_of(files)
    check_generated_task(config)
    with pytest.raises(ConfigError, match="none.txt"):
        check_generated_task(dataclasses.replace(config, data=dataclasses.replace(config.data, sources=("none.txt",))))
