"""Documents that end with a question after filler: a curriculum over the filler, and their layout in rows.

The pass key (`passkey.py`) and bAbI (`babi_task.py`) share this module. A row has several documents, each of which
starts at a block boundary. A batch has the same shape in every stage, so the step compiles once.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from famjax.config import ConfigError
from famjax.config.curriculum import CurriculumConfig
from famjax.data.batch import Progress

# Exact match is a running mean over about this many documents; it determines when the next stage opens.
RECENT_DOCUMENTS = 64


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Draws lengths of filler, and opens longer ones.

    Attributes:
      config: settings of the curriculum.
      block_size: S.
      stages: those of `config.stages` that fit into a row; the curriculum ends with the last of them.
    """

    config: CurriculumConfig
    block_size: int
    stages: tuple[int, ...]

    @classmethod
    def of(cls, config: CurriculumConfig, block_size: int, fits: Callable[[int], bool]) -> "Curriculum":
        """Returns the curriculum of the stages whose longest filler, in tokens, `fits` into a row."""
        stages = tuple(stage for stage in config.stages if fits(longest_filler(stage, block_size)))
        return cls(config, block_size, stages)

    def left_out(self, length: int) -> str:
        """Describes the stages that do not fit into rows of this many tokens; empty if all do."""
        if self.stages == tuple(self.config.stages):
            return ""
        return f"rows of {length} tokens hold at most {self.stages[-1]} blocks of filler; longer stages are left out"

    def range_of(self, stage: int) -> tuple[int, int]:
        """Returns the least and the most filler of a stage (from 0), in tokens.

        Both ends are included, and every number of blocks occurs with every offset relative to the block boundaries.
        """
        first = self.stages[stage - 1] + 1 if stage else 0
        return first * self.block_size, longest_filler(self.stages[stage], self.block_size)

    def lengths(self, rng: np.random.Generator, open_stages: int, most: int) -> tuple[int, int] | None:
        """Draws an open stage; returns the least and the most filler of it that fits into `most` tokens, or None if not
        even the first stage fits."""
        stages = [s for s in range(open_stages) if self.range_of(s)[0] <= most]
        if not stages:
            return None
        if stages[-1] == open_stages - 1 and rng.random() < self.config.newest_share:
            stage = stages[-1]
        else:
            stage = int(rng.choice(stages))
        least, longest = self.range_of(stage)
        return least, min(longest, most)

    def tokens_before(self, rng: np.random.Generator, tokens: int) -> int | None:
        """Draws `before` of `straddle` for an answer of `tokens` tokens; None: its filler is left as drawn."""
        if rng.random() >= self.config.straddle_share:
            return None
        return int(rng.integers(1 - self.config.straddle_behind, max(tokens, 2)))

    def start(self) -> Progress:
        """Returns the progress before the first step: only the first stage is open."""
        return {"open_stages": 1, "exact_match": 0.0, "exact_match_newest": 0.0}

    def check(self, progress: Progress) -> None:
        """Raises `ConfigError` if more stages are open in the progress of a training to resume than there are."""
        if progress["open_stages"] > len(self.stages):
            raise ConfigError(
                f"the training to resume has opened {progress['open_stages']} stages, but {len(self.stages)} of stages "
                f"{tuple(self.config.stages)} fit into a row; use its stages and row length, or start in an empty "
                f"MODEL_DIR from its weights"
            )

    def observe(self, progress: Progress, documents: Iterable[tuple[int, float]]) -> Progress:
        """Returns the progress after a batch, with the running exact match of all documents and of the newest stage. If
        that of the newest stage reached `open_at`, the next stage is open. `documents` has for each document of the
        batch (tokens of filler, 1 for an exact match and 0 otherwise)."""
        progress = dict(progress)
        newest = self.range_of(progress["open_stages"] - 1)[0]
        for filler, hit in documents:
            for name in ["exact_match"] + ["exact_match_newest"] * (filler >= newest):
                progress[name] += (hit - progress[name]) / RECENT_DOCUMENTS
        if progress["exact_match_newest"] >= self.config.open_at and progress["open_stages"] < len(self.stages):
            progress["open_stages"] += 1
            progress["exact_match_newest"] = 0.0
        return progress

    def report(self, progress: Progress) -> dict[str, float]:
        """Returns the recent exact match of training documents, and the filler blocks of the newest open stage."""
        return {
            "exact_match": round(progress["exact_match"], 4),
            "filler_blocks": self.stages[progress["open_stages"] - 1],
        }


def with_answer(stored: Mapping[str, Any], key: str, hit: float) -> dict[str, Any]:
    """Returns {key: [exact match over recent documents, their number, at most `RECENT_DOCUMENTS`]}, updated by one
    answer, correct if `hit`."""
    mean, count = stored.get(key, (0.0, 0))
    count = min(count + 1, RECENT_DOCUMENTS)
    return {**stored, key: [mean + (hit - mean) / count, count]}


def longest_filler(stage_blocks: int, block_size: int) -> int:
    """Returns the maximum filler tokens of a stage: its blocks, with every alignment."""
    return (stage_blocks + 1) * block_size - 1


def straddle(first: int, filler: int, tokens: int, before: int, block_size: int) -> tuple[int, int]:
    """Returns the two nearest lengths of filler, one at least as long and one shorter, with which an answer straddles a
    block boundary.

    Args:
      first: index of the answer's first token in its document, with the present filler.
      filler: tokens of the present filler.
      tokens: tokens of the answer.
      before: number of tokens of the answer before the boundary. An answer with no more tokens has all but its last one
        there; one with a single token ends there. If negative, -before tokens of other text lie between the boundary
        and the answer.
    """
    longer = filler + (-min(before, max(tokens - 1, 1)) - first) % block_size
    return longer, longer - block_size


class Marked(NamedTuple):
    """Tokens of a document that carry a loss.

    Attributes:
      where: int [m], indices of the tokens; those below 1 are not predicted.
      weight: loss weight, of all or of each.
      slots: number of targets of the row that are reserved for them; unused ones have weight 0.
    """

    where: np.ndarray
    weight: float | np.ndarray
    slots: int


class Placed(NamedTuple):
    """A document, or the rest of one, for a row.

    Attributes:
      tokens: int32 [n], from a block boundary on.
      starts: whether it starts with the initial memory.
      marked: the tokens that carry a loss, in the order of their targets.
    """

    tokens: np.ndarray
    starts: bool
    marked: tuple[Marked, ...]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Lays out documents in rows.

    Attributes:
      length: T, tokens per row, a multiple of the block size.
      block_size: S.
      targets: W, maximum targets per row.
      text_tokens, text_weight: number and loss weight of random tokens of the other text.
    """

    length: int
    block_size: int
    targets: int
    text_tokens: int
    text_weight: float

    def row(self, rng: np.random.Generator, parts: Sequence[Placed]) -> tuple[np.ndarray | np.int32, ...]:
        """Returns the fields of `Batch` for one row with the documents `parts`, in order, without `kept`."""
        S = self.block_size
        tokens = np.zeros(self.length, np.int32)
        starts = np.zeros(self.length // S, bool)
        weighted: list[tuple[int, float]] = []
        plain: list[np.ndarray] = []
        block, count = 0, 0
        for part in parts:
            begin, starts[block] = block * S, part.starts
            count = begin + len(part.tokens)
            tokens[begin:count] = part.tokens
            for where, weight, slots in part.marked:
                each = np.broadcast_to(weight, where.shape)
                some = [(begin + int(i), float(w)) for i, w in zip(where, each, strict=True) if i > 0]
                weighted += some + [(0, 0.0)] * (slots - len(some))
            marked = np.concatenate([one.where for one in part.marked])
            plain.append(begin + np.setdiff1d(np.arange(1, len(part.tokens)), marked))
            block += -(-len(part.tokens) // S)
        rest = np.concatenate(plain)
        sample = rng.choice(rest, min(self.text_tokens, len(rest)), replace=False)
        weighted += [(int(i), self.text_weight) for i in sample]
        predicted = np.zeros(self.targets, np.int64)
        weights = np.zeros(self.targets, np.float32)
        predicted[: len(weighted)] = [i for i, _ in weighted]
        weights[: len(weighted)] = [w for _, w in weighted]
        positions = np.maximum(predicted - 1, 0)  # a token is predicted at the position before it
        return tokens, np.int32(count), starts, positions.astype(np.int32), tokens[positions + 1], weights
