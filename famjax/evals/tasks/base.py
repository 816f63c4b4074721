"""What a task is: examples in tokens, what is asked of the model, and how its answers are scored.

    document -> Example(context, prompt, ...) -> the model's Answer -> {metric: value}

An example has one of three kinds, by its task:

    generate   the model writes on after the prompt; the text is held against `targets`
    choose     the model ranks `choices` by their probability; `answer` is the right one's number
    score      the model predicts `scored`, token by token
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from famjax.config.checks import one_of

KINDS = ("generate", "choose", "score")
NOTHING = np.zeros(0, np.int32)

# (prediction, targets) to a number; of several targets the best one counts, unless the metric says otherwise.
TextMetric = Callable[[str, Sequence[str]], float]
# (targets of all examples, answers) to numbers by name: what seqio calls a metric_fn.
CorpusMetric = Callable[[list[Any], list[Any]], Mapping[str, Any]]
# Answers by id to (id, target, answer), as corpus metrics want them.
Pairs = Callable[[Mapping[str, Any]], Iterable[tuple[str, Any, Any]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One question to a model.

    Attributes:
      id: unlike all others of the task, and the same in every run.
      prompt: int32, read last.
      context: int32, read before; examples that follow each other with the same `group` and equal contexts
        share it, and it is read once.
      group: the document that it is about: the unit of chance for intervals. Empty: the example itself.
      targets: reference answers.
      choices: tokens of each answer to choose from; `answer` is the right one.
      choice_sizes: bytes of each.
      scored: tokens that are predicted after the prompt.
      size: bytes that `scored` stands for.
      about: what results are told by: "length" and "depth", "needle" (index of the token at which the needle
        ends); anything else a number or a short text.
    """

    id: str
    prompt: np.ndarray
    context: np.ndarray = dataclasses.field(default_factory=lambda: NOTHING)
    group: str = ""
    targets: tuple[str, ...] = ()
    choices: tuple[np.ndarray, ...] = ()
    choice_sizes: tuple[int, ...] = ()
    answer: int = 0
    scored: np.ndarray = dataclasses.field(default_factory=lambda: NOTHING)
    size: float = 0.0
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The unit of chance."""
        return self.group or self.id

    @property
    def tokens(self) -> int:
        """Tokens before the answer."""
        return len(self.context) + len(self.prompt)


class Unreadable(NamedTuple):
    """In an example's place: one that could not be read, where it is and why. It is counted and told."""

    place: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
      name: as on the command line.
      kind: one of `KINDS`.
      examples: gives all of them, from the start, the same each time.
      metrics: of `generate`: by name, the first one is what a summary tells. The other kinds have their own
        (`evals/metrics.py`).
      count: how many examples there are; 0 where that is not known beforehand.
      max_new_tokens: made for an answer at most.
      stops: texts that end an answer.
      corpus_metrics: of answers all together; they get what `pairs` makes of texts that were written, or of the
        natural-log probabilities of what was scored.
      by_position: of `score`: results are told by the position in the document.
      settings: what else made it what it is; goes into results and the key of its answers.
    """

    name: str
    kind: str
    examples: Callable[[], Iterable[Example | Unreadable]]
    metrics: Mapping[str, TextMetric] = dataclasses.field(default_factory=dict)
    count: int = 0
    max_new_tokens: int = 32
    stops: tuple[str, ...] = ()
    corpus_metrics: tuple[CorpusMetric, ...] = ()
    pairs: Pairs | None = None
    by_position: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        if self.kind == "generate" and not self.metrics and not self.corpus_metrics:
            raise ValueError(f"the task {self.name} has no metric")
