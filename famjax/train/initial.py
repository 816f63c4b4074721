"""Weights of another model to start from: what is taken, what is new, what is left, in words."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from famjax.config import ConfigError, ModelConfig
from famjax.config.optimizer import MEMORY
from famjax.nn.weights import parameter_shapes
from famjax.storage import checkpoint
from famjax.storage.checkpoint import FAM, GATE
from famjax.storage.model_dir import read_config

Weights = dict[str, Any]
# Parts of the tree that a model may have and its source may lack: what it learns beside the source's weights.
LORA = "layers/lora/"
ADDED = (*MEMORY, LORA)
_NAMED = 6


def adopt(
    source: str | Path, model: ModelConfig, fresh: Weights, shapes: Callable[[ModelConfig], Weights]
) -> tuple[Weights, str]:
    """The weights of `source`, completed by `fresh` ones, and a few lines that say what came from where.

    LoRA that the source has not is new. Otherwise the memory alone may differ: what the source lacks, or has in
    another form, stays as in `fresh`; of a longer prompt the last rows are taken, which keep their positions; a
    shorter one becomes the last rows.

    Args:
      source: a model directory, or one of its steps.
      model: the configuration to train.
      fresh: its weights, on their mesh.
      shapes: from a configuration to its weights' shapes, with shardings.

    Raises:
      ConfigError: nothing to read, or weights of other shapes.
    """
    _check_lora(source, read_config(source), model)
    _, found = checkpoint.load_model(source, shapes)
    have, want = _flatten(found), _flatten(fresh)
    _check(source, have, want)
    _check_gate(source, have, model)
    taken, lines = dict(want), []
    for path, array in want.items():
        if path not in have and path.startswith(LORA):
            continue
        if path not in have:
            lines.append(f"new: {_shape(path, array)}")
        elif have[path].shape == array.shape:
            taken[path] = have[path].astype(array.dtype)
        else:
            taken[path], line = _rows(path, have[path], array)
            lines.append(line)
    lines += [f"new: {line}" for line in _new_lora(have, want, model)]
    lines += [f"left: {_shape(path, have[path])}" for path in have if path not in want]
    names = [path for path, array in want.items() if path in have and have[path].shape == array.shape]
    count = sum(math.prod(want[path].shape) for path in names)
    head = f"starting from the weights in {source}"
    whole = f"taken: {len(names)} of {len(want)} arrays, {count:,} weights"
    params = jax.tree.unflatten(jax.tree.structure(fresh), list(taken.values()))
    return params, "\n  ".join([head, whole, *lines])


def check(source: str | Path, model: ModelConfig) -> str:
    """What `adopt` would do, from the configurations alone, in a line. Raises as it does on other shapes."""
    _check_lora(source, read_config(source), model)
    have, want = (_flatten(parameter_shapes(config)) for config in (read_config(source), model))
    _check(source, have, want)
    _check_gate(source, have, model)
    new = [path for path in want if path not in have or have[path].shape != want[path].shape]
    new = [path for path in new if not path.startswith(LORA)] + _new_lora(have, want, model)
    return f"the weights in {source}" + (f"; new, or new in part: {', '.join(new)}" if new else "")


def _new_lora(have: Weights, want: Weights, model: ModelConfig) -> list[str]:
    """LoRA's arrays that the source has not, as one, or none."""
    count = sum(path.startswith(LORA) and path not in have for path in want)
    return [f"LoRA of rank {model.lora.rank}, {count} arrays"] if count else []


def _check_lora(source: str | Path, stored: ModelConfig, model: ModelConfig) -> None:
    """Raises `ConfigError` where the source's LoRA would get lost, or mean something else."""
    has, asked = (dataclasses.replace(config.lora, dropout=0.0) for config in (stored, model))
    if has.rank and has != asked:
        raise ConfigError(
            f"{source} has LoRA of rank {has.rank}: train on with the rank, alpha and projections in its model.json, "
            f"or merge it first, with export-hf and import-hf"
        )


def _check_gate(source: str | Path, have: Weights, model: ModelConfig) -> None:
    """Raises `ConfigError` where a FAM would be seen in full that was shut, or half open, in the source."""
    if f"{FAM}/{GATE}" in have and model.memory.fam_length and not model.memory.fam_gate:
        raise ConfigError(f"{source} has a gate before FAM: train on with fam_gate True, as its model.json has it")


def _check(source: str | Path, have: Weights, want: Weights) -> None:
    """Raises `ConfigError` on differences outside of FAM, and names some."""
    wrong = []
    for path in sorted(have | want):
        if path.startswith(ADDED):
            continue
        if path not in have:
            wrong.append(f"{_shape(path, want[path])} is not there")
        elif path not in want:
            wrong.append(f"{_shape(path, have[path])} has no place")
        elif have[path].shape != want[path].shape:
            wrong.append(f"{_shape(path, have[path])} should be {list(want[path].shape)}")
    if wrong:
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ConfigError(
            f"the weights in {source} have other shapes than the model: {', '.join(wrong[:_NAMED])}{more}; use the "
            f"settings of its model.json"
        )


def _rows(path: str, have: Any, want: Any) -> tuple[Any, str]:
    """FAM of another length [..., F, D]: its last rows keep their positions."""
    there, asked = have.shape[-2], want.shape[-2]
    if have.shape[:-2] + have.shape[-1:] != want.shape[:-2] + want.shape[-1:]:
        raise ConfigError(f"{_shape(path, have)} should be {list(want.shape)}")
    if there > asked:
        rows = have[..., there - asked :, :].astype(want.dtype)
        return jax.device_put(rows, want.sharding), f"taken in part: {path}, the last {asked} of {there} rows"
    rows = jnp.concatenate([want[..., : asked - there, :], have.astype(want.dtype)], axis=-2)
    line = f"taken in part: {path}, {there} rows as the last ones; the {asked - there} before them are new"
    return jax.device_put(rows, want.sharding), line


def _flatten(tree: Weights) -> Weights:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _shape(path: str, array: Any) -> str:
    return f"{path} {list(array.shape)}"
