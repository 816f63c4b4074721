"""Named sessions: a folder with one session file each, which one request at a time may write.

Sessions exist only as files. A request's changes are written atomically before its answer ends, so after a server is
killed each file is the old or the new one, and the next server continues from it.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from famjax.config import ConfigError
from famjax.infer import session as sessions
from famjax.infer.session import Session
from famjax.nn.model import Transformer
from famjax.serve.errors import ApiError
from famjax.storage.model_dir import write_bytes

log = logging.getLogger("famjax.serve")

ENDING = ".safetensors"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "a session's name has 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or a digit"


class Store:
    """The sessions in a folder, which is created if it is missing, and whose lock the caller holds (`server.locked`),
    for the model that continues them."""

    def __init__(self, folder: Path, model: Transformer):
        self._folder, self._model = folder, model
        self._known = sessions.fingerprints(model)
        self._placement = sessions.placement(model)
        self._lock = threading.Lock()
        self._writers: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Locks a session for the `with` block, so that no other request changes it. Raises `ApiError` 409 if another
        request holds the lock, 400 if the name is invalid."""
        self.path(name)
        with self._lock:
            if name in self._writers:
                raise ApiError(
                    409, f"session {name!r} is in use by another request; one at a time changes it", code="in_use"
                )
            self._writers.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._writers.discard(name)

    def path(self, name: str) -> Path:
        """Returns the path of a session's file, which may not exist. Raises `ApiError` 400 if the name is invalid."""
        if not NAME.fullmatch(name):
            raise ApiError(400, NAME_RULE, param="session", code="bad_name")
        return self._folder / (name + ENDING)

    def existing(self, name: str) -> Path:
        """Returns the path of a session's file. Raises `ApiError` 404 if there is none."""
        path = self.path(name)
        if not path.is_file():
            raise _missing(name)
        return path

    def content(self, name: str) -> bytes:
        """Returns the content of a session's file. Raises `ApiError` 404 if there is none."""
        try:
            return self.existing(name).read_bytes()
        except FileNotFoundError:  # deleted meanwhile
            raise _missing(name) from None

    def list(self) -> list[dict[str, Any]]:
        """Returns `describe` of each session, sorted by name."""
        names = sorted(path.name.removesuffix(ENDING) for path in self._folder.glob(f"*{ENDING}"))
        found = []
        for name in filter(NAME.fullmatch, names):
            with contextlib.suppress(ApiError):  # deleted meanwhile
                found.append(self.describe(name))
        return found

    def describe(self, name: str) -> dict[str, Any]:
        """Returns the API's description of a session, from the header of its file: name, numbers of tokens and of FAM
        updates, bytes, modification time (Unix seconds), whether this model can continue it, and whether it is locked.
        Raises `ApiError` 404 if there is no such session."""
        path = self.existing(name)
        metadata, dtype = _header(path)
        try:
            status = path.stat()
        except FileNotFoundError:
            raise _missing(name) from None
        with self._lock:
            busy = name in self._writers
        return {
            "id": name, "object": "session", "tokens": _number(metadata, "position") + 1,
            "updates": _number(metadata, "fam_updates"), "bytes": status.st_size, "modified": int(status.st_mtime),
            "same_model": self._continues(metadata, dtype), "in_use": busy,
        }  # fmt: skip

    def _continues(self, metadata: Mapping[str, str], dtype: str | None) -> bool:
        """Returns whether this model, with its memory settings and compute dtype, can continue a session."""
        of = metadata.get
        origin = sessions.Origin(of("model"), of("fam"), of("memory", ""), dtype)
        try:
            sessions.check_origin("the session", origin, self._model, self._known)
        except ConfigError:
            return False
        return dtype is not None and of("version") == sessions.VERSION

    def load(self, name: str) -> Session | None:
        """Returns a session; None if it is new. Raises `ApiError` 409 if this model cannot continue it."""
        path = self.path(name)
        return self._restored(path, name, 409) if path.is_file() else None

    def save(self, name: str, session: Session) -> None:
        """Writes a session. Call it inside `writing`. Raises `ApiError` 500 if it cannot, as on a full disk."""
        try:
            sessions.save(self.path(name), session, self._model, self._known)
        except OSError as error:
            log.error("session %r cannot be saved: %s", name, error)
            reason = f"session {name!r} cannot be saved ({error.strerror}), and is unchanged"
            raise ApiError(500, reason, param="session", code="not_saved") from error

    def put(self, name: str, content: bytes) -> None:
        """Stores an uploaded session file. Call it inside `writing`. Raises `ApiError` 400 if it is not a session that
        this model can continue."""
        path = self.path(name)
        fresh = path.with_name(f".{path.name}.upload")
        try:
            write_bytes(fresh, content)
            self._restored(fresh, name, 400)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)

    def fork(self, source: str, name: str) -> None:
        """Copies session `source` to the new session `name`. Call it inside `writing(name)`. Raises `ApiError` 409 if
        `name` exists, 404 if `source` does not."""
        if self.path(name).exists():
            raise ApiError(409, f"there is a session {name!r} already; delete it first", code="session_exists")
        write_bytes(self.path(name), self.content(source))

    def delete(self, name: str) -> None:
        """Deletes a session. Call it inside `writing`. Raises `ApiError` 404 if there is none."""
        self.existing(name).unlink()

    def picture(self, name: str) -> dict[str, Any]:
        """Returns `describe` and, as `layers`, the magnitude of each layer's memory: the root mean square of each of
        its newest feedback activations (F numbers; none without FAM), and of the keys and values in its ring. Raises
        `ApiError` 409 if the file is not a session file, 404 if there is none."""
        path = self.existing(name)
        rms = lambda x, axis=None: np.sqrt(np.mean(np.square(np.asarray(x, np.float32)), axis=axis))
        layers = []
        try:
            with safetensors.safe_open(path, "numpy") as file:
                count = sum(key.endswith(".k") for key in file.keys())  # noqa: SIM118
                for i in range(count):
                    fam = file.get_tensor(f"{i}.fam")
                    norms = rms(fam[0], -1).tolist() if fam.size else []
                    keys, values = (file.get_tensor(f"{i}.{part}") for part in ("k", "v"))
                    layers.append({"fam": norms, "keys": float(rms(keys)), "values": float(rms(values))})
        except FileNotFoundError:
            raise _missing(name) from None
        except (safetensors.SafetensorError, IndexError, TypeError):
            layers = []
        if not layers:
            raise ApiError(409, f"session {name!r} is damaged, or no session; delete it", code="unusable_session")
        return {**self.describe(name), "layers": layers}

    def _restored(self, path: Path, name: str, status: int) -> Session:
        try:
            found = sessions.restore(sessions.read_file(path), self._model, self._known, self._placement)
            if found.recent[0, -1] < 0:
                raise ConfigError("has read nothing; a session begins with its first text")
            return found
        except ConfigError as error:  # its message begins with a local path, which the client must not see
            reason = str(error).removeprefix(str(path)).strip()
            raise ApiError(status, f"session {name!r} {reason}", param="session", code="unusable_session") from error


def _missing(name: str) -> ApiError:
    return ApiError(404, f"there is no session {name!r}; GET /v1/sessions lists them", code="session_not_found")


def _header(path: Path) -> tuple[Mapping[str, str], str | None]:
    """Returns the metadata of a session file and its compute dtype; empty and None if it cannot be read."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            found = file.get_slice("0.k").get_dtype() if "0.k" in file.keys() else ""  # noqa: SIM118
            return file.metadata() or {}, {"F32": "float32", "BF16": "bfloat16"}.get(found)
    except (safetensors.SafetensorError, OSError):
        return {}, None


def _number(metadata: Mapping[str, str], name: str) -> int:
    found = metadata.get(name, "")
    return int(found) if found.isascii() and found.isdigit() and len(found) < 12 else -1
