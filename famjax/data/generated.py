"""Training tasks that generate their documents, from a configuration."""

from famjax.config import TrainConfig
from famjax.data.babi_task import make_babi_task, notes
from famjax.data.batch import Task
from famjax.data.documents import labelled_documents
from famjax.data.labelled import LabelledTask
from famjax.data.passkey import PassKeyTask
from famjax.data.passkey_text import Writer
from famjax.data.text_task import vocabulary_and_files


def make_generated_task(config: TrainConfig) -> Task:
    """Returns the task `babi` or a task of labelled documents, if `config.task` names it, else the task `passkey`.

    Prints what does not fit into rows and is left out.

    Raises:
      ConfigError: the documents do not fit the model's vocabulary or the row, or their files cannot be read.
    """
    if config.task == "babi":
        stories = make_babi_task(config)
        for note in notes(stories):
            print(note)
        return stories
    sizes = (
        config.sequence_length, config.model.memory.block_size, config.batch_size, config.model.vocab_size, config.seed,
    )  # fmt: skip
    documents = labelled_documents(config.task, config.mqar, config.tracking)
    if documents is not None:
        return LabelledTask(documents, *sizes)
    task = PassKeyTask(config.passkey, *sizes, vocabulary_and_files(config)[0], config.data.bos)
    if note := task.curriculum.left_out(config.sequence_length):
        print(note)
    return task


def check_generated_task(config: TrainConfig) -> None:
    """Raises `ConfigError` if the model's vocabulary does not have the task's tokens, or the task's files cannot be
    read. Does not import jax."""
    if config.task == "babi":
        make_babi_task(config)
    elif labelled_documents(config.task, config.mqar, config.tracking) is not None:
        make_generated_task(config)
    else:
        Writer(vocabulary_and_files(config)[0]).check(config.model.vocab_size)
