"""The task `text`, and all tasks of seqio: documents in rows, streamed or packed."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from famjax.config import TASKS, ConfigError, SourceConfig, TrainConfig
from famjax.data import files
from famjax.data.batch import Batch, Progress
from famjax.data.documents import LABELLED, in_words, labelled_documents
from famjax.data.examples import Documents, DocumentSequences, Examples, Mixture
from famjax.data.labelled import Labelled
from famjax.data.packing import REPEAT_TEXT, packed_row, repeat_segment
from famjax.data.rows import Cursor, Row
from famjax.data.sources import open_source
from famjax.data.streams import stream_row
from famjax.data.symbols import SymbolVocabulary
from famjax.data.vocabulary import (
    VOCABULARIES,
    TokenizerVocabulary,
    Vocabulary,
    has_vocabulary,
    vocabulary_files,
    vocabulary_from,
)

STREAMS, PACKED = "streams", "packed"
# What progress counts, in words.
COUNTED = {"rows": "rows of a batch", "streams": "rows that stream", "examples": "documents"}
# Settings of a seqio task that decide which example a position is.
SEQIO = ("split", "use_cached", "data_shards")


class TextTask:
    """Batches whose first rows are document streams and whose other rows are packed.

    Progress maps the number of every row of this process to the position of its lane, and `data` to what must be
    unchanged when the training is resumed: sizes, the seed and order of documents, and the sources.

    `rows` are the indices of the rows of the global batch that this process provides. `groups` has the examples for
    streams and for packed rows; lanes of a group are numbered from 0.
    """

    observes = False

    def __init__(
        self, config: TrainConfig, rows: Sequence[int] | np.ndarray, vocabulary: Vocabulary, groups: dict[str, Mixture]
    ):
        self.rows, self.vocabulary = [int(row) for row in rows], vocabulary
        self._config, self._data, self._groups = config, config.data, groups
        self._streams = config.data.stream_rows(config.batch_size)
        self._announcement, self._room = repeat_room(config, vocabulary)

    def start(self) -> Progress:
        """Returns the progress with every lane before its first document."""
        lanes = {}
        for row in self.rows:
            group, lane = self._lane(row)
            lanes[str(row)] = {"where": self._groups[group].begin(lane), "token": 0}
        return {"data": self._fixed} | lanes

    def batch(self, step: int, progress: Progress) -> tuple[Batch, Progress]:
        """See `Task`. Raises `ConfigError` if the progress belongs to other data."""
        rows, after = self.read(step, progress)
        tokens, count, starts, targets, weights, *_ = (np.stack(field) for field in zip(*rows, strict=True))
        return Batch(tokens, count, starts, None, targets, weights), after

    def read(self, step: int, progress: Progress) -> tuple[list[Row], Progress]:
        """Returns the rows of a batch as a list, and the progress after them. Raises `ConfigError` like `batch`."""
        self._check(progress)
        rows, after = [], {"data": self._fixed}
        for number in self.rows:
            cursor = Cursor(progress[str(number)]["where"], progress[str(number)]["token"])
            row, cursor = self._row(number, step, cursor)
            rows.append(row)
            after[str(number)] = {"where": cursor.where, "token": cursor.token}
        return rows, after

    def observe(self, progress: Progress, batch: Batch, correct: np.ndarray) -> Progress:
        """Returns the progress unchanged: it does not depend on predictions."""
        return progress

    def report(self, progress: Progress) -> dict[str, float]:
        """Returns the number of epochs that were read, averaged over this process's rows and the kinds of examples."""
        read = []
        for number in self.rows:
            group, lane = self._lane(number)
            read.append(np.mean(self._groups[group].epochs(lane, progress[str(number)]["where"])))
        return {"epochs": round(float(np.mean(read)), 4)}

    def streams(self, row: int) -> bool:
        """Whether a row is a document stream."""
        return row < self._streams

    def _lane(self, row: int) -> tuple[str, int]:
        return (STREAMS, row) if row < self._streams else (PACKED, row - self._streams)

    def _row(self, number: int, step: int, cursor: Cursor) -> tuple[Row, Cursor]:
        group, lane = self._lane(number)
        T, S = self._config.sequence_length, self._config.model.memory.block_size
        read = lambda where: self._groups[group].example(lane, where)
        if cursor.token and cursor.token >= (size := len(read(cursor.where)[0].tokens)):
            raise ConfigError(
                f"the training to resume was at token {cursor.token} of a document that now has {size}, so its "
                f"position in the data is lost; restore the data, or start in an empty MODEL_DIR from its weights"
            )
        if group == STREAMS:
            return stream_row(read, cursor, T, S)
        row, cursor = packed_row(read, cursor, T, S, whole=self._data.packing == "whole", room=self._room)
        if self._room:
            rng = np.random.default_rng([self._config.seed, 3, number, step])
            repeat_segment(row, self._announcement, self._data.repeat_segment, self._data.repeat_weight, rng)
        return row, cursor

    @functools.cached_property
    def _fixed(self) -> dict[str, Any]:
        return {
            "rows": self._config.batch_size,
            "streams": self._streams,
            "examples": [self._groups[group].sizes() for group in sorted(self._groups)],
            "seed": self._config.seed,
            "shuffle": self._data.shuffle,
            "sources": [identity(source) for source in self._data.all_sources()],
            # The position in a document counts these tokens, too.
            "added": {"bos": self._data.bos, "eos": self._data.eos},
            "join_documents": self._data.join_documents,
            "seqio": {name: getattr(self._data, name) for name in SEQIO} if self._config.task != "text" else {},
        }

    def _check(self, progress: Progress) -> None:
        # Older checkpoints have fewer names, and no joined documents.
        there, now = map(_flat, (self._fixed | {"join_documents": 1} | progress["data"], self._fixed))
        name = next((name for name in now if there.get(name) != now[name]), None)
        if name is None:
            return
        had = f"{name} {there.get(name)!r}, not {now[name]!r}"
        if name in COUNTED:
            had = f"{there[name]} {COUNTED[name]}, not {now[name]}"
        elif name == "sources":
            paths = ", ".join(source.path for source in self._data.all_sources())
            had = f"other sources than {paths}, or in another order, or with other settings"
        raise ConfigError(
            f"the training to resume had {had}, so its position in the data is lost; use the same data, or start in an "
            f"empty MODEL_DIR from its weights"
        )


def _flat(fixed: dict[str, Any]) -> dict[str, Any]:
    """Returns `TextTask._fixed` with the settings of its inner dicts beside the others."""
    return {name: fixed[name] for name in fixed if name not in ("added", "seqio")} | fixed["added"] | fixed["seqio"]


def identity(source: SourceConfig) -> str:
    """Returns a hash, 16 hexadecimal digits, of a source's settings, the last part of its path, and its first document:
    enough to notice another source, and cheap."""
    settings = dataclasses.asdict(source) | {"path": Path(source.path).name}
    first = open_source(source).first()
    text = json.dumps([settings, first.inputs, first.targets], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


# --- from a configuration ------------------------------------------------------------------------------


def make_text_task(config: TrainConfig, rows: Sequence[int] | np.ndarray) -> TextTask:
    """Returns the task `text`, or one of seqio, for a process that provides these rows. Raises `ConfigError` if files,
    vocabulary and model do not match."""
    found = None if config.task == "text" else _seqio_task(config)
    vocabulary, _ = vocabulary_and_files(config)
    check_vocabulary(vocabulary, config)
    groups = {}
    for number, (group, lanes) in enumerate(lanes_of(config).items()):
        if not lanes:
            continue
        if found is None:
            kinds, weights = _documents(config, vocabulary, group, lanes, [config.seed, 1, number])
        else:
            from famjax.data.seqio_tasks import kinds_of

            kinds, weights = kinds_of(found, config.data, lanes, [config.seed, 1, number])
        if group == STREAMS and config.data.join_documents > 1:
            most = config.data.join_documents
            kinds = [DocumentSequences(one, most, [config.seed, 5, i]) for i, one in enumerate(kinds)]
        groups[group] = Mixture(kinds, weights, [config.seed, 2, number])
    return TextTask(config, rows, vocabulary, groups)


def _documents(
    config: TrainConfig, vocabulary: Vocabulary, group: str, lanes: int, seed: list[int]
) -> tuple[list[Examples], list[float]]:
    data = config.data
    sources = [source for source in data.all_sources() if source.rows in ("all", group) and source.weight > 0]
    kinds: list[Examples] = []
    for i, source in enumerate(sources):
        order = [*seed, i] if data.shuffle else None
        kinds.append(Documents(open_source(source), vocabulary, lanes, order, data.bos, data.eos))
        if not len(kinds[-1]):
            raise ConfigError(f"{source.path} has no documents")
        if len(kinds[-1]) < lanes:
            print(f"{source.path} has fewer documents ({len(kinds[-1])}) than rows that read it ({lanes}): rows share "
                  f"documents; split it into parts with SourceConfig.part_bytes, or use fewer rows")  # fmt: skip
    return kinds, [source.weight for source in sources]


def _seqio_task(config: TrainConfig) -> Any:
    from famjax.data.seqio_tasks import TFDS, find_task

    # The texts of a TFDS dataset have the same vocabulary as those of files; other tasks have their own.
    vocabulary = vocabulary_path(config) if config.task.startswith(TFDS) else ""
    return find_task(config.task, dataclasses.replace(config.data, vocabulary=vocabulary))


def vocabulary_and_files(config: TrainConfig) -> tuple[Vocabulary, dict[str, bytes] | None]:
    """Returns the vocabulary of the data, and its files for a model directory (None: it cannot be saved)."""
    if config.task in TASKS:
        path = vocabulary_path(config)
        kept = vocabulary_files(path)
        vocabulary = vocabulary_from(kept, path)
        if isinstance(vocabulary, TokenizerVocabulary):
            vocabulary.limit(config.model.vocab_size)
        if config.task not in LABELLED or in_words(config.task, vocabulary):
            return vocabulary, kept
        own = LABELLED[config.task](config.task, config.mqar, config.tracking).vocabulary
        assert isinstance(own, SymbolVocabulary)
        return own, own.files
    found = _seqio_task(config)
    from famjax.data.seqio_vocabulary import ours_of

    return ours_of(found.output_features["targets"].vocabulary)


def documents_of(config: TrainConfig) -> Labelled | None:
    """Returns the task of labelled documents that `config.task` names; None if it names another task. Raises
    `ConfigError` if the vocabulary cannot be read, or does not have the task's words."""
    if config.task not in LABELLED:
        return None
    return labelled_documents(config.task, config.mqar, config.tracking, vocabulary_and_files(config)[0])


def lanes_of(config: TrainConfig) -> dict[str, int]:
    """Returns the numbers of streamed and of packed rows, by group."""
    streams = config.data.stream_rows(config.batch_size)
    return {STREAMS: streams, PACKED: config.batch_size - streams}


def check_text_task(config: TrainConfig) -> None:
    """Quickly checks names, paths, the first document of each source, and the vocabulary, before a long run. Raises
    `ConfigError` if one of them is invalid."""
    vocabulary, _ = vocabulary_and_files(config)
    check_vocabulary(vocabulary, config)
    repeat_room(config, vocabulary)
    if config.task != "text":
        return
    for source in config.data.all_sources():
        Documents(open_source(source), vocabulary, 1, None, False, False).tokens(open_source(source).first())


def vocabulary_path(config: TrainConfig) -> str:
    """Returns the path of the vocabulary: the setting, else that of the initial weights, else that in the model
    directory, from which the training resumes, else `bytes`."""
    if config.data.vocabulary:
        return config.data.vocabulary
    start, model_dir = config.initial_checkpoint, config.model_dir
    # The initial weights may be a step, DIR/checkpoints/400; the vocabulary is in DIR.
    above = Path(start).parent
    folders = [start, str(above.parent) if above.name == "checkpoints" else "", model_dir]
    return next((folder for folder in folders if folder and has_vocabulary(folder)), "bytes")


def vocabulary_folder(config: TrainConfig) -> Path | None:
    """Returns the local folder of the vocabulary's files, beside which a chat template may be; None if it has none, as
    the symbols of a task."""
    if config.task not in TASKS:
        return None
    if config.task in LABELLED and isinstance(vocabulary_and_files(config)[0], SymbolVocabulary):
        return None
    path = vocabulary_path(config)
    if path == "bytes" or "://" in path:
        return None
    return Path(path) if Path(path).is_dir() else Path(path).parent


def files_to_keep(config: TrainConfig) -> dict[str, bytes]:
    """Returns the vocabulary's files for the model directory, by name. Raises `ConfigError` if the directory has
    another vocabulary already."""
    _, kept = vocabulary_and_files(config)
    if kept is None:
        print(f"the vocabulary of {config.task} cannot be saved in {config.model_dir}; to use this model on text, put "
              f"its tokenizer.json there")  # fmt: skip
        return {}
    there = [name for name in VOCABULARIES if files.exists(f"{config.model_dir}/{name}")]
    if there and not any(name in kept for name in there):
        _refuse_vocabulary(f"{config.model_dir}/{there[0]}")
    for name, content in kept.items():
        path = f"{config.model_dir}/{name}"
        if files.exists(path) and files.read(path) != content:
            _refuse_vocabulary(path)
    return kept


def _refuse_vocabulary(path: str) -> NoReturn:
    raise ConfigError(
        f"{path} is another vocabulary than the data's; leave VOCABULARY out to use it, or use an empty MODEL_DIR"
    )


def repeat_room(config: TrainConfig, vocabulary: Vocabulary) -> tuple[np.ndarray, int]:
    """Returns the announcement of a repeated segment, int32 [a], and the room for both in a packed row, in tokens.
    Raises `ConfigError` if both take more than half of a row."""
    data = config.data
    if not data.repeat_segment:
        return np.zeros(0, np.int32), 0
    announcement = vocabulary.encode(REPEAT_TEXT)
    room = len(announcement) + data.repeat_segment
    if lanes_of(config)[PACKED] and 2 * room > config.sequence_length:
        raise ConfigError(
            f"repeat_segment {data.repeat_segment} and its announcement take {room} tokens of a row of "
            f"{config.sequence_length}; use at most half of it"
        )
    return announcement, room


def check_vocabulary(vocabulary: Vocabulary, config: TrainConfig) -> None:
    """Raises `ConfigError` unless the model has an embedding for every token."""
    if vocabulary.size > config.model.vocab_size:
        raise ConfigError(
            f"the vocabulary has {vocabulary.size} tokens, but the model's vocab_size is {config.model.vocab_size}; "
            f"set --gin.ModelConfig.vocab_size={vocabulary.size}"
        )
