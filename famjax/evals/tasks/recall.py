"""Diagnostic tasks: associative recall (Arora et al. 2023) and copying, scored token by token."""

import numpy as np

from famjax.config import EvalConfig
from famjax.data.pieces import Pieces
from famjax.evals.tasks import generated
from famjax.evals.tasks.base import Example, Task
from famjax.evals.tasks.generated import too_short
from famjax.infer.codec import Codec

# Upper bound on the words to copy.
COPIED = 16
# Lower bound on the tokens of a pair of word and number, which bounds the number of words.
LEAST = 6


def associative_recall(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the task to recall one of many pairs of word and number, which fill the whole length.

    The pair at the grid's depth is queried. Unlike needles in filler, this measures the capacity of a memory.
    """
    pieces = Pieces(codec.vocabulary, codec.bos)
    head, colon = pieces.first("Pairs:"), ":"

    def make(rng: np.random.Generator, length: int, depth: float) -> Example:
        pair = lambda word: f"{word}: {generated.number(rng, 4)}."
        pairs, sizes, total = [], [], len(head)
        seen: set[str] = set()
        syllables = generated.enough_syllables(length // LEAST)
        longest = "mi" * syllables
        tail_room = len(pieces.raw(f"\nWhich number has {longest}? {longest}:")) + 8
        while True:
            word = generated.word(rng, syllables)
            if word in seen:
                continue
            text = pair(word)
            tokens = pieces.next(text)
            if total + len(tokens) + tail_room > length:
                break
            seen.add(word)
            pairs.append((text, tokens))
            sizes.append(len(tokens))
            total += len(tokens)
        if not pairs:
            raise too_short(name, length, len(head) + tail_room + 16)
        asked = round(depth * (len(pairs) - 1))
        word, value = pairs[asked][0].rstrip(".").split(colon)
        tail = pieces.raw(f"\nWhich number has {word}? {word}:")
        rest = length - total - len(tail)  # too short for another pair
        front = np.concatenate([pieces.raw("\n")] * max(rest, 0))[:rest] if rest else tail[:0]
        context = np.concatenate([head, front, *(tokens for _, tokens in pairs)]).astype(np.int32)
        needle = len(head) + rest + sum(sizes[: asked + 1]) - 1
        about = {"depth": depth, "pairs": len(pairs), "needle": needle}
        start, scored = needle - sizes[asked] + 1, pieces.next(value.strip())
        return Example(
            "", tail, context, targets=(value.strip(),), scored=scored, about=about, needles=((start, needle),)
        )

    return generated.task(name, "score", config, make)


def copy(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the copy task: words, filler, and the same words again; the second occurrence is scored."""
    hiding = generated.Hiding(name, config, codec, "Remember these words:")
    pieces, tail = hiding.pieces, hiding.pieces.raw("\nThe words were:")

    def make(rng: np.random.Generator, length: int, depth: float) -> Example:
        room = length - len(hiding.head) - len(tail)
        chosen = generated.words(rng, COPIED, syllables=2)
        while chosen and sum(len(pieces.next(word)) for word in chosen) > room:
            chosen.pop()
        if not chosen:
            raise too_short(name, length, length - room + 8)
        words = np.concatenate([pieces.next(word) for word in chosen])
        return hiding.example(rng, length, [words], [0.0], tail, [0], targets=(" ".join(chosen),), scored=words)

    return generated.task(name, "score", config, make, filler=config.filler)
