"""Evaluations while a model trains: small ones, whose numbers go to the training's log.

Each is a function from a model and the steps behind it to numbers. A training calls it with its own weights
and goes on as if it had not.
"""

from collections.abc import Callable

from famjax.config import EvalConfig
from famjax.data.passkey_text import Writer
from famjax.data.vocabulary import Vocabulary
from famjax.evals import language, passkey
from famjax.nn.model import Transformer

Evaluate = Callable[[Transformer, int], dict[str, float]]


def evaluation(config: EvalConfig, vocabulary: Vocabulary) -> Evaluate:
    """The evaluation that `config.task` names; `vocabulary` is the training's."""
    return texts(config, vocabulary) if config.task == "text" else pass_key(config, vocabulary)


def pass_key(config: EvalConfig, vocabulary: Vocabulary) -> Evaluate:
    """Exact match at each length of the filler: `passkey/exact_match_at_4_blocks`. Documents are the same
    each time, so are the shapes: it compiles once."""

    writer = Writer(vocabulary)

    def evaluate(model: Transformer, step: int) -> dict[str, float]:
        rows = passkey.evaluate(model, config, writer)
        return {f"passkey/exact_match_at_{row['filler_blocks']}_blocks": row["exact_match"] for row in rows}

    return evaluate


def texts(config: EvalConfig, vocabulary: Vocabulary) -> Evaluate:
    """Bits per byte and accuracy over all of some documents (`text/bits_per_byte`), and over the far half of what
    is read of them, where a memory has to show (`text/bits_per_byte_from_4096`).

    Documents are cut into calls of the same shapes each time, so it compiles once.
    """
    documents = language.documents(config, vocabulary)
    longest = max(len(document.tokens) for document in documents)
    edges = (0, longest // 2, longest)

    def evaluate(model: Transformer, step: int) -> dict[str, float]:
        sums = language.score(model, documents, edges, config.batch_size)
        bits, sizes = sums.bits.sum(axis=0), sums.sizes.sum(axis=0)
        return {
            "text/bits_per_byte": float(bits.sum() / sizes.sum()),
            f"text/bits_per_byte_from_{edges[1]}": float(bits[1] / sizes[1]),
            "text/accuracy": float(sums.correct.sum() / sums.tokens.sum()),
        }

    return evaluate
