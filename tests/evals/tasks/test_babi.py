"""bAbI hidden in books: the task from its published files, and the handling of malformed files."""

import json
import re

import pytest

from famjax.cli.main import main
from famjax.config import ConfigError, EvalConfig
from famjax.config.text import BadText
from famjax.data import babi as stories
from famjax.data import books
from famjax.data.vocabulary import ByteVocabulary, load_vocabulary
from famjax.evals.tasks import catalog
from famjax.evals.tasks.base import Example, Unreadable
from famjax.infer.codec import Codec
from famjax.storage.checkpoint import save_model
from tests import tiny
from tests.infer.test_chat import CHATML
from tests.pretrained import tokenizers_of_ours

STORY = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Where is Daniel? \thallway\t4
1 Sandra got the milk.
2 Sandra got the apple.
3 What is Sandra carrying? \tmilk,apple\t1 2
"""
BYTES = Codec.of(ByteVocabulary())


@pytest.fixture(scope="module", params=["bytes", "byte-level", "metaspace"])
def codec(request, tmp_path_factory) -> Codec:
    if request.param == "bytes":
        return BYTES
    return Codec.of(load_vocabulary(str(tokenizers_of_ours.write(tmp_path_factory.mktemp("t"), request.param))))


def make(codec: Codec, data: str, **settings):
    config = EvalConfig(data=(f"babi={data}",), **{"lengths": (1500, 2300), "examples": 12} | settings)
    return catalog.make("babi", config, codec, 64)


def shown(codec: Codec, example: Example) -> tuple[str, str]:
    return codec.vocabulary.decode(example.context), codec.vocabulary.decode(example.prompt)


def test_facts_lie_in_filler_whole_and_in_order(tmp_path, codec):
    """Exactly the story's facts before the question are hidden; lengths are exact; questions are the same at every
    length; `needles` begin at the supporting facts, and `needle` is where the earliest of them ends."""
    path = tmp_path / "qa1_single_test.txt"
    path.write_text(STORY)
    read = stories.read(str(path))
    assert [(len(one.facts), one.answer, one.supports) for one in read] == [
        (2, "bathroom", (0,)), (3, "hallway", (2,)), (2, "milk,apple", (0, 1)),
    ]  # fmt: skip
    facts = [line.partition(" ")[2] for line in STORY.splitlines() if "?" not in line]
    asked = []
    for example in make(codec, str(path)).examples():
        context, prompt = shown(codec, example)
        assert example.tokens == example.about["length"] and example.about["source"] == "qa1"
        places = [context.find(fact) for fact in facts if fact in context]
        question = next(one for one in read if one.question == example.about["question"])
        assert places == sorted(places) and len(places) == len(question.facts)
        assert question.question in prompt and example.targets == (question.answer,)
        for (start, last), support in zip(example.needles, question.supports, strict=True):
            after = codec.vocabulary.decode(example.context[start : start + 40]).strip()
            assert after.startswith(question.facts[support])
            assert codec.vocabulary.decode(example.context[: last + 1]).endswith(question.facts[support])
        end = codec.vocabulary.decode(example.context[: example.about["needle"] + 1])
        assert end.endswith(question.facts[question.supports[0]])
        assert example.id.startswith(f"{example.about['length']}/{len(asked) % 12}/qa1:")
        asked.append(question.question)
    assert asked[:12] == asked[12:] and len(set(asked)) > 1


def test_files_take_turns_and_each_has_its_instruction(tmp_path):
    """qa1 to qa5: the worked examples have the answer form of the instruction and are from no story of bAbI; any other
    file has an instruction without examples."""
    for number in (1, 2, 3, 4, 5, 20):
        (tmp_path / f"qa{number}_test.txt").write_text(STORY)
    task = make(BYTES, str(tmp_path / "qa*.txt"), lengths=(2000,), examples=12)
    found = [(example.about["source"], shown(BYTES, example)) for example in task.examples()]
    assert [source for source, _ in found[:6]] == ["qa1", "qa2", "qa20", "qa3", "qa4", "qa5"]
    for source, (context, prompt) in found:
        head = context[: context.index("<context>")]
        assert head.count("<example>") == {"qa20": 0, "qa5": 3}.get(source, 2)
        assert not any(name in head for name in ("Mary", "John", "Daniel", "Sandra", "bathroom", "kitchen"))
        assert prompt.endswith("\nAnswer:") and "</context>" in prompt
    for prompt in stories.PROMPTS.values():
        frame = re.split(r"'[^']*'", prompt.form.partition(": ")[2])
        assert all(part in answer for _, answer in prompt.examples for part in frame if "'" in prompt.form)


def test_a_chat_template_frames_the_whole_question(tmp_path):
    """The template's text for a user message surrounds the question, with special tokens as tokens; the answer ends at
    the template's end of turn; without `chat` the text is plain."""
    tokenizers_of_ours.write(tmp_path, "byte-level")
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    (tmp_path / "qa1_test.txt").write_text(STORY)
    codec = Codec(tmp_path, 400)
    codec.ends.clear()
    example = next(iter(make(codec, str(tmp_path / "qa1*")).examples()))
    context, prompt = shown(codec, example)
    assert context.startswith("<s>user\nA long text follows") and prompt.endswith("?</s>\n<s>assistant\n")
    assert example.context[0] == codec.vocabulary.bos and codec.vocabulary.eos in example.prompt
    assert codec.ends == [codec.vocabulary.eos]
    plain = next(iter(make(codec, str(tmp_path / "qa1*"), chat=False).examples()))
    assert shown(codec, plain)[1].endswith("?\nAnswer:") and plain.tokens == example.tokens == 1500


BROKEN = [
    ("1 Mary moved to the bathroom.\nWhere is she?\tthere\t1\n3 Mary left.\n", 2, "number 2 or 1"),
    ("1 Mary moved to the bathroom.\n3 Where is Mary? \tbathroom\t1\n", 2, "the rest of its story is skipped"),
    ("1 Mary moved to the bathroom.\n2 Where is Mary?\n", 2, "has its answer after a tab"),
    ("1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\n", 2, "separated by tabs"),
    ("1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t7\n", 2, "not among those before it"),
    ("1 Mary moved to the bathroom.\n2 Mary moved to the office.\n", 1, "no question"),
]


@pytest.mark.parametrize(("text", "line", "reason"), BROKEN)
def test_what_is_not_as_published_is_counted_and_named(tmp_path, text, line, reason):
    """A broken line skips the rest of its story, a bad question only itself, and a story without questions is reported:
    each once, with file and line; stories before and after are read. On its own, each is a one-line error."""
    path = tmp_path / "qa1_test.txt"
    path.write_text(STORY + text + STORY)
    found = stories.read(str(path))
    (bad,) = [one for one in found if isinstance(one, BadText)]
    assert len(found) == 7 and bad.place == f"{path}:{8 + line}" and reason in bad.reason
    task = make(BYTES, str(path), examples=2)
    assert [type(one) for one in task.examples()] == [Unreadable] + 4 * [Example]
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"{path}:{line}: ")):
        make(BYTES, str(path))


def test_bad_files_and_questions_without_room_are_named(tmp_path):
    """An unreadable file among good ones is counted; questions that are too long for the shortest length are skipped
    and counted by file; if none fits, the error states a sufficient length."""
    (tmp_path / "qa1_test.txt").write_text(STORY)
    (tmp_path / "qa2_test.txt").write_bytes(b"1 Mary \xff\n")
    long = "".join(f"{i} Mary moved to the bathroom, again.\n" for i in range(1, 60))
    (tmp_path / "qa3_test.txt").write_text(f"{STORY}{long}60 Where is Mary? \tbathroom\t59\n")
    task = make(BYTES, str(tmp_path / "*.txt"))
    (bad,) = [one for one in task.examples() if isinstance(one, Unreadable)]
    assert bad.place == str(tmp_path / "qa2_test.txt") and "not UTF-8" in bad.reason
    assert task.settings["without_room"] == {"qa3": 1} and task.settings["questions"] == {"qa1": 3, "qa3": 4}
    with pytest.raises(ConfigError, match=r"use --lengths of at least \d+"):
        make(BYTES, str(tmp_path / "qa1*"), lengths=(300,))
    with pytest.raises(ConfigError, match="--data 'babi="):
        catalog.make("babi", EvalConfig(), BYTES, 64)


def test_stories_of_training_are_not_evaluated_among_those_of_the_test(tmp_path):
    """A glob that matches files of both splits is refused, as is a folder, with what to name instead; one split is
    read, whichever it is."""
    for name in ("qa1_single-supporting-fact_test", "qa1_single-supporting-fact_train", "qa2_two_test"):
        (tmp_path / f"{name}.txt").write_text(STORY)
    train, test = (tmp_path / f"qa1_single-supporting-fact_{split}.txt" for split in ("train", "test"))
    mixed = f"files of several splits, such as {test} and {train}; name those of one, for example 'babi=FOLDER/qa*_test"
    with pytest.raises(ConfigError, match=re.escape(mixed)):
        make(BYTES, str(tmp_path / "qa*.txt"))
    with pytest.raises(ConfigError, match=re.escape(f"is a folder; name its files, for example 'babi={tmp_path}/qa1_")):
        make(BYTES, str(tmp_path))
    assert make(BYTES, str(tmp_path / "qa*_test.txt")).settings["questions"] == {"qa1": 3, "qa2": 3}
    assert make(BYTES, str(train)).settings["questions"] == {"qa1": 3}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "line",
    [
        "*** START OF THE PROJECT GUTENBERG EBOOK M*A*S*H ***", "***START OF THE PROJECT GUTENBERG EBOOK ALICE***",
        "*** Start of this Project Gutenberg EBook ALICE ***", "  *** START OF THE PROJECT GUTENBERG ETEXT ALICE ***",
        "*** START OF THE PROJECT GUTENBERG EBOOK ALICE\nIN WONDERLAND ***",
    ],
)  # fmt: skip
def test_headers_as_they_are_written(tmp_path, line, end):
    """Stars in titles, no spaces, other capitals, titles of two lines, and every kind of line end."""
    last = line.replace("START", "END").replace("Start", "End")
    text = f"The Project Gutenberg eBook of X\nHEAD\n{line}\nThe text ** itself.\n{last}\nLICENCE\n"
    (tmp_path / "b.txt").write_bytes(text.replace("\n", end).encode())
    assert books.read(str(tmp_path / "b.txt")).text == "\nThe text ** itself.\n"


def test_the_text_itself_is_left_whole(tmp_path):
    """Words after the stars belong to the header's line, a row of stars to the text; a mention is no header."""
    start = "*** START OF THE PROJECT GUTENBERG EBOOK X ***"
    (tmp_path / "a.txt").write_text(f"{start} Produced by A\nOne.\n\n***\n\nTwo.\n{start.replace('START', 'END')}\n")
    assert books.read(str(tmp_path / "a.txt")).text == " Produced by A\nOne.\n\n***\n\nTwo.\n"
    mention = "An essay.\nProject Gutenberg eBooks number 70,000.\n"
    (tmp_path / "b.txt").write_text(mention)
    assert books.read(str(tmp_path / "b.txt")).text == mention


def test_a_header_without_its_end_is_named(tmp_path):
    """The oldest books end it otherwise; header and licence are not text of the book."""
    (tmp_path / "b.txt").write_text("Project Gutenberg Etext of X\n*END*THE SMALL PRINT! FOR ETEXTS*\nText.\n")
    with pytest.raises(BadText, match="header without the line"):
        books.read(str(tmp_path / "b.txt"))


@pytest.mark.parametrize("name", ["qa1.txt", "QA1_test.txt", "qa01-test.txt", "babi_qa1_test.txt", "en-10k.qa1.txt"])
def test_names_of_files_decide_by_their_task_alone(tmp_path, name):
    """Prompt and form of the answer do not depend on how the rest of the name is written."""
    (tmp_path / name).write_text(STORY)
    (tmp_path / "qa1_single-supporting-fact_test.txt").write_text(STORY)
    ours, theirs = (stories.read(str(tmp_path / one)) for one in (name, "qa1_single-supporting-fact_test.txt"))
    assert stories.answer_text(ours[0]) == stories.answer_text(theirs[0])
    assert {one.source for one in ours} == {"qa1"}


def test_a_file_without_a_task_in_its_name_is_named(tmp_path):
    """Its prompt would be another one."""
    (tmp_path / "stories.txt").write_text(STORY)
    (bad,) = stories.read(str(tmp_path / "stories.txt"))
    assert bad.place == str(tmp_path / "stories.txt") and "its name must have the task, such as qa1" in bad.reason


def gutenberg(text: str, encoding: str | None = None) -> str:
    named = f"Character set encoding: {encoding}\n" if encoding else ""
    return (
        f"The Project Gutenberg EBook of Nothing\n\n{named}\n*** START OF THIS PROJECT GUTENBERG EBOOK NOTHING ***\n"
        f"{text}\n*** END OF THIS PROJECT GUTENBERG EBOOK NOTHING ***\n*** START: FULL LICENSE ***\nRoyalties of 20%.\n"
    )


def test_books_are_read_in_their_encoding_without_header_and_licence(tmp_path):
    """Latin-1 as the header says, UTF-8 although the header says Latin-1, ASCII under its old name, plain text; an
    unreadable file is a one-line error that names it."""
    write = lambda name, text, encoding: (tmp_path / name).write_bytes(text.encode(encoding))
    write("a.txt", gutenberg("Thénardier said so.", "ISO-8859-1"), "latin-1")
    write("b.txt", gutenberg("Thénardier said so.", "ISO-8859-1"), "utf-8")
    write("c.txt", gutenberg("He said so.", "ISO-646-US"), "ascii")
    write("d.txt", "Thénardier said so.", "utf-8")
    found = {name: books.read(str(tmp_path / f"{name}.txt")) for name in "abcd"}
    assert {name: book.text.strip() for name, book in found.items()} == {
        "a": "Thénardier said so.", "b": "Thénardier said so.", "c": "He said so.", "d": "Thénardier said so.",
    }  # fmt: skip
    assert [book.encoding for book in found.values()] == ["iso8859-1", "utf-8", "utf-8", "utf-8"]
    assert found["d"].cut == 0 and found["a"].cut == len(gutenberg("", "ISO-8859-1")) - 2
    write("e.txt", gutenberg("Thénardier said so."), "latin-1")
    write("f.txt", gutenberg("He said so.", "EBCDIC-XX"), "ascii")
    write("g.txt", gutenberg("He said so.").partition("*** END")[0], "ascii")
    for name, reason in (("e", "not UTF-8"), ("f", "EBCDIC-XX"), ("g", "this copy is incomplete")):
        with pytest.raises(BadText, match=f"{name}.txt: .*{reason}"):
            books.read(str(tmp_path / f"{name}.txt"))


def test_famjax_eval_runs_it_from_files(tmp_path, capsys):
    """Several lengths, a Latin-1 book and a broken line: results by part, length and reach; samples have the distances
    of all supporting facts; results record skipped questions and the books' encodings."""
    config = tiny.config(vocab_size=256, block_size=64)
    save_model(tmp_path / "m", config, tiny.parameters(config))
    (tmp_path / "qa1_test.txt").write_text(STORY + BROKEN[0][0])
    (tmp_path / "qa2_test.txt").write_text(STORY)
    book = gutenberg("Thénardier said so. He went away, and nobody saw him again! " * 3, "ISO-8859-1")
    (tmp_path / "book.txt").write_bytes(book.encode("latin-1"))
    out = tmp_path / "out"
    words = [
        "eval",
        "--gin.BATCH_SIZE=4",
        "--model",
        str(tmp_path / "m"),
        "--task",
        "babi",
        "--data",
        f"{tmp_path}/qa*_test.txt",
    ]
    words += ["--filler", str(tmp_path / "book.txt"), "--lengths", "1600,1900", "--examples", "4", "--output", str(out)]
    assert main([*words, "--max-new-tokens", "4"]) == 0
    told = json.loads((out / "results.json").read_text())["models"][0]["tasks"]["babi"]
    assert list(told["metrics"]) == ["word_match", "string_match"] and told["n"] == 8
    assert [(row["source"], row["length"], row["n"]) for row in told["by_source"]] == [
        ("qa1", 1600, 2), ("qa1", 1900, 2), ("qa2", 1600, 2), ("qa2", 1900, 2),
    ]  # fmt: skip
    assert told["unreadable"]["examples"] == 1 and "qa1_test.txt:10" in told["unreadable"]["first"][0]["place"]
    (read,) = told["settings"]["books"]
    assert read["encoding"] == "iso8859-1" and read["cut"] > 100
    assert sum(row["n"] for row in told["by_reach"] if row["side"] != "beyond_all_layers") == 8
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        supports = 2 if "carrying" in sample["about"]["question"] else 1
        assert len(sample["about"]["distances"]) == supports and sample["tokens"] == sample["about"]["length"]
    printed, warned = capsys.readouterr()
    assert "babi: one place of the data cannot be read; the first is " in warned and "qa1_test.txt:10: " in warned
    assert "qa2, 1,900" in printed and "1 unreadable" in printed and "inside the reach" in printed
