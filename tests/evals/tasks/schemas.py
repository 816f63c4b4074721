"""Small data sets in the schemas of the published ones, made by us: what a file of each looks like."""

import csv
import json
from pathlib import Path

BOOK = "It was a dark night. The key lay under the oak.\n" * 20
PAPER = "We train a model on 400 hours of speech. It has three layers.\n" * 10


def write_jsonl(path: Path, rows: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def narrative_qa() -> list[dict]:
    """As on the hub: a row a question, the story in each."""
    document = {"id": "b1", "kind": "gutenberg", "url": "", "file_size": 1, "word_count": 1, "start": "", "end": "",
                "summary": {"text": "", "tokens": [], "url": "", "title": ""}, "text": BOOK}  # fmt: skip
    other = document | {"id": "b2", "text": "A short tale of a fox.\n"}
    asked = [(document, "Where was the key?", ["Under the oak", "Beneath an oak tree"]),
             (document, "What was the night like?", ["Dark", "It was dark"]),
             (other, "Who is it about?", ["A fox", "The fox"])]  # fmt: skip
    return [
        {"document": about, "question": {"text": question, "tokens": question.split()},
         "answers": [{"text": answer, "tokens": answer.split()} for answer in answers]}
        for about, question, answers in asked
    ]  # fmt: skip


def write_original_narrative_qa(folder: Path) -> str:
    """As the original repository: qaps.csv, and documents that its script fetched."""
    (folder / "tmp").mkdir(parents=True)
    (folder / "tmp" / "b1.content").write_text(BOOK)
    with open(folder / "qaps.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["document_id", "set", "question", "answer1", "answer2", "question_tokenized",
                       "answer1_tokenized", "answer2_tokenized"])  # fmt: skip
        rows.writerow(["b1", "test", "Where was the key?", "Under the oak", "Beneath, an oak", "", "", ""])
        rows.writerow(["b1", "train", "Not this one?", "no", "no", "", "", ""])
        rows.writerow(["b9", "test", "Where is its text?", "gone", "gone", "", "", ""])
    return str(folder)


def qasper() -> list[dict]:
    """SCROLLS: a row for each answer; those of one question share its id."""
    row = lambda id, question, output: {"id": id, "pid": f"{id}_0", "input": f"{question}\n\n{PAPER}", "output": output}
    return [row("q1", "How much speech?", "400 hours"), row("q1", "How much speech?", "Four hundred hours"),
            row("q2", "How many layers?", "Three")]  # fmt: skip


OPTIONS = ["Under the oak.", "In the (B) house.", "At sea.", "Nowhere."]


def quality() -> list[dict]:
    """SCROLLS: question, options and text in one input."""
    options = "\n".join(f" ({letter}) {option}" for letter, option in zip("ABCD", OPTIONS, strict=True))
    row = lambda id, question, output: {"id": id, "pid": f"{id}_0", "output": output,
                                        "input": f"{question}\n\n{options}\n\n\n{BOOK}"}  # fmt: skip
    return [row("x1", "Where was the key?", OPTIONS[0]), row("x2", "Where was the king?", OPTIONS[2])]


def original_quality() -> list[dict]:
    """QuALITY's own: an article and its questions; gold_label counts from 1."""
    ask = lambda id, question, gold: {"question": question, "options": OPTIONS, "gold_label": gold,
                                      "question_unique_id": id, "difficult": 0}  # fmt: skip
    questions = [ask("x1", "Where was the key?", 1), ask("x2", "Where was the king?", 3)]
    return [{"article_id": "1", "title": "Oak", "article": BOOK, "questions": questions}]


def xlsum() -> list[dict]:
    """XL-Sum's JSON lines."""
    return [{"id": "n1", "url": "", "title": "Key found", "summary": "A key was found.", "text": BOOK}]
