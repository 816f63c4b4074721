"""seqio tasks: their metric functions get the targets and answers that `seqio.Evaluator` would pass."""

import numpy as np
import pytest
import seqio

from famjax.config import ConfigError, EvalConfig
from famjax.data.seqio_vocabulary import FileVocabulary
from famjax.data.vocabulary import ByteVocabulary, load_vocabulary
from famjax.evals import results
from famjax.evals.runner import Runner
from famjax.evals.tasks import catalog, seqio_task
from famjax.infer.codec import Codec
from tests.data.test_seqio_tasks import registry  # noqa: F401 - a fixture
from tests.evals.test_runner import Parrot
from tests.pretrained import tokenizers_of_ours

CODEC = Codec.of(ByteVocabulary())
FEATURES = {name: seqio.Feature(FileVocabulary("bytes"), add_eos=False) for name in ("inputs", "targets")}
LINES = ["say <yes>|YES", "say <no>|no", "say <yes>|maybe"]


def matched(targets, predictions):
    """Returns the postprocessed targets and predictions, and a number in seqio's wrapper."""
    assert all(target.startswith("T:") for target in targets) and all(said.startswith("P:") for said in predictions)
    hits = [target[2:] == said[2:] for target, said in zip(targets, predictions, strict=True)]
    return {"matched": seqio.metrics.Scalar(float(np.mean(hits))), "note": seqio.metrics.Text("text")}


def likely(targets, scores):
    """Returns the mean score."""
    return {"likely": float(np.mean(scores)), "count": len(targets)}


def add(folder, name, metric_fns, splits=("test",)):
    (folder / "lines.txt").write_text("\n".join(LINES))
    source = seqio.TextLineDataSource({split: str(folder / "lines.txt") for split in splits})

    def cut(ds):
        import tensorflow as tf

        halves = lambda line: tf.strings.split(line, "|")
        return ds.map(lambda line: {"inputs": halves(line)[0], "targets": halves(line)[1]})

    def postprocess(text, example, is_target):
        assert example["inputs_pretokenized"].startswith(b"say")
        return ("T:" if is_target else "P:") + text.lower()

    seqio.TaskRegistry.add(
        name, source=source, preprocessors=[cut, seqio.preprocessors.tokenize], output_features=FEATURES,
        postprocess_fn=postprocess, metric_fns=metric_fns,
    )  # fmt: skip


def ask(name, **settings):
    task = catalog.make(name, EvalConfig(**{"max_new_tokens": 3} | settings), CODEC, 64)
    parrot = Parrot()
    samples = list(Runner(parrot, CODEC).run(task))
    return parrot, samples, results.summarize(task, samples, [], 64)


def test_metric_functions_of_predictions_and_of_scores(tmp_path, registry):  # noqa: F811
    """Predictions are postprocessed like targets; 2 of 3 are correct ("yes", "no", "maybe" against yes, no, yes), with
    a bootstrapped interval. Scores are -1 for a capital, -2 for any other letter."""
    add(tmp_path, "writes", [matched])
    parrot, samples, told = ask("seqio:writes")
    assert parrot.asked[0] in {line.split("|")[0] for line in LINES} and len(samples) == 3
    assert set(told["metrics"]) == {"matched"}
    metric = told["metrics"]["matched"]
    assert metric["value"] == pytest.approx(2 / 3) and metric["low"] < 2 / 3 < metric["high"] and metric["n"] == 3
    add(tmp_path, "scores", [likely])
    _, samples, told = ask("seqio:scores")
    assert sorted(sample.answer for sample in samples) == [-10, -4, -3]
    assert told["metrics"]["likely"]["value"] == pytest.approx(-17 / 3)
    assert told["metrics"]["next_token_accuracy"]["value"] == pytest.approx(1 / 3)
    _, few, _ = ask("seqio:scores", examples=2)
    assert len(few) == 2


def test_a_text_begins_once(tmp_path):
    """A task may add the begin-of-text token that the tokenizer adds."""
    codec = Codec.of(load_vocabulary(str(tokenizers_of_ours.write(tmp_path, "byte-level"))))
    for inputs in ([codec.bos, 70, 71], [70, 71]):
        row = {"inputs": np.array(inputs), "targets": np.array([72])}
        example = seqio_task._example(0, row, False, codec)
        assert [*example.context, *example.prompt] == [codec.bos, 70, 71]


def test_what_is_missing_is_told(tmp_path, registry):  # noqa: F811
    """An unknown name, a missing split, a mixture, and another vocabulary, larger or not, are errors."""
    add(tmp_path, "one", [matched], splits=("train", "validation"))
    for name, settings, said in (
        ("seqio:on", {}, "did you mean one"),
        ("seqio:one", {"split": "test"}, "has no split 'test'"),
        ("one", {}, "is not one of"),
    ):
        with pytest.raises(ConfigError, match=said):
            catalog.make(name, EvalConfig(**settings), CODEC, 64)
    assert catalog.make("one", EvalConfig(modules=("math",)), CODEC, 64).settings["split"] == "validation"
    seqio.MixtureRegistry.add("both", ["one"], default_rate=1.0)
    with pytest.raises(ConfigError, match="--task seqio:one"):
        catalog.make("seqio:both", EvalConfig(), CODEC, 64)
    with pytest.raises(ConfigError, match="trained with another"):
        catalog.make("seqio:one", EvalConfig(), Codec.of(ByteVocabulary(size=100)), 64)
    with pytest.raises(ConfigError, match="'one' and the model have different vocabularies; evaluate a model that was"):
        catalog.make("seqio:one", EvalConfig(), Codec.of(ByteVocabulary(offset=3)), 64)
