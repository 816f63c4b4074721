"""Diagnostics of the memory, measured on a batch at intervals; docs/training.md explains how to read them.

Training does not keep attention weights, so they are recomputed with the model's own layer code: `Transformer.forward`
runs `observed` in every layer, and `attention.observe.attention_of_blocks` sums attention by kind of key.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from famjax.attention.memory import LayerMemory, MemoryState, select_state_rows
from famjax.attention.observe import KINDS, attention_of_blocks
from famjax.attention.positions import Blocks, Layout
from famjax.attention.sequence import over_blocks
from famjax.config import MemoryConfig, TrainConfig
from famjax.data.batch import Batch
from famjax.dims import Array, Bool, Float, Weights
from famjax.mesh import sharding
from famjax.nn.layer import Layer
from famjax.nn.model import LEARNED
from famjax.train import state as states
from famjax.train.loss import weighted_loss
from famjax.train.state import TrainState
from famjax.train.step import build, rows_before, rows_first

Diagnose: TypeAlias = Callable[[Weights, MemoryState | None, Batch], dict[str, Float[Array, "..."]]]


def far_weights(batch: Batch, layers: int, config: MemoryConfig) -> Float[Array, "B W"]:
    """Returns loss weights of the targets that are too far from a row's first block to see it through windows.

    Windows of M segments reach back L * M blocks through L layers. Only targets of the row's first document count.
    Those more than L * M blocks after the first block keep their weights; if the document is shorter, those of its last
    block do. All other weights are 0, as are those of the first block.
    """
    S, N = config.block_size, batch.starts.shape[1]
    block = np.arange(N)
    in_first = jnp.cumsum(batch.starts & (block > 0), axis=1) == 0
    alive_BN = in_first & (block * S < batch.count[:, None])
    last_B = alive_BN.sum(axis=1) - 1
    reach_B = jnp.minimum(layers * config.memory_segments, last_B - 1)
    far_BN = alive_BN & (block > jnp.maximum(reach_B, 0)[:, None])
    if batch.positions is None:
        return batch.weights * jnp.repeat(far_BN, S, axis=1)
    return batch.weights * jnp.take_along_axis(far_BN, batch.positions // S, axis=1)


def make_diagnostics(config: TrainConfig, mesh: Mesh) -> Diagnose:
    """Returns a function (weights, memory of the rows or None, batch) for `jax.jit`. It uses the rows of the batch's
    first microbatch, with documents that start from the learned prompt.

    It returns, float32 [L] except for the last two:

      fam_norm                    RMS of the newest FAM after the rows' last tokens
      input_attention_to_fam      share of attention on FAMs, mean over heads and tokens whose FAM has been updated
      fam_attention_to_fam        the same for FAM's own queries: their share of attention on previous FAMs
      first_block_fam_gradient    norm of the gradient of the far targets' loss w.r.t. the FAM that the first block sees
      first_block_gradient        [] the same w.r.t. the embedded tokens of the first block
      far_weight                  [] sum of the far targets' weights; if it is 0 there is no gradient
    """
    memory_config, S = config.model.memory, config.model.memory.block_size

    def diagnose(params: Weights, memory: MemoryState | None, batch: Batch) -> dict[str, Float[Array, "..."]]:
        first = lambda x: x.reshape(-1, config.microbatches, *x.shape[1:])[:, 0]
        batch = jax.tree.map(first, batch)
        rows, length = batch.tokens.shape
        memory = None if memory is None else jax.tree.map(first, rows_first(memory))
        model = build(config, mesh, params)
        memory = rows_before(model, LEARNED, rows, memory, mesh)
        # If a document starts at the row's first block, its initial memory becomes the row's, so that its gradient is
        # separate from that of documents that start later.
        before = select_state_rows(batch.starts[:, 0], model.initial_state(rows), memory)
        starts_BN = batch.starts & (np.arange(length // S) > 0)
        weights_BW = far_weights(batch, config.model.num_layers, memory_config)
        x_BTD = model.embed(batch.tokens)

        def far_loss(
            first_BSD: Float[Array, "B S D"], fam: Float[Array, "L B P F D"]
        ) -> tuple[Float[Array, ""], tuple[Float[Array, "L"], ...]]:
            changed = dataclasses.replace(before, layers=dataclasses.replace(before.stacked, fam=fam))
            x = jnp.concatenate([first_BSD, x_BTD[:, S:]], axis=1)
            where = model.locate(changed, batch.count, length, layout=Layout(starts_BN))
            hidden, found = model.forward(x, changed, where, over=_observed)
            loss = weighted_loss(
                model, hidden, batch.positions, batch.targets, weights_BW,
                tokens_at_once=config.loss_chunk * sharding.batch_shards(mesh),
            )  # fmt: skip
            return loss.total, found

        gradient = jax.grad(far_loss, argnums=(0, 1), has_aux=True)
        (by_tokens, by_fam), (rms, token_share, fam_share) = gradient(x_BTD[:, :S], before.stacked.fam)
        return {
            "fam_norm": rms,
            "input_attention_to_fam": token_share,
            "fam_attention_to_fam": fam_share,
            "first_block_fam_gradient": _norm(by_fam, axes=tuple(range(1, by_fam.ndim))),
            "first_block_gradient": _norm(by_tokens, axes=None),
            "far_weight": weights_BW.sum(),
        }

    return diagnose


def _observed(
    layer: Layer, x: Float[Array, "N B S D"], before: LayerMemory, fresh: Float[Array, "1 P F D"], where: Blocks,
    *how: Any,
) -> tuple[Float[Array, "N B S D"], tuple[Float[Array, ""], ...]]:  # fmt: skip
    """`over_blocks`, and instead of the memory the layer's `fam_norm` and both shares of attention on FAMs."""
    y, after = over_blocks(layer, x, before, fresh, where, *how)
    attention = attention_of_blocks(layer, x, before, fresh, where)
    to_fam = [one[..., KINDS.index("fam")].mean(axis=(2, 3)) for one in attention]  # over heads
    token_BNS, fam_BN = to_fam[0], to_fam[1].mean(axis=-1)
    has_read, (N, _, S, _) = where.fam_updates > 0, x.shape
    is_real = np.arange(N * S).reshape(N, S) < where.count[:, None, None]
    shares = _mean(token_BNS, is_real & has_read[..., None]), _mean(fam_BN, where.full & has_read)
    rms = jnp.sqrt(jnp.square(after.fam[:, 0]).mean())
    return y, jax.lax.stop_gradient((rms, *shares))


def jit_diagnostics(config: TrainConfig, mesh: Mesh) -> Callable[[TrainState, Batch], dict[str, Any]]:
    """Returns `make_diagnostics` for a state and its next batch, compiled for a mesh at its first call.

    The function returns values for `metrics.jsonl` by name, `memory/...`, without those that could not be measured.
    """
    compiled: list[Any] = []

    def of(state: TrainState, batch: Batch) -> dict[str, Any]:
        if not compiled:
            where = states.shardings(state)
            places = (where.params, where.memory, sharding.by_rows(mesh))
            replicated = sharding.replicated(mesh)
            compiled.append(jax.jit(make_diagnostics(config, mesh), in_shardings=places, out_shardings=replicated))
        return readable(jax.device_get(compiled[0](state.params, state.memory, batch)))

    return of


def readable(found: dict[str, Any]) -> dict[str, Any]:
    """Converts results to numbers and lists [L] for `metrics.jsonl`, without NaN (a share of nothing)."""
    found = dict(found)
    if not found.pop("far_weight"):
        del found["first_block_gradient"], found["first_block_fam_gradient"]
    values = {name: np.asarray(value, np.float64) for name, value in found.items()}
    return {f"memory/{name}": value.tolist() for name, value in values.items() if np.isfinite(value).all()}


def _mean(x: Float[Array, "..."], where: Bool[Any, "..."]) -> Float[Array, ""]:
    """Returns the float32 mean of the selected values; NaN if there are none."""
    x = x.astype(jnp.float32)
    return jnp.where(where, x, 0).sum() / where.sum()


def _norm(x: Float[Array, "..."], axes: tuple[int, ...] | None) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(axis=axes))
