"""Texts that begin alike: what they share is read once, and each goes on from there.

A long document with many questions is a prefix with many branches. `read_prefixes` reads documents into
sessions of one row; a branch is such a session and the tokens that follow, which are scored
(`score_branches`) or read and answered (`generate_branches`). A session is only looked at, never given away,
so any number of branches may go on from it, today or later.
"""

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from famjax.attention.memory import MemoryState, select_state_rows
from famjax.dims import Array, Bool, Int, Tree
from famjax.infer.decode import GREEDY, Made, generate
from famjax.infer.prefill import BLOCKS_PER_CALL, extend, prefill
from famjax.infer.scoring import score_documents, take_window
from famjax.infer.session import Session, join_rows, start, take_row
from famjax.infer.settings import RECENT, Sampling
from famjax.nn.model import Transformer


class Branch(NamedTuple):
    """A text that goes on from where another one is.

    Attributes:
      session: of one row; None where nothing was read before.
      tokens: int [n], what follows.
    """

    session: Session | None
    tokens: np.ndarray


def read_prefixes(
    model: Transformer, prefixes: Sequence[np.ndarray], rows: int, blocks_per_call: int = BLOCKS_PER_CALL,
    on_tokens: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Session]]:  # fmt: skip
    """Reads texts of any lengths; rows take turns as in `score_documents`, and no logits are made.

    Args:
      model: the model.
      prefixes: int arrays, each of a token or more.
      rows: texts that are read side by side, at most; see `scoring.useful_rows`.
      blocks_per_call: blocks of a window.
      on_tokens: called with the number of tokens of each window.

    Yields:
      (i, the session of one row behind prefix i), as they are done. So many memories exist as there are rows, and
      those that the caller keeps.
    """
    if not all(map(len, prefixes)):
        raise ValueError("a prefix has at least one token")
    graphdef, params = nnx.split(model)
    window = blocks_per_call * model.config.memory.block_size
    bodies = [tokens[:-1] for tokens in prefixes]  # the last token of a session waits to be read
    waiting = sorted(range(len(bodies)), key=lambda i: len(bodies[i]))
    reading: list[tuple[int, int]] = [(-1, 0)] * min(rows, len(bodies))
    memory, before = start(model, len(reading)).memory, None
    while (taken := take_window(bodies, waiting, reading, window)) is not None:
        tokens, count, fresh = taken
        done, memory = _read_window(graphdef, params, tokens[:, :-1], count, fresh, memory)
        if before is not None:  # one window at a time waits for the device
            before.block_until_ready()
        before = done
        if on_tokens is not None:
            on_tokens(int(count.sum()))
        for row, (i, at) in enumerate(reading):
            if i >= 0 and at + window >= len(bodies[i]):
                recent = np.full((len(reading), RECENT), -1, np.int32)
                tail = prefixes[i][-RECENT:]
                recent[row, RECENT - len(tail) :] = tail
                yield i, take_row(Session(memory, recent), row)
        reading = [(i, at + window) for i, at in reading]


def score_branches(
    model: Transformer, branches: Sequence[Branch], rows: int, on_tokens: Callable[[int], None] | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """What the model says of every token of the branches, in any order, so many at once as there are rows.

    Yields:
      (i, logprobs float32, correct bool): natural-log probability of each token of branch i, and whether it is
      the model's first choice. Where nothing was read before, the first token has none: n - 1 numbers.
    """
    pending = lambda branch: branch.session.recent[0, -1:] if branch.session is not None else []
    documents = [np.concatenate([pending(branch), branch.tokens]).astype(np.int32) for branch in branches]
    starts = [branch.session.memory if branch.session is not None else None for branch in branches]
    any_start = any(memory is not None for memory in starts)
    yield from score_documents(model, documents, rows, on_tokens=on_tokens, starts=starts if any_start else ())


def generate_branches(
    model: Transformer, branches: Sequence[Branch], rows: int, max_tokens: int | Sequence[int],
    stops: Sequence[Sequence[int]] = (), sampling: Sampling = GREEDY, seed: int = 0,
    on_tokens: Callable[[int], None] | None = None, samples: Sequence[int] = (),
    finished: Callable[[int, np.ndarray], bool] | None = None,
) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
    """Reads the branches and writes on; those of like length side by side. What a branch gets does not depend on
    the others.

    Args:
      model: the model.
      branches: what to go on from; one without a session has at least one token.
      rows: branches side by side, at most.
      max_tokens: made for each branch, at most; one number, or one a branch.
      stops: token sequences that end an answer, see `decode.generate`.
      sampling, seed: how to draw.
      on_tokens: called with the number of tokens read, then of those made.
      samples: which of several draws for the same text each branch is; empty is 0 for all.
      finished: (i, the tokens made so far) -> whether that is enough: for stops that are no fixed tokens.

    Yields:
      (i, int32 tokens made, whether they end with a stop sequence or are `finished`).
    """
    most = np.broadcast_to(np.asarray(max_tokens, np.int32), len(branches))
    numbers = np.asarray(samples, np.int32) if len(samples) else np.zeros(len(branches), np.int32)
    order = sorted(range(len(branches)), key=lambda i: (-len(branches[i].tokens), -most[i]))
    rows = min(rows, 1 << (len(order) - 1).bit_length()) if order else 0
    nothing = start(model)
    while order:
        batch, order = order[:rows], order[rows:]
        idle = rows - len(batch)  # a last batch that is smaller would be a shape of its own to compile
        sessions = [branches[i].session or nothing for i in batch] + [nothing] * idle
        texts = [[branches[i].tokens] if len(branches[i].tokens) else [] for i in batch] + [[]] * idle
        session = prefill(model, join_rows(sessions), texts, on_tokens)
        limits, sample_B = (np.concatenate([x[batch], np.zeros(idle, np.int32)]) for x in (most, numbers))
        made = generate(model, session, limits, sampling, seed=seed, sample_B=sample_B, stops=stops)
        yield from _answers(made, batch, finished, on_tokens)


def _answers(
    steps: Generator[Made, Any, None], batch: list[int], finished: Callable[[int, np.ndarray], bool] | None,
    on_tokens: Callable[[int], None] | None,
) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
    """What `decode.generate` makes for the branches of its first rows, once it has made all."""
    answers = [np.zeros(0, np.int32) for _ in batch]
    stopped: list[bool] = [False] * len(batch)
    enough = None
    while (made := _next(steps, enough)) is not None:
        for row, i in enumerate(batch):
            if len(made.tokens[row]):
                answers[row] = np.concatenate([answers[row], made.tokens[row]])
                stopped[row] = bool(made.stopped[row]) or (finished is not None and finished(i, answers[row]))
        enough = np.array(stopped + [False] * (len(made.tokens) - len(batch)))
        if on_tokens is not None:
            on_tokens(sum(map(len, made.tokens)))
    yield from zip(batch, answers, stopped, strict=True)


def _next(steps: Generator[Made, Any, None], enough: np.ndarray | None) -> Made | None:
    """What comes next for the rows that have not enough; None at the end."""
    try:
        return steps.send(enough)
    except StopIteration:
        return None


@functools.partial(jax.jit, static_argnames=("graphdef",), donate_argnames=("memory",))
def _read_window(
    graphdef: nnx.GraphDef[Transformer], params: Tree, tokens: Int[Array, "B T"], count: Int[Array, "B"],
    fresh: Bool[Array, "B"], memory: MemoryState,
) -> tuple[Int[Array, ""], MemoryState]:  # fmt: skip
    """Something to wait for, and the memory after these tokens; a fresh row starts a text."""
    model = nnx.merge(graphdef, params)
    memory = select_state_rows(fresh, model.streaming_state(len(count)), memory)
    _, memory = extend(model, tokens, count, memory, lambda model, hidden, index: ())
    return count.sum(), memory
