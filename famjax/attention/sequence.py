"""One layer over a sequence of blocks (paper section 3, layer-major): a scan of `block_step`."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import alternatives, auxiliary, fused, memories, memory, ring
from famjax.attention.block_step import At, Carried, block_step
from famjax.attention.fused import Kernel
from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memory import LayerMemory, select_rows
from famjax.attention.positions import Blocks, block_in_progress
from famjax.attention.scan_blocks import scan_recomputed
from famjax.config import MemoryConfig
from famjax.dims import Array, Float, Key, KeysValues, Tokens, Tree


def as_it_is(x: Array) -> Array:
    """The placement of an array on one device: the array itself."""
    return x


class How(NamedTuple):
    """How a layer runs over blocks; `nn/execution.py` chooses.

    Attributes:
      kernel: the attention implementation.
      recompute: store x and the memory before each block for the backward pass, which recomputes the rest.
      unroll: number of blocks in one iteration of the loop.
      whole: replicates activations [..., rows, D] over the devices that share a block, for a step.
      split: shards them along their rows over these devices, for storage between steps.
      auxiliary_scale: factor of auxiliary losses (`auxiliary.py`); 0: there are none.
    """

    kernel: Kernel = fused.XLA
    recompute: bool = False
    unroll: int = 1
    whole: Callable[[Array], Array] = as_it_is
    split: Callable[[Array], Array] = as_it_is
    auxiliary_scale: float = 0.0


ON_ONE_DEVICE = How()


def over_blocks(
    layer: LayerWeights, x: Float[Array, "N B S D"], before: LayerMemory | None, fresh: Float[Array, "1 P F D"],
    where: Blocks, how: How = ON_ONE_DEVICE,
) -> tuple[Float[Array, "N B S D"], LayerMemory]:  # fmt: skip
    """One layer over N whole blocks: `lax.scan(block_step)` (paper section 3).

    Args:
      layer: the layer's weights and settings.
      x: input activations; padding may follow the last real token of a row.
      before: the layer's memory before these blocks, at a block boundary; None if all rows start a document.
      fresh: the initial FAM of a document; with static queries also the prompt (`alternatives.split`).
      where: positions of the blocks.
      how: see `How`.

    Returns:
      Output activations, and the layer's memory after the last real token.
    """
    config, N = layer.memory, len(x)
    first, prompt, past, before = _before(layer, x, before, fresh, where)
    carried = Carried(before.fam[:, :, : config.fam_length], {name: before.beside[name] for name in first.beside})
    segments = ring.segments_of(past, config)
    settings, of_outputs = layer.without_arrays(), alternatives.holds_outputs(config)

    def step(weights: Tree, state: Tree, inputs: Tree) -> Tree:
        (of_layer, first, prompt), (carry, segments), (x, at) = weights, state, inputs
        (before, kept), x = _placed(how.whole, carry), how.whole(x)
        before = _in_document(before, first, at, config)
        layer = settings.with_arrays(of_layer, at.key)
        y, new, kv = block_step(layer, x, before, segments, at, how.kernel, prompt)
        y = auxiliary.with_losses(layer, y, x, (before, new), at, how.auxiliary_scale, prompt)
        assert at.full is not None
        # A block that is not full (padding follows) leaves FAM as it was.
        new = new._replace(fam=select_rows(at.full, new.fam, before.fam))
        after = new, None if at.kept is None else select_rows(at.kept, new, kept)
        # Whole first: else the step itself would be sharded along its rows, and weights gathered block by block.
        after, y = _placed(how.whole, after), how.whole(y)
        if of_outputs:
            kv = layer.keys_values(y, np.arange(config.block_size))
        return (after, (*segments, kv)[1:]), (_placed(how.split, carry), kv, how.split(y))

    def keys_values(weights: Tree, x: Tokens, at: At) -> KeysValues:
        return settings.with_arrays(weights[0], at.key).keys_values(how.whole(x), np.arange(config.block_size))

    weights = layer.weights, first, alternatives.of_layer(prompt, config)
    state = (carried, None if where.kept is None else carried), segments
    at = by_block(where, layer.key, N, config, how.auxiliary_scale)
    # Dropout draws one mask for all rows of a block, which the keys alone cannot repeat.
    # Outputs cannot be projected again without the whole block.
    if how.recompute and layer.key is None and not of_outputs:
        (after, kept), (k, v), y = scan_recomputed(step, keys_values, how.unroll, weights, state, x, at)
    else:
        ((after, kept), _), (_, (k, v), y) = jax.lax.scan(
            functools.partial(jax.checkpoint(step) if how.recompute and of_outputs else step, weights),
            state,
            (x, at),
            unroll=how.unroll,
        )

    after = after if kept is None else kept
    return y, _after(layer, x, (past, (k, v)), after, (before, prompt), where, how)


def _before(
    layer: LayerWeights, x: Float[Array, "N B S D"], before: LayerMemory | None, fresh: Float[Array, "1 P F D"],
    where: Blocks,
) -> tuple[Carried, Float[Array, "1 F D"] | None, KeysValues, LayerMemory]:  # fmt: skip
    """What a document starts with; the prompt of static queries; keys and values of the M blocks before the first one
    [B, M, K, S, H]; the layer's memory before these blocks. Arguments as for `over_blocks`."""
    config, B = layer.memory, x.shape[1]
    initial, prompt = alternatives.split(fresh, config)
    first = Carried(initial[:, :, : config.fam_length], memories.of(config).start(layer, 1, x.dtype))
    if before is None:
        before = memory.empty(layer, jnp.broadcast_to(fresh, (B, *fresh.shape[1:])), x.dtype)
    return first, prompt, ring.past_blocks(before, where, config), before


def _in_document(before: Carried, first: Carried, at: At, config: MemoryConfig) -> Carried:
    """What a block sees of the memory before it: `first` where a document starts, and FAM without its gradient at every
    Nth block of a document (`MemoryConfig.fam_gradient_blocks`)."""
    if at.starts is not None:
        before = select_rows(at.starts, first, before)
    if not config.fam_gradient_blocks:
        return before
    cut = (at.blocks_before > 0) & (at.blocks_before % config.fam_gradient_blocks == 0)
    return before._replace(fam=select_rows(cut, jax.lax.stop_gradient(before.fam), before.fam))


def _after(
    layer: LayerWeights, x: Float[Array, "N B S D"], blocks: tuple[KeysValues, KeysValues], carried: Carried,
    start: tuple[LayerMemory, Float[Array, "1 F D"] | None], where: Blocks, how: How,
) -> LayerMemory:  # fmt: skip
    """The layer's memory after the kept blocks.

    Args:
      layer: the layer's weights and settings.
      x: input activations of the blocks.
      blocks: keys and values of the M blocks before these, [B, M, K, S, H], and of these, [N, B, K, S, H].
      carried: FAM, or the state of another memory, after the last kept block.
      start: the memory before these blocks, and the prompt of static queries.
      where: positions of the blocks.
      how: see `How`.
    """
    config, B = layer.memory, x.shape[1]
    (before, prompt), (fam, beside) = start, carried
    k, v = (ring.after(*pair, where, config) for pair in zip(*blocks, strict=True))
    if prompt is not None:
        beside = beside | {alternatives.PROMPT: jnp.broadcast_to(prompt, (B, *prompt.shape[1:])).astype(jnp.float32)}
    if alternatives.holds_outputs(config):
        in_progress = how.whole(ring.block_in_progress_of(x, where, config))
        current, _ = block_in_progress(where, config)
        waiting = where.kept_count % config.block_size
        (k, v), outputs = alternatives.of_block_in_progress(layer, in_progress, (k, v), current, waiting)
        beside = beside | outputs
    whole = LayerMemory(k, v, fam if config.fam_length else before.fam, before.fam_k, before.fam_v, beside)
    return memory.with_keys(layer.with_arrays(layer.weights), whole)


def _placed(f: Callable[[Array], Array], carry: tuple[Carried, Carried | None]) -> tuple[Carried, Carried | None]:
    """A carry whose FAM, an activation, is placed as the tokens are."""
    one, kept = carry
    return one._replace(fam=f(one.fam)), None if kept is None else kept._replace(fam=f(kept.fam))


def by_block(where: Blocks, key: Key[Array, ""] | None, N: int, config: MemoryConfig, auxiliary_scale: float = 0) -> At:
    """Positions for a scan over N blocks, with leading axis N, and a PRNG key for each block."""
    keys = None if key is None else jax.random.split(key, N)
    # Of rows that start a document these are constants. If the loop is unrolled, the compiler would evaluate the masked
    # scores of a whole block itself, for half a minute with blocks of 1,024 tokens.
    blocks_before = jax.lax.optimization_barrier(where.blocks_before)
    at = At(blocks_before, where.fam_updates, where.starts, where.full, where.kept, where.origin)
    if memories.of(config) is not memories.NOTHING:
        S = config.block_size
        at = at._replace(real=jnp.clip(where.count[:, None] - np.arange(N) * S, 0, S))
    if auxiliary_scale:
        at = at._replace(is_read=auxiliary.is_read(where))
    return jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), at)._replace(key=keys)
