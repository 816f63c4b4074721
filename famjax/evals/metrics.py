"""Metrics of answers. A text metric is a function of (prediction, targets); the best of several targets counts, unless
stated otherwise.

Definitions are those of the tasks' papers: SQuAD's exact match and F1 (Rajpurkar et al. 2016, its official script),
RULER's string match (Hsieh et al. 2024), ROUGE-L by the rouge-score library.
"""

import collections
import functools
import math
import re
import string
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError


def exact_match(prediction: str, targets: Sequence[str]) -> float:
    """Returns 1 if the prediction equals a target, ignoring surrounding white space."""
    return float(any(prediction.strip() == target.strip() for target in targets))


def string_match_all(prediction: str, targets: Sequence[str]) -> float:
    """RULER: returns the fraction of the targets that occur in the prediction, ignoring case."""
    found = [target.lower() in prediction.lower() for target in targets]
    return sum(found) / len(found)


def string_match_any(prediction: str, targets: Sequence[str]) -> float:
    """RULER, for questions with several correct answers: returns 1 if one of them occurs in the prediction."""
    return float(any(target.lower() in prediction.lower() for target in targets))


def babilong_match(prediction: str, target: str, question: str, labels: Collection[str]) -> float:
    """BABILong's rule: returns 1 if the first sentence of the prediction contains the target, words separated by
    commas, and no other answer of the task (`labels`, in lower case), not counting answers that the question contains.
    """
    said = re.split(r"\.|<context>|<example>", prediction.strip().lower(), maxsplit=1)[0]
    asked, target = question.lower(), target.lower()
    found = {label for label in labels if label in said and label not in asked}
    wanted = set(target.split(",")) if len(target) > 3 else {target}
    return float(found == wanted)


# --- SQuAD ----------------------------------------------------------------------------------------


def squad_normal_form(text: str) -> str:
    """Returns the text in lower case, without punctuation and articles, with single spaces."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_exact_match(prediction: str, targets: Sequence[str]) -> float:
    """Returns 1 if prediction and a target have the same normal form."""
    return float(any(squad_normal_form(prediction) == squad_normal_form(target) for target in targets))


def squad_f1(prediction: str, targets: Sequence[str]) -> float:
    """Returns the bag-of-words F1 of prediction and target, in normal form."""
    return max(_f1(squad_normal_form(prediction).split(), squad_normal_form(target).split()) for target in targets)


def _f1(prediction: list[str], target: list[str]) -> float:
    if not prediction or not target:
        return float(prediction == target)
    shared = sum((collections.Counter(prediction) & collections.Counter(target)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(target)
    return 2 * precision * recall / (precision + recall)


# --- ROUGE ----------------------------------------------------------------------------------------


# Zero-width non-joiner and joiner.
_JOINERS = "\u200c\u200d"


@functools.cache
def _scorer() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise ConfigError(f"ROUGE needs rouge-score ({error}): pip install -e '.[eval]'") from error
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True, tokenizer=_Words())


class _Words:
    """The library's tokenizer for ASCII words. It would drop other characters, so other words are kept whole.

    A word is a run of letters and digits with their marks and joiners: without its vowel signs, a word of Hindi would
    be its consonants.
    """

    def __init__(self) -> None:
        from rouge_score import tokenizers

        self._library = tokenizers.DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """Returns the words of a text, in lower case and stemmed if they are ASCII."""
        if text.isascii():
            return list(self._library.tokenize(text))
        letters = unicodedata.normalize("NFC", text.lower())
        belongs = lambda letter: letter in _JOINERS or unicodedata.category(letter)[0] in "LMN"
        words = "".join(letter if belongs(letter) else " " for letter in letters).split()
        return [stem for word in words for stem in (self._library.tokenize(word) if word.isascii() else [word])]


def rouge_l(prediction: str, targets: Sequence[str]) -> float:
    """Returns the ROUGE-L F-measure (Lin 2004) by the rouge-score library with its stemmer.

    Words with non-ASCII letters, which the library would drop or split, are kept.
    """
    return max(float(_scorer().score(target, prediction)["rougeL"].fmeasure) for target in targets)


# --- other kinds of tasks -------------------------------------------------------------------------


def choice_values(sums: Sequence[float], sizes: Sequence[int], answer: int) -> dict[str, float]:
    """Returns the accuracies of rank classification, by the choices' log probabilities `sums`, and by these divided by
    their `sizes`, bytes or characters. `answer` is the index of the correct choice."""
    by_byte = [total / max(size, 1) for total, size in zip(sums, sizes, strict=True)]
    return {
        "accuracy": float(int(np.argmax(sums)) == answer),
        "accuracy_by_byte": float(int(np.argmax(by_byte)) == answer),
    }


def labelled_values(correct: np.ndarray) -> dict[str, float]:
    """Returns the metrics of a document with labels: the share of correct predictions, and whether all are correct."""
    return {"accuracy": float(correct.mean()), "all_correct": float(correct.all())}


def scored_values(logprobs: np.ndarray, correct: np.ndarray, size: float) -> dict[str, float]:
    """Returns the metrics of scored tokens, of which `correct` were the argmax. Exact match equals that of greedy
    generation: every argmax is correct. `size` has the bytes of their text; 0 omits bits per byte."""
    bits = -float(np.sum(logprobs, dtype=np.float64)) / math.log(2)
    # A tokenizer may leave no token to predict: accuracy is then 1.
    accuracy = float(correct.mean()) if len(correct) else 1.0
    values = {"exact_match": float(correct.all()), "next_token_accuracy": accuracy}
    return values | ({"bits_per_byte": bits / size} if size else {})
