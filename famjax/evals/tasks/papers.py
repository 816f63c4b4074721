"""The paper's long-context tasks (its Table 10), read from the published data sets.

NarrativeQA (Kočiský et al. 2018), Qasper and QuALITY in their SCROLLS versions (Shaham et al. 2022), XL-Sum (Hasan et
al. 2021), PG-19 (Rae et al. 2020), Isabelle. The paper does not print its prompts; the simple ones below are ours.
The document precedes its questions, so that it is prefilled once.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from famjax.config import EvalConfig, SourceConfig
from famjax.config.text import text_of
from famjax.data import files, kinds, sources
from famjax.evals.metrics import rouge_l, squad_exact_match, squad_f1
from famjax.evals.tasks import language
from famjax.evals.tasks.base import Task, Unreadable, check_readable
from famjax.evals.tasks.language import Document
from famjax.evals.tasks.questions import (
    BadRow,
    Encoder,
    Question,
    converted,
    field,
    list_field,
    name_of,
    task,
    text_field,
    texts_field,
    where,
)
from famjax.evals.tasks.rows import HUB, ROW_KINDS, TFDS, is_split, rows
from famjax.infer.codec import Codec

ASK = "\n\nQuestion: {question}\nAnswer:"
SUMMARIZE = "\n\nSummary:"
OPTIONS = re.compile(r"\s*\(A\) (.*?)\n \(B\) (.*?)\n \(C\) (.*?)\n \(D\) (.*?)\n\n\n?(.*)", re.DOTALL)
# Example values of --data, for error messages; docs/evaluation.md says where to get each data set.
WHERE = {
    "narrative_qa": "hub:deepmind/narrativeqa, its Parquet files, or the folder of the original repository",
    "qasper": "SCROLLS' qasper/validation.jsonl, or hub:tau/scrolls:qasper",
    "quality": "SCROLLS' quality/validation.jsonl, QuALITY's own dev file, or hub:tau/scrolls:quality",
    "xlsum": "english_test.jsonl of XL-Sum, or hub:csebuetnlp/xlsum:english",
    "pg19": "'pg19/test/*.txt', or tfds:pg19",
    "isabelle": "'afp/thys/*/*.thy'",
}


# --- questions about documents --------------------------------------------------------------------


def narrative_qa(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the task of questions about books and film scripts, about 30 each; ROUGE-L against two answers."""
    path, split = where(name, config, WHERE[name]), config.split or "test"
    original = files.exists(f"{path}/qaps.csv") if ":" not in path else False
    found = lambda: _original_narrative_qa(path, split) if original else converted(rows(path, split), _narrative_qa)
    metrics = {"rouge_l": rouge_l, "f1": squad_f1, "exact_match": squad_exact_match}
    return task(name, "generate", config, Encoder(codec).example, found, metrics, 64)


def _narrative_qa(fields: dict[str, Any]) -> Iterator[Question]:
    document, question = text_field(fields, "document", "id"), text_field(fields, "question", "text")
    answers = field(fields, "answers")
    # A list of structs, or (from TFDS and streams) a struct of lists.
    named = isinstance(answers, dict)
    texts = texts_field(fields, "answers", "text") if named else [
        text_field(answer, "text") for answer in list_field(fields, "answers")
    ]  # fmt: skip
    if not texts:
        raise BadRow("it has no answer")
    id = f"{document}/{question}"
    yield Question(id, document, text_field(fields, "document", "text"), ASK.format(question=question), tuple(texts))


def _original_narrative_qa(folder: str, split: str) -> Iterator[Question | Unreadable]:
    """Yields questions from `qaps.csv` and `tmp/ID.content` of the original repository; its script downloads the
    documents."""

    @functools.lru_cache(1)
    def story(path: str) -> str:
        if not files.exists(path):
            raise BadRow(f"there is no {path}; the repository's script downloads it")
        return text_of(files.read(path), path, "replace")

    def convert(fields: dict[str, Any]) -> Iterator[Question]:
        if not is_split(field(fields, "set"), split):
            return
        document, question = text_field(fields, "document_id"), text_field(fields, "question")
        answers = text_field(fields, "answer1"), text_field(fields, "answer2")
        text = story(f"{folder}/tmp/{document}.content")
        yield Question(f"{document}/{question}", document, text, ASK.format(question=question), answers)

    return converted(rows(f"{folder}/qaps.csv", split), convert)


def qasper(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the task of questions about papers; ROUGE-L as in TransformerFAM's paper, and F1, SCROLLS' metric."""
    path, split = where(name, config, WHERE[name]), config.split or "validation"
    found = lambda: _together(converted(rows(path, split), qasper_row))
    return task(name, "generate", config, Encoder(codec).example, found, {"rouge_l": rouge_l, "f1": squad_f1}, 64)


def qasper_row(fields: dict[str, Any]) -> Iterator[Question]:
    """Yields the question of a SCROLLS row: its input is question and document, its output one of the answers."""
    question, cut, article = text_field(fields, "input").partition("\n\n")
    if not cut:
        raise BadRow("its input is not a question, an empty line and a paper")
    prompt = ASK.format(question=question.strip())
    yield Question(text_field(fields, "id"), name_of(article), article.strip(), prompt, (text_field(fields, "output"),))


def _together(questions: Iterable[Question | Unreadable]) -> Iterator[Question | Unreadable]:
    """Merges consecutive rows with the same id into one question with several answers."""
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
    """Returns the task of questions about a long text with four options, ranked by probability."""
    path, split = where(name, config, WHERE[name]), config.split or "validation"
    return task(name, "choose", config, Encoder(codec).example, lambda: converted(rows(path, split), _quality))


def _quality(fields: dict[str, Any]) -> Iterator[Question]:
    if "questions" in fields:  # QuALITY's own files: an article and its questions
        article = text_field(fields, "article")
        every = list_field(fields, "questions")
        if not every:
            raise BadRow("it has no question")
        for i, asked in enumerate(every):
            options, gold = texts_field(asked, "options"), field(asked, "gold_label")
            if type(gold) is not int or gold not in range(1, len(options) + 1):
                raise BadRow(f"gold_label {gold!r} is not one of {len(options)} options")
            id = str(asked.get("question_unique_id", f"{name_of(article)}/{i}"))
            prompt = ASK.format(question=text_field(asked, "question").strip())
            yield Question(id, name_of(article), article, prompt, (), tuple(options), gold - 1)
        return
    question, cut, rest = text_field(fields, "input").partition("\n\n")
    parts = OPTIONS.fullmatch(rest) if cut else None
    if parts is None:
        raise BadRow("its input is not a question, options (A) to (D) and a text")
    *options, article = (part.strip() for part in parts.groups())
    output = text_field(fields, "output").strip()
    if output not in options:
        raise BadRow("its output is not one of its options")
    prompt = ASK.format(question=question.strip())
    id = text_field(fields, "id")
    yield Question(id, name_of(article), article, prompt, (), tuple(options), options.index(output))


def xlsum(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the task of one-sentence summaries of news texts; ROUGE-L."""
    path, split = where(name, config, WHERE[name]), config.split or "test"
    convert = lambda fields: [
        Question(text_field(fields, "id"), "", text_field(fields, "text"), SUMMARIZE, (text_field(fields, "summary"),))
    ]
    found = lambda: converted(rows(path, split), convert)
    return task(name, "generate", config, Encoder(codec).example, found, {"rouge_l": rouge_l}, 128)


# --- texts that are predicted ---------------------------------------------------------------------


def texts(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns language modelling on PG-19's books or Isabelle's proofs: accuracy and bits per byte by position."""
    path, split = where(name, config, WHERE[name]), config.split or "test"
    plain = not path.startswith((TFDS, HUB)) and _are_texts(path)
    found = lambda: itertools.islice(_texts(path, split, plain, codec), config.examples or None)
    check_readable(found(), f"document of {name}")
    return language.predicted(name, found, {"data": path, "split": config.split}, config.examples)


def _texts(path: str, split: str, plain: bool, codec: Codec) -> Iterator[Document | Unreadable]:
    """Yields tokenized documents from text files, or from rows with a text field."""
    texts = language.each(SourceConfig(path)) if plain else converted(rows(path, split), _book)
    for text in texts:
        yield text if isinstance(text, Unreadable) else language.in_tokens(text, codec.vocabulary)


def _are_texts(path: str) -> bool:
    """Returns whether the files are plain texts; if not, they (or the folder) contain rows."""
    paths = files.expand(path)
    if len(paths) == 1 and files.is_directory(paths[0]):
        return False
    return kinds.one_kind(path, paths, ROW_KINDS) == "text"


def _book(fields: dict[str, Any]) -> Iterator[sources.Document]:
    name = "book_text" if "book_text" in fields else "text"
    title = next((str(fields[key]) for key in ("short_book_title", "book_title", "title", "id") if key in fields), "")
    yield sources.Document("", text_field(fields, name), title)
