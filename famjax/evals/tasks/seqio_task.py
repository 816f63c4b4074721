"""seqio tasks: `inputs` are the prompt, and the task's own metric functions score the answers.

A metric function of (targets, predictions) gets the generated text; one of (targets, scores) gets the natural-log
probability of the targets. Both are applied after the task's `postprocess_fn`, as in `seqio.Evaluator`.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from famjax.config import ConfigError, DataConfig, EvalConfig
from famjax.data.seqio_tasks import find_task, load_seqio
from famjax.evals.tasks.base import Example, Task, Unreadable
from famjax.infer.codec import Codec

SEQIO = "seqio:"
# The first of these splits that a task has is evaluated.
SPLITS = ("validation", "test", "train")
NEW_TOKENS = 128
# A text whose tokens show whether two vocabularies are the same.
PROBE = "Where is the key? It is number 1984."


def task(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the registered task `name` (with or without the prefix `seqio:`).

    The model generates if the task has metric functions of predictions; otherwise it scores the targets.

    Raises:
      ConfigError: the task is not registered, is a mixture, or has another vocabulary than the model.
    """
    registered = name.removeprefix(SEQIO)
    theirs, split = _find(registered, config)
    from famjax.data.seqio_vocabulary import ours_of  # imports seqio

    vocabulary = theirs.output_features["targets"].vocabulary
    if vocabulary.vocab_size > codec.vocabulary.size:
        raise ConfigError(
            f"the seqio task {registered!r} has a vocabulary of {vocabulary.vocab_size} tokens, the model one of "
            f"{codec.vocabulary.size}; it was trained with another"
        )
    ours, files = ours_of(vocabulary)
    # One that has no files, such as ids that are given as they are, cannot be compared.
    if files is not None and ours.encode(PROBE).tolist() != codec.vocabulary.encode(PROBE).tolist():
        raise ConfigError(
            f"the seqio task {registered!r} and the model have different vocabularies; evaluate a model that was "
            f"trained with the task's, or give the task the model's (FileVocabulary of the model directory)"
        )
    writes = bool(theirs.predict_metric_fns)
    metrics = theirs.predict_metric_fns if writes else theirs.score_metric_fns

    def examples() -> Iterator[Example | Unreadable]:
        for number, row in enumerate(_rows(theirs, split, config)):
            yield _example(number, row, writes, codec)

    def pairs(answers: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        for number, row in enumerate(_rows(theirs, split, config)):
            if (id := f"{number:06d}") in answers:
                said, right = answers[id], _target(row, codec)
                target = theirs.postprocess_fn(right, example=row, is_target=True)
                yield id, target, theirs.postprocess_fn(said, example=row, is_target=False) if writes else said

    settings = {"split": split, "metrics": [metric.__name__ for metric in metrics]}
    return Task(
        name, "generate" if writes else "score", examples, count=config.examples,
        max_new_tokens=config.max_new_tokens or NEW_TOKENS, corpus_metrics=tuple(metrics), pairs=pairs,
        settings=settings,
    )  # fmt: skip


def _find(name: str, config: EvalConfig) -> tuple[Any, str]:
    load_seqio(tuple(config.modules))
    for split in (config.split,) if config.split else SPLITS:
        try:
            found = find_task(name, DataConfig(split=split, modules=config.modules))
        except ConfigError as error:
            if config.split or split == SPLITS[-1] or "has no split" not in str(error):
                raise
            continue
        if hasattr(found, "tasks"):
            names = ",".join(SEQIO + one.name for one in found.tasks)
            raise ConfigError(f"{name} is a mixture; name its tasks: --task {names}")
        return found, split
    raise AssertionError("the last split was tried")


def _rows(theirs: Any, split: str, config: EvalConfig) -> Iterator[dict[str, Any]]:
    data = theirs.get_dataset(None, split, shuffle=False, num_epochs=1, trim_output_features=False)
    rows: Iterator[dict[str, Any]] = itertools.islice(data.as_numpy_iterator(), config.examples or None)
    return rows


def _target(row: dict[str, Any], codec: Codec) -> str:
    """Returns the correct answer as text: seqio's `targets_pretokenized`, else the decoded target tokens."""
    text = row.get("targets_pretokenized")
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else _decoded(row["targets"], codec)


def _decoded(tokens: np.ndarray, codec: Codec) -> str:
    eos = codec.vocabulary.eos
    return codec.vocabulary.decode([int(token) for token in tokens if token != eos])


def _example(number: int, row: dict[str, Any], writes: bool, codec: Codec) -> Example | Unreadable:
    inputs, targets = (np.asarray(row.get(key, ()), np.int32) for key in ("inputs", "targets"))
    if codec.bos is not None and (not len(inputs) or inputs[0] != codec.bos):  # the task may add it itself
        inputs = np.concatenate([[codec.bos], inputs]).astype(np.int32)
    if not len(inputs) and not writes:
        inputs, targets = targets[:1], targets[1:]  # the first token has nothing to be predicted from
    if not len(inputs) or not len(targets):
        return Unreadable(f"example {number}", "it has no inputs or no targets")
    size = len(_decoded(targets, codec).encode("utf-8", "replace"))
    asked = {"targets": (_target(row, codec),)} if writes else {"scored": targets, "size": float(size)}
    return Example(f"{number:06d}", inputs[-1:], inputs[:-1], **asked)
