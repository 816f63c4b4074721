"""Settings of the server. Imports nothing heavy, so that mistakes are reported before anything is loaded."""

import dataclasses
import hashlib
import hmac
from pathlib import Path

from famjax.config import ConfigError
from famjax.config.checks import at_least, finite, flag_of, positive
from famjax.config.text import read_text
from famjax.infer.settings import MOST_TOKENS, check_whole

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Settings of a server.

    Attributes:
      name: name of the model for clients.
      host, port: address to listen on; port 0 chooses a free one.
      sessions: folder of the session files; None: requests cannot name a session.
      max_rows: maximum number of rows of all running requests; the memory of a row has a fixed size.
      max_waiting: maximum number of prompts that wait for rows; further requests get status 429.
      max_tokens: maximum tokens per answer if the request sets no limit.
      max_body_mib: maximum size of a JSON body, in MiB.
      timeout: maximum seconds for an answer, from the end of its request, and between two pieces of a request's body.
      grace: seconds for running requests to finish when the server stops.
      prefix_cache_mib: maximum size of the prefix cache, in MiB; 0 disables it.
      keys: SHA-256 of each valid API key; empty: no key is needed.
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
        """Raises `ConfigError` on the first invalid setting."""
        for name in ("max_rows", "max_waiting"):
            at_least(flag_of(name), getattr(self, name), 1)
        check_whole("--max-tokens", self.max_tokens, 1, MOST_TOKENS)
        for name in ("grace", "prefix_cache_mib"):
            at_least(flag_of(name), getattr(self, name), 0)
            finite(flag_of(name), getattr(self, name))
        for name in ("max_body_mib", "timeout"):
            positive(flag_of(name), getattr(self, name))
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port is {self.port}; it must be 0 (any free one) to 65535")
        if self.sessions is not None and self.sessions.exists() and not self.sessions.is_dir():
            raise ConfigError(f"--sessions {self.sessions} is a file; name a folder")

    @property
    def loopback(self) -> bool:
        """Whether the server is reachable from this machine only."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def allows(self, key: str) -> bool:
        """Returns whether a client's key is valid. Keys are compared in constant time."""
        given = _hashed(key)
        return not self.keys or any([hmac.compare_digest(given, known) for known in self.keys])


def read_keys(path: str | Path) -> tuple[bytes, ...]:
    """Returns the SHA-256 of each key in a file with one key per line.

    Empty lines and lines that begin with # are ignored. Raises `ConfigError` if the file has no key, or is not UTF-8;
    `OSError` if the file cannot be opened.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    keys = tuple(_hashed(line) for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} has no key; write one a line")
    return keys


def _hashed(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
