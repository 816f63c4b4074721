"""Metadata of a GGUF file of which every key is read, or refused by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from famjax.config import ConfigError


class Metadata:
    """Values by key, and which of them were read.

    Args:
      path: of the file, for messages.
      values: see `gguf_header.Header`.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]):
        self._path, self._values = path, values
        self._read: set[str] = set()

    @property
    def keys(self) -> list[str]:
        """All keys, in the file's order."""
        return list(self._values)

    def __call__(self, key: str) -> Any:
        """The value of a key, None if there is none."""
        self._read.add(key)
        return self._values.get(key)

    def must_be(self, key: str, value: Any) -> None:
        """Refuses any other value of a key that, if it is there, has no effect with this one."""
        if (found := self(key)) is not None and found != value:
            raise self.refused(key, "", f"is {found!r}; only {value!r} is known here")

    def refused(self, key: str, head: str, why: str) -> ConfigError:
        """The error that a key causes."""
        return ConfigError(f"{self._path}: {head}{key} {why}")

    def refuse_unread(self, head: str) -> None:
        """Raises `ConfigError` if a key that begins so was not read."""
        unread = [key for key in self._values if key.startswith(head) and key not in self._read]
        if unread:
            raise ConfigError(
                f"{self._path}: the metadata {', '.join(unread)} {'is' if len(unread) == 1 else 'are'} not known here "
                f"and may change the numbers"
            )
