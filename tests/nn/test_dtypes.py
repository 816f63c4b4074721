"""bfloat16 activations: close to float32, with float32 where it matters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.nn import weights as models
from famjax.nn.layer import Layer
from tests import tiny


def distance(a: Any, b: Any) -> float:
    """Returns the RMS of the difference, relative to the RMS of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sqrt(((a - b) ** 2).mean() / (b**2).mean())


@pytest.mark.parametrize("order", ["whole", "streaming"])
def test_bfloat16_stays_near_float32(order: str) -> None:
    """The error of outputs and FAM is at most three times that of rounding only the weights of a float32 model.

    A matrix product in bfloat16 rounds its weight, its input and its output; everything else stays float32. Three times
    one of these errors bounds their sum.
    """
    wide, narrow = tiny.config(), tiny.config(dtype="bfloat16")
    run = tiny.whole if order == "whole" else tiny.stream
    for seed in range(4):
        params, tokens = tiny.parameters(wide, seed), tiny.tokens(wide, 4, 22, seed)
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
        exact, near = run(wide, params, tokens), run(narrow, params, tokens)
        weights_rounded = run(wide, rounded, tokens)
        for part in (lambda out: out[0], lambda out: out[1].layers.fam):
            allowed = 3 * distance(part(weights_rounded), part(exact))
            assert 0 < distance(part(near), part(exact)) <= allowed < 0.1


def test_what_is_float32() -> None:
    """With bfloat16 compute, parameters, FAM and logits stay float32; the ring and the hidden states do not."""
    config = tiny.config(dtype="bfloat16")
    params = tiny.parameters(config)
    assert {x.dtype for x in jax.tree.leaves(models.parameter_shapes(config))} == {jnp.dtype("float32")}
    whole = tiny.whole(config, params, tiny.tokens(config, 4, 22))
    streamed = tiny.read(config, params, tiny.tokens(config, 4, 4), tiny.initial_state(config, params, 4))
    for out, memory in (whole, streamed):
        assert out.dtype == jnp.bfloat16 and memory.layers.k.dtype == jnp.bfloat16
        assert memory.layers.fam.dtype == jnp.float32
        assert tiny.build(config, params).logits(out).dtype == jnp.float32


def test_parameters_in_bfloat16() -> None:
    """`param_dtype` applies to every weight but FAM's prompt; FAM's activations stay float32 too."""
    config = tiny.config(param_dtype="bfloat16", dtype="bfloat16")
    params = tiny.parameters(config)
    shapes = models.parameter_shapes(config)
    assert shapes.pop("fam")["prompt"].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}
    _, state = tiny.whole(config, params, tiny.tokens(config, 2, 9))
    assert state.layers.fam.dtype == jnp.float32


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_gradients_of_a_frequent_tokens_embedding_add_up(param_dtype: str) -> None:
    """A token that occurs 4096 times in a batch gets the sum of its gradients; in bfloat16 a sum of ones stops at
    256."""
    config = tiny.config(dtype="bfloat16", param_dtype=param_dtype)
    params, tokens = tiny.parameters(config), np.zeros((4, 1025), np.int32)
    tokens[:, -1] = 3
    embedded = lambda params: tiny.build(config, params).embed(tokens).astype(jnp.float32).sum()
    gradient = jax.grad(embedded)(params)["embedding"]
    assert gradient.dtype == param_dtype
    np.testing.assert_array_equal(gradient[:4].astype(np.float32), np.repeat([[4096.0], [0], [0], [4]], 12, axis=1))


def test_gradients_of_a_bias_add_up() -> None:
    """Those of 32,768 tokens; in bfloat16 their sum stops earlier. The values are those of a sum in bfloat16."""
    config = tiny.config(dtype="bfloat16", ff_bias=True)
    one = jax.tree.map(lambda x: x[0], tiny.parameters(config)["layers"])
    x = jnp.full((32768, config.d_model), 0.5, jnp.bfloat16)

    def up(bias: Any) -> Any:
        weights = one | {"feed_forward": one["feed_forward"] | {"up_bias": bias}}
        return Layer(config, config.layer(0)).with_arrays(weights)._product("feed_forward", "up", x)

    bias = one["feed_forward"]["up_bias"]
    gradient = jax.grad(lambda bias: up(bias).astype(jnp.float32).sum())(bias)
    np.testing.assert_array_equal(gradient, np.full(config.d_ff, 32768.0))
    plain = up(jnp.zeros_like(bias)) + bias.astype(jnp.bfloat16)
    np.testing.assert_array_equal(up(bias).astype(np.float32), plain.astype(np.float32))
