"""A moving average: a memory in one file."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memories.base import Axes, Memory, State, Tokens, Weight
from famjax.config import ModelConfig
from famjax.dims import Array, Int, KeysValues, Queries


@dataclasses.dataclass(frozen=True)
class Average(Memory):
    """A moving average of past values, added to each head: A + gate mean, mean' = (mean + mean of the block) / 2."""

    @property
    def axes(self) -> dict[str, Axes]:
        return {"mean": ("batch", "kv_heads", "head_dim")}

    def weights(self, model: ModelConfig) -> dict[str, Weight]:
        return {"gate": Weight((model.num_heads,), ("heads",), mean=0.5)}

    def start(self, layer: LayerWeights, batch: int, dtype: Any) -> State:
        return {"mean": jnp.zeros((batch, *layer.key_shape))}

    def attend(self, layer: LayerWeights, state: State, tokens: Tokens, heads: Queries) -> tuple[Queries, State]:
        gate = layer.weights["memory"]["gate"].reshape(heads.shape[1], heads.shape[2], 1, 1)
        return (heads + gate * state["mean"][:, :, None, None]).astype(heads.dtype), state

    def full(self, layer: LayerWeights, state: State, kv: KeysValues, blocks_before: Int[Array, "B"]) -> State:
        return {"mean": (state["mean"] + kv[1].astype(jnp.float32).mean(axis=2)) / 2}
