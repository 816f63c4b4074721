"""What a layer does inside a block: where its attention goes, and how far the gates of FAM's updates are open.

Training and inference keep neither. These functions run a layer's blocks once more with `block_step`'s own queries and
keys; for attention, marks take the place of values.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import alternatives, memories, ring
from famjax.attention import block_step as steps
from famjax.attention.attend import Scoring, Source, attend
from famjax.attention.layer_weights import LayerWeights
from famjax.attention.memory import LayerMemory, select_rows
from famjax.attention.positions import Blocks
from famjax.attention.sequence import by_block
from famjax.config import MemoryConfig
from famjax.dims import Array, Float, KeysValues, Queries, Tokens, Tree

# Labels the keys of each source: (kind, number of keys) to marks [C, n], so that attention is summed per label.
Marks: TypeAlias = Callable[[str, int], np.ndarray]
KINDS = ("segment", "fam", "own")


def by_kind(kind: str, keys: int) -> np.ndarray:
    """Marks that separate the kinds, in the order of `KINDS`."""
    return np.tile(np.array([kind == one for one in KINDS], np.float32), (keys, 1))


def attention_to(
    q: Queries, sources: list[Source], marks: list[np.ndarray], scoring: Scoring
) -> Float[Array, "... K G Q n"]:
    """Returns the attention mass of each query on the keys of each mark.

    `attend` with marks in place of values: a mark of 1 for all keys of one source gives that source's share, from 0 to
    1; one mark for each key gives the attention matrix.

    Args:
      q, sources, scoring: as for `attend`.
      marks: for each source a float array [C, n], n marks of its C keys.
    """
    spread = lambda source, mark: jnp.broadcast_to(
        jnp.asarray(mark, jnp.float32), (*source.k.shape[:-1], mark.shape[-1])
    )
    marked = [source._replace(v=spread(source, mark)) for source, mark in zip(sources, marks, strict=True)]
    return attend(q.astype(jnp.float32), marked, scoring)


def attention_of_blocks(
    layer: LayerWeights, x: Float[Array, "N B S D"], before: LayerMemory, fresh: Float[Array, "1 P F D"],
    where: Blocks, marks: Marks = by_kind, uniform: bool = False,
) -> tuple[Float[Array, "B N K G S n"], Float[Array, "B N K G F n"]]:  # fmt: skip
    """Where attention goes in `over_blocks` of the same arguments.

    Args:
      layer, x, before, fresh, where: see `over_blocks`.
      marks: labels of the keys; by default memory segments, FAM and the block itself, n = 3. Keys of another memory
        are of kind `memory`; what a memory adds to each head beside the softmax is not attention and is not here.
      uniform: with queries of zeros, so that each attends to all of its keys alike.

    Returns:
      Of each token, and of FAM's queries when they compute the next FAM of a block: how much of its attention goes to
      which keys. The latter is 0 in a layer without FAM.
    """
    config, S = layer.memory, layer.memory.block_size

    def look(x: Tokens, carried: steps.Carried, segments: tuple[KeysValues, ...], at: steps.At, prompt: Tree) -> Tree:
        entered = memories.of(config).enter(layer, carried.beside, x)
        q, kv = steps.project(layer, entered, carried.fam, at, prompt)
        q = jnp.zeros_like(q) if uniform else q
        others = memories.of(config).sources(layer, carried.beside, at.blocks_before, q[..., :S, :], np.arange(S))

        def of_tokens(kv: KeysValues, config: MemoryConfig) -> Float[Array, "B K G S n"]:
            sources = [*others, *steps.seen_by_tokens(kv, segments, at, config)]
            of_others = [marks("memory", one.k.shape[-2]) for one in others]
            labels = [*of_others, *_marks(marks, len(segments), config)]
            return attention_to(q[..., :S, :], sources, labels, layer.scoring)

        without = lambda: of_tokens(*steps.without_fam(kv, config))
        tokens = steps.gated(layer, without, lambda: of_tokens(kv, config))
        fams = jnp.zeros((*tokens.shape[:-2], before.fam.shape[-2], tokens.shape[-1]))
        if config.fam_length:
            of_fam = steps.seen_by_fam(kv, at, config)
            fams = attention_to(q[..., S:, :], of_fam, _marks(marks, 0, config), layer.scoring)
        return tokens, fams

    tokens, fams = _each_block(look, layer, x, before, fresh, where)
    return tokens, fams


def write_gates_of_blocks(
    layer: LayerWeights, x: Float[Array, "N B S D"], before: LayerMemory, fresh: Float[Array, "1 P F D"], where: Blocks
) -> Float[Array, "B N F"]:
    """The gates of FAM's updates in `over_blocks` of the same arguments (`block_step.write_gate`).

    Args:
      layer, x, before, fresh, where: see `over_blocks`.

    Returns:
      For each block the g in [0, 1] of each feedback activation, float32: 0 keeps it, 1 replaces it by its update.
      A block that is not full has one too, but makes no update. NaN in a layer whose updates are not gated.
    """
    config, S = layer.memory, layer.memory.block_size
    if not config.gates_updates:
        N, B = x.shape[:2]
        return jnp.full((B, N, before.fam.shape[-2]), jnp.nan)

    def look(x: Tokens, carried: steps.Carried, segments: tuple[KeysValues, ...], at: steps.At, prompt: Tree) -> Tree:
        q, kv = steps.project(layer, x, carried.fam, at, prompt)
        heads = attend(q[..., S:, :], steps.seen_by_fam(kv, at, config), layer.scoring)
        (old,) = residual = steps.residual_of(steps.queried(carried.fam, prompt), at.fam_updates, config)
        (new,) = layer.finish(heads, residual)
        return steps.write_gate(layer, old, new.astype(jnp.float32) - old)[..., 0]

    gates: Float[Array, "B N F"] = _each_block(look, layer, x, before, fresh, where)
    return gates


def _each_block(
    look: Callable[..., Tree], layer: LayerWeights, x: Float[Array, "N B S D"], before: LayerMemory,
    fresh: Float[Array, "1 P F D"], where: Blocks,
) -> Tree:  # fmt: skip
    """Runs the blocks of `over_blocks`. Returns what `look(x, carried, segments, at, prompt)`, the arguments of
    `block_step`, finds in each: arrays [B, N, ...]."""
    config, S = layer.memory, layer.memory.block_size

    def body(state: Tree, inputs: Tree) -> Tree:
        (carried, segments), (x, at) = state, inputs
        if at.starts is not None:
            carried = select_rows(at.starts, first, carried)
        found = look(x, carried, segments, at, of_layer)
        y, new, own = steps.block_step(layer, x, carried, segments, at, prompt=of_layer)
        new = new._replace(fam=select_rows(at.full, new.fam, carried.fam))
        if alternatives.holds_outputs(config):
            own = layer.keys_values(y, np.arange(S))
        return (new, (*segments, own)[1:]), found

    F = config.fam_length
    initial, prompt = alternatives.split(fresh, config)
    of_layer = alternatives.of_layer(prompt, config)
    first = steps.Carried(initial[:, :, :F], memories.of(config).start(layer, 1, x.dtype))
    carried = steps.Carried(before.fam[:, :, :F], {name: before.beside[name] for name in first.beside})
    segments = ring.segments_of(ring.past_blocks(before, where, config), config)
    _, found = jax.lax.scan(body, (carried, segments), (x, by_block(where, None, len(x), config)))
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), found)


def _marks(marks: Marks, segments: int, config: MemoryConfig) -> list[np.ndarray]:
    """For each source of a block: memory segments; the block and its FAMs in one."""
    own = [marks("own", config.block_size)]
    if config.fam_length:
        own += [marks("fam", config.fam_length)] * config.previous_fams
    return [*[marks("segment", config.block_size)] * segments, np.concatenate(own)]
