"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): pairs, then every key again.

    k5 v1 k0 v6 k3 v2  . .  k0 v6  . .  . .  k3 v2  . .  k5 v1

The first part lists the pairs. The rest consists of places of two tokens, each with a question (a key and its value) or
with filler. Questions draw distinct places, place x (from 1) with weight x^(a - 1), and their order is random. As in
the paper's figure, the value follows the key; the paper's code has filler there, and the value is only a label
(`MqarConfig.answered`). With `MqarConfig.rewritten`, some places list a key again, with a new value that holds from
there on; nothing is predicted at them.

A model with a tokenizer recalls words of its own vocabulary: ` garden apple window seven . . ` with other words for
the dots. The pairs of its list may be sentences (`MqarConfig.sentences`): ` Mary went to the garden. John ...`.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from famjax.config import ConfigError, MqarConfig
from famjax.data.labelled import NONE, Document
from famjax.data.symbols import SymbolVocabulary
from famjax.data.vocabulary import Vocabulary

_WORD = re.compile("[a-z]{3,}")


class Sentence(NamedTuple):
    """The text of a pair in the list, or of a question with its value.

    Attributes:
      tokens: int32 [n], ids in the model's vocabulary; any number at `key` and `value`.
      key, value: indices of the key and of its value.
    """

    tokens: np.ndarray
    key: int
    value: int


_PAIR = Sentence(np.zeros(2, np.int32), 0, 1)


@dataclasses.dataclass(frozen=True)
class Mqar:
    """The task; see `Labelled`. Bins are the distance in blocks between a pair's value and the question, and with
    `MqarConfig.rewritten` whether the value is the first (0) or the new one (1).

    Attributes:
      name, config: see `Labelled`.
      words: ids of fillers, keys and values in `text`, see `words_of`; empty: the tokens are a vocabulary of their own.
      text: the vocabulary of a model with a tokenizer, from which `words` are.
      sentences: texts of a pair in the list, one of which each pair draws.
      question: text of a question, which ends with the value.
    """

    name: str
    config: MqarConfig
    words: tuple[int, ...] = dataclasses.field(default=(), repr=False)
    text: Vocabulary | None = dataclasses.field(default=None, repr=False, compare=False)
    sentences: tuple[Sentence, ...] = dataclasses.field(default=(_PAIR,), repr=False, compare=False)
    question: Sentence = dataclasses.field(default=_PAIR, repr=False, compare=False)
    kind_label: ClassVar[str] = "pairs"

    @property
    def vocabulary(self) -> Vocabulary:
        """That of the model with a tokenizer; else fillers `.0 .1 ...`, keys `k0 k1 ...`, values `v0 v1 ...`."""
        if self.text is not None:
            return self.text
        kinds = ((".", self.config.fillers), ("k", self.config.keys), ("v", self.config.values))
        return SymbolVocabulary([f"{letter}{i}" for letter, count in kinds for i in range(count)])

    @property
    def bins(self) -> tuple[str, ...]:
        """See `Labelled`."""
        return "blocks between pair and question", *["new values of a key"] * (self.config.rewritten > 0)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Lengths of training documents, in blocks."""
        return tuple(self.config.blocks)

    @property
    def kinds(self) -> tuple[int, ...]:
        """Numbers of pairs."""
        return tuple(self.config.pairs)

    @property
    def chance(self) -> float:
        """Accuracy of guessing uniformly among all values."""
        return 1 / self.config.values

    def most_labels(self, length: int) -> int:
        """See `Labelled`."""
        return self.config.pairs[-1] * self.config.times

    def draw(self, rng: np.random.Generator, length: int, block_size: int, kind: int | None = None) -> Document:
        """See `Labelled`."""
        config = self.config
        pairs = int(rng.choice(config.pairs)) if kind is None else kind
        room = len(self.question.tokens)
        config.check_pairs(length, pairs, max(len(one.tokens) for one in self.sentences), room)
        values_from = config.fillers + config.keys
        keys = config.fillers + rng.choice(config.keys, pairs, replace=False)
        if config.ordered and rng.random() < config.ordered:
            keys.sort()
        values = values_from + rng.choice(config.values, pairs, replace=False)

        listed, begins, head = self._list(rng, pairs)
        keys_at, values_at = begins + [one.key for one in listed], begins + [one.value for one in listed]

        # Event i is a question for pair `of[i]`, or its key with a new value, in `room` tokens from `asks[i]` on. Its
        # value follows token `at[i]`.
        again = np.flatnonzero(rng.random(pairs) < config.rewritten) if config.rewritten else np.arange(0)
        of = np.concatenate([np.tile(np.arange(pairs), config.times), again])
        places = (length - head) // room
        weight = np.arange(1, places + 1) ** (config.power - 1.0)
        asks = head + room * rng.choice(places, len(of), replace=False, p=weight / weight.sum())
        at = asks + self.question.value - 1
        known, since = values[of], values_at[of]  # the pair's value at the event, and the place where it was listed
        rewrites = np.zeros(len(of), bool)
        for pair in again:
            mine = np.flatnonzero(of == pair)
            mine = mine[np.argsort(at[mine])][rng.integers(config.times) :]  # the rewriting, then questions
            rewrites[mine[0]] = True
            known[mine] += 1 + rng.integers(config.values - 1)
            since[mine] = at[mine[0]] + 1
        known = values_from + (known - values_from) % config.values

        tokens = rng.integers(0, config.fillers, length).astype(np.int32)
        tokens[keys_at], tokens[values_at] = keys, values
        tokens[asks + self.question.key] = keys[of]
        written = rewrites | config.answered
        tokens[at[written] + 1] = known[written]
        asked = at[~rewrites]
        labels, (distance, renewed) = np.full(length, NONE, np.int32), np.zeros((2, length), np.int32)
        labels[asked] = known[~rewrites]
        distance[asked] = asked // block_size - since[~rewrites] // block_size
        renewed[asked] = since[~rewrites] >= head
        if self.words:
            ids = np.array(self.words, np.int32)
            text = np.full(length, NONE, np.int32)  # what is not a filler, a key or a value
            for begin, one in zip(begins, listed, strict=True):
                text[begin : begin + len(one.tokens)] = one.tokens
            text[asks[:, None] + np.arange(room)] = self.question.tokens
            text[np.concatenate([keys_at, values_at, asks + self.question.key, at + 1])] = NONE
            tokens = np.where(text == NONE, ids[tokens], text)
            labels = np.where(labels == NONE, NONE, ids[labels])
        return Document(tokens, labels, (distance, renewed)[: len(self.bins)])

    def _list(self, rng: np.random.Generator, pairs: int) -> tuple[list[Sentence], np.ndarray, int]:
        """Draws the list's layout: the text of each pair, the places where they begin, int [pairs], and the end."""
        drawn = rng.integers(len(self.sentences), size=pairs) if len(self.sentences) > 1 else np.zeros(pairs, int)
        listed = [self.sentences[i] for i in drawn]
        lengths = np.array([len(one.tokens) for one in listed])
        ends = np.cumsum(lengths)
        if self.config.spread:
            ends += np.cumsum(rng.multinomial(rng.integers(self.config.spread + 1), [1 / pairs] * pairs))
        return listed, ends - lengths, int(ends[-1])


def mqar_in_words(name: str, config: MqarConfig, text: Vocabulary) -> Mqar:
    """Returns the task in words of a model's vocabulary: fillers, keys and values are different tokens of it.

    The words of `words_of` go to a filler, a key and a value in turn, so that fewer of a kind are some of the same
    words, and a model may be evaluated with other numbers than it was trained with.

    Raises:
      ConfigError: it has too few words, or one of the settings is not one token of it.
    """
    counts = config.fillers, config.keys, config.values
    needed = max(3 * (count - 1) + kind + 1 for kind, count in enumerate(counts))
    given = [_token(text, one) for one in (*config.key_words, *config.value_words)]
    words = [word for word in words_of(text, needed + len(given)) if word not in given]
    if len(words) < needed:
        raise ConfigError(
            f"the task {name!r} needs {needed} words of one token, a third for each kind, but the vocabulary has "
            f"{len(words)}; lower MqarConfig.keys, values and fillers"
        )
    chosen = [words[kind::3][:count] for kind, count in enumerate(counts)]
    split = len(config.key_words)
    chosen[1:] = given[:split] or chosen[1], given[split:] or chosen[2]
    _, keys, values = chosen
    sentences = tuple(_sentence(text, one, keys, values) for one in config.sentences) or (_PAIR,)
    question = _sentence(text, f"{config.question} {{value}}", keys, values) if config.question else _PAIR
    return Mqar(name, config, tuple(word for some in chosen for word in some), text, sentences, question)


def _after_a_word(text: Vocabulary, words: str) -> list[int]:
    """Returns the tokens of a text that follows a word and a space."""
    before = text.encode("the").tolist()
    found = text.encode(f"the {words}").tolist()
    return found[len(before) :] if found[: len(before)] == before else []


def _token(text: Vocabulary, word: str) -> int:
    """Returns the token of a word. Raises `ConfigError` if it has several."""
    found = _after_a_word(text, word)
    if len(found) != 1:
        raise ConfigError(f"{word!r} of MqarConfig.key_words or value_words is {len(found)} tokens; use words of one")
    return found[0]


def _sentence(text: Vocabulary, sentence: str, keys: Sequence[int], values: Sequence[int]) -> Sentence:
    """Returns the tokens of a sentence. Raises `ConfigError` if a key or a value in it is not one token, or if another
    token depends on it."""
    first = _sentence_of(text, sentence, keys[0], values[0])
    for key, value in (*((key, values[0]) for key in keys[1:]), *((keys[0], value) for value in values[1:])):
        expected = first.tokens.copy()
        expected[[first.key, first.value]] = key, value
        if not np.array_equal(_sentence_of(text, sentence, key, value).tokens, expected):
            raise ConfigError(
                f"MqarConfig.sentences and question: in {_said(text, sentence, key, value)!r}, tokens besides the key "
                f"and its value differ from those of other keys and values; use another sentence"
            )
    return first


def _sentence_of(text: Vocabulary, sentence: str, key: int, value: int) -> Sentence:
    """Returns the tokens of a sentence with this key and value. Raises `ConfigError` if they are not a token each."""
    said = _said(text, sentence, key, value)
    tokens = _after_a_word(text, said)
    if tokens.count(key) != 1 or tokens.count(value) != 1:
        raise ConfigError(
            f"MqarConfig.sentences and question: in {said!r}, the key and its value are not one token each"
        )
    return Sentence(np.array(tokens, np.int32), tokens.index(key), tokens.index(value))


def _said(text: Vocabulary, sentence: str, key: int, value: int) -> str:
    """Returns a sentence with the words of a key and a value."""
    return sentence.replace("{key}", text.decode([key]).strip()).replace("{value}", text.decode([value]).strip())


def words_of(text: Vocabulary, most: int) -> list[int]:
    """Returns the ids of at most `most` tokens that are a word of three lower-case letters or more after another word,
    the first ones of a fixed random order."""
    found: list[int] = []
    before = text.encode("the").tolist()
    for token in np.random.default_rng(0).permutation(text.size).tolist():
        if len(found) == most:
            break
        word = text.decode([token]).strip()
        if _WORD.fullmatch(word) and text.encode(f"the {word}").tolist() == [*before, token]:
            found.append(token)
    return found
