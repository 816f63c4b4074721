"""Ablation of the memory: a text is scored with its own FAM, and with a replacement.

    kept      the document's own FAM
    fresh     the initial FAM: the learned prompt, propagated through the layers
    zero      zero activations (their keys score 0 against every query, so they still receive attention)
    swapped   another document's FAM

Memory segments, the window and all weights are unchanged, so differences are due to FAM alone.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from famjax.attention.memory import MemoryState
from famjax.infer.branches import Branch, score_branches
from famjax.infer.session import Session, start
from famjax.nn.model import Transformer

# Names of the FAMs, as above.
INSTEAD = ("kept", "fresh", "zero", "swapped")


class Case(NamedTuple):
    """A position in a document, from which it is scored with each FAM.

    Attributes:
      session: the session of one row at a block boundary: the new block's first token is pending, nothing of that block
        is prefilled.
      rest: int32 [n], the tokens after the pending one.
      other: a session with the FAM for `swapped`; None omits `swapped`.
    """

    session: Session
    rest: np.ndarray
    other: Session | None = None


def knock_out(
    model: Transformer, cases: Sequence[Case], rows: int = 8
) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Scores each case's rest with each FAM.

    Returns:
      for each case, by the names in `INSTEAD` (`swapped` only if the case has `other`): natural-log probabilities
      float32 [n] of the rest's tokens, and bool [n], whether each is the argmax.
    """
    fresh = fam_of(start(model))
    named, branches = [], []
    for i, case in enumerate(cases):
        fam = fam_of(case.session)
        instead = {"kept": None, "fresh": fresh, "zero": jnp.zeros_like(fam)}
        if case.other is not None:
            instead["swapped"] = fam_of(case.other)
        for name, other in instead.items():
            session = case.session if other is None else with_fam(model, case.session, other)
            branches.append(Branch(session, case.rest))
            named.append((i, name))
    found: list[dict[str, tuple[np.ndarray, np.ndarray]]] = [{} for _ in cases]
    for n, logprobs, correct in score_branches(model, branches, rows):
        i, name = named[n]
        found[i][name] = logprobs, correct
    return [{name: one[name] for name in INSTEAD if name in one} for one in found]


def fam_of(session: Session) -> jax.Array:
    """Returns the feedback activations of all layers, [L, 1, P, F, D]."""
    return jnp.stack([layer.fam for layer in session.memory.unstacked])


def with_fam(model: Transformer, session: Session, fam: jax.Array) -> Session:
    """Returns the session with another FAM, [L, 1, P, F, D]."""
    return Session(_with_fam(*nnx.split(model), session.memory, fam), session.recent)


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _with_fam(
    graphdef: nnx.GraphDef[Transformer], params: nnx.State[Any, Any], memory: MemoryState, fam: jax.Array
) -> MemoryState:
    return nnx.merge(graphdef, params).with_fam(memory, fam)
