"""The pass key task in the paper's format (paper section 5): batches, and a curriculum.

A document tells a key of five digits, goes on with filler, and asks for the key at its end. How
long the filler is decides how many times the memory must carry the key over a block's edge.
"""

import dataclasses
import functools

import numpy as np

from famjax.config import ConfigError, PassKeyConfig
from famjax.data.batch import Batch, Progress
from famjax.data.passkey_text import Writer, random_key
from famjax.data.vocabulary import ByteVocabulary, Vocabulary

# Exact match is averaged over about this many recent documents before a stage opens.
RECENT_DOCUMENTS = 64


@dataclasses.dataclass(frozen=True)
class PassKeyTask:
    """Batches of pass key documents, several to a row, each starting at a block's edge.

    A row takes a document of the stage first, then shorter ones while they fit: whatever the stage,
    a batch has the same shape, so the step compiles once.

    Targets of a row: for each of its documents room for an answer and a mention of one token a digit, then other text.
    A key that has fewer tokens leaves room, of weight 0.
    """

    config: PassKeyConfig
    sequence_length: int
    block_size: int
    batch_size: int
    vocab_size: int
    seed: int
    vocabulary: Vocabulary = dataclasses.field(default_factory=ByteVocabulary)
    bos: bool = True
    continues = False
    observes = True

    def __post_init__(self) -> None:
        self.config.validate()
        if not self.stages:
            needed = self._blocks_for(self._longest(self.config.stages[0])) * self.block_size
            raise ConfigError(
                f"sequence length {self.sequence_length} is too short for a pass key document with "
                f"{self.config.stages[0]} blocks of filler; use at least {needed}"
            )
        self.writer.check(self.vocab_size)

    @functools.cached_property
    def writer(self) -> Writer:
        """What writes the documents."""
        return Writer(self.vocabulary, self.bos)

    @functools.cached_property
    def _overhead(self) -> int:
        """Tokens of a document without its filler, at most."""
        return self.writer.most_overhead(self.config.key_digits)

    @property
    def rows(self) -> range:
        """Every process makes the whole batch: `observe` needs all of it, and it costs little."""
        return range(self.batch_size)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages whose longest document fits into a row; the curriculum ends with the last of them."""
        rows = self.sequence_length // self.block_size
        return tuple(stage for stage in self.config.stages if self._blocks_for(self._longest(stage)) <= rows)

    def start(self) -> Progress:
        """Only the first stage is open."""
        return {"open_stages": 1, "exact_match": 0.0, "exact_match_newest": 0.0}

    def batch(self, step: int, progress: Progress) -> tuple[Batch, Progress]:
        """The batch of a step: a pure function of the seed, the step and the open stages."""
        rng = np.random.default_rng([self.seed, step])
        rows = [self._row(rng, progress["open_stages"]) for _ in range(self.batch_size)]
        return Batch(*(np.stack(field) for field in zip(*rows, strict=True))), progress

    def observe(self, progress: Progress, batch: Batch, correct: np.ndarray) -> Progress:
        """Averages exact match, of all documents and of the newest stage's, and opens the next stage."""
        progress = dict(progress)
        newest = self._stage_range(progress["open_stages"] - 1)[0]
        for row, right in zip(self._answers(batch), correct, strict=True):
            for columns, filler in row:
                hit = float(right[columns].all())
                names = ["exact_match"] + ["exact_match_newest"] * (filler >= newest)
                for name in names:
                    progress[name] += (hit - progress[name]) / RECENT_DOCUMENTS
        if progress["exact_match_newest"] >= self.config.open_at and progress["open_stages"] < len(self.stages):
            progress["open_stages"] += 1
            progress["exact_match_newest"] = 0.0
        return progress

    def report(self, progress: Progress) -> dict[str, float]:
        """Exact match of recent training documents, and the filler blocks that the open stages reach."""
        return {
            "exact_match": round(progress["exact_match"], 4),
            "filler_blocks": self.stages[progress["open_stages"] - 1],
        }

    # --- rows -------------------------------------------------------------------------------------

    def _blocks_for(self, filler_tokens: int) -> int:
        return -(-(filler_tokens + self._overhead) // self.block_size)

    def _longest(self, stage_blocks: int) -> int:
        """Filler tokens of a stage at most: its blocks, with every alignment."""
        return (stage_blocks + 1) * self.block_size - 1

    def _stage_range(self, stage: int) -> tuple[int, int]:
        """Filler tokens [least, most] of a stage; each block count with all its alignments."""
        first = self.stages[stage - 1] + 1 if stage else 0
        return first * self.block_size, self._longest(self.stages[stage])

    def _draw(self, rng: np.random.Generator, open_stages: int, free_blocks: int) -> tuple[str, int] | None:
        """Key and filler tokens of the next document, or None if not even the shortest fits."""
        digits = self.config.key_digits
        most = free_blocks * self.block_size - self._overhead
        stages = [s for s in range(open_stages) if self._stage_range(s)[0] <= most]
        if not stages:
            return None
        if stages[-1] == open_stages - 1 and rng.random() < self.config.newest_share:
            stage = stages[-1]
        else:
            stage = int(rng.choice(stages))
        least, longest = self._stage_range(stage)
        most = min(longest, most)
        filler = int(rng.integers(least, most + 1))
        before = int(rng.integers(1, max(digits, 2))) if rng.random() < self.config.straddle_share else 0
        key = random_key(rng, digits)
        if before:
            near = self._straddle(key, filler, before)
            filler = next((n for n in near if least <= n <= most), filler)
        return key, filler

    def _straddle(self, key: str, filler: int, tokens_before: int) -> tuple[int, int]:
        """The nearest longer and shorter filler with so many tokens of the answer before a block's edge.

        An answer of fewer tokens has all but its last one there; one of a single token cannot straddle, and ends there.
        """
        tokens = self.writer.answer_tokens(key)
        first = self.writer.overhead(key) - tokens + filler
        longer = filler + (-min(tokens_before, max(tokens - 1, 1)) - first) % self.block_size
        return longer, longer - self.block_size

    def _row(self, rng: np.random.Generator, open_stages: int) -> tuple[np.ndarray, ...]:
        S, config = self.block_size, self.config
        tokens = np.zeros(self.sequence_length, np.int32)
        starts = np.zeros(self.sequence_length // S, bool)
        weighted: list[tuple[int, float]] = []
        plain: list[np.ndarray] = []
        block, count = 0, 0
        while (drawn := self._draw(rng, open_stages, len(starts) - block)) is not None:
            doc = self.writer.document(*drawn)
            begin, starts[block] = block * S, True
            count = begin + len(doc.tokens)
            tokens[begin:count] = doc.tokens
            for where, weight in ((doc.answer, 1.0), (doc.mention, config.mention_weight)):
                weighted += [(begin + int(i), weight) for i in where]
                weighted += [(0, 0.0)] * (config.key_digits - len(where))
            rest = np.setdiff1d(np.arange(1, len(doc.tokens)), np.concatenate([doc.answer, doc.mention]))
            plain.append(begin + rest)
            block += self._blocks_for(drawn[1])
        sample = rng.choice(np.concatenate(plain), config.text_tokens, replace=False)
        weighted += [(int(i), config.text_weight) for i in sample]
        predicted = np.zeros(self._most_targets, np.int64)
        weights = np.zeros(self._most_targets, np.float32)
        predicted[: len(weighted)] = [i for i, _ in weighted]
        weights[: len(weighted)] = [w for _, w in weighted]
        positions = np.maximum(predicted - 1, 0)  # a token is predicted at the position before it
        return tokens, np.int32(count), starts, positions.astype(np.int32), tokens[positions + 1], weights

    @property
    def _most_targets(self) -> int:
        documents = (self.sequence_length // self.block_size) // self._blocks_for(0)
        return documents * 2 * self.config.key_digits + self.config.text_tokens

    def _answers(self, batch: Batch) -> list[list[tuple[np.ndarray, int]]]:
        """Of each row, of each document: the columns of its answer, and its tokens of filler."""
        digits = self.config.key_digits
        found = []
        for starts, targets, positions, weights in zip(
            batch.starts, batch.targets, batch.positions, batch.weights, strict=True
        ):
            row = []
            for i, block in enumerate(np.flatnonzero(starts)):
                room = np.arange(2 * digits * i, 2 * digits * i + digits)
                columns = room[weights[room] > 0]
                length = int(positions[columns[-1]]) + 2 - int(block) * self.block_size
                row.append((columns, length - self.writer.overhead(self.writer.key_of(targets[columns]))))
            found.append(row)
        return found
