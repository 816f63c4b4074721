"""Rows of text beside those of a task that generates its documents, so that a training keeps what the model could do.

The first rows of a batch are the task's: pass keys, or bAbI's stories. The last rows are `DataConfig.sources`, streamed
or packed, as the task `text` lays them out.
"""

import dataclasses
from typing import Any

import numpy as np

from famjax.config import ConfigError, TrainConfig
from famjax.config.curriculum import CurriculumConfig
from famjax.data.batch import Batch, Progress, Task
from famjax.data.rows import Row
from famjax.data.text_task import TextTask, make_text_task

# Entry of the progress that holds the position in the text.
_TEXT = "text"


@dataclasses.dataclass(frozen=True)
class JoinedTask:
    """Batches with a generated task's rows first, then rows of text.

    A batch has the W targets per row of the generated task (`questions`); in a row of text they are W random ones, each
    with this loss weight.
    """

    questions: Task
    text: TextTask
    weight: float
    seed: int
    observes = True

    @property
    def rows(self) -> range:
        """All rows: every process produces the whole batch, as those of generated tasks do."""
        return range(len(self.questions.rows) + len(self.text.rows))

    def start(self) -> Progress:
        """Returns the progress before the first step."""
        return self.questions.start() | {_TEXT: self.text.start()}

    def batch(self, step: int, progress: Progress) -> tuple[Batch, Progress]:
        """See `Task`. Raises `ConfigError` if the progress belongs to other data."""
        if _TEXT not in progress:
            raise ConfigError("the training to resume had no rows of text; set DataConfig.text_share to 0, or start in "
                              "an empty MODEL_DIR from its weights")  # fmt: skip
        first, after = self.questions.batch(step, progress)
        read, text = self.text.read(step, progress[_TEXT])
        rng = np.random.default_rng([self.seed, 4, step])
        second = [_some_targets(row, rng, first.targets.shape[1], self.weight) for row in read]
        kept = None
        if first.kept is not None:
            kept = np.concatenate([first.kept, np.full(len(read), first.starts.shape[1], np.int32)])
        fields: list[Any] = [np.stack(field) for field in zip(*second, strict=True)]
        both = [np.concatenate(pair) for pair in zip(first[:-1], fields, strict=True)]
        return Batch(*both)._replace(kept=kept), after | {_TEXT: text}

    def observe(self, progress: Progress, batch: Batch, correct: np.ndarray) -> Progress:
        """See `Task`: the generated task's progress depends on its own predictions alone."""
        own = len(self.questions.rows)
        first = Batch(*(None if field is None else field[:own] for field in batch))
        return self.questions.observe(progress, first, correct[:own])

    def report(self, progress: Progress) -> dict[str, float]:
        """Returns the values of the generated task, and the epochs of the text."""
        return self.questions.report(progress) | self.text.report(progress[_TEXT])


def join(config: TrainConfig, questions: Task) -> Task:
    """Returns `questions` with the configuration's rows of text; unchanged if it has none. Raises `ConfigError` if the
    text cannot be read, or does not fit the vocabulary."""
    if not config.text_rows:
        return questions
    assert isinstance(config.generated, CurriculumConfig)  # see `TrainConfig.validate`
    text = of_text(config)
    rows = make_text_task(text, range(text.batch_size))
    return JoinedTask(questions, rows, config.generated.text_weight, config.seed)


def of_text(config: TrainConfig) -> TrainConfig:
    """Returns the settings of the rows of text alone, as a training of the task `text`."""
    data = dataclasses.replace(config.data, text_share=0.0)
    return dataclasses.replace(config, task="text", batch_size=config.text_rows, data=data)


def _some_targets(row: Row, rng: np.random.Generator, number: int, weight: float) -> tuple[np.ndarray, ...]:
    """Returns the fields of `Batch` for a row of text with at most `number` of its targets, without `kept`."""
    all_of_them = np.flatnonzero(row.weights > 0)
    chosen = np.sort(rng.choice(all_of_them, min(number, len(all_of_them)), replace=False))
    positions, weights = np.zeros(number, np.int32), np.zeros(number, np.float32)
    positions[: len(chosen)] = chosen
    weights[: len(chosen)] = weight * row.weights[chosen]
    return row.tokens, row.count, row.starts, positions, row.targets[positions], weights
