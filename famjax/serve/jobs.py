"""Jobs for the engine, and the events that it reports while it runs them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from famjax.infer.codec import Stream
from famjax.infer.decode import GREEDY
from famjax.infer.rows import Scored
from famjax.infer.session import Session
from famjax.infer.settings import Sampling


class Refused(Exception):
    """The engine refuses a job, because it is stopping or (`Full`) the queue is full."""


class Full(Refused):
    """The queue is full. A later attempt may succeed."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """A prompt, and what to generate after it.

    Attributes:
      tokens: int32 ids of the prompt; may be empty if `start` has a pending token.
      start: session of one row that the prompt continues; it is donated. None starts a new text.
      max_tokens: maximum tokens to generate per sample; 0 only prefills the prompt.
      samples: number of answers; they have the sample indices 0, 1, ...
      sampling, seed: sampling settings.
      stops: token sequences that end a row, see `decode.generate`.
      stream: maps the last tokens before an answer to its incremental decoder, which also finds stop texts; may be None
        if `max_tokens` is 0.
      by_token: whether each call generates one token per row, so that the memory never extends beyond a stop text.
      top: number of alternatives to return with the scores of generated tokens; None: no scores.
      score_prompt: whether to score the prompt's tokens too.
      keep: whether to return the session after the answer; for one sample only.
    """

    tokens: np.ndarray
    start: Session | None = None
    max_tokens: int = 0
    samples: int = 1
    sampling: Sampling = GREEDY
    seed: int = 0
    stops: Sequence[Sequence[int]] = ()
    stream: Callable[[np.ndarray], Stream] | None = None
    by_token: bool = False
    top: int | None = None
    score_prompt: bool = False
    keep: bool = False


@dataclasses.dataclass(frozen=True)
class Read:
    """The prompt has been prefilled.

    Attributes:
      cached: number of its tokens that the prefix cache covered.
      before: the last tokens before the answers, int32 [RECENT], -1 if there are fewer.
      scores: scores [n, ...] of its last n tokens, or None. The first token of a text has no score.
    """

    cached: int
    before: np.ndarray
    scores: Scored | None = None


@dataclasses.dataclass(frozen=True)
class Generated:
    """New tokens of a sample.

    Attributes:
      sample: sample index.
      text: the new text that later tokens cannot change.
      tokens: int32 ids [n], including a stop.
      scores: scores [n, ...] of these tokens, or None if the job wants none.
      ended: `stop` or `length` with the last tokens; else empty.
    """

    sample: int
    text: str
    tokens: np.ndarray
    scores: Scored | None = None
    ended: str = ""


@dataclasses.dataclass(frozen=True)
class Done:
    """The job has finished. `session` has one row; None unless `Ask.keep`."""

    session: Session | None = None


@dataclasses.dataclass(frozen=True)
class Failed:
    """The job has failed. `stopping`: whether the reason is that the server stops."""

    message: str
    stopping: bool = False


Event: TypeAlias = Read | Generated | Done | Failed


class Job:
    """An `Ask` that is waiting or running. `tell` is called in the engine's thread with each event. Unless the job is
    cancelled, the last is `Done` or `Failed`.

    Attributes:
      cancelled: whether the engine drops the job before its next device call.
      left: number of samples that have not ended.
    """

    def __init__(self, ask: Ask, tell: Callable[[Event], None]):
        self.ask, self.tell = ask, tell
        self.cancelled = False
        self.left = ask.samples
