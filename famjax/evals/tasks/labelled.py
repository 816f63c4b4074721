"""The synthetic tasks of labelled documents (`data/labelled.py`), at exact lengths: recall of pairs, state tracking.

Documents are streamed like any other text. The prediction after each labelled token is compared with its label, and
results are tabulated by length, by kind of document (such as "8 pairs") and by the task's own bins.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError, EvalConfig
from famjax.data.documents import labelled_documents
from famjax.data.labelled import Document
from famjax.data.symbols import SymbolVocabulary
from famjax.evals.samples import Sample
from famjax.evals.statistics import mean_interval, ratio_interval
from famjax.evals.tasks.base import Example, Task
from famjax.evals.tasks.generated import EXAMPLES
from famjax.infer.codec import Codec


def task(name: str, config: EvalConfig, codec: Codec, block_size: int) -> Task:
    """Returns the task: `config.examples` documents of each kind at each of `config.lengths`.

    Document i of a length and kind depends only on the seed and i. Lengths need not be multiples of the block size.

    Raises:
      ConfigError: the model has other tokens, or a document does not fit into the shortest length.
    """
    documents = labelled_documents(name, config.mqar, config.tracking, codec.vocabulary)
    assert documents is not None, name
    if isinstance(documents.vocabulary, SymbolVocabulary):
        _check_tokens(name, documents.vocabulary, codec)
    if 0 < config.longest < max(config.lengths):
        raise ConfigError(f"--longest {config.longest} would cut documents of {name}; use shorter --lengths")
    number, count = zlib.crc32(name.encode()), config.examples or EXAMPLES

    def draw(length: int, kind: int, i: int) -> Document:
        return documents.draw(np.random.default_rng([config.seed, number, length, kind, i]), length, block_size, kind)

    def examples() -> Iterator[Example]:
        for length in config.lengths:
            for kind in documents.kinds:
                for i in range(count):
                    found = draw(length, kind, i)
                    about = {"length": length} | ({"kind": kind} if documents.kind_label else {})
                    id = f"{length}/{kind}/{i}"
                    yield Example(id, found.tokens, labels=found.labels, bins=found.bins, about=about)

    for kind in documents.kinds:
        draw(min(config.lengths), kind, 0)
    settings = {
        "lengths": list(config.lengths), "examples": count, "seed": config.seed,
        "documents": dataclasses.asdict(documents.config),
        "bins": list(documents.bins),  # answers of versions that had one kind of bins are not reused
    }  # fmt: skip
    total = count * len(config.lengths) * len(documents.kinds)
    return Task(
        name, "label", examples, count=total, bins=documents.bins, kinds=documents.kind_label, settings=settings
    )


def _check_tokens(name: str, ours: SymbolVocabulary, codec: Codec) -> None:
    theirs = codec.vocabulary
    if not isinstance(theirs, SymbolVocabulary):
        raise ConfigError(
            f"the model's vocabulary is not that of the task {name!r}; evaluate a model that was trained on {name}"
        )
    if theirs.names != ours.names:
        says = lambda names: f"{len(names)} tokens, {names[0]} to {names[-1]}"
        raise ConfigError(
            f"the model was trained on {says(theirs.names)}, but the task {name!r} has {says(ours.names)}; give its "
            f"settings in the training, such as --gin.MqarConfig.keys=64"
        )


def tables(task: Task, samples: Sequence[Sample], seed: int = 0) -> list[dict[str, Any]]:
    """Returns tables of accuracy by length and bin, and one by length and kind of document if there are several.

    A table has `label`, the axis label of the numbers `at`, and `rows`. A row has `length`, `at` (bin or kind), `n`
    (number of predictions), `value`, and `low`, `high`, a 95% interval over documents. Bins without a prediction are
    left out.
    """
    by_bin: list[list[dict[str, Any]]] = [[] for _ in task.bins]
    by_kind: list[dict[str, Any]] = []
    for length in sorted({sample.about["length"] for sample in samples}):
        same = [sample for sample in samples if sample.about["length"] == length]
        for i, rows in enumerate(by_bin):
            asked, right = (_padded([sample.about[name][i] for sample in same]) for name in ("asked", "right"))
            for at in np.flatnonzero(asked.sum(axis=0)):
                rows.append({"length": length, "at": int(at)} | _row(right[:, at], asked[:, at], seed))
        kinds = np.array([sample.about.get("kind", 0) for sample in same])
        for kind in sorted(set(kinds.tolist())):
            above, below = (table[kinds == kind].sum(axis=1) for table in (right, asked))
            by_kind.append({"length": length, "at": kind} | _row(above, below, seed))
    found = [{"label": label, "rows": rows} for label, rows in zip(task.bins, by_bin, strict=True)]
    return found + ([{"label": task.kinds, "rows": by_kind}] if task.kinds else [])


def _row(above: np.ndarray, below: np.ndarray, seed: int) -> dict[str, Any]:
    """Returns sum(above) / sum(below) over documents, its interval, and the number of predictions. The interval is
    Wilson's if all or none are right."""
    above, below = above[below > 0], below[below > 0]
    low, high = ratio_interval(above, below, seed)
    if len(below) > 1 and ((above == 0).all() or (above == below).all()):  # each document is one trial
        low, high = mean_interval(np.sign(above).tolist(), [str(i) for i in range(len(above))])
    return {"n": int(below.sum()), "value": float(above.sum() / below.sum()), "low": low, "high": high}


def _padded(lists: Sequence[Sequence[float]]) -> np.ndarray:
    """Returns float64 [documents, bins]: lists of unequal lengths, filled up with 0."""
    table = np.zeros((len(lists), max(map(len, lists))))
    for row, values in zip(table, lists, strict=True):
        row[: len(values)] = values
    return table
