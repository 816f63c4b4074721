"""What an answer is worth. Each metric of texts is a function of (prediction, targets); of several targets the
best one counts unless said otherwise.

They are those of the tasks' own papers: SQuAD's exact match and F1 (Rajpurkar et al. 2016, its official script),
RULER's string match (Hsieh et al. 2024), ROUGE-L by the rouge-score library.
"""

import collections
import functools
import math
import re
import string
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError


def exact_match(prediction: str, targets: Sequence[str]) -> float:
    """1 where the prediction is a target, but for white space around it."""
    return float(any(prediction.strip() == target.strip() for target in targets))


def string_match_all(prediction: str, targets: Sequence[str]) -> float:
    """RULER: the share of the targets that are found in the prediction, in whatever case."""
    found = [target.lower() in prediction.lower() for target in targets]
    return sum(found) / len(found)


def string_match_any(prediction: str, targets: Sequence[str]) -> float:
    """RULER, for questions with several right answers: 1 where one of them is found in the prediction."""
    return float(any(target.lower() in prediction.lower() for target in targets))


def babilong_match(prediction: str, target: str, question: str, labels: Collection[str]) -> float:
    """BABILong's rule: of the words that answer some question of the task, the first sentence of the prediction has
    the target and no other, apart from those that the question itself names.

    Args:
      prediction: what the model wrote.
      target: the right answer; one of several words has commas between them.
      question: that was asked.
      labels: all answers of the task, in lower case.
    """
    said = re.split(r"\.|<context>|<example>", prediction.strip().lower(), maxsplit=1)[0]
    asked, target = question.lower(), target.lower()
    found = {label for label in labels if label in said and label not in asked}
    wanted = set(target.split(",")) if len(target) > 3 else {target}
    return float(found == wanted)


# --- SQuAD ----------------------------------------------------------------------------------------


def squad_normal_form(text: str) -> str:
    """Lower case, without punctuation and articles, words with one space between them."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_exact_match(prediction: str, targets: Sequence[str]) -> float:
    """1 where prediction and a target have the same normal form."""
    return float(any(squad_normal_form(prediction) == squad_normal_form(target) for target in targets))


def squad_f1(prediction: str, targets: Sequence[str]) -> float:
    """F1 of the words that prediction and target share, as bags, in normal form."""
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


@functools.cache
def _scorer() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise ConfigError(f"ROUGE needs rouge-score ({error}): pip install -e '.[eval]'") from error
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True, tokenizer=_Words())


class _Words:
    """The library's words for text in ASCII; for other scripts every word, where the library would drop them all."""

    def __init__(self) -> None:
        from rouge_score import tokenizers

        self._library = tokenizers.DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """A text's words."""
        if text.isascii():
            return list(self._library.tokenize(text))
        return [stem for word in re.findall(r"\w+", text.lower()) for stem in self._stems(word)]

    def _stems(self, word: str) -> list[str]:
        return list(self._library.tokenize(word)) if word.isascii() else [word]


def rouge_l(prediction: str, targets: Sequence[str]) -> float:
    """ROUGE-L F-measure (Lin 2004) by the rouge-score library with its stemmer. Words of other scripts than Latin,
    which the library leaves out, are kept."""
    return max(float(_scorer().score(target, prediction)["rougeL"].fmeasure) for target in targets)


# --- the other kinds ------------------------------------------------------------------------------


def choice_values(sums: Sequence[float], sizes: Sequence[int], answer: int) -> dict[str, float]:
    """Rank classification: the choice of the highest log probability, and of the highest by byte.

    Args:
      sums: natural-log probability of each choice.
      sizes: bytes of each choice.
      answer: the right one.
    """
    by_byte = [total / max(size, 1) for total, size in zip(sums, sizes, strict=True)]
    return {
        "accuracy": float(int(np.argmax(sums)) == answer),
        "accuracy_by_byte": float(int(np.argmax(by_byte)) == answer),
    }


def scored_values(logprobs: np.ndarray, correct: np.ndarray, size: float) -> dict[str, float]:
    """Of predicted tokens. Exact match is what greedy generation would give: every first choice is right.

    Args:
      logprobs: natural-log probability of each token.
      correct: whether it was the first choice.
      size: bytes that they stand for.
    """
    bits = -float(np.sum(logprobs, dtype=np.float64)) / math.log(2)
    # A tokenizer may leave nothing to be predicted: what is nothing is right.
    accuracy = float(correct.mean()) if len(correct) else 1.0
    values = {"exact_match": float(correct.all()), "next_token_accuracy": accuracy}
    return values | ({"bits_per_byte": bits / size} if size else {})
