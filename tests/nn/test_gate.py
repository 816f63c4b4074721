"""The gate before FAM: closed, it disables FAM; open, it gives the paper's model; its gradient is nonzero at the first
step. The gate of FAM's updates: closed, FAM stays as it is, bit for bit; open, the update replaces it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.config import ModelConfig
from tests import tiny

GATED = tiny.config(fam_gate=True, num_heads=4)


def without(config: ModelConfig, **changes: object) -> ModelConfig:
    return dataclasses.replace(config, memory=dataclasses.replace(config.memory, **changes))


def at(params: dict, gate: float) -> dict:
    return params | {"fam": params["fam"] | {"gate": jnp.full_like(params["fam"]["gate"], gate)}}


def plain(params: dict) -> dict:
    return params | {"fam": {"prompt": params["fam"]["prompt"]}}


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_shut_and_open(gate: float) -> None:
    """A gate of 0 gives the hidden states of the model without FAM, a gate of 1 those of the paper's model, even with a
    large prompt (scaled by 1000 here)."""
    config = GATED
    params = at(tiny.parameters(config), gate)
    params["fam"]["prompt"] = 1000 * params["fam"]["prompt"]
    tokens = tiny.tokens(config, 2, 22)
    hidden, _ = tiny.whole(config, params, tokens)
    streamed, _ = tiny.stream(config, params, tokens, width=4)
    other = without(config, fam_gate=False, **({} if gate else {"fam_length": 0}))
    theirs = plain(params) if gate else {name: tree for name, tree in params.items() if name != "fam"}
    tiny.assert_close(hidden, tiny.whole(other, theirs, tokens)[0])
    tiny.assert_close(streamed, tiny.stream(other, theirs, tokens, width=4)[0])


def test_a_shut_gate_has_a_gradient() -> None:
    """The gate's gradient equals that of the difference in hidden states; FAM's prompt has a gradient once the gate is
    not 0."""
    params, tokens = tiny.parameters(GATED), tiny.tokens(GATED, 2, 22)
    target = np.random.default_rng(0).normal(size=(2, 22, GATED.d_model))

    def loss(params: dict) -> jax.Array:
        return (tiny.whole_untraced(GATED, params, tokens)[0] * target).sum()

    grads = jax.jit(jax.grad(loss), compiler_options=tiny.COMPILE_FAST)
    shut, ajar = grads(at(params, 0.0))["fam"], grads(at(params, 0.1))["fam"]
    assert (np.abs(shut["gate"]) > 1e-3).all()
    assert not shut["prompt"].any() and np.abs(ajar["prompt"]).max() > 1e-3


@pytest.mark.parametrize("bias", [-10.0, 10.0], ids=["closed", "open"])
def test_a_closed_update_gate_keeps_every_bit_and_an_open_one_none(bias: float) -> None:
    """Over six blocks FAM stays the initial one; or it is the update alone, the paper's without its residual."""
    config = tiny.config(fam_update="gated", zero_first_residual=False, memory_segments=0)
    params, tokens = tiny.parameters(config), tiny.tokens(config, 2, 24)
    gate = params["layers"]["memory"]
    off = {name: jnp.zeros_like(gate[name]) for name in ("write_old", "write_new")}
    params["layers"] = params["layers"] | {"memory": off | {"write_bias": jnp.full_like(gate["write_bias"], bias)}}
    _, before = tiny.whole(config, params, tokens, count_B=np.array([0, 0], np.int32))
    _, after = tiny.whole(config, params, tokens)
    _, streamed = tiny.stream(config, params, tokens, width=1)
    old, new = before.stacked.fam, after.stacked.fam
    if bias < 0:
        np.testing.assert_array_equal(new, old)
        np.testing.assert_array_equal(streamed.stacked.fam, old)
        return
    assert np.abs(np.asarray(new - old)).min() > 1e-6
    # In the first update of a document nothing is added to, so the update is the paper's FAM.
    _, theirs = tiny.whole(tiny.config(memory_segments=0), plain_layers(params), tokens[:, :4])
    _, first = tiny.whole(without(config, zero_first_residual=True), params, tokens[:, :4])
    tiny.assert_close(first.stacked.fam, theirs.stacked.fam)


def test_noise_on_update_gates_is_as_strong_as_asked_and_another_one_everywhere() -> None:
    """The gates' logits, read off F_1 = g U, differ from those without noise by Gaussian numbers of the given standard
    deviation, different for each row, activation and step. Without keys, as outside of training, there is none."""
    config = tiny.config(fam_update="gated", fam_update_noise=0.4, memory_segments=0, fam_length=4)
    params, tokens = tiny.parameters(config), np.tile(tiny.tokens(config, 1, 4), (256, 1))
    update = np.asarray(tiny.whole(without(config, fam_update="feedback", fam_update_noise=0.0), plain_layers(params),
                                   tokens)[1].layers.fam[0, :, 0], np.float64)  # fmt: skip

    def logits(key: jax.Array | None) -> np.ndarray:
        fam = np.asarray(tiny.whole(config, params, tokens, key=key)[1].layers.fam[0, :, 0], np.float64)
        stretched = (fam * update).sum(axis=-1) / np.square(update).sum(axis=-1)  # 1.02 sigmoid - 0.01
        return np.log((stretched + 0.01) / (1.01 - stretched))

    clean, one, other = (logits(key) for key in (None, jax.random.key(1), jax.random.key(2)))
    tiny.assert_close(clean, np.broadcast_to(clean[:1], clean.shape))
    added = [x - clean for x in (one, other)]
    assert np.std(added[0]) == pytest.approx(0.4, rel=0.1)
    pairs = (added[1], np.roll(added[0], 1, axis=0), np.roll(added[0], 1, axis=1))
    assert np.abs([np.corrcoef(added[0].ravel(), x.ravel())[0, 1] for x in pairs]).max() < 0.15


def plain_layers(params: dict) -> dict:
    """The weights without those of the gates of updates."""
    return params | {"layers": {name: tree for name, tree in params["layers"].items() if name != "memory"}}
