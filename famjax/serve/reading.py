"""A prompt on its way into a memory: some blocks a call, in pieces that depend on the text alone.

Whole blocks are read first, up to the last edge, then what is left. So reading on from an edge, with a memory of the
prefix cache, computes what reading from the beginning computes.
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
    """Returns the numbers of tokens for which there is a program that reads a window. What is left after whole blocks
    has two small ones, so that it is not padded to a block."""
    sizes = {block_size // 8, block_size // 2, block_size, BLOCKS_PER_CALL * block_size}
    return sorted(sizes - {0})


class Reading:
    """A job's prompt.

    Args:
      job: its `start` is donated.
      begin: where the text stands: `start`, or a session that has read nothing.
      plan: what is at hand of a fresh text, and what to keep of it.
      model: the model, split: its graph and weights.
      block_size: tokens of a block.
    """

    def __init__(self, job: Job, begin: Session, plan: Plan, model: tuple[Any, Any], block_size: int):
        self.job, self.plan = job, plan
        self._graphdef, self._params = model
        self._block_size = block_size
        before = np.asarray(begin.recent[0])
        pending = before[-1:] if before[-1] >= 0 else before[:0]
        # What is read now, and the last token, which stays pending.
        self._text = np.concatenate([pending, job.ask.tokens]).astype(np.int32)
        self._recent = np.concatenate([before, job.ask.tokens[-RECENT:]])[-RECENT:].astype(np.int32)
        self._memory = begin.memory if plan.memory is None else plan.memory
        self._position = int(self._memory.position[0])
        self._at = plan.begin  # tokens of `_text` that have been read
        self._top = program_top(job.ask.top or 0) if job.ask.score_prompt else None
        self._scores: list[Scored] = []
        self.handed_on = False  # its session continues in the batch

    @property
    def finished(self) -> bool:
        """All but the pending token has been read."""
        return self._at >= len(self._text) - 1

    def window(self, cache: PrefixCache) -> int:
        """Reads up to a window; what the plan says is put into the cache. Returns the number of tokens."""
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
        """Tokens of the next window: to the next edge that is kept, of whole blocks while there are any. What is left
        is read in two windows if it is a little more than half a block."""
        S, left = self._block_size, len(self._text) - 1 - self._at
        to_last_edge = (self._position + left) // S * S - self._position
        if to_last_edge <= 0:
            to_last_edge = S // 2 if 0 < left - S // 2 <= S // 8 else left
        to_window = BLOCKS_PER_CALL * S - self._position % S
        to_kept = min((edge - self._at for edge in self.plan.keep if edge > self._at), default=left)
        return max(min(to_window, to_kept, to_last_edge), 0)

    def session(self) -> Session:
        """The session after the prompt. Its memory is given to the caller."""
        return Session(self._memory, self._recent[None])

    def scores(self) -> Scored | None:
        """Of the prompt's tokens, see `jobs.Read`."""
        if self._top is None:
            return None
        if not self._scores:
            none = np.zeros((0, self._top), np.int32)
            return Scored(np.zeros(0, np.float32), none, none.astype(np.float32))
        return Scored(*(np.concatenate(parts) for parts in zip(*self._scores, strict=True)))
