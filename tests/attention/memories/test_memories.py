"""What every memory beside the window promises: its paper's equations, however a text is cut, and nothing else."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.attention import memories
from famjax.config import MEMORY_KINDS, ConfigError, ModelConfig
from tests import reference, tiny
from tests import slow as slow_cases
from tests.attention.memories.references import READ, armt, rmt

LENGTH, ROWS = 22, 4
CASES = {
    "sinks": tiny.config(kind="sinks", fam_length=0, sinks=3, num_heads=4),
    "infini": tiny.config(kind="infini", fam_length=0, memory_segments=0, num_heads=4),
    "deltanet": tiny.config(kind="deltanet", fam_length=0, memory_segments=0, num_heads=4, head_dim=8),
    "rmt": tiny.config(kind="rmt", fam_length=0, memory_segments=0, memory_tokens=2, num_heads=4),
    "autocompressor": tiny.config(
        kind="autocompressor", fam_length=0, memory_segments=0, memory_tokens=2, summary_blocks=3, num_heads=4
    ),
    "armt": tiny.config(kind="armt", fam_length=0, memory_segments=0, memory_tokens=2, memory_key_dim=3, num_heads=4),
    "retrieval": tiny.config(
        kind="retrieval", fam_length=0, memory_segments=0, retrieval_blocks=4, retrieval_top_k=2, num_heads=4
    ),
    "static": tiny.config(fam_update="static", num_heads=4),
    "outputs": tiny.config(segments_hold="outputs", memory_segments=2, fam_length=0),
}
# Memories with tokens of their own, which read a text through all layers.
OF_MODEL = {"rmt": rmt, "autocompressor": rmt, "armt": armt}
# Cases that say the same once more.
MORE = {
    "retrieval-segments1": tiny.config(kind="retrieval", fam_length=0, retrieval_blocks=3, retrieval_top_k=1),
    "static-residual-some-layers": tiny.config(
        fam_update="static", zero_first_residual=False, memory_segments=0, fam_layers="-+"
    ),
    "static-two-fams-prefix-zero": tiny.config(
        fam_update="static", previous_fams=2, fam_init="prefix", fam_position="zero"
    ),
    "static-outputs": tiny.config(fam_update="static", segments_hold="outputs", fam_gate=True),
    "outputs-window": tiny.config(segments_hold="outputs", memory_segments=2, token_window=6, scan_layers=False),
    "sinks-segments0": tiny.config(kind="sinks", fam_length=0, memory_segments=0, sinks=2),
    "infini-linear-qk_norm": tiny.config(kind="infini", fam_length=0, infini_delta=False, qk_norm=True),
    "deltanet-segments1": tiny.config(kind="deltanet", fam_length=0, head_dim=8),
    "deltanet-local-layers": tiny.config(
        kind="deltanet",
        fam_length=0,
        memory_segments=2,
        token_window=6,
        layer_pattern=("local", "global"),
        local_window=3,
        local_rope_base=10.0,
        scale_embeddings=True,
        rope_scaling="linear",
        rope_factor=4.0,
    ),
    "rmt-parallel-scaled-embeddings": tiny.config(
        kind="rmt",
        fam_length=0,
        memory_segments=0,
        memory_tokens=1,
        parallel_layers=True,
        scale_embeddings=True,
        post_norms=True,
        unroll_blocks=2,
    ),
}
# Of these, a few tests are fast: each compiles programs of its own.
SOME = ("autocompressor", "armt", "retrieval", "static", "outputs")
CASES |= MORE
some_fast = pytest.mark.parametrize("name", slow_cases.but(CASES, *MORE))
every_case = pytest.mark.parametrize("name", slow_cases.but(CASES, *MORE, *SOME))


def test_every_kind_is_configured_and_tested() -> None:
    """A kind is in the registry, in the configuration, and among the cases of this file."""
    assert tuple(memories.KINDS) == MEMORY_KINDS
    assert {config.memory.kind for config in CASES.values()} == {*READ, *OF_MODEL, "fam"} == set(MEMORY_KINDS)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "infini", "fam_length": 2}, "fam_length 2 with kind 'infini'"),
        ({"kind": "infni"}, "did you mean 'infini'"),
        ({"kind": "deltanet", "fam_layers": "global"}, "fam_layers 'global' with kind 'deltanet'"),
        ({"kind": "sinks", "sinks": 9}, "sinks 9 with block_size 4"),
        ({"kind": "sinks", "token_window": 3}, "token_window 3 with kind 'sinks'"),
        (
            {"kind": "rmt", "memory_segments": 0, "memory_tokens": 2, "layer_pattern": ("local",), "local_window": 3},
            "kind 'rmt', whose layers all see whole blocks; use layer_pattern (\"global\",)",
        ),
        ({"kind": "rmt", "memory_segments": 1}, "memory_segments 1 with kind 'rmt'"),
        ({"kind": "rmt", "memory_segments": 0, "memory_tokens": 5}, "memory_tokens 5 with block_size 4"),
        ({"kind": "autocompressor", "memory_segments": 1}, "memory_segments 1 with kind 'autocompressor'"),
        ({"kind": "retrieval", "retrieval_blocks": 1}, "retrieval_blocks 1 with memory_segments 1"),
        ({"kind": "retrieval", "retrieval_top_k": 65}, "retrieval_top_k 65 with retrieval_blocks 64"),
        ({"kind": "armt", "memory_segments": 0, "token_window": 1}, "token_window 1 with kind 'armt'"),
        ({"kind": "autocompressor", "memory_segments": 0, "summary_blocks": 0}, "summary_blocks"),
        ({"kind": "rmt", "fam_update": "static", "memory_segments": 0}, "fam_update 'static' with kind 'rmt'"),
        ({"kind": "sinks", "segments_hold": "outputs"}, "segments_hold 'outputs' with kind 'sinks'"),
        ({"segments_hold": "outputs", "memory_segments": 0}, "segments_hold 'outputs' with memory_segments 0"),
        ({"fam_update": "static"}, "fam_update 'static' with fam_length 0"),
        ({"fam_update": "statik"}, "did you mean 'static'"),
        (
            {"kind": "rmt", "memory_segments": 0, "block_size": 128, "attention_kernel": "fused"},
            "attention_kernel 'fused' with kind 'rmt'",
        ),
    ],
)
def test_combinations_without_meaning_are_refused(settings: dict, said: str) -> None:
    """In one line that names both settings."""
    with pytest.raises(ConfigError) as error:
        tiny.config(**{"fam_length": 0, **settings}).validate()
    assert said in str(error.value) and "\n" not in str(error.value)


def whole(config: ModelConfig, params: dict, tokens: np.ndarray, counts: Any = None) -> Any:
    counts = [LENGTH] * ROWS if counts is None else counts
    return tiny.whole(config, params, tokens, count_B=np.asarray(counts, np.int32))


def stream(config: ModelConfig, params: dict, tokens: np.ndarray, counts: Any = None) -> Any:
    return tiny.stream(config, params, tokens, counts_B=counts)


def rounded_once(params: dict) -> list[dict]:
    """Returns the weights three times, with other last bits: ARMT divides by sums of features that may be small, so its
    results differ by more than the usual tolerance if a sum has another order."""
    return [tiny.perturbed(params, seed) for seed in range(3)]


@pytest.mark.parametrize("name", ["deltanet", "rmt", "armt"])
def test_blocks_are_unrolled(name: str) -> None:
    """The scan over the blocks of a text has `unroll_blocks` of them in one iteration, also if each block passes
    through all layers."""
    config = tiny.with_model(CASES[name], unroll_blocks=3)
    read = lambda params: tiny.whole_untraced(config, params, tiny.tokens(config, 1, 6 * 4))[0]
    program = str(jax.make_jaxpr(read)(tiny.parameters(config)))
    assert ("6", "3") in re.findall(r"length=(\d+)[^{}]*?unroll=(\d+)", program)


def slow(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    if config.memory.kind in OF_MODEL:
        return OF_MODEL[config.memory.kind](config, params, tokens)
    return reference.run(config, params, tokens, read=READ.get(config.memory.kind)).hidden_TD


@some_fast
def test_against_the_reference(name: str) -> None:
    """Outputs are the paper's; and the memory matters: without it they are others."""
    config = CASES[name]
    for seed in range(2):
        params, tokens = tiny.parameters(config, seed), tiny.tokens(config, ROWS, LENGTH, seed)
        hidden, _ = whole(config, params, tokens)
        for row, found in zip(tokens[:2], hidden, strict=False):
            tiny.assert_close(found, slow(config, params, row))
    bswa = {path: part for path, part in params["layers"].items() if path != "memory"}
    params = {name: part for name, part in params.items() if name != "memory"} | {"layers": bswa}
    usual = tiny.with_memory(config, kind="fam", fam_update="feedback", segments_hold="inputs")
    without, _ = whole(usual, params, tokens)
    assert np.abs(np.asarray(without)[:, -4:] - np.asarray(hidden)[:, -4:]).max() > 1e-2


@pytest.mark.parametrize(
    ("name", "width"),
    [
        pytest.param(name, width, marks=[pytest.mark.slow] if name in MORE or name in SOME and width > 1 else [])
        for width in (1, 4)
        for name in CASES
    ],
)
def test_streaming_equals_whole(name: str, width: int) -> None:
    """Block by block, token by token, and in random pieces: the same outputs and the same memory."""
    config = CASES[name]
    params, tokens = tiny.parameters(config), tiny.tokens(config, ROWS, LENGTH)
    hidden, state = whole(config, params, tokens)
    for sizes in (None, np.random.default_rng(0)):
        streamed, after = tiny.stream(config, params, tokens, sizes=sizes, width=width)
        tiny.assert_close(streamed, hidden)
        tiny.assert_same_memory(config, after, state)


@every_case
def test_whole_and_streaming_continue_whole(name: str) -> None:
    """A text that is cut at any place, at block edges or within blocks, continues from the memory alone."""
    config = CASES[name]
    params, tokens = tiny.parameters(config, 3), tiny.tokens(config, ROWS, LENGTH, 3)
    hidden, state = whole(config, params, tokens)
    rounded = [whole(config, p, tokens)[1] for p in rounded_once(params)]
    for cuts, order in ((np.array([0, 4, 12, 16]), tiny.whole), (np.array([0, 1, 7, 20]), tiny.stream)):
        _, before = whole(config, params, tokens, cuts)
        rest = np.stack([np.roll(row, -cut) for row, cut in zip(tokens, cuts, strict=True)])
        counts: dict[str, Any] = {"count_B" if order is tiny.whole else "counts_B": (LENGTH - cuts).astype(np.int32)}
        later, after = order(config, params, rest, before, **counts)
        for b, cut in enumerate(cuts):
            tiny.assert_close(later[b, : LENGTH - cut], hidden[b, cut:])
        tiny.assert_same_memory_up_to_rounding(config, after, state, rounded)


@some_fast
@pytest.mark.parametrize("order", [whole, stream])
def test_no_token_sees_the_future(name: str, order: Any) -> None:
    """Changing token t changes no output before t, bit for bit, and changes the output at t."""
    config = CASES[name]
    params, tokens = tiny.parameters(config), np.repeat(tiny.tokens(config, 1, LENGTH), ROWS, axis=0)
    before, _ = order(config, params, tokens)
    for first in range(0, LENGTH - ROWS + 1, ROWS):
        changed = tokens.copy()
        for b in range(ROWS):
            changed[b, first + b] = (changed[b, first + b] + 1) % config.vocab_size
        after, _ = order(config, params, changed)
        for b, t in enumerate(range(first, first + ROWS)):
            np.testing.assert_array_equal(after[b, :t], before[b, :t])
            assert np.abs(after[b, t] - before[b, t]).max() > 1e-3


@every_case
@pytest.mark.parametrize("order", [whole, stream])
def test_padding_changes_nothing(name: str, order: Any) -> None:
    """What stands after a row's last real token changes neither its outputs nor its memory; nor do other rows."""
    config, counts = CASES[name], [0, 3, 8, 17]
    params, tokens = tiny.parameters(config), tiny.tokens(config, ROWS, LENGTH)
    other = tiny.tokens(config, ROWS, LENGTH, seed=1)
    for b, count in enumerate(counts):
        other[b, :count] = tokens[b, :count]
    before, memory_before = order(config, params, tokens, counts)
    after, memory_after = order(config, params, other, counts)
    for b, count in enumerate(counts):
        np.testing.assert_array_equal(after[b, :count], before[b, :count])
    for one, two in zip(tiny.visible(config, memory_after), tiny.visible(config, memory_before), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


@every_case
def test_a_document_starts_with_an_empty_memory(name: str) -> None:
    """Documents that start within a row, after padding, read as they do alone, whatever the row held before; the
    memory afterwards is the last document's, or that of the kept blocks."""
    config = CASES[name]
    params, rng = tiny.parameters(config, 1), np.random.default_rng(1)
    perturbed = rounded_once(params)
    tokens, starts, documents = tiny.tokens(config, ROWS, LENGTH), np.zeros((ROWS, 6), bool), []
    for b, (at, length) in enumerate(((0, 22), (4, 18), (8, 13), (16, 3))):
        document = rng.integers(0, config.vocab_size, length).astype(np.int32)
        tokens[b, at : at + length], starts[b, at // 4] = document, True
        documents.append((at, document))
    counts = np.array([at + len(document) for at, document in documents], np.int32)
    _, held = whole(config, params, tiny.tokens(config, ROWS, LENGTH, 9), [12, 8, 20, 4])
    hidden, state = tiny.whole(config, params, tokens, held, count_B=counts, starts_BN=starts)
    alone = np.zeros_like(tokens)
    for b, (at, document) in enumerate(documents):
        wanted, *rounded = (slow(config, p, document) for p in (params, *perturbed))
        tiny.assert_equal_up_to_rounding(hidden[b, at : at + len(document)], wanted, rounded)
        alone[b, : len(document)] = document
    lengths = [len(document) for _, document in documents]
    _, wanted = whole(config, params, alone, lengths)
    others = [whole(config, p, alone, lengths)[1] for p in perturbed]
    tiny.assert_same_memory_up_to_rounding(config, state, wanted, others)
    kept = np.array([3, 2, 4, 9], np.int32)
    _, state = tiny.whole(config, params, tokens, held, count_B=counts, starts_BN=starts, kept_B=kept)
    _, wanted = tiny.whole(config, params, tokens, held, count_B=np.minimum(counts, kept * 4), starts_BN=starts)
    tiny.assert_same_memory(config, state, wanted)


@pytest.mark.slow
def test_static_queries_stay_the_prompt() -> None:
    """After a FAM was handed over, too: it is attended to, and the learned prompt still asks."""
    config = CASES["static"]
    params, tokens = tiny.parameters(config), tiny.tokens(config, ROWS, LENGTH)
    fam = np.random.default_rng(0).normal(size=(2, 1, 2, 12)).astype(np.float32)
    hidden, state = tiny.whole(config, params, tokens, passed=(fam, 3))
    usual, before = tiny.whole(config, params, tokens)
    np.testing.assert_array_equal(state.layers.beside["prompt"], before.layers.beside["prompt"])
    assert np.abs(np.asarray(hidden)[:, 4:8] - np.asarray(usual)[:, 4:8]).max() > 1e-3
    streamed, after = tiny.stream(config, params, tokens, tiny.initial_state(config, params, ROWS, (fam, 3)))
    tiny.assert_close(streamed, hidden)
    tiny.assert_same_memory(config, after, state)


# --- gradients ------------------------------------------------------------------------------------

TEXT = tiny.tokens(tiny.config(), 2, 12, 4)  # three blocks


def loss_of(hidden: Any, state: Any) -> Any:
    """A number in which every output and every number of the final memory has a say."""
    share = lambda x: (x * np.random.default_rng(x.size).normal(size=x.shape)).sum()
    return share(hidden) + sum(map(share, jax.tree.leaves((state.layers.beside, state.beside))))


def layer_major(config: ModelConfig, params: dict) -> Any:
    return loss_of(*tiny.whole_untraced(config, params, TEXT))


def block_major(config: ModelConfig, params: dict) -> Any:
    model = tiny.build(config, params)
    step = lambda state, block: model.read(block, state)[::-1]
    state, hidden = jax.lax.scan(step, model.initial_state(2), jnp.asarray(TEXT.reshape(2, 3, 4).transpose(1, 0, 2)))
    return loss_of(hidden.transpose(1, 0, 2, 3).reshape(2, 12, -1), state)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=tiny.COMPILE_FAST)
def gradient(order: Any, config: ModelConfig, params: dict) -> tuple[Any, Any]:
    return jax.value_and_grad(lambda p: order(config, p))(params)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_all_orders(name: str) -> None:
    """Layer-major, block by block recomputed, and block-major have one gradient, of the memory afterwards, too."""
    config = CASES[name]
    params = tiny.parameters(config)
    _, grads = gradient(layer_major, config, params)
    rounded = [gradient(layer_major, config, p)[1] for p in rounded_once(params)]
    for order, other in ((layer_major, tiny.with_model(config, remat="full")), (block_major, config)):
        _, others = gradient(order, other, params)
        jax.tree.map(tiny.assert_equal_up_to_rounding, others, grads, jax.tree.map(lambda *leaves: leaves, *rounded))


@every_case
def test_gradient_against_the_reference(name: str) -> None:
    """Every weight has a gradient; along a random direction it is the slope of the float64 reference."""
    config = tiny.with_model(CASES[name], remat="full")
    params = tiny.parameters(config)

    def of_outputs(p: dict) -> Any:
        return (tiny.whole_untraced(config, p, TEXT)[0] * np.cos(np.arange(2 * 12 * 12)).reshape(2, 12, 12)).sum()

    def slow_loss(step: float) -> Any:
        moved = jax.tree.map(lambda p, d: np.asarray(p, np.float64) + step * d, params, direction)
        hidden = np.stack([slow(config, moved, row) for row in TEXT])
        return (hidden * np.cos(np.arange(hidden.size)).reshape(hidden.shape)).sum()

    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    grads = jax.jit(jax.grad(of_outputs), compiler_options=tiny.COMPILE_FAST)(params)
    for path, one in jax.tree.leaves_with_path(grads):
        assert np.abs(one).max() > 0, path
    slope = (slow_loss(1e-5) - slow_loss(-1e-5)) / 2e-5
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    parts = np.concatenate([(np.asarray(g, np.float64) * d).ravel() for g, d in pairs])
    assert abs(parts.sum() - slope) <= tiny.RELATIVE * np.abs(parts).sum()
