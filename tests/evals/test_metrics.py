"""Every metric against the reference implementation, or against values computed by hand."""

import math

import numpy as np
import pytest
from rouge_score import rouge_scorer

from famjax.evals import metrics, statistics

# (prediction, target, exact match, F1), worked out by the rules of SQuAD's evaluate-v2.0.py.
SQUAD = [
    ("The cat sat.", "the cat  sat", 1, 1),
    ("a cat", "The dog", 0, 0),
    ("", "nothing", 0, 0),
    ("The", "the", 1, 1),  # both are empty in normal form
    ("to be, or not to be", "to be or not", 0, 2 * (4 / 6) * 1 / (4 / 6 + 1)),  # words count as often as they come
    ("in 1984, Orwell's", "Orwells 1984", 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    ("running quickly home", "he runs home quick", 0, 2 / (3 + 4)),
]
PAIRS = [(prediction, target) for prediction, target, *_ in SQUAD]


@pytest.mark.parametrize(("prediction", "target", "exact", "f1"), SQUAD)
def test_squad_metrics_by_hand(prediction, target, exact, f1):
    """Exact match and word F1; the best of several targets counts."""
    assert metrics.squad_exact_match(prediction, [target]) == exact
    assert metrics.squad_f1(prediction, [target]) == pytest.approx(f1)
    assert metrics.squad_f1(prediction, ["zebra", target]) == pytest.approx(f1)


@pytest.mark.parametrize(("prediction", "target"), PAIRS)
def test_rouge_l_is_the_librarys(prediction, target):
    """F-measure of rouge-score with its stemmer; the best of several targets counts."""
    expected = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(target, prediction)["rougeL"].fmeasure
    assert metrics.rouge_l(prediction, [target]) == expected
    assert metrics.rouge_l(prediction, ["qqq", target]) == expected


def test_rouge_l_keeps_words_of_other_scripts():
    """Longest common subsequence by hand: 3 of 4 and 3 words, F = 6/7; the library alone finds no words."""
    assert metrics.rouge_l("мама мыла старую раму", ["мама мыла раму"]) == pytest.approx(6 / 7)
    assert rouge_scorer.RougeScorer(["rougeL"]).score("мама мыла раму", "мама мыла")["rougeL"].fmeasure == 0


@pytest.mark.parametrize(
    ("prediction", "target", "f"),
    [
        ("कि", "का", 0),  # the same consonant with another vowel sign
        ("हिन्दी में", "हिन्दी से", 1 / 2),
        ("cafe\u0301 noir", "café noir", 1),  # a combining accent
        ("می\u200cخواهم", "می خواهم", 0),  # a joiner is part of its word
        ("naïve_approach’s end", "naïve approach's end", 1),  # other signs end a word, as those of ASCII do
    ],
)
def test_rouge_l_keeps_the_marks_of_words(prediction, target, f):
    """Words have the vowel signs and accents that are written as characters of their own."""
    assert metrics.rouge_l(prediction, [target]) == pytest.approx(f)


def test_string_match_is_rulers():
    """RULER's string_match_all: the fraction of references found, ignoring case; string_match_any: whether one is
    found."""
    said = "The numbers are 123 and ABC."
    assert metrics.string_match_all(said, ["123", "abc", "999"]) == pytest.approx(2 / 3)
    assert (metrics.string_match_any(said, ["999", "abc"]), metrics.string_match_any(said, ["999"])) == (1, 0)
    assert (metrics.exact_match(" 123\n", ["9", "123"]), metrics.exact_match("123.", ["123"])) == (1, 0)


def test_word_match_is_babilongs():
    """The first sentence has the target and no other answer of the task, not counting those in the question; all words
    of a list and no more; a path such as `n,w` is one answer."""
    places, items = ["bathroom", "hallway", "kitchen"], ["milk", "apple", "nothing"]
    match = metrics.babilong_match
    assert match("It is in the Bathroom. The hallway is empty", "bathroom", "Where is Mary?", places) == 1
    assert match("bathroom hallway", "bathroom", "Where is Mary?", places) == 0
    before = "Where was the apple before the kitchen?"
    assert match("Before the kitchen it was in the hallway.", "hallway", before, places) == 1
    assert match("Before the kitchen it was in the bathroom.", "hallway", before, places) == 0
    assert match("apple and milk", "milk,apple", "What is Mary carrying?", items) == 1
    assert match("milk", "milk,apple", "What is Mary carrying?", items) == 0
    assert match("n,w", "n,w", "How do you go from the hallway to the kitchen?", ["n,w", "n,n"]) == 1
    assert match("hallway <example> bathroom", "hallway", "Where is Mary?", places) == 1
    assert match("", "milk", "What?", items) == 0


def test_choices_are_ranked_by_sum_and_by_byte():
    """-4 over 2 bytes is better than -6 over 6 by sum, and worse per byte."""
    assert metrics.choice_values([-4.0, -6.0], [2, 6], 0) == {"accuracy": 1, "accuracy_by_byte": 0}
    assert metrics.choice_values([-4.0, -6.0], [2, 6], 1) == {"accuracy": 0, "accuracy_by_byte": 1}


def test_predicted_tokens_by_hand():
    """Probabilities 1/2, 1/4, 1/8 over 3 bytes are 2 bits per byte; with one miss of three there is no exact match."""
    logprobs = np.log(np.array([0.5, 0.25, 0.125], np.float32))
    values = metrics.scored_values(logprobs, np.array([True, False, True]), 3.0)
    assert values["bits_per_byte"] == pytest.approx(2.0)
    assert (values["exact_match"], values["next_token_accuracy"]) == (0, pytest.approx(2 / 3))
    assert metrics.scored_values(logprobs, np.array([True] * 3), 0) == {"exact_match": 1, "next_token_accuracy": 1}


# --- intervals ------------------------------------------------------------------------------------


def test_successes_of_a_unit_each_have_wilsons_interval():
    """If all values are the same, the number of trials is that of the units; a single unit has no interval."""
    assert statistics.mean_interval([1, 0, 1], ["a", "b", "c"]) == statistics.wilson_interval(2, 3)
    assert statistics.mean_interval([0] * 6, ["a", "a", "b", "b", "c", "c"]) == statistics.wilson_interval(0, 3)
    assert statistics.mean_interval([0, 1], ["a", "a"]) == (None, None)


def test_equal_values_have_no_interval():
    """Resampling them gives the same mean each time, which does not say that it is exact."""
    assert statistics.mean_interval([0.25] * 3, ["a", "b", "c"]) == (None, None)
    assert None not in statistics.mean_interval([0.25, 0.25, 0.5], ["a", "b", "c"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_of_one_document_stand_or_fall_together(seed):
    """100 documents with 20 equal answers each: the interval is that of 100 values (+-1.96 standard errors), not of
    2000; computing it in slices, or with another seed, changes it only by its own noise."""
    rng = np.random.default_rng(seed)
    by_document = rng.normal(0.5, 0.2, 100)
    values, units = np.repeat(by_document, 20), np.repeat([str(i) for i in range(100)], 20)
    low, high = statistics.mean_interval(values, units)
    error = statistics.Z95 * by_document.std() / math.sqrt(100)
    assert (low, high) == pytest.approx((by_document.mean() - error, by_document.mean() + error), abs=error / 8)
    before, statistics.AT_ONCE = statistics.AT_ONCE, 2000
    try:
        in_pieces = statistics.mean_interval(values, units)
    finally:
        statistics.AT_ONCE = before
    assert in_pieces == pytest.approx((low, high), abs=error / 8) and in_pieces != (low, high)
    again = statistics.mean_interval(values, units, seed=1)
    assert again == pytest.approx((low, high), abs=error / 5) and again != (low, high)


def test_a_gap_is_drawn_in_pairs():
    """Documents of very different difficulty that differ by .1 each: the ratios vary between documents, their
    difference does not."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 400, 40).astype(float)
    hard = rng.uniform(0.5, 6, 40) * tokens
    low, high = statistics.gap_interval((hard + 0.1 * tokens, tokens), (hard, tokens))
    assert (low, high) == pytest.approx((0.1, 0.1))
    low, high = statistics.ratio_interval(hard, tokens)
    assert high - low > 0.5
    # Samples without any token of one of the two are left out.
    one, other = (np.ones(4), np.ones(4)), (np.array([0.5, 0, 0, 0]), np.array([1.0, 0, 0, 0]))
    assert statistics.gap_interval(one, other) == pytest.approx((0.5, 0.5))
