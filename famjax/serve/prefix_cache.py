"""Memories of texts that requests begin with, so that what they share is read once.

A memory is kept at edges of blocks, where reading on from it computes exactly what reading the whole text computes.
Two edges of a prompt are kept: the last one, from which the next turn of a conversation continues, and the last one
that it shares with an earlier prompt, from which other questions about the same text continue. The least recently
used goes first.

Edges are named by a hash (SHA-256) of all tokens before them.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention.memory import MemoryState

# Edges of earlier prompts whose hashes are remembered, so that a common beginning is found: 8 MB.
SEEN = 2**16


class Plan(NamedTuple):
    """How a prompt is read.

    Attributes:
      begin: tokens whose memory is at hand.
      memory: that memory, a copy; None where `begin` is 0.
      keep: edges, {tokens before it: name}, whose memory is to be kept when they are reached.
    """

    begin: int
    memory: MemoryState | None
    keep: dict[int, bytes]


NOTHING = Plan(0, None, {})


class PrefixCache:
    """A bounded number of bytes of memories.

    Args:
      most_bytes: of all memories; 0 keeps none.
      block_size: tokens of a block.

    Attributes:
      hits, misses: prompts of a block or more that began with a kept memory, and that did not.
      tokens: tokens whose memory was at hand.
      bytes: of all memories now.
    """

    def __init__(self, most_bytes: int, block_size: int):
        self._most, self._block_size = most_bytes, block_size
        self._kept: OrderedDict[bytes, MemoryState] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self.hits = self.misses = self.tokens = self.bytes = 0

    def plan(self, tokens: np.ndarray) -> Plan:
        """The longest beginning of a fresh text that is at hand, and what to keep while the rest is read."""
        if not self._most:
            return NOTHING
        edges = list(self._edges(tokens))
        if not edges:
            return NOTHING
        begin, memory = 0, None
        for at, name in reversed(edges):
            if name in self._kept:
                self._kept.move_to_end(name)
                begin, memory = at, jax.tree.map(jnp.array, self._kept[name])
                break
        self.hits, self.misses = self.hits + (begin > 0), self.misses + (begin == 0)
        self.tokens += begin
        shared = [edge for edge in edges if edge[1] in self._seen][-1:]
        keep = {at: name for at, name in (*shared, edges[-1]) if at > begin}
        for _, name in edges:
            self._seen[name] = None
            self._seen.move_to_end(name)
        while len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        return Plan(begin, memory, keep)

    def put(self, name: bytes, memory: MemoryState) -> None:
        """Keeps a copy of the memory of one row at an edge."""
        size = size_of(memory)
        if size > self._most or name in self._kept:
            return
        while self.bytes + size > self._most:
            _, gone = self._kept.popitem(last=False)
            self.bytes -= size_of(gone)
        self._kept[name] = jax.tree.map(jnp.array, memory)
        self.bytes += size

    def _edges(self, tokens: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """(tokens before it, name) of each edge. The last token of a text is never read, so no edge is at its end."""
        text, digest, S = np.asarray(tokens, "<i4"), hashlib.sha256(), self._block_size
        for at in range(S, len(text), S):
            digest.update(text[at - S : at].tobytes())
            yield at, digest.digest()


def size_of(memory: MemoryState) -> int:
    """Bytes of a memory's arrays."""
    return sum(x.nbytes for x in jax.tree.leaves(memory))
