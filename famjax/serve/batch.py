"""Continuous batching: rows, whose memories have a fixed size, join and leave the batch between two decode calls."""

import numpy as np
from flax import nnx

from famjax.infer.codec import Stream
from famjax.infer.decode import NON_FINITE, TOKENS_PER_CALL, stop_array
from famjax.infer.rows import Scored, decode_rows
from famjax.infer.sampling import RowSampling
from famjax.infer.session import Session, join_rows, put_row, start, take_row
from famjax.infer.settings import RECENT
from famjax.nn.model import Transformer
from famjax.serve.jobs import Generated, Job

# Factor by which a batch grows (1, 4, 16, ... rows, up to its maximum) and shrinks: few sizes, so few programs.
GROWTH = 4
# Numbers of alternatives per token that programs with scores compute.
TOPS = (5, 20)
_STOPS_AT_ONCE = 8


def batch_sizes(most: int) -> list[int]:
    """Returns the sizes that a batch has: it grows and shrinks along this list, and each size is one program."""
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(sizes[-1] * GROWTH, most))
    return sizes


def program_top(wanted: int) -> int:
    """Returns the number of alternatives that a program computes if `wanted` are needed (at most `TOPS[-1]`)."""
    return next(top for top in TOPS if top >= wanted)


class Row:
    """A row of the batch: one sample (0, 1, ...) of a job, and the incremental decoder of its text."""

    def __init__(self, job: Job, sample: int, stream: Stream):
        self.job, self.sample, self.stream = job, sample, stream
        self.stops = stop_array(job.ask.stops)

    @property
    def made(self) -> int:
        """Number of tokens generated so far."""
        return self.stream.taken

    @property
    def limit(self) -> int:
        """Maximum number of tokens to generate in the next call."""
        left = self.job.ask.max_tokens - self.made
        return min(left, 1) if self.job.ask.by_token else left


class Batch:
    """The running batch, of at most `most` rows, which are at different positions of different texts."""

    def __init__(self, model: Transformer, most: int):
        self._model, self.most = model, most
        self._graphdef, self._params = nnx.split(model)
        self._session: Session | None = None
        self._rows: list[Row | None] = []

    @property
    def rows(self) -> list[Row]:
        """The rows that generate tokens, without free slots."""
        return [row for row in self._rows if row is not None]

    def join(self, row: Row, session: Session) -> None:
        """Adds a row that continues `session`, which has one row and is not donated. Grows the batch if it is full."""
        if None not in self._rows:
            self._resize(min(size for size in batch_sizes(self.most) if size > len(self._rows)))
        slot = self._rows.index(None)
        assert self._session is not None
        self._session = put_row(self._session, slot, session)
        self._rows[slot] = row

    def leave(self, row: Row) -> None:
        """Frees a row's slot. Shrinks the batch if it is mostly empty."""
        self._rows[self._rows.index(row)] = None
        count = len(self.rows)
        smaller = max((size for size in batch_sizes(self.most) if size < len(self._rows)), default=0)
        if count == 0:
            self.clear()
        elif count * 2 <= smaller:  # at most half of the smaller batch, so that the batch is not resized at every step
            self._resize(smaller)

    def clear(self) -> None:
        """Removes all rows, and frees their memories."""
        self._session, self._rows = None, []

    def session_of(self, row: Row) -> Session:
        """Returns a copy of a row's session, with one row."""
        assert self._session is not None
        return take_row(self._session, self._rows.index(row))

    def _resize(self, size: int) -> None:
        kept = self.rows
        sessions = [self.session_of(row) for row in kept]
        if size > len(kept):
            sessions.append(start(self._model, size - len(kept)))
        self._session = join_rows(sessions)
        self._rows = [*kept, *[None] * (size - len(kept))]

    def decode(self, at_once: int) -> list[tuple[Row, Generated | None]]:
        """Makes one decode call, of up to `at_once` tokens per row. Returns each row with what it has generated; with
        None if its logits were NaN."""
        assert self._session is not None
        limit = np.array([min(row.limit, at_once) if row else 0 for row in self._rows], np.int32)
        before = np.array([row.made if row else 0 for row in self._rows], np.int32)
        tokens, scores, count, stopped, self._session = decode_rows(
            self._graphdef, self._params, self._session, limit, before, self._stops(), self._sampling(),
            room=TOKENS_PER_CALL, top=self._top(),
        )  # fmt: skip
        tokens, count, stopped = (np.asarray(x) for x in (tokens, count, stopped))
        scores = None if scores is None else Scored(*map(np.asarray, scores))
        made = []
        for slot, row in enumerate(self._rows):
            if row is not None:
                n = int(count[slot])
                some = None
                if scores is not None and (top := row.job.ask.top) is not None:
                    # Other rows may need more alternatives, in some calls.
                    best, best_logprob = scores.best[slot, :n, :top], scores.best_logprob[slot, :n, :top]
                    some = Scored(scores.logprob[slot, :n], best, best_logprob)
                made.append((row, self._generated(row, tokens[slot, :n], some, bool(stopped[slot]))))
        return made

    @staticmethod
    def _generated(row: Row, tokens: np.ndarray, scores: Scored | None, stopped: bool) -> Generated | None:
        if (tokens == NON_FINITE).any():
            return None
        before = row.made
        text = row.stream.feed(tokens, stopped)
        count = row.made - before  # tokens after a stop text are not part of the answer
        tokens = tokens[:count]
        scores = None if scores is None else Scored(*(x[:count] for x in scores))
        if row.stream.stopped:
            return Generated(row.sample, text, tokens, scores, "stop")
        if row.made < row.job.ask.max_tokens:
            return Generated(row.sample, text, tokens, scores)
        text += row.stream.finish()  # may find a stop text in the text that was held back
        return Generated(row.sample, text, tokens, scores, "stop" if row.stream.stopped else "length")

    def _top(self) -> int | None:
        wanted = [row.job.ask.top for row in self.rows if row.job.ask.top is not None]
        return program_top(max(wanted)) if wanted else None

    def _stops(self) -> np.ndarray:
        """Returns the stop sequences of each row, int32 [B, n, RECENT], right-aligned and padded with -1.

        n is a multiple of `_STOPS_AT_ONCE`, so that few programs are compiled.
        """
        number = max(len(row.stops) for row in self.rows)
        number = max(-(-number // _STOPS_AT_ONCE), 1) * _STOPS_AT_ONCE
        stops = np.full((len(self._rows), number, RECENT), -1, np.int32)
        for row, of_row in zip(self._rows, stops, strict=True):
            if row is not None and len(row.stops):
                of_row[: len(row.stops), RECENT - row.stops.shape[1] :] = row.stops
        return stops

    def _sampling(self) -> RowSampling:
        asks = [row.job.ask if row else None for row in self._rows]
        of = lambda name, default, dtype: np.array(
            [getattr(ask.sampling, name) if ask else default for ask in asks], dtype
        )
        return RowSampling(
            seed=np.array([ask.seed if ask else 0 for ask in asks], np.uint32),
            sample=np.array([row.sample if row else 0 for row in self._rows], np.int32),
            temperature=of("temperature", 0, np.float32),
            top_k=of("top_k", 0, np.int32),
            top_p=of("top_p", 1, np.float32),
            repetition_penalty=of("repetition_penalty", 1, np.float32),
        )
