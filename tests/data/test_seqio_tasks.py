"""Tasks and mixtures of seqio as examples: each once per epoch, resumable anywhere, on any number of hosts."""

import json
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf

from famjax.config import ConfigError
from famjax.data import seqio_tasks
from famjax.data.seqio_tasks import find_task
from famjax.data.seqio_vocabulary import FileVocabulary, ours_of
from famjax.data.text_task import check_text_task, files_to_keep, make_text_task
from famjax.data.vocabulary import load_vocabulary
from tests.data import text
from tests.pretrained import tokenizers_of_ours

SIZES = (1, 4, 5, 16, 17, 33, 7)
BYTES = {"targets": seqio.Feature(FileVocabulary("bytes"), add_eos=False)}
PAIRS = {"inputs": seqio.Feature(FileVocabulary("bytes"), add_eos=False)} | BYTES


@pytest.fixture
def registry():
    """Removes what a test registers."""
    before = [dict(registry._REGISTRY) for registry in (seqio.TaskRegistry, seqio.MixtureRegistry)]
    yield
    for registry, content in zip((seqio.TaskRegistry, seqio.MixtureRegistry), before, strict=True):
        registry._REGISTRY.clear()
        registry._REGISTRY.update(content)


def add_task(folder, name="texts", sizes=SIZES, files=1, **settings):
    """Registers a task of text files with a document on each line; `inputs | targets` if there is a bar."""
    folder.mkdir(exist_ok=True)
    lines = [text.text(i, size) for i, size in enumerate(sizes)]
    for i in range(files):
        (folder / f"{name}-{i}.txt").write_text("".join(f"{line}\n" for line in lines[i::files]))
    source = seqio.TextLineDataSource({"train": f"{folder}/{name}-*.txt"})
    as_targets = lambda ds: ds.map(lambda line: {"targets": line})
    defaults = {"preprocessors": [as_targets, seqio.preprocessors.tokenize], "output_features": BYTES}
    seqio.TaskRegistry.add(name, source=source, **(defaults | settings))
    return lines


def config(name="texts", **changes):
    return text.config(task=name, modules=("math",), **changes)  # any module: tasks are registered here already


@pytest.mark.parametrize(("files", "rows", "shards"), [(1, 1, 0), (4, 3, 0), (1, 3, 1), (4, 4, 2)])
def test_each_example_once_an_epoch(tmp_path, registry, files, rows, shards):
    """For any split over shards and lanes, every document is streamed whole, with its targets, and once in each epoch
    that the lanes of its shard have finished."""
    lines = add_task(tmp_path, files=files)
    task = make_text_task(config(rows=rows, stream_share=1.0, data_shards=shards), range(rows))
    batches, progress = text.read(task, 22 // rows)
    documents = [document for row in range(rows) for document in text.stream(batches, row)]
    epochs = [progress[-1][str(row)]["where"][1][0] for row in range(rows)]
    assert max(epochs) >= 2
    for line in lines:
        assert max(min(epochs), 1) <= documents.count(line) <= max(epochs) + 1
    if rows == 1:
        orders = [documents[i : i + 7] for i in range(0, 7 * epochs[0], 7)]
        assert all(sorted(order) == sorted(lines) for order in orders)
        assert len(set(map(tuple, orders))) > 1


@pytest.mark.parametrize("shards", [0, 1])
def test_a_resumed_run_reads_the_same_on_any_number_of_processes(tmp_path, registry, shards):
    """From JSON at some step on, in new tasks, with another split of the rows: the uninterrupted batches."""
    add_task(tmp_path, files=2)
    made = config(rows=4, stream_share=0.5, data_shards=shards)
    whole, progress = text.read(make_text_task(made, range(4)), 5)
    for step, rows in ((0, [0, 3]), (2, [1, 2]), (3, [0, 1, 2, 3])):
        batches, _ = text.read(make_text_task(made, rows), 5 - step, step, progress[step])
        for one, other in zip(whole[step:], batches, strict=True):
            text.assert_same(one, other, rows)


def test_lanes_ask_in_any_order(tmp_path, registry):
    """A task that is ahead reads again for an older step."""
    add_task(tmp_path)
    task = make_text_task(config(rows=3, packing="whole", data_shards=1), range(3))
    batches, progress = text.read(task, 3)
    for step in (2, 0, 1):
        text.assert_same(task.batch(step, progress[step])[0], batches[step])


def test_no_lane_starves_and_none_makes_others_wait(tmp_path, registry, monkeypatch):
    """With fewer examples than lanes, lanes take turns. Lanes of a shard share what is read of it."""
    opened = []
    iterate = seqio_tasks.TaskExamples._iterate
    monkeypatch.setattr(
        seqio_tasks.TaskExamples, "_iterate", lambda *args: (opened.append(args[1:]), iterate(*args))[1]
    )
    add_task(tmp_path, sizes=[4, 3])
    batches = text.batches_of(config(rows=3, data_shards=1, stream_share=1.0), 2)
    for row in range(3):
        assert set(text.stream(batches, row)) == {text.text(0, 4), text.text(1, 3)}
    opened.clear()
    add_task(tmp_path, "long", sizes=[2, 9] * 13)
    text.batches_of(config("long", rows=3, data_shards=1, packing="whole"), 5)
    assert opened.count((0, 0)) <= 3  # once, and again for each late lane


def test_inputs_carry_no_loss(tmp_path, registry):
    """`inputs` before `targets` with weight 0; other features are left out; end of text as in the task."""
    vocabulary = seqio.ByteVocabulary()
    features = {name: seqio.Feature(vocabulary, add_eos=name == "targets") for name in ("inputs", "targets")}
    rename = lambda ds: ds.map(lambda line: {"inputs": "q?", "targets": line, "other": 5})
    add_task(
        tmp_path, sizes=[3], output_features=features,
        preprocessors=[rename, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    )  # fmt: skip
    batch = text.batches_of(config(vocab_size=384), 1)[0]
    example = [3 + ord(letter) for letter in "q?" + text.text(0, 3)] + [1]
    np.testing.assert_array_equal(batch.tokens[0], (example * 3)[:16])
    np.testing.assert_array_equal(batch.weights[0], ([0, 1, 1, 1, 1, 0] * 3)[:16])


def test_inputs_of_another_vocabulary_are_refused(tmp_path, registry):
    """A row is one text; ids of another vocabulary would be other tokens of the model."""
    features = {"inputs": seqio.Feature(seqio.ByteVocabulary(), add_eos=False)} | BYTES
    steps = [lambda ds: ds.map(lambda line: {"inputs": "q", "targets": line}), seqio.preprocessors.tokenize]
    add_task(tmp_path, output_features=features, preprocessors=steps)
    with pytest.raises(ConfigError, match="'inputs' and 'targets' of the seqio task 'texts' have different vocabular"):
        check_text_task(config())


def test_settings_that_decide_positions_are_those_of_the_training(tmp_path, registry):
    """Otherwise a lane would resume at another example, in the middle of its tokens."""
    add_task(tmp_path)
    source = seqio.TextLineDataSource({split: f"{tmp_path}/texts-*.txt" for split in ("train", "other")})
    steps = [lambda ds: ds.map(lambda line: {"targets": line}), seqio.preprocessors.tokenize]
    seqio.TaskRegistry.remove("texts")
    seqio.TaskRegistry.add("texts", source=source, preprocessors=steps, output_features=BYTES)
    _, progress = text.read(make_text_task(config(rows=4, data_shards=1), range(4)), 2)
    for settings, message in (
        ({"data_shards": 4}, "had data_shards 1, not 4, so"),
        ({"data_shards": 1, "split": "other"}, r"had split 'train', not 'other', so .*; use the same data"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            make_text_task(config(rows=4, **settings), range(4)).batch(2, progress[-1])
    del progress[-1]["data"]["seqio"]  # of an older version
    make_text_task(config(rows=4, data_shards=1), range(4)).batch(2, progress[-1])


def test_mixtures_draw_by_their_rates(tmp_path, registry):
    """Also nested; each task has its own position, and its own epochs."""
    for name, letter in (("a", "A"), ("b", "B"), ("c", "C")):
        (tmp_path / name).write_text(f"{letter}xyz\n" * 60)
        source = seqio.TextLineDataSource({"train": str(tmp_path / name)})
        steps = [lambda ds: ds.map(lambda line: {"targets": line}), seqio.preprocessors.tokenize]
        seqio.TaskRegistry.add(name, source=source, preprocessors=steps, output_features=BYTES)
    seqio.MixtureRegistry.add("inner", [("a", 1.0), ("b", 1.0)])
    seqio.MixtureRegistry.add("outer", [("inner", 3.0), ("c", 1.0)])
    tokens = np.concatenate([batch.tokens[0] for batch in text.batches_of(config("outer"), 40)])
    shares = [(tokens[::4] == ord(letter)).mean() for letter in "ABC"]
    np.testing.assert_allclose(shares, [0.375, 0.375, 0.25], atol=0.12)  # 160 draws: 3 standard deviations


def cache(folder, name, documents):
    """Writes what `seqio_cache_tasks` writes for a task with int32 targets."""
    where = folder / name
    where.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(where / "train.tfrecord-00000-of-00001")) as writer:
        for document in documents:
            ids = tf.train.Int64List(value=document.encode())
            example = tf.train.Example(
                features=tf.train.Features(feature={"targets": tf.train.Feature(int64_list=ids)})
            )
            writer.write(example.SerializeToString())
    features = {"targets": {"shape": [None], "dtype": "int32"}}
    info = {"num_shards": 1, "features": features, "seqio_version": seqio.__version__}
    (where / "info.train.json").write_text(json.dumps(info))
    (where / "stats.train.json").write_text(json.dumps({"examples": len(documents)}))
    (where / "COMPLETED").write_text("")


def test_cached_tasks(tmp_path, registry):
    """`use_cached` reads the cache and not the source; without one, an error says what to do."""
    steps = [
        lambda ds: ds.map(lambda line: {"targets": line}), seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()
    ]  # fmt: skip
    add_task(tmp_path, preprocessors=steps)
    seqio.MixtureRegistry.add("mixed", ["texts"], default_rate=1.0)
    with pytest.raises(ConfigError, match=r"'texts' is not cached; run seqio_cache_tasks and name its output in"):
        check_text_task(config(use_cached=True))
    cache(tmp_path / "cache", "texts", ["cached", "documents", "here"])
    for name in ("texts", "mixed"):
        made = config(name, use_cached=True, cache_dirs=(str(tmp_path / "cache"),), stream_share=1.0)
        documents = text.stream(text.batches_of(made, 6), 0)
        assert sorted(documents[:3]) == sorted(documents[3:6]) == ["cached", "documents", "here"]


def test_tasks_of_a_module(tmp_path, registry, monkeypatch):
    """`modules` are imported before the task is looked up, from the working directory too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "lines.txt").write_text("hello\n")
    (tmp_path / "my_famjax_tasks.py").write_text(
        "import seqio\nfrom famjax.data.seqio_vocabulary import FileVocabulary\n"
        "seqio.TaskRegistry.add('mine', seqio.TextLineDataSource({'train': 'lines.txt'}),\n"
        "    preprocessors=[lambda ds: ds.map(lambda line: {'targets': line}), seqio.preprocessors.tokenize],\n"
        "    output_features={'targets': seqio.Feature(FileVocabulary('bytes'), add_eos=False)})\n"
    )
    made = text.config(task="mine", modules=("my_famjax_tasks",))
    assert bytes(text.batches_of(made, 1)[0].tokens[0].astype(np.uint8)) == b"hellohellohelloh"


def test_what_cannot_be_read_is_told(tmp_path, registry):
    """One line for each: no such task, module, split, feature, or example; vocabularies that differ or are large."""
    add_task(tmp_path)
    add_task(tmp_path, "other", output_features={"targets": seqio.Feature(seqio.ByteVocabulary(), add_eos=False)})
    add_task(tmp_path, "empty", sizes=[])
    only_inputs = [lambda ds: ds.map(lambda line: {"inputs": line}), seqio.preprocessors.tokenize]
    add_task(tmp_path, "strange", preprocessors=only_inputs, output_features={"inputs": BYTES["targets"]})
    seqio.MixtureRegistry.add("both", ["texts", "other"], default_rate=1.0)
    for name, settings, message in (
        ("textes", {}, "no seqio task or mixture is registered as 'textes'; did you mean texts?"),
        ("xyz", {}, "registered as 'xyz'; name its module in DataConfig.modules"),
        ("texts", {"modules": ("no.such.module",)}, "DataConfig.modules: cannot import no.such.module"),
        ("texts", {"split": "test"}, "the seqio task 'texts' has no split 'test'; it has train"),
        ("strange", {}, "the seqio task 'strange' has no feature 'targets'"),
        ("both", {}, "the tasks of the mixture 'both' have different vocabularies"),
        ("other", {}, "the vocabulary has 259 tokens, but the model's vocab_size is 256"),
    ):
        made = text.config(task=name, **({"modules": ("math",)} | settings))
        with pytest.raises(ConfigError) as error:
            check_text_task(made)
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="'empty' has no examples for shard 0 of 1"):
        text.batches_of(config("empty"), 1)
    cut = lambda ds, sequence_length: ds.map(lambda row: {"targets": row["targets"][: sequence_length["targets"]]})
    as_targets = lambda ds: ds.map(lambda line: {"targets": line})
    add_task(tmp_path, "cut", preprocessors=[as_targets, seqio.preprocessors.tokenize, cut])
    with pytest.raises(ConfigError, match="'cut' has a preprocessor that fails without sequence_length"):
        text.batches_of(config("cut"), 1)


def test_vocabularies_go_both_ways(tmp_path):
    """seqio's bytes as ours, with their offset; ours in tensorflow and in Python; the files for a model directory."""
    ours, kept = ours_of(seqio.ByteVocabulary(extra_ids=10))
    assert ours.encode("aß").tolist() == seqio.ByteVocabulary().encode("aß")
    assert (ours.size, ours.eos, ours.decode([100, 198, 162, 1])) == (269, 1, "aß")
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    assert load_vocabulary(str(tmp_path)).encode("a").tolist() == [100]
    theirs = FileVocabulary("bytes")
    assert theirs.encode_tf(tf.constant("aß")).numpy().tolist() == theirs.encode("aß") == [97, 195, 159]
    assert theirs.decode([97, 195, 159]) == "aß"
    shifted = FileVocabulary(str(tmp_path))  # as a TFDS dataset has it for a model that was trained on seqio's bytes
    assert shifted.encode_tf(tf.constant("aß")).numpy().tolist() == shifted.encode("aß") == [100, 198, 162]
    other, kept = ours_of(seqio.PassThroughVocabulary(50))
    assert other.size == 50 and kept is None


def test_a_vocabulary_that_cannot_be_kept_is_told(tmp_path, registry, capsys):
    """The training runs; a line says what to add before the model can be used on text."""
    through = [lambda ds: ds.map(lambda line: {"targets": tf.cast(tf.io.decode_raw(line, tf.uint8), tf.int32)})]
    features = {"targets": seqio.Feature(seqio.PassThroughVocabulary(256), add_eos=False)}
    add_task(tmp_path, output_features=features, preprocessors=through)
    assert files_to_keep(config()) == {}
    assert "the vocabulary of texts cannot be saved in" in capsys.readouterr().out
    assert find_task("texts", config().data).name == "texts"


@pytest.mark.slow
def test_tfds_datasets_by_name(tmp_path):
    """`tfds:NAME:VERSION` needs no task: its `text`, with the settings' vocabulary; a missing field is reported."""
    import tensorflow_datasets as tfds

    for name, key in (("famjax_texts", "text"), ("famjax_other", "body")):
        rows = tf.data.Dataset.from_tensor_slices({key: [text.text(i, size) for i, size in enumerate((3, 9, 20))]})
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name, version="1.0.0", data_dir=str(tmp_path), split_datasets={"train": rows},
            features=tfds.features.FeaturesDict({key: tfds.features.Text()}),
        )  # fmt: skip
    tfds.core.add_data_dir(str(tmp_path))
    batches = text.batches_of(text.config(task="tfds:famjax_texts:1.0.0", stream_share=1.0), 6)
    assert sorted(text.stream(batches, 0)[:3]) == sorted(text.text(i, size) for i, size in enumerate((3, 9, 20)))
    # Without a vocabulary of their own they have that of the initial weights, as texts of files do.
    ours = load_vocabulary(str(tokenizers_of_ours.write(tmp_path / "start", "byte-level")))
    settings = {"initial_checkpoint": str(tmp_path / "start"), "vocab_size": 512, "sequence_length": 64}
    for bos in (True, False):
        made = text.config(task="tfds:famjax_texts:1.0.0", bos=bos, shuffle=False, packing="whole", **settings)
        tokens = text.batches_of(made, 1)[0].tokens[0]
        first = [ours.bos] * bos + [*ours.encode(text.text(0, 3)), ours.eos] + [ours.bos] * bos
        assert tokens[: len(first)].tolist() == first
    for name, message in (
        ("famjax_other:1.0.0", "the TFDS dataset 'famjax_other:1.0.0' has no inputs and targets; it has body"),
        ("famjax_nowhere:1.0.0", "tfds:famjax_nowhere:1.0.0: .*not found"),
        ("famjax_texts", "tfds:famjax_texts: TFDS name must contain a version number"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_text_task(text.config(task=f"tfds:{name}"))
