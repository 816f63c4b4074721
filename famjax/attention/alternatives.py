"""The paper's own alternatives to FAM, both off by default: it reports that they fail on the pass key.

Static summary (`MemoryConfig.fam_update` is `static`): FAM's queries are always computed from the layer's learned
prompt P. The previous summary is only attended to; it is neither the query nor the residual:

    AF    = attend(Q(P), [KF_{tau-1}, K_tau]) + 0                  (+ P if `zero_first_residual` is off)

Feedback memory segments (`MemoryConfig.segments_hold` is `outputs`): keys and values of past blocks are projected from
the layer's outputs O by the same projections:

    K^_t  = [K(O_{tau-M}) .. K(O_{tau-1}), K_{tau, :t}]            (same for V)

Their state for streaming is in `LayerMemory.beside`: P, and the keys and values of the outputs of the block in
progress, which are written into the ring when the block is full.
"""

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memories.base import Axes, State
from famjax.config import MemoryConfig
from famjax.dims import Array, Float, KeysValues, Rows

PROMPT, OUTPUTS = "prompt", ("output_k", "output_v")


def is_static(config: MemoryConfig) -> bool:
    """Whether FAM's queries are always the prompt."""
    return config.fam_update == "static"


def holds_outputs(config: MemoryConfig) -> bool:
    """Whether memory segments hold outputs."""
    return config.segments_hold == "outputs"


def axes(config: MemoryConfig) -> dict[str, Axes]:
    """The names of the axes of their state, by name; {} without them."""
    found: dict[str, Axes] = {PROMPT: ("batch", "fam", None)} if is_static(config) else {}
    if holds_outputs(config):
        found |= dict.fromkeys(OUTPUTS, ("batch", "kv_heads", None, "head_dim"))
    return found


def start(layer: LayerWeights, fresh: Float[Array, "B P F D"], dtype: str | np.dtype) -> State:
    """Their state in one layer before any text: `prompt` [B, F, D], and `output_k`, `output_v` [B, K, S, H] in `dtype`.
    `fresh` has the initial FAMs and the prompt, see `split`."""
    (K, H), state = layer.key_shape, {}
    _, prompt = split(fresh, layer.memory)
    if prompt is not None:
        state[PROMPT] = prompt.astype(jnp.float32)
    if holds_outputs(layer.memory):
        state |= dict.fromkeys(OUTPUTS, jnp.zeros((len(fresh), K, layer.memory.block_size, H), dtype))
    return state


# --- static summary -------------------------------------------------------------------------------


def split(
    fresh: Float[Array, "B _N F D"], config: MemoryConfig
) -> tuple[Float[Array, "B _P F D"], Float[Array, "B F D"] | None]:
    """Splits `fresh` into the initial FAMs of a document [B, P, F, D] and, if queries are static, the prompt after
    them."""
    P = config.previous_fams
    return (fresh[:, :P], fresh[:, P]) if is_static(config) else (fresh, None)


def of_layer(prompt: Float[Array, "1 _F D"] | None, config: MemoryConfig) -> Float[Array, "1 F D"] | None:
    """The prompt of a layer, which has F = 0 rows if the layer has no FAM."""
    return None if prompt is None else prompt[:, : config.fam_length]


# --- feedback memory segments ---------------------------------------------------------------------


def of_block_in_progress(
    layer: LayerWeights, x: Float[Array, "B S D"], rings: KeysValues, current: Rows, waiting: Rows
) -> tuple[KeysValues, State]:
    """Converts rings of outputs after a whole text to the state that streaming continues from.

    The tokens of the block in progress see keys and values of each other's inputs, which are in the block's slot until
    it is full.

    Args:
      layer: the layer's weights.
      x: inputs of the block in progress.
      rings: keys and values [B, R, K, S, H] of outputs.
      current: index of the block in progress.
      waiting: number of its tokens.

    Returns:
      The rings with keys and values of the first `waiting` rows of x in the slot of block `current`; the keys and
      values of its outputs, by the names in `OUTPUTS`.
    """
    S, R = layer.memory.block_size, rings[0].shape[1]
    here = (np.arange(R) == (current % R)[:, None])[..., None, None, None]
    real = (np.arange(S) < waiting[:, None])[:, None, :, None]
    inputs = [jnp.where(real, one, 0) for one in layer.keys_values(x, np.arange(S))]
    outputs = [jnp.where(here, ring, 0).sum(axis=1).astype(ring.dtype) for ring in rings]
    k, v = (jnp.where(here, one[:, None].astype(ring.dtype), ring) for one, ring in zip(inputs, rings, strict=True))
    return (k, v), dict(zip(OUTPUTS, outputs, strict=True))


def into_ring(rings: KeysValues, outputs: KeysValues, slot: Rows, full: Array) -> tuple[KeysValues, KeysValues]:
    """In rows whose block is `full`, writes the keys and values of its outputs [B, K, S, H] over those of its inputs,
    in slot `slot` of the rings [B, R, K, S, H]. Returns the rings, and the outputs, which are zeros in these rows."""

    def put(rings: KeysValues, outputs: KeysValues) -> tuple[KeysValues, KeysValues]:
        here = (np.arange(rings[0].shape[1]) == slot[:, None]) & full[:, None]
        here, done = here[..., None, None, None], full[:, None, None, None]
        k, v = (jnp.where(here, one[:, None], ring) for one, ring in zip(outputs, rings, strict=True))
        return (k, v), (jnp.where(done, 0, outputs[0]), jnp.where(done, 0, outputs[1]))

    written: tuple[KeysValues, KeysValues] = jax.lax.cond(full.any(), put, lambda *same: same, rings, outputs)
    return written
