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


def pg19() -> list[dict]:
    """TFDS: a row a book."""
    return [{"short_book_title": "Oak", "publication_date": 1900, "url": "", "text": BOOK}]


def lambada() -> list[dict]:
    """The hub's JSON lines."""
    return [{"text": "The key lay under the oak"}, {"text": "A short tale of a fox"}]


def piqa() -> list[dict]:
    """The rows with their labels, as the hub has them."""
    row = {"goal": "How do I open the door?", "sol1": "Turn the key.", "sol2": "Paint the oak."}
    return [row | {"label": 0}, row | {"goal": "How do I close it?", "label": 1}]


def qmsum() -> list[dict]:
    """QMSum's own: a meeting and its queries."""
    turns = [{"speaker": "A", "content": "Where is the key?"}, {"speaker": "B", "content": "Under the oak."}]
    said = {"query": "What did B say?", "answer": "The key is under the oak.", "relevant_text_span": [["0", "1"]]}
    asked = {"query": "Summarize the meeting.", "answer": "B knew where the key is."}
    return [{"topic_list": [], "meeting_transcripts": turns, "specific_query_list": [said],
             "general_query_list": [asked]}]  # fmt: skip


def kv_retrieval() -> list[dict]:
    """Lost in the Middle's: all records in their order, and the one asked for."""
    records = [["a-1", "b-1"], ["a-2", "b-2"], ["a-3", "b-3"]]
    return [{"ordered_kv_records": records, "key": key, "value": value} for key, value in records[:2]]


# The rows of every data set of rows by task, in each of its schemas.
ROWS = {
    "narrative_qa": (narrative_qa,), "qasper": (qasper,), "quality": (quality, original_quality), "xlsum": (xlsum,),
    "pg19": (pg19,), "isabelle": (pg19,), "lambada": (lambada,), "piqa": (piqa,), "qmsum": (qmsum, qasper),
    "kv_retrieval": (kv_retrieval,),
}  # fmt: skip
# The files of the others.
WIKITEXT = "\n = The Fox = \n \n The fox , a quick @-@ brown animal . \n \n = The Oak = \n \n It had a key . \n"
BABI = "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n"
