"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): pairs, then every key again.

    k5 v1 k0 v6 k3 v2  . .  k0 v6  . .  . .  k3 v2  . .  k5 v1

The first part lists the pairs. The rest consists of places of two tokens, each with a question (a key and its value) or
with filler. Questions draw distinct places, place x (from 1) with weight x^(a - 1), and their order is random. As in
the paper's figure, the value follows the key; the paper's code has filler there, and the value is only a label.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from famjax.config import ConfigError, MqarConfig
from famjax.data.labelled import NONE, Document
from famjax.data.symbols import SymbolVocabulary


@dataclasses.dataclass(frozen=True)
class Mqar:
    """The task; see `Labelled`. Bins are the distance in blocks between a pair's value and the question."""

    name: str
    config: MqarConfig
    bins: ClassVar[str] = "blocks between pair and question"
    kind_label: ClassVar[str] = "pairs"

    @property
    def vocabulary(self) -> SymbolVocabulary:
        """Fillers `.0 .1 ...`, keys `k0 k1 ...`, values `v0 v1 ...`."""
        kinds = ((".", self.config.fillers), ("k", self.config.keys), ("v", self.config.values))
        return SymbolVocabulary([f"{letter}{i}" for letter, count in kinds for i in range(count)])

    @property
    def blocks(self) -> tuple[int, ...]:
        """Lengths of training documents, in blocks."""
        return tuple(self.config.blocks)

    @property
    def kinds(self) -> tuple[int, ...]:
        """Numbers of pairs."""
        return tuple(self.config.pairs)

    @property
    def chance(self) -> float:
        """Accuracy of guessing uniformly among all values."""
        return 1 / self.config.values

    def draw(self, rng: np.random.Generator, length: int, block_size: int, kind: int | None = None) -> Document:
        """See `Labelled`."""
        config = self.config
        pairs = int(rng.choice(config.pairs)) if kind is None else kind
        if length < 4 * pairs:
            raise ConfigError(
                f"{pairs} pairs and their questions take {4 * pairs} tokens, but a document has {length}; use longer "
                f"documents, or at most {length // 4} pairs"
            )
        keys = config.fillers + rng.choice(config.keys, pairs, replace=False)
        values = config.fillers + config.keys + rng.choice(config.values, pairs, replace=False)

        # Questions: the key of pair i is token `asked[i]`, its value the token after it.
        places = (length - 2 * pairs) // 2
        weight = np.arange(1, places + 1) ** (config.power - 1.0)
        asked = 2 * pairs + 2 * rng.choice(places, pairs, replace=False, p=weight / weight.sum())

        tokens = rng.integers(0, config.fillers, length).astype(np.int32)
        tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2] = keys, values
        tokens[asked], tokens[asked + 1] = keys, values
        labels, bins = np.full(length, NONE, np.int32), np.zeros(length, np.int32)
        labels[asked] = values
        bins[asked] = asked // block_size - (2 * np.arange(pairs) + 1) // block_size
        return Document(tokens, labels, bins)
