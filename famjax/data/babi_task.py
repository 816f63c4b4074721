"""The training task `babi`: bAbI's stories hidden in books, prompts and answers as in the evaluation, a curriculum.

    <instruction, worked examples> ... the cat, alone. Mary moved to the bathroom. He had never ...  Where is Mary?
    The most recent location of Mary is bathroom.

With `BabiConfig.turns` a document continues with more of the story and its next question. The loss is on the answers
and their ends, and, with a small weight, on a few tokens of the other text. The curriculum is the pass key's, over
blocks of the books' text in a turn; documents end in their row.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from famjax.config import ConfigError, TrainConfig
from famjax.config.babi import BabiConfig
from famjax.config.text import BadText
from famjax.data import files
from famjax.data.babi import CONTEXT, Asking, Question, of_everyone, read
from famjax.data.batch import Batch, Progress
from famjax.data.chat_template import ChatTemplate, chat_template
from famjax.data.curriculum import Curriculum, Marked, Placed, Rows, longest_filler, straddle, with_answer
from famjax.data.pieces import Filler, Frame, Pieces
from famjax.data.text_task import check_vocabulary, vocabulary_and_files, vocabulary_path
from famjax.data.vocabulary import Vocabulary, added_before

# To check that a book is long enough for the longest filler, this many characters per token of filler are tokenized; no
# tokenizer has longer tokens on average.
_CHARACTERS_PER_TOKEN = 16
# Ends an answer if there is neither a chat template nor an end-of-text token.
_LINE_END = "\n"
# Questions of one story, asked in turn in a document.
Turns = tuple[Question, ...]


class Sizes(NamedTuple):
    """The documents of a file, sorted by their tokens without filler (answers and their ends included).

    Attributes:
      order: int [n], indices of the documents' last questions, the shortest document first.
      tokens: int [n], number of tokens, in this order.
    """

    order: np.ndarray
    tokens: np.ndarray

    def fitting(self, tokens: int) -> int:
        """Returns the number of documents that have at most `tokens` tokens without filler."""
        return int(np.searchsorted(self.tokens, tokens, side="right"))


class Drawn(NamedTuple):
    """The parameters of a document: its questions, and the number of tokens of filler before each of them."""

    turns: Turns
    fillers: list[int]


@dataclasses.dataclass(frozen=True)
class BabiTask:
    """Batches of bAbI documents, several per row, each starting at a block boundary.

    A row gets documents of the open stages while they fit. Each document draws its file uniformly among those that have
    a fitting question, so short files are not rarer than long ones.

    Attributes:
      sequence_length, block_size, batch_size: T, S, B.
      asking: converts questions to prompts.
      end: int32 [e], tokens that end an answer.
      questions: questions by file (`qa1`).
      filler: text of the books.
      bad: lines of the files that cannot be read.

    Raises:
      ConfigError: a row is too short for a document of the first stage.
    """

    config: BabiConfig
    sequence_length: int
    block_size: int
    batch_size: int
    seed: int
    vocabulary: Vocabulary
    asking: Asking
    end: np.ndarray
    questions: dict[str, list[Question]]
    filler: Filler
    bad: tuple[BadText, ...] = ()
    observes = True

    def __post_init__(self) -> None:
        if not self.stages:
            needed = max(self._shortest) + longest_filler(self.config.stages[0], self.block_size)
            blocks = -(-needed // self.block_size)
            raise ConfigError(
                f"sequence length {self.sequence_length} is too short for a bAbI document with "
                f"{self.config.stages[0]} blocks of filler; use at least {blocks * self.block_size}"
            )

    @functools.cached_property
    def _sizes(self) -> dict[str, Sizes]:
        found = {}
        for source, some in self.questions.items():
            tokens = np.array([self._tokens(self._turns(some, i)) for i in range(len(some))])
            order = np.argsort(tokens, kind="stable")
            found[source] = Sizes(order, tokens[order])
        return found

    @functools.cached_property
    def _shortest(self) -> list[int]:
        """The number of tokens of each file's shortest document, without its filler."""
        return [int(sizes.tokens[0]) for sizes in self._sizes.values()]

    @functools.cached_property
    def _answer_slots(self) -> int:
        """The maximum number of tokens of an answer with its end."""
        every = (one for some in self.questions.values() for one in some)
        return max(len(self.asking.answer(one)) for one in every) + len(self.end)

    @property
    def rows(self) -> range:
        """All rows: every process produces the whole batch, since `observe` needs all of it."""
        return range(self.batch_size)

    @functools.cached_property
    def curriculum(self) -> Curriculum:
        """The curriculum of the stages in which every file has a question that fits into a row."""
        fits = lambda filler: self.config.turns * filler + max(self._shortest) <= self.sequence_length
        return Curriculum.of(self.config, self.block_size, fits)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages of the curriculum."""
        return self.curriculum.stages

    @property
    def without_room(self) -> dict[str, int]:
        """The number of questions by file that do not fit into a row even without filler, if any; they are left out."""
        long = {source: len(one.tokens) - one.fitting(self.sequence_length) for source, one in self._sizes.items()}
        return {source: count for source, count in long.items() if count}

    @functools.cached_property
    def _data(self) -> dict[str, Any]:
        """What a resumed training must have in common with the interrupted one: the sizes of its files."""
        return {
            "questions": {source: len(some) for source, some in self.questions.items()},
            "characters": sum(book["characters"] for book in self.filler.books),
        }

    def start(self) -> Progress:
        """Returns the progress before the first step: only the first stage is open."""
        return self.curriculum.start() | {"by_source": {}, "documents": [], "data": self._data}

    def batch(self, step: int, progress: Progress) -> tuple[Batch, Progress]:
        """Returns the batch of a step, a pure function of the seed, the step and the open stages, and the progress
        after it. Raises `ConfigError` if the progress belongs to other stories, books or stages."""
        self.curriculum.check(progress)
        if progress["data"] != self._data:
            raise ConfigError(
                f"the training to resume had other stories or books ({progress['data']}, now {self._data}); use the "
                f"same ones, or start in an empty MODEL_DIR from its weights"
            )
        rng = np.random.default_rng([self.seed, step])
        rows, documents = [], []
        for _ in range(self.batch_size):
            drawn = self._documents(rng, progress["open_stages"])
            rows.append(self._rows.row(rng, [self._placed(rng, one) for one in drawn]))
            documents.append(
                [[n, asked.source] for one in drawn for n, asked in zip(one.fillers, one.turns, strict=True)]
            )
        batch = Batch(*(np.stack(field) for field in zip(*rows, strict=True)))
        return batch, progress | {"documents": documents}

    def observe(self, progress: Progress, batch: Batch, correct: np.ndarray) -> Progress:
        """Returns the progress after a step: with the running exact match (every token of weight 1 of an answer) of all
        answers, of those of the newest stage and of each file, and with the next stage open if the exact match of the
        newest reached `open_at`. `correct`: bool [B, W]."""
        found: list[tuple[int, float]] = []
        by_source = progress["by_source"]
        for documents, right, weights in zip(progress["documents"], correct, batch.weights, strict=True):
            for n, (filler, source) in enumerate(documents):
                room = np.arange(self._answer_slots * n, self._answer_slots * (n + 1))
                hit = float(right[room[weights[room] == 1]].all())
                found.append((filler, hit))
                by_source = with_answer(by_source, source, hit)
        return self.curriculum.observe(progress, found) | {"by_source": by_source, "documents": []}

    def report(self, progress: Progress) -> dict[str, float]:
        """Returns the recent exact match of training documents, of all and of each file, and the filler blocks of the
        newest open stage."""
        by_source = sorted(progress["by_source"].items())
        each = {f"exact_match/{source}": round(mean, 4) for source, (mean, _) in by_source}
        return self.curriculum.report(progress) | (each if len(self.questions) > 1 else {})

    # --- documents --------------------------------------------------------------------------------

    def _documents(self, rng: np.random.Generator, open_stages: int) -> list[Drawn]:
        """Draws the documents of a row, until no further one fits."""
        found: list[Drawn] = []
        free = self.sequence_length // self.block_size
        while (drawn := self._draw(rng, open_stages, free * self.block_size)) is not None:
            found.append(drawn)
            free -= -(-(sum(drawn.fillers) + self._tokens(drawn.turns)) // self.block_size)
        return found

    def _turns(self, some: list[Question], i: int) -> Turns:
        """Returns the questions of a document that ends with question i: those of its story before it, at most `turns`
        in all."""
        first = i
        while i - first + 1 < self.config.turns and first and _continues(some[first - 1], some[first]):
            first -= 1
        return tuple(some[first : i + 1])

    def _tokens(self, turns: Turns) -> int:
        """Returns the number of tokens of a document without its filler."""
        prompts = sum(self.asking.room(asked, before) for before, asked in _pairs(turns))
        return prompts + sum(len(self.asking.answer(asked)) + len(self.end) for asked in turns)

    def _draw(self, rng: np.random.Generator, open_stages: int, free: int) -> Drawn | None:
        """Draws the next document, of at most `free` tokens; None if not even the shortest one fits."""
        lengths = self.curriculum.lengths(rng, open_stages, (free - min(self._shortest)) // self.config.turns)
        if lengths is None:
            return None
        least, most = lengths
        counts = {source: sizes.fitting(free - self.config.turns * least) for source, sizes in self._sizes.items()}
        sources = [source for source, count in counts.items() if count]
        source = sources[int(rng.integers(len(sources)))]
        some = self.questions[source]
        turns = self._turns(some, int(self._sizes[source].order[int(rng.integers(counts[source]))]))
        tokens, answer = self._tokens(turns), len(self.asking.answer(turns[-1])) + len(self.end)
        most = min(most, (free - tokens) // len(turns))
        fillers = [int(rng.integers(least, most + 1)) for _ in turns]
        before = self.curriculum.tokens_before(rng, answer)
        if before is not None:
            near = straddle(sum(fillers) + tokens - answer, fillers[-1], answer, before, self.block_size)
            fillers[-1] = next((n for n in near if least <= n <= most), fillers[-1])
        return Drawn(turns, fillers)

    def _placed(self, rng: np.random.Generator, drawn: Drawn) -> Placed:
        """Returns the tokens of a document, with the loss on its answers and their ends."""
        parts: list[np.ndarray] = []
        marked, count = [], 0
        for (before, asked), filler in zip(_pairs(drawn.turns), drawn.fillers, strict=True):
            prompt = self.asking.hide(asked, self.filler, rng, filler + self.asking.room(asked, before), before)
            said = self.asking.answer(asked)
            answer = np.concatenate([said, self.end]).astype(np.int32)
            count += len(prompt.context) + len(prompt.tail) + len(answer)
            parts += [prompt.context, prompt.tail, answer]
            weights = np.full(len(answer), self.config.form_weight)
            weights[self.asking.words(asked, said)] = 1.0
            marked.append(Marked(np.arange(count - len(answer), count), weights, self._answer_slots))
        return Placed(np.concatenate(parts), True, tuple(marked))

    @functools.cached_property
    def _rows(self) -> Rows:
        S, config = self.block_size, self.config
        documents = self.sequence_length // S // -(-min(self._shortest) // S)
        targets = documents * config.turns * self._answer_slots + config.text_tokens
        return Rows(self.sequence_length, S, targets, config.text_tokens, config.text_weight)


# --- from a configuration ------------------------------------------------------------------------------


def make_babi_task(config: TrainConfig) -> BabiTask:
    """Reads all files of the task; returns the task. Raises `ConfigError` if stories or books are missing or cannot be
    read, a book is too short, or no question fits into a row."""
    settings = config.babi
    settings.check_files_named()
    vocabulary, _ = vocabulary_and_files(config)
    check_vocabulary(vocabulary, config)
    template = _template(vocabulary_path(config)) if settings.chat else None
    frame = Frame(True, *template.around_user()) if template else Frame()
    end, again = _after_answer(vocabulary, template)
    asking = Asking(Pieces(vocabulary, added_before(vocabulary), frame), frame.chat, again, settings.instructed)
    questions, bad = _questions(settings, asking)
    task = BabiTask(
        settings, config.sequence_length, config.model.memory.block_size, config.batch_size, config.seed, vocabulary,
        asking, end, questions, Filler(*settings.books), tuple(bad),
    )  # fmt: skip
    _check_books(task)
    return task


def notes(task: BabiTask) -> list[str]:
    """Describes what was left out of files and settings, one line each."""
    found = []
    if task.bad:
        found.append(
            f"{len(task.bad)} places of bAbI's files cannot be read, the first is {task.bad[0].place}: "
            f"{task.bad[0].reason}"
        )
    for source, count in task.without_room.items():
        found.append(f"{count:,} of {len(task.questions[source]):,} questions of {source} do not fit into a row of "
                     f"{task.sequence_length} tokens and are left out")  # fmt: skip
    left_out = task.curriculum.left_out(task.sequence_length)
    return found + ([left_out] if left_out else [])


def _questions(config: BabiConfig, asking: Asking) -> tuple[dict[str, list[Question]], list[BadText]]:
    """Returns the questions by file, and the lines that cannot be read, or do not have the form of their task. Raises
    `ConfigError` if a file has no question."""
    questions: dict[str, list[Question]] = {}
    bad: list[BadText] = []
    for name in config.stories:
        pattern = f"{config.folder.rstrip('/')}/{name}_*_train.txt"
        for one in (one for path in files.expand(pattern) for one in read(path)):
            try:
                if isinstance(one, BadText):
                    raise one
                one = of_everyone(one) if config.everyone else one
                asking.answer(one)
                questions.setdefault(one.source, []).append(one)
            except BadText as error:
                bad.append(error)
        if name not in questions:
            why = f"; {bad[-1].place}: {bad[-1].reason}" if bad else ""
            raise ConfigError(f"{pattern} has no question{why}; it must be a file of bAbI v1.2 as published")
    return questions, bad


def _template(vocabulary: str) -> ChatTemplate | None:
    """Returns the chat template in the folder of a vocabulary; None if there is none."""
    if vocabulary == "bytes":
        return None
    if "://" in vocabulary:
        raise ConfigError(
            f"{vocabulary} may have a chat template, which must be on local disk; copy the folder, or set "
            f"--gin.BabiConfig.chat=False"
        )
    path = vocabulary.rstrip("/")
    return chat_template(path if files.is_directory(path) else str(PurePosixPath(path).parent))


def _continues(one: Question, other: Question) -> bool:
    """Whether a question belongs to the story of the one before it in the file."""
    return len(one.facts) <= len(other.facts) and one.facts == other.facts[: len(one.facts)]


def _pairs(turns: Turns) -> Iterator[tuple[Question | None, Question]]:
    """Yields each question with the one before it, None for the first."""
    return zip((None, *turns), turns, strict=False)


def _after_answer(vocabulary: Vocabulary, template: ChatTemplate | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens that end an answer, int32 [e], and those up to the text before the next question, int32 [b].

    With a chat template the end are the tokens after an answer, up to the first special one. Without a template, or if
    it has no special token there, it is the end-of-text token, or a line end if the vocabulary has none.
    """
    specials: Sequence[int] = sorted(getattr(vocabulary, "specials", ()))
    if template is not None:
        text, mark, _ = template.after_answer(CONTEXT).partition(CONTEXT)
        ids = vocabulary.encode(text + mark)
        places = np.flatnonzero(np.isin(ids, specials))
        if len(places):
            return ids[: places[0] + 1], ids[places[0] + 1 :]
    end = np.array([vocabulary.eos], np.int32) if vocabulary.eos is not None else vocabulary.encode(_LINE_END)
    return end, vocabulary.encode(_LINE_END + CONTEXT)


def _check_books(task: BabiTask) -> None:
    """Raises `ConfigError` if a book is shorter than the longest filler, which would repeat it within a document."""
    longest = longest_filler(task.stages[-1], task.block_size)
    for text, about in zip(task.filler.texts, task.filler.books, strict=True):
        tokens = len(task.vocabulary.encode(text[: longest * _CHARACTERS_PER_TOKEN]))
        if tokens < longest:
            raise ConfigError(
                f"{about['file']} has {tokens} tokens, but a document has up to {longest} tokens of a book; leave the "
                f"book out, or use shorter stages"
            )
