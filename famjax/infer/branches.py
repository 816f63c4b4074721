"""Scores and generates texts that share a prefix: the prefix is prefilled once, and each branch continues from it.

A long document with many questions is a prefix with many branches. `read_prefixes` prefills documents into
sessions of one row. A branch is such a session and the tokens after it, which are scored (`score_branches`) or
prefilled and continued (`generate_branches`). Sessions of branches are never donated, so any number of branches
may continue from the same one.
"""

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from famjax.attention.memory import MemoryState, select_state_rows
from famjax.dims import Array, Bool, Int, Tree
from famjax.infer.decode import GREEDY, Decoded, generate
from famjax.infer.prefill import BLOCKS_PER_CALL, extend, prefill
from famjax.infer.scoring import score_documents, take_window
from famjax.infer.session import Session, join_rows, start, take_row
from famjax.infer.settings import RECENT, Sampling
from famjax.nn.model import Transformer


class Branch(NamedTuple):
    """A continuation of a prefilled text.

    Attributes:
      session: session of one row; None if there is no text before the branch.
      tokens: int [n], the tokens of the branch.
    """

    session: Session | None
    tokens: np.ndarray


def read_prefixes(
    model: Transformer, prefixes: Sequence[np.ndarray], rows: int, on_tokens: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Session]]:  # fmt: skip
    """Prefills texts of any lengths with continuous batching as in `score_documents`, without computing logits, at most
    `rows` texts at a time (`scoring.useful_rows`). `on_tokens` is called with the number of tokens of each window.

    Yields:
      (i, session of one row after prefix i) as prefixes finish. Besides the sessions that the caller keeps, there is
      one memory per row.

    Raises:
      ValueError: if a prefix is empty.
    """
    if not all(map(len, prefixes)):
        raise ValueError("a prefix has at least one token")
    graphdef, params = nnx.split(model)
    window = BLOCKS_PER_CALL * model.config.memory.block_size
    bodies = [tokens[:-1] for tokens in prefixes]  # the last token of a session is pending
    waiting = sorted(range(len(bodies)), key=lambda i: len(bodies[i]))
    reading: list[tuple[int, int]] = [(-1, 0)] * min(rows, len(bodies))
    memory, before = start(model, len(reading)).memory, None
    while (taken := take_window(bodies, waiting, reading, window)) is not None:
        tokens, count, fresh = taken
        done, memory = _read_window(graphdef, params, tokens[:, :-1], count, fresh, memory)
        if before is not None:  # at most one window is queued while the device works on another
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
    """Scores every token of the branches, with at most `rows` branches per batch.

    Yields:
      (i, logprobs float32 [n], correct bool [n]) in any order: natural-log probability of each token of branch i,
      and whether it has the highest logit. A branch without a session has n - 1 numbers: none for its first token.
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
    """Prefills and continues the branches, batching those of similar length. Results do not depend on the batching.

    Args:
      model, rows: the model, and the maximum batch size.
      branches: texts to continue; one without a session needs at least one token.
      max_tokens: maximum tokens to generate: one number for all branches, or one per branch.
      stops, sampling, seed: see `decode.generate`.
      on_tokens: called with the number of tokens of each prefill window and of each decode call.
      samples: sample index of each branch, for several samples of the same text; empty is 0 for all.
      finished: (i, tokens generated so far) -> whether to stop, for stops that are not fixed token sequences.

    Yields:
      (i, int32 generated tokens, whether a stop sequence or `finished` ended them).
    """
    most = np.broadcast_to(np.asarray(max_tokens, np.int32), len(branches))
    numbers = np.asarray(samples, np.int32) if len(samples) else np.zeros(len(branches), np.int32)
    order = sorted(range(len(branches)), key=lambda i: (-len(branches[i].tokens), -most[i]))
    rows = min(rows, 1 << (len(order) - 1).bit_length()) if order else 0
    nothing = start(model)
    while order:
        batch, order = order[:rows], order[rows:]
        idle = rows - len(batch)  # pads the last batch, which would otherwise have another shape and be compiled again
        sessions = [branches[i].session or nothing for i in batch] + [nothing] * idle
        texts = [[branches[i].tokens] if len(branches[i].tokens) else [] for i in batch] + [[]] * idle
        session = prefill(model, join_rows(sessions), texts, on_tokens)
        limits, sample_B = (np.concatenate([x[batch], np.zeros(idle, np.int32)]) for x in (most, numbers))
        made = generate(model, session, limits, sampling, seed=seed, sample_B=sample_B, stops=stops)
        yield from _answers(made, batch, finished, on_tokens)


def _answers(
    steps: Generator[Decoded, Any, None], batch: list[int], finished: Callable[[int, np.ndarray], bool] | None,
    on_tokens: Callable[[int], None] | None,
) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
    """Yields the answers of `decode.generate` for the branches in its first rows, once all are finished."""
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


def _next(steps: Generator[Decoded, Any, None], enough: np.ndarray | None) -> Decoded | None:
    """Returns the next step of `decode.generate`, after stopping the rows in the mask `enough`; None at the end."""
    try:
        return steps.send(enough)
    except StopIteration:
        return None


@functools.partial(jax.jit, static_argnames=("graphdef",), donate_argnames=("memory",))
def _read_window(
    graphdef: nnx.GraphDef[Transformer], params: Tree, tokens: Int[Array, "B T"], count: Int[Array, "B"],
    fresh: Bool[Array, "B"], memory: MemoryState,
) -> tuple[Int[Array, ""], MemoryState]:  # fmt: skip
    """Returns (an array to block on, the memory after these tokens). A `fresh` row starts with the initial memory."""
    model = nnx.merge(graphdef, params)
    memory = select_state_rows(fresh, model.streaming_state(len(count)), memory)
    _, memory = extend(model, tokens, count, memory, lambda model, hidden, index: ())
    return count.sum(), memory
