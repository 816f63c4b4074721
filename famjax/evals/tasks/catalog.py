"""All tasks by name. This table is complete (imports register nothing), except for seqio's own registry of tasks."""

import importlib
from collections.abc import Iterable
from typing import NamedTuple

from famjax.config import EvalConfig
from famjax.config.checks import one_of
from famjax.evals.tasks.base import Task
from famjax.infer.codec import Codec


class Entry(NamedTuple):
    """An entry of the table of tasks.

    Attributes:
      module, function: the task's factory in this folder, a function of (name, config, codec).
      summary: one line for the list of tasks.
      needs: data that `--data` must name; empty if none.
      blocks: whether the factory also takes the model's block_size.
    """

    module: str
    function: str
    summary: str
    needs: str = ""
    blocks: bool = False


TASKS = {
    "passkey": Entry("passkey", "task", "the paper's pass key at the start, at every offset of filler and block",
                     blocks=True),
    "mqar": Entry("labelled", "task", "many pairs, all of them asked for (MQAR, zoology), of models trained on it",
                  blocks=True),
    "parity": Entry("labelled", "task", "the parity after each bit, of models trained on it", blocks=True),
    "s3": Entry("labelled", "task", "the product of permutations of three after each of them, likewise", blocks=True),
    "s5": Entry("labelled", "task", "the product of permutations of five after each of them, likewise", blocks=True),
    "text": Entry("language", "task", "bits per byte and next-token accuracy of texts by position", "texts"),
    "passkey_depth": Entry("needles", "pass_key", "the pass key (paper) at any depth, exact match of its digits"),
    "passkey_newest": Entry("needles", "pass_key", "four pass keys, each replacing the last; the newest at any depth"),
    "niah_single": Entry("needles", "needles", "a needle in a haystack (RULER)"),
    "niah_multikey": Entry("needles", "needles", "one needle asked for among four (RULER)"),
    "niah_multivalue": Entry("needles", "needles", "four values of one key, all asked for (RULER)"),
    "niah_multiquery": Entry("needles", "needles", "four keys, all asked for (RULER)"),
    "variable_tracking": Entry("tracking", "variable_tracking", "a chain of five variables (RULER)"),
    "common_words": Entry("tracking", "common_words", "the ten most common words of a list (RULER)"),
    "frequent_words": Entry("tracking", "frequent_words", "the three most frequent words of a text (RULER)"),
    "babi": Entry("babi", "babi", "bAbI's facts hidden in a text (BABILong)", "files of bAbI"),
    "kv_retrieval": Entry("benchmarks", "kv_retrieval", "the value of a key in JSON (Lost in the Middle)", "its files"),
    "lambada": Entry("benchmarks", "lambada", "the last word of a passage, accuracy and perplexity", "LAMBADA"),
    "piqa": Entry("benchmarks", "piqa", "two ways to reach a goal, ranked", "PIQA"),
    "wikitext": Entry("benchmarks", "wikitext", "pages of Wikipedia, perplexity by word and byte", "WikiText"),
    "qmsum": Entry("benchmarks", "qmsum", "queries about meetings, ROUGE-L", "QMSum"),
    "narrative_qa": Entry("papers", "narrative_qa", "questions about books and scripts, ROUGE-L", "NarrativeQA"),
    "qasper": Entry("papers", "qasper", "questions about papers, ROUGE-L and F1", "SCROLLS' Qasper"),
    "quality": Entry("papers", "quality", "four answers to a question about a long text, ranked", "QuALITY"),
    "xlsum": Entry("papers", "xlsum", "a summary of a news text, ROUGE-L", "XL-Sum"),
    "pg19": Entry("papers", "texts", "books, next-token accuracy and bits per byte by position", "PG-19"),
    "isabelle": Entry("papers", "texts", "formal proofs, likewise", "theories of the AFP"),
    "recall": Entry("recall", "associative_recall", "pairs of word and number, one word asked for"),
    "copy": Entry("recall", "copy", "sixteen words, filler, and the words again"),
}  # fmt: skip


def check(names: Iterable[str], config: EvalConfig) -> None:
    """Raises `ConfigError` for an unknown task. seqio's tasks (see `is_seqios`) are checked when they are made."""
    for name in names:
        if not is_seqios(name, config):
            one_of("MIXTURE_OR_TASK_NAME", name, tuple(TASKS))


def is_seqios(name: str, config: EvalConfig) -> bool:
    """Returns whether a task is looked up in seqio: its name begins with `seqio:`, or it is not in `TASKS` and
    `config.modules` are given. Importing seqio takes seconds and gigabytes of packages."""
    return name.startswith("seqio:") or (name not in TASKS and bool(config.modules))


def make(name: str, config: EvalConfig, codec: Codec, block_size: int) -> Task:
    """Returns the task of a name for a model with this vocabulary and block size.

    Raises:
      ConfigError: the name is unknown, or the task's settings or data cannot be used.
    """
    check([name], config)
    if is_seqios(name, config):
        seqios: Task = importlib.import_module("famjax.evals.tasks.seqio_task").task(name, config, codec)
        return seqios
    entry = TASKS[name]
    module = importlib.import_module(f"famjax.evals.tasks.{entry.module}")
    more = {"block_size": block_size} if entry.blocks else {}
    task: Task = getattr(module, entry.function)(name, config, codec, **more)
    return task
