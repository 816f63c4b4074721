"""The task of bAbI's questions (`data/babi.py`) hidden in texts of an exact number of tokens."""

import itertools

import numpy as np

from famjax.config import ConfigError, EvalConfig
from famjax.data import files
from famjax.data.babi import PROMPTS, Asking, Question, read
from famjax.data.pieces import Filler, Pieces
from famjax.evals.metrics import babilong_match, string_match_all
from famjax.evals.tasks import generated
from famjax.evals.tasks.base import Example, Task, Unreadable
from famjax.evals.tasks.generated import too_short
from famjax.evals.tasks.rows import split_of
from famjax.infer.chat import frame_of
from famjax.infer.codec import Codec

SEED = 0xBAB1
NEW_TOKENS = 20  # BABILong's limit


def babi(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the task of questions from the files of `--data`, cycling through the files; the same questions are
    used at all lengths.

    Lines that cannot be read are yielded as `Unreadable`. Questions whose facts do not fit into the shortest length
    are left out; the settings have their number by file. All models draw questions in the same order, so their
    questions differ only if one does not fit with some model's tokenizer.

    Raises:
      ConfigError: no data is given, it is a folder or of several splits, it has no question, or no question fits into
        the shortest length.
    """
    path = config.data_of(name)
    if not path:
        raise ConfigError(
            "babi needs a copy of bAbI; unpack tasks_1-20_v1-2.tar.gz (docs/evaluation.md: where to get it) and add "
            "--data 'babi=FOLDER/en-10k/qa1_*_test.txt'"
        )
    frame = frame_of(codec, config.chat)
    asking = Asking(Pieces(codec.vocabulary, codec.bos, frame), frame.chat)
    read_all = [one for file in _files(path) for one in read(file)]
    bad = [Unreadable(one.place, one.reason) for one in read_all if not isinstance(one, Question)]
    questions: dict[str, list[Question]] = {}
    for one in read_all:
        if isinstance(one, Question):
            questions.setdefault(one.source, []).append(one)
    if not questions:
        why = f"; {bad[0].place}: {bad[0].reason}" if bad else ""
        raise ConfigError(f"{path} has no question{why}; name bAbI files such as qa1_single-supporting-fact_test.txt")
    rooms = {source: [asking.room(one) for one in some] for source, some in questions.items()}
    shortest, filler = min(config.lengths), Filler(config.filler)
    sources = sorted(source for source, sizes in rooms.items() if min(sizes) <= shortest)
    if not sources:
        raise too_short(name, shortest, min(map(min, rooms.values())))
    labels = {source: babilong_labels(some) for source, some in questions.items()}

    def make(length: int, i: int) -> Example:
        rng, source = np.random.default_rng([config.seed, SEED, i]), sources[i % len(sources)]
        order = rng.permutation(len(questions[source]))
        chosen = next(k for k in order if rooms[source][k] <= shortest)
        return _example(asking, questions[source][chosen], filler, rng, length)

    examples, count = generated.of_each_length(name, config, make)
    judge = lambda said, example: babilong_match(
        said, example.targets[0], example.about["question"], labels[example.about["source"]]
    )
    settings = {"lengths": list(config.lengths), "seed": config.seed, "data": path, "filler": config.filler}
    settings |= {
        "chat": frame.chat,
        "books": filler.books,
        "questions": {one: len(questions[one]) for one in questions},
    }
    left_out = {source: sum(size > shortest for size in sizes) for source, sizes in rooms.items()}
    settings |= {"without_room": {source: count for source, count in left_out.items() if count}}
    longest = max(len(codec.encode(answer)) for prompt in PROMPTS.values() for _, answer in prompt.examples)
    return Task(
        name, "generate", lambda: itertools.chain(bad, examples()), {"string_match": string_match_all},
        {"word_match": judge}, count=count, max_new_tokens=config.max_new_tokens or max(NEW_TOKENS, longest + 16),
        settings=settings, bad=tuple(bad),
    )  # fmt: skip


def _files(path: str) -> list[str]:
    """Returns the files of a path or glob. Raises `ConfigError` if it is a folder, or has files of several splits: a
    copy of bAbI has the stories of training and test side by side, and a model may have been trained on the former."""
    paths = files.expand(path)
    if files.is_directory(paths[0]):
        raise ConfigError(f"{path} is a folder; name its files, for example 'babi={path.rstrip('/')}/qa1_*_test.txt'")
    first = {split_of(one): one for one in reversed(paths)}
    if len(splits := sorted(first.keys() - {""})) > 1:
        raise ConfigError(f"{path} has files of several splits, such as {' and '.join(first[one] for one in splits)}; "
                          f"name those of one, for example 'babi=FOLDER/qa*_test.txt'")  # fmt: skip
    return paths


def babilong_labels(questions: list[Question]) -> frozenset[str]:
    """Returns all answers of a file, in lower case; a list of words is split (except `n,w`, a path)."""
    parts = lambda answer: answer.split(",") if len(answer) > 3 else [answer]
    return frozenset(part.lower() for question in questions for part in parts(question.answer))


def _example(asking: Asking, question: Question, filler: Filler, rng: np.random.Generator, length: int) -> Example:
    """Returns an example of `length` tokens: a question with its facts hidden in filler."""
    hidden = asking.hide(question, filler, rng, length)
    needles = hidden.hay.needles(len(hidden.head), question.supports)
    about = {"needle": min(end for _, end in needles), "source": question.source, "question": question.question,
             "place": question.place}  # fmt: skip
    id = f"{question.source}:{question.place.rpartition(':')[2]}"
    return Example(id, hidden.tail, hidden.context, targets=(question.answer,), about=about, needles=needles)
