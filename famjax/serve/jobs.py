"""What a request asks of the engine, and what the engine reports while it works on it."""

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
    """The engine takes no more requests: its queue is full, or it stops."""


class Full(Refused):
    """All rows and all places of the queue are taken; later there may be one."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """A prompt, and what is wanted after it.

    Attributes:
      tokens: int32 ids of the prompt; may be empty where `start` has a pending token.
      start: one row, the text that the prompt continues; it is donated. None is no text.
      max_tokens: made for each sample, at most; 0 only reads.
      samples: texts for this prompt, sample 0, 1, ... of the seed.
      sampling, seed: how to draw.
      stops: token sequences that end a row, see `decode.generate`.
      stream: the last tokens before an answer -> what makes text of its tokens, and finds stop texts.
      by_token: rows make one token a call, so that the memory does not run ahead of a stop text.
      top: number of alternatives to return with the scores of generated tokens; None: no scores.
      score_prompt: scores of the prompt's tokens are wanted too.
      keep: the session after the (only) answer is wanted.
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
    """The prompt has been read.

    Attributes:
      cached: tokens of it whose memory was at hand.
      scores: arrays [n, ...] of its last n tokens; where nothing was before it, the first token has no score.
    """

    cached: int
    scores: Scored | None = None


@dataclasses.dataclass(frozen=True)
class Generated:
    """Some tokens of a sample.

    Attributes:
      sample: which.
      text: what is certain of it by now.
      tokens: int32 ids, a stop included.
      scores: arrays [n, ...] of these, if they were asked for.
      ended: "stop" or "length" with the last tokens; else empty.
    """

    sample: int
    text: str
    tokens: np.ndarray
    scores: Scored | None = None
    ended: str = ""


@dataclasses.dataclass(frozen=True)
class Done:
    """All is made. `session`: one row, if it was to be kept."""

    session: Session | None = None


@dataclasses.dataclass(frozen=True)
class Failed:
    """The job has ended without its answer. `stopping`: because the server stops."""

    message: str
    stopping: bool = False


Event: TypeAlias = Read | Generated | Done | Failed


class Job:
    """An `Ask` on its way.

    Args:
      ask: what is wanted.
      tell: is called in the engine's thread with each event, the last of which is `Done` or `Failed`.
    """

    def __init__(self, ask: Ask, tell: Callable[[Event], None]):
        self.ask, self.tell = ask, tell
        self.cancelled = False
        self.left = ask.samples  # samples that have not ended
