"""A prompt is read in windows of few sizes, with little padding."""

import numpy as np
import pytest

from famjax.infer.session import start
from famjax.serve import reading
from famjax.serve.jobs import Ask, Job
from famjax.serve.prefix_cache import NOTHING, PrefixCache
from tests import tiny

S = 16


@pytest.mark.parametrize(
    ("tokens", "windows"),
    [(1, [2]), (2, [2]), (3, [8]), (8, [8]), (9, [8, 2]), (10, [8, 2]), (11, [16]), (15, [16]), (16, [16]),
     (17, [16, 2]), (26, [16, 8, 2]), (128, [128]), (131, [128, 8]), (170, [128, 32, 8, 2])],
)  # fmt: skip
def test_windows(tokens: int, windows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks, then what is left: half a block and a little more in two windows. Every token is read once."""
    config = tiny.config(vocab_size=257, block_size=S)
    read: list[tuple[int, list[int]]] = []

    def read_rows(graphdef, params, tokens, following, count, memory, top):
        read.append((tokens.shape[1], tokens[0, : count[0]].tolist()))
        return None, memory

    monkeypatch.setattr(reading, "read_rows", read_rows)
    text = np.arange(tokens + 1, dtype=np.int32)  # the last one stays pending
    job = Job(Ask(text, max_tokens=1), lambda event: None)
    one = start(tiny.build(config, tiny.parameters(config)))
    prompt, cache = reading.Reading(job, one, NOTHING, (None, None), S), PrefixCache(0, S)
    while not prompt.finished:
        prompt.window(cache)
    widths = [width for width, _ in read]
    # 32 tokens have no program of their own: they are a window of several blocks.
    assert widths == [width if width in reading.widths(S) else 8 * S for width in windows]
    assert sum((part for _, part in read), []) == text[:-1].tolist()
