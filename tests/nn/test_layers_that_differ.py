"""Layers of several kinds in one stack: scanned by periods or unrolled, with and without rematerialisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny

# Five layers of period 2: two iterations of a loop over two layers, and a remainder of one.
MIXED = tiny.config(
    num_layers=5, layer_pattern=("local", "global"), local_window=3, local_rope_base=10.0, fam_layers="global",
    memory_segments=2, attention_cap=3.0, qkv_bias=True,
)  # fmt: skip


def test_loop_over_periods_equals_layer_by_layer() -> None:
    """Equal outputs, memory and gradients: scanned with full remat, and unrolled without remat."""
    tokens, params = tiny.tokens(MIXED, 2, 14), tiny.parameters(MIXED)

    def loss(config, params):
        hidden, state = tiny.whole_untraced(config, params, tokens)
        return jnp.square(hidden).mean() + jnp.square(state.layers.fam).mean(), state

    found = []
    for changes in ({"scan_layers": True, "remat": "full"}, {"scan_layers": False, "remat": "none"}):
        config = dataclasses.replace(MIXED, **changes)
        step = jax.jit(jax.value_and_grad(lambda p, c=config: loss(c, p), has_aux=True))
        found.append(step(params))
    ((scanned, state), by_scan), ((unrolled, other), by_loop) = found
    tiny.assert_close(scanned, unrolled)
    tiny.assert_same_memory(MIXED, state, other)
    jax.tree.map(tiny.assert_close, by_scan, by_loop)


def test_layers_without_fam_do_not_see_it() -> None:
    """With FAM only in global layers, the FAM state of the local layers has no effect."""
    tokens, params = tiny.tokens(MIXED, 2, 12), tiny.parameters(MIXED)
    _, state = tiny.whole(MIXED, params, tokens)
    local = np.arange(5) % 2 == 0
    changed = lambda x: jnp.where(local.reshape(-1, *(1,) * (x.ndim - 1)), x + 7.0, x)
    fams = {name: changed(getattr(state.layers, name)) for name in ("fam", "fam_k", "fam_v")}
    other = dataclasses.replace(state, layers=dataclasses.replace(state.layers, **fams))
    more = tiny.tokens(MIXED, 2, 8, seed=1)
    np.testing.assert_array_equal(tiny.whole(MIXED, params, more, other)[0], tiny.whole(MIXED, params, more, state)[0])
    seen = jax.tree.map(lambda x: x + 7.0 if x.dtype == jnp.float32 and x.ndim > 1 else x, state)
    assert np.abs(tiny.whole(MIXED, params, more, seen)[0] - tiny.whole(MIXED, params, more, state)[0]).max() > 0.01


def test_local_layers_forget_exactly_at_their_window() -> None:
    """With local layers only, token t sees t-2 .. t in every layer: 5 layers reach 10 tokens back, not 11."""
    config = dataclasses.replace(tiny.config(fam_length=0, memory_segments=1, num_layers=5), layer_pattern=("local",))
    config = dataclasses.replace(config, local_window=3)
    params, tokens = tiny.parameters(config), tiny.tokens(config, 1, 16)
    before = np.asarray(tiny.whole(config, params, tokens)[0])
    for at, differs in ((4, False), (5, True)):
        changed = tokens.copy()
        changed[0, at] = (changed[0, at] + 1) % config.vocab_size
        after = np.asarray(tiny.whole(config, params, changed)[0])
        assert (np.abs(after - before)[0, 15].max() > 0) == differs
