"""Slow cases of parametrized tests: `make test` leaves them to `make test-slow`, because the other cases show the same
promise."""

from collections.abc import Iterable
from typing import Any

import pytest


def but(cases: Iterable[str], *slow: str) -> list[Any]:
    """Returns the cases for `pytest.mark.parametrize`, with those named in `slow` marked. Raises `KeyError` for an
    unknown one."""
    cases = list(cases)
    if unknown := set(slow) - set(cases):
        raise KeyError(f"no such cases: {sorted(unknown)}")
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in cases]


# Whole tests, or cases of tests by their ids, that take long: what each promises is also shown by another case, or at a
# smaller scale by another test. `mark` is called by conftest.py, so that the tests themselves stay free of it.
LONG: dict[str, str] = {
    "pretrained/test_every_key.py::test_what_a_key_changes": "gemma gemma2 mistral qwen2 qwen3",
    "pretrained/test_parity.py::test_logits_equal_those_of_transformers": (
        "gemma-multi-query gemma2 llama-biases-linear qwen3-grouped"
    ),
    "pretrained/test_gguf_parity.py::test_logits_and_configuration": "gemma2 qwen2-grouped qwen3-grouped",
    "nn/test_against_reference.py::test_both_orders": (
        "as-gemma2 fam-bounded fam-fills-block-gelu-untied fam0-segments3-grouped fam2-segments0-multi-query "
        "fam2-segments1 gate-unrolled one-block-at-a-time-stop-gradient parallel-ungated two-fams "
        "unrolled-ungated-relu window2-layernorm write-gate-two-fams"
    ),
    "nn/test_orders.py::test_gradients_of_both_orders": "fam-segments0-two-fams-zero-orders1",
    "nn/test_orders.py::test_what_is_behind_the_kept_blocks_is_read_but_not_remembered": (
        "0-bswa-segments3 1-bswa-segments3 0-gate-grouped 1-gate-grouped 0-window5-segments2 1-window5-segments2"
    ),
    "infer/test_decode.py::test_greedy_equals_repeated_whole_sequences": "infini sinks",
    "plan/test_memories.py::test_the_state_has_the_planned_bytes": (
        "autocompressor bswa bswa_1 fam fm infini rmt sinks sum"
    ),
    "attention/test_auxiliary.py::test_a_step_has_the_mean_of_the_losses_once": "1",
    "serve/test_hostile.py::test_headers_that_never_end": "True",
    # Whole tests: seqio's tasks are covered within the test's process, the harness' numbers by those of `famjax eval`,
    # values of every replacement of FAM by the test before it.
    "evals/inspect/test_knockout.py::test_a_memory_that_is_not_used_can_be_taken_away": "",
    "cli/test_data.py::test_tasks_imported_by_a_gin_file": "",
    "evals/harness/test_model.py::test_results_are_those_of_the_harness_own_class": "",
}


def mark(items: Iterable[pytest.Item], everything: bool) -> None:
    """Marks the tests of `LONG` as slow. Raises `KeyError` if `everything` was collected and lacks one of them."""
    waiting = {(test, case) for test, cases in LONG.items() for case in cases.split() or [""]}
    for item in items:
        test, _, case = item.nodeid.removeprefix("tests/").partition("[")
        if (key := (test, case.removesuffix("]"))) in waiting:
            waiting.discard(key)
            item.add_marker(pytest.mark.slow)
    if everything and waiting:
        raise KeyError(f"tests/slow.py names what does not exist: {sorted(waiting)}")
