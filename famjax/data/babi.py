"""bAbI (Weston et al. 2015) hidden in other text, as in BABILong (Kuratov et al. 2024): files, prompt and documents.

The facts of a story are inserted, in order, at random places of a long text; the question follows at the end. As in
BABILong, an instruction and worked examples come first, and a model with a chat template gets everything as one
message. Layout, rules and answer forms are BABILong's; the wording and the examples are ours. The evaluation
(`evals/tasks/babi.py`) and the training task (`babi_task.py`) both use the prompts of this module.

bAbI is read from its own files (`qa1_single-supporting-fact_test.txt`), one fact or question per line:

    1 Mary moved to the bathroom.
    2 Where is Mary? <tab> bathroom <tab> 1        the numbers of the facts that support the answer
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from famjax.config.text import BadText, text_of
from famjax.data import files
from famjax.data.pieces import NOTHING, Filler, Haystack, Pieces, haystack

# The task in a file's name: qa1_single-supporting-fact_test.txt as published, QA1.txt, babi_qa1.txt.
NAMED = re.compile(r"(?<![a-z])qa(\d+)")
LINE = re.compile(r"(\d+) (.*\S)\s*")
END = "\n</context>\n\nQuestion: {question}"
ANSWER = "\nAnswer:"
CONTEXT = "<context>"


class Prompt(NamedTuple):
    """The prompt for the questions of a file.

    Attributes:
      about: what is hidden in the text, and the rules that the facts follow.
      form: instruction on the form of the answer.
      examples: worked examples, (facts and question, answer).
      asked: regular expression that matches the file's questions.
      says: format of the answer in this form, of the groups of `asked` and the file's `answer`.
    """

    about: str
    form: str
    examples: tuple[tuple[str, str], ...] = ()
    asked: str = ".*"
    says: str = "{answer}"


_MOVED = (
    "An item goes wherever the person who has taken it goes; once it has been put down, it stays in that place, "
    "whoever leaves."
)
PROMPTS = {
    "qa1": Prompt(
        "facts about where different people are. Of a person who has been in several places, the latest counts.",
        "Answer in this form and write nothing else: The most recent location of 'person' is 'location'.",
        (
            ("Nina walked to the attic. Otto ran to the cellar. Nina walked to the terrace. Where is Nina?",
             "The most recent location of Nina is terrace."),
            ("Otto went to the harbour. Paula went to the attic. Where is Otto?",
             "The most recent location of Otto is harbour."),
        ),
        r"Where is (.+)\?",
        "The most recent location of {0} is {answer}.",
    ),
    "qa2": Prompt(
        f"facts about where different people are and what they do. {_MOVED}",
        "Answer in this form and write nothing else: The 'item' is in 'location'.",
        (
            ("Nina went to the attic. Nina took the lamp. Nina walked to the terrace. Where is the lamp?",
             "The lamp is in terrace."),
            ("Otto took the rope. Otto went to the cellar. Otto put down the rope. Otto ran to the harbour. Where is "
             "the rope?", "The rope is in cellar."),
        ),
        r"Where is the (.+)\?",
        "The {0} is in {answer}.",
    ),
    "qa3": Prompt(
        f"facts about where different people are and what they do. {_MOVED}",
        "Answer in this form and write nothing else: Before the 'location 1' the 'item' was in the 'location 2'.",
        (
            ("Nina took the lamp. Nina went to the attic. Otto ran to the cellar. Nina walked to the terrace. Where "
             "was the lamp before the terrace?", "Before the terrace the lamp was in the attic."),
            ("Otto ran to the cellar. Otto took the rope. Otto went to the harbour. Paula took the lamp. Where was the "
             "rope before the harbour?", "Before the harbour the rope was in the cellar."),
        ),
        r"Where was the (.+) before the (.+)\?",
        "Before the {1} the {0} was in the {answer}.",
    ),
    "qa4": Prompt(
        "facts about where places lie relative to each other.",
        "Answer with one word, the place, and write nothing else.",
        (
            ("The attic is east of the cellar. The terrace is west of the cellar. What is the cellar east of?",
             "terrace"),
            ("The harbour is north of the attic. The attic is north of the terrace. What is north of the attic?",
             "harbour"),
        ),
    ),
    "qa5": Prompt(
        "facts about people, the items that they have and whom they give them to.",
        "Answer with one word, a person or an item, and write nothing else, no explanation either.",
        (
            ("Nina took the lamp there. Nina gave the lamp to Otto. Otto went to the attic. Who did Nina give the lamp "
             "to?", "Otto"),
            ("Paula took the rope there. Paula handed the rope to Nina. Otto took the lamp there. Who gave the rope?",
             "Paula"),
            ("Otto took the coat there. Nina ran to the cellar. Otto passed the coat to Paula. What did Otto give to "
             "Paula?", "coat"),
        ),
    ),
}  # fmt: skip
OTHER = Prompt("facts.", "Answer with the word or the words asked for, and write nothing else.")


def instruction(source: str) -> str:
    """Returns the text of a prompt before the context: the task, worked examples and the form of the answer."""
    prompt = PROMPTS.get(source, OTHER)
    shown = "".join(f"<example>\n{asked}{ANSWER} {answer}\n</example>\n\n" for asked, answer in prompt.examples)
    return (
        f"A long text follows, with a question after it. Hidden among its sentences, which are about other things, are "
        f"{prompt.about} Answer the question from these facts alone.\n\n{shown}{prompt.form}\n\n"
    )


class Question(NamedTuple):
    """A question and the facts before it.

    Attributes:
      facts: all facts of the story before the question, in order.
      question, answer: as in the file.
      supports: indices in `facts` of the supporting facts.
      source: the file's task, such as `qa1`.
      place: file and line, for messages.
      others: further persons and their places in the answer, in the form of `qa1`.
    """

    facts: tuple[str, ...]
    question: str
    answer: str
    supports: tuple[int, ...]
    source: str
    place: str
    others: tuple[tuple[str, str], ...] = ()


class Answer(NamedTuple):
    """An answer in the form of the prompt, and the ranges [begin, end) of the words asked for in its text."""

    text: str
    words: tuple[tuple[int, int], ...]


def answer_of(question: Question) -> Answer:
    """Returns the answer of a question. Raises `BadText` if the question is not one of its task."""
    before, after = PROMPTS.get(question.source, OTHER).says.split("{answer}")
    text, words = "", []
    for *asked, answer in ((*_asked(question), question.answer), *question.others):
        text += " " * bool(text) + before.format(*asked)
        words.append((len(text), len(text) + len(answer)))
        text += answer + after
    return Answer(text, tuple(words))


def answer_text(question: Question) -> str:
    """Returns the text of `answer_of`."""
    return answer_of(question).text


def _asked(question: Question) -> tuple[str, ...]:
    """Returns what the question is about, in the form of its task. Raises `BadText` if it is not one of its task."""
    found = re.fullmatch(PROMPTS.get(question.source, OTHER).asked, question.question)
    if found is None:
        raise BadText(question.place, f"{question.question!r} is not a question of {question.source}")
    return found.groups()


def of_everyone(question: Question) -> Question:
    """Returns a question of `qa1` whose answer continues with the places of all other persons, sorted by name. Raises
    `BadText` if it is not one."""
    (person,) = _asked(question)
    places = {fact.split()[0]: fact.removesuffix(".").split()[-1] for fact in question.facts}
    return question._replace(others=tuple((name, place) for name, place in sorted(places.items()) if name != person))


class Hidden(NamedTuple):
    """A question with its facts hidden in filler, in tokens, without the answer.

    Attributes:
      head: int32 [h], instruction and worked examples.
      hay: the filler with the facts.
      tail: int32 [t], the question.
    """

    head: np.ndarray
    hay: Haystack
    tail: np.ndarray

    @property
    def context(self) -> np.ndarray:
        """int32 [n], all tokens before the question."""
        return np.concatenate([self.head, self.hay.tokens])


@dataclasses.dataclass(frozen=True)
class Asking:
    """Converts questions to prompts and answers in tokens.

    Attributes:
      pieces: the tokenizer.
      chat: whether the answer is a separate turn of a chat; then the prompt does not end with "Answer:".
      again: int32 [b], tokens from the end of an answer to the text before the story's next question.
      instructed: whether the head has instruction and worked examples.
      heads: cache of tokenized heads by source.

    In the methods, `before` is the story's question that was asked before, if any: the prompt then begins with `again`
    in place of instruction and examples, and has the facts since that question.
    """

    pieces: Pieces
    chat: bool
    again: np.ndarray = dataclasses.field(default_factory=lambda: NOTHING)
    instructed: bool = True
    heads: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def head(self, source: str) -> np.ndarray:
        """Returns the tokens of instruction and worked examples, int32 [h]; without them, those before the text."""
        if source not in self.heads:
            self.heads[source] = self.pieces.first((instruction(source) if self.instructed else "") + CONTEXT)
        return self.heads[source]

    def parts(
        self, question: Question, before: Question | None = None
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Returns the tokens of the head, of each fact and of the tail."""
        tail = END.format(question=question.question) + ("" if self.chat else ANSWER)
        facts = [self.pieces.next(fact) for fact in question.facts[len(before.facts) if before else 0 :]]
        return self.again if before else self.head(question.source), facts, self.pieces.last(tail)

    def room(self, question: Question, before: Question | None = None) -> int:
        """Returns the number of tokens of a prompt without filler."""
        head, facts, tail = self.parts(question, before)
        return len(head) + sum(map(len, facts)) + len(tail)

    def hide(
        self, question: Question, filler: Filler, rng: np.random.Generator, length: int, before: Question | None = None
    ) -> Hidden:
        """Returns a prompt of `length` tokens, with the facts at random depths of the filler. Raises `ConfigError` if
        the prompt without filler is longer."""
        head, facts, tail = self.parts(question, before)
        room = length - len(head) - len(tail)
        depths = sorted(rng.random(len(facts)))
        return Hidden(head, haystack(self.pieces, filler.from_somewhere(rng), facts, depths, room), tail)

    def answer(self, question: Question) -> np.ndarray:
        """Returns the tokens of the answer after the tail, int32 [a], without its end. Raises `BadText`."""
        text = answer_text(question)
        return self.pieces.raw(text) if self.chat else self.pieces.next(text)

    def words(self, question: Question, answer: np.ndarray) -> np.ndarray:
        """Returns the indices of the tokens of its `answer` that contain characters of the words asked for, int [n]."""
        text, words = answer_of(question)
        return self.pieces.with_characters(answer, words, len(text))


# --- bAbI's files ---------------------------------------------------------------------------------


@dataclasses.dataclass
class _Story:
    """A story while it is read.

    Attributes:
      place: of its first line.
      facts: facts by line number.
      last: number of the last line.
      questions: number of questions, unreadable ones included.
      broken: whether a line could not be read, so that later questions may lack a fact.
    """

    place: str
    facts: dict[int, str] = dataclasses.field(default_factory=dict)
    last: int = 0
    questions: int = 0
    broken: bool = False

    def end(self) -> Iterator[BadText]:
        """Yields the errors of the story as a whole."""
        if self.last and not self.questions and not self.broken:
            yield BadText(self.place, "this story has no question")


def read(path: str) -> list[Question | BadText]:
    """Returns the questions of a bAbI file. A line, story or file that cannot be read is a `BadText` in the list.

    The rest of a story after an unreadable line is skipped.
    """
    named = NAMED.search(PurePath(path).name.lower())
    if named is None:
        return [BadText(path, "its name must have the task, such as qa1, which decides prompt and answers")]
    source = f"qa{int(named[1])}"
    try:
        lines = text_of(files.read_plain(path), path).splitlines()
    except BadText as error:
        return [error]
    found: list[Question | BadText] = []
    story = _Story(f"{path}:1")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place, parts = f"{path}:{number}", LINE.fullmatch(line)
        if parts and int(parts[1]) == 1:
            found += story.end()
            story = _Story(place)
        if story.broken:
            continue
        if parts is None or int(parts[1]) != story.last + 1:
            want = f"number {story.last + 1} or 1, a space and a sentence"
            found.append(BadText(place, f"a line of bAbI is {want}; the rest of its story is skipped"))
            story.broken = True
            continue
        story.last = int(parts[1])
        if "\t" in line:
            story.questions += 1
            found.append(_question(parts[2], story, source, place))
        elif parts[2].endswith("."):
            story.facts[story.last] = parts[2]
        else:
            found.append(BadText(place, "a fact of bAbI ends with a period, and a question has its answer after a "
                                           "tab; the rest of its story is skipped"))  # fmt: skip
            story.broken = True
    return [*found, *story.end()]


def _question(text: str, story: _Story, source: str, place: str) -> Question | BadText:
    """Parses the line of a question, without its number; returns a `BadText` if it cannot."""
    parts = [part.strip() for part in text.split("\t")]
    if len(parts) != 3 or not all(parts):
        return BadText(place, "a question of bAbI has an answer and the numbers of its facts, separated by tabs")
    supports = parts[2].split()
    order = list(story.facts)
    if not all(one.isdigit() and int(one) in story.facts for one in supports):
        return BadText(place, f"its facts {parts[2]!r} are not among those before it")
    indices = tuple(order.index(int(one)) for one in supports)
    return Question(tuple(story.facts.values()), parts[0], parts[1], indices, source, place)
