"""Shared code for generated tasks: N examples of each length, each determined by (seed, length, number)."""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError, EvalConfig
from famjax.data.pieces import Filler, Pieces, haystack
from famjax.evals.tasks.base import Example, Task, TextMetric
from famjax.infer.codec import Codec

# Default number of examples of each length.
EXAMPLES = 50
CONSONANTS, VOWELS = "bdfghjklmnprstvz", "aeiou"

# (rng, length, depth) to an example of `length` tokens; its id is set here.
MakeOne = Callable[[np.random.Generator, int, float], Example]


def task(
    name: str, kind: str, config: EvalConfig, make: MakeOne, max_new_tokens: int = 32,
    metrics: dict[str, TextMetric] | None = None, **settings: Any,
) -> Task:  # fmt: skip
    """Returns a task over `config.lengths`; the examples of a length cycle through `config.depths`. Raises
    `ConfigError` if the shortest length is too short for an example."""
    depths, number = config.depths, zlib.crc32(name.encode())

    def one(length: int, i: int) -> Example:
        return make(np.random.default_rng([config.seed, number, length, i]), length, depths[i % len(depths)])

    examples, count = of_each_length(name, config, one)
    settings |= {"lengths": list(config.lengths), "depths": list(depths), "seed": config.seed}
    settings |= {"needles": "first and last tokens"}
    return Task(
        name, kind, examples, metrics or {}, count=count, max_new_tokens=config.max_new_tokens or max_new_tokens,
        settings=settings,
    )  # fmt: skip


def of_each_length(
    name: str, config: EvalConfig, make: Callable[[int, int], Example]
) -> tuple[Callable[[], Iterable[Example]], int]:
    """Returns the examples of all lengths and their number.

    `make` maps (length, number) to an example; the id is `length/number`, followed by the id that `make` set, if any.

    Raises:
      ConfigError: the shortest length is too short for an example.
    """
    count = config.examples or EXAMPLES

    def one(length: int, i: int) -> Example:
        example = make(length, i)
        assert example.tokens == length, (name, example.tokens, length)
        id = "/".join([str(length), str(i), *([example.id] if example.id else [])])
        return dataclasses.replace(example, id=id, about={"length": length, **example.about})

    one(min(config.lengths), 0)
    return lambda: (one(length, i) for length in config.lengths for i in range(count)), count * len(config.lengths)


def word(rng: np.random.Generator, syllables: int = 3) -> str:
    """Returns a random made-up word, such as "tomuka"."""
    letters = (CONSONANTS, VOWELS) * syllables
    return "".join(kind[int(rng.integers(len(kind)))] for kind in letters)


def words(rng: np.random.Generator, count: int, syllables: int = 3) -> list[str]:
    """Returns `count` distinct words of equal length, so that none contains another."""
    syllables = enough_syllables(count, syllables)
    return distinct(count, lambda: word(rng, syllables))


def enough_syllables(count: int, least: int = 3) -> int:
    """Returns the number of syllables of which there are clearly more than `count` words: there are 512,000 of three,
    and a text of some million tokens needs more."""
    return next(n for n in itertools.count(least) if (len(CONSONANTS) * len(VOWELS)) ** n > 1.02 * count)


def number(rng: np.random.Generator, digits: int = 7) -> str:
    """Returns a random number of `digits` digits; the first is not 0."""
    return str(int(rng.integers(10 ** (digits - 1), 10**digits)))


def distinct(count: int, draw: Callable[[], str]) -> list[str]:
    """Returns `count` distinct texts, in the order in which they were drawn."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


class Hiding:
    """Hides needles in the filler of `config`, after a text that begins every example.

    Attributes:
      pieces: the tokenizer.
      head: int32 [h], the text at the beginning.
    """

    def __init__(self, name: str, config: EvalConfig, codec: Codec, begin: str):
        self.pieces = Pieces(codec.vocabulary, codec.bos)
        self.head = self.pieces.first(begin)
        self._name, self._filler = name, Filler(config.filler)

    def example(
        self, rng: np.random.Generator, length: int, needles: Sequence[np.ndarray], depths: Sequence[float],
        tail: np.ndarray, asked: Sequence[int], about: Mapping[str, Any] | None = None, **fields: Any,
    ) -> Example:  # fmt: skip
        """Returns an example of `length` tokens: `head`, filler with the needles, and the prompt `tail`.

        Args:
          rng: chooses the filler.
          length: number of tokens before the answer.
          needles, depths: see `haystack`.
          tail: int32 [t], the question.
          asked: indices of the needles that the answer depends on; results are grouped by the end of the first one.
          about, fields: see `Example`.

        Raises:
          ConfigError: needles and question take more than `length` tokens.
        """
        before, room = len(self.head), length - len(self.head) - len(tail)
        if room < (least := sum(map(len, needles))):
            raise too_short(self._name, length, length - room + least)
        hay = haystack(self.pieces, self._filler.from_somewhere(rng), needles, depths, room)
        about = {**(about or {}), "needle": before + hay.ends[asked[0]]}
        context = np.concatenate([self.head, hay.tokens])
        return Example("", tail, context, about=about, needles=hay.needles(before, asked), **fields)


def too_short(task: str, length: int, least: int) -> ConfigError:
    """Returns the error for a length that is too short for needles and question."""
    return ConfigError(
        f"{task} at {length} tokens: needles and question need {least}; use --lengths of at least {least}"
    )
