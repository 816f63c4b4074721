"""Weights on disk, in Orbax, below a model directory (`runtime/model_dir.py` has the rest of it).

    checkpoints/N/weights/     the weights: a plain nested dict, its paths are in docs/architecture.md
    checkpoints/N/training/    optional: the rest of a training's state
    checkpoints/N/progress/    optional: what of it is JSON

N counts steps. Orbax writes a step beside the others and renames it when it is whole, and only then
are old ones deleted: whoever is killed on the way leaves the last whole step.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from famjax.config import ConfigError, MemoryConfig, ModelConfig
from famjax.runtime import distributed
from famjax.runtime.model_dir import CHECKPOINTS, MODEL_JSON, read_config, write_text

WEIGHTS, TRAINING, PROGRESS = "weights", "training", "progress"
# Of the tree of weights, what belongs to FAM: {"prompt": [F, D]} or {"prefix": [L, F, D]}.
FAM = "fam"

# What was written below a folder of weights; of files up to so many bytes the content is checked too.
FILES, CHECKED_BYTES = "FILES.json", 2**26

Tree = Mapping[str, Any]
# From a configuration to the shapes (`jax.ShapeDtypeStruct`) of its weights; the model knows them.
Shapes = Callable[[ModelConfig], Tree]


def save_model(
    model_dir: str | Path, config: ModelConfig, params: Tree, *, step: int | None = None,
    training: Any = None, progress: dict[str, Any] | None = None, keep: int = 1,
) -> int:  # fmt: skip
    """Writes a model, and returns the step under which its weights now are.

    Args:
      model_dir: made where there is none.
      config: goes into `model.json`.
      params: the weights, as `nn.model.parameters` gives them.
      step: steps trained, more than at the last save; None counts on from there.
      training: any other tree of arrays (optimizer state).
      progress: any small JSON object.
      keep: how many steps stay.

    Raises:
      ConfigError: the directory holds another model, with weights of other shapes.
    """
    root = Path(model_dir).absolute()
    newest = latest_step(root)
    readable = newest is not None and not _damaged(_step_dir(root, newest) / WEIGHTS)
    there = _stored_shapes(root, newest) if readable else None
    if there is not None and (difference := _difference(_flatten(params), there)):
        raise ConfigError(f"{model_dir} holds another model ({difference}); choose an empty directory")
    if step is None:
        step = 0 if newest is None else newest + 1
    elif newest is not None and step <= newest:
        raise ConfigError(f"{model_dir} already has step {newest}; step {step} would be lost behind it")
    items: dict[str, Any] = {WEIGHTS: ocp.args.StandardSave(params)}
    if training is not None:
        items[TRAINING] = ocp.args.PyTreeSave(training)
    if progress is not None:
        items[PROGRESS] = ocp.args.JsonSave(progress)
    if distributed.is_primary():
        write_text(root / MODEL_JSON, config.to_json())
    with _manager(root, keep) as manager:
        manager.save(step, args=ocp.args.Composite(**items), force=True)
    if distributed.is_primary():
        _record_files(_step_dir(root, step) / WEIGHTS)
    return step


def load_model(model_dir: str | Path, shapes: Shapes, **memory: int | None) -> tuple[ModelConfig, dict[str, Any]]:
    """A model's configuration and weights.

    Args:
      model_dir: a directory that `save_model` wrote.
      shapes: tells the weights that a configuration implies; those on disk are held against them. Where
        these have shardings, the weights are read straight to their places on that mesh, whatever mesh
        wrote them; else they go to one device.
      memory: settings of `MemoryConfig` that shall differ from `model.json`; None changes nothing.
        A shorter `fam_length` takes the last rows of the prompt, which keep their positions; 0 takes none.

    Raises:
      ConfigError: no model directory, damaged, weights of other shapes than `model.json` implies,
        or a memory that these weights cannot have.
    """
    stored = read_config(model_dir)
    config = override_memory(stored, **memory)
    root = Path(model_dir).absolute()
    step = latest_step(root)
    if step is None:
        raise ConfigError(
            f"{model_dir} has a model.json but no weights; was its training stopped before the first save?"
        )
    if damaged := _damaged(_step_dir(root, step) / WEIGHTS):
        raise ConfigError(f"{damaged} is missing or damaged; restore the weights from a copy")
    there = _stored_shapes(root, step)
    if there is None:
        raise ConfigError(f"the weights in {_step_dir(root, step)} are damaged; restore them from a copy")
    if difference := _difference(_flatten(shapes(stored)), there):
        raise ConfigError(f"the weights in {model_dir} do not fit its model.json: {difference}")
    params = _restore(root, step, shapes(stored))
    F = config.memory.fam_length
    if FAM in params and stored.memory.fam_length > F:
        fam = params.pop(FAM)
        if F:
            params[FAM] = jax.tree.map(lambda x: x[..., -F:, :], fam)
    return config, params


def override_memory(config: ModelConfig, **memory: int | None) -> ModelConfig:
    """`config` with other memory settings, where weights of `config` allow it. Raises `ConfigError` if not."""
    changes = {name: value for name, value in memory.items() if value is not None}
    has, asked = config.memory.fam_length, changes.get("fam_length", 0)
    if asked > has:
        reason = f"the model's FAM has {has} rows" if has else "the model was trained without FAM"
        raise ConfigError(
            f"fam_length {asked} is not possible: {reason}; use at most {has}, or train further with "
            f"--gin.FAM_LENGTH={asked} and INITIAL_CHECKPOINT_PATH"
        )
    changed: MemoryConfig = dataclasses.replace(config.memory, **changes)  # type: ignore[arg-type]
    new = dataclasses.replace(config, memory=changed)
    new.validate()
    return new


def load_training(model_dir: str | Path, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """(step, training, progress) of the newest checkpoint, or None where there is none.

    `like` is a tree of arrays, or of their shapes with shardings (`jax.ShapeDtypeStruct`), as `save_model`
    was given for `training`; the mesh may be another than the one that wrote it.
    """
    root = Path(model_dir).absolute()
    step = latest_step(root)
    if step is None or not (_step_dir(root, step) / TRAINING).is_dir():
        return None
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    items = {TRAINING: ocp.args.PyTreeRestore(target, restore_args), PROGRESS: ocp.args.JsonRestore()}
    if not (_step_dir(root, step) / PROGRESS).is_dir():
        del items[PROGRESS]
    try:
        with _manager(root) as manager:
            out = manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:
        raise ConfigError(
            f"the training in {_step_dir(root, step)} cannot be continued ({_first_line(error)}); "
            f"train into another MODEL_DIR"
        ) from error
    return step, out[TRAINING], out.get(PROGRESS) or {}


def latest_step(model_dir: str | Path) -> int | None:
    """The newest whole step below a model directory, or None."""
    folder = Path(model_dir) / CHECKPOINTS
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit() and path.is_dir()]
    return max(steps, default=None)


# --- Orbax ----------------------------------------------------------------------------------------


def _manager(root: Path, keep: int = 1) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True, create=True
    )
    return ocp.CheckpointManager((root / CHECKPOINTS).as_posix(), options=options)


def _step_dir(root: Path, step: int) -> Path:
    return root / CHECKPOINTS / str(step)


def _stored_shapes(root: Path, step: int) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the weights on disk by path, or None where they cannot be read."""
    try:
        handler = ocp.StandardCheckpointHandler()
        return _flatten(handler.metadata(_step_dir(root, step) / WEIGHTS).tree)
    except Exception:  # whatever Orbax raises, the files are not as they were written
        return None


def _restore(root: Path, step: int, target: Tree) -> dict[str, Any]:
    target = jax.tree.map(_with_place, target)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(_step_dir(root, step) / WEIGHTS, target)
    except Exception as error:
        raise ConfigError(
            f"the weights in {_step_dir(root, step)} are damaged ({_first_line(error)}); restore them from a copy"
        ) from error
    return dict(restored)


def _with_place(leaf: Any) -> Any:
    """A shape without a sharding is given one device: the mesh that wrote it may not be here."""
    if leaf.sharding is not None:
        return leaf
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)


def _record_files(folder: Path) -> None:
    """Notes what was written, so that damage is found before Orbax is asked to read it.

    Orbax reads all arrays side by side; on damage each of them prints a traceback, from threads.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILES)
    write_text(folder / FILES, json.dumps({str(path.relative_to(folder)): _fingerprint(path) for path in files}))


def _fingerprint(path: Path) -> list[int]:
    """[bytes, CRC32], the second only of files that are read in a moment."""
    size = path.stat().st_size
    return [size, zlib.crc32(path.read_bytes())] if size <= CHECKED_BYTES else [size]


def _damaged(folder: Path) -> str:
    """The first file that is not as it was written, or nothing. Without a record all is taken as whole."""
    if not (folder / FILES).is_file():
        return "" if folder.is_dir() else str(folder)
    try:
        recorded = json.loads((folder / FILES).read_text(encoding="utf-8"))
        for name, fingerprint in recorded.items():
            if not (folder / name).is_file() or _fingerprint(folder / name) != fingerprint:
                return str(folder / name)
    except (ValueError, AttributeError):
        return str(folder / FILES)
    return ""


def _flatten(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"layers/attention/query": shape, ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}


def _difference(expected: dict[str, tuple[int, ...]], there: dict[str, tuple[int, ...]]) -> str:
    """The first difference in words, or nothing."""
    for name in sorted(expected | there):
        if name not in there:
            return f"{name} {list(expected[name])} is missing"
        if name not in expected:
            return f"{name} {list(there[name])} is not part of the model"
        if expected[name] != there[name]:
            return f"{name} is {list(there[name])}, it should be {list(expected[name])}"
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
