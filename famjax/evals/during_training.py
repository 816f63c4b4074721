"""Evaluations while a model trains: small ones, whose numbers go to the training's log.

Each is a function from a model and the steps behind it to numbers. A training calls it with its own weights
and goes on as if it had not.
"""

from collections.abc import Callable

from famjax.config import EvalConfig
from famjax.evals import passkey
from famjax.nn.model import Transformer

Evaluate = Callable[[Transformer, int], dict[str, float]]


def evaluation(config: EvalConfig) -> Evaluate:
    """The evaluation that `config.task` names."""
    return {"passkey": pass_key}[config.task](config)


def pass_key(config: EvalConfig) -> Evaluate:
    """Exact match at each length of the filler: `passkey/exact_match_at_4_blocks`. Documents are the same
    each time, so are the shapes: it compiles once."""

    def evaluate(model: Transformer, step: int) -> dict[str, float]:
        rows = passkey.evaluate(model, config)
        return {f"passkey/exact_match_at_{row['filler_blocks']}_blocks": row["exact_match"] for row in rows}

    return evaluate
