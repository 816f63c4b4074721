"""The paper's long-context tasks (its Table 10), read from the data sets as they are published.

NarrativeQA (Kočiský et al. 2018), Qasper and QuALITY as SCROLLS has them (Shaham et al. 2022), XL-Sum (Hasan et
al. 2021), PG-19 (Rae et al. 2020), Isabelle. The paper does not print its prompts; ours are below, plain ones.
A document comes first and its questions behind it, so that it is read once.
"""

import collections
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from famjax.config import ConfigError, EvalConfig, SourceConfig
from famjax.config.text import text_of
from famjax.data import files, kinds, sources
from famjax.evals import language
from famjax.evals.language import Document
from famjax.evals.metrics import rouge_l, squad_exact_match, squad_f1
from famjax.evals.tasks.base import NOTHING, Example, Task, TextMetric, Unreadable
from famjax.evals.tasks.rows import HUB, ROW_KINDS, TFDS, Row, rows
from famjax.infer.codec import Codec

ASK = "\n\nQuestion: {question}\nAnswer:"
SUMMARIZE = "\n\nSummary:"
OPTIONS = re.compile(r"\s*\(A\) (.*?)\n \(B\) (.*?)\n \(C\) (.*?)\n \(D\) (.*?)\n\n\n?(.*)", re.DOTALL)
# What to type, for who has no data yet; docs/evaluation.md says where each is.
WHERE = {
    "narrative_qa": "hub:deepmind/narrativeqa, its Parquet files, or the folder of the original repository",
    "qasper": "SCROLLS' qasper/validation.jsonl, or hub:tau/scrolls:qasper",
    "quality": "SCROLLS' quality/validation.jsonl, QuALITY's own dev file, or hub:tau/scrolls:quality",
    "xlsum": "english_test.jsonl of XL-Sum, or hub:csebuetnlp/xlsum:english",
    "pg19": "'pg19/test/*.txt', or tfds:pg19",
    "isabelle": "'afp/thys/*/*.thy'",
}


class Question(NamedTuple):
    """A row as a task reads it.

    Attributes:
      id, group: of the question and of its document.
      document, prompt: read in this order.
      targets: right answers, of a task that writes.
      options, answer: of a task that chooses.
    """

    id: str
    group: str
    document: str
    prompt: str
    targets: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    answer: int = 0


class BadRow(ValueError):
    """A row that is not as its data set has it, and why."""


T = TypeVar("T")


def _where(name: str, config: EvalConfig) -> str:
    """The data set of a task. Raises `ConfigError` where none is named."""
    if not (path := config.data_of(name)):
        raise ConfigError(f"{name} needs its data set: add --data {name}=PATH, PATH being {WHERE[name]}")
    return path


def _questions(
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


def _field(fields: dict[str, Any], *path: str) -> Any:
    """`fields["a"]["b"]`. Raises `BadRow` where it is not there."""
    value: Any = fields
    for name in path:
        if not isinstance(value, dict) or name not in value:
            has = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise BadRow(f"it has no {'.'.join(path)} (it has {has or 'nothing'})")
        value = value[name]
    return value


def _text(fields: dict[str, Any], *path: str) -> str:
    value = _field(fields, *path)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{'.'.join(path)} is no text, or an empty one")
    return value


class _Encoder:
    """Questions to examples; a document that several share is made to tokens once."""

    def __init__(self, codec: Codec):
        self._codec = codec
        self._last: tuple[str, Any] = ("", NOTHING)

    def example(self, question: Question) -> Example:
        """Its tokens."""
        if self._last[0] != question.document:
            self._last = question.document, self._codec.encode(question.document)
        raw = lambda text: self._codec.encode(text, fresh=False)
        options = tuple(f" {option}" for option in question.options)
        return Example(
            question.id, raw(question.prompt), self._last[1], question.group, question.targets,
            tuple(map(raw, options)), tuple(len(option.encode()) for option in options), question.answer,
        )  # fmt: skip


def _task(
    name: str, kind: str, config: EvalConfig, codec: Codec, found: Callable[[], Iterable[Question | Unreadable]],
    metrics: Mapping[str, TextMetric] | None = None, max_new_tokens: int = 0,
) -> Task:  # fmt: skip
    def examples() -> Iterator[Example | Unreadable]:
        encoder, seen = _Encoder(codec), collections.Counter[str]()
        for question in itertools.islice(found(), config.examples or None):
            if isinstance(question, Unreadable):
                yield question
                continue
            seen[question.id] += 1
            if (times := seen[question.id]) > 1:  # a data set may have a question twice
                question = question._replace(id=f"{question.id}#{times}")
            try:
                yield encoder.example(question)
            except UnicodeEncodeError:
                yield Unreadable(question.id, "a text has half a surrogate pair and no UTF-8 form")

    next(iter(found()), None)  # what is missing is told before any work, a metric's package too
    for metric in (metrics or {}).values():
        metric("a", ["a"])
    settings = {"data": config.data_of(name), "split": config.split}
    new = config.max_new_tokens or max_new_tokens
    return Task(name, kind, examples, metrics or {}, config.examples, new or 1, ("\n",), settings=settings)


# --- questions about documents --------------------------------------------------------------------


def narrative_qa(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Questions about books and film scripts, some thirty each; ROUGE-L against two answers."""
    path, split = _where(name, config), config.split or "test"
    original = files.exists(f"{path}/qaps.csv") if ":" not in path else False
    found = lambda: _original_narrative_qa(path, split) if original else _questions(rows(path, split), _narrative_qa)
    metrics = {"rouge_l": rouge_l, "f1": squad_f1, "exact_match": squad_exact_match}
    return _task(name, "generate", config, codec, found, metrics, 64)


def _narrative_qa(fields: dict[str, Any]) -> Iterator[Question]:
    document, question = _text(fields, "document", "id"), _text(fields, "question", "text")
    answers = _field(fields, "answers")
    # A list of structs, or (from TFDS and streams) a struct of lists.
    texts = answers.get("text", []) if isinstance(answers, dict) else [_text(answer, "text") for answer in answers]
    if not texts:
        raise BadRow("it has no answer")
    id = f"{document}/{question}"
    yield Question(id, document, _text(fields, "document", "text"), ASK.format(question=question), tuple(texts))


def _original_narrative_qa(folder: str, split: str) -> Iterator[Question | Unreadable]:
    """`qaps.csv` and `tmp/ID.content` of the original repository, whose script fetches the documents."""
    text = ("", "")
    for row in rows(f"{folder}/qaps.csv", split):
        if isinstance(row, Unreadable):
            yield row
            continue
        fields = row.fields
        if fields.get("set") != split:
            continue
        path = f"{folder}/tmp/{fields['document_id']}.content"
        if text[0] != path:
            if not files.exists(path):
                yield Unreadable(row.place, f"there is no {path}; the repository's script fetches it")
                continue
            text = path, text_of(files.read(path), path, "replace")
        prompt = ASK.format(question=fields["question"])
        id = f"{fields['document_id']}/{fields['question']}"
        yield Question(id, fields["document_id"], text[1], prompt, (fields["answer1"], fields["answer2"]))


def qasper(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Questions about papers, as SCROLLS has them; ROUGE-L as in the paper, and F1, SCROLLS' own metric."""
    path, split = _where(name, config), config.split or "validation"
    found = lambda: _together(_questions(rows(path, split), _qasper))
    return _task(name, "generate", config, codec, found, {"rouge_l": rouge_l, "f1": squad_f1}, 64)


def _qasper(fields: dict[str, Any]) -> Iterator[Question]:
    question, cut, article = _text(fields, "input").partition("\n\n")
    if not cut:
        raise BadRow("its input is not a question, an empty line and a paper")
    prompt = ASK.format(question=question.strip())
    yield Question(_text(fields, "id"), _group(article), article.strip(), prompt, (_text(fields, "output"),))


def _together(questions: Iterable[Question | Unreadable]) -> Iterator[Question | Unreadable]:
    """Rows that follow each other with the same id are one question with several answers."""
    before: Question | None = None
    for question in questions:
        if isinstance(question, Unreadable):
            yield question
        elif before is not None and before.id == question.id:
            before = before._replace(targets=before.targets + question.targets)
        else:
            if before is not None:
                yield before
            before = question
    if before is not None:
        yield before


def quality(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Four answers to a question about a long text, ranked by their probability."""
    path, split = _where(name, config), config.split or "validation"
    return _task(name, "choose", config, codec, lambda: _questions(rows(path, split), _quality))


def _quality(fields: dict[str, Any]) -> Iterator[Question]:
    if "questions" in fields:  # QuALITY's own files: an article and its questions
        article = _text(fields, "article")
        for i, asked in enumerate(_field(fields, "questions")):
            options, gold = _field(asked, "options"), _field(asked, "gold_label")
            if gold not in range(1, len(options) + 1):
                raise BadRow(f"gold_label {gold} is none of {len(options)} options")
            id = str(asked.get("question_unique_id", f"{_group(article)}/{i}"))
            prompt = ASK.format(question=_text(asked, "question").strip())
            yield Question(id, _group(article), article, prompt, (), tuple(options), gold - 1)
        return
    question, cut, rest = _text(fields, "input").partition("\n\n")
    parts = OPTIONS.fullmatch(rest) if cut else None
    if parts is None:
        raise BadRow("its input is not a question, options (A) to (D) and a text")
    *options, article = (part.strip() for part in parts.groups())
    output = _text(fields, "output").strip()
    if output not in options:
        raise BadRow("its output is none of its options")
    prompt = ASK.format(question=question.strip())
    id = _text(fields, "id")
    yield Question(id, _group(article), article, prompt, (), tuple(options), options.index(output))


def _group(article: str) -> str:
    """A document's name, where it has none of its own."""
    return hashlib.sha256(article.encode("utf-8", "replace")).hexdigest()[:12]


def xlsum(name: str, config: EvalConfig, codec: Codec) -> Task:
    """A sentence that says what a news text says; ROUGE-L."""
    path, split = _where(name, config), config.split or "test"
    convert = lambda fields: [
        Question(_text(fields, "id"), "", _text(fields, "text"), SUMMARIZE, (_text(fields, "summary"),))
    ]
    found = lambda: _questions(rows(path, split), convert)
    return _task(name, "generate", config, codec, found, {"rouge_l": rouge_l}, 128)


# --- texts that are predicted ---------------------------------------------------------------------


def texts(name: str, config: EvalConfig, codec: Codec) -> Task:
    """PG-19's books or Isabelle's proofs: every token is predicted; accuracy and bits per byte by position."""
    path, split = _where(name, config), config.split or "test"
    plain = not path.startswith((TFDS, HUB)) and _are_texts(path)
    found = lambda: itertools.islice(_texts(path, split, plain, codec), config.examples or None)
    language.check(name, found)
    return language.predicted(name, found, {"data": path, "split": config.split}, config.examples)


def _texts(path: str, split: str, plain: bool, codec: Codec) -> Iterator[Document | Unreadable]:
    """Files that are texts, or rows that have one, in tokens."""
    texts = language.each(SourceConfig(path)) if plain else _questions(rows(path, split), _book)
    for text in texts:
        if isinstance(text, Unreadable):
            yield text
            continue
        document = language.in_tokens(text, codec.vocabulary)
        enough = len(document.tokens) > 1
        yield document if enough else Unreadable(text.place, "there is no token to predict")


def _are_texts(path: str) -> bool:
    """Whether these files are texts; else they, or the folder, have rows."""
    paths = files.expand(path)
    if len(paths) == 1 and files.is_directory(paths[0]):
        return False
    return kinds.one_kind(path, paths, ROW_KINDS) == "text"


def _book(fields: dict[str, Any]) -> Iterator[sources.Document]:
    name = "book_text" if "book_text" in fields else "text"
    title = next((str(fields[key]) for key in ("short_book_title", "book_title", "title", "id") if key in fields), "")
    yield sources.Document("", _text(fields, name), title)
