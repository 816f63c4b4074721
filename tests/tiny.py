"""Tiny models for tests: random weights everywhere, forward passes compiled once per configuration."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from famjax.attention.memory import MemoryState
from famjax.attention.positions import Layout
from famjax.config import MemoryConfig, ModelConfig
from famjax.infer import scoring
from famjax.nn import model as models
from famjax.nn import weights
from famjax.nn.execution import Execution

RELATIVE = 1e-5  # float32 against float64, relative to the largest value
# Tests compile a lot and compute little. On a CPU these options make compilation four times faster.
COMPILE_FAST = {
    "xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}  # fmt: skip


def config(**changes: Any) -> ModelConfig:
    """Returns a model with two layers, width 12, blocks of 4, one segment, FAM of 2. Memory settings may be given by
    name too."""
    memory_names = {field.name for field in dataclasses.fields(MemoryConfig)}
    memory = {"block_size": 4, "memory_segments": 1, "fam_length": 2}
    memory |= {name: changes.pop(name) for name in list(changes) if name in memory_names}
    model = {"vocab_size": 17, "num_layers": 2, "d_model": 12, "d_ff": 20, "num_heads": 2, "num_kv_heads": 2}
    model |= {"head_dim": 4, "dtype": "float32", "rope_base": 100.0} | changes
    return ModelConfig(**model, memory=MemoryConfig(**memory))


def with_memory(config: ModelConfig, **changes: Any) -> ModelConfig:
    """Returns the configuration with changed memory settings."""
    return config.with_memory(**changes)


def with_model(config: ModelConfig, **changes: Any) -> ModelConfig:
    """Returns the configuration with changed model settings."""
    return dataclasses.replace(config, **changes)


def parameters(config: ModelConfig, seed: int = 0) -> dict:
    """Returns random weights, large enough that every part of the model matters; norm scales are not all ones."""
    shapes = weights.parameters(_abstract(config))
    paths, treedef = jax.tree.flatten_with_path(shapes)
    rng = np.random.default_rng(seed)
    leaves = []
    for path, shape in paths:
        name = jax.tree_util.keystr(path)
        noise = rng.normal(size=shape.shape)
        if "scale" in name:
            value = 1 + 0.3 * noise
        elif "embedding" in name or "fam" in name or "memory" in name:
            value = noise
        else:
            value = 0.25 * noise
        leaves.append(jnp.asarray(value, shape.dtype))
    return jax.tree.unflatten(treedef, leaves)


@functools.cache
def _abstract(config: ModelConfig, execution: Execution | None = None) -> Any:
    config.validate()
    return nnx.eval_shape(lambda: weights.create(config, execution=execution))


def build(config: ModelConfig, params: dict, execution: Execution | None = None) -> models.Transformer:
    """Returns the model with these weights; works inside traced functions."""
    graphdef, state = nnx.split(_abstract(config, execution))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


@functools.partial(jax.jit, static_argnums=0, compiler_options=COMPILE_FAST)
def whole(config: ModelConfig, params: dict, tokens_BT: Any, state: MemoryState | None = None, **kwargs: Any) -> Any:
    """Runs layer-major. Returns (hidden states, memory). `passed` is the initial FAM of documents, with its updates."""
    return whole_untraced(config, params, tokens_BT, state, **kwargs)


def whole_untraced(config: ModelConfig, params: dict, tokens_BT: Any, state: Any = None, **kwargs: Any) -> Any:
    """`whole`, for use inside a traced function."""
    passed = kwargs.pop("passed", None)
    start = models.LEARNED if passed is None else models.Start(*passed)
    layout = Layout(*(kwargs.pop(name, None) for name in ("starts_BN", "kept_B", "shift_B")))
    return build(config, params)(tokens_BT, state, kwargs.pop("count_B", None), start=start, layout=layout, **kwargs)


@functools.partial(jax.jit, static_argnums=0, compiler_options=COMPILE_FAST)
def read(config: ModelConfig, params: dict, tokens_BQ: Any, state: MemoryState, **kwargs: Any) -> Any:
    """Runs block-major: part of a block."""
    named = {name.removesuffix("_B"): value for name, value in kwargs.items()}
    return build(config, params).read(tokens_BQ, state, **named)


@functools.partial(jax.jit, static_argnums=(0, 2), compiler_options=COMPILE_FAST)
def initial_state(config: ModelConfig, params: dict, batch: int = 1, passed: Any = None) -> MemoryState:
    """Returns the initial memory."""
    return build(config, params).initial_state(batch, models.LEARNED if passed is None else models.Start(*passed))


def tokens(config: ModelConfig, batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Returns random tokens [B, T]."""
    return np.random.default_rng((seed, 1)).integers(0, config.vocab_size, (batch, length)).astype(np.int32)


def stream(
    config: ModelConfig, params: dict, tokens_BT: np.ndarray, state: MemoryState | None = None,
    sizes: Any = None, counts_B: Any = None, width: int = 0, **kwargs: Any,
) -> tuple[np.ndarray, MemoryState]:  # fmt: skip
    """Runs block-major over a text of any length: each row advances at its own pace, never past its block.

    Args:
      config, params: the model.
      tokens_BT: the text.
      state: the memory before it; None: the initial memory.
      sizes: a NumPy generator that draws the number of tokens of each row and call; None: all that fit into the row's
        block.
      counts_B: number of real tokens of each row; None: all.
      width: Q, number of tokens of a call, including padding; 0: a block.
      **kwargs: passed to `read`.
    """
    B, T = tokens_BT.shape
    S = config.memory.block_size
    Q = width or S
    counts = np.full(B, T) if counts_B is None else np.asarray(counts_B)
    state = initial_state(config, params, B) if state is None else state
    out = np.zeros((B, T, config.d_model), np.float32)
    done = np.zeros(B, int)
    while (done < counts).any():
        take = np.minimum(S - np.asarray(state.position) % S, Q)
        if sizes is not None:
            take = np.minimum(take, sizes.integers(0, Q + 1, B))
        take = np.minimum(take, counts - done)
        part = np.random.default_rng(0).integers(0, config.vocab_size, (B, Q)).astype(np.int32)
        for b in range(B):
            part[b, : take[b]] = tokens_BT[b, done[b] : done[b] + take[b]]
        hidden, state = read(config, params, part, state, count_B=take.astype(np.int32), **kwargs)
        for b in range(B):
            out[b, done[b] : done[b] + take[b]] = hidden[b, : take[b]]
        done += take
    return out, state


def scored(model: models.Transformer, tokens_BT: np.ndarray, lengths: Any, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """(logprobs, correct) of `scoring.score_documents` for a padded batch, in the arrays of `scoring.score_whole`."""
    B, T = tokens_BT.shape
    found = np.zeros((B, T - 1), np.float32), np.zeros((B, T - 1), bool)
    documents = [row[:length] for row, length in zip(tokens_BT, lengths, strict=True)]
    for i, *scores in scoring.score_documents(model, documents, B, **how):
        for all_rows, one in zip(found, scores, strict=True):
            all_rows[i, : len(one)] = one
    return found


def visible(config: ModelConfig, state: MemoryState) -> list[dict[str, np.ndarray]]:
    """Returns a memory's contents, row by row: blocks oldest first, and FAMs newest first, without unused slots."""
    S, R, P = config.memory.block_size, config.memory.memory_segments + 1, config.memory.previous_fams
    layers, rows = state.layers, []
    if isinstance(layers, tuple):  # as streaming has them
        layers = jax.tree.map(lambda *arrays: np.stack(arrays), *layers)
    for b, (position, updates) in enumerate(zip(state.position.tolist(), state.fam_updates.tolist(), strict=True)):
        current, waiting = divmod(position, S)
        fams = min(P, updates + 1)
        row = {"position": np.array(position)}
        if config.memory.fam_length:
            row |= {name: np.asarray(getattr(layers, name)[:, b, :fams]) for name in ("fam", "fam_k", "fam_v")}
            row |= {"fam_updates": np.array(updates)}
        row |= {name: np.asarray(array[:, b]) for name, array in layers.beside.items()}
        row |= {name: np.asarray(array[b]) for name, array in state.beside.items()}
        if waiting:  # the block may begin with memory tokens
            blocks = {"rmt": 1, "autocompressor": min(current, config.memory.summary_blocks)}
            waiting += blocks.get(config.memory.kind, 0) * config.memory.memory_tokens
        for name in ("k", "v"):
            ring = np.asarray(getattr(layers, name)[:, b])
            past = [ring[:, n % R] for n in range(max(0, current - R + 1), current)]
            parts = [*past, ring[:, current % R][..., :waiting, :]]
            row[name] = np.concatenate(parts, axis=-2)
        rows.append(row)
    return rows


def assert_close(actual: Any, desired: Any, relative: float = RELATIVE) -> None:
    """Shapes are equal, and no difference exceeds `relative` times the largest desired value."""
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    assert actual.shape == desired.shape
    assert np.isfinite(actual).all()
    if desired.size:
        assert np.abs(actual - desired).max() <= relative * np.abs(desired).max()


def perturbed(tree: Any, seed: int) -> Any:
    """Changes every number by half a unit in the last place of float32, up or down."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (np.asarray(x) * (1 + rng.choice([-1, 1], x.shape) * 2.0**-24)).astype(x.dtype), tree)


def assert_equal_up_to_rounding(actual: Any, desired: Any, others: list[Any]) -> None:
    """No difference exceeds 8 times the effect of rounding the inputs once.

    Args:
      actual: the values under test.
      desired: the same values by another computation, also in float32.
      others: that computation on `perturbed` inputs. They differ more from `desired` if a sum is ill-conditioned, so
        the tolerance follows from the computation, not from the processor. Each of about 50 operations on an input
        rounds once more, in a random direction: sqrt(50) < 8.
    """
    actual, desired, *others = (np.asarray(x, np.float64) for x in (actual, desired, *others))
    assert actual.shape == desired.shape
    rounding = max(np.abs(other - desired).max() for other in others)
    assert rounding > 0
    assert np.abs(actual - desired).max() <= 8 * rounding


def assert_same_memory_up_to_rounding(
    config: ModelConfig, actual: MemoryState, desired: MemoryState, others: list[MemoryState]
) -> None:
    """Two memories have the same contents, up to the rounding that `others` show (`assert_equal_up_to_rounding`)."""
    layers = zip(visible(config, actual), visible(config, desired), *(visible(config, o) for o in others), strict=True)
    for one, other, *more in layers:
        assert one.keys() == other.keys()
        for name in one:
            if not np.array_equal(one[name], other[name]):
                assert_equal_up_to_rounding(one[name], other[name], [layer[name] for layer in more])


def assert_same_memory(config: ModelConfig, actual: MemoryState, desired: MemoryState) -> None:
    """Two memories have the same contents, up to rounding."""
    for one, other in zip(visible(config, actual), visible(config, desired), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert_close(one[name], other[name])
