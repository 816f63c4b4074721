"""Small texts, small rows, and documents reassembled from rows."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from famjax.config import DataConfig, MemoryConfig, ModelConfig, TrainConfig
from famjax.data.batch import Batch
from famjax.data.text_task import TextTask, make_text_task

S, T = 4, 16
# A single token, one block, one row and their neighbouring sizes, rows of several steps.
EDGES = (1, 3, 4, 5, 15, 16, 17, 32, 33, 50)


def text(number: int, size: int) -> str:
    """Returns a text with a unique first letter, in which neighbouring characters differ."""
    return "".join(chr(65 + number) if i == 0 else chr(97 + (i + number) % 26) for i in range(size))


def write_texts(folder: Path, sizes: Any) -> list[str]:
    """Writes text files of these sizes; returns their contents."""
    folder.mkdir(exist_ok=True)
    texts = [text(i, size) for i, size in enumerate(sizes)]
    for i, content in enumerate(texts):
        (folder / f"{i:03}.txt").write_text(content)
    return texts


def write_jsonl(path: Path, documents: list[dict]) -> str:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return str(path)


def config(*sources: Any, rows: int = 1, vocab_size: int = 256, **data: Any) -> TrainConfig:
    """Returns a training on these sources: blocks of 4, rows of 16."""
    train = {name: data.pop(name) for name in list(data) if name in {f.name for f in dataclasses.fields(TrainConfig)}}
    model = ModelConfig(vocab_size=vocab_size, memory=MemoryConfig(block_size=S, fam_length=0))
    settings: dict[str, Any] = {"model_dir": "none", "task": "text", "model": model, "sequence_length": T}
    settings |= {"batch_size": rows, "data": DataConfig(sources=tuple(map(_source, sources)), **data)}
    made = TrainConfig(**(settings | train))
    made.validate()
    return made


def _source(source: Any) -> Any:
    return str(source) if isinstance(source, Path) else source


def read(task: TextTask, steps: int, first: int = 0, progress: Any = None) -> tuple[list[Batch], list[dict]]:
    """Returns batches, and the progress before each and after the last one, through JSON."""
    seen = [task.start() if progress is None else progress]
    batches = []
    for step in range(first, first + steps):
        batch, after = task.batch(step, json.loads(json.dumps(seen[-1])))
        batches.append(batch)
        seen.append(after)
    return batches, seen


def batches_of(made: TrainConfig, steps: int) -> list[Batch]:
    """Returns the first batches of a training in one process."""
    return read(make_text_task(made, range(made.batch_size)), steps)[0]


def assert_same(one: Batch, other: Batch, rows: Any = slice(None)) -> None:
    """Asserts equality, bit for bit, with these rows of `one`."""
    for name, a, b in zip(Batch._fields, one, other, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a[rows], b, err_msg=name)


def stream(batches: list[Batch], row: int) -> list[str]:
    """Returns the documents that a row read from start to end, after checking targets and weights.

    Position p of a document predicts token p + 1 with weight 1, even if that is in the next batch; its last token, and
    padding, predict nothing.
    """
    tokens, targets, weights = (
        np.concatenate([getattr(batch, name)[row] for batch in batches]) for name in ("tokens", "targets", "weights")
    )
    starts = np.flatnonzero(np.concatenate([batch.starts[row] for batch in batches])) * S
    assert starts[0] == 0
    documents = []
    for first, end in zip(starts[:-1], starts[1:], strict=True):
        content = bytes(tokens[first:end].astype(np.uint8)).rstrip(b"\0")
        assert len(content) > end - first - S  # no block consists of padding
        n = len(content)
        np.testing.assert_array_equal(weights[first:end], np.arange(end - first) < n - 1)
        np.testing.assert_array_equal(targets[first : first + n - 1], tokens[first + 1 : first + n])
        documents.append(content.decode())
    for batch in batches:
        assert batch.count[row] == np.flatnonzero(batch.tokens[row])[-1] + 1
    return documents
