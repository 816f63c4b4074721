"""The pass key against the length of the filler (paper section 6, Fig. 3a), read by streaming.

Exact match is what greedy generation would give: the model's first choice is right at every token
of the answer. (With a tokenizer, the same digits in other tokens than it would make of them count as a miss.)
It is averaged over all alignments of the filler against the block, since failures sit where the answer
straddles a block's edge.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from famjax.config import EvalConfig
from famjax.data.passkey_text import Document, Writer, random_key
from famjax.evals.statistics import wilson_interval
from famjax.infer.scoring import score_streaming
from famjax.nn.model import Transformer

Progress = Callable[[int, int], None]


def documents(blocks: int, block_size: int, config: EvalConfig, writer: Writer) -> list[Document]:
    """`keys` documents for each alignment: filler of blocks * S + 0 .. S - 1 tokens."""
    rng = np.random.default_rng([config.seed, blocks])
    return [
        writer.document(random_key(rng, config.key_digits), blocks * block_size + alignment)
        for _ in range(config.keys)
        for alignment in alignments(block_size, config)
    ]


def alignments(block_size: int, config: EvalConfig) -> list[int]:
    """Tokens by which the filler is longer than whole blocks: all of 0 .. S - 1, or `alignments` of them."""
    count = min(config.alignments or block_size, block_size)
    return [i * block_size // count for i in range(count)]


def tokens_to_read(block_size: int, config: EvalConfig, writer: Writer) -> int:
    """Tokens of a whole evaluation of one model, nearly; for a progress bar."""
    overhead = writer.overhead("0" * config.key_digits)
    per_length = (overhead + n * block_size for n in set(config.filler_blocks))
    return sum(per_length) * len(alignments(block_size, config)) * config.keys


def evaluate(
    model: Transformer, config: EvalConfig, writer: Writer, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """One row of results for each length of the filler; see `_summary` for its fields.

    Args:
      model: the model.
      config: lengths and numbers of documents.
      writer: of documents in the model's tokens.
      progress: called with (filler blocks, tokens read since the last call).

    Raises:
      ConfigError: documents have tokens that the model lacks.
    """
    writer.check(model.config.vocab_size)
    return [_evaluate_length(model, blocks, config, writer, progress) for blocks in sorted(set(config.filler_blocks))]


def _evaluate_length(
    model: Transformer, blocks: int, config: EvalConfig, writer: Writer, progress: Progress | None
) -> dict[str, Any]:
    S = model.config.memory.block_size
    docs = documents(blocks, S, config, writer)
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
    return _summary(blocks, S, docs, right, where)


def _batches(docs: list[Document], size: int) -> Iterator[list[Document]]:
    """Batches of one size: a last one that is smaller would be a shape of its own to compile."""
    size = min(size, len(docs))
    parts = -(-len(docs) // size)
    for part in np.array_split(np.arange(len(docs)), parts):
        yield [docs[i] for i in part]


def _summary(
    blocks: int, block_size: int, docs: list[Document], right: list[np.ndarray], where: list[int] | None = None
) -> dict[str, Any]:  # fmt: skip
    """A row of the table.

    right: for each document, bool [tokens of its answer]. where: the alignments, all by default; each key has a
    document for every one.
    """
    where = list(range(block_size)) if where is None else where
    hits = np.array([one.all() for one in right])
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
        "token_accuracy": float(np.concatenate(right).mean()),
        "misses_by_alignment": [where[i % len(where)] for i in np.flatnonzero(~hits)],
    }
