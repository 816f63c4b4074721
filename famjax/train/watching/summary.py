"""Summary of a training and its memory per device, from shapes alone, so nothing is computed."""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import AbstractMesh, Mesh
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from famjax.config import ModelConfig, TrainConfig
from famjax.nn.weights import memory_shapes
from famjax.storage.arrays import leaves, size_of
from famjax.storage.model_dir import SUMMARY_TXT, write_text
from famjax.train import state as states
from famjax.train.watching.norms import GROUPS, group_of

WIDTH = 120


class Sizes(NamedTuple):
    """Sizes in bytes.

    Attributes:
      weights, optimizer: weights and optimizer state on one device.
      carried: rest of the training state on one device: the passed FAM, memories of rows that continue documents.
      row: the unsharded `MemoryState` of one row.
    """

    weights: int
    optimizer: int
    carried: int
    row: int


def sizes(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh | AbstractMesh) -> Sizes:
    """Returns the sizes of the state that one device holds between steps."""
    state = states.abstract(config, tx, mesh)
    carried = held_bytes((state.passed_fam, state.memory))
    return Sizes(held_bytes(state.params), held_bytes(state.opt_state), carried, row_bytes(config.model))


def held_bytes(tree: Any) -> int:
    """Returns the bytes per device of a tree of such arrays."""
    return sum(map(part_bytes, jax.tree.leaves(tree)))


def part_bytes(leaf: Any) -> int:
    """Returns the bytes per device of an abstract array with a sharding."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def row_bytes(config: ModelConfig) -> int:
    """Returns the bytes of a row's `MemoryState`, which do not depend on the length of the text."""
    return size_of(memory_shapes(config, 1))


def summary(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh | AbstractMesh) -> str:
    """Returns a table of weights and a few lines on the training, for `summary.txt`."""
    state = states.abstract(config, tx, mesh)
    weights = leaves(state.params)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("weight", "shape", "type", "sharding"):
        table.add_column(column)
    for column in ("weights", "a device"):
        table.add_column(column, justify="right")
    for group in GROUPS:
        members = [(path, leaf) for path, leaf in weights.items() if group_of(path) == group]
        if not members:
            continue
        count, held = (sum(f(leaf) for _, leaf in members) for f in (lambda leaf: leaf.size, part_bytes))
        table.add_row(f"[bold]{group}[/bold]", "", "", "", f"{count:,}", data_size(held))
        for path, leaf in members:
            frozen = ", frozen" if config.tuning.settings_of(path)["frozen"] else ""
            shape, axes = " x ".join(map(str, leaf.shape)), _axes(leaf.sharding.spec)
            row = (f"  {path}", shape, f"{leaf.dtype}{frozen}", axes, f"{leaf.size:,}", data_size(part_bytes(leaf)))
            table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=WIDTH).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*lines, *_totals(config, weights, sizes(config, tx, mesh), mesh)]) + "\n"


def _totals(config: TrainConfig, weights: dict[str, Any], found: Sizes, mesh: Mesh | AbstractMesh) -> list[str]:
    memory = config.model.memory
    total = sum(leaf.size for leaf in weights.values())
    embedding = sum(leaf.size for path, leaf in weights.items() if group_of(path) == "embedding")
    trained = [path for path in weights if not config.tuning.settings_of(path)["frozen"]]
    # Pairs of layers before `LoraConfig.first_layer` are stored, but have no effect and no gradient.
    layers, first = config.model.num_layers, config.model.lora.first_layer
    unused = sum(weights[path].size for path in trained if group_of(path) == "lora") * first // layers
    aside = f" ({unused:,} of LoRA are unused, in layers before {first})" if unused else ""
    narrow = sum(weights[path].dtype == "bfloat16" for path in trained)
    lost = "which loses changes below 1/512 of a weight; set param_dtype to 'float32'"
    rounding = [f"rounding      {narrow} trained array{'s' * (narrow > 1)} in bfloat16, {lost}"] * (narrow > 0)
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    fam = f"{memory.fam_length} feedback activations" if memory.fam_length else "no feedback activations"
    fam = f"{fam if memory.kind == 'fam' else f'a memory of kind {memory.kind}'} a layer"
    having = len(config.model.layers_with_fam)
    fam += f" in {having} of {layers} layers" if 0 < having < layers else ""
    return [
        f"weights       {total:,}, {total - embedding:,} without embedding; "
        f"{sum(weights[path].size for path in trained) - unused:,} are trained{aside}",
        *rounding,
        f"memory        blocks of {memory.block_size}, {memory.memory_segments} segments, {fam}; "
        f"{data_size(found.row)} a row, for text of any length",
        f"mesh          {shape}",
        f"a device      weights {data_size(found.weights)}, optimizer ({config.optimizer.name}) "
        f"{data_size(found.optimizer)}, passed FAM and rows' memories {data_size(found.carried)}",
        f"a step        {config.batch_size} rows of {config.sequence_length} tokens in {config.microbatches} "
        f"microbatch{'es' * (config.microbatches > 1)}",
        *(f"no effect     {setting}: {reason}" for setting, reason in config.without_effect.items()),
    ]


def summarise(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh) -> None:
    """Prints the summary and writes it into the model directory. Only process 0 does."""
    if jax.process_index() == 0:
        text = summary(config, tx, mesh)
        write_text(Path(config.model_dir) / SUMMARY_TXT, text)
        print(text, flush=True)


def data_size(count: float) -> str:
    """Formats bytes: 532 B, 1.2 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def _axes(spec: Any) -> str:
    """Formats the mesh axes of each sharded axis: `1: fsdp, 2: tensor`; `-` if it is replicated."""
    name = lambda axes: axes if isinstance(axes, str) else " and ".join(axes)
    sharded = [f"{i}: {name(axes)}" for i, axes in enumerate(spec) if axes]
    return ", ".join(sharded) or "-"
