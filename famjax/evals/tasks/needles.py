"""Needles in a haystack: the pass key at any depth, and RULER's (Hsieh et al. 2024) four kinds of needles.

The prompts are worded as in the sources, so that results are comparable; the code is ours. RULER scores by
string match: the fraction of the requested values that occur in the answer.
"""

import numpy as np

from famjax.config import EvalConfig
from famjax.data.passkey_text import INTRODUCTION, QUESTION, TELLING, random_key
from famjax.evals.metrics import string_match_all
from famjax.evals.tasks import generated
from famjax.evals.tasks.base import Example, Task
from famjax.infer.codec import Codec

# RULER's limit on the tokens of an answer.
RULER_NEW_TOKENS = 128
INTRO = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the numbers afterwards."
)
NEEDLE = "One of the special magic numbers for {key} is: {value}."
ASK_ONE = (
    "\nWhat is the special magic number for {keys} mentioned in the provided text? The special magic number for "
    "{keys} mentioned in the provided text is"
)
ASK_MANY = (
    "\nWhat are all the special magic numbers for {keys} mentioned in the provided text? The special magic numbers "
    "for {keys} mentioned in the provided text are"
)
# name: (keys inserted, values inserted for each, keys queried)
KINDS = {
    "niah_single": (1, 1, 1),
    "niah_multikey": (4, 1, 1),
    "niah_multivalue": (1, 4, 1),
    "niah_multiquery": (4, 1, 4),
}


# name: pass keys in the text, the last of which is queried
PASS_KEYS = {"passkey_depth": 1, "passkey_newest": 4}


def needles(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns one of the `KINDS`. The first requested needle lies at the grid's depth, the others at random depths."""
    keys_inserted, values_each, keys_asked = KINDS[name]
    hiding, ask = generated.Hiding(name, config, codec, INTRO), ASK_ONE if keys_asked * values_each == 1 else ASK_MANY

    def make(rng: np.random.Generator, length: int, depth: float) -> Example:
        keys = generated.words(rng, keys_inserted)
        values = generated.distinct(keys_inserted * values_each, lambda: generated.number(rng))
        inserted = [(keys[i // values_each], value) for i, value in enumerate(values)]
        depths = [depth, *rng.random(len(inserted) - 1)]
        tail = hiding.pieces.raw(ask.format(keys=_list(keys[:keys_asked])))
        needle_tokens = [hiding.pieces.next(NEEDLE.format(key=key, value=value)) for key, value in inserted]
        targets = tuple(value for key, value in inserted if key in keys[:keys_asked])
        asked = range(keys_asked * values_each)
        return hiding.example(rng, length, needle_tokens, depths, tail, asked, {"depth": depth}, targets=targets)

    return generated.task(
        name, "generate", config, make, RULER_NEW_TOKENS, {"string_match": string_match_all}, filler=config.filler
    )


def _list(keys: list[str]) -> str:
    """Joins keys as RULER's prompts do: "a, b, and c"."""
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"


def pass_key(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the paper's pass-key task at any depth (as varied by Mohtashami & Jaggi 2023). The key's tokens are
    scored with teacher forcing; exact match equals that of greedy generation.

    Several keys are evenly spaced up to the depth; the last one is the answer, because each replaces the one before.
    """
    count = PASS_KEYS[name]
    hiding = generated.Hiding(name, config, codec, INTRODUCTION.strip())
    pieces, tail = hiding.pieces, hiding.pieces.raw(QUESTION.rstrip())

    def make(rng: np.random.Generator, length: int, depth: float) -> Example:
        keys = [random_key(rng, config.key_digits) for _ in range(count)]
        key, stated = keys[-1], [pieces.next(TELLING.format(key=key).strip()) for key in keys]
        depths = [depth * (i + 1) / count for i in range(count)]
        return hiding.example(
            rng, length, stated, depths, tail, [count - 1], {"depth": depth}, targets=(key,), scored=pieces.next(key)
        )

    return generated.task(name, "score", config, make, filler=config.filler, key_digits=config.key_digits)
