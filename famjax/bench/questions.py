"""Many questions about one long text: what it saves to read the text once."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from famjax.bench.measure import alternate, paired_ratio, spread
from famjax.config import ModelConfig
from famjax.infer import decode, prefill, session
from famjax.infer.prefixes import generate_continuations, reading_plan
from famjax.nn.model import Transformer
from famjax.nn.weights import create, unstacked

# A question, and an answer, of NarrativeQA's lengths.
QUESTION_TOKENS, ANSWER_TOKENS = (10, 40), 8


def questions(
    config: ModelConfig, blocks: int, count: int, rows: int, repeats: int, tell: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Answers to `count` questions about a text of `blocks` blocks, all random tokens.

    Args:
      config: the model.
      blocks: of the text.
      count: questions.
      rows: contexts that are read side by side.
      repeats: turns.
      tell: called with what is going on.

    Returns:
      seconds of `shared`, where the text is read once and its memory forked, and of `alone`, where every question reads
      it again, `rows` of them side by side; their ratio turn by turn; and how many tokens each reads.
    """
    model, rng = unstacked(create(config)), np.random.default_rng(0)
    draw: Callable[[Any], np.ndarray] = lambda n: rng.integers(0, config.vocab_size, n).astype(np.int32)
    text = draw(blocks * config.memory.block_size)
    asked = [np.concatenate([text, draw(rng.integers(*QUESTION_TOKENS))]) for _ in range(count)]
    runs = {"shared": lambda some: _shared(model, some, rows), "alone": lambda some: _alone(model, some, rows)}
    short = [one[-min(len(one), 9 * config.memory.block_size) :] for one in asked]
    compiling = {}
    for name, run in runs.items():  # the same programs as for the whole text
        tell(f"questions: compiling {name}", 0, 1)
        began = time.perf_counter()
        run(short)
        compiling[name] = time.perf_counter() - began
    whole = {name: (lambda run=run: run(asked)) for name, run in runs.items()}
    times = alternate(whole, repeats, on_turn=lambda done, all_runs: tell("questions", done, all_runs))
    plan = reading_plan(asked, config.memory.block_size)
    return {
        "blocks": blocks, "tokens": len(text), "questions": count, "rows": rows,
        "seconds": {name: spread(seconds)._asdict() for name, seconds in times.items()},
        "first_seconds": compiling, "read": {"shared": plan.read, "alone": plan.given},
        "speed_up": paired_ratio(times, "alone", "shared")._asdict(),
    }  # fmt: skip


def _shared(model: Transformer, contexts: list[np.ndarray], rows: int) -> None:
    for _ in generate_continuations(model, contexts, ANSWER_TOKENS, rows):
        pass


def _alone(model: Transformer, contexts: list[np.ndarray], rows: int) -> None:
    for begin in range(0, len(contexts), rows):
        some = contexts[begin : begin + rows]
        some += contexts[: rows - len(some)] if len(contexts) >= rows else []  # one shape for all
        read = prefill.prefill(model, session.start(model, len(some)), [[one] for one in some])
        for _ in decode.generate(model, read, ANSWER_TOKENS):
            pass
