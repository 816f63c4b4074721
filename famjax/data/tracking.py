"""State tracking: tokens are elements of a group, and the label of each is the product of all elements so far.

    parity   elements  1 0 1 1       states   odd odd even odd
    s5       elements  permutations of five things, as lines: 21345 swaps the first two

Liu et al. 2022 (arXiv 2210.10749) study such states of automata. Merrill et al. 2024 (arXiv 2404.08819) show that the
word problem of S5 is beyond transformers and state-space models of constant depth, while a nonlinear recurrence solves
it with a state of constant size.
"""

import dataclasses
import functools
import itertools
from typing import ClassVar, NamedTuple

import numpy as np

from famjax.config import TrackingConfig
from famjax.data.labelled import Document
from famjax.data.symbols import SymbolVocabulary

Permutation = tuple[int, ...]


class Group(NamedTuple):
    """A group of permutations of `size` things, and two elements of which products reach every state."""

    size: int
    generators: tuple[Permutation, ...]


GROUPS = {
    # identity, swap
    "parity": Group(2, ((0, 1), (1, 0))),
    # swap of the first two, cycle of all
    "s3": Group(3, ((1, 0, 2), (1, 2, 0))),
    "s5": Group(5, ((1, 0, 2, 3, 4), (1, 2, 3, 4, 0))),
}


def product(first: Permutation, second: Permutation) -> Permutation:
    """Returns the permutation that applies `first`, then `second`: thing i goes to second[first[i]]."""
    return tuple(second[i] for i in first)


@functools.lru_cache
def table(name: str) -> tuple[tuple[Permutation, ...], np.ndarray]:
    """Returns (all elements in lexicographic order, the products of element i and j as int32 [n, n])."""
    elements = tuple(itertools.permutations(range(GROUPS[name].size)))
    number = {element: i for i, element in enumerate(elements)}
    products = [[number[product(a, b)] for b in elements] for a in elements]
    return elements, np.array(products, np.int32)


@dataclasses.dataclass(frozen=True)
class Tracking:
    """The task; see `Labelled`. Bins are the blocks of a document."""

    name: str
    config: TrackingConfig
    bins: ClassVar[tuple[str, ...]] = ("block of the document",)
    kind_label: ClassVar[str] = ""

    @property
    def vocabulary(self) -> SymbolVocabulary:
        """The states `=12345 ...`, then the elements that occur in documents, `12345 ...`."""
        elements, _ = table(self.name)
        line = lambda element: "".join(str(i + 1) for i in element)
        return SymbolVocabulary([f"={line(one)}" for one in elements] + [line(elements[i]) for i in self._used])

    @property
    def _used(self) -> tuple[int, ...]:
        """Indices of the elements that occur in documents."""
        elements, _ = table(self.name)
        if self.config.elements == "all":
            return tuple(range(len(elements)))
        return tuple(elements.index(one) for one in GROUPS[self.name].generators)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Lengths of training documents, in blocks."""
        return tuple(self.config.blocks)

    @property
    def kinds(self) -> tuple[int, ...]:
        """(0,): there is only one kind of document."""
        return (0,)

    @property
    def chance(self) -> float:
        """Accuracy of guessing uniformly among all states."""
        return 1 / len(table(self.name)[0])

    def most_labels(self, length: int) -> int:
        """See `Labelled`."""
        return length

    def draw(self, rng: np.random.Generator, length: int, block_size: int, kind: int | None = None) -> Document:
        """See `Labelled`."""
        elements, products = table(self.name)
        which = rng.integers(0, len(self._used), length)
        states = np.zeros(length, np.int32)
        state = 0  # the identity is the first element
        for at, element in enumerate(np.asarray(self._used)[which]):
            state = states[at] = products[state, element]
        tokens = (len(elements) + which).astype(np.int32)
        return Document(tokens, states, ((np.arange(length) // block_size).astype(np.int32),))
