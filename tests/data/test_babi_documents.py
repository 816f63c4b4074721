"""Training documents of bAbI: the evaluation's prompts, the facts in the books, the right targets."""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from famjax.cli import train
from famjax.config import EvalConfig
from famjax.data import babi
from famjax.data.babi_task import notes
from famjax.evals.metrics import babilong_match
from famjax.evals.tasks import catalog
from famjax.evals.tasks.babi import babilong_labels
from famjax.infer.codec import Codec
from tests.data import babi_files
from tests.data.babi_files import BLOCK, BOOK, STORIES, config_of, data_of, documents, task_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """See `babi_files.write`."""
    return babi_files.write(tmp_path)


def test_documents_hide_the_facts_and_end_with_the_answer(folder):
    """Instruction, facts in order among the book's sentences, mostly apart, question, and the answer in the form asked
    for."""
    task = task_of(folder, stories=tuple(STORIES))
    seen, apart = set(), []
    for step in range(8):
        for text in documents(task, step, 2):
            question = re.search(r"</context>\n\nQuestion: (.*)\nAnswer: (.*)\n$", text)
            one = next(
                one for some in task.questions.values() for one in some if one.question == question[1]
                and babi.answer_text(one) == question[2]
            )  # fmt: skip
            context = text[text.index("<context>") : question.start()]
            places = [context.find(f" {fact}") for fact in one.facts]
            assert -1 not in places and places == sorted(places)
            apart += [b - a > len(fact) + 1 for a, b, fact in zip(places, places[1:], one.facts, strict=False)]
            assert text.startswith("A long text follows") and babi.PROMPTS[one.source].form in text
            rest = context.removeprefix("<context>")
            for fact in one.facts:
                rest = rest.replace(f" {fact}", "", 1)
            assert re.sub(r"[\d ]", "", rest.strip())[:40] in re.sub(r"[\d ]", "", BOOK), "the rest is the book's text"
            seen.add(one.source)
    assert seen == set(STORIES) and np.mean(apart) > 0.5


def test_files_are_drawn_equally_often_whatever_their_sizes(folder):
    """One question in a file and twenty in the other, which all fit: frequencies within 4 standard errors."""
    (folder / "qa1_of-some-kind_train.txt").write_text(STORIES["qa1"] * 10)
    (folder / "qa2_of-some-kind_train.txt").write_text(STORIES["qa2"])
    task = task_of(folder, stages=(1,))
    assert {source: len(some) for source, some in task.questions.items()} == {"qa1": 20, "qa2": 1}
    drawn = []
    for step in range(20):
        _, progress = task.batch(step, task.start())
        drawn += [source == "qa1" for row in progress["documents"] for _, source in row]
    assert len(drawn) > 100 and abs(np.mean(drawn) - 0.5) < 4 * np.sqrt(0.25 / len(drawn))


@pytest.mark.parametrize("kind", ["bytes", "byte-level", "metaspace", "chat"])
def test_prompts_are_those_of_the_evaluation(folder, kind):
    """Head and tail have the tokens of the evaluation's, and text, prompt and answer in one go decode to one text."""
    data = data_of(folder, kind)
    task = task_of(folder, data=data)
    codec = Codec.of(task.vocabulary) if kind == "bytes" else Codec(folder / "tokenizer", 400)
    evaluation = EvalConfig(data=(f"babi={folder}/qa[12]_*_test.txt",), lengths=(1600,), examples=8)
    examples = list(catalog.make("babi", evaluation, codec, BLOCK).examples())
    for example in examples:
        same = [one for some in task.questions.values() for one in some if one.question == example.about["question"]]
        question = same[0]
        head = task.asking.head(question.source)
        assert (example.context[: len(head)] == head).all()
        drawn = task.asking.hide(question, task.filler, np.random.default_rng(0), 1600)
        assert (drawn.tail == example.prompt).all() and len(drawn.context) + len(drawn.tail) == 1600
        tail, answer = task.vocabulary.decode(drawn.tail), task.asking.answer(question)
        gap = "" if kind == "chat" else " "
        assert task.vocabulary.decode(np.concatenate([drawn.tail, answer])) == tail + gap + babi.answer_text(question)
    assert task.asking.chat == (kind == "chat")
    if kind == "chat":
        assert task.end.tolist() == codec.ends[-1:], "the answer ends as the evaluation expects it"


def test_an_evaluation_in_training_has_the_prompts_of_the_training(folder, monkeypatch):
    """With the chat template and the ends of answers that `famjax eval` finds in the model directory."""
    data, place = data_of(folder, "chat"), folder / "tokenizer"
    (place / "generation_config.json").write_text('{"eos_token_id": [1, 399]}')
    evaluation = EvalConfig(task="babi", data=(f"{folder}/qa[12]_*_test.txt",), lengths=(1600,), examples=4)
    config = config_of(folder, data=data)
    config = dataclasses.replace(config, eval_period=1, evaluation=evaluation)
    make, made = catalog.make, []
    monkeypatch.setattr(catalog, "make", lambda *args: made.append((make(*args), args[2])) or made[-1][0])
    train._evaluation(config)
    [(task, codec)] = made
    ours = Codec(place, 400)
    theirs = make("babi", evaluation, ours, BLOCK)
    assert [one.digest() for one in task.examples()] == [one.digest() for one in theirs.examples()]
    assert codec.ends == ours.ends == [1, 399] and task.settings["chat"]


def test_answers_are_right_by_babilongs_rule_and_in_the_form_of_the_worked_examples(folder):
    """`word_match` of the answer that is trained is 1; the worked examples are answers of the same form."""
    task = task_of(folder, stories=tuple(STORIES))
    for some in task.questions.values():
        labels = babilong_labels(some)
        for one in some:
            assert babilong_match(babi.answer_text(one), one.answer, one.question, labels) == 1
    for source, prompt in babi.PROMPTS.items():
        for shown, answer in prompt.examples:
            asked = re.split(r"(?<=\.) ", shown)[-1]
            word = re.findall(r"\w+", answer)[-1]
            assert babi.answer_text(babi.Question((), asked, word, (), source, "here:1")) == answer


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_on_answers_and_a_little_on_the_text(folder, seed):
    """Targets follow their positions; every token of an answer and its end has weight 1, N others `text_weight`."""
    task = task_of(folder, seed=seed, text_weight=0.25)
    batch, progress = task.batch(3, task.start() | {"open_stages": 2})
    for row, positions, targets, weights, drawn in zip(
        batch.tokens, batch.positions, batch.targets, batch.weights, progress["documents"], strict=True
    ):
        used = weights > 0
        assert (row[positions + 1] == targets)[used].all() and (weights == 0.25).sum() == 8
        assert len(set(positions[used].tolist())) == used.sum(), "a token is weighed once"
        answers = task.vocabulary.decode(targets[weights == 1])
        assert len(re.findall(r"(The most recent location of \w+|The \w+) is (in )?\w+\.\n", answers)) == len(drawn)


@pytest.mark.parametrize("kind", ["bytes", "byte-level", "metaspace", "chat"])
def test_the_form_of_an_answer_weighs_less_than_its_words(folder, kind):
    """Tokens of the places have weight 1, all others of an answer and its end `form_weight`, whatever the vocabulary;
    exact match counts the places alone."""
    data = data_of(folder, kind)
    task = task_of(folder, stories=("qa1",), stages=(1,), everyone=True, form_weight=0.125, text_tokens=0, data=data)
    others = 0
    for one in task.questions["qa1"]:
        ids = task.asking.answer(one)
        words = np.isin(np.arange(len(ids)), task.asking.words(one, ids)).tolist()
        parts = [
            (is_word, task.vocabulary.decode([token for _, token in some]))
            for is_word, some in itertools.groupby(zip(words, ids.tolist(), strict=True), key=lambda pair: pair[0])
        ]
        assert [text.strip(" .") for is_word, text in parts if is_word] == [one.answer, *(at for _, at in one.others)]
        others += len(one.others)
    assert others
    batch, progress = task.batch(3, task.start())
    told = batch.weights == 1
    assert set(np.unique(batch.weights)) == {0.0, 0.125, 1.0}
    assert re.fullmatch(r"( ?(bathroom|hallway)\.?)+", task.vocabulary.decode(batch.targets[told]))
    assert task.observe(progress, batch, told)["exact_match"] > 0
    assert task.observe(progress, batch, ~told)["exact_match"] == 0


@pytest.mark.parametrize("kind", ["bytes", "chat"])
def test_the_questions_of_a_story_in_turn(folder, kind):
    """A document asks at most `turns` questions of one story, each after the facts since the one before and filler of
    the open stage. Every answer carries a loss and follows its prompt; a chat has the template's text between turns."""
    task = task_of(folder, stories=("qa1",), stages=(1,), turns=2, data=data_of(folder, kind))
    told = ["Mary moved to the bathroom.", "John went to the hallway.", "Daniel went back to the hallway."]
    mary, daniel = ("The most recent location of Mary is bathroom.", "The most recent location of Daniel is hallway.")
    numbers = set()
    for step in range(6):
        batch, progress = task.batch(step, task.start())
        every = documents(task, step, 1)
        for text in every:
            found = re.findall(r"<context>(.*?)\n</context>\n\nQuestion: (.*?)\?(.*?\.)", text, re.DOTALL)
            numbers.add(len(found))
            facts = [[fact for fact in told if fact in context] for context, _, _ in found]
            assert facts == [told[:2], told[2:]][: len(found)]
            answered = [answer.split("\n")[-1].removeprefix("Answer: ") for *_, answer in found]
            assert answered == [mary, daniel][: len(found)]
            if kind == "chat" and len(found) == 2:
                assert f"{mary}</s>\n<s>user\n<context>" in text
        answers = sum(len(re.findall(r"</context>", text)) for text in every)
        assert answers == sum(map(len, progress["documents"]))
        assert all(filler < 2 * BLOCK for row in progress["documents"] for filler, _ in row)
        for row, positions, targets, weights in zip(
            batch.tokens, batch.positions, batch.targets, batch.weights, strict=True
        ):
            assert (row[positions + 1] == targets)[weights > 0].all()
        told_back = "".join(
            task.vocabulary.decode(one[w == 1]) for one, w in zip(batch.targets, batch.weights, strict=True)
        )
        assert told_back.count("The most recent location of") == answers
        observed = task.observe(progress, batch, np.ones(batch.targets.shape, bool))
        assert observed["by_source"]["qa1"][1] == min(answers, 64)
    assert numbers == {1, 2}


def test_answers_about_everyone_without_instruction(folder):
    """Documents begin with the facts. An answer states where everyone is, the person asked for first, as in a story
    that was read by hand. A question of another form is counted."""
    path = folder / "qa1_of-some-kind_train.txt"
    path.write_text(
        "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is John? \thallway\t2\n"
        "4 Anna went to the office.\n5 Mary went back to the garden.\n6 Where is Mary? \tgarden\t5\n"
        "7 How is Mary? \twell\t5\n"
    )
    task = task_of(folder, stories=("qa1",), stages=(1,), instructed=False, everyone=True)
    here = "The most recent location of {} is {}."
    answers = {
        "Where is John?": [("John", "hallway"), ("Mary", "bathroom")],
        "Where is Mary?": [("Mary", "garden"), ("Anna", "office"), ("John", "hallway")],
    }
    seen = set()
    for step in range(4):
        for text in documents(task, step, 1):
            question, answer = re.search(
                r"^<context>.*\n</context>\n\nQuestion: (.*)\nAnswer: (.*)\n$", text, re.S
            ).groups()
            assert answer == " ".join(here.format(*one) for one in answers[question])
            seen.add(question)
    assert seen == set(answers)
    assert notes(task)[0].startswith(f"1 places of bAbI's files cannot be read, the first is {path}:7: 'How is Mary?'")
