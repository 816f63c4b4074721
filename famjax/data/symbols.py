"""Vocabularies of named tokens, for tasks whose documents are tokens rather than text: `k3 v17 . k3`."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError

# The file of the vocabulary in a model directory: the names of the tokens, a JSON list.
SYMBOLS_JSON = "symbols.json"


class SymbolVocabulary:
    """A vocabulary of named tokens; the token with id i has name i. Names are distinct and have no spaces, which
    separate them in a text."""

    bos: int | None = None
    eos: int | None = None

    def __init__(self, names: Sequence[str]):
        self.names, self.size = tuple(names), len(names)
        self._ids = {name: number for number, name in enumerate(self.names)}

    @classmethod
    def from_file(cls, content: bytes, place: str) -> "SymbolVocabulary":
        """Parses the vocabulary's file; `place` is its path, for messages. Raises `ConfigError` if it is invalid."""
        try:
            names = json.loads(content)
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(one, str) and one.split() == [one] for one in names):
            raise ConfigError(f"{place} is not a list of names of tokens; restore {SYMBOLS_JSON} from a copy")
        return cls(names)

    @property
    def files(self) -> dict[str, bytes]:
        """The vocabulary's file for a model directory: content by name."""
        return {SYMBOLS_JSON: (json.dumps(self.names) + "\n").encode()}

    def encode(self, text: str) -> np.ndarray:
        """Encodes names to int32 ids. Raises `ConfigError` on an unknown name."""
        words = text.split()
        unknown = next((word for word in words if word not in self._ids), None)
        if unknown is not None:
            raise ConfigError(
                f"{unknown!r} is not a token of this model; its {self.size} tokens are {' '.join(self.names[:8])} ..."
            )
        return np.array([self._ids[word] for word in words], np.int32)

    def decode(self, tokens: Any) -> str:
        """Decodes ids to names; an id without a name, which a model with more tokens may generate, becomes `?`."""
        return " ".join(self.names[token] if 0 <= token < self.size else "?" for token in map(int, tokens))

    def token_bytes(self, token: int) -> bytes:
        """See `Vocabulary`."""
        return self.decode([token]).encode("utf-8")

    def certain(self, tokens: Sequence[int], final: bool = False) -> tuple[str, bool]:
        """See `Vocabulary`."""
        return self.decode(tokens), True
