"""Pass-key retrieval against the length of the filler (paper section 6, Fig. 3a), evaluated by streaming.

Exact match equals that of greedy generation: the argmax is correct at every token of the answer. (With a
tokenizer, the same digits split into other tokens count as a miss.) It is averaged over all offsets of the
filler relative to the block boundaries, because failures occur where the answer straddles a boundary.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from famjax.config import EvalConfig
from famjax.data.passkey_text import Document, Writer, random_key
from famjax.evals.samples import Sample, updates
from famjax.evals.statistics import wilson_interval
from famjax.evals.tasks.base import Example, Task
from famjax.infer.codec import Codec


def documents(blocks: int, block_size: int, config: EvalConfig, writer: Writer) -> list[Document]:
    """Returns `config.keys` documents for each alignment, with blocks * S + alignment tokens of filler."""
    rng = np.random.default_rng([config.seed, blocks])
    return [
        writer.document(random_key(rng, config.key_digits), blocks * block_size + alignment)
        for _ in range(config.keys)
        for alignment in alignments(block_size, config)
    ]


def alignments(block_size: int, config: EvalConfig) -> list[int]:
    """Returns the filler tokens beyond whole blocks: all of 0 .. S - 1, or `config.alignments` of them."""
    count = min(config.alignments or block_size, block_size)
    return [i * block_size // count for i in range(count)]


def task(name: str, config: EvalConfig, codec: Codec, block_size: int) -> Task:
    """Returns the task of all documents of all lengths; the tokens of the answer are scored."""
    writer = Writer(codec.vocabulary)
    where = alignments(block_size, config)
    lengths = sorted(set(config.filler_blocks))

    def examples() -> Iterator[Example]:
        for blocks in lengths:
            for i, doc in enumerate(documents(blocks, block_size, config, writer)):
                answer = int(doc.answer[0])
                about = {"filler_blocks": blocks, "alignment": where[i % len(where)], "needle": int(doc.mention[-1])}
                about["answer_tokens"] = len(doc.answer)
                before, scored = np.split(doc.tokens, [answer])
                needles = ((int(doc.mention[0]), int(doc.mention[-1])),)
                yield Example(f"{blocks}/{i}", before[-1:], before[:-1], scored=scored, about=about, needles=needles)

    settings = {"filler_blocks": lengths, "alignments": where, "keys": config.keys, "key_digits": config.key_digits}
    settings |= {"seed": config.seed, "needles": "first and last tokens"}
    return Task(name, "score", examples, count=len(lengths) * len(where) * config.keys, settings=settings)


def rows(samples: Sequence[Sample], block_size: int) -> list[dict[str, Any]]:
    """Returns one row of results for each length of the filler."""
    order = lambda sample: (sample.about["filler_blocks"], int(sample.id.split("/")[1]))
    by_length = itertools.groupby(sorted(samples, key=order), lambda sample: sample.about["filler_blocks"])
    return [_summary(blocks, block_size, list(group)) for blocks, group in by_length]


def _summary(blocks: int, block_size: int, samples: list[Sample]) -> dict[str, Any]:
    """Returns the row of results for one length of the filler."""
    hits = [sample.values["exact_match"] == 1 for sample in samples]
    low, high = wilson_interval(sum(hits), len(hits))
    where = [sample.about["alignment"] for sample in samples]
    right = sum(sample.values["next_token_accuracy"] * sample.about["answer_tokens"] for sample in samples)
    return {
        "filler_blocks": blocks,
        "filler_tokens": blocks * block_size + float(np.mean(sorted(set(where)))),
        # Block boundaries between the key's last mention and the answer.
        "fam_updates": round(float(np.mean([updates(sample, block_size) for sample in samples])), 2),
        "documents": len(hits),
        "exact_match": float(np.mean(hits)),
        "low": low,
        "high": high,
        # Over all tokens: keys may differ in their number of tokens.
        "token_accuracy": float(right / sum(sample.about["answer_tokens"] for sample in samples)),
        "misses_by_alignment": [at for at, hit in zip(where, hits, strict=True) if not hit],
    }
