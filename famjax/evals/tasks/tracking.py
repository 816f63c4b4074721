"""RULER's tasks (Hsieh et al. 2024) that need more than one place of the text: chains of variable assignments, and
word counts over the whole text. Prompts and scoring rule are RULER's, the code is ours."""

import numpy as np

from famjax.config import EvalConfig
from famjax.data.pieces import Filler, Pieces
from famjax.evals.metrics import string_match_all
from famjax.evals.tasks import generated
from famjax.evals.tasks.base import NOTHING, Example, Task
from famjax.evals.tasks.generated import too_short
from famjax.infer.codec import Codec

HOPS = 4
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TRACK_INTRO = "Memorize and track the chain(s) of variable assignment hidden in the following text."
TRACK_ASK = (
    "\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to the "
    "chain(s) of variable assignment in the text above, {count} variables are assigned the value {value}, they are:"
)
COMMON_INTRO = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often."
)
COMMON_ASK = (
    "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear most often "
    "in the list are:"
)
COMMON = 10
# (repeats of a common word, repeats of another word). The first pair with which the other words take up at least half
# of the list is used.
REPEATS = ((30, 3), (10, 2), (5, 1), (3, 1), (2, 1))
FREQUENT_INTRO = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
    "appeared coded words."
)
FREQUENT_ASK = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text? Answer: According to the coded text above, the three most frequently "
    "appeared words are:"
)
# The frequency of the k-th word is proportional to k ** -EXPONENT. The first word is the dots.
EXPONENT, DOTS = 2.0, "...."


def variable_tracking(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the task to name all variables of a chain of `HOPS` assignments (VAR B = VAR A) at random depths."""
    hiding = generated.Hiding(name, config, codec, TRACK_INTRO)
    pieces = hiding.pieces

    def make(rng: np.random.Generator, length: int, depth: float) -> Example:
        names = generated.distinct(HOPS + 1, lambda: "".join(LETTERS[i] for i in rng.integers(0, 26, 5)))
        value = generated.number(rng, 5)
        chain = [f"VAR {names[0]} = {value}."]
        chain += [f"VAR {after} = VAR {before}." for before, after in zip(names, names[1:], strict=False)]
        assigned = [pieces.next(text) for text in chain]
        tail = pieces.raw(TRACK_ASK.format(value=value, count=len(names)))
        depths = sorted(rng.random(len(assigned)))
        return hiding.example(rng, length, assigned, depths, tail, range(len(chain)), targets=tuple(names))

    longest = len(pieces.raw(", ".join(["ABCDE"] * (HOPS + 1))))
    return generated.task(
        name, "generate", config, make, max(30, 2 * longest), {"string_match": string_match_all}, filler=config.filler
    )


def common_words(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the task to name the ten words that occur most often in a numbered list in random order."""
    pieces = Pieces(codec.vocabulary, codec.bos)
    tail = pieces.raw(COMMON_ASK)

    def make(rng: np.random.Generator, length: int, depth: float) -> Example:
        vocabulary = generated.words(rng, max(64, length // 4))
        sizes = np.array([len(pieces.next(word)) for word in vocabulary])
        head = pieces.first(COMMON_INTRO)
        room = length - len(head) - len(tail)
        numbers = np.cumsum([len(pieces.next(f"{i + 1}.")) for i in range(max(room, 0) // 2)])
        for often, seldom in REPEATS:
            # Tokens of the list, as a function of the number of words other than the common ones.
            others = np.arange(len(vocabulary) - COMMON + 1)
            entries = COMMON * often + seldom * others
            others, entries = (x[entries <= len(numbers)] for x in (others, entries))
            fixed = often * sizes[:COMMON].sum()
            total = numbers[entries - 1] + fixed + seldom * np.concatenate([[0], np.cumsum(sizes[COMMON:])])[others]
            fit = int((total <= room).sum()) - 1
            if fit >= COMMON and (fit * seldom >= COMMON * often or often == REPEATS[-1][0]):
                break
        else:
            least = length - room + int(numbers[-1] if len(numbers) else 0)
            raise too_short(name, length, least + 4 * len(tail))
        entries_of = vocabulary[:COMMON] * often + vocabulary[COMMON : COMMON + fit] * seldom
        order = rng.permutation(len(entries_of))
        parts = [part for i, k in enumerate(order) for part in (f"{i + 1}.", entries_of[k])]
        body = np.concatenate([pieces.next(part) for part in parts])
        return _padded(pieces, codec, COMMON_INTRO, body, tail, length, tuple(vocabulary[:COMMON]))

    return generated.task(name, "generate", config, make, 120, {"string_match": string_match_all})


def frequent_words(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the task to name the three most frequent words after the dots, with frequencies k ** -2."""
    pieces = Pieces(codec.vocabulary, codec.bos)
    tail = pieces.raw(FREQUENT_ASK)

    def make(rng: np.random.Generator, length: int, depth: float) -> Example:
        vocabulary = [DOTS, *generated.words(rng, max(64, int(length**0.5) * 2))]
        sizes = np.array([len(pieces.next(word)) for word in vocabulary])
        room = length - len(pieces.first(FREQUENT_INTRO)) - len(tail)
        shares = np.arange(1, len(vocabulary) + 1) ** -EXPONENT
        counts = lambda scale: np.floor(scale * shares).astype(int)
        low, high = 0, max(room, 1)
        while low < high:  # the largest scale that fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if counts(middle) @ sizes <= room else (low, middle - 1)
        found = counts(low)
        if not found[1] > found[2] > found[3] > found[4]:
            raise too_short(name, length, length - room + 48 * int(sizes.max()))
        body_words = np.repeat(np.arange(len(vocabulary)), found)
        body = np.concatenate([pieces.next(vocabulary[k]) for k in rng.permutation(body_words)])
        return _padded(pieces, codec, FREQUENT_INTRO, body, tail, length, tuple(vocabulary[1:4]))

    return generated.task(name, "generate", config, make, 50, {"string_match": string_match_all})


def _padded(
    pieces: Pieces, codec: Codec, intro: str, body: np.ndarray, tail: np.ndarray, length: int, targets: tuple[str, ...]
) -> Example:
    """Returns an example that is left-padded to `length` tokens with the beginning of the paper's filler."""
    head = pieces.first(intro)
    rest = length - len(head) - len(body) - len(tail)
    front = pieces.raw(" ".join(Filler().sentences * (1 + rest // 16)))[:rest] if rest else NOTHING
    bos = NOTHING if codec.bos is None else head[:1]
    context = np.concatenate([bos, front, head[len(bos) :], body]).astype(np.int32)
    return Example("", tail, context, targets=targets)
