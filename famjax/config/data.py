"""Training data: its sources, and how documents are laid out in the rows of a batch."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from famjax.config.checks import ConfigError, at_least, check_types, one_of, probability
from famjax.config.curriculum import CurriculumConfig

# Tasks that generate their documents: `babi` from stories and books, the others without files. `text` reads files.
GENERATED = ("passkey", "babi", "mqar", "parity", "s3", "s5")
TASKS = (*GENERATED, "text")
SOURCE_KINDS = ("auto", "text", "lines", "jsonl", "dataset")
SOURCE_ROWS = ("all", "streams", "packed")
PACKINGS = ("cut", "whole")


@dataclasses.dataclass(frozen=True)
class PassKeyConfig(CurriculumConfig):
    """The pass-key task (paper section 5): a key at the start, filler, and a question at the end.

    Lengths are in tokens of the model's vocabulary.

    Attributes:
      key_digits: digits of a key.
      mention_weight: loss weight of the key's second mention, before the filler.
      stages, open_at, newest_share, straddle_share, straddle_behind, text_weight, text_tokens: see `CurriculumConfig`.
      stream_share: share of rows whose first document continues in later steps with more filler: the memory from just
        before the question is carried to the next step, which asks for the same key again (truncated backpropagation;
        docs/memory.md).
      stream_blocks: maximum length of such a document in blocks; then the row gets another key. Lengths are drawn
        between the last stage's blocks and this, with a density of 1 / length^2: on average every doubling of the
        filler gets about the same number of questions, except the last ones, which get fewer.
      stream_gated: only documents whose last answer was correct continue.
      stream_told_again: share of the streams that have reached their length and continue with a new key, inserted
        into the carried memory, which still holds the old one; the others restart with a fresh memory.
      late_share: share of documents with up to two blocks of filler before the key.
    """

    key_digits: int = 5
    mention_weight: float = 1.0
    stream_share: float = 0.0
    stream_blocks: int = 256
    stream_gated: bool = True
    stream_told_again: float = 0.0
    late_share: float = 0.0

    def stream_rows(self, batch_size: int) -> int:
        """Returns the number of rows, the first ones of a batch, that carry their memory to the next step."""
        return round(self.stream_share * batch_size)

    def check_rows(self, batch_size: int) -> None:
        """Raises `ConfigError` if a nonzero share of the rows is less than one row."""
        _check_streams(self.stream_share, self.stream_rows(batch_size), batch_size)

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing, those of streams if no row is one, and why."""
        names = [] if self.stream_share else ["stream_blocks", "stream_gated", "stream_told_again"]
        changed = (name for name in names if getattr(self, name) != getattr(PassKeyConfig, name))
        found = {f"{name} {getattr(self, name)!r}": "PassKeyConfig.stream_share is 0" for name in changed}
        return super().without_effect | found

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        at_least("key_digits", self.key_digits, 1)
        self.check_curriculum()
        for name in ("stream_share", "stream_told_again", "late_share"):
            probability(name, getattr(self, name))
        at_least("stream_blocks", self.stream_blocks, 1)
        at_least("mention_weight", self.mention_weight, 0)


def _check_streams(share: float, rows: int, batch_size: int) -> None:
    if share and not rows:
        raise ConfigError(
            f"stream_share {share} of {batch_size} rows is less than one row; use at least {1 / batch_size:g}"
        )


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A source of documents, on local disk or remote (`gs://...`, any fsspec URL).

    Attributes:
      path: a file, or a glob such as `books/*.txt`; `.gz` is decompressed.
      kind: `text`: one document per file; `lines`: one per line; `jsonl`: a JSON object per line; `dataset`: a
        folder written by `save_to_disk` of Hugging Face datasets; `auto`: one of these, chosen by the path.
      weight: sampling weight of documents (not of tokens), relative to the other sources.
      rows: rows that read it: `streams`, `packed` or `all`.
      text_field: field or column of the text.
      inputs_field, targets_field: fields of the inputs, which have loss weight 0, and of the targets.
      separator: text between inputs and targets.
      part_bytes: of kind `text`: split longer files at line ends into documents of about N bytes; 0 does not
        split. Every row holds its current document in host memory.
    """

    path: str = ""
    kind: str = "auto"
    weight: float = 1.0
    rows: str = "all"
    text_field: str = "text"
    inputs_field: str = "inputs"
    targets_field: str = "targets"
    separator: str = ""
    part_bytes: int = 0

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        if not self.path:
            raise ConfigError("a source has no path; set SourceConfig.path, for example 'books/*.txt'")
        one_of(f"kind of {self.path}:", self.kind, SOURCE_KINDS)
        one_of(f"rows of {self.path}:", self.rows, SOURCE_ROWS)
        at_least(f"weight of {self.path}", self.weight, 0)
        at_least(f"part_bytes of {self.path}", self.part_bytes, 0)


def as_sources(given: Iterable[str | SourceConfig]) -> list[SourceConfig]:
    """Returns sources, with paths converted to `SourceConfig`s."""
    return [SourceConfig(source) if isinstance(source, str) else source for source in given]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text to train on, and its layout in rows (docs/data.md has pictures).

    Attributes:
      sources: of the task `text`, and of the rows of `text_share`: `SourceConfig`s, or paths.
      vocabulary: of the tasks `text`, `tfds:...`, `passkey`, `babi` and `mqar`: `bytes`, or the path of a
        `tokenizer.json` or of a SentencePiece `.model`; empty is that of INITIAL_CHECKPOINT_PATH, or bytes if there is
        none. A registered seqio task and the other generated tasks have their own, and so has `mqar` instead of bytes.
      text_share: share of the rows of a batch, the last ones, in which the tasks `passkey` and `babi` read `sources`
        instead of generating documents, so that the model keeps what it could do. `stream_share`, `packing` and
        `repeat_segment` then are settings of these rows, and `PassKeyConfig.stream_share` is a share of the others.
        The loss is on as many random tokens as another row has targets, with weight `text_weight` of the task.
      stream_share: share of rows that are document streams: each reads one document after another,
        block by block across training steps, and carries its memory from step to step. The other rows are
        packed: documents are concatenated, without masks between them, and no memory is carried to the next step.
      join_documents: N: a stream reads texts of 1 to N documents of a source, and keeps its memory between them, so
        that a model meets changes of subject (docs/texts.md). The number's logarithm is uniform: half of the texts
        have at most the root of N documents. 1 does not join.
      packing: `cut`: packed rows are full, and the rest of a document that does not fit starts the same row of
        the next step; `whole`: a document that does not fit starts that row, truncated to a row.
      repeat_segment: length in tokens of a random segment of every packed row that is repeated at its end, after
        the text `[repeat random segment]:` (paper section 5, with 256 tokens); 0 disables it.
      repeat_weight: loss weight of the repeated segment.
      bos, eos: begin and end documents with the vocabulary's BOS and EOS tokens, if it has them.
      shuffle: reshuffle in every epoch; False keeps the order of the files.
      modules: Python modules that register seqio tasks, imported before a task is looked up.
      split: split of a seqio task.
      use_cached: read the cache that `seqio_cache_tasks` wrote, from `cache_dirs`.
      cache_dirs: directories of cached seqio tasks.
      data_shards: number of shards n of a seqio task; shard r is read by the rows r, r + n, ...; 0: one
        shard per row. The order of the data depends on it, but not on the number of hosts.
    """

    sources: tuple[Any, ...] = ()
    vocabulary: str = ""
    text_share: float = 0.0
    stream_share: float = 0.0
    join_documents: int = 1
    packing: str = "cut"
    repeat_segment: int = 0
    repeat_weight: float = 0.1
    bos: bool = True
    eos: bool = True
    shuffle: bool = True
    modules: tuple[str, ...] = ()
    split: str = "train"
    use_cached: bool = False
    cache_dirs: tuple[str, ...] = ()
    data_shards: int = 0

    def all_sources(self) -> list[SourceConfig]:
        """Returns the sources; see `as_sources`."""
        return as_sources(self.sources)

    def stream_rows(self, batch_size: int) -> int:
        """Returns the number of rows, the first ones of a batch, that are document streams."""
        return round(self.stream_share * batch_size)

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        for source in self.sources:
            if not isinstance(source, (str, SourceConfig)):
                raise ConfigError(f"sources has {source!r}; it must be a path, in quotes, or a SourceConfig")
        for source in self.all_sources():
            source.validate()
        probability("text_share", self.text_share)
        probability("stream_share", self.stream_share)
        one_of("packing", self.packing, PACKINGS)
        for name in ("repeat_segment", "repeat_weight", "data_shards"):
            at_least(name, getattr(self, name), 0)
        at_least("join_documents", self.join_documents, 1)
        if self.join_documents > 1 and not self.stream_share:
            raise ConfigError(f"join_documents {self.join_documents} is a setting of streams, but no row is one; set "
                              f"DataConfig.stream_share = 1.0, or join_documents to 1")  # fmt: skip

    def check_rows(self, batch_size: int) -> None:
        """Raises `ConfigError` if rows have no source, a source or a repeated segment has no rows, or if a nonzero
        share of the rows is less than one row."""
        streams = self.stream_rows(batch_size)
        _check_streams(self.stream_share, streams, batch_size)
        if self.repeat_segment and streams == batch_size:
            raise ConfigError("repeat_segment has no effect, since all rows are streams; set it to 0, or lower "
                              "stream_share")  # fmt: skip
        sources = self.all_sources()
        counts = {"streams": streams, "packed": batch_size - streams}
        for rows, many in counts.items():
            if sources and many and not any(s.rows in ("all", rows) and s.weight > 0 for s in sources):
                raise ConfigError(f"{many} rows are {rows}, but no source serves them; see stream_share and rows")
        for source in sources:
            if source.weight > 0 and not counts.get(source.rows, batch_size):
                raise ConfigError(f"no row reads {source.path}, whose rows are {source.rows!r}; set stream_share, or "
                                  f"its rows to 'all'")  # fmt: skip
