"""The clients of `famjax bench serve`."""

import io
import itertools
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from famjax.bench import load_test


@pytest.mark.parametrize("vocab_size", [0, 4096])
def test_no_prompt_is_sent_twice(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with a prefix cache would answer from it, also if an earlier round had fewer clients."""
    sent: list[Any] = []

    def request(target: load_test.Target, prompt: Any, max_tokens: int) -> load_test.Took:
        sent.append(str(prompt))
        return load_test.Took(0.0, 0.0, None, 1)

    monkeypatch.setattr(load_test, "_request", request)
    for clients, seed in itertools.product((1, 2, 4), (0, 1)):
        load = {"target": ("name", "http://host:1", "model", vocab_size), "clients": clients, "requests": 2}
        load |= {"prompt_tokens": 8, "max_tokens": 1, "seed": seed}
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(json.dumps(load).encode())))
        load_test.main()
    assert len(set(sent)) == len(sent) == 2 * 2 * (1 + 2 + 4)
