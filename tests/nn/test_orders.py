"""Layer-major = block-major = streaming, however a text is split: outputs, memory and gradients."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.attention.memory import select_state_rows
from famjax.config import ModelConfig
from famjax.nn.model import room
from tests import reference, slow, tiny

LENGTH = 22
CASES = {
    "fam-segments1": tiny.config(),
    "fam-segments0-two-fams": tiny.config(previous_fams=2, memory_segments=0),
    "fam-segments3-grouped": tiny.config(memory_segments=3, num_heads=4),
    "bswa-segments3": tiny.config(fam_length=0, memory_segments=3, num_heads=4),
    "gate-grouped": tiny.config(fam_gate=True, num_heads=4),
    "write-gate": tiny.config(fam_update="gated", memory_segments=0),
    "window5-segments2": tiny.config(token_window=5, memory_segments=2),
}
# Several segments are in the BSWA case, grouped heads in that of the gate.
every_case = pytest.mark.parametrize("name", slow.but(CASES, "fam-segments3-grouped"))


def whole(config: ModelConfig, params: dict, tokens: np.ndarray, counts: Any) -> Any:
    """Runs layer-major over the first `counts` tokens of each row."""
    return tiny.whole(config, params, tokens, count_B=np.asarray(counts, np.int32))


@every_case
@pytest.mark.parametrize("width", [1, 4])
def test_streaming_equals_whole(name: str, width: int) -> None:
    """Block by block, token by token, and in random pieces: the same outputs and the same memory."""
    config = CASES[name]
    for seed in range(2):
        params, tokens = tiny.parameters(config, seed), tiny.tokens(config, 4, LENGTH, seed)
        hidden, state = whole(config, params, tokens, [LENGTH] * 4)
        for sizes in (None, np.random.default_rng(seed)):
            streamed, streamed_state = tiny.stream(config, params, tokens, sizes=sizes, width=width)
            tiny.assert_close(streamed, hidden)
            tiny.assert_same_memory(config, streamed_state, state)


@every_case
def test_whole_cut_at_block_edges(name: str) -> None:
    """Layer-major in two calls, with each row split at a block boundary of its own, equals one call.

    The rows of the second call are at different positions; one row is empty in the first call, and one in the second.
    """
    config = CASES[name]
    for seed in range(2):
        params, tokens = tiny.parameters(config, seed), tiny.tokens(config, 4, LENGTH, seed)
        lengths = np.array([LENGTH, LENGTH, 19, 16])
        hidden, state = whole(config, params, tokens, lengths)
        cuts = np.array([0, 4, 12, 16])
        _, before = whole(config, params, tokens, cuts)
        rest = np.stack([np.roll(row, -cut) for row, cut in zip(tokens, cuts, strict=True)])
        later, after = tiny.whole(config, params, rest, before, count_B=(lengths - cuts).astype(np.int32))
        for b in range(4):
            tiny.assert_close(later[b, : lengths[b] - cuts[b]], hidden[b, cuts[b] : lengths[b]])
        tiny.assert_same_memory(config, after, state)


@every_case
def test_streaming_continues_whole(name: str) -> None:
    """Prefill layer-major and continue block-major, from any offset within a block."""
    config = CASES[name]
    params, tokens = tiny.parameters(config, 3), tiny.tokens(config, 4, LENGTH, 3)
    hidden, state = whole(config, params, tokens, [LENGTH] * 4)
    cuts = np.array([0, 1, 7, 20])
    _, before = whole(config, params, tokens, cuts)
    rest = np.stack([np.roll(row, -cut) for row, cut in zip(tokens, cuts, strict=True)])
    later, after = tiny.stream(config, params, rest, before, counts_B=LENGTH - cuts)
    for b in range(4):
        tiny.assert_close(later[b, : LENGTH - cuts[b]], hidden[b, cuts[b] :])
    tiny.assert_same_memory(config, after, state)


@every_case
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_behind_the_kept_blocks_is_read_but_not_remembered(name: str, seed: int) -> None:
    """Outputs are those of the whole rows; the memory is that after their kept blocks: none, some, all full ones, and
    more than a row has. Some rows continue a memory, and one starts another document midway."""
    config = CASES[name]
    params, tokens = tiny.parameters(config, seed), tiny.tokens(config, 4, LENGTH, seed)
    _, before = whole(config, params, tiny.tokens(config, 4, 12, seed + 7), [12, 12, 4, 8])
    counts, starts = np.array([LENGTH, LENGTH, 19, 16], np.int32), np.zeros((4, 6), bool)
    starts[1, 2] = True
    given = {"count_B": counts, "starts_BN": starts}
    hidden, _ = tiny.whole(config, params, tokens, before, **given)
    kept = np.array([0, 3, 1, 9], np.int32)
    same, after = tiny.whole(config, params, tokens, before, kept_B=kept, **given)
    _, wanted = tiny.whole(config, params, tokens, before, **(given | {"count_B": np.minimum(counts, kept * 4)}))
    np.testing.assert_array_equal(same, hidden)
    tiny.assert_same_memory(config, after, wanted)
    assert after.position.tolist() == [12, 4, 8, 24]


def test_rows_with_nothing_to_read_stay() -> None:
    """With count 0, streaming leaves a row's memory unchanged."""
    config = tiny.config()
    params, tokens = tiny.parameters(config), tiny.tokens(config, 4, LENGTH)
    _, before = whole(config, params, tokens, [0, 3, 8, 21])
    _, after = tiny.read(config, params, tokens[:, :4], before, count_B=np.array([0, 0, 0, 1], np.int32))
    for old, new in zip(tiny.visible(config, before)[:3], tiny.visible(config, after)[:3], strict=True):
        for name in old:
            np.testing.assert_array_equal(new[name], old[name])
    assert after.position.tolist() == [0, 3, 8, 22]


def test_more_than_a_block_is_refused() -> None:
    """Tokens beyond a block do not fit into the ring: an error, not silent loss."""
    config = tiny.config()
    state = tiny.initial_state(config, tiny.parameters(config), 4)
    with pytest.raises(ValueError, match="at most a block of 4 tokens, not 5"):
        tiny.read(config, tiny.parameters(config), tiny.tokens(config, 4, 5), state)


def test_room() -> None:
    """Free tokens of each row's block of 4, after 0, 3, 8 and 21 tokens."""
    config = tiny.config()
    _, state = whole(config, tiny.parameters(config), tiny.tokens(config, 4, LENGTH), [0, 3, 8, 21])
    assert room(state, config).tolist() == [4, 1, 4, 3]


def test_select_rows_resets_single_rows() -> None:
    """A row taken from an initial memory starts a new document; the other rows continue theirs."""
    config = tiny.config()
    params, tokens = tiny.parameters(config), tiny.tokens(config, 4, LENGTH)
    _, state = whole(config, params, tokens, [9, 9, 9, 9])
    mixed = select_state_rows(np.array([True, False, False, True]), tiny.initial_state(config, params, 4), state)
    assert mixed.position.tolist() == [0, 9, 9, 0]
    text = tiny.tokens(config, 4, 6, seed=5)
    out, _ = tiny.stream(config, params, text, mixed)
    fresh, _ = tiny.stream(config, params, text)
    continued, _ = tiny.stream(config, params, text, state)
    for b, same in enumerate((fresh, continued, continued, fresh)):
        np.testing.assert_array_equal(out[b], same[b])


# --- documents within a row ---------------------------------------------------------------------

# For each row the lengths of its documents. Each starts at a block boundary, with padding before it.
DOCUMENTS = ([22], [4, 18], [7, 9, 2], [1, 5, 4])


def pack(config: ModelConfig, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list]:
    """Returns tokens [B, T], starts [B, N], counts [B] and, for each row, the (place, tokens) of its documents."""
    S = config.memory.block_size
    rng = np.random.default_rng(seed)
    tokens = tiny.tokens(config, len(DOCUMENTS), LENGTH, seed)
    starts = np.zeros((len(DOCUMENTS), -(-LENGTH // S)), bool)
    counts, rows = [], []
    for b, lengths in enumerate(DOCUMENTS):
        at, row = 0, []
        for length in lengths:
            document = rng.integers(0, config.vocab_size, length).astype(np.int32)
            tokens[b, at : at + length] = document
            starts[b, at // S] = True
            row.append((at, document))
            counts_b = at + length
            at = -(-counts_b // S) * S
        counts.append(counts_b)
        rows.append(row)
    return tokens, starts, np.array(counts, np.int32), rows


@pytest.mark.parametrize("origin", ["prompt", "passed"])
@pytest.mark.parametrize("name", ["fam-segments1", "fam-segments0-two-fams", "bswa-segments3"])
def test_documents_within_a_row(name: str, origin: str) -> None:
    """A document that starts at a block boundary has the outputs that it has on its own, from the prompt or a passed-in
    FAM.

    The row's earlier memory is not visible to it, and the memory afterwards is the last document's.
    """
    config = CASES[name]
    params = tiny.parameters(config, 1)
    tokens, starts, counts, rows = pack(config, 1)
    fam, kwargs = None, {}
    if origin == "passed" and config.memory.fam_length:
        shape = (config.num_layers, config.memory.previous_fams, config.memory.fam_length, config.d_model)
        fam = np.random.default_rng(2).normal(size=shape).astype(np.float32)
        kwargs["passed"] = (fam, np.int32(5))
    _, other = whole(config, params, tiny.tokens(config, 4, LENGTH, 9), [12] * 4)
    hidden, state = tiny.whole(config, params, tokens, other, count_B=counts, starts_BN=starts, **kwargs)
    for b, documents in enumerate(rows):
        for at, document in documents:
            alone = reference.run(config, params, document, fam)
            tiny.assert_close(hidden[b, at : at + len(document)], alone.hidden_TD)
        row = tiny.visible(config, state)[b]
        assert row["position"] == len(documents[-1][1])
        if config.memory.fam_length:
            tiny.assert_close(row["fam"], alone.fam_LPFD)
            assert row["fam_updates"] == len(documents[-1][1]) // 4 + kwargs.get("passed", (None, 0))[1]
    # The memory continues as that document's.
    more = tiny.tokens(config, 4, 6, seed=8)
    out, _ = tiny.stream(config, params, more, state)
    for b, documents in enumerate(rows):
        document = np.concatenate([documents[-1][1], more[b]])
        tiny.assert_close(out[b], reference.run(config, params, document, fam).hidden_TD[-6:])


def test_a_start_behind_the_last_token_is_padding() -> None:
    """A start marked on a block without real tokens changes nothing: the memory stays the last document's."""
    config = CASES["fam-segments1"]
    params, tokens = tiny.parameters(config), tiny.tokens(config, 4, LENGTH)
    counts = np.array([0, 3, 4, 9], np.int32)
    starts = np.zeros((4, 6), bool)
    starts[:, 0] = True
    starts[3, 1] = True
    _, plain = tiny.whole(config, params, tokens, None, count_B=counts, starts_BN=starts)
    starts[:, 3:] = True
    starts[:3, 1:] = True
    _, marked = tiny.whole(config, params, tokens, None, count_B=counts, starts_BN=starts)
    tiny.assert_same_memory(config, marked, plain)


# --- gradients ------------------------------------------------------------------------------------

GRADIENTS = {
    "fam-segments1": tiny.config(num_heads=4),
    "fam-segments0-two-fams-zero": tiny.config(previous_fams=2, memory_segments=0, fam_position="zero"),
    "bswa-segments2": tiny.config(fam_length=0, memory_segments=2),
}
TEXT = tiny.tokens(tiny.config(), 2, 12, 4)  # three blocks


def loss_of(hidden: Any, fam: Any) -> Any:
    """Returns a scalar that depends on every output and every activation of the final FAM."""
    share = lambda x: (x * np.random.default_rng(x.size).normal(size=x.shape)).sum()
    return share(hidden) + share(fam)


def layer_major(config: ModelConfig, params: dict) -> Any:
    hidden, state = tiny.whole_untraced(config, params, TEXT)
    return loss_of(hidden, state.layers.fam)


def layer_major_cut(config: ModelConfig, params: dict) -> Any:
    """Runs the second call from the memory of the first, with gradients through it."""
    first, state = tiny.whole_untraced(config, params, TEXT[:, :8])
    second, state = tiny.whole_untraced(config, params, TEXT[:, 8:], state)
    return loss_of(jnp.concatenate([first, second], axis=1), state.layers.fam)


def block_major(config: ModelConfig, params: dict) -> Any:
    model = tiny.build(config, params)
    blocks = TEXT.reshape(2, 3, 4).transpose(1, 0, 2)

    def step(state: Any, block: Any) -> Any:
        hidden, state = model.read(block, state)
        return state, hidden

    state, hidden = jax.lax.scan(step, model.initial_state(2), blocks)
    return loss_of(hidden.transpose(1, 0, 2, 3).reshape(2, 12, -1), state.layers.fam)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=tiny.COMPILE_FAST)
def gradient(order: Any, config: ModelConfig, params: dict) -> tuple[Any, Any]:
    """Returns the loss and its gradient with respect to every parameter."""
    return jax.value_and_grad(lambda p: order(config, p))(params)


def assert_same_gradient(actual: dict, desired: dict) -> None:
    """Every parameter's gradient is the same, relative to its largest entry, and nonzero."""
    pairs = zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(desired), strict=True)
    for (path, one), other in pairs:
        assert np.abs(other).max() > 0, path
        tiny.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "orders"),
    [
        ("fam-segments1", (layer_major_cut, block_major)),
        ("fam-segments0-two-fams-zero", (block_major,)),
        pytest.param("bswa-segments2", (layer_major_cut, block_major), marks=pytest.mark.slow),
    ],
)
def test_gradients_of_both_orders(name: str, orders: tuple) -> None:
    """Layer-major, layer-major in two calls, and block-major have the same gradient, including the prompt's."""
    config = GRADIENTS[name]
    for seed in range(2):
        params = tiny.parameters(config, seed)
        loss, grads = gradient(layer_major, config, params)
        assert ("fam" in grads) == (config.memory.fam_length > 0)
        for order in orders:
            other_loss, other_grads = gradient(order, config, params)
            tiny.assert_close(other_loss, loss)
            assert_same_gradient(other_grads, grads)


@pytest.mark.parametrize(
    "changes",
    [
        {"scan_layers": False, "remat": "dots"},
        {"remat": "minimal"},
        {"remat": "full", "unroll_blocks": 2},
    ],
)
def test_gradients_do_not_depend_on_how_they_are_computed(changes: dict) -> None:
    """Unrolled layers, remat and recomputed block steps change memory and time, not the gradient."""
    config = GRADIENTS["fam-segments1"]
    params = tiny.parameters(config)
    _, grads = gradient(layer_major, config, params)
    _, others = gradient(layer_major, dataclasses.replace(config, **changes), params)
    assert_same_gradient(others, grads)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_against_the_reference(name: str) -> None:
    """Along random directions, the gradient equals the central difference of the float64 reference."""
    config = GRADIENTS[name]
    params = tiny.parameters(config)
    _, grads = gradient(layer_major, config, params)

    def slow_loss(step: float, direction: dict) -> Any:
        moved = jax.tree.map(lambda p, d: np.asarray(p, np.float64) + step * d, params, direction)
        rows = [reference.run(config, moved, row) for row in TEXT]
        hidden = np.stack([row.hidden_TD for row in rows])
        fam = np.stack([row.fam_LPFD for row in rows], axis=1)
        return loss_of(hidden, fam)

    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = jax.tree.map(lambda p, rng=rng: rng.normal(size=p.shape), params)
        slope = (slow_loss(1e-5, direction) - slow_loss(-1e-5, direction)) / 2e-5
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
        parts = np.concatenate([(np.asarray(g, np.float64) * d).ravel() for g, d in pairs])
        assert abs(parts.sum() - slope) <= tiny.RELATIVE * np.abs(parts).sum()
