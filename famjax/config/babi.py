"""Settings of the training task `babi`: questions about facts hidden in books, as in BABILong."""

import dataclasses
from typing import ClassVar

from famjax.config.checks import ConfigError, at_least, check_types, probability
from famjax.config.curriculum import CurriculumConfig

STORIES = tuple(f"qa{number}" for number in range(1, 21))


@dataclasses.dataclass(frozen=True)
class BabiConfig(CurriculumConfig):
    """bAbI's training stories, with their facts spread over the text of books and the question at the end.

    Prompts and the form of the answers are those of the evaluation `babi` (docs/evaluation.md). Train on books other
    than those of the evaluation's `--filler`. Its stories differ already: they are those of the test split.

    Attributes:
      folder: folder of bAbI v1.2 with the files as published, for example `tasks_1-20_v1-2/en-10k`. The `_train.txt`
        files are read.
      stories: names of the files, `qa1` to `qa20`. Each document draws one of them with equal probability, whatever
        their sizes.
      books: text files or globs, the filler. Header and licence of Project Gutenberg's books are removed.
      chat: use the chat template next to the vocabulary, if there is one, as the evaluation does. A template in its
        own file next to DataConfig.vocabulary is not copied to MODEL_DIR; copy it before an evaluation.
      turns: maximum number of a story's questions in a document, in turn, each after its own facts and filler, as in a
        conversation; more give more answers for the same tokens. 1: as in the evaluation.
      instructed: whether a document begins with the instruction and the worked examples, as in the evaluation. Without
        them a row has room for more documents.
      everyone: whether an answer continues with the places of all other persons, sorted by name: more answers to learn
        from for the same tokens. For `qa1` alone.
      form_weight: loss weight of the answers' tokens that are not of the words asked for (the places), and of their
        ends, 0 to 1. Below 1 the gradient is mostly about the facts, and exact match counts these words alone.
      stages: see `CurriculumConfig`; the filler of a turn is the text of the books, without facts and prompt.
      open_at, newest_share, straddle_share, straddle_behind, text_weight, text_tokens: see `CurriculumConfig`.
    """

    # Documents end in their row, so no memory is carried to the next step.
    stream_share: ClassVar[float] = 0.0

    folder: str = ""
    stories: tuple[str, ...] = ("qa1",)
    books: tuple[str, ...] = ()
    chat: bool = True
    turns: int = 1
    instructed: bool = True
    everyone: bool = False
    form_weight: float = 1.0

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        self.check_curriculum()
        at_least("turns", self.turns, 1)
        probability("form_weight", self.form_weight)
        if not self.stories or len(set(self.stories)) < len(self.stories):
            raise ConfigError(f"stories {self.stories} must be distinct names of bAbI's files, such as ('qa1', 'qa2')")
        for name in self.stories:
            if name not in STORIES:
                raise ConfigError(f"stories {self.stories}: {name!r} is not one of {STORIES[0]} to {STORIES[-1]}")
        if self.everyone and self.stories != ("qa1",):
            raise ConfigError(f"BabiConfig.everyone needs stories ('qa1',), not {self.stories}; only there is it known")
        if not all(isinstance(path, str) and path for path in self.books):
            raise ConfigError(f"books {self.books} must be paths, in quotes")

    def check_files_named(self) -> None:
        """Raises `ConfigError` unless the settings name stories and books."""
        if not self.folder:
            raise ConfigError(
                "the task 'babi' needs a copy of bAbI (docs/evaluation.md: where to get it); set "
                "--gin.BabiConfig.folder=\"'tasks_1-20_v1-2/en-10k'\""
            )
        if not self.books:
            raise ConfigError("the task 'babi' has no books; set --gin.BabiConfig.books=\"('books/*.txt',)\"")
