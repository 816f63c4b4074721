"""The pass key against the length of the filler (paper section 6, Fig. 3a), read by streaming.

Exact match is what greedy generation would give: the model's first choice is right at every digit
of the answer. It is averaged over all alignments of the filler against the block, since failures
sit where the answer straddles a block's edge.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from famjax.config import EvalConfig
from famjax.data.passkey import Document, document, random_key
from famjax.evals.statistics import wilson_interval
from famjax.infer.scoring import score_streaming
from famjax.nn.model import Transformer

# Called with (filler blocks, tokens read since the last call).
Progress = Callable[[int, int], None]


def documents(blocks: int, block_size: int, config: EvalConfig) -> list[Document]:
    """`keys` documents for each alignment: filler of blocks * S + 0 .. S - 1 tokens."""
    rng = np.random.default_rng([config.seed, blocks])
    return [
        document(random_key(rng, config.key_digits), blocks * block_size + alignment)
        for _ in range(config.keys)
        for alignment in alignments(block_size, config)
    ]


def alignments(block_size: int, config: EvalConfig) -> list[int]:
    """Tokens by which the filler is longer than whole blocks: all of 0 .. S - 1, or `alignments` of them."""
    count = min(config.alignments or block_size, block_size)
    return [i * block_size // count for i in range(count)]


def tokens_to_read(block_size: int, config: EvalConfig) -> int:
    """Tokens of a whole evaluation of one model, nearly; for a progress bar."""
    per_length = (len(document("0" * config.key_digits, n * block_size).tokens) for n in config.filler_blocks)
    return sum(per_length) * len(alignments(block_size, config)) * config.keys


def evaluate(model: Transformer, config: EvalConfig, progress: Progress | None = None) -> list[dict[str, Any]]:
    """One row of results for each length of the filler; see `_summary` for its fields."""
    return [
        _evaluate_length(model, blocks, config, progress) for blocks in sorted(set(config.filler_blocks))
    ]  # fmt: skip


def _evaluate_length(model: Transformer, blocks: int, config: EvalConfig, progress: Progress | None) -> dict[str, Any]:
    S = model.config.memory.block_size
    docs = documents(blocks, S, config)
    where = alignments(S, config)
    right: list[np.ndarray] = []
    for batch in _batches(docs, config.batch_size):
        lengths = np.array([len(doc.tokens) for doc in batch], np.int32)
        tokens = np.zeros((len(batch), lengths.max()), np.int32)
        for row, doc in zip(tokens, batch, strict=True):
            row[: len(doc.tokens)] = doc.tokens
        on_tokens = (lambda n: progress(blocks, n)) if progress is not None else None
        _, correct = score_streaming(model, tokens, lengths, on_tokens=on_tokens)
        # Column t - 1 tells whether token t was the model's first choice.
        right += [correct[i, doc.answer - 1] for i, doc in enumerate(batch)]
    return _summary(blocks, S, docs, np.array(right), where)


def _batches(docs: list[Document], size: int) -> Iterator[list[Document]]:
    """Batches of one size: a last one that is smaller would be a shape of its own to compile."""
    size = min(size, len(docs))
    parts = -(-len(docs) // size)
    for part in np.array_split(np.arange(len(docs)), parts):
        yield [docs[i] for i in part]


def _summary(
    blocks: int, block_size: int, docs: list[Document], right: np.ndarray, where: list[int] | None = None
) -> dict[str, Any]:  # fmt: skip
    """right: bool [documents, digits]; where: the alignments, all by default; each key has a document for every one."""
    where = list(range(block_size)) if where is None else where
    hits = right.all(axis=1)
    low, high = wilson_interval(int(hits.sum()), len(hits))
    # Updates between the key's last mention and the answer: block edges that the key is carried over.
    updates = [int(doc.answer[0] - 1) // block_size - int(doc.mention[0]) // block_size for doc in docs]
    filler = blocks * block_size + float(np.mean(where))
    return {
        "filler_blocks": blocks,
        "filler_tokens": filler,
        "fam_updates": round(float(np.mean(updates)), 2),
        "documents": len(docs),
        "exact_match": float(hits.mean()),
        "low": low,
        "high": high,
        "digit_accuracy": float(right.mean()),
        "misses_by_alignment": [where[i % len(where)] for i in np.flatnonzero(~hits)],
    }
