"""Standard benchmarks, read from their published files.

LAMBADA (Paperno et al. 2016), PIQA (Bisk et al. 2020) and WikiText (Merity et al. 2016) by the definitions of
lm-evaluation-harness (`lambada_openai`, `piqa`, `wikitext` of version 0.4.13), QMSum (Zhong et al. 2021), and the
key-value retrieval of Lost in the Middle (Liu et al. 2023).
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError, EvalConfig
from famjax.config.text import BadText, text_of
from famjax.data import files
from famjax.evals.metrics import rouge_l, string_match_any
from famjax.evals.tasks.base import Example, Ratio, Task, Unreadable, perplexity
from famjax.evals.tasks.papers import ASK, qasper_row
from famjax.evals.tasks.questions import (
    BadRow,
    Encoder,
    Question,
    converted,
    encoded_pair,
    field,
    list_field,
    name_of,
    task,
    text_field,
    where,
)
from famjax.evals.tasks.rows import HUB, TFDS, Row, by_file, rows
from famjax.infer.chat import frame_of
from famjax.infer.codec import Codec

WHERE = {
    "lambada": "lambada_test.jsonl, or hub:EleutherAI/lambada_openai:default",
    "piqa": "valid.jsonl, with valid-labels.lst beside it",
    "wikitext": "wiki.test.tokens or wiki.test.raw",
    "qmsum": "test.jsonl of QMSum's data/ALL/jsonl",
    "kv_retrieval": "'kv-retrieval-*_keys.jsonl.gz'",
}


def _read_through(made: Task, found: Callable[[], Iterator[Question | Unreadable]], config: EvalConfig) -> Task:
    """Returns the task with `count` and `bad` set, after reading all of its local files."""
    if config.data_of(made.name).startswith((TFDS, HUB)):
        return made
    every = [isinstance(one, Question) or one for one in itertools.islice(found(), config.examples or None)]
    bad = tuple(one for one in every if isinstance(one, Unreadable))
    return dataclasses.replace(made, count=len(every) - len(bad), bad=bad)


# --- the last word --------------------------------------------------------------------------------


def lambada(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns LAMBADA, the last word of a passage: `acc` (of greedy decoding) and `perplexity` per word."""
    path, split = where(name, config, WHERE[name]), config.split or "test"

    def encode(question: Question) -> Example:
        before, scored = encoded_pair(codec, question.document, question.prompt)
        return Example(question.id, before, targets=question.targets, scored=scored)

    found = lambda: converted(rows(path, split), _lambada)
    scoring = _read_through(task(name, "score", config, encode, found), found, config)
    return dataclasses.replace(scoring, shown={"acc": "exact_match"}, ratios={"perplexity": Ratio("", perplexity)})


def _lambada(fields: dict[str, Any]) -> Iterator[Question]:
    before, _, word = text_field(fields, "text").rpartition(" ")
    if not before.strip() or not word:
        raise BadRow("its text has no last word after a space")
    yield Question("", "", before, f" {word}", (word,))


# --- two choices ----------------------------------------------------------------------------------


def piqa(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns PIQA, two ways to reach a goal, ranked by log probability (`acc`), also per character (`acc_norm`)."""
    path, split = where(name, config, WHERE[name]), config.split or "validation"

    def encode(question: Question) -> Example:
        pairs = [encoded_pair(codec, question.prompt, f" {option}") for option in question.options]
        sizes = tuple(map(len, question.options))
        return Example(
            question.id, pairs[0][0], choices=tuple(choice for _, choice in pairs), choice_sizes=sizes,
            targets=(question.options[question.answer],), answer=question.answer,
        )  # fmt: skip

    found = lambda: converted(_with_labels(path, split), _piqa)
    choosing = _read_through(task(name, "choose", config, encode, found), found, config)
    return dataclasses.replace(choosing, shown={"acc": "accuracy", "acc_norm": "accuracy_by_byte"})


def _piqa(fields: dict[str, Any]) -> Iterator[Question]:
    goal, options = text_field(fields, "goal"), (text_field(fields, "sol1"), text_field(fields, "sol2"))
    if "label" not in fields:
        raise BadRow("it has no label, and there is no file of labels next to it (valid-labels.lst of valid.jsonl)")
    if str(fields["label"]) not in ("0", "1"):
        raise BadRow(f"its label is {fields['label']!r}, neither 0 nor 1")
    yield Question("", "", "", f"Question: {goal}\nAnswer:", options=options, answer=int(fields["label"]))


def _with_labels(path: str, split: str) -> Iterator[Row | Unreadable]:
    """Yields the rows, each with its label from the file of labels beside its own file, if there is one. Raises
    `ConfigError` if the numbers of labels and rows differ."""
    if path.startswith((TFDS, HUB)):
        yield from rows(path, split)
        return
    for file, found in by_file(path, split):
        beside = f"{file.removesuffix('.gz').removesuffix('.jsonl')}-labels.lst"
        if not files.exists(beside):
            yield from found
            continue
        every, labels = list(found), text_of(files.read(beside), beside).split()
        if len(every) != len(labels):
            raise ConfigError(f"{beside} has {len(labels)} labels, {file} {len(every)} rows; they do not belong "
                              f"together")  # fmt: skip
        for row, label in zip(every, labels, strict=True):
            yield row if isinstance(row, Unreadable) else row._replace(fields={"label": label} | row.fields)


# --- pages of Wikipedia ---------------------------------------------------------------------------

# The detokenization of lm-evaluation-harness, in its order: first texts, then patterns, then texts.
_AS_TEXT = (("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
            *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"))  # fmt: skip
_INSIDE = tuple(
    (re.compile(rf"{left}\s*([^{no}]*?)\s*{right}"), rf"{shown[0]}\1{shown[1]}")
    for left, no, right, shown in (
        (r"\(", r"\)", r"\)", "()"), (r"\[", r"\]", r"\]", "[]"), ("{", "}", "}", "{}"), ('"', '"', '"', '""'),
        ("'", "'", "'", "''"),
    )
)  # fmt: skip
_AT_LAST = (("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"),
            (" N ", " 1 "), (" 's", "'s"))  # fmt: skip


def wikitext(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns WikiText, language modelling of whole pages: perplexity per word and per byte, bits per byte.

    Words and bytes are counted on the page as published, while the scored text is `detokenized`. A page is preceded
    by the token that begins a text (`Codec.prefix`).
    """
    path = where(name, config, WHERE[name])

    def encode(question: Question) -> Example:
        prompt, scored = np.array([codec.prefix], np.int32), codec.encode(question.document)
        return Example(question.id, prompt, scored=scored, counts=question.counts, about=question.about)

    found = lambda: _pages(path)
    scoring = _read_through(task(name, "score", config, encode, found), found, config)
    bits = Ratio("bytes", lambda nats: nats / math.log(2))
    ratios = {
        "word_perplexity": Ratio("words", perplexity), "byte_perplexity": Ratio("bytes", perplexity),
        "bits_per_byte": bits,
    }  # fmt: skip
    return dataclasses.replace(scoring, shown={}, ratios=ratios)


def _pages(path: str) -> Iterator[Question | Unreadable]:
    for file in files.expand(path):
        try:
            found = pages(text_of(files.read_plain(file), file).replace("\r\n", "\n"))
        except BadText as error:
            yield Unreadable(error.place, error.reason)
            continue
        if not found:
            yield Unreadable(file, "it has no page: no line is a title, ' = Title = '")
        for page in found:
            counts = {"words": float(len(re.split(r"\s+", page))), "bytes": float(len(page.encode()))}
            title = next(line.strip(" =") for line in page.splitlines() if line.strip())
            yield Question("", "", detokenized(page), "", counts=counts, about={"name": title})


def pages(text: str) -> list[str]:
    """Returns the pages of a WikiText file. A page begins with its title, ` = Title = ` (` = = Section = = ` is not
    one).

    This is the rule of `wikitext_document_level`, which lm-evaluation-harness reads: the line break before the next
    title belongs to neither page.
    """
    lines = text.split("\n")
    joined = (line.replace("= = =", "===").replace("= =", "==").strip() for line in lines)
    titles = [i for i, line in enumerate(joined) if line.startswith("= ") and line.endswith(" =")]
    if titles and any(line.strip() for line in lines[: titles[0]]):  # the rest of a page whose title is missing
        titles.insert(0, 0)
    return ["\n".join(lines[start:end]) for start, end in itertools.pairwise([*titles, len(lines)])]


def detokenized(page: str) -> str:
    """Returns a page as running text, without the spaces that WikiText's tokenizer inserted."""
    for mark, text in _AS_TEXT:
        page = page.replace(mark, text)
    for pattern, shown in _INSIDE:
        page = pattern.sub(shown, page)
    for mark, text in _AT_LAST:
        page = page.replace(mark, text)
    return page


# --- meetings -------------------------------------------------------------------------------------


def qmsum(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns QMSum, query-based summaries of meeting transcripts; ROUGE-L. A transcript is prefilled once."""
    path, split = where(name, config, WHERE[name]), config.split or "test"
    found = lambda: converted(rows(path, split), _qmsum)
    asking = task(name, "generate", config, Encoder(codec).example, found, {"rouge_l": rouge_l}, 256)
    return _read_through(asking, found, config)


def _qmsum(fields: dict[str, Any]) -> Iterator[Question]:
    if "input" in fields:
        yield from qasper_row(fields)
        return
    turns = list_field(fields, "meeting_transcripts")
    said = [(text_field(turn, "speaker"), field(turn, "content")) for turn in turns]
    if not all(isinstance(content, str) for _, content in said):
        raise BadRow("the content of a turn of its meeting is not a text")
    transcript = "\n".join(f"{speaker}: {content}" for speaker, content in said)
    if not transcript:
        raise BadRow("its meeting has no transcript")
    queries = {kind: list_field(fields, f"{kind}_query_list") for kind in ("general", "specific")}
    if not any(queries.values()):
        raise BadRow("it has no query")
    group = name_of(transcript)
    for kind, every in queries.items():
        for asked in every:
            query, answer = text_field(asked, "query").strip(), text_field(asked, "answer").strip()
            yield Question("", group, transcript, ASK.format(question=query), (answer,), about={"source": kind})


# --- keys and values ------------------------------------------------------------------------------

KV_HEAD = "Find the value that belongs to the key asked for in this JSON object.\n\nJSON data:\n"
KV_ASK = '\n\nKey: "{key}"\nCorresponding value:'
KV_NEW_TOKENS = 100  # as published


def kv_retrieval(name: str, config: EvalConfig, codec: Codec) -> Task:
    """Returns the task to retrieve the value of one key among many: `accuracy`, a case-insensitive substring match.

    Rows cycle through `config.depths`: the queried record is moved to that relative position, and the others keep their
    order. `--depths 0` places it first in every row. `config.examples` limits the rows of each file.
    """
    path, frame = where(name, config, WHERE[name]), frame_of(codec, config.chat)
    found = lambda: (
        question for _, found in by_file(path, "test")
        for question in itertools.islice(_kv_questions(found, config.depths), config.examples or None)
    )  # fmt: skip
    every, encode = dataclasses.replace(config, examples=0), Encoder(codec, frame).example
    asking = task(name, "generate", every, encode, found, {"accuracy": string_match_any}, KV_NEW_TOKENS)
    asking = _read_through(asking, found, every)
    settings = {**asking.settings, "depths": list(config.depths), "chat": frame.chat}
    return dataclasses.replace(asking, stops=(), settings=settings)


def _kv_questions(found: Iterable[Row | Unreadable], depths: Sequence[float]) -> Iterator[Question | Unreadable]:
    turns = itertools.cycle(depths)
    convert: Callable[[dict[str, Any]], Iterator[Question]] = lambda fields: _kv(fields, next(turns))
    return converted(found, convert)


def _kv(fields: dict[str, Any], depth: float) -> Iterator[Question]:
    records, key, value = field(fields, "ordered_kv_records"), text_field(fields, "key"), text_field(fields, "value")
    pair = lambda one: isinstance(one, list) and [type(text) for text in one] == [str, str]
    if not isinstance(records, list) or not all(map(pair, records)):
        raise BadRow("ordered_kv_records is not a list of pairs of texts")
    if len({record[0] for record in records}) < len(records):
        raise BadRow("ordered_kv_records has a key twice")
    if [key, value] not in records:
        raise BadRow("its key and value are not a record of ordered_kv_records")
    others = [record for record in records if record[0] != key]
    place = round(depth * len(others))
    lines = [f'"{one}": "{other}"' for one, other in [*others[:place], [key, value], *others[place:]]]
    document = KV_HEAD + "{" + ",\n ".join(lines) + "}"
    start = len(KV_HEAD) + 1 + sum(len(line) + len(",\n ") for line in lines[:place])
    about = {"source": f"{len(records)} keys", "keys": len(records), "position": place, "depth": depth}
    needle = start, start + len(lines[place])
    yield Question("", "", document, KV_ASK.format(key=key), (value,), about=about, needle=needle)
