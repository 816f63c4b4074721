"""What is read, and how it is laid out in rows."""

import dataclasses
from typing import Any

from famjax.config.checks import ConfigError, at_least, check_types, one_of, probability

TASKS = ("passkey", "text")
SOURCE_KINDS = ("auto", "text", "lines", "jsonl", "dataset")
SOURCE_ROWS = ("all", "streams", "packed")
PACKINGS = ("cut", "whole")


@dataclasses.dataclass(frozen=True)
class PassKeyConfig:
    """The pass key task (paper section 5): a key at the start, filler, and a question at the end.

    Lengths are in tokens of the model's vocabulary, whatever it is.

    Attributes:
      key_digits: digits of a key.
      stages: the curriculum, most blocks of filler in each stage. A stage opens when the exact
        match of the one before it passes `open_at`.
      open_at: exact match, averaged over recent documents of the newest stage.
      newest_share: share of the batches that come from the newest open stage; the rest are spread
        over the stages before it.
      straddle_share: share of the documents whose answer is made to straddle a block's edge. By chance
        few do, and there the memory is tested hardest: it must tell how much was already said.
      straddle_behind: of those documents some answers begin behind the edge instead, in its first so many tokens. That
        a key was asked for is then in the memory alone.
      mention_weight: loss weight of the key's second mention, before the filler.
      text_weight, text_tokens: loss weight of, and how many, random tokens of the other text.
      stream_share: share of the rows whose first document goes on, filler after filler, in the steps behind it:
        the memory from just before the question is carried to the next step, where the same key is asked for
        again (truncated backpropagation; docs/memory.md).
      stream_blocks: most blocks that such a document has before another key is told. Each one's end is drawn from
        the last stage's blocks on, so that questions are as frequent for each doubling of the filler.
      stream_gated: only documents whose last answer was right go on.
      stream_told_again: share of the streams at their end that go on with another key, told to the memory as it is, old
        and with a key in it; the others end, and a fresh memory is told.
      late_share: share of the documents with up to two blocks of filler before the key is told.
    """

    key_digits: int = 5
    stages: tuple[int, ...] = (1, 2, 4, 8, 16)
    open_at: float = 0.9
    newest_share: float = 0.6
    straddle_share: float = 0.0
    straddle_behind: int = 0
    mention_weight: float = 1.0
    text_weight: float = 0.05
    text_tokens: int = 32
    stream_share: float = 0.0
    stream_blocks: int = 256
    stream_gated: bool = True
    stream_told_again: float = 0.0
    late_share: float = 0.0

    def stream_rows(self, batch_size: int) -> int:
        """How many rows of a batch, the first ones, begin with a document that goes on."""
        return round(self.stream_share * batch_size)

    def check_rows(self, batch_size: int) -> None:
        """Raises `ConfigError` where a share of the rows is no row."""
        _check_streams(self.stream_share, self.stream_rows(batch_size), batch_size)

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        at_least("key_digits", self.key_digits, 1)
        if not self.stages or list(self.stages) != sorted(set(self.stages)) or self.stages[0] < 1:
            raise ConfigError(f"stages {self.stages} must be blocks of filler in rising order, for example (1, 4, 16)")
        probability("open_at", self.open_at)
        probability("newest_share", self.newest_share)
        probability("straddle_share", self.straddle_share)
        at_least("straddle_behind", self.straddle_behind, 0)
        for name in ("stream_share", "stream_told_again", "late_share"):
            probability(name, getattr(self, name))
        at_least("stream_blocks", self.stream_blocks, 1)
        for name in ("mention_weight", "text_weight", "text_tokens"):
            at_least(name, getattr(self, name), 0)


def _check_streams(share: float, rows: int, batch_size: int) -> None:
    if share and not rows:
        raise ConfigError(
            f"stream_share {share} of {batch_size} rows is less than one row; use at least {1 / batch_size:g}"
        )


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Documents of one kind, on local disk or remote (`gs://...`, whatever fsspec reads).

    Attributes:
      path: a file, or a glob such as `books/*.txt`; `.gz` is unpacked.
      kind: `text`: a file is a document; `lines`: a line is; `jsonl`: a line is a JSON object; `dataset`: a
        folder that `save_to_disk` of Hugging Face datasets wrote. `auto` tells by the name.
      weight: how often a document is drawn from here, in proportion to the other sources' weights.
      rows: which rows read it: `streams`, `packed` or `all`.
      text_field: name of the text in a JSON object or a column.
      inputs_field, targets_field: names of what is given, read without a loss, and of what is learned.
      separator: put between inputs and targets.
      part_bytes: of `text`: cut longer files at ends of lines into documents of about so many bytes; 0 cuts
        none. A row holds its whole document in memory, and one file alone is one document.
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


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text to train on, and how it is laid out in rows (docs/data.md has pictures).

    Attributes:
      sources: of the task `text`: `SourceConfig`s, or just paths.
      vocabulary: of the tasks `text` and `passkey`: `bytes`, or the path of a `tokenizer.json` or of a
        SentencePiece `.model`; empty is that of INITIAL_CHECKPOINT_PATH, and bytes where there is none. A task of
        seqio brings its own.
      stream_share: share of the rows that are document streams: each reads one document after another,
        block after block across training steps, and carries its memory along. The other rows are packed:
        documents side by side, without masks between them, and none goes on in the next step.
      packing: `cut`: packed rows are full, and a document that does not fit goes on in a later row, without
        its beginning; `whole`: it starts the next row, and what is longer than a row loses its end.
      repeat_segment: so many consecutive random tokens of every packed row are repeated at its end, behind
        the text `[repeat random segment]:` (paper section 5, which has 256); 0 repeats none.
      repeat_weight: loss weight of these.
      bos, eos: begin and end documents with the vocabulary's tokens for it, where it has them.
      shuffle: another order in every epoch; False keeps that of the files.
      modules: Python modules that register seqio tasks, imported before one is looked up.
      split: of a seqio task.
      use_cached: read what `seqio_cache_tasks` wrote, from the directories in `cache_dirs`.
      cache_dirs: where cached seqio tasks lie.
      data_shards: into how many parts a seqio task is cut, each of which is read by the lanes r, r + n, ...;
        0 is one for each row. The order depends on it, but not on the number of hosts.
    """

    sources: tuple[Any, ...] = ()
    vocabulary: str = ""
    stream_share: float = 0.0
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
        """The sources, paths made into `SourceConfig`s."""
        return [SourceConfig(source) if isinstance(source, str) else source for source in self.sources]

    def stream_rows(self, batch_size: int) -> int:
        """How many rows of a batch, the first ones, are document streams."""
        return round(self.stream_share * batch_size)

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        for source in self.sources:
            if not isinstance(source, (str, SourceConfig)):
                raise ConfigError(f"sources has {source!r}; it must be a path, in quotes, or a SourceConfig")
        for source in self.all_sources():
            source.validate()
        probability("stream_share", self.stream_share)
        one_of("packing", self.packing, PACKINGS)
        for name in ("repeat_segment", "repeat_weight", "data_shards"):
            at_least(name, getattr(self, name), 0)

    def check_rows(self, batch_size: int) -> None:
        """Raises `ConfigError` where rows have nothing to read, or where a share of the rows is no row."""
        streams = self.stream_rows(batch_size)
        _check_streams(self.stream_share, streams, batch_size)
        sources = self.all_sources()
        for rows, many in (("streams", streams), ("packed", batch_size - streams)):
            if sources and many and not any(s.rows in ("all", rows) and s.weight > 0 for s in sources):
                raise ConfigError(f"{many} rows are {rows}, but no source is for them; see stream_share and rows")
