"""Sessions: the state from which a text can be continued, in memory and as a file.

The last token of a text, given or generated, is *pending*: known, but not yet read by the model. Reading it
gives the logits of the next token. So sessions after a prompt and after an answer have the same form,
nothing is read twice, and no logits need to be stored.

A session file is a safetensors file with the tensors of one row (letters: `dims.py`); its metadata identify the model.

    L.k, L.v          [R, K, S, H]  the ring of blocks of layer L
    L.fam             [P, F, D]     feedback activations, float32
    L.fam_k, L.fam_v  [P, K, F, H]  their keys and values
    L.beside.NAME     state arrays of a layer in addition to the ring and FAM, by name
    beside.NAME       the same, for the whole model
    recent            [RECENT] int32  the last tokens, the pending one last; -1 if there are fewer
    metadata      format, version; model, fam (fingerprints); memory (JSON); position, fam_updates
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from famjax.attention import memories
from famjax.attention.memory import LayerMemory, MemoryState, layer_axes, over_rows
from famjax.config import DTYPES, OVERRIDES, ConfigError, MemoryConfig, ModelConfig
from famjax.config.checks import flag_of
from famjax.dims import Int, Tree
from famjax.infer.fingerprint import fingerprint, settings_of
from famjax.infer.settings import RECENT
from famjax.jobs.distributed import whole
from famjax.nn.model import Transformer
from famjax.nn.weights import each_parameter
from famjax.storage.model_dir import write_bytes

FORMAT, VERSION = "famjax session", "2"

_LAYERS = tuple(field.name for field in dataclasses.fields(LayerMemory) if field.name != "beside")
# Memory settings that are missing in older files of this version, which were written with the defaults.
_LATER = (
    "kind", "sinks", "infini_delta", "memory_tokens", "summary_blocks", "memory_key_dim", "retrieval_blocks",
    "retrieval_top_k", "fam_update", "segments_hold",
)  # fmt: skip
# Memory settings that only training uses.
_TRAINING_ONLY = (
    "stop_gradient", "random_position_offset", "random_state_passing", "random_state_passing_from", "fam_noise",
    "fam_update_noise", "fam_diversity_loss", "fam_reconstruction_loss", "fam_gradient_blocks",
)  # fmt: skip
# Model settings that the fingerprint leaves out: `memory` is compared separately, the others do not change outputs.
_HOW = ("memory", "embedding_std", "scan_layers", "unroll_blocks", "remat", "attention_kernel")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Session:
    """The states of a batch of texts, one per row, from which they can be continued.

    Attributes:
      memory: the model's memory after all tokens except the pending one.
      recent: int32, the last RECENT tokens, -1 if a text has fewer. recent[:, -1] is pending.

    Example: after the prompt "abc", `memory.position` is 2, for "a" and "b", and "c" is pending.
    """

    memory: MemoryState
    recent: Int[Any, "B _N"]


def start(model: Transformer, batch: int = 1) -> Session:
    """Returns the session of `batch` empty texts."""
    return Session(_initial_state(*nnx.split(model), batch), np.full((batch, RECENT), -1, np.int32))


def repeat_rows(session: Session, times: int) -> Session:
    """Repeats every row `times` times, copies next to each other."""
    repeat = lambda axis, x: jnp.repeat(x, times, axis=axis)
    return Session(over_rows(repeat, session.memory), repeat(0, session.recent))


@jax.jit
def take_row(session: Session, row: int | Int[Any, ""]) -> Session:
    """Returns one row of a session. `row` is traced, so that all rows of a batch share one program."""
    cut = lambda axis, x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis=axis)
    return Session(over_rows(cut, session.memory), cut(0, jnp.asarray(session.recent)))


def join_rows(sessions: Sequence[Session]) -> Session:
    """Concatenates sessions along the batch, the inverse of `take_row`. Copies, so the result may be donated."""
    # jnp.concatenate would return a single array without copying it.
    join = lambda axis, *parts: jnp.concatenate(parts, axis=axis) if len(parts) > 1 else jnp.array(parts[0])
    recent = np.concatenate([whole(session.recent) for session in sessions])
    return Session(over_rows(join, *(session.memory for session in sessions)), recent)


@functools.partial(jax.jit, donate_argnames=("memory",))
def set_row(memory: MemoryState, row: int | Int[Any, ""], one: MemoryState) -> MemoryState:
    """Replaces one row of a memory by `one`, a memory of one row. `memory` is donated."""
    put = lambda axis, x, y: jax.lax.dynamic_update_slice_in_dim(x, y, row, axis)
    return over_rows(put, memory, one)


@functools.partial(jax.jit, donate_argnames=("session",))
def put_row(session: Session, row: int | Int[Any, ""], one: Session) -> Session:
    """Replaces one row of a session by `one`, a session of one row. `session` is donated."""
    put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, row, 0)
    return Session(set_row(session.memory, row, one.memory), put(jnp.asarray(session.recent), jnp.asarray(one.recent)))


@functools.partial(jax.jit, static_argnames=("graphdef", "batch"))
def _initial_state(graphdef: nnx.GraphDef[Transformer], params: Tree, batch: int) -> MemoryState:
    return nnx.merge(graphdef, params).streaming_state(batch)


# --- the file -------------------------------------------------------------------------------------


class SessionFile(NamedTuple):
    """The contents of a session file, not yet compared with a model."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, np.ndarray]

    @property
    def dtype(self) -> str | None:
        """The compute dtype of the model that wrote the file; None if the file is damaged."""
        found = str(self.tensors["0.k"].dtype) if "0.k" in self.tensors else None
        return found if found in DTYPES else None

    @property
    def origin(self) -> "Origin":
        """The model that wrote the file, as far as the file says."""
        of = self.metadata.get
        return Origin(of("model"), of("fam"), of("memory", ""), self.dtype)


class Origin(NamedTuple):
    """The model of a session: only a model with the same weights, memory settings and dtype can continue the text.

    Attributes:
      model, fam: see `fingerprints`; None if a file lacks them.
      memory: memory settings, JSON.
      dtype: compute dtype; None if the file is damaged.
    """

    model: str | None
    fam: str | None
    memory: str
    dtype: str | None

    @classmethod
    def of(cls, model: Transformer, known: Mapping[str, str] | None = None) -> "Origin":
        """Returns the origin of the sessions of `model`. `known`: see `save`."""
        own = known or fingerprints(model)
        return cls(own["model"], own["fam"], json.dumps(_settings(model.config.memory)), model.config.dtype)


def save(path: str | Path, session: Session, model: Transformer, known: Mapping[str, str] | None = None) -> None:
    """Writes a session of one row to a file, atomically: if the process is killed, the previous file remains.

    Args:
      path: the file.
      session: session of one row.
      model: the model of the session.
      known: the model's `fingerprints`; None computes them, in a pass over all weights.

    Raises:
      ValueError: if the session has more than one row.
    """
    memory = session.memory
    if len(session.recent) != 1:
        raise ValueError(f"a session file holds one row, not {len(session.recent)}")
    tensors = {name: np.ascontiguousarray(np.asarray(x)[0]) for name, x in _tensors(memory).items()}
    tensors["recent"] = np.ascontiguousarray(np.asarray(session.recent)[0])
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        **(known or fingerprints(model)),
        "memory": json.dumps(_settings(model.config.memory)),
        "position": str(int(memory.position[0])),
        "fam_updates": str(int(memory.fam_updates[0])),
    }
    write_bytes(path, safetensors.numpy.save(tensors, metadata=metadata))


def read_file(path: str | Path) -> SessionFile:
    """Reads a session file. Raises `ConfigError` if it is missing, damaged, or has another format."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} is {'a directory' if path.is_dir() else 'missing'}; name a file of --state-out")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{path} is not a session file, or it is truncated ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ConfigError(f"{path} has tensors, but no session; name a file of --state-out")
    if metadata.get("version") != VERSION:
        raise ConfigError(
            f"{path} has version {metadata.get('version')} of the session format; this famjax reads version {VERSION}"
        )
    return SessionFile(path, metadata, tensors)


def check_memory(file: SessionFile, config: ModelConfig) -> None:
    """Raises `ConfigError` if the memory settings of a session differ from those of `config`."""
    _check_memory(str(file.path), file.origin.memory, config)


def _check_memory(what: str, memory: str, config: ModelConfig) -> None:
    try:
        there = dict(json.loads(memory))
    except (ValueError, TypeError):
        raise ConfigError(f"{what} is damaged: its memory settings cannot be read") from None
    there = {name: getattr(MemoryConfig(), name) for name in _LATER} | there
    for name, here in _settings(config.memory).items():
        if there.get(name) != here:
            hint = f"; continue it with {flag_of(name)} {there[name]}" if name in OVERRIDES and name in there else ""
            hint = _OF_OPEN_GATE if name == "fam_gate" and there.get(name) else hint
            raise ConfigError(f"{what} was made with {name} {there.get(name)}, the model has {here}{hint}")


_OF_OPEN_GATE = "; a fully open gate is removed at loading, which earlier versions did not do: read the text again"


def check_origin(what: str, origin: Origin, model: Transformer, known: Mapping[str, str] | None = None) -> None:
    """Raises `ConfigError` if `model` cannot continue a session, since another model, its `origin`, made it. `what` is
    the session, for the message; `known`: see `save`."""
    _check_memory(what, origin.memory, model.config)
    if origin.dtype not in (None, model.config.dtype):
        raise ConfigError(
            f"{what} was made in {origin.dtype}, the model computes in {model.config.dtype}; "
            f"continue it with --dtype {origin.dtype}"
        )
    own = known or fingerprints(model)
    if (origin.model, origin.fam) != (own["model"], own["fam"]):
        how = "with another FAM prompt than the model has" if origin.model == own["model"] else "by another model"
        raise ConfigError(f"{what} was made {how}; only the model that read a text can continue it")


def placement(model: Transformer) -> Tree:
    """Returns the shardings of a new text's memory. A restored memory gets them, so that the same compiled programs
    continue it."""
    return jax.tree.map(lambda leaf: leaf.sharding, start(model).memory)


def restore(
    file: SessionFile, model: Transformer, known: Mapping[str, str] | None = None, at: Tree | None = None
) -> Session:  # fmt: skip
    """Returns the session of a file, with one row.

    Args:
      file: from `read_file`.
      model: the model that continues the text.
      known: see `save`.
      at: `placement` of the model, if it is known.

    Raises:
      ConfigError: if the file is damaged, or was written by another model, memory settings or compute dtype.
    """
    check_origin(str(file.path), file.origin, model, known)
    expected = _tensors(jax.eval_shape(functools.partial(model.streaming_state, 1)))
    shapes = {name: (x.shape[1:], x.dtype) for name, x in expected.items()}
    shapes["recent"] = ((RECENT,), np.dtype(np.int32))
    if {name: (x.shape, x.dtype) for name, x in file.tensors.items()} != shapes:
        raise ConfigError(f"{file.path} is damaged: its tensors have other names, shapes or types than the model's")
    try:
        position, updates = (jnp.asarray([int(file.metadata[n])], jnp.int32) for n in ("position", "fam_updates"))
    except (KeyError, ValueError, OverflowError):
        raise ConfigError(f"{file.path} is damaged: its position cannot be read") from None
    recent, V = file.tensors["recent"], model.config.vocab_size
    tokens = recent[np.argmax(recent >= 0) :] if (recent >= 0).any() else recent[:0]
    if not ((recent[: RECENT - len(tokens)] == -1).all() and (tokens >= 0).all() and (tokens < V).all()):
        raise ConfigError(f"{file.path} is damaged: its last tokens are not of a vocabulary of {V}")
    # Copies, since the session will be donated and a device must not write into the arrays of `file`.
    array = lambda name: jnp.array(file.tensors[name])[None]
    one = lambda i, names, prefix="": {name: array(f"{i}.{prefix}{name}") for name in names}
    names = layer_axes(model.config.memory).beside
    layers = [LayerMemory(**one(i, _LAYERS), beside=one(i, names, "beside.")) for i in range(model.config.num_layers)]
    of_model = {name: array(f"beside.{name}") for name in memories.of(model.config.memory).model_axes}
    memory = MemoryState(position, updates, tuple(layers), of_model)
    placed = jax.device_put(memory, placement(model) if at is None else at)
    return Session(placed, np.array(file.tensors["recent"])[None])


def _tensors(memory: MemoryState) -> dict[str, Any]:
    """Returns the arrays of a memory by their names in a session file: {"0.k": ..., "0.v": ..., ...}."""
    tensors: dict[str, Any] = {f"beside.{name}": array for name, array in memory.beside.items()}
    for i, layer in enumerate(memory.unstacked):
        tensors |= {f"{i}.{field}": getattr(layer, field) for field in _LAYERS}
        tensors |= {f"{i}.beside.{name}": array for name, array in layer.beside.items()}
    return tensors


def _settings(memory: MemoryConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(memory).items() if name not in _TRAINING_ONLY}


def fingerprints(model: Transformer) -> dict[str, str]:
    """Returns two fingerprints, so that errors can report which part differs: `fam`, of FAM's weights, and `model`, of
    all other weights and the configuration without memory settings."""
    config = settings_of(model.config, _HOW)
    is_fam = lambda name: name.startswith("['fam']")
    return {
        "model": fingerprint(
            json.dumps(config, sort_keys=True), ((n, x) for n, x in each_parameter(model) if not is_fam(n))
        ),
        "fam": fingerprint("", ((n, x) for n, x in each_parameter(model) if is_fam(n))),
    }
