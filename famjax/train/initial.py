"""Initial weights from another model: which are taken, which are new and which are left out, with a report."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from famjax.config import ConfigError, ModelConfig
from famjax.config.optimizer import LORA, MEMORY
from famjax.nn.weights import parameter_shapes
from famjax.pretrained.config_json import architecture
from famjax.storage import checkpoint
from famjax.storage.arrays import leaves
from famjax.storage.checkpoint import FAM, GATE
from famjax.storage.model_dir import read_config

Weights = dict[str, Any]
# Path prefixes of weights that a fine-tuning may add, so that a source may lack them.
ADDED = (*MEMORY, LORA)
# Settings that a fine-tuning may change, by their first letters.
ROPE = ("rope_", "local_rope_")
WRITE_GATE = "layers/memory/write_bias"
_NAMED = 6


def adopt(
    source: str | Path, model: ModelConfig, fresh: Weights, shapes: Callable[[ModelConfig], Weights]
) -> tuple[Weights, str]:
    """Returns the weights of `source`, completed by `fresh` ones, and a report of where each came from.

    Only LoRA, the memory, RoPE's settings and those of execution, such as `remat`, may differ. Weights of LoRA and the
    memory that the source lacks are taken from `fresh`; those that the model lacks are left out. FAM of another length
    is aligned at its last rows, which so keep their positions unless `fam_position` is `float`: a longer one is
    truncated at the front, a shorter one is completed at the front by rows of `fresh`.

    Args:
      source: a model directory, or one of its steps.
      model: the configuration to train.
      fresh: initial weights of this model, sharded over the mesh.
      shapes: maps a configuration to the shapes of its weights, with shardings.

    Raises:
      ConfigError: there are no weights to read, they have other shapes, they are of another architecture, or LoRA or a
        gate of FAM would be lost.
    """
    _, _, lines = _checked(source, model)
    _, found = checkpoint.load_model(source, shapes)
    have, want = leaves(found), leaves(fresh)
    taken = dict(want)
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
    lines += [f"left out: {_shape(path, have[path])}" for path in have if path not in want]
    names = [path for path, array in want.items() if path in have and have[path].shape == array.shape]
    count = sum(math.prod(want[path].shape) for path in names)
    head = f"starting from the weights in {source}"
    whole = f"taken: {len(names)} of {len(want)} arrays, {count:,} weights"
    params = jax.tree.unflatten(jax.tree.structure(fresh), list(taken.values()))
    return params, "\n  ".join([head, whole, *lines])


def check(source: str | Path, model: ModelConfig) -> str:
    """Describes in one line what `adopt` would do, from the configurations alone. Raises as it does on other models."""
    have, want, changed = _checked(source, model)
    new = [path for path in want if path not in have or have[path].shape != want[path].shape]
    new = [path for path in new if not path.startswith(LORA)] + _new_lora(have, want, model)
    said = [f"new, or partly new: {', '.join(new)}"] if new else []
    return "; ".join([f"the weights in {source}", *changed, *said])


def _checked(source: str | Path, model: ModelConfig) -> tuple[Weights, Weights, list[str]]:
    """Returns the shapes of the weights of `source` and of the model, by path, and what `_check_architecture` reports;
    reads no weights. Raises `ConfigError` as `adopt` does."""
    stored = read_config(source)
    changed = _check_lora(source, stored, model)
    have, want = (leaves(parameter_shapes(config)) for config in (stored, model))
    _check(source, have, want)
    changed += _check_architecture(source, stored, model)
    if f"{FAM}/{GATE}" in have and model.memory.fam_length and not model.memory.fam_gate:
        raise ConfigError(f"{source} has a gate for FAM: set fam_gate to True, as in its model.json")
    if WRITE_GATE in have and model.memory.fam_length and not model.memory.gates_updates:
        raise ConfigError(f"{source} gates the updates of FAM: set fam_update to 'gated', as in its model.json")
    return have, want, changed


def _new_lora(have: Weights, want: Weights, model: ModelConfig) -> list[str]:
    """Returns a list with one line on the LoRA arrays that the source lacks, or an empty list."""
    count = sum(path.startswith(LORA) and path not in have for path in want)
    return [f"LoRA of rank {model.lora.rank}, {count} arrays"] if count else []


def _check_lora(source: str | Path, stored: ModelConfig, model: ModelConfig) -> list[str]:
    """Returns a line of the report if LoRA begins in an earlier layer than the source's: pairs there have changed
    nothing so far, since B of an unused pair is zero.

    Raises:
      ConfigError: the source's LoRA would be lost, in some layers or all, or scaled differently.
    """
    has, asked = (dataclasses.replace(config.lora, dropout=0.0) for config in (stored, model))
    if not has.rank or has == asked:
        return []
    if asked.first_layer > has.first_layer or dataclasses.replace(has, first_layer=asked.first_layer) != asked:
        raise ConfigError(
            f"{source} has LoRA of rank {has.rank}: use the rank, alpha and projections in its model.json, and its "
            f"first_layer or an earlier one, or merge it first, with export-hf and import-hf"
        )
    return [f"changed: LoRA from layer {asked.first_layer}, was {has.first_layer}"]


def _check_architecture(source: str | Path, stored: ModelConfig, model: ModelConfig) -> list[str]:
    """Returns the settings of RoPE that differ, which a training for longer blocks changes, as lines of the report.

    Raises:
      ConfigError: another setting differs, with which the model would compute something else with the source's weights;
        the message names the first.
    """
    there, asked = (dataclasses.asdict(architecture(config)) for config in (stored, model))
    differ = [name for name in there if there[name] != asked[name]]
    for name in differ:
        if not name.startswith(ROPE):
            raise ConfigError(
                f"the weights in {source} were trained with {name} {there[name]}, not {asked[name]}; use the settings "
                f"of its model.json"
            )
    return [f"changed: {name} {asked[name]}, was {there[name]}" for name in differ]


def _check(source: str | Path, have: Weights, want: Weights) -> None:
    """Raises `ConfigError` on differences outside of the memory and LoRA, and on those of the memory that are not a
    number of rows; the message lists some of them."""
    wrong = []
    for path in sorted(have | want):
        both = path in have and path in want
        if path.startswith(ADDED) and not (both and _differ(have[path].shape, want[path].shape)):
            continue
        if path not in have:
            wrong.append(f"{_shape(path, want[path])} is missing")
        elif path not in want:
            wrong.append(f"{_shape(path, have[path])} is not part of it")
        elif have[path].shape != want[path].shape:
            wrong.append(f"{_shape(path, have[path])} should be {list(want[path].shape)}")
    if wrong:
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ConfigError(
            f"the weights in {source} have other shapes than the model: {', '.join(wrong[:_NAMED])}{more}; use the "
            f"settings of its model.json"
        )


def _differ(have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """Whether two shapes differ in more than their rows, the axis before the last."""
    return have != want and (min(len(have), len(want)) < 2 or have[:-2] + have[-1:] != want[:-2] + want[-1:])


def _rows(path: str, have: Any, want: Any) -> tuple[Any, str]:
    """Returns FAM [..., F, D] of another length, aligned at the last rows (see `adopt`), and a line of the report."""
    there, asked = have.shape[-2], want.shape[-2]
    if there > asked:
        rows = have[..., there - asked :, :].astype(want.dtype)
        return jax.device_put(rows, want.sharding), f"partly taken: {path}, the last {asked} of {there} rows"
    rows = jnp.concatenate([want[..., : asked - there, :], have.astype(want.dtype)], axis=-2)
    line = f"partly taken: {path}, {there} rows as the last ones; the {asked - there} before them are new"
    return jax.device_put(rows, want.sharding), line


def _shape(path: str, array: Any) -> str:
    return f"{path} {list(array.shape)}"
