"""What data sets of questions share: rows to questions, questions to examples; a bad row costs itself only."""

import collections
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from famjax.config import ConfigError, EvalConfig
from famjax.evals.tasks.base import NOTHING, Example, Task, TextMetric, Unreadable
from famjax.evals.tasks.pieces import Frame, Pieces
from famjax.evals.tasks.rows import Row
from famjax.infer.codec import Codec


class Question(NamedTuple):
    """A row as a task reads it.

    Attributes:
      id, group: of the question and of its document.
      document, prompt: read in this order.
      targets: right answers, of a task that writes.
      options, answer: of a task that chooses.
      about, counts: as in `Example`.
      needle: [start, end) of the document's characters that hold the answer.
    """

    id: str
    group: str
    document: str
    prompt: str
    targets: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    answer: int = 0
    about: Mapping[str, Any] = {}
    counts: Mapping[str, float] = {}
    needle: tuple[int, int] | None = None


class BadRow(ValueError):
    """A row that is not as its data set has it, and why."""


T = TypeVar("T")


def where(name: str, config: EvalConfig, example: str) -> str:
    """The data set of a task. Raises `ConfigError` if none is named; `example` says what to type."""
    if not (path := config.data_of(name)):
        raise ConfigError(f"{name} needs its data set: add --data {name}=PATH, PATH being {example}")
    return path


def converted(
    found: Iterable[Row | Unreadable], convert: Callable[[dict[str, Any]], Iterable[T]]
) -> Iterator[T | Unreadable]:
    """What a task makes of each row."""
    for row in found:
        if isinstance(row, Unreadable):
            yield row
            continue
        try:
            yield from convert(row.fields)
        except BadRow as error:
            yield Unreadable(row.place, str(error))


def field(fields: dict[str, Any], *path: str) -> Any:
    """`fields["a"]["b"]`. Raises `BadRow` where it is not there."""
    value: Any = fields
    for name in path:
        if not isinstance(value, dict) or name not in value:
            has = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise BadRow(f"it has no {'.'.join(path)} (it has {has or 'nothing'})")
        value = value[name]
    return value


def list_field(fields: dict[str, Any], *path: str) -> list[dict[str, Any]]:
    """The same, of a list of objects."""
    value = field(fields, *path)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise BadRow(f"{'.'.join(path)} is no list of objects")
    return value


def text_field(fields: dict[str, Any], *path: str) -> str:
    """The same, of a text that is not empty."""
    value = field(fields, *path)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{'.'.join(path)} is no text, or an empty one")
    return value


def name_of(article: str) -> str:
    """A document's name, if it has none of its own."""
    return hashlib.sha256(article.encode("utf-8", "replace")).hexdigest()[:12]


class Encoder:
    """Questions to examples; a document that several share is made to tokens once.

    Args:
      codec: the tokenizer.
      frame: what a chat template writes around a document and its question.
    """

    def __init__(self, codec: Codec, frame: Frame = Frame()):  # noqa: B008 - immutable
        self._pieces = Pieces(codec, frame)
        self._last: tuple[str, Any] = ("", NOTHING)

    def example(self, question: Question) -> Example:
        """Its tokens."""
        if self._last[0] != question.document:
            self._last = question.document, self._pieces.first(question.document)
        context, options = self._last[1], tuple(f" {option}" for option in question.options)
        about = dict(question.about)
        needles: tuple[tuple[int, int], ...] = ()
        if question.needle is not None:
            start, end = (self._tokens_before(question.document[:at], context) for at in question.needle)
            needles = ((start, max(start, end - 1)),)
            about |= {"needle": needles[0][1]}
        return Example(
            question.id, self._pieces.last(question.prompt), context, question.group, question.targets,
            tuple(map(self._pieces.raw, options)), tuple(len(option.encode()) for option in options), question.answer,
            about=about, needles=needles,
        )  # fmt: skip

    def _tokens_before(self, text: str, context: np.ndarray) -> int:
        """How many tokens of a document stand for this beginning of it alone."""
        tokens = self._pieces.first(text)
        same = min(len(tokens), len(context))
        return int((tokens[:same] == context[:same]).argmin()) if (tokens[:same] != context[:same]).any() else same


def encoded_pair(codec: Codec, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a text, split where the continuation begins; spaces at the context's end belong to it, as in
    lm-evaluation-harness."""
    kept = context.rstrip()
    whole, before = codec.encode(context + continuation), codec.encode(kept)
    return before, whole[len(before) :]


def task(
    name: str, kind: str, config: EvalConfig, encode: Callable[[Question], Example],
    found: Callable[[], Iterable[Question | Unreadable]], metrics: Mapping[str, TextMetric] | None = None,
    max_new_tokens: int = 0,
) -> Task:  # fmt: skip
    """A task of the questions that `found` gives; those without an id are numbered.

    Raises:
      ConfigError: no question can be read, or a metric's package is missing; before any work.
    """

    def examples() -> Iterator[Example | Unreadable]:
        seen = collections.Counter[str]()
        for number, question in enumerate(itertools.islice(found(), config.examples or None)):
            if isinstance(question, Unreadable):
                yield question
                continue
            if not question.id:
                question = question._replace(id=f"{number:06d}")
            seen[question.id] += 1
            if (times := seen[question.id]) > 1:  # a data set may have a question twice
                question = question._replace(id=f"{question.id}#{times}")
            try:
                yield encode(question)
            except UnicodeEncodeError:
                yield Unreadable(question.id, "a text has half a surrogate pair and no UTF-8 form")

    _check(name, config.data_of(name), found())
    for metric in (metrics or {}).values():
        metric("a", ["a"])
    settings = {"data": config.data_of(name), "split": config.split}
    new = config.max_new_tokens or max_new_tokens
    return Task(
        name, kind, examples, metrics or {}, count=config.examples, max_new_tokens=new or 1, stops=("\n",),
        settings=settings,
    )  # fmt: skip


def _check(name: str, path: str, found: Iterable[Question | Unreadable]) -> None:
    """Raises `ConfigError` if there is nothing that can be read."""
    first: Unreadable | None = None
    for question in found:
        if not isinstance(question, Unreadable):
            return
        first = first or question
    if first is None:
        raise ConfigError(f"{name} has no example; {path} is empty")
    raise ConfigError(f"no example of {name} can be read; {first.place}: {first.reason}")
