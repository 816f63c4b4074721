"""The types of tasks: tokenized examples, what the model does with them, and how its answers are scored.

    document -> Example(context, prompt, ...) -> the model's Answer -> {metric: value}

A task has one of four kinds:

    generate   the model continues the prompt; the generated text is compared with `targets`
    choose     the model ranks `choices` by their probability; `answer` is the index of the correct one
    score      the log probabilities of the tokens `scored` are computed (teacher forcing)
    label      the model predicts `labels`, which need not be the next tokens, at positions of the prompt
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from famjax.config.checks import ConfigError, one_of

KINDS = ("generate", "choose", "score", "label")
NOTHING = np.zeros(0, np.int32)
# exp overflows float64 slightly above this.
MOST_NATS = 709.0

# (prediction, targets) to a number; the best of several targets counts, unless the metric says otherwise.
TextMetric = Callable[[str, Sequence[str]], float]
# (targets of all examples, answers) to numbers by name: seqio's metric_fn.
CorpusMetric = Callable[[list[Any], list[Any]], Mapping[str, Any]]
# Answers by id to (id, target, answer), the input of corpus metrics.
Pairs = Callable[[Mapping[str, Any]], Iterable[tuple[str, Any, Any]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One question to a model.

    Attributes:
      id: unique within the task, and the same in every run.
      prompt: int32, read after the context.
      context: int32; consecutive examples with the same `group` and equal contexts share its prefill.
      group: the document of the example, the unit that is resampled for intervals; empty: the example itself.
      targets: reference answers.
      choices: tokens of each option; `answer` is the index of the correct one.
      choice_sizes: bytes (or characters) of each option, to normalise its log probability.
      scored: int32, tokens that are scored after the prompt.
      labels: int32, the token to predict after each token of the prompt; negative: nothing is scored there.
      bins: for each of `Task.bins`, for each token of the prompt: the bin in which its label counts, from 0.
      size: bytes of the text of `scored`.
      counts: other units of that text by name, such as words, for `Task.ratios`.
      about: values by which results are grouped: "length", "depth", "source" (a part of the data set), "needle" (index
        of the needle's last token); other values are numbers or short texts.
      needles: indices of the first and the last token of each needle that the answer depends on, to compute its
        distance and whether it lies within the model's reach (`evals/reach.py`).
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
    labels: np.ndarray = dataclasses.field(default_factory=lambda: NOTHING)
    bins: tuple[np.ndarray, ...] = ()
    size: float = 0.0
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needles: tuple[tuple[int, int], ...] = ()

    @property
    def unit(self) -> str:
        """The unit resampled for intervals."""
        return self.group or self.id

    @property
    def tokens(self) -> int:
        """Number of tokens before the answer."""
        return len(self.context) + len(self.prompt)

    @property
    def is_document(self) -> bool:
        """Whether `scored` is a document after its first token, not an answer, which is never cut."""
        return not len(self.context) and len(self.prompt) <= 1

    def digest(self) -> str:
        """Returns a hash, 16 hexadecimal digits, of all that the model is asked and its answer is compared with."""
        told = [self.targets, self.choice_sizes, self.answer, self.size, *([dict(self.counts)] if self.counts else [])]
        found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for part in (self.context, self.prompt, self.scored, self.labels, *self.bins, *self.choices):
            found.update(len(part).to_bytes(8, "little") + np.asarray(part, "<i8").tobytes())
        return found.hexdigest()[:16]


class Unreadable(NamedTuple):
    """Yielded in place of an example that cannot be read: where it is, and why. It is counted and reported."""

    place: str
    reason: str


def check_readable(found: Iterable[Any], what: str) -> bool:
    """Returns whether there is anything in `found`, up to the first that is readable.

    Raises:
      ConfigError: all is `Unreadable`; the message has the first reason, and `what` was to be read: `document of pg19`.
    """
    first: Unreadable | None = None
    for one in found:
        if not isinstance(one, Unreadable):
            return True
        first = first or one
    if first is not None:
        raise ConfigError(f"no {what} can be read; {first.place}: {first.reason}")
    return False


# (prediction, example) to a number: a metric that depends on more of the example than its targets.
Judge = Callable[[str, Example], float]


class Ratio(NamedTuple):
    """A metric over all scored tokens: a function of nats per example, per word or per byte.

    Attributes:
      per: a name of `Example.counts`; empty divides by the number of examples.
      of: maps nats per unit to the metric; must be increasing, because it also maps the ends of the interval.
    """

    per: str
    of: Callable[[float], float]


def perplexity(nats: float) -> float:
    """Returns exp(nats), clipped to avoid overflow."""
    return math.exp(min(nats, MOST_NATS))


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
      name: as on the command line.
      kind: one of `KINDS`.
      examples: yields all examples from the start, the same at each call.
      metrics: for `generate`: metrics by name; summaries show the first. The other kinds have fixed metrics
        (`evals/metrics.py`).
      judges: for `generate`: metrics that take the example; listed before `metrics`.
      bins, kinds: for `label`: axis labels of `Example.bins` and of "kind" in `Example.about`; empty: there are none.
      shown: for `choose` and `score`: {name in results: name in `evals/metrics.py`} of the metrics to report; None
        reports all.
      ratios: for `score`: metrics over all examples together.
      count: number of examples; 0 if unknown in advance.
      bad: unreadable examples known in advance, reported before any work; `examples` yields them too.
      max_new_tokens: upper bound on the generated tokens of an answer.
      stops: texts that end an answer.
      corpus_metrics: metrics over all answers together.
      pairs: returns the input of `corpus_metrics` for answers by id, which are generated texts, or natural-log
        probabilities of the scored tokens.
      by_position: for `score`: results are reported by position in the document.
      settings: everything else that defines the task; part of the results and of the answers' key.
    """

    name: str
    kind: str
    examples: Callable[[], Iterable[Example | Unreadable]]
    metrics: Mapping[str, TextMetric] = dataclasses.field(default_factory=dict)
    judges: Mapping[str, Judge] = dataclasses.field(default_factory=dict)
    bins: tuple[str, ...] = ()
    kinds: str = ""
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

    def judged(self, said: str, example: Example) -> dict[str, float]:
        """Returns the metrics of a generated text."""
        values = {name: float(judge(said, example)) for name, judge in self.judges.items()}
        return values | {name: float(metric(said, example.targets)) for name, metric in self.metrics.items()}

    def values(self, found: dict[str, float]) -> dict[str, float]:
        """Selects the reported metrics of a `choose` or `score` example, by their names in results."""
        return found if self.shown is None else {name: found[own] for name, own in self.shown.items()}
