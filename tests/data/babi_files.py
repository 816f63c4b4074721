"""A small copy of bAbI and a book, and training tasks on them."""

from pathlib import Path

import numpy as np

from famjax.config import DataConfig, TrainConfig
from famjax.config.babi import BabiConfig
from famjax.data.babi_task import BabiTask, make_babi_task
from famjax.data.show import rows_of
from tests import tiny
from tests.infer.test_chat import CHATML
from tests.pretrained import tokenizers_of_ours

BLOCK = 64
STORIES = {
    "qa1": "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n"
    "4 Daniel went back to the hallway.\n5 Where is Daniel? \thallway\t4\n",
    "qa2": "1 Mary got the milk.\n2 Mary went to the garden.\n3 Where is the milk? \tgarden\t1 2\n",
    "qa3": "1 Mary got the milk.\n2 Mary went to the garden.\n3 Mary went to the office.\n"
    "4 Where was the milk before the office? \tgarden\t1 2 3\n",
    "qa4": "1 The office is east of the garden.\n2 What is the garden west of?\toffice\t1\n",
    "qa5": "1 Fred gave the milk to Bill.\n2 Who did Fred give the milk to?\tBill\t1\n",
}
BOOK = " ".join(f"Sentence {number} is about other things than the ones asked for." for number in range(300))


def write(folder: Path) -> Path:
    """Writes a copy of bAbI with a training and a test split, and a book; returns the folder."""
    for name, text in STORIES.items():
        (folder / f"{name}_of-some-kind_train.txt").write_text(text * 3)
        (folder / f"{name}_of-some-kind_test.txt").write_text(text)
    (folder / "book.txt").write_text(BOOK)
    return folder


def config_of(at: Path, length: int = 40 * BLOCK, seed: int = 0, data: DataConfig | None = None, **changes):
    settings = {"folder": str(at), "stories": ("qa1", "qa2"), "books": (str(at / "book.txt"),)}
    task = BabiConfig(**(settings | {"stages": (1, 4), "text_tokens": 8} | changes))
    model = tiny.config(vocab_size=400, block_size=BLOCK)
    return TrainConfig(
        model_dir=str(at / "m"), model=model, task="babi", babi=task, sequence_length=length, batch_size=3,
        seed=seed, data=data or DataConfig(),
    )  # fmt: skip


def data_of(folder: Path, kind: str) -> DataConfig:
    """Returns the settings of a vocabulary of ours; `chat` is byte-level, with a chat template."""
    if kind == "bytes":
        return DataConfig()
    place = tokenizers_of_ours.write(folder / "tokenizer", "byte-level" if kind == "chat" else kind)
    if kind == "chat":
        (place / "chat_template.jinja").write_text(CHATML)
    return DataConfig(vocabulary=str(place))


def task_of(folder: Path, **changes) -> BabiTask:
    return make_babi_task(config_of(folder, **changes))


def documents(task: BabiTask, step: int, open_stages: int) -> list[str]:
    """Returns the documents of a batch as text."""
    batch, _ = task.batch(step, task.start() | {"open_stages": open_stages})
    found = []
    for row in rows_of(batch):
        edges = [*np.flatnonzero(row.begins), len(row.tokens)]
        for begin, end in zip(edges, edges[1:], strict=False):
            found.append(task.vocabulary.decode(row.tokens[begin:end][row.real[begin:end]]))
    return found
