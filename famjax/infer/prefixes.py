"""Prefix sharing: finds common prefixes of many contexts by their tokens and prefills each once.

Examples are thirty questions about a book, four answers to a question, or few-shot examples before every question.
The caller gives all contexts at once. Their tokens form a radix tree,

    book ---- question 1 ---- (answers to score, or an answer to generate)
          \\-- question 2

whose runs of tokens are prefilled from the root down, batched, each as a branch of its parent (`infer/branches.py`).
Every token of the tree is read once; at each depth only a few rows' memories exist at the same time.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from famjax.infer.branches import Branch, generate_branches, score_branches
from famjax.infer.decode import GREEDY
from famjax.infer.prefill import prefill
from famjax.infer.session import Session, join_rows, start, take_row
from famjax.infer.settings import Sampling
from famjax.nn.model import Transformer

OnTokens = Callable[[int], None] | None


def score_continuations(
    model: Transformer, contexts: Sequence[np.ndarray], continuations: Sequence[np.ndarray], rows: int = 8, *,
    on_tokens: OnTokens = None,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:  # fmt: skip
    """Scores continuations, an int array for each context, each after its context. Shared prefixes of contexts are
    prefilled once; a context with several continuations is given several times. `on_tokens` is called with the number
    of tokens of each window, for a progress bar.

    Yields:
      (i, logprobs, correct) as they finish: float32 [n], natural-log probability of each token of
      continuation i given all tokens before it; and bool [n], whether it has the highest logit.

    Raises:
      ValueError: for an empty context, or a token outside the vocabulary.
    """
    for ends in _read(model, contexts, rows, on_tokens):
        branches = [Branch(end.session, np.asarray(continuations[end.context])) for end in ends]
        for n, logprobs, correct in score_branches(model, branches, _lanes(len(ends), rows), on_tokens):
            yield ends[n].context, logprobs, correct


def generate_continuations(
    model: Transformer, contexts: Sequence[np.ndarray], max_tokens: int | Sequence[int], rows: int = 8, *,
    sampling: Sampling = GREEDY, seed: int = 0, samples: Sequence[int] | None = None,
    stops: Sequence[Sequence[int]] = (), finished: Callable[[int, np.ndarray], bool] | None = None,
) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
    """Generates continuations of contexts, as in `score_continuations`; settings as in `branches.generate_branches`.

    Yields:
      (i, tokens, stopped) as they finish: int32 [n], including a stop; and whether `stops` or `finished` ended them.
    """
    most = np.broadcast_to(np.asarray(max_tokens, np.int32), len(contexts))
    numbers = np.zeros(len(contexts), np.int32) if samples is None else np.asarray(samples, np.int32)
    nothing = np.zeros(0, np.int32)
    for ends in _read(model, contexts, rows):
        of = np.array([end.context for end in ends])
        enough = (lambda n, tokens, of=of: finished(int(of[n]), tokens)) if finished else None
        for n, tokens, stopped in generate_branches(
            model, [Branch(end.session, nothing) for end in ends], rows, most[of].tolist(), stops, sampling, seed,
            samples=numbers[of].tolist(), finished=enough,
        ):  # fmt: skip
            yield int(of[n]), tokens, stopped


# --- the tree -------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """The cost of prefilling contexts: the number of all of their tokens, and of those that are actually read."""

    given: int
    read: int


def reading_plan(contexts: Sequence[np.ndarray], block_size: int) -> Plan:
    """Returns the number of tokens that `score_continuations` and `generate_continuations` read of these contexts."""
    read, waiting = 0, [_tree(contexts, block_size)]
    while waiting:
        node = waiting.pop()
        read += sum(child.depth - node.depth for child in node.children)
        waiting += node.children
    return Plan(sum(map(len, contexts)), read)


@dataclasses.dataclass
class _Node:
    """A node of the radix tree.

    Attributes:
      depth: number of tokens from the root to this node.
      context: index of a context that passes through it.
      requests: indices of the contexts that end here.
      children: child nodes.
    """

    depth: int
    context: int
    requests: list[int] = dataclasses.field(default_factory=list)
    children: list["_Node"] = dataclasses.field(default_factory=list)


def _tree(contexts: Sequence[np.ndarray], block_size: int) -> _Node:
    """Returns the root of the contexts' radix tree. Forks that save less than the smallest window, S / 8 tokens, are
    pruned."""
    # Big-endian bytes sort like the token ids.
    order = sorted(range(len(contexts)), key=lambda i: np.asarray(contexts[i]).astype(">u4").tobytes())
    root = _Node(0, -1)
    path = [root]
    before: np.ndarray = np.zeros(0, np.int32)
    for i in order:
        context = np.asarray(contexts[i])
        shared = _shared(before, context)
        last = None
        while path[-1].depth > shared:
            last = path.pop()
        if last is not None and path[-1].depth < shared:  # split the run that leads to `last`
            fork = _Node(shared, i, children=[last])
            path[-1].children[-1] = fork
            path.append(fork)
        if len(context) > shared:
            path[-1].children.append(_Node(len(context), i))
            path.append(path[-1].children[-1])
        path[-1].requests.append(i)
        before = context
    _prune(root, block_size // 8)
    return root


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Returns the length of the common prefix of two token arrays."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _prune(root: _Node, least: int) -> None:
    """Removes forks that save fewer than `least` tokens; their children move to the parent."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        kept: list[_Node] = []
        unsure = node.children
        while unsure:
            child = unsure.pop()
            saved = (child.depth - node.depth) * (len(child.children) - 1)
            if child.requests or saved >= least:
                kept.append(child)
            else:
                unsure += child.children
        node.children = kept
        waiting += kept


class _End(NamedTuple):
    """The index of a context, and the session of one row after it."""

    context: int
    session: Session


class _Run(NamedTuple):
    """Tokens `begin` to `node.depth` of a context, to be read after a session."""

    node: _Node
    begin: int
    session: Session


def _read(
    model: Transformer, contexts: Sequence[np.ndarray], rows: int, on_tokens: OnTokens = None
) -> Iterator[list[_End]]:
    """Prefills the tree in batches of up to `rows` runs, and yields contexts as their ends are reached."""
    root, nothing = _tree(contexts, model.config.memory.block_size), start(model)
    if root.requests:
        raise ValueError(f"context {root.requests[0]} has no token; give it at least one")
    # Depth first, so that a session is freed as soon as its last child is read.
    waiting = _batches([(root, nothing)], rows)
    while waiting:
        batch = waiting.pop()
        idle = _lanes(len(batch), rows) - len(batch)
        texts = [[contexts[run.node.context][run.begin : run.node.depth]] for run in batch]
        session = join_rows([run.session for run in batch] + [nothing] * idle)
        session = prefill(model, session, [*texts, *([[]] * idle)], on_tokens)
        read = [(run.node, take_row(session, row)) for row, run in enumerate(batch)]
        del session, batch
        if ends := [_End(i, one) for node, one in read for i in node.requests]:
            yield ends
        waiting += _batches(read, rows)


def _batches(read: Sequence[tuple[_Node, Session]], rows: int) -> list[list[_Run]]:
    """Returns the child runs of some nodes in batches of up to `rows` of similar length, the longest last."""
    runs = [_Run(child, node.depth, session) for node, session in read for child in node.children]
    runs.sort(key=lambda run: run.node.depth - run.begin)
    return [runs[begin : begin + rows] for begin in range(0, len(runs), rows)]


def _lanes(count: int, rows: int) -> int:
    """Returns the batch size for `count` texts: a power of two, so that few programs are compiled."""
    return min(1 << (count - 1).bit_length(), rows)
