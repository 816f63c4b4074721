"""Prefill: reads texts of any length into a memory of constant size.

`extend` is the loop on the device: it calls `Transformer.read` block by block, with each row at any position.
Outputs per token (such as scores of the next one) are also computed block by block, so hidden states and logits of a
whole text are never materialised.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from famjax.attention.memory import MemoryState
from famjax.dims import Array, Float, Int, Tree
from famjax.infer.session import Session
from famjax.infer.settings import RECENT
from famjax.jobs.distributed import whole
from famjax.nn.model import Transformer, room

# Blocks per device call: enough to make the launch overhead negligible.
BLOCKS_PER_CALL = 8

# Maps (model, hidden states, indices of their tokens in `tokens` of `extend`) to a tree of arrays [B, Q, ...].
Emit: TypeAlias = Callable[[Transformer, Float[Array, "B Q D"], Int[Array, "B Q"]], Tree]


def emit_hidden(model: Transformer, hidden: Float[Array, "B Q D"], index: Int[Array, "B Q"]) -> Float[Array, "B Q D"]:
    """Returns the hidden states unchanged."""
    return hidden


def extend(
    model: Transformer, tokens: Int[Array, "B T"], count: Int[Array, "B"], state: MemoryState, emit: Emit = emit_hidden
) -> tuple[Tree, MemoryState]:
    """Reads tokens that may begin and end anywhere in a block and span any number of blocks.

    In each iteration every row reads up to the end of its current block, or of its tokens. Rows at equal offsets within
    their blocks read whole blocks together; unequal offsets cost one more iteration.

    Args:
      model: the model.
      tokens: int32, padded.
      count: int32, number of real tokens of each row; a row with 0 is unchanged.
      state: the memory before these tokens.
      emit: computes the outputs of each token.

    Returns:
      The outputs of `emit` [B, T, ...], zero for padding, and the memory after each row's last real token.
    """
    B, T = tokens.shape
    width = min(T, model.config.memory.block_size)
    rows = np.arange(B)[:, None]

    def turn(carry: Tree) -> Tree:
        read_B, outputs, state = carry
        take_B = jnp.minimum(jnp.minimum(count - read_B, room(state, model.config)), width)
        index_BQ = read_B[:, None] + np.arange(width)
        tokens_BQ = jnp.take_along_axis(tokens, jnp.minimum(index_BQ, T - 1), axis=1)
        hidden, state = model.read(tokens_BQ, state, take_B)
        # Padding gets an out-of-range index, which the scatter drops.
        target = jnp.where(np.arange(width) < take_B[:, None], index_BQ, T)
        new = emit(model, hidden, jnp.minimum(index_BQ, T - 1))
        outputs = jax.tree.map(lambda out, x: out.at[rows, target].set(x, mode="drop"), outputs, new)
        return read_B + take_B, outputs, state

    shapes = jax.eval_shape(
        lambda: emit(model, jnp.zeros((B, width, model.config.d_model), model.config.dtype), jnp.zeros((B, width), int))
    )
    outputs = jax.tree.map(lambda x: jnp.zeros((B, T, *x.shape[2:]), x.dtype), shapes)
    start = (jnp.zeros(B, jnp.int32), outputs, state)
    _, outputs, state = jax.lax.while_loop(lambda carry: (carry[0] < count).any(), turn, start)
    return outputs, state


# --- prompts --------------------------------------------------------------------------------------


def prefill(
    model: Transformer, session: Session, texts: Sequence[Iterable[np.ndarray]],
    on_tokens: Callable[[int], None] | None = None, blocks_per_call: int = BLOCKS_PER_CALL,
) -> Session:  # fmt: skip
    """Prefills a text into each row of a session, in memory that does not grow with the texts.

    Chunks are consumed as needed, so a text may come from a pipe. Rows may be at any positions; each window ends at a
    block boundary of every row, or at the end of its text.

    Args:
      model: the model.
      session: the session before the texts. It is donated; use the result.
      texts: for each row an iterable of chunks, int arrays of any lengths; without chunks the row is unchanged.
      on_tokens: called with the number of tokens of each window after it has been read.
      blocks_per_call: maximum blocks per window.

    Returns:
      The session after the texts; the last token of each is pending.

    Raises:
      ValueError: if a token is outside the vocabulary.
    """
    graphdef, params = nnx.split(model)
    S = model.config.memory.block_size
    window, short = blocks_per_call * S, S // 8
    rows = [_Row(text, recent, model.config.vocab_size) for text, recent in zip(texts, session.recent, strict=True)]
    memory, offset = session.memory, whole(session.memory.position) % S
    reading: list[tuple[Array, int]] = []

    def wait() -> None:
        done, tokens = reading.pop(0)
        done.block_until_ready()
        if on_tokens is not None:
            on_tokens(tokens)

    while True:
        parts = [row.take(window - at) for row, at in zip(rows, offset, strict=True)]
        count = np.array([len(part) for part in parts], np.int32)
        if not count.any():
            break
        # A few tokens do not need the compute of whole blocks.
        tokens = np.zeros((len(rows), short if count.max() <= short else window), np.int32)
        for row, part in zip(tokens, parts, strict=True):
            row[: len(part)] = part
        done, memory = _read_window(graphdef, params, tokens, count, memory)
        offset = (offset + count) % S
        reading.append((done, int(count.sum())))
        if len(reading) > 1:  # while the device reads a window, at most one more is queued
            wait()
    while reading:
        wait()
    return Session(memory, np.stack([row.recent for row in rows]))


class _Row:
    """Holds the tokens of a row that are not read yet. The last one is held back as the session's pending token."""

    def __init__(self, text: Iterable[np.ndarray], recent: Int[Any, "_N"], vocab_size: int):
        self._chunks = iter(text)
        self._vocab_size = vocab_size
        self.recent = np.array(recent)
        self._waiting = self.recent[-1:] if self.recent[-1] >= 0 else self.recent[:0]

    def take(self, most: int) -> np.ndarray:
        """Returns the next tokens to read, up to `most`; fewer only at the end of the text."""
        parts, waiting = [self._waiting], len(self._waiting)
        while waiting <= most and (chunk := next(self._chunks, None)) is not None:
            chunk = np.asarray(chunk)
            if chunk.size and not (chunk.min() >= 0 and chunk.max() < self._vocab_size):
                raise ValueError(f"a token of the text is outside the vocabulary 0..{self._vocab_size - 1}")
            parts.append(chunk)
            waiting += len(chunk)
            self.recent = np.concatenate([self.recent, chunk[-RECENT:]])[-RECENT:].astype(np.int32)
        everything = np.concatenate(parts) if len(parts) > 1 else parts[0]
        count = min(most, max(waiting - 1, 0))
        self._waiting = everything[count:]
        return everything[:count]


@functools.partial(jax.jit, static_argnames=("graphdef",), donate_argnames=("state",))
def _read_window(
    graphdef: nnx.GraphDef[Transformer], params: Tree, tokens: Int[Array, "B T"], count: Int[Array, "B"],
    state: MemoryState,
) -> tuple[Int[Array, ""], MemoryState]:  # fmt: skip
    """Returns (an array to block on, the memory after these tokens); `state` is donated."""
    nothing = lambda model, hidden, index: ()
    _, state = extend(nnx.merge(graphdef, params), tokens, count, state, nothing)
    return count.sum(), state
