"""Tasks for `famjax compare`: whether memories can be compared on a task, its evaluation, and its results as rows.

A row is the result of one model at one length:

    {"blocks": 4, "tokens": 256.0, "updates": 4.0, "documents": 150, "value": 0.91, "low": ..., "high": ...}

Does not import jax, so that settings are checked before anything slow.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from famjax.config import GENERATED, ConfigError, EvalConfig, TrainConfig
from famjax.data.labelled import Labelled
from famjax.data.text_task import documents_of


class Yardstick(Protocol):
    """A task on which memories are compared.

    Attributes:
      metric: name of a row's `value`.
      length: axis label of a row's `tokens`.
      flags: names, without dashes, of the evaluation's flags that apply to the task.
      chance: expected value of random guessing.
    """

    metric: ClassVar[str]
    length: ClassVar[str]
    flags: ClassVar[tuple[str, ...]]

    @property
    def chance(self) -> float: ...  # noqa: D102 - see the class

    def evaluation(self, flags: Mapping[str, Any]) -> EvalConfig:
        """Returns the evaluation without models. `flags` has the values of the flags that were given, by name."""
        ...

    def rows(self, model: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns the rows of a model from its entry in the results of `evals/run.py`, by length."""
        ...

    def tables(self, model: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns further tables of `tasks/labelled.py`; [] if there are none."""
        ...


@dataclasses.dataclass(frozen=True)
class PassKeys:
    """The pass key, by blocks of filler."""

    config: TrainConfig
    metric: ClassVar[str] = "exact match"
    length: ClassVar[str] = "tokens of filler"
    flags: ClassVar[tuple[str, ...]] = ("blocks", "keys", "alignments")
    BLOCKS: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16, 64)

    @property
    def chance(self) -> float:
        """Probability of guessing a key."""
        return 10.0**-self.config.passkey.key_digits

    def evaluation(self, flags: Mapping[str, Any]) -> EvalConfig:
        """See `Yardstick`."""
        return EvalConfig(
            filler_blocks=flags.get("blocks", self.BLOCKS), keys=flags.get("keys", 1),
            alignments=flags.get("alignments", 0), key_digits=self.config.passkey.key_digits,
        )  # fmt: skip

    def rows(self, model: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Yardstick`."""
        return [
            {"blocks": row["filler_blocks"], "tokens": row["filler_tokens"], "updates": row["fam_updates"],
             "documents": row["documents"], "value": row["exact_match"], "low": row["low"], "high": row["high"]}
            for row in model["passkey"]
        ]  # fmt: skip

    def tables(self, model: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Yardstick`."""
        return []


@dataclasses.dataclass(frozen=True)
class Labels:
    """A task of labelled documents, by their length."""

    config: TrainConfig
    documents: Labelled
    metric: ClassVar[str] = "accuracy"
    length: ClassVar[str] = "tokens of a document"
    flags: ClassVar[tuple[str, ...]] = ("blocks", "examples")

    @property
    def chance(self) -> float:
        """Accuracy of guessing one of the possible labels."""
        return self.documents.chance

    @property
    def _block_size(self) -> int:
        return self.config.model.memory.block_size

    def evaluation(self, flags: Mapping[str, Any]) -> EvalConfig:
        """See `Yardstick`. Default lengths: all those of the training, and two and four times the longest of them.
        Raises `ConfigError` if a length is shorter than any document of the training."""
        trained = self.documents.blocks
        blocks = flags.get("blocks", tuple(sorted({*trained, 2 * trained[-1], 4 * trained[-1]})))
        if shorter := [number for number in blocks if number < trained[0]]:
            raise ConfigError(
                f"--blocks {shorter[0]} is shorter than any document of the training, which have {trained[0]} blocks "
                f"or more; give at least {trained[0]}"
            )
        return EvalConfig(
            task=self.documents.name, lengths=tuple(self._block_size * number for number in blocks),
            examples=flags.get("examples", 0), mqar=self.config.mqar, tracking=self.config.tracking,
        )  # fmt: skip

    def rows(self, model: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Yardstick`. A value is the mean over documents."""
        return [
            {"blocks": row["length"] // self._block_size, "tokens": row["length"], "updates": row["fam_updates"],
             "documents": row["n"]} | row["metrics"][self.metric]
            for row in model["tasks"][self.documents.name]["by_length"]
        ]  # fmt: skip

    def tables(self, model: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Yardstick`."""
        found: list[dict[str, Any]] = model["tasks"][self.documents.name]["tables"]
        return found


def yardstick(config: TrainConfig) -> Yardstick:
    """Returns the task of a training, as one on which memories are compared. Raises `ConfigError` if the task does not
    generate its documents, or not all memories would read the same batches."""
    documents = documents_of(config)
    if documents is not None:
        return Labels(config, documents)
    if config.generated is None or config.task == "babi":
        compared = ", ".join(name for name in GENERATED if name != "babi")
        raise ConfigError(f"famjax compare needs a task that generates its documents ({compared}), not {config.task!r}")
    if config.carries_memory or len(config.passkey.stages) > 1:
        raise ConfigError(
            "famjax compare needs the task 'passkey' with one stage and a stream_share of 0, so that all memories read "
            "the same batches; see gin/experiments/compare.gin"
        )
    return PassKeys(config)
