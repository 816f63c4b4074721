"""Evaluation during training: small tasks whose metrics go to the training log.

An evaluation is a function from a model and its step to metrics; it does not change the training state.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from famjax.config import EvalConfig
from famjax.data.vocabulary import Vocabulary
from famjax.evals.engine import ModelEngine
from famjax.evals.results import summarize
from famjax.evals.runner import Runner
from famjax.evals.samples import Sample
from famjax.evals.tasks import catalog, language, passkey
from famjax.evals.tasks.base import Example, Task
from famjax.infer.codec import Codec
from famjax.nn.model import Transformer

# (model, training step) to metrics by name.
Evaluate = Callable[[Transformer, int], dict[str, float]]


def evaluation(
    config: EvalConfig, vocabulary: Vocabulary, block_size: int, folder: Path | None = None,
    vocab_size: int | None = None,
) -> Evaluate:  # fmt: skip
    """Returns the evaluation on `config.tasks`; `vocabulary` is that of the training, and `folder`, if given, may have
    its chat template and end-of-text tokens, of the model's `vocab_size`.

    Examples, and therefore shapes, are the same at each call, so programs are compiled once.

    Raises:
      ConfigError: a task's settings or data cannot be used.
    """
    # One each: a chat template adds to a codec's ends.
    codecs = [Codec.of(vocabulary, folder, vocab_size) for _ in config.tasks]
    tasks = [catalog.make(name, config, codec, block_size) for name, codec in zip(config.tasks, codecs, strict=True)]
    edges_of = {task.name: _halves(task, config.longest) if task.by_position else () for task in tasks}

    def evaluate(model: Transformer, step: int) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for task, codec in zip(tasks, codecs, strict=True):
            edges = edges_of[task.name]
            runner = Runner(ModelEngine(model, config.batch_size), codec, "", config.longest, edges)
            samples = list(runner.run(task))
            numbers |= {f"{task.name}/{name}": value for name, value in _numbers(task, samples, edges, block_size)}
        return numbers

    return evaluate


def _numbers(
    task: Task, samples: Sequence[Sample], edges: Sequence[int], block_size: int
) -> Iterator[tuple[str, float]]:
    """Yields (name, value) of a task's logged metrics: all metrics over all examples, and the first one by length.

    The pass key has exact match by filler length instead, such as `exact_match_at_4_blocks`. Texts also have bits per
    byte over the second half of the longest document's positions, where a memory should help.
    """
    if task.name == "passkey":
        for row in passkey.rows(samples, block_size):
            yield f"exact_match_at_{row['filler_blocks']}_blocks", row["exact_match"]
        return
    if task.by_position:
        sums = language.sums_of(samples, edges)
        bits, sizes = sums.bits.sum(axis=0), sums.sizes.sum(axis=0)
        yield "bits_per_byte", float(bits.sum() / sizes.sum())
        yield f"bits_per_byte_from_{edges[1]}", float(bits[1] / sizes[1])
        yield "accuracy", float(sums.correct.sum() / sums.tokens.sum())
        return
    summary = summarize(task, samples, [], block_size)
    for name, metric in summary["metrics"].items():
        yield name, metric["value"]
    for row in summary.get("by_length", []):
        name = next(iter(row["metrics"]))
        yield f"{name}_at_{row['length']}", row["metrics"][name]["value"]


def _halves(task: Task, most: int) -> tuple[int, int, int]:
    """Returns the bucket edges of the two halves of the longest document, after truncation to `most` tokens."""
    readable = (example for example in task.examples() if isinstance(example, Example))
    longest = max(example.tokens + len(example.scored) for example in readable)
    longest = min(longest, most or longest)
    return 0, longest // 2, longest
