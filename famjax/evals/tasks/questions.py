"""Shared code for question data sets: rows to questions to examples. An unreadable row is skipped and reported."""

import collections
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from famjax.config import ConfigError, EvalConfig
from famjax.data.pieces import Frame, Pieces
from famjax.evals.tasks.base import NOTHING, Example, Task, TextMetric, Unreadable, check_readable
from famjax.evals.tasks.rows import Row
from famjax.infer.codec import Codec


class Question(NamedTuple):
    """A question of a data set.

    Attributes:
      id, group: ids of the question and of its document.
      document, prompt: texts, read in this order.
      targets: correct answers, for `generate` tasks.
      options, answer: the choices and the index of the correct one, for `choose` tasks.
      about, counts: as in `Example`.
      needle: [start, end), the characters of the document that contain the answer; None if unknown.
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
    """A row does not have the data set's format; the message says why."""


T = TypeVar("T")


def where(name: str, config: EvalConfig, example: str) -> str:
    """Returns the path of a task's data set. Raises `ConfigError` if --data names none; `example` is shown as PATH."""
    if not (path := config.data_of(name)):
        raise ConfigError(f"{name} needs its data set: add --data {name}=PATH, PATH being {example}")
    return path


def converted(
    found: Iterable[Row | Unreadable], convert: Callable[[dict[str, Any]], Iterable[T]]
) -> Iterator[T | Unreadable]:
    """Yields what `convert` yields for each row; a `BadRow` becomes `Unreadable`."""
    for row in found:
        if isinstance(row, Unreadable):
            yield row
            continue
        try:
            yield from convert(row.fields)
        except BadRow as error:
            yield Unreadable(row.place, str(error))


def field(fields: dict[str, Any], *path: str) -> Any:
    """Returns a nested field: `fields["a"]["b"]` for the path "a", "b". Raises `BadRow` if it is missing."""
    value: Any = fields
    for name in path:
        if not isinstance(value, dict) or name not in value:
            has = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise BadRow(f"it has no {'.'.join(path)} (it has {has or 'nothing'})")
        value = value[name]
    return value


def list_field(fields: dict[str, Any], *path: str) -> list[dict[str, Any]]:
    """Returns a field that is a list of objects. Raises `BadRow` otherwise."""
    value = field(fields, *path)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise BadRow(f"{'.'.join(path)} is not a list of objects")
    return value


def text_field(fields: dict[str, Any], *path: str) -> str:
    """Returns a field that is a non-empty text. Raises `BadRow` otherwise."""
    value = field(fields, *path)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{'.'.join(path)} is not a text, or is empty")
    return value


def texts_field(fields: dict[str, Any], *path: str) -> list[str]:
    """Returns a field that is a list of non-empty texts. Raises `BadRow` otherwise."""
    value = field(fields, *path)
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise BadRow(f"{'.'.join(path)} is not a list of texts, or one is empty")
    return value


def name_of(article: str) -> str:
    """Returns a name for a document without an id: 12 hexadecimal digits of its hash."""
    return hashlib.sha256(article.encode("utf-8", "replace")).hexdigest()[:12]


class Encoder:
    """Converts questions to examples; a document shared by consecutive questions is tokenized once. `frame` is the chat
    template's text around a document and its question."""

    def __init__(self, codec: Codec, frame: Frame = Frame()):  # noqa: B008 - immutable
        self._pieces = Pieces(codec.vocabulary, codec.bos, frame)
        self._last: tuple[str, Any] = ("", NOTHING)

    def example(self, question: Question) -> Example:
        """Returns the tokenized question."""
        if self._last[0] != question.document:
            self._last = question.document, self._pieces.first(question.document)
        context, options, about = self._last[1], question.options, dict(question.about)
        needles: tuple[tuple[int, int], ...] = ()
        if question.needle is not None:
            start, end = (self._tokens_before(question.document[:at], context) for at in question.needle)
            needles = ((start, max(start, end - 1)),)
            about |= {"needle": needles[0][1]}
        return Example(
            question.id, self._pieces.last(question.prompt), context, question.group, question.targets,
            tuple(map(self._pieces.next, options)), tuple(1 + len(one.encode()) for one in options), question.answer,
            about=about, needles=needles,
        )  # fmt: skip

    def _tokens_before(self, text: str, context: np.ndarray) -> int:
        """Returns the number of leading tokens of `context` that encode only `text`, the start of the document."""
        tokens = self._pieces.first(text)
        same = min(len(tokens), len(context))
        return int((tokens[:same] == context[:same]).argmin()) if (tokens[:same] != context[:same]).any() else same


def encoded_pair(codec: Codec, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of context and continuation, as in lm-evaluation-harness: encoded together, then split;
    trailing spaces of the context belong to the continuation."""
    kept = context.rstrip()
    whole, before = codec.encode(context + continuation), codec.encode(kept)
    return before, whole[len(before) :]


def task(
    name: str, kind: str, config: EvalConfig, encode: Callable[[Question], Example],
    found: Callable[[], Iterable[Question | Unreadable]], metrics: Mapping[str, TextMetric] | None = None,
    max_new_tokens: int = 0,
) -> Task:  # fmt: skip
    """Returns a task of the questions that `found` yields; questions without an id are numbered. Raises `ConfigError`
    if no question can be read, or a metric's package is missing."""

    def examples() -> Iterator[Example | Unreadable]:
        seen = collections.Counter[str]()
        for number, question in enumerate(itertools.islice(found(), config.examples or None)):
            if isinstance(question, Unreadable):
                yield question
                continue
            if not question.id:
                question = question._replace(id=f"{number:06d}")
            seen[question.id] += 1
            if (times := seen[question.id]) > 1:  # some data sets contain a question twice
                question = question._replace(id=f"{question.id}#{times}")
            try:
                yield encode(question)
            except UnicodeEncodeError:
                yield Unreadable(question.id, "a text has a lone surrogate, which UTF-8 cannot encode")

    if not check_readable(found(), f"example of {name}"):
        split = f", or has no split {config.split!r}" if config.split else ""
        raise ConfigError(f"{name} has no example; {config.data_of(name)} is empty{split}")
    for metric in (metrics or {}).values():
        metric("a", ["a"])
    settings = {"data": config.data_of(name), "split": config.split}
    new = config.max_new_tokens or max_new_tokens
    return Task(
        name, kind, examples, metrics or {}, count=config.examples, max_new_tokens=new or 1, stops=("\n",),
        settings=settings,
    )  # fmt: skip
