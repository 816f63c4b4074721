"""Answers to prompts: the text after one prompt as it is generated, or answers to many prompts in a batch."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from famjax.dims import Bool
from famjax.infer.codec import Codec
from famjax.infer.decode import TOKENS_PER_CALL, generate
from famjax.infer.prefill import prefill
from famjax.infer.session import Session, repeat_rows
from famjax.infer.settings import Sampling
from famjax.nn.model import Transformer

OnTokens = Callable[[int], None]


class Piece(NamedTuple):
    """What one device call adds to the samples of a prompt.

    Attributes:
      texts: for each sample, the new text that later tokens cannot change.
      tokens: for each sample, the new token ids (int32), including a stop sequence.
      stopped: bool [samples], whether these tokens end with a stop sequence.
      session: the session after these tokens, one row per sample; sessions of earlier pieces are donated.
    """

    texts: list[str]
    tokens: list[np.ndarray]
    stopped: Bool[np.ndarray, "B"]
    session: Session


class Answer(NamedTuple):
    """The text generated for a prompt, without its stop text.

    Attributes:
      text: the generated text.
      tokens: its token ids.
      finish: `stop` if an end-of-text token or a stop text ended it, `length` if it has `max_tokens` tokens.
      session: the session after the text, to continue from; None for prompts that were answered in a batch.
    """

    text: str
    tokens: list[int]
    finish: str
    session: Session | None = None


def stream(
    model: Transformer, codec: Codec, session: Session, max_tokens: int, sampling: Sampling, *, seed: int = 0,
    stops: Sequence[str] = (), samples: int = 1, exact: bool = False,
) -> Iterator[Piece]:  # fmt: skip
    """Yields the text after one prompt as it is generated.

    A possible beginning of a stop text is held back until it is decided; the last piece has the rest.

    Args:
      model, codec: the model and its tokenizer.
      session: session of one row, after the prompt. It is donated.
      max_tokens: maximum tokens per sample.
      sampling, seed: sampling settings.
      stops: texts that end an answer; they are not part of it.
      samples: number of answers.
      exact: whether the last session must end where the text ends. With a tokenizer and stop texts, which are found in
        the text, this costs one device call per token.

    Raises:
      ConfigError: if a stop text is empty or too long, or logits are NaN.
    """
    before = np.asarray(session.recent[0])
    streams = [codec.stream(stops, before) for _ in range(samples)]
    at_once = 1 if stops and exact and not codec.is_bytes else TOKENS_PER_CALL
    if samples > 1:
        session = repeat_rows(session, samples)
    for made in generate(
        model, session, max_tokens, sampling, seed=seed, stops=codec.token_stops(stops), tokens_per_call=at_once
    ):
        session = made.session
        rows = zip(streams, made.tokens, made.stopped, strict=True)
        yield Piece([one.feed(tokens, bool(end)) for one, tokens, end in rows], made.tokens, made.stopped, session)
        if all(one.stopped for one in streams):
            break
    nothing = [np.zeros(0, np.int32)] * samples
    yield Piece([one.finish() for one in streams], nothing, np.zeros(samples, bool), session)


def read_side_by_side(
    model: Transformer, codec: Codec, session: Session, prompts: Sequence[str], *, rows: int = 0, fresh: bool = True,
    on_tokens: OnTokens | None = None,
) -> Session:  # fmt: skip
    """Returns the session after prompts that all continue `session`, one row per prompt.

    Args:
      model, codec: the model and its tokenizer.
      session: session of one row; it is not donated.
      prompts: texts; an empty one leaves its row unchanged.
      rows: batch size of the compiled program, if larger than the number of prompts; the rows after them are unchanged.
      fresh: whether `session` is empty, so that a prompt begins with the tokenizer's BOS token, if it adds one.
      on_tokens: called with the number of tokens of each window.
    """
    rows = max(rows, len(prompts))
    texts = [[codec.encode(prompt, fresh)] if prompt else [] for prompt in prompts] + [[]] * (rows - len(prompts))
    return prefill(model, repeat_rows(session, rows), texts, on_tokens)


def answer_side_by_side(
    model: Transformer, codec: Codec, session: Session, prompts: int, max_tokens: int, sampling: Sampling, *,
    seed: int = 0, stops: Sequence[str] = (), samples: int = 1, on_made: OnTokens | None = None,
) -> list[list[Answer]]:  # fmt: skip
    """Returns a list of `samples` answers for each prompt. They are the same as if each prompt were answered alone.

    Args:
      model, codec: the model and its tokenizer.
      session: from `read_side_by_side`; it is not donated.
      prompts: number of its rows that are prompts; the rows after them get no answer.
      max_tokens, sampling, seed, stops, samples: see `stream`.
      on_made: called after each device call with the number of tokens generated so far, in all rows.
    """
    rows = len(session.recent)
    befores = np.asarray(session.recent)
    limits = np.repeat(np.arange(rows) < prompts, samples) * max_tokens
    tokens: list[list[int]] = [[] for _ in range(rows * samples)]
    stopped = np.zeros(rows * samples, bool)
    sample_B = np.tile(np.arange(samples), rows)
    for made in generate(
        model, repeat_rows(session, samples), limits, sampling, seed=seed, sample_B=sample_B,
        stops=codec.token_stops(stops),
    ):  # fmt: skip
        stopped |= made.stopped
        for all_of_row, new in zip(tokens, made.tokens, strict=True):
            all_of_row += new.tolist()
        if on_made is not None:
            on_made(sum(map(len, tokens)))

    def answer(prompt: int, row: int) -> Answer:
        text, ids, ended = codec.answer(tokens[row], bool(stopped[row]), stops, befores[prompt])
        return Answer(text, ids, "stop" if ended else "length")

    return [[answer(i, i * samples + s) for s in range(samples)] for i in range(prompts)]
