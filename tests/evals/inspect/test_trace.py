"""The recorded attention and FAM equal those of the paper's softmax in NumPy, query by query."""

import dataclasses

import numpy as np
import pytest

from famjax.attention.observe import KINDS
from famjax.config import ModelConfig
from famjax.evals.inspect.trace import trace
from tests import reference, tiny
from tests.infer.test_scoring import naive_scores
from tests.tiny import assert_close

CONFIG = tiny.config(num_kv_heads=1)  # blocks of 4, one segment, FAM of 2
S, F = CONFIG.memory.block_size, CONFIG.memory.fam_length


class WatchedLayer(reference.Layer):
    """The reference's layer, recording each query's attention [heads, keys]: FAM's keys first, then those of the
    segments and the block (for FAM's queries, those of the block)."""

    def heads(self, query, pairs):
        rows = []
        for n in range(self.config.num_heads):
            scores = np.array([query[n] @ key[0] for key, _ in pairs]) / np.sqrt(self.config.head_dim)
            weights = np.exp(scores - scores.max())
            rows.append(weights / weights.sum())
        self.__dict__.setdefault("seen", []).append(np.array(rows))
        return super().heads(query, pairs)


def watched(config: ModelConfig, params: dict, tokens: np.ndarray) -> list[dict]:
    """Returns for each layer the attention of each token and, by block, of FAM's queries, as [heads, fam | segment |
    own keys], and FAM after each block."""
    params = reference.as_float64(params)
    x = [params["embedding"][token] for token in tokens]
    initial = reference.learned_fam(config, params, 0)
    found = []
    for index in range(config.num_layers):
        fams = [initial[index]]
        layer = WatchedLayer(config, reference.take(params["layers"], index))
        for end in range(S, len(tokens) + 1, S):  # FAM after each block, by reading ever more of the document
            fams.append(
                reference.read_document(reference.Layer(config, layer.weights), x[:end], fams[:1], False, 0)[1][0]
            )
        x, _ = reference.read_document(layer, x, [initial[index]], False, 0)
        seen, of_tokens, of_fam = list(layer.seen), [], []
        for begin in range(0, len(tokens), S):
            size = min(S, len(tokens) - begin)
            of_tokens, seen = of_tokens + seen[:size], seen[size:]
            if size == S:
                of_fam, seen = [*of_fam, np.stack(seen[:F], axis=1)], seen[F:]
        found.append({"tokens": of_tokens, "fam": of_fam, "fams": fams})
    return found


def shares(rows_HC: np.ndarray, t: int) -> np.ndarray:
    """Returns [heads, 3] of token t: segments, FAM, own block."""
    own = t % S + 1
    return np.stack([rows_HC[:, F : rows_HC.shape[1] - own].sum(1), rows_HC[:, :F].sum(1), rows_HC[:, -own:].sum(1)], 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_shares_and_updates_are_the_papers(seed: int) -> None:
    """Shares by layer and head of tokens, of the answer's tokens and of FAM's queries; the heat map of a block; RMS,
    relative change and cosine of every update; log probabilities. All shares sum to 1."""
    params = tiny.parameters(CONFIG, seed)
    tokens = tiny.tokens(CONFIG, 1, 18, seed)[0]  # four blocks and a half
    answer = np.array([14, 16, 17])
    found = trace(tiny.build(CONFIG, params), tokens, answer, map_block=2)
    layers = watched(CONFIG, params, tokens)
    each = np.array([[shares(rows, t) for t, rows in enumerate(layer["tokens"])] for layer in layers])  # [L, T, H, 3]
    assert_close(found.attention, each[:, S:].mean(1))
    assert_close(found.answer_attention, each[:, answer - 1].mean(1))
    assert_close(found.to_fam[2], each[:, 8:12, :, 1].mean((1, 2)))
    to_fam = np.array([[rows[:, :, :F].sum(2).mean(1) for rows in layer["fam"][1:]] for layer in layers]).mean(1)
    assert_close(found.fam_attention[..., KINDS.index("fam")], to_fam)
    for one in (found.attention, found.answer_attention, found.fam_attention):
        assert_close(one.sum(-1), np.ones(one.shape[:-1]))

    own = [[np.pad(rows[:, -(t + 1) :], ((0, 0), (0, S - 1 - t))) for t, rows in enumerate(layer["tokens"][8:12])]
           for layer in layers]  # fmt: skip
    to_block = np.moveaxis(np.array(own), 1, 2)  # [L, H, S, S]
    fam_part = np.array([np.stack([rows[:, :F] for rows in layer["tokens"][8:12]], 1) for layer in layers])
    assert found.fam_columns == F and found.map_block == 2
    assert_close(found.token_map, np.concatenate([fam_part, to_block], -1))
    assert_close(found.fam_map, np.array([layer["fam"][2] for layer in layers]))

    fams = np.array([layer["fams"] for layer in layers])  # [L, 1 + blocks, F, D]
    new, old = fams[:, 1:], fams[:, :-1]
    assert_close(found.rms[:4], np.sqrt((new**2).mean((2, 3))).T)
    norm = lambda x, axis: np.sqrt((x**2).sum(axis))
    assert_close(found.change[1:4], (norm(new - old, (2, 3)) / norm(old, (2, 3))).T[1:])
    assert_close(found.cosine[1:4], ((new * old).sum(3) / norm(new, 3) / norm(old, 3)).mean(2).T[1:])
    assert np.isnan(found.rms[4]).all() and np.isnan(found.change[0]).all()
    assert_close(found.logprobs, naive_scores(CONFIG, params, tokens)[0])


def test_a_gate_has_its_part_in_the_shares() -> None:
    """FAM's share of a token's attention is 0 with a closed gate and proportional to the gate; all shares sum to 1."""
    config = dataclasses.replace(CONFIG, memory=dataclasses.replace(CONFIG.memory, fam_gate=True))
    params, tokens = tiny.parameters(config), tiny.tokens(config, 1, 18)[0]
    found = []
    for gate in (0.0, 0.5, 1.0):
        fam = params["fam"] | {"gate": np.full((config.num_layers, config.num_heads), gate, np.float32)}
        seen = trace(tiny.build(config, params | {"fam": fam}), tokens, np.array([14]))
        np.testing.assert_allclose(seen.attention.sum(-1), 1, rtol=1e-5)
        found.append(seen.attention[0, :, 1])  # of the first layer, whose input is the same
    assert not found[0].any() and found[2].max() > 0.01
    assert_close(found[1], found[2] / 2)


@pytest.mark.parametrize("blocks", [2, 9])
@pytest.mark.parametrize(
    "settings",
    [{"memory_segments": 0}, {"memory_segments": 2}, {"memory_segments": 2, "token_window": 6},
     {"memory_segments": 1, "layer_pattern": ("local", "global"), "local_window": 3}],
    ids=["block", "segments", "window", "local"],
)  # fmt: skip
def test_uniform_attention_is_one_over_the_keys_in_reach(settings: dict, blocks: int) -> None:
    """F / (keys in reach), mean over all tokens after the first update, counted one by one; a model whose queries are
    all zero attends like that, and what is stated does not depend on the queries."""
    config = tiny.config(num_kv_heads=1, **settings)
    params, T = tiny.parameters(config), blocks * S - 1
    tokens, M = tiny.tokens(config, 1, T)[0], config.memory.memory_segments
    windows = [config.layer(i).memory.token_window or T for i in range(config.num_layers)]
    near = lambda q, k, window: k <= q and q // S - k // S <= M and q - k < window
    expected = [[F / (F + sum(near(q, k, window) for k in range(T))) for q in range(S, T)] for window in windows]
    of_model = trace(tiny.build(config, params), tokens)
    attention = params["layers"]["attention"]
    flat = {**attention, "query": np.zeros_like(attention["query"])}
    of_zeros = trace(tiny.build(config, params | {"layers": params["layers"] | {"attention": flat}}), tokens)
    for found in (of_model.uniform, of_zeros.uniform, of_zeros.attention[..., KINDS.index("fam")]):
        assert_close(found, np.broadcast_to(np.mean(expected, axis=1)[:, None], found.shape))
    assert abs(of_model.attention[..., KINDS.index("fam")] - of_model.uniform).max() > 0.01


def test_a_layer_without_fam_has_none_of_its_figures() -> None:
    """NaN for FAM there; the first layer's figures are those of the same model with FAM in both, since nothing above
    reaches it. Its attention to the block and the segments stays, and is all there is."""
    some = dataclasses.replace(CONFIG, memory=dataclasses.replace(CONFIG.memory, fam_layers="+-"))
    params, tokens, answer = tiny.parameters(CONFIG), tiny.tokens(CONFIG, 1, 18)[0], np.array([14])
    both, one = (trace(tiny.build(config, params), tokens, answer) for config in (CONFIG, some))
    for name in ("attention", "answer_attention", "fam_attention", "uniform", "token_map", "fam_map"):
        assert_close(getattr(one, name)[0], getattr(both, name)[0])
    for name in ("to_fam", "rms", "change", "cosine"):
        assert_close(getattr(one, name)[1:4, 0], getattr(both, name)[1:4, 0])
        assert np.isnan(getattr(one, name)[:, 1]).all()
    for of_fam in (
        one.attention[1, :, 1],
        one.fam_attention[1],
        one.uniform[1],
        one.token_map[1, ..., :F],
        one.fam_map[1],
    ):
        assert np.isnan(of_fam).all()
    assert_close(one.attention[1, :, [0, 2]].sum(0), np.ones(CONFIG.num_heads))


GATED = tiny.config(num_kv_heads=1, fam_update="gated")


@pytest.mark.parametrize("seed", [0, 1])
def test_gates_are_those_of_the_equation(seed: int) -> None:
    """F' = (1 - g) F + g U, in float64: the recorded mean, minimum and
    maximum of g over FAM, at each update, and none at a block that is not full. The first update's F is zero."""
    params = tiny.parameters(GATED, seed)
    tokens = tiny.tokens(GATED, 1, 18, seed)[0]  # four blocks and a half
    made: list[float] = []

    class Watched(reference.Layer):
        def write_gate(self, old, update):
            made.append(super().write_gate(old, update))
            return made[-1]

    def read(layer, *rest):
        return reference.read_document(Watched(layer.config, layer.weights, layer.index), *rest)

    reference.run(GATED, params, tokens, read=read)
    by_update = np.array(made).reshape(GATED.num_layers, 4, F).swapaxes(0, 1)
    assert np.ptp(by_update) > 0.2
    found = trace(tiny.build(GATED, params), tokens)
    expected = np.stack([by_update.mean(2), by_update.min(2), by_update.max(2)], 2)
    assert_close(found.gates[:4], expected)
    assert np.isnan(found.gates[4]).all()


def test_a_closed_gate_changes_nothing() -> None:
    """A gate that is shut is recorded as exactly 0, and FAM's change as exactly 0; one that is open as exactly 1. The
    first update, too, finds a FAM that is not zero here."""
    config = tiny.with_memory(GATED, zero_first_residual=False)
    params, tokens = tiny.parameters(config), tiny.tokens(config, 1, 18)[0]
    learned = {name: np.zeros_like(x) for name, x in params["layers"]["memory"].items()}
    learned["write_bias"] = np.array([[-20.0], [20.0]], np.float32)  # of the first layer, and of the second
    weights = params | {"layers": params["layers"] | {"memory": learned}}
    found = trace(tiny.build(config, weights), tokens)
    assert (found.gates[:4, 0] == 0).all() and (found.gates[:4, 1] == 1).all()
    assert (found.change[1:4, 0] == 0).all() and (found.change[1:4, 1] > 0.01).all()


def test_only_layers_with_gated_updates_have_gates() -> None:
    """NaN in the paper's model, and in layers without FAM of one whose others are gated."""
    tokens = tiny.tokens(CONFIG, 1, 18)[0]
    assert np.isnan(trace(tiny.build(CONFIG, tiny.parameters(CONFIG)), tokens).gates).all()
    some = tiny.config(num_kv_heads=1, fam_update="gated", fam_layers="-+")
    gates = trace(tiny.build(some, tiny.parameters(some)), tokens).gates
    assert np.isnan(gates[:, 0]).all() and np.isfinite(gates[:4, 1]).all()
