"""Weights on disk, written and read one piece at a time, for models that are larger than the host's memory.

The format is that of `storage/checkpoint.py`: Orbax writes all arrays with their shapes and no values, and the values
of each layer are written into them afterwards. Arrays are stored in chunks within one layer, of at most `PART_BYTES`,
so that a device reads little more than its own shard.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from famjax.config import ConfigError, ModelConfig
from famjax.process import interrupts
from famjax.storage import arrays
from famjax.storage import base as bases
from famjax.storage.model_dir import CHECKPOINTS, MODEL_JSON, read_config, split_step, write_text
from famjax.storage.steps import WEIGHTS, damage, latest_step, record_files, step_dir
from famjax.storage.unfinished import Journal

PART_BYTES = 2**26
# Prefix of the paths of stacked weights, whose first axis is that of the layers.
STACKED = "layers/"
# Journal entry: the arrays exist on disk, but still without values.
_EMPTY = ["arrays"]


class Piece(NamedTuple):
    """One layer of a stacked weight `layers/...`, or a whole weight that is not stacked.

    Attributes:
      path: path of the weight.
      layer: index of the layer; None for a whole weight.
      nbytes: size of its values in bytes.
      read: returns its values; called at most once.
    """

    path: str
    layer: int | None
    nbytes: int
    read: Callable[[], np.ndarray]


def write_model(
    model_dir: Path, config: ModelConfig, shapes: Mapping[str, Any], pieces: Iterable[Piece],
    journal: Journal | None = None, on_bytes: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Writes a model whose weights are given one piece at a time. At most two pieces are in memory.

    Args:
      model_dir: an empty directory, or the one of the journal.
      config: written to `model.json`.
      shapes: the tree of weights as shapes (`jax.ShapeDtypeStruct`).
      pieces: every piece once, in any order.
      journal: records each piece that is on disk; recorded pieces are not read again.
      on_bytes: called with the size of each piece once it is read or found in the journal.

    Raises:
      ValueError: a piece is given twice, is missing, or has another shape or dtype than in `shapes`.
    """
    folder = step_dir(model_dir.absolute(), 0) / WEIGHTS
    if journal is None or _EMPTY not in journal:
        shutil.rmtree(model_dir / CHECKPOINTS, ignore_errors=True)
        folder = _make_empty(model_dir, shapes)
        if journal is not None:
            journal.add(_EMPTY)
    leaves = arrays.leaves(shapes)
    opening = {path: ts.open(_spec(folder, path), open=True) for path in leaves}
    stores = {path: one.result() for path, one in opening.items()}
    wanted = {(path, layer) for path, leaf in leaves.items() for layer in layers_of(path, leaf.shape)}
    writing: tuple[list[Any], Any] | None = None

    def finish() -> None:
        if writing is not None:
            writing[1].result()
            if journal is not None:
                journal.add(writing[0])

    try:
        for piece in pieces:
            interrupts.check()
            path, layer = piece.path, piece.layer
            if (path, layer) not in wanted:
                raise ValueError(f"there is no piece {path} {layer}, or it was given already")
            wanted.remove((path, layer))
            if journal is None or [path, layer] not in journal:
                array = piece.read()
                part = stores[path] if layer is None else stores[path][layer]
                if array.dtype != part.dtype.numpy_dtype or array.shape != tuple(part.shape):
                    raise ValueError(f"{path} is {part.dtype.name} {part.shape}, not {array.dtype} {array.shape}")
                finish()
                writing = [path, layer], part.write(array).commit
                del array
            if on_bytes is not None:
                on_bytes(piece.nbytes)
        finish()
    finally:
        if writing is not None:
            writing[1].exception()  # waits: after an error, whoever removes the directory must not meet this write
    if wanted:
        raise ValueError(f"{len(wanted)} pieces are missing, such as {min(wanted, key=str)}")
    record_files(folder)
    write_text(model_dir / MODEL_JSON, config.to_json())


class Weights:
    """The weights of a model directory, read one piece at a time. If it has a base, they include all other weights of
    the base, converted to the model's `param_dtype`, even those of a memory that the model itself does not have.

    Attributes:
      shapes: shapes of all weights, by path.
      dtypes: NumPy dtypes of all weights, by path.
      trained: paths of the weights that a training saved, here or in a base.
      own, base: paths of the weights that are here; the base, or None.
      converted: whether weights of a base had another `param_dtype` there.

    Raises:
      ConfigError: there are none, or they are damaged.
    """

    def __init__(self, model_dir: str | Path):
        root, named = split_step(Path(model_dir).absolute())
        step = latest_step(root) if named is None else named
        if step is None:
            raise ConfigError(f"{model_dir} has no weights; was its training stopped before the first save?")
        folder = step_dir(root, step) / WEIGHTS
        if damaged := damage(root, step, [WEIGHTS]):
            raise ConfigError(f"{damaged}; restore the weights from a copy, or name another checkpoint")
        try:
            entries = json.loads((folder / "_METADATA").read_text(encoding="utf-8"))["tree_metadata"].values()
            paths = ["/".join(key["key"] for key in entry["key_metadata"]) for entry in entries]
            open_ones = {path: ts.open(_spec(folder, path), open=True) for path in paths}
            self._arrays = {path: opening.result() for path, opening in open_ones.items()}
        except (OSError, ValueError, LookupError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            raise ConfigError(f"the weights in {folder} cannot be read ({reason}); restore them from a copy") from error
        self.shapes = {path: tuple(array.shape) for path, array in self._arrays.items()}
        self.dtypes = {path: array.dtype.numpy_dtype for path, array in self._arrays.items()}
        self.own = set(paths)
        self.trained = set(paths) if step else set()  # an import is step 0
        self.converted = False
        base = bases.checked(root)
        self.base: Weights | None = None
        if base is not None:
            self.base = Weights(base.folder)
            param_dtype = read_config(root).param_dtype
            dtype = np.dtype(jax.numpy.dtype(param_dtype))
            rest = {path: shape for path, shape in self.base.shapes.items() if path not in self.shapes}
            self.shapes |= rest
            self.dtypes |= dict.fromkeys(rest, dtype)
            self.trained |= self.base.trained - self._arrays.keys()
            self.converted = self.base.converted or read_config(base.path).param_dtype != param_dtype

    def read(self, path: str, layer: int | None = None) -> np.ndarray:
        """Returns a weight, or one layer of a stacked one."""
        if path not in self._arrays:
            assert self.base is not None
            return self.base.read(path, layer).astype(self.dtypes[path], copy=False)
        array = self._arrays[path] if layer is None else self._arrays[path][layer]
        read: np.ndarray = array.read().result()
        return read


def layers_of(path: str, shape: tuple[int, ...]) -> Iterable[int | None]:
    """Returns `Piece.layer` of each piece of a weight: the indices of its layers, or (None,) if it is not stacked."""
    return range(shape[0]) if path.startswith(STACKED) else (None,)


def _make_empty(model_dir: Path, shapes: Mapping[str, Any]) -> Path:
    """Writes step 0 with arrays of zeros, which take no disk space, and returns its folder."""
    flat = arrays.leaves(shapes)
    # A broadcast scalar, so that no array of that size is ever in memory.
    zeros = lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
    parts = {
        path: ocp.SaveArgs(chunk_byte_size=PART_BYTES, shard_axes=(0,) if path.startswith(STACKED) else ())
        for path in flat
    }
    as_tree = lambda values: jax.tree.unflatten(jax.tree.structure(shapes), values)
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, create=True)
    root = model_dir.absolute()
    with ocp.CheckpointManager((root / CHECKPOINTS).as_posix(), item_handlers={WEIGHTS: handler}, options=options) as m:
        save = ocp.args.PyTreeSave(jax.tree.map(zeros, shapes), save_args=as_tree([parts[path] for path in flat]))
        m.save(0, args=ocp.args.Composite(**{WEIGHTS: save}))
    folder = step_dir(root, 0) / WEIGHTS
    if difference := arrays.difference(arrays.types(shapes), arrays.types(arrays.stored(folder))):
        raise RuntimeError(f"what was written in {folder} cannot be read back: {difference}")
    return folder


def _spec(folder: Path, path: str) -> dict[str, Any]:
    """Returns tensorstore's spec of an array that Orbax wrote; its name is the path with dots."""
    about = json.loads((folder / "_METADATA").read_text(encoding="utf-8"))
    name = f"{path.replace('/', '.')}/"
    if about.get("use_ocdbt", True):
        store: dict[str, Any] = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, "path": name}
    else:
        store = {"driver": "file", "path": f"{folder}/{name}"}
    return {"driver": "zarr3" if about.get("use_zarr3") else "zarr", "kvstore": store}
