"""Runs a model on a task, in memory that grows neither with the documents' lengths nor with the number of examples.

Examples are loaded lazily, in chunks. Shared contexts are prefilled once, documents are batched continuously, and
questions are answered in batches.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from famjax.config import ConfigError
from famjax.evals.engine import ModelEngine, Request
from famjax.evals.metrics import choice_values, labelled_values, scored_values
from famjax.evals.reach import Reach
from famjax.evals.samples import Sample
from famjax.evals.tasks.base import Example, Task, Unreadable
from famjax.infer.codec import Codec

# Size of a chunk of examples: a multiple of the rows, or a number of tokens, whichever is reached first.
LOOKAHEAD, LOOKAHEAD_TOKENS = 8, 2**23
# Number of characters of the prompt that a sample keeps.
PROMPT_SHOWN = 400
Bad = Callable[[Unreadable], None]


class Fitted(NamedTuple):
    """An example after truncation to `Runner.longest`, the number of tokens that were removed, and the `Example.digest`
    of the whole example."""

    example: Example
    truncated: int
    question: str


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs one model on tasks.

    Attributes:
      engine: the model.
      codec: its tokenizer.
      key: `Sample.key` of the answers.
      longest: maximum number of tokens of an example; 0: no limit.
      edges: position buckets [edge, next edge), for tasks with results by position.
      on_tokens: called after each prefill, scoring or decoding call with its number of tokens.
      reach: the model's reach, to record whether a sample's needles lie within it; None records nothing.
    """

    engine: ModelEngine
    codec: Codec
    key: str = ""
    longest: int = 0
    edges: tuple[int, ...] = ()
    on_tokens: Callable[[int], None] = lambda n: None
    reach: Reach | None = None

    def run(
        self, task: Task, done: frozenset[str] | set[str] = frozenset(), on_bad: Bad | None = None
    ) -> Iterator[Sample]:
        """Yields the answers to all examples of a task, in order of completion, except those with an id in `done`,
        which may grow while examples are read. `on_bad` is called with each unreadable example. Raises `ConfigError` if
        no example could be read (the message has the first reason), or a score is not finite."""
        bad: list[Unreadable] = []
        read = 0

        def readable() -> Iterator[Example]:
            nonlocal read
            for example in task.examples():
                if isinstance(example, Unreadable):
                    bad.append(example)
                    if on_bad is not None:
                        on_bad(example)
                    continue
                read += 1
                # Questions that are done count in where the context of their group is truncated.
                if example.id not in done or (self.longest and example.group):
                    yield example

        for chunk in _chunks(readable(), LOOKAHEAD * self.engine.rows):
            yield from self._answer_chunk(task, chunk, done)
        if bad and not read:
            raise ConfigError(f"no example of {task.name} could be read; {bad[0].place}: {bad[0].reason}")

    def _answer_chunk(self, task: Task, examples: list[Example], done: frozenset[str] | set[str]) -> Iterator[Sample]:
        """Yields the answers to one chunk, but for those in `done`; examples with a context wait for its prefill."""
        whole = (self._fit(group, task) for group in _groups(examples))
        fitted = [rest for group in whole if (rest := [one for one in group if one.example.id not in done])]
        waiting = [(None, one) for group in fitted if not len(group[0].example.context) for one in group]
        with_context = [group for group in fitted if len(group[0].example.context)]
        contexts = [group[0].example.context for group in with_context]
        most = self.engine.rows if task.kind != "choose" else max(1, self.engine.rows // 2)
        states = self.engine.read(contexts, self.on_tokens) if contexts else iter(())
        for i, state in states:
            waiting += [(state, one) for one in with_context[i]]
            while len(waiting) >= most:
                batch, waiting = waiting[:most], waiting[most:]
                yield from self._answer(task, batch)
        while waiting:
            batch, waiting = waiting[:most], waiting[most:]
            yield from self._answer(task, batch)

    def _fit(self, group: list[Example], task: Task) -> list[Fitted]:
        """Truncates the shared context of a group to `longest`, at its end; the questions stay whole.

        A document that is itself scored is truncated at its end.
        """
        if not self.longest:
            return [Fitted(example, 0, example.digest()) for example in group]
        new = task.max_new_tokens if task.kind == "generate" else 0
        answer = lambda one: max(new, 0 if one.is_document else len(one.scored), *map(len, one.choices))
        after = max(len(example.prompt) + answer(example) for example in group)
        room = max(0, self.longest - after)
        return [_truncate(example, room, self.longest) for example in group]

    def _answer(self, task: Task, batch: list[tuple[Any, Fitted]]) -> Iterator[Sample]:
        answer = {
            "generate": self._generate, "choose": self._choose, "score": self._score, "label": self._label,
        }[task.kind]  # fmt: skip
        yield from answer(task, batch)

    def _generate(self, task: Task, batch: list[tuple[Any, Fitted]]) -> Iterator[Sample]:
        requests = [Request(state, fitted.example.prompt) for state, fitted in batch]
        stops = self.codec.token_stops(task.stops)
        has_stop = lambda i, tokens: any(stop in self.codec.vocabulary.decode(tokens) for stop in task.stops)
        finished = None if self.codec.is_bytes or not task.stops else has_stop
        for i, tokens, stopped in self.engine.generate(requests, task.max_new_tokens, stops, self.on_tokens, finished):
            example = batch[i][1].example
            before = np.concatenate([example.context[-8:], example.prompt])[-8:]
            text, _, ended = self.codec.answer(tokens.tolist(), stopped, task.stops, before)
            values = task.judged(text, example)
            yield self._sample(task, batch[i][1], text, "stop" if ended else "length", values)

    def _choose(self, task: Task, batch: list[tuple[Any, Fitted]]) -> Iterator[Sample]:
        places = [(i, c) for i, (_, fitted) in enumerate(batch) for c in range(len(fitted.example.choices))]
        tokens = [np.concatenate([batch[i][1].example.prompt, batch[i][1].example.choices[c]]) for i, c in places]
        requests = [Request(batch[i][0], text) for (i, _), text in zip(places, tokens, strict=True)]
        sums = [[0.0] * len(fitted.example.choices) for _, fitted in batch]
        for which, logprobs, _ in self.engine.score(requests, self.on_tokens):
            i, c = places[which]
            count = len(batch[i][1].example.choices[c])
            sums[i][c] = float(np.sum(logprobs[len(logprobs) - count :], dtype=np.float64))
        for (_, fitted), totals in zip(batch, sums, strict=True):
            values = task.values(choice_values(totals, fitted.example.choice_sizes, fitted.example.answer))
            yield self._sample(task, fitted, int(np.argmax(totals)), "", values)

    def _score(self, task: Task, batch: list[tuple[Any, Fitted]]) -> Iterator[Sample]:
        texts = [np.concatenate([fitted.example.prompt, fitted.example.scored]) for _, fitted in batch]
        requests = [Request(state, text) for (state, _), text in zip(batch, texts, strict=True)]
        for i, logprobs, correct in self.engine.score(requests, self.on_tokens):
            fitted = batch[i][1]
            example, count = fitted.example, min(len(fitted.example.scored), len(logprobs))
            logprobs, correct = logprobs[len(logprobs) - count :], correct[len(correct) - count :]
            values = task.values(scored_values(logprobs, correct, example.size))
            sums = self._by_position(example, logprobs, correct) if task.by_position else {}
            total = float(np.sum(logprobs, dtype=np.float64))
            yield self._sample(task, fitted, total, "", values, sums)

    def _label(self, task: Task, batch: list[tuple[Any, Fitted]]) -> Iterator[Sample]:
        examples = [fitted.example for _, fitted in batch]
        requests = [Request(None, one.prompt, np.maximum(one.labels, 0)) for one in examples]
        for i, logprobs, correct in self.engine.score(requests, self.on_tokens):
            example = examples[i]
            scored = np.flatnonzero(example.labels >= 0)
            bins = [one[scored] for one in example.bins]
            about = {
                "asked": [np.bincount(one).tolist() for one in bins],
                "right": [np.bincount(one, correct[scored]).tolist() for one in bins],
            }
            total = float(np.sum(logprobs[scored], dtype=np.float64))
            values = labelled_values(correct[scored])
            yield self._sample(task, batch[i][1], total, "", values, more=about)

    def _by_position(self, example: Example, logprobs: np.ndarray, correct: np.ndarray) -> dict[str, list[float]]:
        """Returns the sums by bucket of the tokens' positions in their document."""
        end = example.tokens + len(example.scored)
        positions = np.arange(end - len(logprobs), end)
        bucket = np.searchsorted(self.edges, positions, side="right") - 1
        add = lambda values: np.bincount(bucket, values).tolist()
        ones = np.ones(len(positions))
        return {
            "bits": add(-logprobs.astype(np.float64) / math.log(2)),
            "correct": add(correct.astype(np.float64)),
            "tokens": add(ones),
            "sizes": add(ones * (example.size / max(len(example.scored), 1))),
        }

    def _sample(
        self, task: Task, fitted: Fitted, answer: Any, finish: str, values: dict[str, float],
        sums: dict[str, list[float]] | None = None, more: Mapping[str, Any] | None = None,
    ) -> Sample:  # fmt: skip
        example = fitted.example
        more = dict(more or {}) | ({"context": len(example.context)} if example.group else {})
        more |= example.counts
        if self.reach is not None and example.needles and not fitted.truncated:  # the needle may have been truncated
            more |= self.reach.about(example.needles, example.tokens)
        last = np.concatenate([example.context[-PROMPT_SHOWN:], example.prompt])[-PROMPT_SHOWN:]
        shown = self.codec.vocabulary.decode(last)[-PROMPT_SHOWN:]
        if any(not math.isfinite(value) for value in values.values()):
            raise ConfigError("the model's scores are not finite; check its weights for NaN or infinity")
        return Sample(
            task.name, example.id, example.unit, self.key, example.tokens, fitted.truncated, shown, answer,
            list(example.targets), finish, values, dict(example.about) | more, sums or {},
            fitted.question,
        )  # fmt: skip


def _chunks(examples: Iterable[Example], most: int) -> Iterator[list[Example]]:
    """Splits examples into chunks; the examples of a group stay together."""
    chunk: list[Example] = []
    tokens = 0
    for example in examples:
        same = bool(chunk) and example.group != "" and chunk[-1].group == example.group
        if chunk and not same and (len(chunk) >= most or tokens > LOOKAHEAD_TOKENS):
            yield chunk
            chunk, tokens = [], 0
        tokens += len(example.prompt) + len(example.scored) + (0 if same else len(example.context))
        chunk.append(example)
    if chunk:
        yield chunk


def _groups(examples: list[Example]) -> list[list[Example]]:
    """Collects consecutive examples with the same group and context."""
    groups: list[list[Example]] = []
    for example in examples:
        before = groups[-1][0] if groups and example.group == groups[-1][0].group != "" else None
        context = None if before is None else before.context
        if context is not None and (context is example.context or np.array_equal(context, example.context)):
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def _truncate(example: Example, room: int, longest: int) -> Fitted:
    """Truncates the context to `room` tokens, a document that is scored (at the end) and the prompt (at the front) so
    that the example has at most `longest` tokens."""
    changes: dict[str, Any] = {}
    if len(example.context) > room:
        changes["context"] = example.context[:room]
    most = max(0, longest - len(example.prompt))
    if example.is_document and len(example.scored) > most > 0:
        changes["scored"] = example.scored[:most]
        share = most / len(example.scored)
        changes["size"] = example.size * share
        changes["counts"] = {name: count * share for name, count in example.counts.items()}
    if len(example.prompt) > longest:
        changes["prompt"] = example.prompt[len(example.prompt) - longest :]
    names = ("context", "scored", "prompt")
    left_out = sum(len(getattr(example, name)) - len(changes[name]) for name in names if name in changes)
    return Fitted(dataclasses.replace(example, **changes) if changes else example, left_out, example.digest())
