"""Attention to the ring of blocks, slot by slot."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.attention.attend import Scoring, Source, attend, attend_ring
from tests import tiny

SCORING = Scoring(100.0)


@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("current", [(0, 0), (1, 0), (2, 7)])
def test_a_ring_is_one_softmax(queries: int, current: tuple[int, int]) -> None:
    """Slot by slot, together with FAM, the result equals `attend` over all slots; empty slots are skipped, even if they
    contain NaN."""
    B, R, K, C, H = 2, 3, 2, 8, 16
    rng = np.random.default_rng(queries)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    at = np.array(current, np.int32)
    back = (at[:, None] - np.arange(R)) % R
    filled = (back <= at[:, None])[..., None, None, None, None]
    visible = np.broadcast_to(filled, (B, R, 1, 1, queries, C)) & (rng.random((B, R, 1, 1, queries, C)) < 0.7)
    ring = Source(draw(B, R, K, C, H), draw(B, R, K, C, H), visible, back * C)
    fam = Source(draw(B, K, 3, H), draw(B, K, 3, H), None, C)
    q = draw(B, K, 1, queries, H)

    slots = [jax.tree.map(lambda a, r=r: a[:, r], ring) for r in range(R)]
    expected = attend(q, [*slots, fam], SCORING)
    run: Any = jax.jit(lambda q, ring: attend_ring(q, ring, jnp.asarray(at), [fam], SCORING))
    tiny.assert_close(run(q, ring), expected)
    if queries > 1:
        empty = (back > at.max())[..., None, None, None]
        spoiled = ring._replace(**{name: jnp.where(empty, np.nan, getattr(ring, name)) for name in "kv"})
        tiny.assert_close(run(q, spoiled), expected)
