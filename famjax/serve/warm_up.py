"""Compiles the programs of a server before its first request, by running each of them on dummy tokens.

Otherwise requests would wait for compilation: one program for each size of a prefill window, and one for each size of
the decode batch. Programs that compute log probabilities are compiled by the first request that needs them. With JAX's
persistent compilation cache the next start reads the programs from disk.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from flax import nnx

from famjax.infer.codec import Stream
from famjax.infer.rows import read_rows
from famjax.infer.session import Session, start
from famjax.infer.settings import RECENT
from famjax.nn.model import Transformer
from famjax.serve.batch import Batch, Row, batch_sizes
from famjax.serve.jobs import Ask, Job
from famjax.serve.reading import widths

# Every program runs twice: its outputs, which are its next inputs, may have other shardings than its first inputs.
TWICE = range(2)


def programs(max_rows: int, block_size: int) -> int:
    """Returns the number of programs that `warm_up` compiles."""
    return len(widths(block_size)) + len(batch_sizes(max_rows))


def warm_up(model: Transformer, max_rows: int) -> Iterator[str]:
    """Compiles and runs one program after the other, and yields the name of each after it has run.

    Prefill windows have one real token, so that they cost at most one block of computation. The largest batch allocates
    the most memory that the batch ever needs.
    """
    graphdef, params = nnx.split(model)
    for width in widths(model.config.memory.block_size):
        tokens, one = np.zeros((1, width), np.int32), np.ones(1, np.int32)
        memory = start(model).memory
        for _ in TWICE:
            _, memory = read_rows(graphdef, params, tokens, tokens, one, memory, None)
        yield f"prefill of {width} tokens"
    session = Session(memory, np.zeros((1, RECENT), np.int32))  # with a pending token
    batch, before = Batch(model, max_rows), 0
    job = Job(Ask(np.zeros(1, np.int32), max_tokens=len(TWICE)), lambda event: None)
    for size in batch_sizes(max_rows):
        while len(batch.rows) < min(before + len(TWICE), size):  # the first of them exceeds the previous size
            batch.join(Row(job, 0, _Silent()), session)
        for _ in TWICE:
            batch.decode(1)
        batch.session_of(batch.rows[-1])
        before = size
        yield f"decoding of {size} row{'s' * (size > 1)}"


class _Silent(Stream):
    """A stream that counts its tokens and returns no text."""

    stopped, taken = False, 0

    def feed(self, tokens: Iterable[int], stopped: bool = False) -> str:
        self.taken += len(list(tokens))
        return ""

    def finish(self) -> str:
        return ""
