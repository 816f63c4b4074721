"""Needles in a haystack: the pass key at any depth, and RULER's (Hsieh et al. 2024) four kinds of needles.

The wording is that of the sources, so that numbers can be compared; the code is ours. RULER scores by
string match: the share of the asked values that the answer has in it.
"""

import numpy as np

from famjax.config import EvalConfig
from famjax.data.passkey_text import INTRODUCTION, QUESTION, TELLING, random_key
from famjax.evals.metrics import string_match_all
from famjax.evals.tasks import generated
from famjax.evals.tasks.base import Example, Task
from famjax.evals.tasks.pieces import Filler, Pieces, haystack, too_short
from famjax.infer.codec import Codec

# Tokens that RULER lets a model make for an answer.
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
# name: (keys told, values told of each, keys asked for)
KINDS = {
    "niah_single": (1, 1, 1),
    "niah_multikey": (4, 1, 1),
    "niah_multivalue": (1, 4, 1),
    "niah_multiquery": (4, 1, 4),
}


def needles(name: str, config: EvalConfig, codec: Codec) -> Task:
    """One of `KINDS`. The first asked needle lies at the depth of the grid, all others anywhere."""
    keys_told, values_each, keys_asked = KINDS[name]
    pieces, filler = Pieces(codec), Filler(config.filler)
    head, ask = pieces.first(INTRO), ASK_ONE if keys_asked * values_each == 1 else ASK_MANY

    def make(rng: np.random.Generator, length: int, depth: float) -> Example:
        keys = generated.words(rng, keys_told)
        values = generated.numbers(rng, keys_told * values_each)
        told = [(keys[i // values_each], value) for i, value in enumerate(values)]
        depths = [depth, *rng.random(len(told) - 1)]
        tail = pieces.raw(ask.format(keys=_list(keys[:keys_asked])))
        needle_tokens = [pieces.next(NEEDLE.format(key=key, value=value)) for key, value in told]
        room = length - len(head) - len(tail)
        if room < (least := sum(map(len, needle_tokens))):
            raise too_short(name, length, length - room + least)
        hay = haystack(pieces, filler.from_somewhere(rng), needle_tokens, depths, room)
        about = {"depth": depth, "needle": len(head) + hay.ends[0]}
        asked = hay.needles(len(head), range(keys_asked * values_each))
        targets = tuple(value for key, value in told if key in keys[:keys_asked])
        context = np.concatenate([head, hay.tokens])
        return Example("", tail, context, targets=targets, about=about, needles=asked)

    return generated.task(
        name, "generate", config, make, RULER_NEW_TOKENS, {"string_match": string_match_all},
        filler=config.filler,
    )  # fmt: skip


def _list(keys: list[str]) -> str:
    """ "a, b, and c": as RULER asks."""
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"


def pass_key(name: str, config: EvalConfig, codec: Codec) -> Task:
    """The paper's pass key at any depth (Mohtashami & Jaggi 2023 vary it too), its digits predicted one by one, which
    is what greedy generation gives."""
    pieces, filler = Pieces(codec), Filler(config.filler)
    head, tail = pieces.first(INTRODUCTION.strip()), pieces.raw(QUESTION.rstrip())

    def make(rng: np.random.Generator, length: int, depth: float) -> Example:
        key = random_key(rng, config.key_digits)
        needle = pieces.next(TELLING.format(key=key).strip())
        room = length - len(head) - len(tail)
        if room < len(needle):
            raise too_short(name, length, length - room + len(needle))
        hay = haystack(pieces, filler.from_somewhere(rng), [needle], [depth], room)
        about = {"depth": depth, "needle": len(head) + hay.ends[0]}
        context, needles = np.concatenate([head, hay.tokens]), hay.needles(len(head), [0])
        return Example("", tail, context, targets=(key,), scored=pieces.next(key), about=about, needles=needles)

    return generated.task(name, "score", config, make, filler=config.filler, key_digits=config.key_digits)
