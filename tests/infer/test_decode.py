"""Writing on: the compiled loop equals asking the layer-major model for one token after another."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from famjax.config import ConfigError, ModelConfig
from famjax.infer import decode, prefill, session
from famjax.infer.settings import Sampling
from famjax.nn.weights import unstacked
from tests import slow, tiny

# Name: configuration. Blocks of 4, so that 14 new tokens cross several edges.
CONFIGS = {
    "fam": tiny.config(),
    "bswa": tiny.config(fam_length=0, memory_segments=2),
    "fam-no-segments": tiny.config(memory_segments=0, previous_fams=2),
    "grouped-heads": tiny.config(memory_segments=2, num_heads=4, num_kv_heads=2, scan_layers=False, qk_norm=True),
    "sinks": tiny.config(kind="sinks", fam_length=0, sinks=2),
    "infini": tiny.config(kind="infini", fam_length=0, memory_segments=0),
    "rmt": tiny.config(kind="rmt", fam_length=0, memory_segments=0, memory_tokens=2),
    "autocompressor": tiny.config(
        kind="autocompressor", fam_length=0, memory_segments=0, memory_tokens=1, summary_blocks=2
    ),
    "armt": tiny.config(kind="armt", fam_length=0, memory_segments=0, memory_tokens=1, memory_key_dim=4),
    "retrieval": tiny.config(kind="retrieval", fam_length=0, retrieval_blocks=3),
    "static": tiny.config(fam_update="static", segments_hold="outputs"),
    "deltanet": tiny.config(kind="deltanet", fam_length=0, memory_segments=0, head_dim=8),
}
# Slow cases where others show the same.
NEWER = ("autocompressor", "armt", "retrieval", "static")
PROMPTS = [1, 4, 7, 8, 13]
NEW = 14
SAMPLED = Sampling(temperature=1.0, top_k=12, top_p=0.95, repetition_penalty=1.2)


def prompts(config: ModelConfig) -> list[np.ndarray]:
    """Prompts of unequal lengths: within the first block, at block boundaries, after them."""
    tokens = tiny.tokens(config, len(PROMPTS), max(PROMPTS))
    return [row[:n] for row, n in zip(tokens, PROMPTS, strict=True)]


def model_of(config: ModelConfig) -> Any:
    return tiny.build(config, tiny.parameters(config))


def read(model: Any, texts: list, rows: Any = None) -> session.Session:
    """Sessions that have read these texts, each given in chunks."""
    rows = session.start(model, len(texts)) if rows is None else rows
    return prefill.prefill(model, rows, texts, blocks_per_call=2)


def make(model: Any, rows: session.Session, count: Any = NEW, *settings: Any, **kwargs: Any) -> tuple[list, Any]:
    """All tokens of each row, and the final position of the session."""
    made: list[list[int]] = [[] for _ in range(len(rows.recent))]
    for part in decode.generate(model, rows, count, *settings, **kwargs):
        rows = part.session
        for row, new in zip(made, part.tokens, strict=True):
            row += new.tolist()
    return made, rows


def naive(config: ModelConfig, texts: list[np.ndarray], count: int) -> list[list[int]]:
    """argmax of the last token's scores, the whole sequence through the layer-major model for every token."""
    params = tiny.parameters(config)
    model = tiny.build(config, params)
    rows, lengths = np.zeros((len(texts), max(map(len, texts)) + count), np.int32), np.array([len(t) for t in texts])
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    every = np.arange(len(rows))
    for _ in range(count):
        hidden, _ = tiny.whole(config, params, rows, count_B=jnp.asarray(lengths, jnp.int32))
        rows[every, lengths] = np.asarray(model.logits(hidden[every, lengths - 1])).argmax(axis=-1)
        lengths += 1
    return [row[n - count : n].tolist() for row, n in zip(rows, lengths, strict=True)]


@pytest.mark.parametrize("name", slow.but(CONFIGS, "bswa", "fam-no-segments", *NEWER))
def test_greedy_equals_repeated_whole_sequences(name: str) -> None:
    """x_(t+1) = argmax logits(h(x_1..x_t)) token for token, across edges, rows of unequal lengths together."""
    config = CONFIGS[name]
    model = model_of(config)
    made, rows = make(model, read(model, [[text] for text in prompts(config)]))
    desired = naive(config, prompts(config), NEW)
    assert made == desired
    assert len({tuple(row) for row in desired}) > 1
    assert rows.memory.position.tolist() == [n + NEW - 1 for n in PROMPTS]
    assert np.asarray(rows.recent)[:, -NEW:].tolist() == desired


def test_however_the_prompt_and_the_calls_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of any length, sessions continued at any token, calls of any length: the same tokens."""
    config = CONFIGS["fam"]
    model = model_of(config)
    text = tiny.tokens(config, 1, 23)[0]
    for sampling in (decode.GREEDY, SAMPLED):
        desired, _ = make(model, read(model, [[text]]), NEW, sampling)
        for cut in (1, 2, 3, 4, 5, 8, 19, 22):
            rows = read(model, [[text[:cut]]])
            rows = read(model, [iter([text[cut : cut + 1], text[:0], text[cut + 1 :]])], rows)
            first, rows = make(model, rows, cut % NEW, sampling)
            then, _ = make(model, rows, NEW - cut % NEW, sampling)
            assert [first[0] + then[0]] == desired


def test_rows_do_not_know_each_other() -> None:
    """A row's tokens do not depend on the other rows, and rows that get no tokens are unchanged bit by bit."""
    config = CONFIGS["fam"]
    model = model_of(config)
    texts = [[text] for text in prompts(config)]
    together, _ = make(model, read(model, texts), NEW, SAMPLED, seed=3)
    again, _ = make(model, read(model, texts), NEW, SAMPLED, seed=3)
    other, _ = make(model, read(model, texts), NEW, SAMPLED, seed=4)
    assert together == again != other
    for i in (0, 3):
        alone, _ = make(model, read(model, texts[i : i + 1]), NEW, SAMPLED, seed=3, sample_B=[i])
        assert alone == together[i : i + 1]
    rows = read(model, texts)
    one, _ = make(model, session.take_row(rows, 3), NEW, SAMPLED, seed=3, sample_B=[3])
    assert one == together[3:4]
    before = jax.tree.map(np.array, rows)
    some, rows = make(model, rows, np.array([0, 3, 0, 7, 14]), SAMPLED, seed=3)
    assert some == [row[:n] for row, n in zip(together, (0, 3, 0, 7, 14), strict=True)]
    for row in (0, 2):
        for old, new in zip(jax.tree.leaves(before.memory.layers), jax.tree.leaves(rows.memory.layers), strict=True):
            np.testing.assert_array_equal(old[row], np.asarray(new)[row])
        assert before.recent[row].tolist() == np.asarray(rows.recent)[row].tolist()


def test_stops() -> None:
    """A row ends with its first stop sequence, also one that spans two calls, and only if the model made it."""
    config = CONFIGS["fam"]
    model = model_of(config)
    text = prompts(config)[2]
    (free,), _ = make(model, read(model, [[text]]), NEW, SAMPLED)
    for stops in ([free[4:7]], [free[8:9], free[9:11]], [free[6:10], [16, 16, 16, 16, 16]]):
        first = min(
            n for n in range(1, NEW + 1) for stop in stops if free[max(0, n - len(stop)) : n] == stop
        )  # fmt: skip
        made, stopped = [], []
        rows = read(model, [[text]])
        for part in decode.generate(model, rows, NEW, SAMPLED, stops=stops):
            made += part.tokens[0].tolist()
            stopped.append(bool(part.stopped[0]))
        assert made == free[:first] and stopped[-1] and not any(stopped[:-1])
        assert int(part.session.memory.position[0]) == len(text) + first - 1
    # The prompt's end and the first token together are no stop.
    made, _ = make(model, read(model, [[text]]), NEW, SAMPLED, stops=[[int(text[-1]), free[0]]])
    assert made == [free] or made[0][-2:] == [int(text[-1]), free[0]]
    assert len(made[0]) > 1


def test_no_compilation_for_each_length() -> None:
    """Prompts and answers of all lengths, at all positions, are served by the programs compiled at first."""
    config = CONFIGS["fam"]
    model = model_of(config)
    make(model, read(model, [[prompts(config)[1]]]), 2)
    compiled = prefill._read_window._cache_size(), decode._decode._cache_size()
    for n in (2, 5, 33):
        make(model, read(model, [[tiny.tokens(config, 1, n)[0]]]), n)
    assert (prefill._read_window._cache_size(), decode._decode._cache_size()) == compiled


@pytest.mark.parametrize("beside", [False, True])
def test_one_program_whether_it_is_compiled_ahead_or_not(beside: bool, tmp_path: Path) -> None:
    """Weights that are committed to a device, as a loaded model's are: every call of `generate`, the first one too and
    that after a session file, runs the same program, and that is the one of `compile_beside`."""
    config = tiny.config(num_layers=1, block_size=7 - beside)  # a program that no other test has
    params = jax.device_put(tiny.parameters(config), jax.devices()[0])
    model = tiny.build(config, params)
    before = decode._decode._cache_size()
    if beside:
        decode.compile_beside(model, 1, Sampling(), [[1, 2]])()
        assert decode._decode._cache_size() == before + 1
    saved = tmp_path / "a.session"
    session.save(saved, read(model, [prompts(config)[:1]]), model)
    restored = session.restore(session.read_file(saved), model)
    for rows in (read(model, [prompts(config)[:1]]), read(model, [prompts(config)[3:4]]), restored):
        make(model, rows, 9, stops=[[1, 2]], tokens_per_call=2)
    assert decode._decode._cache_size() == before + 1


@pytest.mark.parametrize("batch", [1, 3])
def test_a_token_copies_no_ring(batch: int) -> None:
    """The compiled loop over tokens has less room of its own than one layer's keys take: the ring is written and
    read where it lies. (For each row, FAM is made from a copy of the block, an eighth of the ring.)"""
    config = tiny.config(block_size=256, memory_segments=7)
    model = unstacked(model_of(config))
    rows = session.start(model, batch)
    numbers = np.ones(batch, np.int32)
    program = decode._decode.lower(
        *nnx.split(model), rows, numbers, numbers, np.full((0, 1), -1, np.int32), np.uint32(0), numbers,
        sampling=decode.GREEDY, room=decode.TOKENS_PER_CALL,
    ).compile()  # fmt: skip
    assert program.memory_analysis().temp_size_in_bytes < rows.memory.layers[0].k.nbytes


def test_layers_apart_are_the_same_model() -> None:
    """Weights by layer or stacked make the same tokens, and a layer with a short window has a short ring."""
    config = tiny.config(memory_segments=3, layer_pattern=("local", "global"), local_window=3)
    text = tiny.tokens(config, 1, 33)[0]
    stacked, by_layer = (
        make(model, read(model, [[text]])) for model in (model_of(config), unstacked(model_of(config)))
    )
    assert stacked[0] == by_layer[0] == naive(config, [text], NEW)
    assert [layer.k.shape[1] for layer in by_layer[1].memory.layers] == [2, 4]


@pytest.mark.usefixtures("collected")
def test_memory_does_not_grow_with_the_text() -> None:
    """Live bytes on the device are the same after window 4 and after window 60; chunks are taken as needed."""
    config = CONFIGS["fam"]
    model = model_of(config)
    live: list[int] = []
    given: list[int] = []
    ahead: list[int] = []

    def text() -> Any:
        for i in range(480):
            given.append(i)
            yield tiny.tokens(config, 1, 1, seed=i)[0]

    def note(_: int) -> None:
        live.append(sum(x.nbytes for x in jax.live_arrays()))
        ahead.append(len(given) - 8 * len(live))

    rows = prefill.prefill(model, session.start(model), [text()], note, blocks_per_call=2)
    assert len(live) == 60 and len(set(live[3:-1])) == 1  # the last window has none behind it
    assert max(ahead) <= 2 * 8
    made, _ = make(model, rows, 150)
    assert len(made[0]) == 150


def test_damaged_weights_are_told() -> None:
    """A weight that is no number makes no text."""
    params = tiny.parameters(CONFIGS["fam"])
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(np.nan)
    model = tiny.build(CONFIGS["fam"], params)
    with pytest.raises(ConfigError, match="logits are NaN"):
        make(model, read(model, [[[1, 2]]]))


def test_what_cannot_be_continued() -> None:
    config = CONFIGS["fam"]
    model = model_of(config)
    with pytest.raises(ValueError, match="read a prompt first"):
        next(decode.generate(model, session.start(model), 1))
    with pytest.raises(ValueError, match="1 to 128 tokens"):
        next(decode.generate(model, read(model, [[[1]]]), 1, stops=[[]]))
    with pytest.raises(ValueError, match="outside the vocabulary 0..16"):
        read(model, [[[17]]])
