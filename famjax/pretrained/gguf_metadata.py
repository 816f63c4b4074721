"""Typed access to the metadata of a GGUF file. A key that the import does not read is rejected by name."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from famjax.config import ConfigError


class Metadata:
    """Returns values by key, and records the keys that were read.

    All methods that return a value raise `ConfigError` if it has another type.

    Args:
      path: path of the file, for messages.
      values: metadata of a `gguf_header.Header`.
      head: a prefix that is added to all keys, such as `llama.`.
      read: the set of keys that were read, shared by all views of a file; None: a new one.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], head: str = "", read: set[str] | None = None):
        self._path, self._values, self._head = path, values, head
        self._read: set[str] = set() if read is None else read

    def under(self, head: str) -> "Metadata":
        """Returns a view of the keys with a longer prefix."""
        return Metadata(self._path, self._values, self._head + head, self._read)

    @property
    def keys(self) -> list[str]:
        """Keys that start with `head`, without this prefix, in the file's order."""
        return [key.removeprefix(self._head) for key in self._values if key.startswith(self._head)]

    def __call__(self, key: str) -> Any:
        """Returns the value of a key, of any type, or None."""
        self._read.add(self._head + key)
        return self._values.get(self._head + key)

    def text(self, key: str) -> str | None:
        """Returns a string, or None."""
        value = self(key)
        if value is not None and not isinstance(value, str):
            raise self.refused(key, f"is {_short(value)}; it must be a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Returns a boolean, or `default` if the key is missing."""
        value = self(key)
        if value is not None and not isinstance(value, bool):
            raise self.refused(key, f"is {_short(value)}; it must be true or false")
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a finite number. A list with a number per layer must be constant. If `default` is None, the key is
        required."""
        value = self(key)
        if isinstance(value, list) and value:
            if any(one != value[0] for one in value):
                raise self.refused(key, "differs between layers, which is not supported")
            value = value[0]
        value = default if value is None else value
        if value is None:
            raise self.refused(key, "is missing; is it the file of a complete language model?")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refused(key, f"is {_short(value)}; it must be a number")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """Returns an integer above 0; otherwise as `number`."""
        value = self.number(key, default)
        if not isinstance(value, int) or value < 1:
            raise self.refused(key, f"is {value!r}; it must be a whole number above 0")
        return value

    def texts(self, key: str) -> list[str] | None:
        """Returns a list of strings, or None."""
        return self._list(key, str, "strings")

    def numbers(self, key: str) -> list[float] | None:
        """Returns a list of numbers, or None."""
        return self._list(key, int | float, "numbers")

    def must_be(self, key: str, value: Any) -> None:
        """Raises `ConfigError` if a key is present and has another value than `value`."""
        if (found := self(key)) is not None and found != value:
            raise self.refused(key, f"is {_short(found)}; only {value!r} is known here")

    def refused(self, key: str, why: str) -> ConfigError:
        """Returns the error for a key; `why` continues the sentence that begins with the key."""
        return ConfigError(f"{self._path}: {self._head}{key} {why}")

    def refuse_unread(self) -> None:
        """Raises `ConfigError` if a key was not read."""
        unread = [self._head + key for key in self.keys if self._head + key not in self._read]
        if unread:
            raise ConfigError(
                f"{self._path}: the metadata {', '.join(unread)} {'is' if len(unread) == 1 else 'are'} not known here "
                f"and may change results"
            )

    def _list(self, key: str, kind: Any, what: str) -> list[Any] | None:
        values = self(key)
        if values is not None and not (isinstance(values, list) and all(isinstance(one, kind) for one in values)):
            raise self.refused(key, f"is {_short(values)}; it must be a list of {what}")
        return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
