"""The model: embedding, layers, and the memory that passes through them.

Two orders of the same computation (paper section 3). `__call__` is layer-major: each layer takes
all blocks at once; training and prefill use it. `read` is block-major: all layers take up to one
block; streaming uses it. Both call the same layer (`attention/blocks.py`, `attention/streaming.py`)
and pass a `MemoryState` in and out, so a text can be cut between calls.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from famjax.attention import blocks, fused, memory, positions, streaming
from famjax.attention.memory import LayerMemory, MemoryState
from famjax.config import ModelConfig
from famjax.nn.block import Block
from famjax.nn.layers import Norm, weight
from famjax.nn.stack import Devices, Step, gather, remat, scanned, unrolled


class Fam(nnx.Module):
    """The only weight that FAM adds: the learned prompt [F, D] (or a prefix [L, F, D]), float32 in any case:
    it is small, and trained also where the weights around it are frozen in bfloat16."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        F, D, std, dtype = config.memory.fam_length, config.d_model, config.embedding_std, "float32"
        if config.memory.fam_init == "prompt":
            self.prompt = weight(rngs, (F, D), std, ("fam", "embed"), dtype)
        else:
            self.prefix = weight(rngs, (F, D), std, ("fam", "embed"), dtype, stack=(config.num_layers,))


# What looks at a layer from outside: see `Transformer.forward`.
Look = Callable[[Block, Any, tuple[LayerMemory, LayerMemory], positions.Blocks, Any, LayerMemory], Any]


# Activations of whole blocks, [B, N, S, D]: cut along their rows alone.
ACTIVATION_AXES = ("batch", None, None, None)
# Between layers that each device runs on its own rows, the tokens of a block are cut over `tensor`: what a layer keeps
# for the backward pass is then held once.
ALONE_AXES = ("batch", None, "tokens", None)


def unconstrained(x: Any, axes: tuple[str | None, ...]) -> Any:
    """What a model without a mesh does with its activations: nothing."""
    return x


class Start(NamedTuple):
    """With what documents start: the learned FAM, carried up the layers beside the text, or one that was passed on.

    Attributes:
      passed_fam: [L, P, F, D], taken if `use` is set; None: the learned one in any case.
      passed_updates: int32 [], updates that it has had.
      use: bool [].
    """

    passed_fam: Any = None
    passed_updates: Any = 0
    use: Any = False


LEARNED = Start()


class Memories(NamedTuple):
    """Of all layers, or of one: the rows' memory, a fresh document's (batch 1), or what it is made of.

    Attributes:
      rows: `LayerMemory`; None: rows begin with a fresh document.
      fresh: `LayerMemory`; None: it is made on the way (`Transformer._fresh`).
      prefix: [F, D], see `MemoryConfig.fam_init`.
      passed_fam: [P, F, D], see `Start`.
    """

    rows: Any
    fresh: Any
    prefix: Any
    passed_fam: Any


# Of a layer of `forward`: which of what it takes, (x, prompt), memories, (where, use), and gives has rows first.
LAYER_CUT = (((True, False), Memories(True, False, False, False), (True, False)), ((True, False), True))


class Transformer(nnx.Module):
    """A decoder-only language model with block sliding window attention and FAM.

    `constrain(x, axes)` is applied to arrays inside the forward pass whose place on a mesh must not be left
    to the compiler; whoever runs a model on a mesh sets it (`runtime/sharding.py` `constrain`), and may set
    `devices`, with which a layer's communication is written down instead of found by the compiler.

    `layer_keys`, set by a training whose layers draw random numbers (`ModelConfig.is_noisy`), gives as many keys as
    it is asked for.

    `layers` is one `Block` whose weights have a leading axis L, which loops over layers want; or, with `stacked`
    False, a list of L blocks (`apart`), which streaming wants: a product with a part of a larger array copies
    that part first, and for a single token this costs as much as the product.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stacked: bool = True):
        V, D, dtype = config.vocab_size, config.d_model, config.param_dtype
        self.config = config
        self.constrain: Callable[[Any, tuple[str | None, ...]], Any] = unconstrained
        self.devices: Devices | None = None
        self.layer_keys: Callable[[int], Any] | None = None
        self.embedding = weight(rngs, (V, D), config.embedding_std, ("vocab", "embed"), dtype)
        L = config.num_layers
        self.layers = Block(config, rngs, (L,)) if stacked else nnx.List([Block(config, rngs) for _ in range(L)])
        self.final_norm = Norm(config, D)
        if not config.tie_embeddings:
            self.unembedding = weight(rngs, (D, V), D**-0.5, ("embed", "vocab"), dtype)
        if config.memory.fam_length:
            self.fam = Fam(config, rngs)

    # --- forward ----------------------------------------------------------------------------------

    def __call__(
        self, tokens_BT: Any, state: MemoryState | None = None, count_B: Any = None, *, starts_BN: Any = None,
        initial: MemoryState | Start = LEARNED, shift_B: Any = None, kept_B: Any = None,
    ) -> tuple[Any, MemoryState]:  # fmt: skip
        """Layer-major: whole sequences, all blocks of a layer at once.

        Args:
          tokens_BT: int32 [B, T]; padded to whole blocks inside.
          state: memory to continue, all of whose rows stand at a block's edge; None starts afresh.
          count_B: tokens of each row up to its last real one; None where all are real. Padding is
            neither attended to nor remembered.
          starts_BN: bool [B, N], blocks with which a new document starts within the row. Padding
            may fill up the block before.
          initial: with what documents start: a memory of batch 1, or `Start`, which is made on the way.
          shift_B: random position offset of each row; only `fam_position="zero"` sees it.
          kept_B: int32 [B], blocks of each row, the first ones, of which the memory afterwards knows; None: of all.

        Returns:
          Hidden states [B, T, D] after the final norm (`logits` makes scores of them), and the
          memory after each row's last real token, or after its kept blocks.
        """
        B, T = tokens_BT.shape
        if count_B is None:
            count_B = jnp.full(B, T, jnp.int32)
        padded = jnp.pad(tokens_BT, ((0, 0), (0, -T % self.config.memory.block_size)))
        hidden, state, _ = self.forward(
            self.embed(padded), state, count_B, starts_BN=starts_BN, initial=initial, shift_B=shift_B, kept_B=kept_B
        )
        return hidden[:, :T], state

    def forward(
        self, x_BTD: Any, state: MemoryState | None, count_B: Any, *, starts_BN: Any,
        initial: MemoryState | Start, shift_B: Any = None, kept_B: Any = None, look: Look | None = None,
    ) -> tuple[Any, MemoryState, Any]:  # fmt: skip
        """`__call__` behind the embedding, for those who want to see what happens inside.

        Args:
          x_BTD: embedded tokens, whole blocks of them.
          look: called in every layer with its weights, its input [B, N, S, D], its memories (that of the
            rows, that of a fresh document), the blocks' positions, its output, and the memory after.
          state, count_B, starts_BN, initial, shift_B, kept_B: see `__call__`.

        Returns:
          What `__call__` does, and what `look` gave, with a leading axis L.
        """
        config, S, B = self.config.memory, self.config.memory.block_size, x_BTD.shape[0]
        if isinstance(initial, Start):
            fresh_updates = jnp.where(initial.use, initial.passed_updates, 0)
        else:
            fresh_updates = initial.fam_updates[0]
        where = positions.of_whole_blocks(
            jnp.zeros(B, jnp.int32) if state is None else state.position,
            jnp.full(B, fresh_updates) if state is None else state.fam_updates,
            count_B, x_BTD.shape[1] // S, config, starts_BN, fresh_updates, shift_B, kept_B,
        )  # fmt: skip
        shards = self.devices.row_shards if self.devices is not None else 1
        looped = isinstance(self.layers, Block) and look is None and self.layer_keys is None
        alone = looped and self.devices is not None and B % shards == 0
        # The budget is one device's; if the layer is cut by the compiler, it sees the rows of all of them.
        seen_rows = 1 if alone else shards
        budget = self.config.attention_budget_mib * seen_rows
        chunk = -(-self.config.layer_chunk * seen_rows // S)
        if self.layer_keys is not None:
            chunk = 0  # what is dropped out depends on the place in the array

        def layer(weights: Block, carry: Any, memories: Memories, where: Any, use: Any) -> tuple[Any, Any]:
            x, prompt = carry
            x = self.devices.whole_tokens(x) if alone and self.devices else x
            fresh = memories.fresh or self._fresh(weights, memories, prompt, use)
            rows = memories.rows or memory.broadcast_layer(fresh, x.shape[0])
            if prompt is not None:
                with jax.named_scope("fam_recurrence"):
                    prompt = memory.prompt_layer(weights, prompt, config)
            y, after = blocks.whole_blocks(
                weights, x, rows, fresh, where, weights.memory, budget, self._kernel(alone), chunk
            )
            y = self.devices.cut_tokens(y) if alone and self.devices else self.constrain(y, ACTIVATION_AXES)
            looked = look(weights, x, (rows, fresh), where, y, after) if look else None
            return (y, prompt), (after, looked)

        x = self.constrain(blocks.split_blocks(x_BTD, S), ALONE_AXES if alone else ACTIVATION_AXES)
        use = initial.use if isinstance(initial, Start) else None
        carry, (layers, looked) = self._through_layers(
            layer,
            (x, self._prompt(initial)),
            self._memories(state, initial),
            (where, use),
            LAYER_CUT if alone else None,
        )
        memory_after = MemoryState(*positions.after(where, config), layers)
        return self.final_norm(blocks.join_blocks(carry[0])), memory_after, looked

    def _kernel(self, alone: bool) -> fused.Kernel:
        """By what layers attend; `alone`: each device with its rows."""
        devices, per_device = self.devices, None
        if devices is not None:
            per_device = functools.partial(devices.per_device, inside=alone)
        platform = devices.platform if devices is not None else jax.default_backend()
        chosen = fused.choose(self.config.attention_kernel, platform, self.config.memory.block_size)
        return fused.Kernel(chosen, per_device)

    def read(
        self, tokens_BQ: Any, state: MemoryState, count_B: Any = None, shift_B: Any = None
    ) -> tuple[Any, MemoryState]:
        """Block-major: all layers take up to one block of tokens, starting anywhere in a block.

        Args:
          tokens_BQ: int32 [B, Q], Q at most S.
          state: the memory before these tokens; rows may stand at different positions. One of the form of
            `streaming_state` is written in place where it is given away, else it is copied.
          count_B: real tokens of each row, which must fit what is left of the row's block
            (`room` tells); None where all are real. A row with 0 stays as it is.
          shift_B: see `__call__`.

        Returns:
          Hidden states [B, Q, D] after the final norm, and the memory after the real tokens.

        Raises:
          ValueError: more tokens than a block has; `infer/prefill.py` cuts longer texts.
        """
        config = self.config.memory
        if tokens_BQ.shape[1] > config.block_size:
            raise ValueError(f"read takes at most a block of {config.block_size} tokens, not {tokens_BQ.shape[1]}")
        if count_B is None:
            count_B = jnp.full(tokens_BQ.shape[0], tokens_BQ.shape[1], jnp.int32)
        where = positions.of_part(state.position, state.fam_updates, count_B, config, shift_B)

        x, memories = self.embed(tokens_BQ), []
        for i, block in enumerate(self._blocks()):
            x, after = streaming.part_of_block(block, x, _of_layer(state.layers, i), where, block.memory)
            x = self.constrain(x, ACTIVATION_AXES[:1] + ACTIVATION_AXES[2:])
            memories.append(self.constrain(after, memory.LAYER_AXES))
        layers = _stack(memories) if isinstance(state.layers, LayerMemory) else tuple(memories)
        return self.final_norm(x), MemoryState(*positions.after(where, config), layers)

    @jax.named_scope("embedding")
    def embed(self, tokens: Any) -> Any:
        """int32 [...] to [..., D]."""
        # Rows are looked up in whole rows: in a table cut along D, the result would be cut along D too,
        # and the compiler would gather every activation of the batch to cut it anew.
        return self._scaled(self.constrain(self.embedding[...].astype(self.config.dtype), ("vocab", None))[tokens])

    def _scaled(self, embedded: Any) -> Any:
        """Embeddings as they enter the first layer. The factor is rounded as they are, which is what Gemma does."""
        if not self.config.scale_embeddings:
            return embedded
        return embedded * jnp.asarray(math.sqrt(self.config.d_model), self.config.dtype)

    @jax.named_scope("logits")
    def logits(self, hidden: Any, table: Any = None) -> Any:
        """Hidden states [..., D] to float32 scores [..., V]; with a `table` of one's own, see `vocabulary_weights`."""
        if table is None:
            table = self.vocabulary_weights[0]
        table = table.T if self.config.tie_embeddings else table
        scores = jnp.matmul(hidden, table.astype(self.config.dtype), preferred_element_type=jnp.float32)
        cap = self.config.logit_cap
        return cap * jnp.tanh(scores / cap) if cap else scores

    @property
    def vocabulary_weights(self) -> tuple[Any, tuple[str, ...]]:
        """What logits are made with, and the names of its axes: the embedding [V, D], or [D, V] of its own."""
        if self.config.tie_embeddings:
            return self.embedding[...], ("vocab", "embed")
        return self.unembedding[...], ("embed", "vocab")

    # --- memory -----------------------------------------------------------------------------------

    def initial_state(self, batch: int, passed: tuple[Any, Any] | None = None) -> MemoryState:
        """The memory before any text.

        Args:
          batch: B.
          passed: (fam [L, P, F, D], updates) to start from instead of the learned prompt, as random
            state passing does; the residual of its first update is that FAM.
        """
        config, memory_config = self.config, self.config.memory
        L, K, S, H = config.num_layers, config.num_kv_heads, memory_config.block_size, config.head_dim
        P, F, R = memory_config.previous_fams, memory_config.fam_length, memory_config.memory_segments + 1
        ring = jnp.zeros((L, 1, R, K, S, H), config.dtype)
        keys = jnp.zeros((L, 1, P, K, F, H), config.dtype)
        fam, updates = passed if passed is not None else (self._initial_fam(), 0)
        layers = LayerMemory(ring, ring, fam[:, None].astype(jnp.float32), keys, keys)
        if F:
            refresh = lambda weights, x, m: (x, memory.refresh_keys(weights, m, memory_config))
            with jax.named_scope("fam_recurrence"):
                _, layers = self._through_layers(refresh, jnp.zeros(()), layers)
        state = MemoryState(jnp.zeros(1, jnp.int32), jnp.full(1, updates, jnp.int32), layers)
        return memory.broadcast_rows(state, batch)

    def with_fam(self, state: MemoryState, fam_LBPFD: Any) -> MemoryState:
        """A memory whose feedback activations are others; their keys and values are made anew, all else stays."""
        if isinstance(state.layers, tuple):
            changed = [
                memory.refresh_keys(block, dataclasses.replace(one, fam=fam.astype(jnp.float32)), self.config.memory)
                for block, one, fam in zip(self._blocks(), state.layers, fam_LBPFD, strict=True)
            ]
            return dataclasses.replace(state, layers=tuple(changed))
        layers = dataclasses.replace(state.layers, fam=fam_LBPFD.astype(jnp.float32))
        refresh = lambda weights, x, m: (x, memory.refresh_keys(weights, m, self.config.memory))
        _, layers = self._through_layers(refresh, jnp.zeros(()), layers)
        return MemoryState(state.position, state.fam_updates, layers)

    def streaming_state(self, batch: int) -> MemoryState:
        """`initial_state` for `read` alone: every layer by itself, with a ring as long as its window wants."""
        state, layers = self.initial_state(batch), []
        for i in range(self.config.num_layers):
            one, R = _of_layer(state.layers, i), memory.ring_blocks(self.config.layer(i).memory)
            one = dataclasses.replace(one, k=one.k[:, :R], v=one.v[:, :R])
            layers.append(self.constrain(one, memory.LAYER_AXES))
        return dataclasses.replace(state, layers=tuple(layers))

    @jax.named_scope("fam_recurrence")
    def _initial_fam(self) -> Any:
        """[L, P, F, D]: the prompt carried up the layers by a forward pass of its own, or the prefix."""
        config = self.config.memory
        if not config.fam_length:
            return jnp.zeros((self.config.num_layers, config.previous_fams, 0, self.config.d_model))
        if config.fam_init == "prefix":
            fam = self.fam.prefix[...]
        else:
            layer = lambda weights, x, _: (memory.prompt_layer(weights, x, config), x[0])
            prompt = self._scaled(self.fam.prompt[...][None].astype(self.config.dtype))
            _, fam = self._through_layers(layer, prompt, None)
        return jnp.repeat(fam[:, None].astype(jnp.float32), config.previous_fams, axis=1)

    def _prompt(self, initial: MemoryState | Start) -> Any:
        """[1, F, D]: what goes up the layers beside the text, where FAM is made of it."""
        if isinstance(initial, MemoryState) or not hasattr(self, "fam") or self.config.memory.fam_init == "prefix":
            return None
        prompt = self._scaled(self.fam.prompt[...][None].astype(self.config.dtype))
        return self.constrain(prompt, (None, None, None))

    def _memories(self, state: MemoryState | None, initial: MemoryState | Start) -> Memories:
        rows = None if state is None else state.layers
        if isinstance(initial, MemoryState):
            return Memories(rows, initial.layers, None, None)
        prefix = None
        if hasattr(self, "fam") and self.config.memory.fam_init == "prefix":
            prefix = self.constrain(self.fam.prefix[...], (None, None, None))
        return Memories(rows, None, prefix, initial.passed_fam)

    def _fresh(self, weights: Block, memories: Memories, prompt: Any, use: Any) -> LayerMemory:
        """A layer's memory before any text, batch 1."""
        config, memory_config = self.config, self.config.memory
        K, S, H, R = config.num_kv_heads, memory_config.block_size, config.head_dim, memory_config.memory_segments + 1
        P, F = memory_config.previous_fams, memory_config.fam_length
        ring, keys = jnp.zeros((1, R, K, S, H), config.dtype), jnp.zeros((1, P, K, F, H), config.dtype)
        fam = jnp.zeros((1, P, F, config.d_model), jnp.float32)
        learned = memories.prefix[None] if memories.prefix is not None else prompt
        if learned is not None:
            fam = jnp.broadcast_to(learned[:, None].astype(jnp.float32), fam.shape)
        if memories.passed_fam is not None:
            fam = jnp.where(use, memories.passed_fam[None], fam)
        fresh = LayerMemory(ring, ring, fam, keys, keys)
        return memory.refresh_keys(weights, fresh, memory_config) if F else fresh

    def _through_layers(
        self, layer: Callable[..., Any], x: Any, per_layer: Any, shared: Any = (), cut: Any = None
    ) -> tuple[Any, Any]:
        """x through all layers: `layer(weights, x, one layer's part of per_layer, *shared)`.

        `per_layer` has a leading axis L; so has what the layers return. With `cut` each device runs the layer on
        its own rows: which of (x, per_layer, shared), and of what the layer returns, has rows first.
        """
        config = self.config
        if isinstance(self.layers, nnx.List):
            outs = []
            for i, block in enumerate(self._blocks()):
                x, out = layer(block, x, jax.tree.map(lambda a, i=i: a[i], per_layer), *shared)
                outs.append(out)
            return x, _stack(outs)
        graphdef, weights = nnx.split(self.layers)
        axes, weights = axes_of(weights), nnx.to_pure_dict(weights)
        keys = self.layer_keys(config.num_layers) if self.layer_keys else None

        def of_layer(index: int, in_scan: bool) -> Step:
            settings = config.layer(index)

            def run(one: Any, key: Any, x: Any, extra: Any, shared: Any) -> Any:
                block = nnx.merge(graphdef, one)
                block.take(settings, key)
                return layer(block, x, extra, *shared)

            def step(x: Any, xs: Any) -> Any:
                one, key, extra = xs
                if cut is not None and self.devices is not None:
                    names = jax.tree.map(lambda w, names: names[1:], one, axes)
                    alone = lambda one, *args: run(one, None, *args)
                    return self.devices.by_rows(alone, names, config.dtype, *cut)(one, x, extra, shared)
                if self.constrain is not unconstrained:
                    with jax.named_scope("weights"):
                        one = jax.tree.map(
                            lambda w, names: gather(w, names[1:], self.constrain, config.dtype), one, axes
                        )
                return run(one, key, x, extra, shared)

            return remat(step, config.remat, in_scan)

        L, period = config.num_layers, config.layer_period
        if not config.scan_layers:
            return unrolled([of_layer(i, in_scan=False) for i in range(L)], x, (weights, keys, per_layer))
        rest = [of_layer(i, in_scan=False) for i in range(L - L % period, L)]
        return scanned([of_layer(i, in_scan=True) for i in range(period)], rest, x, (weights, keys, per_layer), L)

    def _blocks(self) -> Iterator[Block]:
        """Every layer by itself, ready to be used."""
        for i in range(self.config.num_layers):
            stacked = isinstance(self.layers, Block)
            graphdef, weights = nnx.split(self.layers if stacked else self.layers[i])
            axes, weights = axes_of(weights), nnx.to_pure_dict(weights)
            if stacked:
                weights = _of_layer(weights, i)
            if self.constrain is not unconstrained:
                whole = lambda w, names: gather(w, names[-w.ndim :], self.constrain, self.config.dtype)
                weights = jax.tree.map(whole, weights, axes)
            block = nnx.merge(graphdef, weights)
            block.take(self.config.layer(i))
            yield block


def _of_layer(tree: Any, i: int) -> Any:
    """Entry i of a tree of arrays with a leading axis L, or of a tuple of L trees."""
    return tree[i] if isinstance(tree, tuple) else jax.tree.map(lambda x: x[i], tree)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def room(state: MemoryState, config: ModelConfig) -> Any:
    """int32 [B]: how many tokens each row takes until its block is full."""
    return config.memory.block_size - state.position % config.memory.block_size


def axes_of(weights: nnx.State[Any, Any]) -> dict[str, Any]:
    """The names of axes, a tuple for each weight, as a plain nested dict."""
    named = jax.tree.map(lambda leaf: leaf.axes, weights, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return nnx.to_pure_dict(named)


def with_memory(config: ModelConfig, **changes: Any) -> ModelConfig:
    """`config` with some of the memory's settings changed."""
    return dataclasses.replace(config, memory=dataclasses.replace(config.memory, **changes))
