"""Prefills one prompt, one window of up to `BLOCKS_PER_CALL` blocks per device call.

Whole blocks are read first, up to the last block boundary ("edge"), then the rest. So prefill from an edge, with a
memory of the prefix cache, computes exactly what prefill from the beginning computes.
"""

from typing import Any

import numpy as np

from famjax.infer.prefill import BLOCKS_PER_CALL
from famjax.infer.rows import Scored, read_rows
from famjax.infer.session import Session
from famjax.infer.settings import RECENT
from famjax.serve.batch import program_top
from famjax.serve.jobs import Job
from famjax.serve.prefix_cache import Plan, PrefixCache


def widths(block_size: int) -> list[int]:
    """Returns the window sizes, in tokens, for which programs are compiled. Two of them are smaller than a block, so
    that the rest after whole blocks is not padded to a block."""
    sizes = {block_size // 8, block_size // 2, block_size, BLOCKS_PER_CALL * block_size}
    return sorted(sizes - {0})


class Reading:
    """The prefill of a job's prompt.

    Args:
      job, plan: the job; the prompt's cached prefix, and the edges to cache.
      begin: session of one row before the prompt: the job's `start`, or an empty one. It is donated.
      model, block_size: (graphdef, parameters) of the model, from `nnx.split`, and tokens per block.

    Attributes:
      handed_on: whether the job has finished or its rows have joined the batch.
    """

    def __init__(self, job: Job, begin: Session, plan: Plan, model: tuple[Any, Any], block_size: int):
        self.job, self.plan = job, plan
        self._graphdef, self._params = model
        self._block_size = block_size
        before = np.asarray(begin.recent[0])
        pending = before[-1:] if before[-1] >= 0 else before[:0]
        # The tokens to read, followed by the last token, which stays pending.
        self._text = np.concatenate([pending, job.ask.tokens]).astype(np.int32)
        self._recent = np.concatenate([before, job.ask.tokens[-RECENT:]])[-RECENT:].astype(np.int32)
        self._memory = begin.memory if plan.memory is None else plan.memory
        self._position = int(self._memory.position[0])
        self._at = plan.begin  # number of tokens of `_text` that have been read
        self._top = program_top(job.ask.top or 0) if job.ask.score_prompt else None
        self._scores: list[Scored] = []
        self.handed_on = False

    @property
    def finished(self) -> bool:
        """Whether all tokens but the pending one have been read."""
        return self._at >= len(self._text) - 1

    def window(self, cache: PrefixCache) -> int:
        """Reads up to one window, and caches the memory after it if the plan says so. Returns the number of tokens."""
        take = self._take()
        if take:
            width = next(width for width in widths(self._block_size) if width >= take)
            tokens, following = np.zeros((2, 1, width), np.int32)
            tokens[0, :take] = self._text[self._at : self._at + take]
            following[0, :take] = self._text[self._at + 1 : self._at + 1 + take]
            scores, self._memory = read_rows(
                self._graphdef, self._params, tokens, following, np.array([take], np.int32), self._memory, self._top
            )
            if scores is not None:
                self._scores.append(Scored(*(np.asarray(x)[0, :take] for x in scores)))
            self._at += take
            self._position += take
            self._memory.position.block_until_ready()
        if (name := self.plan.keep.get(self._at)) is not None:
            cache.put(name, self._memory)
        return take

    def _take(self) -> int:
        """Returns the number of tokens of the next window. It ends at the next edge to cache or earlier, and at a block
        boundary while whole blocks are left. A rest of slightly more than half a block is read in two windows."""
        S, left = self._block_size, len(self._text) - 1 - self._at
        to_last_edge = (self._position + left) // S * S - self._position
        if to_last_edge <= 0:
            to_last_edge = S // 2 if 0 < left - S // 2 <= S // 8 else left
        to_window = BLOCKS_PER_CALL * S - self._position % S
        to_kept = min((edge - self._at for edge in self.plan.keep if edge > self._at), default=left)
        return max(min(to_window, to_kept, to_last_edge), 0)

    def session(self) -> Session:
        """Returns the session of one row after the prompt, if `finished`. Its memory is not copied."""
        return Session(self._memory, self._recent[None])

    def scores(self) -> Scored | None:
        """Returns the scores of the prompt's tokens, see `jobs.Read.scores`."""
        if self._top is None:
            return None
        if not self._scores:
            none = np.zeros((0, self._top), np.int32)
            return Scored(np.zeros(0, np.float32), none, none.astype(np.float32))
        return Scored(*(np.concatenate(parts) for parts in zip(*self._scores, strict=True)))
