"""Training on bAbI: the evaluation's prompts, the right targets, the curriculum, and files that cannot be used."""

import argparse
import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from famjax.cli import plan, train
from famjax.cli.main import main
from famjax.config import ConfigError, DataConfig, EvalConfig, TrainConfig
from famjax.config.babi import BabiConfig
from famjax.data import babi
from famjax.data.babi_task import BabiTask, make_babi_task, notes
from famjax.data.show import rows_of
from famjax.evals.metrics import babilong_match
from famjax.evals.tasks import catalog
from famjax.evals.tasks.babi import babilong_labels
from famjax.evals.yardsticks import yardstick
from famjax.infer.codec import Codec
from tests import tiny
from tests.infer.test_chat import CHATML
from tests.pretrained import tokenizers_of_ours

BLOCK = 64
STORIES = {
    "qa1": "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n"
    "4 Daniel went back to the hallway.\n5 Where is Daniel? \thallway\t4\n",
    "qa2": "1 Mary got the milk.\n2 Mary went to the garden.\n3 Where is the milk? \tgarden\t1 2\n",
    "qa3": "1 Mary got the milk.\n2 Mary went to the garden.\n3 Mary went to the office.\n"
    "4 Where was the milk before the office? \tgarden\t1 2 3\n",
    "qa4": "1 The office is east of the garden.\n2 What is the garden west of?\toffice\t1\n",
    "qa5": "1 Fred gave the milk to Bill.\n2 Who did Fred give the milk to?\tBill\t1\n",
}
BOOK = " ".join(f"Sentence {number} is about other things than the ones asked for." for number in range(300))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of bAbI with a training and a test split, and a book."""
    for name, text in STORIES.items():
        (tmp_path / f"{name}_of-some-kind_train.txt").write_text(text * 3)
        (tmp_path / f"{name}_of-some-kind_test.txt").write_text(text)
    (tmp_path / "book.txt").write_text(BOOK)
    return tmp_path


def config_of(at: Path, length: int = 40 * BLOCK, seed: int = 0, data: DataConfig | None = None, **changes):
    settings = {"folder": str(at), "stories": ("qa1", "qa2"), "books": (str(at / "book.txt"),)}
    task = BabiConfig(**(settings | {"stages": (1, 4), "text_tokens": 8} | changes))
    model = tiny.config(vocab_size=400, block_size=BLOCK)
    return TrainConfig(
        model_dir=str(at / "m"), model=model, task="babi", babi=task, sequence_length=length, batch_size=3,
        seed=seed, data=data or DataConfig(),
    )  # fmt: skip


def data_of(folder: Path, kind: str) -> DataConfig:
    """Returns the settings of a vocabulary of ours; `chat` is byte-level, with a chat template."""
    if kind == "bytes":
        return DataConfig()
    place = tokenizers_of_ours.write(folder / "tokenizer", "byte-level" if kind == "chat" else kind)
    if kind == "chat":
        (place / "chat_template.jinja").write_text(CHATML)
    return DataConfig(vocabulary=str(place))


def task_of(folder: Path, **changes) -> BabiTask:
    return make_babi_task(config_of(folder, **changes))


def documents(task: BabiTask, step: int, open_stages: int) -> list[str]:
    """Returns the documents of a batch as text."""
    batch, _ = task.batch(step, task.start() | {"open_stages": open_stages})
    found = []
    for row in rows_of(batch):
        edges = [*np.flatnonzero(row.begins), len(row.tokens)]
        for begin, end in zip(edges, edges[1:], strict=False):
            found.append(task.vocabulary.decode(row.tokens[begin:end][row.real[begin:end]]))
    return found


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
    place = tokenizers_of_ours.write(folder / "tokenizer", "byte-level")
    (place / "chat_template.jinja").write_text(CHATML)
    (place / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    evaluation = EvalConfig(task="babi", data=(f"{folder}/qa[12]_*_test.txt",), lengths=(1600,), examples=4)
    config = config_of(folder, data=DataConfig(vocabulary=str(place)))
    config = dataclasses.replace(config, eval_period=1, evaluation=evaluation)
    make, made = catalog.make, []
    monkeypatch.setattr(catalog, "make", lambda *args: made.append((make(*args), args[2])) or made[-1][0])
    train._evaluation(config)
    [(task, codec)] = made
    ours = Codec(place, 400)
    theirs = make("babi", evaluation, ours, BLOCK)
    assert [one.digest() for one in task.examples()] == [one.digest() for one in theirs.examples()]
    assert codec.ends == ours.ends == [1, 3] and task.settings["chat"]


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
        ids, words = task.asking.answer(one).tolist(), task.asking.words(one).tolist()
        parts = [
            (is_word, task.vocabulary.decode([token for _, token in some]))
            for is_word, some in itertools.groupby(zip(words, ids, strict=True), key=lambda pair: pair[0])
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


def test_all_turns_of_a_later_stage_fit_into_their_row(folder):
    """Every turn has filler of the same stage: two of the newest one, or, in what is left of a row, of the first."""
    task = task_of(folder, stories=("qa1",), stages=(1, 4), turns=2, newest_share=1.0)
    seen = set()
    for step in range(20):
        batch, progress = task.batch(step, task.start() | {"open_stages": 2})
        assert (batch.count <= batch.tokens.shape[1]).all()
        fillers = [filler for row in progress["documents"] for filler, _ in row]
        assert all(0 <= filler < 5 * BLOCK for filler in fillers)
        seen |= {filler >= 2 * BLOCK for filler in fillers}
    assert seen == {False, True}


def test_batches_depend_on_seed_step_and_open_stages_alone(folder):
    """The same task made twice gives the same batch; another step, seed or stage gives another one."""
    first = task_of(folder, seed=5)
    progress = first.start() | {"open_stages": 2}
    batches = [one.batch(step, progress | {"open_stages": stages})[0] for one, step, stages in (
        (first, 9, 2), (task_of(folder, seed=5), 9, 2), (first, 10, 2), (task_of(folder, seed=6), 9, 2), (first, 9, 1),
    )]  # fmt: skip
    assert all((a == b).all() for a, b in zip(batches[0][:-1], batches[1][:-1], strict=True))
    assert all((batches[0].tokens != other.tokens).any() for other in batches[2:])
    assert json.loads(json.dumps(progress)) == progress, "progress is stored as JSON"


def test_stages_open_by_exact_match_and_bound_the_filler(folder):
    """Filler stays below the open stage's; right answers open the next stage; one wrong token is a miss; a report has
    exact match by file."""
    task = task_of(folder, open_at=0.5)
    progress, longest = task.start(), {}
    for step in range(40):
        stage = progress["open_stages"]
        batch, progress = task.batch(step, progress)
        longest[stage] = max(filler for row in progress["documents"] for filler, _ in row)
        assert longest[stage] < (task.stages[stage - 1] + 1) * BLOCK
        progress = task.observe(progress, batch, np.ones(batch.targets.shape, bool))
    assert progress["open_stages"] == 2 and longest[2] > 2 * BLOCK and progress["documents"] == []
    assert task.report(progress)["exact_match/qa1"] == 1.0 and task.report(progress)["filler_blocks"] == 4
    before = progress["exact_match"]
    batch, progress = task.batch(41, progress)
    wrong = np.ones(batch.targets.shape, bool)
    wrong[:, task._answer_slots - 1] = wrong[:, 0] = False
    count = sum(map(len, progress["documents"]))
    after = task.observe(progress, batch, wrong)
    expected = before
    for row in progress["documents"]:
        for hit in (0.0, *([1.0] * (len(row) - 1))):
            expected += (hit - expected) / 64
    assert count > 3 and after["exact_match"] == pytest.approx(expected)


def test_answers_straddle_block_boundaries_as_often_as_asked(folder):
    """At `straddle_share` 1, answers begin before a block boundary and end after it, unless the row is too short."""
    task = task_of(folder, straddle_share=1.0)
    over = []
    for step in range(10):
        batch, progress = task.batch(step, task.start() | {"open_stages": 2})
        for positions, drawn in zip(batch.positions, progress["documents"], strict=True):
            for n in range(len(drawn)):
                answer = positions[task._answer_slots * n : task._answer_slots * (n + 1)] + 1
                answer = answer[answer > 1]
                over.append(answer[0] // BLOCK != answer[-1] // BLOCK)
    assert np.mean(over) > 0.7


def test_what_cannot_be_used_is_counted(folder):
    """A story without a question, a question of another form and questions that are longer than a row are left out and
    named with their number; the others are drawn."""
    path = folder / "qa1_of-some-kind_train.txt"
    long = "".join(f"{i} Mary moved to the bathroom, again.\n" for i in range(1, 80))
    path.write_text(
        f"1 Mary left.\n{long}80 Where is Mary?\tbathroom\t79\n{STORIES['qa1']}1 Mary left.\n2 How is Mary? \twell\t1\n"
    )
    task = task_of(folder, stories=("qa1",), stages=(1, 200))
    found = notes(task)
    assert found[0].startswith(f"2 places of bAbI's files cannot be read, the first is {path}:1: this story has no que")
    assert found[1] == "1 of 3 questions of qa1 do not fit into a row of 2560 tokens and are left out"
    assert found[2] == "rows of 2560 tokens hold at most 1 blocks of filler; longer stages are left out"
    assert documents(task, 0, 1)


MISTAKES = [
    ({"folder": ""}, "the task 'babi' needs a copy of bAbI"),
    ({"books": ()}, "the task 'babi' has no books; set --gin.BabiConfig.books"),
    ({"stories": ("qa21",)}, "'qa21' is not one of qa1 to qa20"),
    ({"stories": ("qa1", "qa1")}, "must be distinct names"),
    ({"stories": ("qa1", "qa2"), "everyone": True}, "BabiConfig.everyone needs stories ('qa1',), not ('qa1', 'qa2')"),
    ({"stories": ("qa7",)}, "no file matches .*/qa7_*_train.txt"),
    ({"stages": (4, 1)}, "stages (4, 1) must be blocks of filler in ascending order"),
    ({"books": ("{}/no.txt",)}, "{}/no.txt"),
    ({"books": ("{}/latin.txt",)}, "{}/latin.txt: this is not UTF-8"),
    ({"books": ("{}/book.txt", "{}/short.txt")}, "{}/short.txt has 11 tokens, but a document has up to 319 tokens"),
    ({"books": ("{}/cut.txt",)}, "{}/cut.txt: it has Project Gutenberg's *** START line but no *** END"),
    ({"length": 8 * BLOCK}, "sequence length 512 is too short for a bAbI document with 1 blocks of filler; use at le"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistakes_are_named_before_training(folder, changes, message):
    """Settings and files: what is wrong, in one line that names the file."""
    (folder / "latin.txt").write_bytes("Thénardier said so.".encode("latin-1"))
    (folder / "short.txt").write_text("He said so.")
    (folder / "cut.txt").write_text("*** START OF THIS PROJECT GUTENBERG EBOOK NOTHING ***\nHe said so.")
    filled = {name: tuple(str(one).format(folder) for one in value) if name == "books" else value
              for name, value in changes.items()}  # fmt: skip
    parts = [re.escape(part) for part in message.format(folder).split(".*")]
    with pytest.raises(ConfigError, match=".*".join(parts)) as error:
        config = config_of(folder, **filled)
        config.validate()
        make_babi_task(config)
    assert "\n" not in str(error.value)


def test_a_resumed_training_needs_the_same_stories_and_books(folder):
    """Positions in other data mean nothing, so a changed book is refused, as is a progress with more stages."""
    task = task_of(folder)
    progress = task.batch(0, task.start())[1]
    with pytest.raises(ConfigError, match="has opened 9 stages, but .* use its stages"):
        task.batch(1, progress | {"open_stages": 9})
    (folder / "book.txt").write_text(BOOK + BOOK)
    with pytest.raises(ConfigError, match="had other stories or books"):
        task_of(folder).batch(1, progress)


def test_famjax_train_and_data_take_it(folder, capsys):
    """Two steps of a tiny model through the command line: exact match by file is logged; `famjax data` shows rows."""
    words = ["--gin_file", "gin/models/fam_tiny.gin", "--gin_file", "gin/runs/pretrain.gin", "--gin.FAM_LENGTH=2"]
    words += ["--gin.MIXTURE_OR_TASK_NAME='babi'", f"--gin.BabiConfig.folder='{folder}'", "--gin.BLOCK_SIZE=64"]
    words += [f"--gin.BabiConfig.books=('{folder}/book.txt',)", "--gin.BabiConfig.stages=(1,)", "--gin.BATCH_SIZE=1"]
    words += ["--gin.BabiConfig.stories=('qa1', 'qa4')", "--gin.TASK_FEATURE_LENGTHS={'targets': 1536}"]
    words += [f"--gin.MODEL_DIR='{folder}/m'", "--gin.ModelConfig.num_layers=1", "--gin.LOG_PERIOD=1"]
    assert main(["data", *words, "--width", "0"]) == 0
    out = capsys.readouterr().out
    assert "babi: 1 rows of 1536 tokens" in out and "Question: " in out
    assert main(["train", *words, "--gin.TRAIN_STEPS=2", "--gin.DIAGNOSTICS_PERIOD=0"]) == 0
    lines = [json.loads(line) for line in (folder / "m" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and {"loss", "filler_blocks"} <= set(lines[-1])
    assert any(name.startswith("exact_match/qa") for name in lines[-1])


def test_other_verbs_know_the_task(folder):
    """`famjax compare`, whose memories must read the same batches, refuses it; `famjax plan` needs no files of it."""
    config = config_of(folder)
    with pytest.raises(ConfigError, match=r"needs a task that generates its documents \(passkey, mqar.*not 'babi'"):
        yardstick(config)
    words = argparse.Namespace(gin_files=["gin/models/fam_tiny.gin"], gin_search_paths=[])
    bindings = ["MIXTURE_OR_TASK_NAME='babi'", "BabiConfig.stages=(2, 3)", "BabiConfig.folder='no'"]
    planned = plan._config(words, [*bindings, "BabiConfig.books=('no',)"])
    planned.validate()
    assert planned.task == "passkey" and planned.passkey.stages == (2, 3)


def test_settings_of_the_curriculum_are_documented_where_they_are(folder):
    """Each field is in the docstring of its class."""
    for field in dataclasses.fields(BabiConfig):
        assert re.search(rf"\b{field.name}\b", BabiConfig.__doc__), field.name
