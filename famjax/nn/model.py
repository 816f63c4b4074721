"""The model: embedding, layers, and the memory that passes through them.

Two orders of the same computation (paper section 3). `__call__` is layer-major: each layer scans all blocks;
training and prefill of whole texts use it. `read` is block-major: all layers take up to one block; streaming uses it.
Both take a `MemoryState` and return one, so a text can be split between calls.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from famjax.attention import alternatives, memories, memory, positions, streaming
from famjax.attention.block_step import prompt_step
from famjax.attention.memory import LayerMemory, MemoryState
from famjax.attention.positions import WHOLE_ROWS, Layout
from famjax.attention.sequence import over_blocks
from famjax.config import ModelConfig
from famjax.dims import Array, Bool, Float, Int, Key, Tree, Weights
from famjax.nn import appended, segments
from famjax.nn.execution import Execution, LayerStack, look_up, stacked
from famjax.nn.layer import AddedWeights, Layer, LayerParams, NormWeights, axes_of, norm, weight

# Activations of whole blocks, [N, B, S, D]: sharded along their rows alone.
ACTIVATION_AXES = (None, "batch", None, None)
# Between layers that each device runs on its own rows, activations are sharded over `tensor` along the tokens of a
# block (sequence parallelism), so what a layer keeps for the backward pass is not replicated.
TOKEN_AXES = (None, "batch", "tokens", None)

# `over_blocks`, or a function in its place that observes a layer: returns (y, anything).
LayerOverBlocks: TypeAlias = Callable[..., tuple[Any, Any]]


class Start(NamedTuple):
    """The initial FAM of a document: the learned one, propagated through the layers with the text, or a given one
    (random state passing, paper section 2).

    Attributes:
      fam: the given FAM; None: the learned one.
      updates: number of updates that `fam` has had.
      use: whether `fam` is used; False: the learned one.
    """

    fam: Float[Array, "L P F D"] | None = None
    updates: Int[Array, ""] | int = 0
    use: Bool[Array, ""] | bool = True

    @property
    def updates_before(self) -> Int[Array, ""] | int:
        """Number of updates of the FAM with which documents start; 0 for the learned one."""
        return 0 if self.fam is None else jnp.where(self.use, self.updates, 0)


LEARNED = Start()


class Fam(nnx.Module):
    """FAM's weights: the learned `prompt` [F, D] (or `prefix` [L, F, D]) and, if configured, the `gate` [L, heads].
    Always float32: they are small, and also trained when all other weights are frozen in bfloat16."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        F, D, std, dtype = config.memory.fam_length, config.d_model, config.embedding_std, "float32"
        if config.memory.fam_init == "prompt":
            self.prompt = weight(rngs, (F, D), std, ("fam", "embed"), dtype)
        else:
            self.prefix = weight(rngs, (F, D), std, ("fam", "embed"), dtype, stack=(config.num_layers,))
        if config.memory.fam_gate:
            self.gate = nnx.Param(jnp.zeros((config.num_layers, config.num_heads), dtype), axes=("layers", "heads"))


class Transformer(nnx.Module):
    """A decoder-only language model with block sliding window attention and FAM.

    It owns the weights; `execution` says how it runs. `layers` is one `LayerParams` whose arrays have a leading axis L,
    for training; after `weights.unstacked`, a list of L, for streaming: a product with a slice of
    a stacked array copies the slice first, which for a single token costs as much as the product.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, execution: Execution | None = None):
        V, D, L, dtype = config.vocab_size, config.d_model, config.num_layers, config.param_dtype
        self.config = config
        self.execution = Execution.of(config) if execution is None else execution
        self.embedding = weight(rngs, (V, D), config.embedding_std, ("vocab", "embed"), dtype)
        self.layers: LayerParams | nnx.List[LayerParams] = LayerParams(config, rngs, (L,))
        self.final_norm = NormWeights(config, D)
        if not config.tie_embeddings:
            self.unembedding = weight(rngs, (D, V), D**-0.5, ("embed", "vocab"), dtype)
        if config.memory.fam_length:
            self.fam = Fam(config, rngs)
        if added := memories.of(config.memory).model_weights(config):
            self.memory = AddedWeights(added, rngs)

    # --- forward ----------------------------------------------------------------------------------

    def __call__(
        self, tokens: Int[Array, "B T"], state: MemoryState | None = None, count: Int[Array, "B"] | None = None, *,
        start: Start = LEARNED, layout: Layout = WHOLE_ROWS, key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], MemoryState]:  # fmt: skip
        """Layer-major: whole sequences, padded to whole blocks inside.

        Args:
          tokens: the text.
          state: memory to continue, all of whose rows are at a block boundary; None: all rows start a document.
          count: number of tokens of each row up to its last real one; None if all are real. Padding is not attended to
            and does not change the memory.
          start: the initial FAM of documents.
          layout: documents within the rows.
          key: PRNG key for dropout and noise on FAM; None outside of training.

        Returns:
          Hidden states after the final norm (`logits` turns them into scores), and the memory after each row's last
          real token, or after its kept blocks.
        """
        B, T = tokens.shape
        count = jnp.full(B, T, jnp.int32) if count is None else count
        padded = jnp.pad(tokens, ((0, 0), (0, -T % self.config.memory.block_size)))
        at = self.locate(state, count, padded.shape[1], start, layout)
        beside: dict[str, Array] = {}
        if self.by_blocks:
            hidden, layers, beside = segments.forward(self, self.embed(padded), state, at, key, over_blocks)
        elif appended.in_use(self.config.memory):
            hidden, layers = appended.forward(self, self.embed(padded), state, at, start, key, over_blocks)
        else:
            hidden, layers = self.forward(self.embed(padded), state, at, start, key)
        return hidden[:, :T], MemoryState(*positions.after(at, self.config.memory), layers, beside)

    @property
    def by_blocks(self) -> bool:
        """Whether the memory is one of the whole model, so that a text is computed block by block (`segments.py`)."""
        return bool(memories.of(self.config.memory).model_axes)

    def observe(
        self, x: Float[Array, "B T D"], state: MemoryState, where: positions.Blocks, start: Start,
        over: LayerOverBlocks, key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:  # fmt: skip
        """`forward` for any memory, with an `over` that observes layers; returns hidden states and what it returned."""
        if self.by_blocks:
            return segments.forward(self, x, state, where, key, over)[:2]
        if appended.in_use(self.config.memory):
            return appended.forward(self, x, state, where, start, key, over)
        return self.forward(x, state, where, start, key, over)

    def locate(
        self, state: MemoryState | None, count: Int[Array, "B"], length: int, start: Start = LEARNED,
        layout: Layout = WHOLE_ROWS,
    ) -> positions.Blocks:  # fmt: skip
        """Positions of `length` tokens, a multiple of the block size; arguments as for `__call__`."""
        zero = jnp.zeros(len(count), jnp.int32)
        before = (zero, zero + start.updates_before) if state is None else (state.position, state.fam_updates)
        config = self.config.memory
        return positions.of_whole_blocks(
            before, count, length // config.block_size, config, layout, start.updates_before
        )

    def forward(
        self, x: Float[Array, "B T D"], state: MemoryState | None, where: positions.Blocks, start: Start = LEARNED,
        key: Key[Array, ""] | None = None, over: LayerOverBlocks = over_blocks,
    ) -> tuple[Float[Array, "B T D"], Any]:  # fmt: skip
        """Layers and final norm.

        Args:
          x: embedded tokens, whole blocks of them.
          state: memory to continue; None: all rows start a document.
          where: positions of the blocks (`locate`).
          start: the initial FAM of documents.
          key: PRNG key for dropout and noise on FAM; None outside of training.
          over: runs one layer over all blocks.

        Returns:
          Hidden states after the final norm, and the second result of `over` for each layer, with a leading axis L: the
          layers' memory.
        """
        run, before_all = self.execution, None if state is None else state.layers
        S = segments.in_layers(self.config).memory.block_size
        # What observes a layer reduces over rows; a mask drawn for dropout depends on the place in the whole array.
        alone = run.alone(len(x)) and over is over_blocks and key is None and not self._layers.unstacked
        how = run.of_blocks(alone, S)

        def layer_fn(layer: Layer, shared: Tree, carry: Tree, inputs: Tree) -> tuple[Tree, Tree]:
            (where, use), (x, prompt), (weights, key, (before, (prefix, passed))) = shared, carry, inputs
            layer = layer.with_arrays(weights, key)
            fresh = first_fam(layer, prompt, prefix, passed, use)
            y, out = over(layer, x, before, fresh, where, how)
            with jax.named_scope("fam_recurrence"):
                prompt = None if prompt is None else prompt_step(layer, prompt)
            return (y if alone else run.constrain(y, ACTIVATION_AXES), prompt), out

        blocks = jnp.moveaxis(x.reshape(len(x), -1, S, x.shape[-1]), 1, 0)
        carry = run.constrain(blocks, TOKEN_AXES if alone else ACTIVATION_AXES), self._prompt(start)
        xs, shared = (before_all, (self._prefix(), start.fam)), (where, start.use)
        rows = (((1, -1), (0, (-1, -1)), (0, -1)), ((1, -1), 0)) if alone else None
        keys = None if key is None else jax.random.split(key, self.config.num_layers)
        (x, _), out = run.over_layers(layer_fn, self._layers, carry, xs, shared, rows, keys)
        hidden = run.constrain(self._final_norm(x), TOKEN_AXES if alone else ACTIVATION_AXES)
        return jnp.moveaxis(hidden, 0, 1).reshape(x.shape[1], -1, x.shape[-1]), out

    def read(
        self, tokens: Int[Array, "B Q"], state: MemoryState, count: Int[Array, "B"] | None = None,
        shift: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], MemoryState]:  # fmt: skip
        """Block-major: all layers take up to one block of tokens, starting anywhere in a block.

        Args:
          tokens: Q of them, at most S.
          state: the memory before these tokens; rows may be at different positions. One of the form of
            `streaming_state` is updated in place if it is donated, else it is copied.
          count: number of real tokens of each row, at most what is left of the row's block (`room`); None if all are
            real. A row with 0 is unchanged.
          shift: random position offset of each row, in tokens.

        Returns:
          Hidden states after the final norm, and the memory after the real tokens.

        Raises:
          ValueError: more tokens than a block has; `infer/prefill.py` splits longer texts.
        """
        config = self.config.memory
        if tokens.shape[1] > config.block_size:
            raise ValueError(f"read takes at most a block of {config.block_size} tokens, not {tokens.shape[1]}")
        if count is None:
            count = jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)
        where = positions.of_part(state.position, state.fam_updates, count, config, shift)

        x, beside = self.embed(tokens), state.beside
        each = [_of_layer(state.layers, i) for i in range(self.config.num_layers)]
        if self.by_blocks:
            hidden, each, beside = segments.read(self, x, each, beside["tokens"], where)
        elif appended.in_use(config):
            hidden, each = appended.read(self, x, each, where)
        else:
            hidden, each = self.part_through_layers(x, each, where)
        layers = stacked(each) if isinstance(state.layers, LayerMemory) else tuple(each)
        return hidden, MemoryState(*positions.after(where, config), layers, beside)

    def part_through_layers(
        self, x: Float[Array, "B Q D"], before: list[LayerMemory], where: positions.Blocks
    ) -> tuple[Float[Array, "B Q D"], list[LayerMemory]]:
        """Applies all layers to embedded tokens of a part of a block. Returns hidden states after the final norm, and
        each layer's memory."""
        memories = []
        for layer, one in zip(self._layers.each_layer(self.execution), before, strict=True):
            x, after = _part_of_layer(layer.without_arrays(), layer.weights, x, one, where)
            x = self.execution.constrain(x, ACTIVATION_AXES[1:])
            memories.append(self.execution.constrain(after, memory.layer_axes(self.config.memory)))
        return self._final_norm(x), memories

    # --- embedding and logits ---------------------------------------------------------------------

    @jax.named_scope("embedding")
    def embed(self, tokens: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Embeddings of tokens, the input of the first layer, in the compute dtype."""
        return self._scaled(look_up(self.embedding[...], tokens, self.execution, self.config.dtype))

    def _scaled(self, embedded: Float[Array, "... D"]) -> Float[Array, "... D"]:
        # The factor is rounded as they are, which is what Gemma does.
        if not self.config.scale_embeddings:
            return embedded
        return embedded * jnp.asarray(math.sqrt(self.config.d_model), self.config.dtype)

    def _final_norm(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return norm(x, self.final_norm.scale[...], self.config.norm, self.config)

    @jax.named_scope("logits")
    def logits(self, hidden: Float[Array, "... D"], table: Array | None = None) -> Float[Array, "... V"]:
        """float32 logits of hidden states. `table` replaces the model's `vocabulary_weights`, in their layout."""
        if table is None:
            table = self.vocabulary_weights[0]
        table = table.T if self.config.tie_embeddings else table
        scores = jnp.matmul(hidden, table.astype(self.config.dtype), preferred_element_type=jnp.float32)
        cap = self.config.logit_cap
        return cap * jnp.tanh(scores / cap) if cap else scores

    @property
    def vocabulary_weights(self) -> tuple[Array, tuple[str, ...]]:
        """The weights that compute logits, and the names of their axes: the embedding [V, D] if tied, else the
        unembedding [D, V]."""
        if self.config.tie_embeddings:
            return self.embedding[...], ("vocab", "embed")
        return self.unembedding[...], ("embed", "vocab")

    # --- the memory before any text ---------------------------------------------------------------

    def initial_state(self, batch: int, start: Start = LEARNED) -> MemoryState:
        """The memory before any text: empty rings, and the initial FAM of every layer."""

        def layer_fn(layer: Layer, use: Tree, prompt: Tree, inputs: Tree) -> tuple[Tree, LayerMemory]:
            weights, _, (prefix, passed) = inputs
            layer = layer.with_arrays(weights)
            fresh = first_fam(layer, prompt, prefix, passed, use)
            after = None if prompt is None else prompt_step(layer, prompt)
            return after, memory.with_keys(layer, memory.empty(layer, fresh, self.config.dtype))

        xs = (self._prefix(), start.fam)
        with jax.named_scope("fam_recurrence"):
            _, layers = self.execution.over_layers(layer_fn, self._layers, self._prompt(start), xs, start.use)
        beside = {"tokens": segments.first_state(self, segments.learned_tokens(self))} if self.by_blocks else {}
        state = MemoryState(jnp.zeros(1, jnp.int32), jnp.full(1, start.updates_before, jnp.int32), layers, beside)
        return memory.broadcast_rows(state, batch)

    def streaming_state(self, batch: int) -> MemoryState:
        """`initial_state` for `read` only: layers unstacked, with rings of `memory.ring_blocks` blocks."""
        state, layers = self.initial_state(batch), []
        for i in range(self.config.num_layers):
            one, R = _of_layer(state.layers, i), memory.ring_blocks(self.config.layer(i).memory)
            one = dataclasses.replace(one, k=one.k[:, :R], v=one.v[:, :R])
            layers.append(self.execution.constrain(one, memory.layer_axes(self.config.memory)))
        return dataclasses.replace(state, layers=tuple(layers))

    def with_fam(self, state: MemoryState, fam: Float[Array, "L B P F D"]) -> MemoryState:
        """The memory with other feedback activations; their keys and values are recomputed, all else is unchanged."""
        changed = []
        for i, layer in enumerate(self._layers.each_layer(self.execution)):
            one = dataclasses.replace(_of_layer(state.layers, i), fam=fam[i].astype(jnp.float32))
            changed.append(memory.with_keys(layer, one))
        layers = tuple(changed) if isinstance(state.layers, tuple) else stacked(changed)
        return dataclasses.replace(state, layers=layers)

    def _prompt(self, start: Start) -> Float[Array, "1 F D"] | None:
        """The prompt, which is propagated through the layers with the text; None if no document can start with it."""
        handed_over = start.fam is not None and start.use is True and not alternatives.is_static(self.config.memory)
        if not hasattr(self, "fam") or self.config.memory.fam_init == "prefix" or handed_over:
            return None
        prompt = self._scaled(self.fam.prompt[...][None].astype(self.config.dtype))
        return self.execution.constrain(prompt, (None, None, None))

    def _prefix(self) -> Float[Array, "L F D"] | None:
        if not hasattr(self, "fam") or self.config.memory.fam_init != "prefix":
            return None
        return self.execution.constrain(self.fam.prefix[...], (None, None, None))

    # --- layers -----------------------------------------------------------------------------------

    @property
    def _layers(self) -> LayerStack:
        config = segments.in_layers(self.config)
        # A layer has its part of the gate among its weights.
        gate = self.fam.gate if self.config.memory.has_gate else None
        if isinstance(self.layers, LayerParams):
            weights = nnx.state(self.layers, nnx.Param)
            more = {} if gate is None else {"fam_gate": gate[...]}
            names = {} if gate is None else {"fam_gate": gate.axes}
            return LayerStack(config, nnx.to_pure_dict(weights) | more, axes_of(weights) | names)
        each = [nnx.state(layer, nnx.Param) for layer in self.layers]
        layers = [nnx.to_pure_dict(weights) for weights in each]
        if gate is None:
            return LayerStack(config, layers, axes_of(each[0]))
        layers = [one | {"fam_gate": gate[...][i]} for i, one in enumerate(layers)]
        return LayerStack(config, layers, axes_of(each[0]) | {"fam_gate": gate.axes[1:]})


def first_fam(
    layer: Layer, prompt: Float[Array, "1 F D"] | None, prefix: Float[Array, "F D"] | None,
    passed: Float[Array, "P F D"] | None, use: Any,
) -> Float[Array, "1 _N F D"]:  # fmt: skip
    """The initial FAM of a document in one layer, float32.

    Args:
      layer: of the model.
      prompt: the prompt, propagated to this layer; None if `fam_init` is `prefix` or it cannot be used.
      prefix: the layer's prefix; None if `fam_init` is `prompt`.
      passed, use: a given FAM, and whether it is used (`Start`).

    Returns:
      [1, P, F, D]; with static queries [1, P + 1, F, D], the learned FAM last (`alternatives.split`).
    """
    config = layer.config.memory
    shape = (1, config.previous_fams, config.fam_length, layer.config.d_model)
    fam = jnp.zeros(shape, jnp.float32)
    learned = prompt if prefix is None else prefix
    if learned is not None:
        fam = jnp.broadcast_to(learned.reshape(1, 1, *learned.shape[-2:]).astype(jnp.float32), shape)
    initial = fam if passed is None else jnp.where(use, passed[None].astype(jnp.float32), fam)
    if not layer.memory.fam_length:  # the layer takes an empty slice, which would be differentiated
        initial, fam = jax.lax.stop_gradient((initial, fam))
    return jnp.concatenate([initial, fam[:, :1]], axis=1) if alternatives.is_static(config) else initial


@functools.partial(jax.jit, static_argnums=0)
def _part_of_layer(
    layer: Layer, weights: Weights, x: Float[Array, "B Q D"], before: LayerMemory, where: positions.Blocks
) -> tuple[Float[Array, "B Q D"], LayerMemory]:
    """`streaming.part_of_block`, traced and lowered once for all layers with the same settings, not once for each."""
    return streaming.part_of_block(layer.with_arrays(weights), x, before, where)


def _of_layer(tree: Tree, i: int) -> Tree:
    """Layer i of a tree of arrays with a leading axis L, or of a tuple of L trees."""
    return tree[i] if isinstance(tree, tuple) else jax.tree.map(lambda x: x[i], tree)


def room(state: MemoryState, config: ModelConfig) -> Int[Array, "B"]:
    """Number of tokens that fit into the rest of each row's current block, [B]."""
    return config.memory.block_size - state.position % config.memory.block_size
