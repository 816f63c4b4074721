"""Evaluation of labelled documents: counts by hand, and streaming against the whole sequence."""

import dataclasses

import numpy as np
import pytest

from famjax.config import ConfigError, EvalConfig, MqarConfig, TrackingConfig
from famjax.data.documents import labelled_documents
from famjax.data.vocabulary import ByteVocabulary
from famjax.evals.engine import ModelEngine
from famjax.evals.results import summarize
from famjax.evals.runner import Runner
from famjax.evals.samples import Sample
from famjax.evals.statistics import wilson_interval
from famjax.evals.tasks import catalog
from famjax.evals.tasks.base import Example, Task
from famjax.evals.tasks.labelled import tables
from famjax.infer.codec import Codec
from tests import tiny

S = 4
SETTINGS = {
    "mqar": MqarConfig(pairs=(1, 2), keys=5, values=4, fillers=2, blocks=(2, 4)),
    "tracking": TrackingConfig(blocks=(2,)),
}


def config_of(name: str, **changes: object) -> EvalConfig:
    return EvalConfig(**{"model_dirs": ("x",), "task": name, "lengths": (8, 18), "examples": 3} | SETTINGS | changes)  # type: ignore[arg-type]


def codec_of(name: str) -> Codec:
    documents = labelled_documents(name, SETTINGS["mqar"], SETTINGS["tracking"])  # type: ignore[arg-type]
    assert documents is not None
    return Codec.of(documents.vocabulary)


def task_of(name: str, **changes: object) -> Task:
    return catalog.make(name, config_of(name, **changes), codec_of(name), S)


def examples_of(task: Task) -> list[Example]:
    return [example for example in task.examples() if isinstance(example, Example)]


@pytest.mark.parametrize(("name", "fam_length"), [("mqar", 2), ("s3", 2), ("s3", 0), ("parity", 2)])
def test_streaming_counts_what_the_whole_sequence_predicts(name: str, fam_length: int) -> None:
    """Documents of several blocks, streamed in batches, have the accuracies by document, bin and kind that the argmax
    of the whole-sequence model gives, also at the last token, which no token follows.

    An untrained model has few hits, so a third of the labels are the model's own first choices.
    """
    codec = codec_of(name)
    config = tiny.config(vocab_size=codec.vocabulary.size, block_size=S, memory_segments=0, fam_length=fam_length)
    params = tiny.parameters(config)
    task = task_of(name)
    examples, firsts = {}, {}
    for i, example in enumerate(examples_of(task)):
        tokens = np.zeros((1, 20), np.int32)
        tokens[0, : len(example.prompt)] = example.prompt
        hidden, _ = tiny.whole(config, params, tokens)
        first = (np.asarray(hidden[0], np.float64) @ np.asarray(params["embedding"], np.float64).T).argmax(-1)
        first = first[: len(example.labels)]
        chosen = (example.labels >= 0) & (np.arange(len(first)) % 3 == i % 3)
        firsts[example.id] = first
        examples[example.id] = dataclasses.replace(example, labels=np.where(chosen, first, example.labels))
    task = dataclasses.replace(task, examples=lambda: iter(examples.values()))
    samples = list(Runner(ModelEngine(tiny.build(config, params), 4), codec).run(task))
    assert sorted(sample.id for sample in samples) == sorted(examples)
    hits: dict[tuple[int, int], list[bool]] = {}
    for sample in samples:
        example = examples[sample.id]
        right = []
        for at in np.flatnonzero(example.labels >= 0):
            right.append(bool(firsts[sample.id][at] == example.labels[at]))
            hits.setdefault((len(example.prompt), int(example.bins[0][at])), []).append(right[-1])
        assert sample.values == {"accuracy": np.mean(right), "all_correct": float(all(right))}
        asked, hit = sample.about["asked"], sample.about["right"]
        assert [sum(bins) for bins in asked] == [len(right)] and [sum(bins) for bins in hit] == [sum(right)]
    bins = summarize(task, samples, [], S)["tables"][0]
    assert {(row["length"], row["at"]): row["value"] for row in bins["rows"]} == {
        place: pytest.approx(np.mean(found)) for place, found in hits.items()
    }
    assert any(sum(found) for found in hits.values())


class Oracle:
    """Right in the even places of a document, or everywhere."""

    rows = 4

    def __init__(self, everywhere: bool):
        self.everywhere = everywhere

    def score(self, requests, on_tokens):  # type: ignore[no-untyped-def]
        for i, request in enumerate(requests):
            assert request.state is None and len(request.labels) == len(request.tokens)
            right = np.arange(len(request.tokens)) % 2 == 0
            yield i, np.full(len(right), -1.0, np.float32), right | self.everywhere


def test_documents_without_a_bin_are_no_trials_of_it() -> None:
    """Four documents are asked in bin 0, two of them in bin 1, where all are right: Wilson's interval of two trials."""
    samples = []
    for i, (asked, right) in enumerate((([1], [1]), ([2, 2], [1, 2]), ([1], [0]), ([1, 1], [1, 1]))):
        about = {"length": 16, "asked": [asked], "right": [right]}
        samples.append(Sample("t", str(i), str(i), "", 16, 0, "", 0.0, [], "", {"accuracy": 1.0}, about))
    (table,) = tables(Task("t", "label", list, bins=("distance",)), samples)
    first, second = table["rows"]
    assert (first["n"], first["value"]) == (5, 0.6) and first["low"] < 0.6 < first["high"]
    assert second == {"length": 16, "at": 1, "n": 3, "value": 1.0} | dict(
        zip(("low", "high"), wilson_interval(2, 2), strict=True)
    )


def test_tables_are_those_counted_by_hand() -> None:
    """State tracking in blocks of 4 with every second prediction right: half of each block, and of a shorter last block
    of 2; all right gives Wilson's interval over documents."""
    task = task_of("s3", lengths=(18,))
    summary = summarize(task, list(Runner(Oracle(False), codec_of("s3")).run(task)), [], S)
    (table,) = summary["tables"]
    assert table["label"] == "block of the document"
    assert [(row["at"], row["n"], row["value"]) for row in table["rows"]] == [
        *((block, 12, 0.5) for block in range(4)), (4, 6, 0.5)
    ]  # fmt: skip
    assert summary["metrics"]["accuracy"]["value"] == 0.5 and summary["metrics"]["all_correct"]["value"] == 0
    assert summary["by_length"][0]["length"] == 18 and summary["by_length"][0]["n"] == 3
    summary = summarize(task, list(Runner(Oracle(True), codec_of("s3")).run(task)), [], S)
    assert {(row["value"], row["low"], row["high"]) for row in summary["tables"][0]["rows"]} == {
        (1.0, *wilson_interval(3, 3))
    }


def test_mqar_is_tabulated_by_distance_and_by_pairs() -> None:
    """Numbers of questions: one or two for each document, at the distances that the documents have."""
    task = task_of("mqar", lengths=(18,), examples=5)
    examples = examples_of(task)
    assert [example.about["kind"] for example in examples] == [1] * 5 + [2] * 5
    bins, kinds = summarize(task, list(Runner(Oracle(True), codec_of("mqar")).run(task)), [], S)["tables"]
    assert kinds["label"] == "pairs" and [(row["at"], row["n"]) for row in kinds["rows"]] == [(1, 5), (2, 10)]
    asked = np.concatenate([example.bins[0][example.labels >= 0] for example in examples])
    assert {row["at"]: row["n"] for row in bins["rows"]} == dict(
        zip(*np.unique(asked, return_counts=True), strict=True)
    )


def test_new_values_have_a_row_of_their_own() -> None:
    """Of three keys some are listed again: questions are counted by whether theirs was, and only after it was."""
    config = MqarConfig(pairs=(3,), keys=3, values=4, fillers=2, times=2, rewritten=0.5)
    documents = labelled_documents("mqar", config, TrackingConfig())
    assert documents is not None
    codec = Codec.of(documents.vocabulary)
    task = catalog.make("mqar", dataclasses.replace(config_of("mqar"), mqar=config, lengths=(40,)), codec, S)
    wanted = [0, 0]
    for example in examples_of(task):
        words = codec.vocabulary.decode(example.prompt).split()
        for at in np.flatnonzero(example.labels >= 0):
            values = {words[i + 1] for i in range(at) if words[i] == words[at]}
            wanted[len(values) - 1] += 1
    _, renewed, _ = summarize(task, list(Runner(Oracle(True), codec).run(task)), [], S)["tables"]
    assert renewed["label"] == "new values of a key"
    assert [(row["at"], row["n"]) for row in renewed["rows"]] == [(0, wanted[0]), (1, wanted[1])] and all(wanted)


def test_documents_depend_on_seed_length_and_number() -> None:
    """More examples begin with the same ones; another seed has others; a model's block size changes bins alone."""
    few, many = (examples_of(task_of("mqar", examples=count)) for count in (2, 3))
    by_id = {example.id: example.prompt.tolist() for example in many}
    assert len(by_id) == 12 and all(by_id[example.id] == example.prompt.tolist() for example in few)
    other = {example.id: example.prompt.tolist() for example in examples_of(task_of("mqar", seed=2))}
    assert other.keys() == by_id.keys() and all(other[id] != by_id[id] for id in by_id)
    wide = catalog.make("mqar", config_of("mqar"), codec_of("mqar"), 6)
    assert [example.prompt.tolist() for example in examples_of(wide)] == list(by_id.values())


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mqar", {"mqar": MqarConfig(pairs=(1,), keys=6, values=4, fillers=2)}, "trained on 11 tokens, .0 to v3"),
        ("mqar", {"lengths": (6, 100)}, "2 pairs and their questions take 8 tokens, but a document has 6"),
        ("s3", {"longest": 10}, "--longest 10 would cut documents of s3"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, changes: dict[str, object], said: str) -> None:
    """Other tokens than the model's, too short and cut documents."""
    with pytest.raises(ConfigError, match=said):
        task_of(name, **changes)


def test_a_model_of_another_vocabulary_is_refused() -> None:
    """A byte model knows none of the task's tokens."""
    with pytest.raises(ConfigError, match="evaluate a model that was trained on parity"):
        catalog.make("parity", config_of("parity"), Codec.of(ByteVocabulary()), S)
