"""Settings of the synthetic tasks whose documents are labelled tokens: recall of many pairs, and state tracking.

Lengths are in tokens; training documents consist of whole blocks of the model.
"""

import dataclasses
from typing import ClassVar

from famjax.config.checks import ConfigError, ascending, at_least, check_types, probability


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """Base of both configurations: documents start and end in one row, so no memory is carried to the next step.

    Attributes:
      blocks: lengths of training documents in blocks of the model; each document draws one of those that fit into the
        rest of its row.
    """

    stream_share: ClassVar[float] = 0.0

    blocks: tuple[int, ...]

    def check_length(self, tokens: int, block_size: int) -> None:
        """Raises `ConfigError` unless the longest training document fits into a row of `tokens` tokens."""
        if max(self.blocks) * block_size > tokens:
            raise ConfigError(
                f"{type(self).__name__}.blocks has documents of {max(self.blocks)} blocks of {block_size} tokens, but "
                f"a row has {tokens}; use TASK_FEATURE_LENGTHS = {{'targets': {max(self.blocks) * block_size}}}"
            )


@dataclasses.dataclass(frozen=True)
class MqarConfig(_Labelled):
    """Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927).

    A document lists pairs of a key and a value. Every key then follows once more, in random order and at random places
    among filler, each followed by its value, which the model predicts.

    If the model has a tokenizer, from its initial weights or `DataConfig.vocabulary`, keys, values and fillers are
    words of its vocabulary; else the task has a vocabulary of its own.

    Attributes:
      pairs: numbers of pairs; each document draws one.
      times: how often every key is asked for.
      answered: whether its value follows an asked key, as in the paper's figure; False: filler follows, as in the
        paper's code, and the model never reads the value that it predicts.
      rewritten: probability that a key is listed again with a new value, after the list and before its last question.
        From there on its value is the new one. Departure from the paper, whose keys are listed once.
      ordered: probability that a document lists its keys in the order of the vocabulary: easier, since a pair's place
        then determines its key.
      spread: maximum number of filler tokens before and between the pairs of the list.
      power: a, exponent of the distribution of the questions: place x, counted from 1 after the list, has weight
        x^(a - 1). 1 is uniform; with 0.01, the default of the paper's code, most questions come soon after the list.
      keys, values, fillers: tokens of each kind. The vocabulary is fillers, keys and values, in this order. In the
        paper's code filler is drawn from the whole vocabulary.
      key_words, value_words: the words to use, as many as `keys` and `values`; each is one token after a space. Empty:
        words of the vocabulary. For models with a tokenizer.
      sentences: texts of a pair in the list, one of which each pair draws, such as '{key} went to the {value}.'. Empty:
        the key and its value alone. For models with a tokenizer. Departure from the paper.
      question: text before a value that is asked for, such as 'the place of {key} is', or before a new one. Empty: the
        key alone. For models with a tokenizer. Departure from the paper.
    """

    blocks: tuple[int, ...] = (1, 2, 4)
    pairs: tuple[int, ...] = (2, 4, 8, 16)
    times: int = 1
    answered: bool = True
    rewritten: float = 0.0
    ordered: float = 0.0
    spread: int = 0
    power: float = 1.0
    keys: int = 16
    values: int = 16
    fillers: int = 8
    key_words: tuple[str, ...] = ()
    value_words: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    question: str = ""

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        ascending("blocks", self.blocks, "document lengths")
        ascending("pairs", self.pairs, "numbers of pairs")
        at_least("MqarConfig.spread", self.spread, 0)
        for name in ("times", "keys", "values", "fillers"):
            at_least(f"MqarConfig.{name}", getattr(self, name), 1)
        if self.pairs[-1] > min(self.keys, self.values):
            raise ConfigError(
                f"pairs {self.pairs}: {self.pairs[-1]} pairs need as many distinct keys and values, but there are "
                f"{self.keys} and {self.values}; raise MqarConfig.keys and MqarConfig.values"
            )
        probability("MqarConfig.rewritten", self.rewritten)
        probability("MqarConfig.ordered", self.ordered)
        if self.ordered and self.pairs[-1] < 2:
            raise ConfigError(f"MqarConfig.ordered changes nothing in lists of one pair; raise pairs {self.pairs}")
        if self.rewritten and self.values < 2:
            raise ConfigError("MqarConfig.rewritten needs a second value; raise MqarConfig.values to 2 or more")
        for name, words, count in (("key", self.key_words, self.keys), ("value", self.value_words, self.values)):
            if words and not len(words) == len(set(words)) == count:
                raise ConfigError(
                    f"MqarConfig.{name}_words {words} must be as many different words as {name}s, {count}"
                )
        if both := set(self.key_words) & set(self.value_words):
            raise ConfigError(f"{sorted(both)} are both in MqarConfig.key_words and value_words; use different words")
        for one in self.sentences:
            if one.count("{key}") != 1 or one.count("{value}") != 1:
                raise ConfigError(f"MqarConfig.sentences: {one!r} must have {{key}} and {{value}} once each")
        if self.question and self.question.count("{key}") != 1:
            raise ConfigError(f"MqarConfig.question: {self.question!r} must have {{key}} once")
        if self.power <= 0:
            raise ConfigError(f"power is {self.power}; it must be above 0: 1 is uniform, 0.01 asks soon")

    @property
    def has_words(self) -> bool:
        """Whether the settings contain words, so that the model must have a tokenizer."""
        return bool(self.key_words or self.value_words or self.sentences or self.question)

    def check_pairs(self, tokens: int, pairs: int, listed: int = 2, asked: int = 2) -> None:
        """Raises `ConfigError` unless a document of `tokens` tokens has room for these pairs, `listed` tokens each in
        the list, and for their questions, `asked` tokens each with the value."""
        a_pair = listed + asked * (self.times + (self.rewritten > 0))
        if (needed := self.spread + a_pair * pairs) > tokens:
            raise ConfigError(
                f"{pairs} pairs and their questions take {needed} tokens, but a document has {tokens}; use longer "
                f"documents, or at most {max(tokens - self.spread, 0) // a_pair} pairs"
            )

    def check_length(self, tokens: int, block_size: int) -> None:
        """Raises `ConfigError` unless documents fit into a row, and all pairs into the shortest document."""
        super().check_length(tokens, block_size)
        self.check_pairs(self.blocks[0] * block_size, self.pairs[-1])


@dataclasses.dataclass(frozen=True)
class TrackingConfig(_Labelled):
    """State tracking (Liu et al. 2022, arXiv 2210.10749; Merrill et al. 2024, arXiv 2404.08819).

    Tokens are elements of a group. After each token the model predicts the product of all elements so far. The task's
    name is the group: `parity`, `s3` or `s5`.

    Attributes:
      elements: which elements of the group occur as tokens: `generators`, two that generate the group, or `all`.
    """

    blocks: tuple[int, ...] = (1, 2, 4, 8)
    elements: str = "generators"

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        ascending("blocks", self.blocks, "document lengths")
        if self.elements not in ("generators", "all"):
            raise ConfigError(f"elements {self.elements!r} is neither 'generators' nor 'all'")
