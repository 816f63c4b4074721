"""How the server runs. Imports nothing heavy, so that mistakes are found before anything is loaded."""

import dataclasses
import hashlib
import hmac
from pathlib import Path

from famjax.config import ConfigError
from famjax.config.checks import at_least
from famjax.config.text import read_text

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Settings of a server.

    Attributes:
      name: of the model, as clients ask for it.
      host, port: where it listens; port 0 takes a free one.
      sessions: folder of the session files; None: requests cannot name a session.
      max_rows: rows of all requests at work, at most; each has a memory of one size.
      max_waiting: requests that wait for rows, at most; more are answered 429.
      max_tokens: of an answer whose request does not say.
      max_body_mib: of a JSON body.
      timeout: seconds that a request may take.
      grace: seconds that requests at work get to finish when the server stops.
      prefix_cache_mib: of memories of common beginnings; 0 switches the cache off.
      keys: SHA-256 of the keys that clients may have; empty: no key is needed.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    sessions: Path | None = None
    max_rows: int = 16
    max_waiting: int = 64
    max_tokens: int = 256
    max_body_mib: float = 16
    timeout: float = 600
    grace: float = 30
    prefix_cache_mib: float = 512
    keys: tuple[bytes, ...] = ()

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        for name in ("max_rows", "max_waiting", "max_tokens"):
            at_least(_flag(name), getattr(self, name), 1)
        for name in ("grace", "prefix_cache_mib"):
            at_least(_flag(name), getattr(self, name), 0)
        for name in ("max_body_mib", "timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{_flag(name)} is {getattr(self, name):g}; it must be above 0")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port is {self.port}; it must be 0 (any free one) to 65535")
        if self.sessions is not None and self.sessions.exists() and not self.sessions.is_dir():
            raise ConfigError(f"--sessions {self.sessions} is a file; name a folder")

    @property
    def loopback(self) -> bool:
        """Only this machine reaches the server."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def allows(self, key: str) -> bool:
        """Whether a client's key is among `keys`, in a time that does not depend on how much of it is right."""
        given = _hashed(key)
        return not self.keys or any([hmac.compare_digest(given, known) for known in self.keys])


def read_keys(path: str | Path) -> tuple[bytes, ...]:
    """Keys, one a line; empty lines and those that begin with # are left out. Raises `ConfigError` if there is none."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    keys = tuple(_hashed(line) for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} has no key; write one a line")
    return keys


def _hashed(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
