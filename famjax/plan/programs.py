"""The programs that a plan compiles: famjax's own jitted functions, lowered with shapes instead of arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from famjax.attention.memory import state_axes
from famjax.config import LoraConfig, ModelConfig, TrainConfig
from famjax.data.batch import Batch
from famjax.infer import decode, prefill, scoring
from famjax.infer.session import Session
from famjax.infer.settings import RECENT
from famjax.mesh import sharding
from famjax.mesh.on_mesh import placement
from famjax.nn import model as model_lib
from famjax.nn import weights
from famjax.nn.execution import Execution
from famjax.train import optim
from famjax.train import state as states
from famjax.train.start import first_batch
from famjax.train.step import jit_step
from famjax.train.watching.summary import held_bytes


class Lowered(NamedTuple):
    """A lowered program.

    Attributes:
      lowered: result of `jax.jit(...).lower`.
      tokens: tokens that one run reads or generates.
      unknown_trips: trip count of its loop over blocks or tokens, which depends on the data.
      branch_share: share of these iterations that complete a block and update FAM.
      held: bytes of the arguments on one device, by group.
    """

    lowered: Any
    tokens: int
    unknown_trips: float
    branch_share: float
    held: dict[str, int]


def train(config: TrainConfig, mesh: Mesh) -> Lowered:
    """Lowers the training step, `train/step.py` `jit_step`."""
    tx = optim.optimizer(config.optimizer, config.steps)
    state, batch = states.abstract(config, tx, mesh), abstract_batch(config, mesh)
    held = held_by_training(state) | {"batch": held_bytes(batch)}
    lowered = jit_step(config, tx, mesh).lower(state, batch)
    return Lowered(lowered, config.batch_size * config.sequence_length, 1, 1, held)


def held_by_training(state: states.TrainState) -> dict[str, int]:
    """Returns the bytes of a training state on one device, by group. `memories` are FAM for random state passing and,
    if documents continue across steps, the rows' memory."""
    memories = held_bytes((state.passed_fam, state.memory))
    return {"weights": held_bytes(state.params), "optimizer": held_bytes(state.opt_state), "memories": memories}


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
    """Returns the shapes of a batch, without opening data. Text tasks have a loss on every token."""
    rows = sharding.by_rows(mesh)
    shape = lambda size, dtype: jax.ShapeDtypeStruct(size, dtype, sharding=rows)
    if config.generated is not None:
        return jax.tree.map(lambda x: shape((config.batch_size, *x.shape[1:]), x.dtype), first_batch(config))
    B, T = config.batch_size, config.sequence_length
    return Batch(
        tokens=shape((B, T), np.int32), count=shape((B,), np.int32),
        starts=shape((B, T // config.model.memory.block_size), np.bool_), positions=None,
        targets=shape((B, T), np.int32), weights=shape((B, T), np.float32),
    )  # fmt: skip


def read_window(config: TrainConfig, mesh: Mesh) -> Lowered:
    """Lowers prefill: one call that reads a window of blocks, `infer/prefill.py`."""
    graphdef, params, state, held = served(config.model, config.batch_size, mesh)
    tokens, count = _window(config, mesh)
    lowered = prefill._read_window.lower(graphdef, params, tokens, count, state)
    return Lowered(lowered, tokens.size, prefill.BLOCKS_PER_CALL, 1, held)


def make_tokens(config: TrainConfig, mesh: Mesh) -> Lowered:
    """Lowers decoding: one call that generates `TOKENS_PER_CALL` tokens for every row, `infer/decode.py`."""
    graphdef, params, state, held = served(config.model, config.batch_size, mesh)
    B, made = config.batch_size, decode.TOKENS_PER_CALL
    row, scalar = _rows(mesh, (B,)), jax.ShapeDtypeStruct((), np.uint32, sharding=sharding.replicated(mesh))
    stops = jax.ShapeDtypeStruct((0, 1), np.int32, sharding=sharding.replicated(mesh))
    lowered = decode._decode.lower(
        graphdef, params, Session(state, _rows(mesh, (B, RECENT))), row, row, stops, scalar, row,
        sampling=decode.GREEDY, room=made,
    )  # fmt: skip
    return Lowered(lowered, B * made, made, 1 / config.model.memory.block_size, held)


def score_window(config: TrainConfig, mesh: Mesh) -> Lowered:
    """Lowers evaluation: one call that scores a window of blocks, `infer/scoring.py`."""
    graphdef, params, state, held = served(config.model, config.batch_size, mesh)
    tokens, count = _window(config, mesh)
    fresh = jax.ShapeDtypeStruct(count.shape, np.bool_, sharding=count.sharding)
    lowered = scoring._score_window.lower(graphdef, params, tokens, tokens, count, fresh, state)
    return Lowered(lowered, tokens.size, prefill.BLOCKS_PER_CALL, 1, held)


PROGRAMS: dict[str, Callable[[TrainConfig, Mesh], Lowered]] = {
    "train": train, "prefill": read_window, "decode": make_tokens, "eval": score_window,
}  # fmt: skip


def served_model(config: ModelConfig) -> ModelConfig:
    """Returns the configuration for serving: LoRA merged, weights in the compute dtype."""
    return dataclasses.replace(config, lora=LoraConfig(), param_dtype=config.dtype)


def served(config: ModelConfig, rows: int, mesh: Mesh) -> tuple[Any, Any, Any, dict[str, int]]:
    """Returns (graphdef, abstract weights, abstract memory of the rows, bytes of both on a device)."""
    config = served_model(config)
    execution = Execution.of(config, placement(mesh))
    model = nnx.eval_shape(lambda: model_lib.Transformer(config, nnx.Rngs(0), execution))
    one_layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), weights.parameters(model)["layers"])
    model = weights.with_layers(model, [one_layer] * config.num_layers)
    graphdef, params = nnx.split(model)
    one = lambda leaf: leaf.replace(_placed(leaf.get_value(), leaf.axes, mesh))
    params = jax.tree.map(one, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    shapes = weights.memory_shapes(config, rows, streaming=True)
    axes = state_axes(config.memory, config.num_layers)
    state = sharding.with_shardings(shapes, sharding.shardings(axes, shapes, mesh))
    return graphdef, params, state, {"weights": held_bytes(params), "memories": held_bytes(state)}


def _placed(leaf: Any, axes: sharding.Axes, mesh: Mesh) -> jax.ShapeDtypeStruct:
    where = jax.sharding.NamedSharding(mesh, sharding.partition_spec(axes, leaf.shape, mesh))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _window(config: TrainConfig, mesh: Mesh) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Returns the shapes of a window of every row, and of the rows' numbers of tokens in it."""
    B, T = config.batch_size, prefill.BLOCKS_PER_CALL * config.model.memory.block_size
    return _rows(mesh, (B, T)), _rows(mesh, (B,))


def _rows(mesh: Mesh, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding.by_rows(mesh))
