"""All tasks by name. This table is complete (imports register nothing), except for seqio's own registry of tasks."""

import importlib
from collections.abc import Iterable
from typing import NamedTuple

from famjax.config import EvalConfig
from famjax.config.checks import one_of
from famjax.evals.tasks.base import Task
from famjax.evals.tasks.rows import has_splits
from famjax.infer.codec import Codec

# Settings that a task reads: those of generated tasks, with filler, with a needle in it; of data sets; of answers.
MADE = ("lengths", "examples")
FILLED = (*MADE, "filler")
HIDDEN = (*FILLED, "depths")
READ = ("data", "examples")
SPLIT = (*READ, "split")
WRITES = ("max_new_tokens",)
SEQIO = ("modules", "split", "examples", *WRITES)


class Entry(NamedTuple):
    """An entry of the table of tasks.

    Attributes:
      module, function: the task's factory in this folder, a function of (name, config, codec).
      summary: one line for the list of tasks.
      reads: fields of `EvalConfig` that change its examples or answers, of those that not every task reads.
      needs: data that `--data` must name; empty if none.
      blocks: whether the factory also takes the model's block_size.
    """

    module: str
    function: str
    summary: str
    reads: tuple[str, ...]
    needs: str = ""
    blocks: bool = False


TASKS = {
    "passkey": Entry("passkey", "task", "the paper's pass key at the start, filler at every offset in a block",
                     ("filler_blocks", "keys", "alignments", "key_digits"), blocks=True),
    "mqar": Entry("labelled", "task", "key-value pairs, then keys as questions (MQAR); with a tokenizer, in its words",
                  MADE, blocks=True),
    "parity": Entry("labelled", "task", "the parity after each bit; for models trained on it", MADE, blocks=True),
    "s3": Entry("labelled", "task", "the product of permutations of three, after each; for models trained on it",
                MADE, blocks=True),
    "s5": Entry("labelled", "task", "the product of permutations of five, after each; for models trained on it",
                MADE, blocks=True),
    "text": Entry("language", "task", "bits per byte and next-token accuracy of texts by position",
                  ("sources", "examples"), "texts"),
    "passkey_depth": Entry("needles", "pass_key", "the pass key (paper) at any depth, exact match of its digits",
                           (*HIDDEN, "key_digits")),
    "passkey_newest": Entry("needles", "pass_key", "four pass keys, each replacing the last; the newest at any depth",
                            (*HIDDEN, "key_digits")),
    "niah_single": Entry("needles", "needles", "a needle in a haystack (RULER)", HIDDEN + WRITES),
    "niah_multikey": Entry("needles", "needles", "the value of one of four keys (RULER)", HIDDEN + WRITES),
    "niah_multivalue": Entry("needles", "needles", "all four values of one key (RULER)", HIDDEN + WRITES),
    "niah_multiquery": Entry("needles", "needles", "the values of all four keys (RULER)", HIDDEN + WRITES),
    "variable_tracking": Entry("tracking", "variable_tracking", "a chain of five variables (RULER)", FILLED + WRITES),
    "common_words": Entry("tracking", "common_words", "the ten most common words of a list (RULER)", MADE + WRITES),
    "frequent_words": Entry("tracking", "frequent_words", "the three most frequent words of a text (RULER)",
                            MADE + WRITES),
    "babi": Entry("babi", "babi", "bAbI's facts hidden in a text (BABILong)",
                  (*FILLED, *WRITES, "data", "chat"), "files of bAbI"),
    "kv_retrieval": Entry("benchmarks", "kv_retrieval", "the value of a key in JSON (Lost in the Middle)",
                          (*READ, *WRITES, "depths", "chat"), "its files"),
    "lambada": Entry("benchmarks", "lambada", "the last word of a passage, accuracy and perplexity", SPLIT, "LAMBADA"),
    "piqa": Entry("benchmarks", "piqa", "two ways to reach a goal, ranked", SPLIT, "PIQA"),
    "wikitext": Entry("benchmarks", "wikitext", "pages of Wikipedia, perplexity by word and byte", READ, "WikiText"),
    "qmsum": Entry("benchmarks", "qmsum", "queries about meetings, ROUGE-L", SPLIT + WRITES, "QMSum"),
    "narrative_qa": Entry("papers", "narrative_qa", "questions about books and scripts, ROUGE-L",
                          SPLIT + WRITES, "NarrativeQA"),
    "qasper": Entry("papers", "qasper", "questions about papers, ROUGE-L and F1", SPLIT + WRITES, "SCROLLS' Qasper"),
    "quality": Entry("papers", "quality", "four answers to a question about a long text, ranked", SPLIT, "QuALITY"),
    "xlsum": Entry("papers", "xlsum", "a summary of a news text, ROUGE-L", SPLIT + WRITES, "XL-Sum"),
    "pg19": Entry("papers", "texts", "books, next-token accuracy and bits per byte by position", SPLIT, "PG-19"),
    "isabelle": Entry("papers", "texts", "formal proofs, next-token accuracy and bits per byte by position",
                      SPLIT, "theories of the AFP"),
    "recall": Entry("recall", "associative_recall", "the number of one word, in a list of words and numbers",
                    (*MADE, "depths")),
    "copy": Entry("recall", "copy", "sixteen words, filler, and the words again", FILLED),
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


def read_by(name: str, config: EvalConfig) -> tuple[str, ...]:
    """Returns the settings that a task reads (`Entry.reads`); of data that is a file, none reads `split`."""
    if is_seqios(name, config):
        return SEQIO
    reads, path = TASKS[name].reads, config.data_of(name)
    return tuple(one for one in reads if one != "split" or not path or has_splits(path))


def make(name: str, config: EvalConfig, codec: Codec, block_size: int) -> Task:
    """Returns the task of a name for a model with this vocabulary and block size. Raises `ConfigError` if the name is
    unknown, or the task's settings or data cannot be used."""
    check([name], config)
    if is_seqios(name, config):
        seqios: Task = importlib.import_module("famjax.evals.tasks.seqio_task").task(name, config, codec)
        return seqios
    entry = TASKS[name]
    module = importlib.import_module(f"famjax.evals.tasks.{entry.module}")
    more = {"block_size": block_size} if entry.blocks else {}
    task: Task = getattr(module, entry.function)(name, config, codec, **more)
    return task
