"""The engine thread, which owns the model. It prefills prompts in windows, and between windows it decodes for all rows.

An iteration of its loop drops cancelled jobs, admits waiting ones while rows are free, prefills up to one window of one
prompt, and makes one decode call for the batch. So a long prompt delays the tokens of other requests by one window at a
time, and if rows are free no request waits for another's whole answer. The memory of a row has a fixed size, so the
number of rows bounds memory use.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from famjax.infer.decode import PATIENCE, TOKENS_PER_CALL
from famjax.infer.session import start
from famjax.nn.model import Transformer
from famjax.serve.batch import Batch, Row
from famjax.serve.jobs import Ask, Done, Event, Failed, Full, Job, Read, Refused
from famjax.serve.prefix_cache import NOTHING, PrefixCache
from famjax.serve.reading import Reading
from famjax.storage.arrays import size_of

log = logging.getLogger("famjax.serve")

# Maximum tokens per row and decode call while prompts are being prefilled.
TOKENS_WHILE_READING = 16
_NOT_FINITE = "the model's scores are not finite; are its weights sound?"


class Engine:
    """Accepts jobs from any thread, and runs them in a thread of its own.

    Args:
      model: the model.
      max_rows, max_waiting: maximum numbers of rows of all running jobs, one per sample, and of waiting jobs.
      cache_bytes: maximum bytes of the prefix cache; 0 disables it.

    Attributes:
      read_tokens, made_tokens: numbers of tokens prefilled and generated since the start.
    """

    def __init__(self, model: Transformer, max_rows: int, max_waiting: int, cache_bytes: int):
        self.model, self.max_rows, self.max_waiting = model, max_rows, max_waiting
        self._split = nnx.split(model)
        self.cache = PrefixCache(cache_bytes, model.config.memory.block_size)
        self.read_tokens = self.made_tokens = 0
        self._wake = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._reading: deque[Reading] = deque()
        self._batch = Batch(model, max_rows)
        self._used = 0  # number of rows of all admitted jobs
        self._at_once = 8
        self._draining = self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- from any thread --------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the engine thread."""
        self._thread.start()

    def submit(self, ask: Ask, tell: Callable[[Event], None], more: bool = False) -> Job:
        """Queues a job of at most `max_rows` samples, and returns it. `more`: whether it belongs to a request that has
        been accepted; then it is refused only after `stop`. Raises `Refused` if the engine is draining or stopping;
        `Full` if the queue is full."""
        job = Job(ask, tell)
        with self._wake:
            if self._stopping or (self._draining and not more):
                raise Refused("the server is stopping")
            if len(self._waiting) >= self.max_waiting and not more:
                raise Full(f"{self._used} rows are in use and {len(self._waiting)} requests wait")
            self._waiting.append(job)
            self._wake.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """Cancels a job. Its rows are freed before the next device call. Events of the current call may still come."""
        with self._wake:
            job.cancelled = True
            self._wake.notify_all()

    def load(self) -> tuple[int, int]:
        """Returns (number of rows of running jobs, number of waiting jobs)."""
        with self._wake:
            return self._used, len(self._waiting)

    @property
    def draining(self) -> bool:
        """Whether new jobs are refused because the server is stopping."""
        return self._draining

    def drain(self, seconds: float, more: Callable[[], bool] = lambda: False) -> None:
        """Refuses new jobs and returns when all admitted jobs are done or `seconds` have passed. `more`: whether jobs
        that continue others (see `submit`) are still to come."""
        until = time.monotonic() + seconds
        with self._wake:
            self._draining = True
            busy = lambda: self._used or self._waiting or more()
            while self._thread.is_alive() and busy() and (left := until - time.monotonic()) > 0:
                self._wake.wait(min(left, 0.1))

    def stop(self) -> None:
        """Ends the thread after its current iteration; jobs that have not finished fail."""
        with self._wake:
            self._draining = self._stopping = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=60.0)
        else:  # it was never started
            self._fail_all("the server stopped before it was ready", stopping=True)

    # --- in the engine's thread -------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._stopping or self._waiting or self._used):
                    self._wake.wait()
                if self._stopping:
                    break
            try:
                self._turn()
            except Exception as error:  # the jobs that were running fail, and the server continues
                log.exception("a call to the device failed")
                self._fail_all(_failure(error), stopping=False)
        self._fail_all("the server stopped before the answer was complete", stopping=True)

    def _turn(self) -> None:
        self._drop_cancelled()
        self._admit()
        if self._reading:
            try:
                self._read(self._reading[0])
            except _Lost as error:  # fails this prompt only, since other jobs do not share its memory
                log.exception("a prompt could not be read")
                self._cancel_with(self._reading[0].job, str(error))
            self._reading.rotate(-1)
            self._reading = deque(reading for reading in self._reading if not reading.handed_on)
        if self._batch.rows:
            self._decode()

    def _drop_cancelled(self) -> None:
        with self._wake:
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        for reading in [reading for reading in self._reading if reading.job.cancelled]:
            self._reading.remove(reading)
            self._free(reading.job, reading.job.left)
        for row in [row for row in self._batch.rows if row.job.cancelled]:
            self._end(row)

    def _admit(self) -> None:
        """Admits waiting jobs in order of arrival, so that small ones cannot overtake a job of many rows forever."""
        while True:
            with self._wake:
                if not self._waiting or self._used + self._waiting[0].ask.samples > self.max_rows:
                    return
                job = self._waiting.popleft()
                self._used += job.ask.samples
            try:
                fresh = job.ask.start is None and not job.ask.score_prompt
                plan = self.cache.plan(job.ask.tokens) if fresh else NOTHING
                begin = job.ask.start or start(self.model)
                self._reading.append(Reading(job, begin, plan, self._split, self.model.config.memory.block_size))
            except Exception:  # for example, out of device memory; other jobs do not need this memory
                log.exception("a prompt could not be admitted")
                self._free(job, job.ask.samples)
                self._cancel_with(job, "there is no room for another row; start with fewer --max-rows")

    def _read(self, reading: Reading) -> None:
        """Prefills up to one window of a prompt; after its last window, its rows join the batch. Raises `_Lost` if the
        prompt cannot be read; other jobs are unaffected."""
        job = reading.job
        try:
            self.read_tokens += reading.window(self.cache)
            if not reading.finished:
                return
            session, scores = reading.session(), reading.scores()
            if scores is not None and not np.isfinite(scores.logprob).all():
                raise _Lost(_NOT_FINITE)
            rows = []
            if job.ask.max_tokens > 0:
                assert job.ask.stream is not None
                rows = [Row(job, sample, job.ask.stream(session.recent[0])) for sample in range(job.ask.samples)]
        except _Lost:
            raise
        except Exception as error:
            raise _Lost(_failure(error)) from error
        job.tell(Read(reading.plan.begin, np.asarray(session.recent[0]), scores))
        if not rows:
            job.tell(Done(session if job.ask.keep else None))
            self._free(job, job.ask.samples)
        for row in rows:
            self._batch.join(row, session)
        reading.handed_on = True

    def _decode(self) -> None:
        begin = time.monotonic()
        at_once = min(self._at_once, TOKENS_WHILE_READING) if self._reading else self._at_once
        for row, made in self._batch.decode(at_once):
            if row.job.cancelled:
                continue
            if made is None:
                self._cancel_with(row.job, _NOT_FINITE)
                continue
            self.made_tokens += len(made.tokens)
            row.job.tell(made)
            if made.ended:
                session = self._batch.session_of(row) if row.job.ask.keep else None
                if row.job.left == 1:
                    row.job.tell(Done(session))
                self._end(row)
        slow = time.monotonic() - begin > PATIENCE
        self._at_once = max(self._at_once // 2, 1) if slow else min(self._at_once * 2, TOKENS_PER_CALL)

    def _cancel_with(self, job: Job, message: str) -> None:
        job.cancelled = True  # its rows are freed before the next call
        job.tell(Failed(message))

    def _end(self, row: Row) -> None:
        self._batch.leave(row)
        self._free(row.job, 1)

    def _free(self, job: Job, rows: int) -> None:
        job.left -= rows
        with self._wake:
            self._used -= rows
            self._wake.notify_all()

    def _fail_all(self, message: str, stopping: bool) -> None:
        at_work = {id(row.job): row.job for row in self._batch.rows}
        at_work |= {id(reading.job): reading.job for reading in self._reading}
        with self._wake:
            jobs = [*at_work.values(), *(self._waiting if stopping else ())]
            if stopping:
                self._waiting.clear()
            self._used = 0
            self._wake.notify_all()
        self._batch.clear()
        self._reading.clear()
        for job in jobs:
            if not job.cancelled:
                job.tell(Failed(message, stopping))


class _Lost(Exception):
    """A prompt cannot be read; other jobs are unaffected."""


def _failure(error: Exception) -> str:
    return f"the model could not compute this: {type(error).__name__}"


def bytes_of_row(model: Transformer) -> int:
    """Returns the size of the memory of one row, in bytes."""
    return size_of(jax.eval_shape(lambda: model.streaming_state(1)))
