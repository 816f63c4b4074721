"""Traces a document: reads it once, block by block, and records attention, FAM and the gates of its updates.

A normal forward pass does not keep these, so blocks go through observed layers (`over` of
`Transformer.forward`). Of each block, only sums and points of curves are kept, so device memory does not grow with the
document.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from famjax.attention.memory import MemoryState
from famjax.attention.observe import KINDS, attention_of_blocks, write_gates_of_blocks
from famjax.attention.positions import after
from famjax.attention.sequence import over_blocks
from famjax.dims import Array, Float, Int, Tree
from famjax.infer.scoring import next_token_scores
from famjax.nn.model import LayerOverBlocks, Transformer

# Upper bounds on the rows and columns of heat maps, for the block and for FAM.
BLOCK_BINS, FAM_BINS = 64, 32
FAM = KINDS.index("fam")


@dataclasses.dataclass
class Trace:
    """Recordings of a document. Shares of attention are from 0 to 1; a layer has K * G heads.

    In a layer without FAM all that is of FAM is NaN: its share of the tokens' attention, its queries, its updates.

    Attributes:
      tokens: number of tokens.
      attention: [L, heads, 3], shares of memory segments, FAM and own block, mean over tokens after the first update.
      answer_attention: the same over the tokens that predict the answer; None if there is none.
      fam_attention: [L, heads, 3], the same for FAM's queries: 0, previous FAM and own block, mean over all updates but
        the first; NaN if there is no second update.
      uniform: [L, heads], the share of FAM if those tokens attended to all keys in reach alike.
      to_fam: [N, L], share of FAM by block, mean over tokens and heads; NaN before the first update.
      rms: [N, L], root mean square of FAM after the update at the end of each full block.
      change: [N, L], relative change of FAM by an update: |F' - F| / |F|.
      cosine: [N, L], cosine similarity of F' and F, mean over FAM's activations.
      gates: [N, L, 3], mean, minimum and maximum over the F feedback activations of the gate g of the update at the end
        of each full block, F' = (1 - g) F + g U; NaN in a layer whose updates have no gate.
      token_map, fam_map: [L, heads, rows, columns] of one block: attention of its tokens, and of FAM's queries at its
        end, to FAM (the first `fam_columns` columns) and to the block. The remainder goes to memory segments.
      map_block: index of that block.
      logprobs: float32 [T - 1], natural-log probabilities of the tokens from the second on.
    """

    tokens: int
    attention: np.ndarray
    answer_attention: np.ndarray | None
    fam_attention: np.ndarray
    uniform: np.ndarray
    to_fam: np.ndarray
    rms: np.ndarray
    change: np.ndarray
    cosine: np.ndarray
    gates: np.ndarray
    token_map: np.ndarray
    fam_map: np.ndarray
    fam_columns: int
    map_block: int
    logprobs: np.ndarray


def trace(
    model: Transformer, tokens: np.ndarray, answer: np.ndarray | None = None, map_block: int | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> Trace:  # fmt: skip
    """Traces a document.

    Args:
      model: a model with FAM.
      tokens: int32 [T], more than one block.
      answer: positions of the answer's tokens.
      map_block: block whose attention is returned as heat maps; None: the block that predicts the answer's first token,
        or the last full block.
      on_tokens: called with the number of tokens of each block.

    Raises:
      ValueError: the document has no second block.
    """
    S = model.config.memory.block_size
    if len(tokens) <= S:
        raise ValueError(f"a document of {len(tokens)} tokens has only one block of {S}")
    N = -(-len(tokens) // S)
    if map_block is None:
        map_block = (int(answer[0]) - 1) // S if answer is not None else len(tokens) // S - 1
    graphdef, params = nnx.split(model)
    state, sums = _start(graphdef, params), _Sums()
    maps: Any = None
    for n in range(N):
        part = np.zeros(S + 1, np.int32)
        piece = tokens[n * S : (n + 1) * S + 1]
        part[: len(piece)] = piece
        count = min(S, len(tokens) - n * S)
        args = (graphdef, params, part[None, :-1], part[None, 1:], np.array([count], np.int32), state)
        if n == map_block:
            maps = jax.device_get(_maps(*args))
        seen, state = _read(*args)
        sums.add(jax.device_get(seen), n, count, S, answer)
        if on_tokens is not None:
            on_tokens(count)
    found = sums.trace(len(tokens), maps, map_block, min(model.config.memory.fam_length, FAM_BINS))
    _blank(found, np.array([not model.config.has_fam(layer) for layer in range(model.config.num_layers)]))
    return found


def _blank(found: Trace, without: np.ndarray) -> None:
    """Sets what layers `without` FAM, bool [L], have recorded of it to NaN."""
    found.attention[without, :, FAM] = np.nan
    if found.answer_attention is not None:
        found.answer_attention[without, :, FAM] = np.nan
    found.token_map[without, ..., : found.fam_columns] = np.nan
    for by_layer in (found.fam_attention, found.uniform, found.fam_map):
        by_layer[without] = np.nan
    for by_block in (found.to_fam, found.rms, found.change, found.cosine):
        by_block[:, without] = np.nan


class _Sums:
    """Accumulates the recordings of all blocks."""

    def __init__(self) -> None:
        self._tokens, self._answer, self._fam, self._uniform = ([0.0, 0] for _ in range(4))
        self._by_block: list[tuple[np.ndarray, ...]] = []
        self._logprobs: list[np.ndarray] = []

    def add(self, seen: Any, n: int, count: int, S: int, answer: np.ndarray | None) -> None:
        """Adds what `_read` returned for block n."""
        of_tokens, of_fam, uniform, rms, change, cosine, gates, _ = (np.asarray(x, np.float64) for x in seen)
        if n:
            self._add(self._tokens, of_tokens[:, :, :count])
            self._add(self._uniform, uniform[:, :, :count])
            if answer is not None:
                inside = [t - 1 - n * S for t in answer if n * S <= t - 1 < n * S + count]
                self._add(self._answer, of_tokens[:, :, inside])
            if count == S:
                self._add(self._fam, of_fam)
        nothing = np.full(len(rms), np.nan)
        to_fam = of_tokens[:, :, :count, FAM].mean(axis=(1, 2)) if n else nothing
        updated = (rms, change if n else nothing, cosine if n else nothing) if count == S else (nothing,) * 3
        of_gates = np.stack([gates.mean(axis=1), gates.min(axis=1), gates.max(axis=1)], axis=1)
        self._by_block.append((to_fam, *updated, of_gates if count == S else np.full_like(of_gates, np.nan)))
        self._logprobs.append(np.asarray(seen[-1], np.float32)[:count])

    @staticmethod
    def _add(total: list[Any], x_LHQn: np.ndarray) -> None:
        total[0], total[1] = total[0] + x_LHQn.sum(axis=2), total[1] + x_LHQn.shape[2]

    def trace(self, tokens: int, maps: Any, map_block: int, fam_columns: int) -> Trace:
        """Returns the trace of all blocks."""
        mean: Callable[[list[Any]], Any] = lambda total: total[0] / total[1] if total[1] else None
        to_fam, rms, change, cosine, gates = (np.stack(x) for x in zip(*self._by_block, strict=True))
        attention, fam_attention = mean(self._tokens), mean(self._fam)
        if fam_attention is None:  # no second update
            fam_attention = np.full_like(attention, np.nan)
        token_map, fam_map = (np.asarray(x, np.float64) for x in maps)
        return Trace(
            tokens, attention, mean(self._answer), fam_attention, mean(self._uniform), to_fam, rms, change, cosine,
            gates, token_map, fam_map, fam_columns, map_block, np.concatenate(self._logprobs)[: tokens - 1],
        )  # fmt: skip


def _heads(x_BNKGQn: Any) -> Any:
    """Reshapes [B, N, K, G, Q, n] of one row and one block to [heads, Q, n]."""
    return x_BNKGQn[0, 0].reshape(-1, *x_BNKGQn.shape[4:])


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _start(graphdef: nnx.GraphDef[Transformer], params: Tree) -> MemoryState:
    """Returns the initial memory of one document."""
    return nnx.merge(graphdef, params).initial_state(1)


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _read(
    graphdef: nnx.GraphDef[Transformer], params: Tree, tokens_1S: Int[Array, "1 S"], next_1S: Int[Array, "1 S"],
    count_1: Int[Array, "1"], state: MemoryState,
) -> tuple[Tree, MemoryState]:  # fmt: skip
    """Runs a block. Returns the recordings for `_Sums.add` (leading axis L, except the last one) and the memory after
    the block."""
    model = nnx.merge(graphdef, params)

    def observed(layer: Any, x: Any, before: Any, fresh: Any, where: Any, *how: Any) -> Any:
        y, later = over_blocks(layer, x, before, fresh, where, *how)
        of_tokens, of_fam = attention_of_blocks(layer, x, before, fresh, where)
        uniform, _ = attention_of_blocks(layer, x, before, fresh, where, uniform=True)
        old, new = before.fam[0, 0], later.fam[0, 0]  # [F, D], the newest
        norm = lambda x, axis=None: jnp.sqrt(jnp.square(x).sum(axis=axis))
        rms = jnp.sqrt(jnp.square(new).mean())
        cosine = ((old * new).sum(axis=-1) / (norm(old, -1) * norm(new, -1))).mean()
        gates = write_gates_of_blocks(layer, x, before, fresh, where)[0, 0]
        shares = _heads(of_tokens), _heads(of_fam), _heads(uniform)[..., FAM]
        return y, (later, (*shares, rms, norm(new - old) / norm(old), cosine, gates))

    hidden, state, seen = _forward(model, tokens_1S, count_1, state, observed)
    return (*seen, next_token_scores(model, hidden, next_1S)[0][0]), state


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _maps(
    graphdef: nnx.GraphDef[Transformer], params: Tree, tokens_1S: Int[Array, "1 S"], next_1S: Int[Array, "1 S"],
    count_1: Int[Array, "1"], state: MemoryState,
) -> tuple[Float[Array, "L _h _r _c"], Float[Array, "L _h _r _c"]]:  # fmt: skip
    """Returns a block's heat maps of tokens and of FAM's queries, [L, heads, rows, columns], FAM's columns first."""
    model = nnx.merge(graphdef, params)
    fam_bins, S = min(model.config.memory.fam_length, FAM_BINS), tokens_1S.shape[1]

    def marks(kind: str, keys: int) -> Any:
        columns = np.zeros((keys, fam_bins + min(S, BLOCK_BINS)), np.float32)
        if kind == "fam":
            columns[:, :fam_bins] = _bins(keys, fam_bins)
        elif kind == "own":
            columns[:, fam_bins:] = _bins(keys, columns.shape[1] - fam_bins)
        return columns

    def observed(layer: Any, x: Any, before: Any, fresh: Any, where: Any, *how: Any) -> Any:
        y, later = over_blocks(layer, x, before, fresh, where, *how)
        found = attention_of_blocks(layer, x, before, fresh, where, marks)
        bins = [_bins(one.shape[-2], min(one.shape[-2], BLOCK_BINS)) for one in found]
        means = (jnp.einsum("hqn,qr->hrn", _heads(a), b / b.sum(axis=0)) for a, b in zip(found, bins, strict=True))
        return y, (later, tuple(means))  # queries averaged into the rows of a heat map

    return _forward(model, tokens_1S, count_1, state, observed)[2]


def _forward(
    model: Transformer, tokens_1S: Int[Array, "1 S"], count_1: Int[Array, "1"], state: MemoryState,
    observed: LayerOverBlocks,
) -> tuple[Float[Array, "1 S D"], MemoryState, Tree]:  # fmt: skip
    """Returns hidden states, the memory after the block, and what `observed` returned for each layer."""
    where = model.locate(state, count_1, tokens_1S.shape[1])
    hidden, (layers, found) = model.forward(model.embed(tokens_1S), state, where, over=observed)
    return hidden, MemoryState(*after(where, model.config.memory), layers), found


def _bins(count: int, bins: int) -> np.ndarray:
    """Returns float32 [count, bins]: one-hot assignment of `count` items to bins of equal size."""
    return np.eye(bins, dtype=np.float32)[np.arange(count) * bins // count]
