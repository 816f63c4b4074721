"""Many questions about one long text: the gain from prefilling the text once."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from famjax.bench.measure import Tell, alternate, paired_ratio, spread
from famjax.config import ModelConfig
from famjax.infer import decode, prefill, session
from famjax.infer.prefixes import generate_continuations, reading_plan
from famjax.nn.model import Transformer
from famjax.nn.weights import create, unstacked

# Lengths of questions and answers, as in NarrativeQA.
QUESTION_TOKENS, ANSWER_TOKENS = (10, 40), 8


def questions(config: ModelConfig, blocks: int, count: int, rows: int, repeats: int, tell: Tell) -> dict[str, Any]:
    """Measures answering `count` questions about a text of `blocks` blocks, all random tokens, in `repeats` rounds.

    Returns:
      `seconds` of `shared`, which prefills the text once and forks its memory, and of `alone`, which prefills it for
      every question, in batches of `rows`; `speed_up`, their ratio by round; `read`, the tokens that each prefills; and
      `first_seconds`, the time of the first run of each on short texts, which compiles.
    """
    model, rng = unstacked(create(config)), np.random.default_rng(0)
    draw: Callable[[Any], np.ndarray] = lambda n: rng.integers(0, config.vocab_size, n).astype(np.int32)
    text = draw(blocks * config.memory.block_size)
    asked = [np.concatenate([text, draw(rng.integers(*QUESTION_TOKENS))]) for _ in range(count)]
    runs = {"shared": lambda some: _shared(model, some, rows), "alone": lambda some: _alone(model, some, rows)}
    short = [one[-min(len(one), 9 * config.memory.block_size) :] for one in asked]
    compiling = {}
    for name, run in runs.items():  # compiles the same programs that the whole text uses
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
