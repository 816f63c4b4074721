"""The pass key task in the paper's format (paper section 5): batches, and a curriculum.

A document states a key of five digits, continues with filler, and asks for the key at its end. The length of the filler
determines across how many block boundaries the memory must carry the key.

A document may be a stream, which continues across training steps. With blocks of 4, the statement of the key "tttt",
filler "f", the question "q" and its answer "a":

    step 0    tttt|ffff|ffqq|qaa.     starts  1 0 0 0    kept  2 blocks: the memory before the question
    step 1    ffff|ffff|ffff|fqqq|aa  starts  0 0 0 0 0  the same key; the filler continues from the kept memory

So the model is trained to recall one key after more and more updates of the memory. Earlier questions and answers,
which would state the key again, are in none of these memories.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from famjax.config import ConfigError, PassKeyConfig
from famjax.data.batch import Batch, Progress
from famjax.data.curriculum import Curriculum, Marked, Placed, Rows, longest_filler, straddle, with_answer
from famjax.data.passkey_text import Document, Writer, random_key
from famjax.data.vocabulary import ByteVocabulary, Vocabulary

# Upper bound, in blocks, on the filler before a late key.
LATE_BLOCKS = 2
# The state of a stream, as JSON: its `key`, the tokens of filler before the key is stated (`lead`), whether it has an
# introduction (`introduced`), the tokens that the carried memory has read (`read`), the number of blocks at which it
# ends (`until`), and the tokens of filler before its last question (`filler`). {}: it has ended, and its memory is
# reused for another key; None: its memory is discarded.
Stream = dict[str, Any]


class _Drawn(NamedTuple):
    """The parameters of a document, see `Writer.document`."""

    key: str
    filler: int
    lead: int = 0
    introduced: bool = True


class _Part(NamedTuple):
    """The part of a document in a row, which starts at a block boundary: all of it, or the rest after `read` tokens."""

    doc: Document
    drawn: _Drawn
    read: int

    @property
    def starts(self) -> bool:
        """Whether it starts with the initial memory."""
        return self.drawn.introduced and not self.read

    @property
    def tokens(self) -> np.ndarray:
        return self.doc.tokens[self.read :]


@dataclasses.dataclass(frozen=True)
class PassKeyTask:
    """Batches of pass key documents, several per row, each starting at a block boundary.

    A row gets documents of the open stages while they fit. A batch has the same shape in every stage, so the step
    compiles once. In the first rows, a share of `PassKeyConfig.stream_share`, the first document is a stream.

    Targets of a row: for each of its documents an answer and a mention with one token per digit, then other text. A key
    with fewer tokens, and the mention of a stream that continues, leave targets of weight 0.

    Attributes:
      sequence_length, block_size, batch_size: T, S, B.
      vocab_size: vocabulary size of the model.
      vocabulary: encodes the documents.
      bos: begin documents with the vocabulary's BOS token, if it has one.

    Raises:
      ConfigError: a setting cannot work, a row is too short for a document of the first stage, or the vocabulary does
        not fit the text or the model.
    """

    config: PassKeyConfig
    sequence_length: int
    block_size: int
    batch_size: int
    vocab_size: int
    seed: int
    vocabulary: Vocabulary = dataclasses.field(default_factory=ByteVocabulary)
    bos: bool = True
    observes = True

    def __post_init__(self) -> None:
        self.config.validate()
        if not self.stages:
            needed = self._blocks_for(longest_filler(self.config.stages[0], self.block_size)) * self.block_size
            raise ConfigError(
                f"sequence length {self.sequence_length} is too short for a pass key document with "
                f"{self.config.stages[0]} blocks of filler; use at least {needed}"
            )
        self.writer.check(self.vocab_size)

    @functools.cached_property
    def writer(self) -> Writer:
        """The writer of the documents."""
        return Writer(self.vocabulary, self.bos)

    @functools.cached_property
    def _overhead(self) -> int:
        """The maximum number of tokens of a document without its filler."""
        return self.writer.most_overhead(self.config.key_digits)

    @property
    def rows(self) -> range:
        """All rows: every process produces the whole batch, since `observe` needs all of it. This is cheap."""
        return range(self.batch_size)

    @property
    def _streams(self) -> int:
        return self.config.stream_rows(self.batch_size)

    @functools.cached_property
    def curriculum(self) -> Curriculum:
        """The curriculum of the stages whose longest document fits into a row."""
        rows = self.sequence_length // self.block_size
        return Curriculum.of(self.config, self.block_size, lambda filler: self._blocks_for(filler) <= rows)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages of the curriculum."""
        return self.curriculum.stages

    def start(self) -> Progress:
        """Returns the progress before the first step: only the first stage is open, and no stream has started."""
        return self.curriculum.start() | ({"streams": [None] * self._streams, "by_age": {}} if self._streams else {})

    def batch(self, step: int, progress: Progress) -> tuple[Batch, Progress]:
        """Returns the batch of a step, a pure function of the seed, the step, the open stages and the streams, and the
        progress after it. Raises `ConfigError` if the progress belongs to a training with other stages or another
        number of streams."""
        self._check(progress)
        rng = np.random.default_rng([self.seed, step])
        progress = dict(progress)
        streams: list[Stream | None] = list(progress.get("streams", ()))
        rows = []
        for i in range(self.batch_size):
            parts = self._documents(rng, progress["open_stages"], streams[i] if i < len(streams) else None)
            kept = 0
            if i < len(streams):
                streams[i], kept = self._advance(rng, streams[i], parts[0])
            rows.append((*self._rows.row(rng, [self._placed(part) for part in parts]), np.int32(kept)))
        batch = Batch(*(np.stack(field) for field in zip(*rows, strict=True)))
        return (batch, progress | {"streams": streams}) if streams else (batch._replace(kept=None), progress)

    def observe(self, progress: Progress, batch: Batch, correct: np.ndarray) -> Progress:
        """Returns the progress after a step: with the running exact match of all documents and of the newest stage, and
        with the next stage open if that of the newest reached `open_at`. Streams end that have reached their length or,
        if gated, were answered incorrectly. `correct`: bool [B, W]."""
        streams: list[Stream | None] = list(progress.get("streams", ()))
        by_age, documents = progress.get("by_age", {}), []
        for i, (row, right) in enumerate(zip(self._answers(batch, streams), correct, strict=True)):
            hits = [float(right[columns].all()) for columns, _ in row]
            documents += [(filler, hit) for hit, (_, filler) in zip(hits, row, strict=True)]
            if i < len(streams):
                by_age = self._by_age(by_age, row[0][1], hits[0])
                streams[i] = self._after_answer(streams[i], hits[0])
        after = self.curriculum.observe(progress, documents)
        return after | ({"streams": streams, "by_age": by_age} if streams else {})

    def report(self, progress: Progress) -> dict[str, float]:
        """Returns the recent exact match of training documents, and the filler blocks of the newest open stage; for
        streams also the recall by blocks of filler before the question, per power of two, in descending order."""
        recall = {f"recall/{age}_blocks": round(mean, 4) for age, (mean, _) in progress.get("by_age", {}).items()}
        return self.curriculum.report(progress) | recall

    def _check(self, progress: Progress) -> None:
        self.curriculum.check(progress)
        had = len(progress.get("streams", ()))
        if had != self._streams:
            raise ConfigError(
                f"the training to resume had {had} rows of streams, stream_share {self.config.stream_share:g} of "
                f"{self.batch_size} rows is {self._streams}; use its stream_share and batch size, or start in an empty "
                f"MODEL_DIR from its weights"
            )

    # --- streams ----------------------------------------------------------------------------------

    def _advance(self, rng: np.random.Generator, stream: Stream | None, part: _Part) -> tuple[Stream, int]:
        """Returns the stream after a part of it with its question, and the number of the part's blocks that the carried
        memory reads (`Batch.kept`)."""
        S, key = self.block_size, self.writer.key_of(part.doc.tokens[part.doc.answer])
        if not stream:
            # A density of 1 / n^2 up to the longest: about as many questions per doubling, fewer in the last ones.
            shortest, longest = self.stages[-1], max(self.config.stream_blocks, self.stages[-1])
            stream = {"key": key, "until": round(shortest / rng.uniform(shortest / longest, 1.0))}
            stream |= {"lead": part.drawn.lead, "introduced": part.drawn.introduced}
        kept = (len(part.doc.tokens) - self.writer.question_tokens(key)) // S - part.read // S
        return stream | {"read": part.read + kept * S, "filler": part.drawn.filler}, kept

    def _after_answer(self, stream: Stream | None, hit: float) -> Stream | None:
        """Returns the stream after an answer, correct if `hit`. It ends if its memory has not read any block yet."""
        if stream is None or not stream["read"] or (self.config.stream_gated and not hit):
            return None
        if stream["read"] < stream["until"] * self.block_size:
            return stream
        return {} if self.config.stream_told_again else None

    def _by_age(self, by_age: dict[str, list[Any]], filler: int, hit: float) -> dict[str, list[Any]]:
        """Returns `by_age`, updated by one answer: (exact match over recent documents, their number) by blocks of
        filler, rounded down to a power of two."""
        age = str(2 ** int(math.log2(max(filler // self.block_size, 1))))
        return dict(sorted(with_answer(by_age, age, hit).items(), key=lambda item: -int(item[0])))

    # --- rows -------------------------------------------------------------------------------------

    def _blocks_for(self, filler_tokens: int) -> int:
        return -(-(filler_tokens + self._overhead) // self.block_size)

    def _draw(
        self, rng: np.random.Generator, open_stages: int, free_blocks: int, stream: Stream | None = None
    ) -> _Drawn | None:
        """Draws the next document; None if not even the shortest one fits.

        For a `stream` that continues: its key, and its filler from the beginning, of which the new part is as long as
        another document's filler. After a stream that has ended: another key, without an introduction.
        """
        digits = self.config.key_digits
        most = free_blocks * self.block_size - self._overhead
        lead = self._lead(rng, stream, most)
        lengths = self.curriculum.lengths(rng, open_stages, most - lead)
        if lengths is None:
            return None
        least, most = lengths
        filler = int(rng.integers(least, most + 1))
        before = self.curriculum.tokens_before(rng, digits)
        drawn, old = _Drawn(random_key(rng, digits), filler, lead, stream is None), 0
        if stream:
            drawn = _Drawn(stream["key"], filler, stream.get("lead", 0), stream.get("introduced", True))
            stated = drawn.lead + self.writer.telling_tokens(drawn.key, drawn.introduced)
            old = max(stream["read"] - stated, 0)
        if before is not None:
            near = self._straddle(drawn._replace(filler=old + filler), before)
            filler = next((n - old for n in near if least <= n - old <= most), filler)
        return drawn._replace(filler=old + filler)

    def _lead(self, rng: np.random.Generator, stream: Stream | None, most: int) -> int:
        """Draws the tokens of filler before the key is stated; 0 if it was stated already, or is stated first."""
        late = self.config.late_share
        if stream or (stream is None and not (late and rng.random() < late)):
            return 0
        return int(rng.integers(0, max(min(LATE_BLOCKS * self.block_size, most - self.curriculum.range_of(0)[0]), 1)))

    def _straddle(self, drawn: _Drawn, tokens_before: int) -> tuple[int, int]:
        """Returns the nearest lengths of filler with which the answer straddles a block boundary, see `straddle`."""
        tokens = self.writer.answer_tokens(drawn.key)
        first = drawn.lead + self.writer.overhead(drawn.key, drawn.introduced) - tokens + drawn.filler
        return straddle(first, drawn.filler, tokens, tokens_before, self.block_size)

    def _documents(self, rng: np.random.Generator, open_stages: int, stream: Stream | None) -> list[_Part]:
        """Draws the documents of a row, the stream first."""
        parts: list[_Part] = []
        free = self.sequence_length // self.block_size
        if stream == {} and rng.random() >= self.config.stream_told_again:
            stream = None
        while (drawn := self._draw(rng, open_stages, free, stream)) is not None:
            parts.append(_Part(self.writer.document(*drawn), drawn, stream["read"] if stream else 0))
            free -= -(-len(parts[-1].tokens) // self.block_size)
            stream = None
        return parts

    def _placed(self, part: _Part) -> Placed:
        """Returns the tokens of a part, with the loss on its answer and its mention."""
        digits, doc = self.config.key_digits, part.doc
        answer = Marked(doc.answer - part.read, 1.0, digits)
        mention = Marked(doc.mention - part.read, self.config.mention_weight, digits)
        return Placed(part.tokens, part.starts, (answer, mention))

    @functools.cached_property
    def _rows(self) -> Rows:
        config, blocks = self.config, self.sequence_length // self.block_size
        documents = blocks // self._blocks_for(0)
        if self._streams:  # a stream that continues does not state its key, so it may be shorter
            documents = 1 + (blocks - 1) // self._blocks_for(0)
        targets = documents * 2 * config.key_digits + config.text_tokens
        return Rows(self.sequence_length, self.block_size, targets, config.text_tokens, config.text_weight)

    def _answers(self, batch: Batch, streams: Sequence[Stream | None] = ()) -> list[list[tuple[np.ndarray, int]]]:
        """Returns for each document of each row the indices of its answer among the W targets, and its tokens of
        filler."""
        digits = self.config.key_digits
        assert batch.positions is not None  # see `Rows`
        found = []
        for i, (starts, targets, positions, weights) in enumerate(
            zip(batch.starts, batch.targets, batch.positions, batch.weights, strict=True)
        ):
            row = []
            documents = int(starts.sum()) + (not starts[0])
            for n in range(documents):
                room = np.arange(2 * digits * n, 2 * digits * n + digits)
                columns = room[weights[room] > 0]
                filler = int(positions[columns[0]] - positions[room + digits].max())
                filler -= self.writer.between(self.writer.key_of(targets[columns]))
                stream = streams[i] if n == 0 and i < len(streams) else None
                row.append((columns, stream["filler"] if stream else filler))
            found.append(row)
        return found
