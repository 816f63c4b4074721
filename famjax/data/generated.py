"""Training tasks that generate their documents, from a configuration."""

import dataclasses

from famjax.config import TrainConfig
from famjax.data import joined
from famjax.data.babi_task import make_babi_task, notes
from famjax.data.batch import Task
from famjax.data.documents import LABELLED
from famjax.data.labelled import LabelledTask
from famjax.data.passkey import PassKeyTask
from famjax.data.passkey_text import Writer
from famjax.data.text_task import check_text_task, documents_of, vocabulary_and_files


def make_generated_task(config: TrainConfig) -> Task:
    """Returns the task `babi` or a task of labelled documents, if `config.task` names it, else the task `passkey`, with
    the configuration's rows of text beside it.

    Prints what does not fit into rows and is left out.

    Raises:
      ConfigError: the documents do not fit the model's vocabulary or the row, or their files cannot be read.
    """
    own = dataclasses.replace(config, batch_size=config.batch_size - config.text_rows)
    return joined.join(config, _questions(own))


def _questions(config: TrainConfig) -> Task:
    """Returns the task without rows of text."""
    if config.task == "babi":
        stories = make_babi_task(config)
        for note in notes(stories):
            print(note)
        return stories
    sizes = (
        config.sequence_length, config.model.memory.block_size, config.batch_size, config.model.vocab_size, config.seed,
    )  # fmt: skip
    documents = documents_of(config)
    if documents is not None:
        return LabelledTask(documents, *sizes)
    task = PassKeyTask(config.passkey, *sizes, vocabulary_and_files(config)[0], config.data.bos)
    if note := task.curriculum.left_out(config.sequence_length):
        print(note)
    return task


def check_generated_task(config: TrainConfig) -> None:
    """Raises `ConfigError` if the model's vocabulary does not have the task's tokens, or the files of the task or its
    rows of text cannot be read. Does not import jax."""
    if config.text_rows:
        check_text_task(joined.of_text(config))
    if config.task == "babi":
        make_babi_task(config)
    elif config.task in LABELLED:
        make_generated_task(config)
    else:
        Writer(vocabulary_and_files(config)[0]).check(config.model.vocab_size)
