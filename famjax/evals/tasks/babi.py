"""bAbI (Weston et al. 2015) hidden in other text, in the manner of BABILong (Kuratov et al. 2024).

The facts of a story lie, in order, at random places of a long text; the question comes at its end. bAbI is
read from its own files (`qa1_single-supporting-fact_test.txt`), the text from any file.
"""

from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from famjax.config import ConfigError, EvalConfig
from famjax.config.text import text_of
from famjax.data import files
from famjax.evals.metrics import string_match_all, word_match_alone
from famjax.evals.tasks import generated
from famjax.evals.tasks.base import Example, Task
from famjax.evals.tasks.pieces import Filler, Pieces, haystack, too_short
from famjax.infer.codec import Codec

INTRO = (
    "I will give you context with the facts about positions of different persons hidden in some random text and a "
    "question. You need to answer the question based only on the information from the facts."
)
ASK = "\nQuestion: {question} Answer:"


class Question(NamedTuple):
    """A question and the facts that were told before it."""

    facts: tuple[str, ...]
    question: str
    answer: str
    source: str


def babi(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Questions of the files of `--data`, each length with the same ones."""
    path = config.data_of(name)
    if not path:
        raise ConfigError(
            "babi needs a copy of bAbI; unpack tasks_1-20_v1-2.tar.gz (docs/evaluation.md says where it is) and add "
            "--data 'babi=FOLDER/en-10k/qa1_*_test.txt'"
        )
    questions = [question for file in files.expand(path) for question in read(file)]
    if not questions:
        raise ConfigError(f"{path} has no question; name files of bAbI such as qa1_single-supporting-fact_test.txt")
    pieces, filler = Pieces(codec), Filler(config.filler)
    head = pieces.first(INTRO)

    def make(rng: np.random.Generator, length: int, depth: float) -> Example:
        asked = questions[int(rng.integers(len(questions)))]
        needles = [pieces.next(fact) for fact in asked.facts]
        tail = pieces.raw(ASK.format(question=asked.question))
        room = length - len(head) - len(tail)
        if sum(map(len, needles)) > room:
            raise too_short(name, length, length - room + sum(map(len, needles)))
        depths = sorted(rng.random(len(needles)))
        hay = haystack(pieces, filler.from_somewhere(rng), needles, depths, room)
        about = {"needle": len(head) + hay.ends[-1], "source": asked.source}
        return Example("", tail, np.concatenate([head, hay.tokens]), targets=(asked.answer,), about=about)

    labels = sorted({part for question in questions for part in question.answer.split(",")})
    metrics = {"word_match": word_match_alone(labels), "string_match": string_match_all}
    return generated.task(name, "generate", config, make, 20, metrics, filler=config.filler, data=path)


def read(path: str) -> list[Question]:
    """The questions of a bAbI file. Raises `ConfigError` naming a line that is none of its format."""
    found: list[Question] = []
    facts: list[str] = []
    source = PurePath(path).name.split("_")[0]
    for number, line in enumerate(text_of(files.read_plain(path), path).splitlines(), start=1):
        if not line.strip():
            continue
        count, _, text = line.partition(" ")
        if not count.isdigit() or not text:
            raise ConfigError(f"{path}:{number}: a line of bAbI begins with a number: 1 Mary moved to the bathroom.")
        if count == "1":
            facts = []
        if "\t" in text:
            question, answer = (part.strip() for part in text.split("\t")[:2])
            found.append(Question(tuple(facts), question, answer, source))
        else:
            facts.append(text.strip())
    return found
