"""Reads models and trainings from a model directory (its files: `storage/steps.py`, `storage/model_dir.py`) and writes
a model once (`save_model`). `storage/writer.py` writes during a training.

A damaged step is reported, and the step before it is read.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from famjax.config import ConfigError, ModelConfig
from famjax.storage import arrays, lock, steps
from famjax.storage import base as bases
from famjax.storage.base import Base
from famjax.storage.model_dir import read_config, split_step
from famjax.storage.quiet import quiet
from famjax.storage.steps import PROGRESS, TRAINING, WEIGHTS, latest_step
from famjax.storage.writer import Keep, Writer, first_line

__all__ = [
    "FAM", "Restored", "latest_step", "load_model", "override_memory", "restore_training", "resumable", "save_model",
]  # fmt: skip

# Keys of the tree of weights: FAM's own weights, {"prompt": [F, D]} or {"prefix": [L, F, D]}, and in them the gate of
# FAM's attention, if there is one.
FAM, GATE = "fam", "gate"

Tree = Mapping[str, Any]
# Maps a configuration to the shapes (`jax.ShapeDtypeStruct`) of its weights; supplied by the caller.
Shapes = Callable[[ModelConfig], Tree]


class Damaged(Exception):
    """A step cannot be read; the message names the file, or quotes the error."""


class Restored(NamedTuple):
    """A training after `step` steps: its weights, its other arrays (the optimizer state), and its JSON object."""

    step: int
    params: dict[str, Any]
    training: Any
    progress: dict[str, Any]


def save_model(
    model_dir: str | Path, config: ModelConfig, params: Tree, *, step: int | None = None,
    training: Any = None, progress: dict[str, Any] | None = None, keep: int = 1,
) -> int:  # fmt: skip
    """Writes a model, and returns the step that its weights are saved under.

    Args:
      model_dir: created if it does not exist.
      config: written to `model.json`.
      params: the weights, as returned by `nn.weights.parameters`.
      step: number of steps trained, greater than that of the last save; None: that of the last save plus 1, or 0.
      training: any other tree of arrays (optimizer state).
      progress: any small JSON object.
      keep: number of newest steps to keep.

    Raises:
      ConfigError: the directory holds another model, with weights of other shapes, is in use by a training, or cannot
        be written.
    """
    root = Path(model_dir).absolute()
    newest = latest_step(root)
    there = None
    if newest is not None and not steps.damage(root, newest, [WEIGHTS]):
        there = _stored_shapes(steps.step_dir(root, newest) / WEIGHTS)
    if there is not None and (difference := arrays.difference(arrays.shapes(params), there)):
        raise ConfigError(f"{model_dir} holds another model ({difference}); choose an empty directory")
    if step is None:
        step = 0 if newest is None else newest + 1
    elif newest is not None and step <= newest:
        raise ConfigError(f"{model_dir} already has step {newest}; step {step} must be later")
    with lock.held(root), Writer(root, config, Keep(last=keep)) as writer:
        writer.save(step, params, training, progress)
    return step


def load_model(model_dir: str | Path, shapes: Shapes, **memory: int | None) -> tuple[ModelConfig, dict[str, Any]]:
    """Returns a model's configuration and weights, from its newest intact step.

    If the newest step is damaged, that is reported on standard error, and the step before it is read.

    Args:
      model_dir: a directory that `save_model` or a training wrote, or one of its steps: DIR/checkpoints/400,
        DIR/checkpoints/best.
      shapes: maps a configuration to the shapes of its weights, which are compared with those on disk. If they have
        shardings, the weights are read directly into them, whichever mesh wrote them; else to one device.
      memory: settings of `MemoryConfig` that override `model.json`; None: no change. A shorter `fam_length` uses the
        last rows of the prompt, which keep their positions unless `fam_position` is `float`; 0 drops FAM's
        weights, with those of its gates.

    Raises:
      ConfigError: there is no model directory or no intact step (or not the named one), the weights have other shapes
        than `model.json` implies, or these weights do not support the memory settings.
    """
    stored = read_config(model_dir)
    config = override_memory(stored, **memory)
    root, named = split_step(model_dir)
    root = root.absolute()
    read = lambda step: _load_weights(root, step, shapes(stored))
    step, params, damaged = _newest_whole(root, read, [WEIGHTS], named)
    if step is None:
        raise ConfigError(_no_weights(root, named, damaged))
    if damaged and jax.process_index() == 0:
        print(f"{_describe(root, damaged)}; using step {step}, the one before", file=sys.stderr, flush=True)
    F = config.memory.fam_length
    if FAM in params and stored.memory.fam_length > F:
        fam = params.pop(FAM)
        if F:
            params[FAM] = {name: x if name == GATE else x[..., -F:, :] for name, x in fam.items()}
    if stored.memory.gates_updates and not config.memory.gates_updates:
        params["layers"] = {name: tree for name, tree in params["layers"].items() if name != "memory"}
    return config, params


def override_memory(config: ModelConfig, **memory: int | None) -> ModelConfig:
    """Returns `config` with other memory settings. Raises `ConfigError` if its weights do not support them."""
    changes: dict[str, Any] = {name: value for name, value in memory.items() if value is not None}
    has, asked = config.memory.fam_length, changes.get("fam_length", 0)
    if asked > has:
        reason = f"the model's FAM has {has} rows" if has else "the model was trained without FAM"
        raise ConfigError(
            f"fam_length {asked} is not possible: {reason}; use at most {has}, or train further with "
            f"--gin.FAM_LENGTH={asked} and INITIAL_CHECKPOINT_PATH"
        )
    if changes.get("fam_length") == 0:  # nothing is updated then
        changes |= {"fam_update": "feedback", "fam_update_noise": 0.0}
    new = config.with_memory(**changes)
    new.validate()
    return new


def restore_training(model_dir: str | Path, weights: Tree, training: Any) -> tuple[Restored | None, str]:
    """Returns the newest intact step of a training and a description of damaged later ones, or (None, "").

    Args:
      model_dir: of the training.
      weights, training: trees of arrays, or of their shapes with shardings (`jax.ShapeDtypeStruct`), as they were
        saved; the mesh and the number of processes may differ from those that wrote them.

    Raises:
      ConfigError: no step is intact, or no training, or one with other settings, wrote them.
    """
    root = Path(model_dir).absolute()
    read = lambda step: Restored(step, _load_weights(root, step, weights), *_load_training(root, step, training))
    return _newest_training(root, read)


def resumable(model_dir: str | Path, training: Any) -> tuple[int, dict[str, Any]] | None:
    """Returns (step, progress) of the step that `restore_training` would return, without reading arrays; None if there
    is none. Raises `ConfigError` like it."""
    root = Path(model_dir).absolute()

    def read(step: int) -> tuple[int, dict[str, Any]]:
        _check_training(root, step, training)
        return step, _progress(root, step)

    found: tuple[int, dict[str, Any]] | None = _newest_training(root, read)[0]
    return found


def _newest_training(root: Path, read: Callable[[int], Any]) -> tuple[Any, str]:
    """Returns `read` of the newest intact step and a description of damaged later ones, or (None, "")."""
    if not steps.all_steps(root):
        return None, ""
    step, restored, damaged = _newest_whole(root, read, [WEIGHTS, TRAINING, PROGRESS])
    if step is None and not any((steps.step_dir(root, step) / TRAINING).is_dir() for step in steps.all_steps(root)):
        raise ConfigError(
            f"{root} holds a model that no training wrote; set INITIAL_CHECKPOINT_PATH to it, and use another MODEL_DIR"
        )
    if step is None:
        raise ConfigError(f"{_describe(root, damaged)}; restore one from a copy, or use another MODEL_DIR")
    return restored, _describe(root, damaged) if damaged else ""


# --- the newest intact step -----------------------------------------------------------------------


def _newest_whole(
    root: Path, read: Callable[[int], Any], parts: Iterable[str], named: int | None = None
) -> tuple[int | None, Any, dict[int, str]]:
    """Returns (step, result of `read`, {damaged step: what is wrong}) of the newest intact step; step is None if there
    is none.

    Steps are listed again before every attempt, since a training may save and delete steps meanwhile. In a job of
    several processes the first one chooses the step, so that all read the same one.
    """
    parts, damaged = list(parts), dict[int, str]()
    while True:
        step = None
        if jax.process_index() == 0:
            there = steps.newest_first(root, named)
            step = next((n for n in there if n not in damaged and _whole(root, n, parts, damaged)), None)
        if jax.process_count() > 1:
            agreed = int(multihost_utils.broadcast_one_to_all(np.int64(-1 if step is None else step)))
            step = None if agreed < 0 else agreed
        if step is None:
            return None, None, _still_there(root, damaged)
        with quiet():
            try:
                return step, read(step), _still_there(root, damaged)
            except Damaged as error:
                if jax.process_count() > 1:  # other processes may have read their parts already
                    raise ConfigError(f"{error}; restore it from a copy, or delete that step") from error
                damaged[step] = str(error)
                time.sleep(0.1)  # for threads of Orbax that still report errors


def _still_there(root: Path, damaged: dict[int, str]) -> dict[int, str]:
    """Returns the damaged steps without those that a training has deleted, which were whole when they were listed."""
    return {step: problem for step, problem in damaged.items() if steps.step_dir(root, step).is_dir()}


def _whole(root: Path, step: int, parts: list[str], damaged: dict[int, str]) -> bool:
    problem = steps.damage(root, step, parts)
    if problem and steps.step_dir(root, step).is_dir():  # else deleted since it was listed
        damaged[step] = problem
    return not problem


def _describe(root: Path, damaged: dict[int, str]) -> str:
    """Describes which steps are damaged and how."""
    first, *more = (f"step {step} ({problem})" for step, problem in sorted(damaged.items(), reverse=True))
    also = f", as {'are' if len(more) > 1 else 'is'} {', '.join(more)}" if more else ""
    return f"{root}: {first} is damaged{also}"


def _no_weights(root: Path, named: int | None, damaged: dict[int, str]) -> str:
    if len(damaged) == 1:
        (problem,) = damaged.values()
        return f"{problem}; restore the weights from a copy"
    if damaged:
        return f"{_describe(root, damaged)}; restore one of them from a copy"
    if named is not None:
        return steps.no_step(root, named)
    return f"{root} has a model.json but no weights; was its training stopped before the first save?"


# --- Orbax ----------------------------------------------------------------------------------------


def _load_weights(root: Path, step: int, target: Tree) -> dict[str, Any]:
    """Reads weights. Raises `Damaged`, or `ConfigError` if they, or those of the base, do not match `target`."""
    folder = steps.step_dir(root, step) / WEIGHTS
    there = _stored_shapes(folder)
    if there is None:
        raise Damaged(f"the weights in {folder.parent} are damaged")
    base = bases.checked(root)
    own = target if base is None else bases.part(target, there.__contains__)
    if difference := arrays.difference(arrays.shapes(own), there):
        raise ConfigError(f"the weights in {root} do not fit its model.json: {difference}")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            params = dict(checkpointer.restore(folder, jax.tree.map(_with_sharding, own)))
    except Exception as error:
        raise Damaged(f"the weights in {folder.parent} are damaged: {first_line(error)}") from error
    if base is None:
        return params
    return bases.joined(params, _load_base(base, bases.part(target, lambda path: path not in there)))


def _load_base(base: Base, target: Tree) -> dict[str, Any]:
    """Reads the weights of `target` that a fine-tuned model shares with its base, converted to the dtypes of `target`,
    as `train/initial.py` did when the training started. Raises `ConfigError`, not `Damaged`, since other steps of the
    fine-tuned model have the same base."""
    folder = base.folder / WEIGHTS
    there, below = _stored_leaves(folder), bases.checked(base.path)
    if there is None:
        raise ConfigError(f"the weights in {base.folder} are damaged; restore them from a copy")
    own = target if below is None else bases.part(target, there.__contains__)
    stored = {path: leaf for path, leaf in there.items() if path in arrays.shapes(own)}
    if difference := arrays.difference(arrays.shapes(own), {path: tuple(leaf.shape) for path, leaf in stored.items()}):
        raise ConfigError(f"the weights in {base.folder} do not fit what was trained on them: {difference}")
    as_stored = lambda path, leaf: jax.ShapeDtypeStruct(
        leaf.shape, there[arrays.path_of(path)].dtype, sharding=_with_sharding(leaf).sharding
    )
    wanted = jax.tree_util.tree_map_with_path(as_stored, own)
    try:  # nothing is wanted if the base's own base has everything
        params: dict[str, Any] = dict(_restored(folder, wanted, partial=True)) if own else {}
    except Exception as error:
        raise ConfigError(f"the weights in {base.folder} are damaged: {first_line(error)}") from error
    params = jax.tree.map(lambda array, leaf: array.astype(leaf.dtype), params, own)
    if below is None:
        return params
    return bases.joined(params, _load_base(below, bases.part(target, lambda path: path not in there)))


def _load_training(root: Path, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """Reads the other arrays and the JSON of a training. Raises `Damaged`, or `ConfigError` if the settings differ."""
    _check_training(root, step, like)
    folder = steps.step_dir(root, step)
    try:
        training = _restored(folder / TRAINING, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
    except Exception as error:
        raise Damaged(f"the training in {folder} is damaged: {first_line(error)}") from error
    return training, _progress(root, step)


def _check_training(root: Path, step: int, like: Any) -> None:
    """Raises `Damaged`, or `ConfigError` if the arrays of a training have other shapes than these settings imply."""
    folder = steps.step_dir(root, step)
    there = _stored_shapes(folder / TRAINING)
    if there is None:
        raise Damaged(f"the training in {folder} is damaged")
    if difference := arrays.difference(arrays.shapes(like), there):
        raise ConfigError(
            f"the training in {folder} cannot be resumed with these settings ({difference}); use those of its "
            f"config.gin, or use another MODEL_DIR"
        )


def _progress(root: Path, step: int) -> dict[str, Any]:
    """Returns the JSON of a training; empty if there is none. Raises `Damaged`."""
    folder = steps.step_dir(root, step)
    path = folder / PROGRESS / "metadata"  # the file name of Orbax's JsonSave
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except Exception as error:
        raise Damaged(f"the training in {folder} is damaged: {first_line(error)}") from error
    return found


def _restored(folder: Path, target: Any, partial: bool = False) -> Any:
    """Reads the arrays of `target`; `partial`: others may be in the folder, too."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(target, restore_args, partial_restore=partial))


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Returns the shapes of the arrays on disk by path, or None if they cannot be read."""
    leaves = _stored_leaves(folder)
    return None if leaves is None else {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def _stored_leaves(folder: Path) -> dict[str, Any] | None:
    """Returns Orbax's metadata of each array on disk by path, or None if they cannot be read."""
    try:
        with quiet():
            return arrays.stored(folder)
    except Exception:  # whatever Orbax raises, the files are damaged
        return None


def _with_sharding(leaf: Any) -> Any:
    """Adds a single-device sharding to a shape that has none, since the mesh that wrote it may not be available."""
    if leaf.sharding is not None:
        return leaf
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
