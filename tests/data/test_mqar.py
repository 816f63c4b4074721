"""Documents of multi-query associative recall, against a dictionary that reads them."""

import dataclasses
import re

import numpy as np
import pytest
import tokenizers

from famjax.config import ConfigError, MqarConfig, TrackingConfig
from famjax.data.documents import labelled_documents
from famjax.data.labelled import NONE, Document, Labelled
from famjax.data.mqar import Mqar
from famjax.data.vocabulary import ByteVocabulary, TokenizerVocabulary

S = 8


def drawn(task: Labelled, length: int = 8 * S, count: int = 20, kind: int | None = None) -> list[Document]:
    return [task.draw(np.random.default_rng([3, i]), length, S, kind) for i in range(count)]


def names(task: Labelled, tokens: np.ndarray) -> list[str]:
    return task.vocabulary.decode(tokens).split()


def recalled(words: list[str]) -> dict[int, tuple[str, int]]:
    """Of an MQAR document: place of each question to (value, blocks between the pair's value and the question)."""
    told: dict[str, tuple[str, int]] = {}
    asked = {}
    for at in range(len(words) - 1):
        if not words[at].startswith("k"):
            continue
        if words[at] in told:
            value, place = told[words[at]]
            asked[at] = (value, at // S - place // S)
        else:
            told[words[at]] = (words[at + 1], at + 1)
    return asked


@pytest.mark.parametrize(("times", "answered"), [(1, True), (1, False), (3, True), (3, False)])
def test_every_key_of_mqar_is_asked_and_its_value_is_the_label(times: int, answered: bool) -> None:
    """Labels, distances and numbers of pairs are those of a dictionary that reads the document; the value follows a
    question, or filler does."""
    for pairs in (1, 2, 4, 8):
        config = MqarConfig(pairs=(pairs,), keys=8, values=9, fillers=3, times=times, answered=answered)
        task = Mqar("mqar", config)
        for document in drawn(task, kind=pairs):
            words = names(task, document.tokens)
            asked = recalled(words)
            keys = [words[at] for at in asked]
            assert sorted(keys) == sorted([*words[: 2 * pairs : 2]] * times)
            assert sorted(np.flatnonzero(document.labels != NONE)) == sorted(asked)
            for at, (value, distance) in asked.items():
                assert names(task, document.labels[[at]]) == [value]
                assert words[at + 1] == value if answered else words[at + 1].startswith(".")
                assert document.bins[0][at] == distance
            told = 2 * pairs
            rest = [word for i, word in enumerate(words) if i >= told and i not in asked and i - 1 not in asked]
            assert all(word.startswith(".") for word in rest) and len(rest) == len(words) - told - 2 * len(asked)
            assert len(set(words[1:told:2])) == pairs


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("rewritten", [0.5, 1.0])
def test_a_key_that_is_listed_again_has_its_new_value(rewritten: float, times: int, answered: bool) -> None:
    """Labels and distances are those of a dictionary that reads the document and takes a value wherever a key has one
    and no label; every key is asked `times` times, and after it is rewritten; about this share of keys is rewritten."""
    config = MqarConfig(pairs=(4,), keys=8, values=4, fillers=3, times=times, answered=answered, rewritten=rewritten)
    task = Mqar("mqar", config)
    again = 0
    for document in drawn(task, 8 * S, kind=4):
        words = names(task, document.tokens)
        listed: dict[str, tuple[str, int]] = {}
        times_listed, asked, last = dict.fromkeys(words[:8:2], 0), dict.fromkeys(words[:8:2], 0), {}
        for at, word in enumerate(words):
            if not word.startswith("k"):
                assert document.labels[at] == NONE
            elif document.labels[at] == NONE:
                assert word not in listed or listed[word][0] != words[at + 1]
                listed[word], times_listed[word], last[word] = (words[at + 1], at + 1), times_listed[word] + 1, "listed"
                assert words[at + 1].startswith("v")
            else:
                value, place = listed[word]
                assert names(task, document.labels[[at]]) == [value]
                assert words[at + 1] == value if answered else words[at + 1].startswith(".")
                assert document.bins[0][at] == at // S - place // S
                assert document.bins[1][at] == times_listed[word] - 1
                asked[word], last[word] = asked[word] + 1, "asked"
        assert set(asked.values()) == {times} and set(last.values()) == {"asked"}
        assert set(times_listed.values()) <= {1, 2}
        again += sum(times_listed.values()) - 4
    total = 4 * len(drawn(task, 8 * S, kind=4))
    assert again == total if rewritten == 1 else abs(again / total - rewritten) < 4 * np.sqrt(0.25 / total)


def test_keys_are_in_the_order_of_the_vocabulary_as_often_as_asked() -> None:
    """All lists, none but by chance (a sixth of three keys), or half of the others too, within 4 standard errors."""
    for ordered, share in ((1.0, 1.0), (0.0, 1 / 6), (0.5, 7 / 12)):
        task = Mqar("mqar", MqarConfig(pairs=(3,), ordered=ordered))
        rng = np.random.default_rng(0)
        lists = [task.draw(rng, 2 * S, S).tokens[:6:2] for _ in range(1000)]
        found = np.mean([sorted(keys) == keys.tolist() for keys in lists])
        assert found == 1 if ordered == 1 else abs(found - share) < 4 * np.sqrt(share * (1 - share) / 1000)


def test_pairs_of_mqar_are_spread_over_filler() -> None:
    """Up to `spread` tokens of filler, before and between the pairs. Labels and distances are those of a dictionary
    that reads the document. One without room for all of it is refused."""
    task = Mqar("mqar", MqarConfig(pairs=(3,), keys=5, values=6, fillers=3, times=2, answered=False, spread=7))
    totals, gaps = set(), np.zeros(3, int)
    for document in drawn(task, 5 * S, 200):
        words = names(task, document.tokens)
        values = [i for i, word in enumerate(words) if word.startswith("v")]
        assert len(values) == 3 and all(words[i - 1].startswith("k") for i in values)
        between = np.diff([-1, *values]) - 2
        totals.add(int(between.sum()))
        gaps += between
        told = {words[i - 1]: i for i in values}
        asked = [i for i, word in enumerate(words) if word.startswith("k") and i + 1 not in values]
        assert sorted(words[i] for i in asked) == sorted([*told] * 2) and min(asked) > values[-1]
        assert sorted(np.flatnonzero(document.labels != NONE)) == asked
        for i in asked:
            assert names(task, document.labels[[i]]) == [words[told[words[i]]]]
            assert document.bins[0][i] == i // S - told[words[i]] // S
    assert totals == set(range(8)) and (gaps > 0.7 * gaps.mean()).all()
    with pytest.raises(ConfigError, match="take 25 tokens, but a document has 24; use longer documents, or at most 2"):
        task.draw(np.random.default_rng(0), 3 * S, S)


def test_a_key_may_be_listed_again_before_any_of_its_questions_and_with_any_other_value() -> None:
    """Each as often: 2,000 draws, within 4 standard errors."""
    count = 2000
    task = Mqar("mqar", MqarConfig(pairs=(1,), keys=1, values=5, times=3, rewritten=1.0))
    asked, values = np.zeros(3), np.zeros(5)
    for document in drawn(task, 2 * S, count, kind=1):
        labels, new = document.labels[document.labels != NONE], document.bins[1][document.labels != NONE]
        asked[(new == 0).sum()] += 1
        values[labels[new == 1][0] - document.tokens[1]] += 1  # from the first value on, in a circle
    for found in (asked, values[1:]):
        p = 1 / len(found)
        assert (abs(found / count - p) < 4 * np.sqrt(p * (1 - p) / count)).all()


def test_mqar_of_a_model_with_a_tokenizer_is_in_words_of_it() -> None:
    """The same documents, with a different word of one token for each symbol; bytes have none; fewer of a kind are some
    of the same words; and a vocabulary with too few words is refused."""
    letters = [f" {a}{b}{c}" for a in "bcd" for b in "aeiou" for c in "xyz"]
    text = with_words(["the", *letters, " No", " ab", " a1c"])
    config = MqarConfig(pairs=(2, 4), keys=8, values=9, fillers=3)
    plain = labelled_documents("mqar", config, TrackingConfig(), ByteVocabulary())
    task = labelled_documents("mqar", config, TrackingConfig(), text)
    assert isinstance(plain, Mqar) and isinstance(task, Mqar) and plain == Mqar("mqar", config)
    assert task.vocabulary is text and len(set(task.words)) == len(task.words) == 20
    assert {text.decode([word]) for word in task.words} <= set(letters)
    for ours, theirs in zip(drawn(task), drawn(plain), strict=True):
        assert ours.tokens.tolist() == [task.words[token] for token in theirs.tokens]
        assert ours.labels.tolist() == [NONE if label == NONE else task.words[label] for label in theirs.labels]
        np.testing.assert_array_equal(ours.bins, theirs.bins)
    fewer = labelled_documents("mqar", MqarConfig(pairs=(2,), keys=5, values=2, fillers=1), TrackingConfig(), text)
    assert isinstance(fewer, Mqar) and fewer.words == (task.words[0], *task.words[3:8], *task.words[11:13])
    with pytest.raises(ConfigError, match="'mqar' needs 119 words .* but the vocabulary has 45; lower"):
        labelled_documents("mqar", MqarConfig(keys=40, values=12), TrackingConfig(), text)


def test_pairs_of_mqar_in_sentences_of_given_words() -> None:
    """Each list is sentences of all forms, with the given words; labels and distances are those of a dictionary that
    reads the text; fillers are other words; words of several tokens, and words without a tokenizer, are refused."""
    letters = [f" {a}{b}{c}" for a in "bcd" for b in "aeiou" for c in "xyz"]
    text = with_words(words := ["the", *letters, " Ann", " Bob", " Eve"])
    given = {"key_words": ("Ann", "Bob", "Eve"), "value_words": ("bax", "bay", "baz", "bex")}
    config = MqarConfig(
        pairs=(2, 3), keys=3, values=4, fillers=9, times=2, answered=False, **given,
        sentences=("{key} is in {value}.", "now in {value}: {key};"),
    )  # fmt: skip
    task = labelled_documents("mqar", config, TrackingConfig(), text)
    assert isinstance(task, Mqar)
    form = re.compile(r"(?: (\w+) is in (\w+)\.| now in (\w+): (\w+);)")
    forms = set()
    for document in drawn(task, 16 * S):
        listed, rest = {}, text.decode(document.tokens)
        while found := form.match(rest):
            key, value = found[1] or found[4], found[2] or found[3]
            place = len(text.encode(text.decode(document.tokens)[: -len(rest) + found.end(2 if found[1] else 3)])) - 1
            listed[key], rest = (value, place), rest[found.end() :]
            forms.add(bool(found[1]))
        head = len(document.tokens) - len(rest.split())
        assert len(listed) in (2, 3) and set(listed) <= set(given["key_words"])
        asked = []
        for at in range(len(document.tokens)):
            word = text.decode(document.tokens[[at]]).strip()
            if document.labels[at] == NONE:
                assert at < head or word not in [*given["key_words"], *given["value_words"]]
                continue
            value, place = listed[word]
            assert at >= head and text.decode(document.labels[[at]]).strip() == value
            assert document.bins[0][at] == at // S - place // S
            asked.append(word)
        assert sorted(asked) == sorted([*listed] * 2)
    assert forms == {True, False}
    refused = (
        (text, {"key_words": ("Ann", "Bobby", "Eve")}, "'Bobby' of MqarConfig.key_words or value_words is 3 tokens"),
        (text, {"sentences": ("{key}{value}.",)}, "the key and its value are not one token each"),
        (text, {"sentences": ("{key} is in bay {value}.",)}, "in 'Ann is in bay bay.', the key and its value are not"),
        (with_words(words, ("Eve is", "Eve was")), {}, "in 'Eve is in bax.', tokens besides the key and its value"),
        (ByteVocabulary(), {}, "key_words, value_words, sentences and question need a model with a tokenizer"),
    )
    for vocabulary, changed, message in refused:
        with pytest.raises(ConfigError, match=message):
            labelled_documents("mqar", dataclasses.replace(config, **changed), TrackingConfig(), vocabulary)
    with pytest.raises(ConfigError, match="take 45 tokens, but a document has 24"):
        task.draw(np.random.default_rng(0), 24, S, 3)


@pytest.mark.parametrize("answered", [True, False])
def test_questions_of_mqar_in_a_sentence_of_their_own(answered: bool) -> None:
    """Labels and distances are those of a reader of the text. A key with a new value has the same form and no label.
    The value follows, or filler does; a document that is too short is refused."""
    letters = [f" {a}{b}{c}" for a in "bcd" for b in "aeiou" for c in "xyz"]
    text = with_words(["the", *letters])
    config = MqarConfig(
        pairs=(2, 3), keys=5, values=4, fillers=9, times=2, answered=answered, rewritten=0.5,
        question="so {key} has",
    )  # fmt: skip
    task = labelled_documents("mqar", config, TrackingConfig(), text)
    assert isinstance(task, Mqar)
    values, fillers = [{text.decode([word]).strip() for word in some} for some in (task.words[-4:], task.words[:9])]
    renewed = 0
    for document in drawn(task, 16 * S):
        whole = text.decode(document.tokens)
        listed, labels = {}, set(np.flatnonzero(document.labels != NONE))
        words = whole.split()
        while words[0] not in fillers and words[0] != "so":
            listed[words[0]] = (words[1], 2 * len(listed) + 1)
            words = words[2:]
        assert len(listed) in (2, 3)
        for found in re.finditer(r" so (\w+) has( \w+)", whole):
            at = len(text.encode(whole[: found.start(2)])) - 1
            if at in labels:
                value, place = listed[found[1]]
                assert text.decode(document.labels[[at]]).strip() == value
                assert found[2].strip() == value if answered else found[2].strip() in fillers
                assert document.bins[0][at] == at // S - place // S
                labels.remove(at)
            else:
                assert found[2].strip() in values - {listed[found[1]][0]}
                listed[found[1]] = (found[2].strip(), at + 1)
                renewed += 1
        assert not labels
    assert renewed > 5
    with pytest.raises(ConfigError, match="3 pairs and their questions take 87 tokens, but a document has 80"):
        task.draw(np.random.default_rng(0), 80, S, 3)
    with pytest.raises(ConfigError, match="sentences and question need a model with a tokenizer"):
        labelled_documents("mqar", config, TrackingConfig(), ByteVocabulary())


def with_words(words: list[str], replaced: tuple[str, str] | None = None) -> TokenizerVocabulary:
    """A byte-level tokenizer with these tokens, and their beginnings, beside those of the bytes; it reads the first of
    two `replaced` texts as the second."""
    names = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in (word.replace(" ", "Ġ") for word in words):
        for end in range(2, len(word) + 1):
            if word[:end] not in names:
                names.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({name: i for i, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if replaced:
        tokenizer.normalizer = tokenizers.normalizers.Replace(*replaced)
    return TokenizerVocabulary({"tokenizer.json": tokenizer.to_str().encode()}, "here")


def test_questions_follow_the_power_law() -> None:
    """Place x of a single question has a weight of x^(a - 1): frequencies of 4,000 draws, within 4 standard errors."""
    places, count = 7, 4000
    for power in (0.01, 1.0):
        task = Mqar("mqar", MqarConfig(pairs=(1,), power=power))
        rng = np.random.default_rng(0)
        at = [int(np.flatnonzero(task.draw(rng, 16, S).labels != NONE)[0]) // 2 - 1 for _ in range(count)]
        weight = np.array([x ** (power - 1) for x in range(1, places + 1)])
        expected = weight / weight.sum()
        found = np.bincount(at, minlength=places) / count
        assert (abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / count)).all()
