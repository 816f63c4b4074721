"""Decoding: many tokens per device call, for rows at arbitrary positions.

`_decode` is one compiled program. Each iteration reads every row's pending token, which updates FAM if a
block is complete, and samples the next token, until all rows are done. `generate` calls it repeatedly and
yields the tokens.
"""

import functools
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from famjax.config import ConfigError
from famjax.dims import Array, Bool, Int, Tree
from famjax.infer.sampling import row_keys, sample
from famjax.infer.session import Session, start
from famjax.infer.settings import RECENT, Sampling
from famjax.jobs.distributed import whole
from famjax.nn.model import Transformer

# Maximum tokens per row and call. Calls are shorter if tokens are slow, so that output streams smoothly.
TOKENS_PER_CALL = 64
# Duration of a call, in seconds, above which the next one is shorter.
PATIENCE = 0.1
GREEDY = Sampling()
# Generated in place of a token if the logits are NaN.
NON_FINITE = -2


class Decoded(NamedTuple):
    """Result of one device call.

    Attributes:
      tokens: the new tokens of each row, an int32 array per row.
      stopped: whether the new tokens of each row end with a stop sequence.
      session: the session after these tokens. Sessions of earlier calls are donated.
    """

    tokens: list[np.ndarray]
    stopped: Bool[np.ndarray, "B"]
    session: Session


def generate(
    model: Transformer, session: Session, max_tokens: int | Sequence[int] | Int[np.ndarray, "B"],
    sampling: Sampling = GREEDY, *, seed: int = 0, sample_B: Sequence[int] | Int[np.ndarray, "B"] | None = None,
    stops: Sequence[Sequence[int]] = (), tokens_per_call: int = TOKENS_PER_CALL,
) -> Generator[Decoded, Bool[np.ndarray, "B"] | None, None]:  # fmt: skip
    """Generates tokens until every row has stopped or reached its limit, and yields them after each device call.

    The caller may `send` a bool [B] mask of rows to stop.

    Args:
      model: the model.
      session: the texts to continue, one per row. It is donated; continue from `Decoded.session`.
      max_tokens: maximum tokens per row: one number, or one per row. 0 leaves a row unchanged.
      sampling: sampling settings.
      seed: sampling seed, 0..2^32-1.
      sample_B: sample index of each row; rows with the same index, text and seed get the same tokens. None is
        0, 1, ..., a different sample in each row.
      stops: token sequences that end a row. They are included in its tokens.
      tokens_per_call: maximum tokens per device call, up to `TOKENS_PER_CALL`.

    Raises:
      ValueError: if a row to continue has no token yet, or a stop sequence is empty or too long.
      ConfigError: if logits are NaN.
    """
    graphdef, params = nnx.split(model)
    B = len(session.recent)
    left = np.broadcast_to(np.asarray(max_tokens, np.int32), B).copy()
    if (whole(session.recent)[left > 0, -1] < 0).any():
        raise ValueError("a row without any token cannot be continued; read a prompt first")
    sample_B = np.arange(B, dtype=np.int32) if sample_B is None else np.asarray(sample_B, np.int32)
    stops_at_right, made = stop_array(stops), np.zeros(B, np.int32)
    at_once = min(8, tokens_per_call)
    while left.any():
        begin = time.monotonic()
        # From the host in every call: with an array of the device, calls after the first are another program.
        session = Session(session.memory, whole(session.recent))
        tokens, count, stopped, session = _decode(
            graphdef, params, session, np.minimum(left, at_once), made, stops_at_right, np.uint32(seed), sample_B,
            sampling=sampling, room=TOKENS_PER_CALL,
        )  # fmt: skip
        tokens, count, stopped = (whole(x) for x in (tokens, count, stopped))
        if (tokens == NON_FINITE).any():
            raise ConfigError("the model's logits are NaN; check its weights")
        made = made + count
        left = np.where(stopped, 0, left - count)
        # In a multi-process job all processes must make the same calls, regardless of their clocks.
        slow = time.monotonic() - begin > PATIENCE and jax.process_count() == 1
        at_once = max(at_once // 2, 1) if slow else min(at_once * 2, tokens_per_call)
        enough = yield Decoded([row[:n] for row, n in zip(tokens, count, strict=True)], stopped, session)
        left = left if enough is None else np.where(enough, 0, left)


def compile_beside(
    model: Transformer, rows: int, sampling: Sampling = GREEDY, stops: Sequence[Sequence[int]] = ()
) -> Callable[[], None]:
    """Compiles the program of `generate` for a session of `rows` rows in a thread, beside a prefill, and returns a
    function that waits for it."""
    if jax.process_count() > 1:  # threads of several processes would start their programs in different orders
        return lambda: None
    graphdef, params = nnx.split(model)
    zeros = np.zeros(rows, np.int32)

    def call() -> None:
        _decode(
            graphdef, params, start(model, rows), zeros, zeros, stop_array(stops), np.uint32(0),
            np.arange(rows, dtype=np.int32), sampling=sampling, room=TOKENS_PER_CALL,
        )  # fmt: skip

    return ThreadPoolExecutor(1).submit(call).result


def stop_array(stops: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the stop sequences as int32 [number, longest], right-aligned and padded with -1.

    Raises:
      ValueError: if a stop sequence is empty or longer than `RECENT` tokens.
    """
    longest = max(map(len, stops), default=1)
    if longest > RECENT or not all(map(len, stops)):
        raise ValueError(f"a stop sequence has 1 to {RECENT} tokens, not {[len(stop) for stop in stops]}")
    array = np.full((len(stops), longest), -1, np.int32)
    for row, stop in zip(array, stops, strict=True):
        row[longest - len(stop) :] = stop
    return array


def _ends_with(
    recent: Int[Array, "B _N"], made: Int[Array, "B"], stop_array: Int[Array, "*B _n _longest"]
) -> Bool[Array, "B"]:  # fmt: skip
    """Returns whether each row ends with a stop sequence, all of it generated. Pure padding never matches."""
    tail = recent[:, None, -stop_array.shape[-1] :]
    same = ((stop_array == tail) | (stop_array < 0)).all(axis=-1)
    length = (stop_array >= 0).sum(axis=-1)
    return (same & (length > 0) & (made[:, None] >= length)).any(axis=-1)


@functools.partial(jax.jit, static_argnames=("graphdef", "sampling", "room"), donate_argnames=("session",))
def _decode(
    graphdef: nnx.GraphDef[Transformer], params: Tree, session: Session, limit_B: Int[Array, "B"],
    before_B: Int[Array, "B"], stop_array: Int[Array, "_n _longest"], seed: Int[Array, ""], sample_B: Int[Array, "B"],
    sampling: Sampling, room: int,
) -> tuple[Int[Array, "B {room}"], Int[Array, "B"], Bool[Array, "B"], Session]:  # fmt: skip
    """Decodes up to `limit_B` tokens per row. Returns (tokens, their number, whether a row stopped, session)."""

    def draw(logits_BV: Array, recent: Array, position_B: Array) -> tuple[Array, tuple[()]]:
        return sample(logits_BV, recent, row_keys(seed, sample_B, position_B), sampling), ()

    out, _, count_B, stopped_B, session = decode_loop(
        nnx.merge(graphdef, params), session, limit_B, before_B, stop_array, draw, room
    )
    return out, count_B, stopped_B, session


# Maps (logits [B, V], recent tokens [B, N], positions [B] of the tokens to sample) to the tokens [B], and a tree of
# further outputs [B, ...].
Draw: TypeAlias = Callable[[Array, Array, Array], tuple[Array, Tree]]


def decode_loop(
    model: Transformer, session: Session, limit_B: Int[Array, "B"], before_B: Int[Array, "B"],
    stop_array: Int[Array, "*B _n _longest"], draw: Draw, room: int,
) -> tuple[Int[Array, "B {room}"], Tree, Int[Array, "B"], Bool[Array, "B"], Session]:  # fmt: skip
    """Generates tokens until every row has stopped or reached its limit; every decoding program calls it under `jit`.

    Args:
      model: the model.
      session: the texts to continue.
      limit_B: maximum tokens per row, at most `room`.
      before_B: number of tokens that earlier calls generated for each row; a stop sequence may begin in them.
      stop_array: stop sequences, right-aligned and padded with -1: [n, longest] for all rows, or [B, n, longest].
      draw: samples the tokens.
      room: size of the output, in tokens per row.

    Returns:
      Tokens [B, room], further outputs of `draw` [B, room, ...], number of tokens of each row, whether it stopped, and
      the session after them.
    """
    rows = np.arange(len(limit_B))
    V, recent = model.config.vocab_size, session.recent
    shapes = jax.eval_shape(draw, jax.ShapeDtypeStruct((len(rows), V), jnp.float32), recent, session.memory.position)[1]

    def turn(carry: Tree) -> Tree:
        session, out, extra, count_B, stopped_B = carry
        live = (count_B < limit_B) & ~stopped_B
        hidden, memory = model.read(session.recent[:, -1:], session.memory, live.astype(jnp.int32))
        logits_BV = model.logits(hidden[:, 0])
        # The pending token has been read, so `position` is that of the token to sample.
        token_B, more = draw(logits_BV, session.recent, memory.position)
        token_B = jnp.where(jnp.isnan(logits_BV).any(axis=-1), NON_FINITE, token_B)
        shifted = jnp.concatenate([session.recent[:, 1:], token_B[:, None]], axis=1)
        recent = jnp.where(live[:, None], shifted, session.recent)
        # A finished row gets an out-of-range index, which the scatter drops.
        at = jnp.where(live, count_B, room)
        out, extra = jax.tree.map(lambda x, y: x.at[rows, at].set(y, mode="drop"), (out, extra), (token_B, more))
        count_B = count_B + live
        stopped_B |= live & _ends_with(recent, before_B + count_B, stop_array)
        return Session(memory, recent), out, extra, count_B, stopped_B

    zeros = jnp.zeros_like(limit_B)
    extra = jax.tree.map(lambda x: jnp.zeros((len(rows), room, *x.shape[1:]), x.dtype), shapes)
    carry = (session, jnp.zeros((len(rows), room), jnp.int32), extra, zeros, zeros.astype(bool))
    unfinished = lambda carry: ((carry[3] < limit_B) & ~carry[4]).any()
    session, out, extra, count_B, stopped_B = jax.lax.while_loop(unfinished, turn, carry)
    return out, extra, count_B, stopped_B, session
