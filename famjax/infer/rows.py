"""Batches of different requests: each row has its own sampling settings, stop sequences and scores.

`decode_rows` is one device call of `decode.generate`, for callers whose rows change between calls. A row gets the same
tokens as from `generate`, independent of the other rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from famjax.attention.memory import MemoryState
from famjax.dims import Array, Bool, Float, Int, Tree
from famjax.infer.decode import decode_loop
from famjax.infer.prefill import extend
from famjax.infer.sampling import RowSampling, sample_rows
from famjax.infer.scoring import of_logits
from famjax.infer.session import Session
from famjax.nn.model import Transformer


class Scored(NamedTuple):
    """Log probabilities of tokens, before temperature and penalties.

    Attributes:
      logprob: natural-log probability of each token.
      best: the most likely tokens at each position, in descending order of probability.
      best_logprob: natural-log probabilities of `best`.
    """

    logprob: Float[Any, "*B"]
    best: Int[Any, "*B _top"]
    best_logprob: Float[Any, "*B _top"]


def scored(logits: Float[Array, "*B V"], token: Int[Array, "*B"], top: int) -> Scored:
    """Returns the log probabilities of tokens, and the `top` most likely ones at each position."""
    logprobs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    best_logprob, best = jax.lax.top_k(logprobs, min(top, logits.shape[-1]))
    return Scored(jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0], best, best_logprob)


@functools.partial(jax.jit, static_argnames=("graphdef", "room", "top"), donate_argnames=("session",))
def decode_rows(
    graphdef: nnx.GraphDef[Transformer], params: Tree, session: Session, limit_B: Int[Array, "B"],
    before_B: Int[Array, "B"], stops_B: Int[Array, "B _n _longest"], sampling: RowSampling, room: int,
    top: int | None = None,
) -> tuple[Int[Array, "B {room}"], Scored | None, Int[Array, "B"], Bool[Array, "B"], Session]:  # fmt: skip
    """Decodes up to `limit_B` tokens for each row, see `decode.decode_loop`.

    Args:
      graphdef, params: the model.
      session: the texts to continue. It is donated.
      limit_B: maximum tokens per row; 0 leaves a row unchanged.
      before_B, room: see `decode.decode_loop`.
      stops_B, sampling: `decode.stop_array` of each row, all of one shape, and its sampling settings.
      top: number of alternatives in the scores; None computes no scores.

    Returns:
      Tokens [B, room], their scores [B, room, ...], number of tokens of each row, whether it stopped, and the session
      after them.
    """

    def draw(logits_BV: Array, recent: Array, position_B: Array) -> tuple[Array, Scored | None]:
        token_B = sample_rows(logits_BV, recent, position_B, sampling)
        return token_B, None if top is None else scored(logits_BV, token_B, top)

    return decode_loop(nnx.merge(graphdef, params), session, limit_B, before_B, stops_B, draw, room)


@functools.partial(jax.jit, static_argnames=("graphdef", "top"), donate_argnames=("state",))
def read_rows(
    graphdef: nnx.GraphDef[Transformer], params: Tree, tokens: Int[Array, "B T"], following: Int[Array, "B T"],
    count: Int[Array, "B"], state: MemoryState, top: int | None = None,
) -> tuple[Scored | None, MemoryState]:  # fmt: skip
    """Returns the scores of the token after each token (`following`) of a window, and the memory after it; see
    `prefill.extend`. `state`, the memory before, is donated. `top` is the number of alternatives in the scores; None
    computes no scores."""

    def emit(model: Transformer, hidden: Float[Array, "B Q D"], index: Int[Array, "B Q"]) -> Scored | None:
        if top is None:
            return None
        after = jnp.take_along_axis(following, index, axis=1)
        return of_logits(model, hidden, after, functools.partial(scored, top=top))

    return extend(nnx.merge(graphdef, params), tokens, count, state, emit)
