"""Log probabilities of every token of texts: in one pass over whole texts, or streamed in constant memory."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from famjax.attention.memory import MemoryState, select_state_rows
from famjax.config import ConfigError
from famjax.dims import Array, Bool, Float, Int, Tree
from famjax.infer.prefill import BLOCKS_PER_CALL, extend
from famjax.infer.session import set_row, start
from famjax.jobs.distributed import whole
from famjax.nn.model import Transformer

# Maximum bytes of logits that are materialised at once.
LOGITS_BYTES = 2**27
# Maximum tokens, including padding, in a batch of whole documents.
TOKENS_AT_ONCE = 2**15

# Natural-log probability (float32) of the token after each token of a text, and whether it has the highest logit.
Scores: TypeAlias = tuple[Float[np.ndarray, "_n"], Bool[np.ndarray, "_n"]]
TokenScores: TypeAlias = tuple[Float[Array, "B Q"], Bool[Array, "B Q"]]


def score_documents(
    model: Transformer, documents: Sequence[np.ndarray], rows: int, blocks_per_call: int = BLOCKS_PER_CALL,
    on_tokens: Callable[[int], None] | None = None, starts: Sequence[MemoryState | None] = (),
    labels: Sequence[np.ndarray] = (),
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:  # fmt: skip
    """Scores documents with continuous batching, in memory that does not grow with their length.

    Rows read window by window. A row that has finished its document starts the longest of the remaining ones with the
    initial memory. So documents of very unequal lengths need little padding, and one program.

    Args:
      model: the model.
      documents: int arrays of any lengths.
      rows: maximum batch size; see `useful_rows`.
      blocks_per_call: blocks per window.
      on_tokens: called with the number of tokens of each window, for a progress bar.
      starts: for each document a memory of one row that it continues, or None; empty: no document continues another
        text. Continuations are usually short, so with `starts` windows are shortened if possible.
      labels: for each document int [n], the token to score after each of its tokens; empty: each token is scored
        after the tokens before it, and nothing after the last one.

    Yields:
      (i, logprobs, correct) as documents finish: float32 [n - 1] (with labels [n]), natural-log probability of token
      t + 1 (or label t) of document i given tokens 0..t; and bool, whether it has the highest logit.
    """
    graphdef, params = nnx.split(model)
    window = blocks_per_call * model.config.memory.block_size
    waiting = sorted(range(len(documents)), key=lambda i: len(documents[i]))  # the longest is taken first
    reading: list[tuple[int, int]] = [(-1, 0)] * min(rows, len(documents))  # (document, tokens read) by row
    found: dict[int, Scores] = {}
    state = start(model, len(reading)).memory
    pending: list[tuple[TokenScores, int, list[tuple[int, int]]]] = []

    def collect() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        out, width, what = pending.pop(0)
        parts = [whole(x) for x in out]
        for row, (i, begin) in enumerate(what):
            if i < 0:
                continue
            for scores, part in zip(found[i], parts, strict=True):
                piece = scores[begin : begin + width]
                piece[:] = part[row, : len(piece)]
            if begin + width >= len(documents[i]):
                yield i, *found.pop(i)

    while (taken := take_window(documents, waiting, reading, window, shorter=bool(starts))) is not None:
        tokens, count, fresh = taken
        for row in np.flatnonzero(fresh):
            i, _ = reading[row]
            n = len(labels[i]) if labels else max(len(documents[i]) - 1, 0)
            found[i] = np.zeros(n, np.float32), np.zeros(n, bool)
            if starts and (begun := starts[i]) is not None:
                state, fresh[row] = set_row(state, row, begun), False
        width = tokens.shape[1] - 1
        scored = labels_of_window(labels, reading, width) if labels else tokens[:, 1:]
        out, state = _score_window(graphdef, params, tokens[:, :-1], scored, count, fresh, state)
        pending.append((out, width, list(reading)))
        reading = [(i, at + width) for i, at in reading]
        if len(pending) > 1:  # fetch results while the device reads the next window
            yield from collect()
        if on_tokens is not None:
            on_tokens(int(count.sum()))
    while pending:
        yield from collect()


def take_window(
    documents: Sequence[np.ndarray], waiting: list[int], reading: list[tuple[int, int]], window: int,
    shorter: bool = False,
) -> tuple[Int[np.ndarray, "B _T"], Int[np.ndarray, "B"], Bool[np.ndarray, "B"]] | None:  # fmt: skip
    """Returns the next window of each row: window + 1 tokens, number of tokens to read, whether it starts a document.

    The extra token is the one to score after the window's last token. Rows that have finished start the last document
    of `waiting`. Both lists are updated in place; `reading` is (document, tokens read) by row, with document -1 if
    there is none. Returns None if all rows are done. With `shorter`, the window is only as long as needed, rounded up
    to a power of four so that few programs are compiled.
    """
    tokens = np.zeros((len(reading), window + 1), np.int32)
    count, fresh = np.zeros(len(reading), np.int32), np.zeros(len(reading), bool)
    for row, (i, at) in enumerate(reading):
        if i < 0 or at >= len(documents[i]):
            i, at = (waiting.pop(), 0) if waiting else (-1, 0)
        reading[row], fresh[row] = (i, at), i >= 0 and at == 0
        if i >= 0:
            piece = documents[i][at : at + window + 1]
            tokens[row, : len(piece)] = piece
            count[row] = min(len(documents[i]) - at, window)
    if shorter:
        power = ((max(int(count.max()), 1) - 1).bit_length() + 1) // 2
        tokens = tokens[:, : min(4**power, window) + 1]
    return (tokens, count, fresh) if any(i >= 0 for i, _ in reading) else None


def labels_of_window(
    labels: Sequence[np.ndarray], reading: Sequence[tuple[int, int]], width: int
) -> Int[np.ndarray, "B _T"]:
    """Returns the labels of each row's window, with padding; `reading` is (document, tokens read) by row."""
    window = np.zeros((len(reading), width), np.int32)
    for row, (i, at) in enumerate(reading):
        if i >= 0:
            piece = labels[i][at : at + width]
            window[row, : len(piece)] = piece
    return window


def useful_rows(documents: Sequence[np.ndarray], most: int) -> int:
    """Returns the batch size, at most `most`, beyond which rows would be idle while the longest document is read."""
    lengths = [max(1, len(document)) for document in documents]
    return max(1, min(most, -(-sum(lengths) // max(lengths, default=1))))


def score_whole(
    model: Transformer, tokens: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, "B"]
) -> tuple[Float[np.ndarray, "B T-1"], Bool[np.ndarray, "B T-1"]]:  # fmt: skip
    """Scores texts in one pass over whole texts; memory grows with their length.

    Texts are padded to a few different lengths, so that few programs are compiled.

    Args:
      model: the model.
      tokens: texts of unequal lengths, with any padding after them.
      lengths: length of each text, at most T.

    Returns:
      (logprobs, correct) as in `score_documents`, by row; 0 and False from the position of a text's last token on.
    """
    graphdef, params = nnx.split(model)
    B, T = tokens.shape
    lengths = np.asarray(lengths, np.int32)
    padded = padded_length(T, model.config.memory.block_size)
    part = np.zeros((B, padded + 1), np.int32)
    part[:, :T] = tokens
    out = _score_whole(graphdef, params, part[:, :-1], part[:, 1:], lengths)
    logprobs, correct = (np.array(x)[:, : max(T - 1, 0)] for x in out)
    after = np.arange(logprobs.shape[1]) >= lengths[:, None] - 1
    logprobs[after], correct[after] = 0.0, False
    return logprobs, correct


def score_in_batches(
    model: Transformer, documents: Sequence[np.ndarray], batch_size: int, streaming: bool = False,
    on_tokens: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    """Yields (index of a document, its log probabilities float32 [n - 1]) as documents finish.

    Args:
      model: the model.
      documents: int32 arrays of any lengths, at least one token each.
      batch_size: maximum batch size.
      streaming: stream block by block, in memory that does not grow with the documents.
      on_tokens: called with the number of tokens of each batch or window.

    Raises:
      ConfigError: a log probability is not finite.
    """
    if streaming:
        streamed = score_documents(model, documents, useful_rows(documents, batch_size), on_tokens=on_tokens)
        found: Iterator[tuple[int, np.ndarray]] = ((index, logprobs) for index, logprobs, _ in streamed)
    else:
        found = _score_by_length(model, documents, batch_size, on_tokens)
    for index, logprobs in found:
        if not np.isfinite(logprobs).all():
            raise ConfigError(f"document {index + 1} has non-finite log probabilities; check the weights")
        yield index, logprobs


def _score_by_length(
    model: Transformer, documents: Sequence[np.ndarray], batch_size: int, on_tokens: Callable[[int], None] | None
) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    """Yields the results of `score_in_batches` from `score_whole`, the longest documents first."""
    order = sorted(range(len(documents)), key=lambda i: -len(documents[i]))
    while order:
        longest = len(documents[order[0]])
        fit = max(1, TOKENS_AT_ONCE // padded_length(longest, model.config.memory.block_size))
        rows = min(batch_size, 1 << (fit.bit_length() - 1), 1 << (len(order) - 1).bit_length())
        batch, order = order[:rows], order[rows:]
        tokens = np.zeros((rows, longest), np.int32)  # rows without a document have length 0
        lengths = np.zeros(rows, np.int32)
        for row, index in enumerate(batch):
            lengths[row] = len(documents[index])
            tokens[row, : lengths[row]] = documents[index]
        logprobs, _ = score_whole(model, tokens, lengths)
        if on_tokens is not None:
            on_tokens(int(lengths.sum()))
        for row, index in enumerate(batch):
            yield index, logprobs[row, : lengths[row] - 1]


def padded_length(length: int, block_size: int) -> int:
    """Returns the smallest of S * (1, 2, 3, 4, 6, 8, 12, 16, ...) that is at least `length` tokens."""
    blocks = max(1, -(-length // block_size))
    power = 1 << (blocks - 1).bit_length()
    half_way = power * 3 // 4
    return block_size * (half_way if power >= 4 and blocks <= half_way else power)


def next_token_scores(model: Transformer, hidden: Float[Array, "B Q D"], following: Int[Array, "B Q"]) -> TokenScores:
    """Returns the natural-log probability of each next token, and whether it has the highest logit.

    Large logits [B, Q, V] are computed a few positions at a time.
    """

    def score(logits: Float[Array, "B Q V"], following: Int[Array, "B Q"]) -> TokenScores:
        chosen = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1), logits.argmax(axis=-1) == following

    return of_logits(model, hidden, following, score)


def of_logits(
    model: Transformer, hidden: Float[Array, "B Q D"], following: Int[Array, "B Q"],
    score: Callable[[Float[Array, "B Q V"], Int[Array, "B Q"]], Tree],
) -> Tree:  # fmt: skip
    """Returns `score(logits, following)`, arrays [B, Q, ...], without materialising all logits [B, Q, V] at once:
    `score` maps those of some positions [B, q, V], and the tokens after them [B, q], to a tree of arrays [B, q, ...].
    """
    B, Q, _ = hidden.shape
    fit = max(1, LOGITS_BYTES // (4 * B * model.config.vocab_size))
    at_once = max(q for q in range(1, Q + 1) if Q % q == 0 and (q <= fit or q == 1))
    if at_once == Q:
        return score(model.logits(hidden), following)
    cut = lambda x: jnp.moveaxis(x.reshape(B, Q // at_once, at_once, *x.shape[2:]), 1, 0)
    scores = jax.lax.map(lambda args: score(model.logits(args[0]), args[1]), (cut(hidden), cut(following)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, Q, *x.shape[3:]), scores)


@functools.partial(jax.jit, static_argnames=("graphdef",), donate_argnames=("state",))
def _score_window(
    graphdef: nnx.GraphDef[Transformer], params: Tree, tokens: Int[Array, "B T"], following: Int[Array, "B T"],
    count: Int[Array, "B"], fresh: Bool[Array, "B"], state: MemoryState,
) -> tuple[TokenScores, MemoryState]:  # fmt: skip
    """Returns the scores of a window and the memory after it. A `fresh` row starts with the initial memory."""

    def emit(model: Transformer, hidden: Float[Array, "B Q D"], index: Int[Array, "B Q"]) -> TokenScores:
        return next_token_scores(model, hidden, jnp.take_along_axis(following, index, axis=1))

    model = nnx.merge(graphdef, params)
    state = select_state_rows(fresh, model.streaming_state(len(count)), state)
    return extend(model, tokens, count, state, emit)


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _score_whole(
    graphdef: nnx.GraphDef[Transformer], params: Tree, tokens: Int[Array, "B T"], following: Int[Array, "B T"],
    count: Int[Array, "B"],
) -> TokenScores:  # fmt: skip
    model = nnx.merge(graphdef, params)
    hidden, _ = model(tokens, count=count)
    return next_token_scores(model, hidden, following)
