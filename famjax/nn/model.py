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
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from famjax.attention import blocks, fused, memory, positions, streaming
from famjax.attention.memory import LayerMemory, MemoryState
from famjax.config import ModelConfig
from famjax.nn.block import Block
from famjax.nn.layers import Norm, weight


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


def unconstrained(x: Any, axes: tuple[str | None, ...]) -> Any:
    """What a model without a mesh does with its activations: nothing."""
    return x


class Transformer(nnx.Module):
    """A decoder-only language model with block sliding window attention and FAM.

    `constrain(x, axes)` is applied to arrays inside the forward pass whose place on a mesh must not be left
    to the compiler; whoever runs a model on a mesh sets it (`runtime/sharding.py` `constrain`), and with it
    `per_device` (there, too), which runs a kernel on every device's part, and the mesh's `platform`.

    `layer_keys`, set by a training with dropout, gives as many random keys as it is asked for; None drops nothing.

    `layers` is one `Block` whose weights have a leading axis L, which loops over layers want; or, with `stacked`
    False, a list of L blocks (`apart`), which streaming wants: a product with a part of a larger array copies
    that part first, and for a single token this costs as much as the product.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stacked: bool = True):
        V, D, dtype = config.vocab_size, config.d_model, config.param_dtype
        self.config = config
        self.constrain: Callable[[Any, tuple[str | None, ...]], Any] = unconstrained
        self.per_device: fused.PerDevice | None = None
        self.platform = ""  # that of jax's default devices
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
        initial: MemoryState | None = None, shift_B: Any = None,
    ) -> tuple[Any, MemoryState]:  # fmt: skip
        """Layer-major: whole sequences, all blocks of a layer at once.

        Args:
          tokens_BT: int32 [B, T]; padded to whole blocks inside.
          state: memory to continue, all of whose rows stand at a block's edge; None starts afresh.
          count_B: tokens of each row up to its last real one; None where all are real. Padding is
            neither attended to nor remembered.
          starts_BN: bool [B, N], blocks with which a new document starts within the row. Padding
            may fill up the block before.
          initial: batch 1, the memory with which documents start; None is the learned one.
          shift_B: random position offset of each row; only `fam_position="zero"` sees it.

        Returns:
          Hidden states [B, T, D] after the final norm (`logits` makes scores of them), and the
          memory after each row's last real token.
        """
        B, T = tokens_BT.shape
        if count_B is None:
            count_B = jnp.full(B, T, jnp.int32)
        if initial is None:
            initial = self.initial_state(1)
        if state is None:
            state = broadcast_rows(initial, B)
        padded = jnp.pad(tokens_BT, ((0, 0), (0, -T % self.config.memory.block_size)))
        hidden, state, _ = self.forward(
            self.embed(padded), state, count_B, starts_BN=starts_BN, initial=initial, shift_B=shift_B
        )
        return hidden[:, :T], state

    def forward(
        self, x_BTD: Any, state: MemoryState, count_B: Any, *, starts_BN: Any, initial: MemoryState,
        shift_B: Any = None, look: Look | None = None,
    ) -> tuple[Any, MemoryState, Any]:  # fmt: skip
        """`__call__` behind the embedding, for those who want to see what happens inside.

        Args:
          x_BTD: embedded tokens, whole blocks of them.
          look: called in every layer with its weights, its input [B, N, S, D], its memories (that of the
            rows, that of a fresh document), the blocks' positions, its output, and the memory after.
          state, count_B, starts_BN, initial, shift_B: see `__call__`; none is left to be found.

        Returns:
          What `__call__` does, and what `look` gave, with a leading axis L.
        """
        config, S = self.config.memory, self.config.memory.block_size
        where = positions.of_whole_blocks(
            state.position, state.fam_updates, count_B, x_BTD.shape[1] // S, config,
            starts_BN, initial.fam_updates[0], shift_B,
        )  # fmt: skip

        platform = self.platform or jax.default_backend()
        kernel = fused.Kernel(fused.choose(self.config.attention_kernel, platform, S), self.per_device)

        def layer(weights: Block, x: Any, memories: tuple[LayerMemory, LayerMemory]) -> tuple[Any, Any]:
            y, after = blocks.whole_blocks(
                weights, x, *memories, where, weights.memory, self.config.attention_budget_mib, kernel
            )
            y = self.constrain(y, ACTIVATION_AXES)
            return y, (after, look(weights, x, memories, where, y, after) if look else None)

        x = self.constrain(blocks.split_blocks(x_BTD, S), ACTIVATION_AXES)
        x, (layers, looked) = self._through_layers(layer, x, (state.layers, initial.layers))
        return self.final_norm(blocks.join_blocks(x)), MemoryState(*positions.after(where, config), layers), looked

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
    def logits(self, hidden: Any) -> Any:
        """Hidden states [..., D] to float32 scores [..., V]."""
        table = self.embedding[...].T if self.config.tie_embeddings else self.unembedding[...]
        scores = jnp.matmul(hidden, table.astype(self.config.dtype), preferred_element_type=jnp.float32)
        cap = self.config.logit_cap
        return cap * jnp.tanh(scores / cap) if cap else scores

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
        return broadcast_rows(state, batch)

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

    def _through_layers(self, layer: Callable[[Block, Any, Any], Any], x: Any, per_layer: Any) -> tuple[Any, Any]:
        """x through all layers. `per_layer` has a leading axis L; so has what the layers return."""
        config = self.config
        if isinstance(self.layers, nnx.List):
            outs = []
            for i, block in enumerate(self._blocks()):
                x, out = layer(block, x, jax.tree.map(lambda a, i=i: a[i], per_layer))
                outs.append(out)
            return x, _stack(outs)
        graphdef, weights = nnx.split(self.layers)
        axes, weights = axes_of(weights), nnx.to_pure_dict(weights)
        keys = self.layer_keys(config.num_layers) if self.layer_keys else None

        def of_layer(index: int, in_scan: bool) -> Step:
            settings = config.layer(index)

            def step(x: Any, xs: Any) -> Any:
                one, key, extra = xs
                if self.constrain is not unconstrained:
                    with jax.named_scope("weights"):
                        one = jax.tree.map(
                            lambda w, names: gather(w, names[1:], self.constrain, config.dtype), one, axes
                        )
                block = nnx.merge(graphdef, one)
                block.take(settings, key)
                return layer(block, x, extra)

            return remat(step, config.remat, in_scan)

        L, period = config.num_layers, config.layer_period
        if not config.scan_layers:
            return _unrolled([of_layer(i, in_scan=False) for i in range(L)], x, (weights, keys, per_layer))
        rest = [of_layer(i, in_scan=False) for i in range(L - L % period, L)]
        return _scanned([of_layer(i, in_scan=True) for i in range(period)], rest, x, (weights, keys, per_layer), L)

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


Step = Callable[[Any, Any], tuple[Any, Any]]


def _of_layer(tree: Any, i: int) -> Any:
    """Entry i of a tree of arrays with a leading axis L, or of a tuple of L trees."""
    return tree[i] if isinstance(tree, tuple) else jax.tree.map(lambda x: x[i], tree)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unrolled(steps: Sequence[Step], x: Any, xs: Any) -> tuple[Any, Any]:
    """x through some steps, one after the other; xs and the outputs have a leading axis, one entry a step."""
    outs = []
    for i, step in enumerate(steps):
        x, out = step(x, jax.tree.map(lambda a, i=i: a[i], xs))
        outs.append(out)
    return x, _stack(outs)


def _scanned(period: Sequence[Step], rest: Sequence[Step], x: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """x through `length` layers whose steps repeat: one period is compiled and looped over.

    The layers that are left over behind the last whole period, `rest`, are compiled by themselves:

        26 layers of period 6:  4 turns of a loop over 6 layers, then 2 layers
    """
    P, whole = len(period), length - len(rest)
    if P == 1:
        return jax.lax.scan(period[0], x, xs)
    by_period = jax.tree.map(lambda a: a[:whole].reshape(whole // P, P, *a.shape[1:]), xs)
    x, outs = jax.lax.scan(lambda x, one: _unrolled(period, x, one), x, by_period)
    outs = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), outs)
    if not rest:
        return x, outs
    x, last = _unrolled(rest, x, jax.tree.map(lambda a: a[whole:], xs))
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), outs, last)


# The axes that `fsdp` cuts, and what is left of them when a layer has gathered them: of `lora_mlp`, what `tensor` cuts.
GATHERED: dict[str, str | None] = {"embed": None, "lora_head_dim": None, "lora_mlp": "mlp"}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gather(weight: Any, axes: tuple[str, ...], constrain: Callable[[Any, Any], Any], dtype: str) -> Any:
    """A weight made whole along the axes that `fsdp` cuts, for all that a layer does with it.

    Left to itself, the compiler gathers a weight where it is used, and in the scan over blocks that makes
    FAM this is once for each block. It is gathered in the compute dtype, half the bytes; that it
    then has its own type again costs nothing (every use rounds it to the compute dtype, which changes no
    bit), but its gradient, a sum over blocks and devices, adds up in that type.
    """
    rounded = weight.astype(dtype) if weight.ndim > 1 else weight  # norms work in float32
    return constrain(rounded, tuple(GATHERED.get(name, name) for name in axes)).astype(weight.dtype)


def _gather_forward(weight: Any, axes: Any, constrain: Any, dtype: str) -> tuple[Any, None]:
    return gather(weight, axes, constrain, dtype), None


def _gather_backward(axes: Any, constrain: Any, dtype: str, _: None, gradient: Any) -> tuple[Any]:
    return (constrain(gradient, axes),)


gather.defvjp(_gather_forward, _gather_backward)


def remat(step: Callable[..., Any], policy: str, in_scan: bool = True) -> Callable[..., Any]:
    """`step`, whose forward pass keeps less for its backward pass, which computes the rest again.

    none      keeps everything
    dots      the results of all matrix products: those of `minimal`, and what attention multiplies, which
              may be a score for every query head and key in the window
    minimal   the results of products with weights: for each token H (heads + 2 kv_heads) numbers of
              queries, keys and values, 2 E of a gated feed-forward layer, D of what attention returns
    full      what enters the layer: D numbers for each token

    Outside of a scan, the compiler would find the second computation to be the first and keep it after
    all; a barrier hinders it (`in_scan` False).
    """
    policies = jax.checkpoint_policies
    if policy == "none":
        return step
    saveable = {"dots": policies.checkpoint_dots, "minimal": policies.checkpoint_dots_with_no_batch_dims, "full": None}
    return jax.checkpoint(step, policy=saveable[policy], prevent_cse=not in_scan)


def broadcast_rows(state: MemoryState, batch: int) -> MemoryState:
    """A memory of one row for `batch` rows."""
    return memory.over_rows(lambda axis, x: jnp.broadcast_to(x, (*x.shape[:axis], batch, *x.shape[axis + 1 :])), state)


def select_rows(mask_B: Any, new: MemoryState, old: MemoryState) -> MemoryState:
    """Rows of `new` where the mask is set, else rows of `old` (to reset or restore single rows)."""
    chosen = lambda axis, a, b: jnp.where(mask_B.reshape(-1, *(1,) * (a.ndim - axis - 1)), a, b)
    return memory.over_rows(chosen, new, old)


def room(state: MemoryState, config: ModelConfig) -> Any:
    """int32 [B]: how many tokens each row takes until its block is full."""
    return config.memory.block_size - state.position % config.memory.block_size


def create(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model with random weights. Raises `ConfigError` if the configuration cannot work."""
    config.validate()
    key = jax.random.key(seed)
    # LoRA draws from a stream of its own, so that a model with it starts with the weights of the one without.
    return Transformer(config, nnx.Rngs(params=key, lora=jax.random.fold_in(key, 2106)))


def apart(model: Transformer) -> Transformer:
    """The same model with every layer's weights by themselves, as streaming wants them.

    The arrays of the given one are taken apart one after the other, and are gone afterwards.
    """
    if not isinstance(model.layers, Block):
        return model
    params, L = parameters(model), model.config.num_layers

    def cut(leaf: Any) -> list[Any]:
        parts = [leaf[i] for i in range(L)]
        jax.block_until_ready(parts)
        leaf.delete()
        return parts

    leaves, structure = jax.tree.flatten(params.pop("layers"))
    by_leaf = [cut(leaf) for leaf in leaves]
    params["layers"] = {i: jax.tree.unflatten(structure, [parts[i] for parts in by_leaf]) for i in range(L)}
    abstract = nnx.eval_shape(lambda: Transformer(model.config, nnx.Rngs(0), stacked=False))
    new: Transformer = nnx.merge(nnx.graphdef(abstract), params)
    new.constrain, new.per_device, new.platform = model.constrain, model.per_device, model.platform
    return new


def parameters(model: nnx.Module) -> dict[str, Any]:
    """The weights as a plain nested dict, the tree that checkpoints hold (docs/architecture.md)."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def each_parameter(model: Transformer) -> Iterator[tuple[str, Any]]:
    """Every weight with its path, those of layers one layer after the other, whether they are stacked or apart."""
    params = parameters(model)
    layers = params.pop("layers")
    named = lambda tree, where: ((where + jax.tree_util.keystr(p), x) for p, x in jax.tree.leaves_with_path(tree))
    yield from named(params, "")
    for i in range(model.config.num_layers):
        if isinstance(model.layers, Block):
            yield from ((path, x[i]) for path, x in named(layers, f"['layers'][{i}]"))
        else:
            yield from named(layers[i], f"['layers'][{i}]")


def parameter_shapes(config: ModelConfig) -> dict[str, Any]:
    """The tree of `parameters` with shapes instead of arrays; nothing is computed, whatever the size."""
    shapes: dict[str, Any] = jax.eval_shape(lambda: parameters(create(config)))
    return shapes


def parameter_axes(config: ModelConfig) -> dict[str, Any]:
    """The tree of `parameters` with the names of each weight's axes instead of arrays."""
    return axes_of(nnx.state(nnx.eval_shape(lambda: create(config)), nnx.Param))


def axes_of(weights: nnx.State[Any, Any]) -> dict[str, Any]:
    """The names of axes, a tuple for each weight, as a plain nested dict."""
    named = jax.tree.map(lambda leaf: leaf.axes, weights, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return nnx.to_pure_dict(named)


def with_memory(config: ModelConfig, **changes: Any) -> ModelConfig:
    """`config` with some of the memory's settings changed."""
    return dataclasses.replace(config, memory=dataclasses.replace(config.memory, **changes))
