"""The text of the pass key task, in the paper's words (paper section 5), in the tokens of any vocabulary.

Tokenization depends on context, so no part is encoded alone: the filler is encoded after the statement of the key, the
question after a sentence. Bytes are split exactly at the boundaries; with a tokenizer whose tokens begin with a space,
a space at a boundary belongs to the part after it.
"""

import functools
from typing import NamedTuple

import numpy as np

from famjax.config import ConfigError
from famjax.data.vocabulary import ByteVocabulary, Vocabulary, inside, with_characters

INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there. "
)
TELLING = "The pass key is {key}. Remember it. {key} is the pass key. "
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
QUESTION = " What is the pass key? The pass key is "
# The end of the filler, before the question.
_SENTENCE_BEFORE = "again."
ASCII = 128


class Document(NamedTuple):
    """A document in tokens.

    Attributes:
      tokens: int32 [n], including the answer.
      answer: int [a], indices of the tokens with digits of the answer, the last ones of the document.
      mention: int [m], indices of the tokens of the key's second mention, before the filler.
    """

    tokens: np.ndarray
    answer: np.ndarray
    mention: np.ndarray


class _Frame(NamedTuple):
    """A document without its filler: the parts before and after it, and the indices of the key in them."""

    introduction: np.ndarray
    telling: np.ndarray
    mention: np.ndarray
    question: np.ndarray
    answer: np.ndarray


class Writer:
    """Assembles documents of the task in tokens; with `bos` they begin with the vocabulary's BOS token, if it has one.
    Raises `ConfigError` if the vocabulary cannot encode the text."""

    def __init__(self, vocabulary: Vocabulary, bos: bool = True):
        self.vocabulary = vocabulary
        self._begin = np.array([vocabulary.bos] if bos and vocabulary.bos is not None else [], np.int32)
        self._frame = functools.lru_cache(maxsize=1024)(self._frame_of)
        self._filler = np.zeros(0, np.int32)
        text = INTRODUCTION + TELLING.format(key="0123456789") + FILLER + QUESTION.strip()
        if vocabulary.decode(vocabulary.encode(text)) != text:
            raise ConfigError(
                "the vocabulary does not reproduce the text of the pass key task (letters, digits, punctuation); use "
                "another task, or another vocabulary"
            )

    def check(self, vocab_size: int) -> None:
        """Raises `ConfigError` unless `vocab_size` covers all tokens of documents."""
        if isinstance(self.vocabulary, ByteVocabulary):
            if vocab_size < self.vocabulary.offset + ASCII:
                raise ConfigError(
                    f"vocab_size {vocab_size} is below {self.vocabulary.offset + ASCII}: the pass key task is written "
                    f"in ASCII"
                )
        elif vocab_size < self.vocabulary.size:
            raise ConfigError(
                f"vocab_size {vocab_size} is below the {self.vocabulary.size} tokens of the vocabulary that the pass "
                f"key task is written in"
            )

    def document(self, key: str, filler_tokens: int, lead: int = 0, introduced: bool = True) -> Document:
        """Returns a document with exactly `filler_tokens` tokens of filler between the statement of the key and the
        question, and `lead` tokens before the statement; filler may end anywhere in a sentence. A document that is not
        `introduced` lacks BOS and the introduction: it continues another text."""
        frame, head = self._frame(key), self._head(key, introduced)
        before = len(head) + lead + len(frame.telling)
        parts = [head, self.filler(lead), frame.telling, self.filler(filler_tokens), frame.question]
        return Document(np.concatenate(parts), before + filler_tokens + frame.answer, len(head) + lead + frame.mention)

    def _head(self, key: str, introduced: bool) -> np.ndarray:
        parts = [self._begin, self._frame(key).introduction] if introduced else [self._begin[:0]]
        return np.concatenate(parts)

    def overhead(self, key: str, introduced: bool = True) -> int:
        """Returns the number of tokens of a document with this key, without its filler."""
        return self.telling_tokens(key, introduced) + len(self._frame(key).question)

    def telling_tokens(self, key: str, introduced: bool = True) -> int:
        """Returns the number of tokens up to the end of the statement of the key, without filler before it."""
        return len(self._head(key, introduced)) + len(self._frame(key).telling)

    def between(self, key: str) -> int:
        """Returns the tokens from the last one of the mention to the first one of the answer, without filler."""
        frame = self._frame(key)
        return len(frame.telling) - int(frame.mention[-1]) + int(frame.answer[0])

    def question_tokens(self, key: str) -> int:
        """Returns the number of tokens of a document after its filler, including the answer."""
        return len(self._frame(key).question)

    def most_overhead(self, digits: int) -> int:
        """Returns an upper bound of `overhead` for keys with `digits` digits."""
        key = "0" * digits
        frame = self._frame(key)
        # At most one token per digit. If a token includes the leading space, the space may be a token of its own.
        with_space = len(self.vocabulary.decode(frame.question[frame.answer])) > digits
        return self.overhead(key) + 3 * (digits + with_space - len(frame.answer))

    def answer_tokens(self, key: str) -> int:
        """Returns the number of tokens of the answer."""
        return len(self._frame(key).answer)

    def key_of(self, answer: np.ndarray) -> str:
        """Decodes the key from an answer's tokens."""
        return self.vocabulary.decode(answer).strip()

    def filler(self, tokens: int) -> np.ndarray:
        """Returns filler, int32 [tokens], as it is encoded after the statement of the key."""
        if len(self._filler) < tokens:
            encode = self.vocabulary.encode
            sentence = len(encode(2 * FILLER)) - len(encode(FILLER))
            head = INTRODUCTION + TELLING.format(key="0")
            # Two more repetitions than needed, since the end of a text may be tokenized differently from its middle.
            whole = encode(head + FILLER * (tokens // sentence + 2))
            self._filler = whole[inside(self.vocabulary, whole, len(head)) :]
        return self._filler[:tokens]

    def _frame_of(self, key: str) -> _Frame:
        head = INTRODUCTION + TELLING.format(key=key)
        telling = self.vocabulary.encode(head + FILLER)
        telling = telling[: inside(self.vocabulary, telling, len(head))]
        mention = with_characters(self.vocabulary, telling, head.rindex(key), len(key))
        introduction = inside(self.vocabulary, telling, len(INTRODUCTION))
        tail = _SENTENCE_BEFORE + QUESTION + key
        question = self.vocabulary.encode(tail)
        cut = with_characters(self.vocabulary, question, 0, len(_SENTENCE_BEFORE))[-1] + 1
        return _Frame(
            telling[:introduction], telling[introduction:], mention - introduction,
            question[cut:], with_characters(self.vocabulary, question, len(tail) - len(key), len(key)) - cut,
        )  # fmt: skip


def random_key(rng: np.random.Generator, digits: int) -> str:
    """Draws a key of `digits` random digits; leading zeros are allowed."""
    return "".join(str(d) for d in rng.integers(0, 10, digits))
