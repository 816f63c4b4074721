"""Metadata of a GGUF file of which every key is read as the type that it must have, or refused by name."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from famjax.config import ConfigError


class Metadata:
    """Values by key, and which of them were read.

    Args:
      path: of the file, for messages.
      values: see `gguf_header.Header`.
      head: what all keys that are asked for begin with, `llama.`.
      read: keys that were read.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], head: str = "", read: set[str] | None = None):
        self._path, self._values, self._head = path, values, head
        self._read: set[str] = set() if read is None else read

    def under(self, head: str) -> "Metadata":
        """The same, for keys that begin so."""
        return Metadata(self._path, self._values, self._head + head, self._read)

    @property
    def keys(self) -> list[str]:
        """Those that begin with `head`, without it, in the file's order."""
        return [key.removeprefix(self._head) for key in self._values if key.startswith(self._head)]

    def __call__(self, key: str) -> Any:
        """The value of a key, None if there is none."""
        self._read.add(self._head + key)
        return self._values.get(self._head + key)

    def text(self, key: str) -> str | None:
        """A text, if there is one."""
        value = self(key)
        if value is not None and not isinstance(value, str):
            raise self.refused(key, f"is {_short(value)}; it must be a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self(key)
        if value is not None and not isinstance(value, bool):
            raise self.refused(key, f"is {_short(value)}; it must be true or false")
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        """A number; one for each layer must be the same in all. Without a default, it must be there."""
        value = self(key)
        if isinstance(value, list) and value:
            if any(one != value[0] for one in value):
                raise self.refused(key, "differs between layers, which no model here has")
            value = value[0]
        value = default if value is None else value
        if value is None:
            raise self.refused(key, "is missing; is it the file of a whole language model?")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refused(key, f"is {_short(value)}; it must be a number")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number above 0, likewise."""
        value = self.number(key, default)
        if not isinstance(value, int) or value < 1:
            raise self.refused(key, f"is {value!r}; it must be a whole number above 0")
        return value

    def texts(self, key: str) -> list[str] | None:
        """A list of texts, if there is one."""
        return self._list(key, str, "texts")

    def numbers(self, key: str) -> list[float] | None:
        """A list of numbers, if there is one."""
        return self._list(key, int | float, "numbers")

    def must_be(self, key: str, value: Any) -> None:
        """Refuses any other value of a key that has no effect with this one, or if it is not there."""
        if (found := self(key)) is not None and found != value:
            raise self.refused(key, f"is {_short(found)}; only {value!r} is known here")

    def refused(self, key: str, why: str) -> ConfigError:
        """The error that a key causes."""
        return ConfigError(f"{self._path}: {self._head}{key} {why}")

    def refuse_unread(self) -> None:
        """Raises `ConfigError` if a key was not read."""
        unread = [self._head + key for key in self.keys if self._head + key not in self._read]
        if unread:
            raise ConfigError(
                f"{self._path}: the metadata {', '.join(unread)} {'is' if len(unread) == 1 else 'are'} not known here "
                f"and may change the numbers"
            )

    def _list(self, key: str, kind: Any, what: str) -> list[Any] | None:
        values = self(key)
        if values is not None and not (isinstance(values, list) and all(isinstance(one, kind) for one in values)):
            raise self.refused(key, f"is {_short(values)}; it must be a list of {what}")
        return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
