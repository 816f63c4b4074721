"""What a task is: examples in tokens, what is asked of the model, and how its answers are scored.

    document -> Example(context, prompt, ...) -> the model's Answer -> {metric: value}

An example has one of three kinds, by its task:

    generate   the model writes on after the prompt; the text is held against `targets`
    choose     the model ranks `choices` by their probability; `answer` is the right one's number
    score      the model predicts `scored`, token by token
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from famjax.config.checks import one_of

KINDS = ("generate", "choose", "score")
NOTHING = np.zeros(0, np.int32)
MOST_NATS = 709.0

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
      choice_sizes: bytes of each, or characters: what its log probability is divided by.
      scored: tokens that are predicted after the prompt.
      size: bytes that `scored` stands for.
      counts: what else it stands for, by name, such as words: for `Task.ratios`.
      about: what results are grouped by: "length" and "depth", "source" (a part of the data set), "needle" (index of
        the token at which the needle ends); anything else a number or a short text.
      needles: indices of the first and the last token of each needle that the answer takes, for its distance and the
        side of the model's reach on which it lies (`evals/reach.py`).
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
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needles: tuple[tuple[int, int], ...] = ()

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


# (prediction, example) to a number: a metric that needs more of an example than its targets.
Judge = Callable[[str, Example], float]


class Ratio(NamedTuple):
    """A metric of all that was scored: a function of its nats by example, by word or by byte.

    Attributes:
      per: a name of `Example.counts`; empty divides by the number of examples.
      of: from nats to the metric, rising.
    """

    per: str
    of: Callable[[float], float]


def perplexity(nats: float) -> float:
    """e to the nats, at most the largest float."""
    return math.exp(min(nats, MOST_NATS))


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
      name: as on the command line.
      kind: one of `KINDS`.
      examples: gives all of them, from the start, the same each time.
      metrics: of `generate`: by name, the first one is what a summary tells. The other kinds have their own
        (`evals/metrics.py`).
      judges: of `generate`: metrics that see the example; they come before `metrics`.
      shown: of `choose` and `score`: the metrics of `evals/metrics.py` that count, by the names that results give
        them; None shows all by their own.
      ratios: of `score`: metrics of all examples together.
      count: how many examples there are; 0 where that is not known beforehand.
      bad: what is known beforehand to be unreadable, to be reported before any work; `examples` gives it too.
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
    judges: Mapping[str, Judge] = dataclasses.field(default_factory=dict)
    shown: Mapping[str, str] | None = None
    ratios: Mapping[str, Ratio] = dataclasses.field(default_factory=dict)
    count: int = 0
    max_new_tokens: int = 32
    stops: tuple[str, ...] = ()
    corpus_metrics: tuple[CorpusMetric, ...] = ()
    pairs: Pairs | None = None
    by_position: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bad: tuple[Unreadable, ...] = ()

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        if self.kind == "generate" and not (self.metrics or self.judges or self.corpus_metrics):
            raise ValueError(f"the task {self.name} has no metric")

    def values(self, found: dict[str, float]) -> dict[str, float]:
        """Those of the metrics of a choice or a score that are shown, by their names in results."""
        return found if self.shown is None else {name: found[own] for name, own in self.shown.items()}
