"""A cache of memories of prompt prefixes, so that prefixes shared by requests are prefilled once.

Memories are cached at block boundaries ("edges"), from which prefill computes exactly what prefill of the whole text
computes. Two edges of a prompt are cached: its last one, from which the next turn of a conversation continues, and the
last one that it shares with an earlier prompt, from which other questions about the same text continue. The least
recently used memory is evicted first.

The name of an edge is the hash (SHA-256) of all tokens before it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention.memory import MemoryState
from famjax.storage.arrays import size_of

# Number of edges of earlier prompts whose hashes are stored, to find shared prefixes; about 8 MB.
SEEN = 2**16


class Plan(NamedTuple):
    """How to prefill a prompt.

    Attributes:
      begin: number of tokens of the longest cached prefix.
      memory: a copy of its memory; None if `begin` is 0.
      keep: {number of tokens before the edge: name} of the edges whose memory is to be cached.
    """

    begin: int
    memory: MemoryState | None
    keep: dict[int, bytes]


NOTHING = Plan(0, None, {})


class PrefixCache:
    """A prefix cache of at most `most_bytes`; 0 disables it.

    Attributes:
      hits, misses: number of prompts longer than a block that began with a cached prefix, or did not.
      tokens: total number of prompt tokens that were cached.
      bytes: current size of all memories.
    """

    def __init__(self, most_bytes: int, block_size: int):
        self._most, self._block_size = most_bytes, block_size
        self._kept: OrderedDict[bytes, MemoryState] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self.hits = self.misses = self.tokens = self.bytes = 0

    def plan(self, tokens: np.ndarray) -> Plan:
        """Returns the longest cached prefix of a whole text, int ids, which must not continue another one, and the
        edges to cache while the rest is prefilled."""
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
        """Caches a copy of the memory of one row at the edge `name`, and evicts others if necessary."""
        size = size_of(memory)
        if size > self._most or name in self._kept:
            return
        while self.bytes + size > self._most:
            _, gone = self._kept.popitem(last=False)
            self.bytes -= size_of(gone)
        self._kept[name] = jax.tree.map(jnp.array, memory)
        self.bytes += size

    def _edges(self, tokens: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Yields (number of tokens before it, name) of each edge. There is no edge at the end of a prompt, since its
        last token stays pending."""
        text, digest, S = np.asarray(tokens, "<i4"), hashlib.sha256(), self._block_size
        for at in range(S, len(text), S):
            digest.update(text[at - S : at].tobytes())
            yield at, digest.digest()
