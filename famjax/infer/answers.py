"""Answers to prompts: the text of one prompt as it is generated, or many prompts side by side."""

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
    """What one call to the device adds to the samples of a prompt.

    Attributes:
      texts: for each sample the text that no later token changes.
      tokens: for each sample the new token ids, a stop sequence included.
      stopped: bool [samples], whether these tokens end with a stop sequence.
      session: the session after these tokens, a row for each sample; sessions of earlier pieces are donated.
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
      finish: `stop` if the model or a stop text ended it, `length` if it has `max_tokens` tokens.
      session: the session after the text, to continue from; None for prompts that were answered side by side.
    """

    text: str
    tokens: list[int]
    finish: str
    session: Session | None = None


def stream(
    model: Transformer, codec: Codec, session: Session, max_tokens: int, sampling: Sampling, *, seed: int = 0,
    stops: Sequence[str] = (), samples: int = 1, exact: bool = False,
) -> Iterator[Piece]:  # fmt: skip
    """Yields the text after one prompt as it is generated; the last piece has the text held back for a stop text.

    Args:
      model, codec: the model and its tokenizer.
      session: one row, after the prompt; donated.
      max_tokens: upper bound for each sample.
      sampling, seed: how tokens are drawn.
      stops: texts that end an answer; they are not part of it.
      samples: the number of answers.
      exact: the last session must end where the text does. With a tokenizer and stop texts, which are found in the
        text, this costs one call to the device per token.
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
    """Returns the session after each prompt, a row each, all of which start from `session`.

    Args:
      model, codec: the model and its tokenizer.
      session: one row.
      prompts: texts; an empty one leaves its row as it is.
      rows: rows of the compiled program, at least the number of prompts; 0 is that number.
      fresh: `session` has read nothing, so a prompt begins with the tokenizer's first token.
      on_tokens: called with the number of tokens of each window.
    """
    rows = max(rows, len(prompts))
    texts = [[codec.encode(prompt, fresh)] if prompt else [] for prompt in prompts] + [[]] * (rows - len(prompts))
    return prefill(model, repeat_rows(session, rows), texts, on_tokens)


def answer_side_by_side(
    model: Transformer, codec: Codec, session: Session, prompts: int, max_tokens: int, sampling: Sampling, *,
    seed: int = 0, stops: Sequence[str] = (), samples: int = 1, on_made: OnTokens | None = None,
) -> list[list[Answer]]:  # fmt: skip
    """Returns for each prompt its samples; each answer is the one that its prompt gets alone.

    Args:
      model, codec: the model and its tokenizer.
      session: from `read_side_by_side`.
      prompts: how many of its rows are prompts; the rows after them get no answer.
      max_tokens, sampling, seed, stops, samples: see `stream`.
      on_made: called with the number of tokens generated so far.
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
