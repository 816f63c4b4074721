"""LoRA in the forward pass: the base model at initialisation, the merged weights later, and the product rule for
gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.config import LORA_PROJECTIONS, ConfigError, LoraConfig, ModelConfig
from famjax.nn import weights as models
from famjax.nn.lora import BASES, merge
from tests import tiny

LORA = LoraConfig(rank=3, alpha=6.0)


def without_lora(config: ModelConfig, params: dict) -> tuple[ModelConfig, dict]:
    """Returns the base parameters."""
    layers = {name: value for name, value in params["layers"].items() if name != "lora"}
    return dataclasses.replace(config, lora=LoraConfig()), params | {"layers": layers}


def test_the_first_step_is_the_base_to_the_bit() -> None:
    """B is initialised to zero, and A from a random stream of its own: all base weights are those of the model without
    LoRA, and so are outputs and memory, whole and streamed."""
    config = tiny.config(lora=LORA)
    params = models.parameters(models.create(config, seed=3))
    plain, base = without_lora(config, params)
    jax.tree.map(np.testing.assert_array_equal, base, models.parameters(models.create(plain, seed=3)))
    assert all((pair["a"] != 0).all() and (pair["b"] == 0).all() for pair in params["layers"]["lora"].values())
    tokens = tiny.tokens(config, 2, 13)
    for run in (tiny.whole, tiny.stream):
        found, expected = run(config, params, tokens), run(plain, base, tokens)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "ff_bias": True, "output_bias": True, "post_norms": True},
        {"fam_length": 0, "gated_ff": False, "activation": "gelu", "num_kv_heads": 1, "parallel_layers": True},
    ],
)
def test_merged_is_unmerged(changes: dict[str, Any]) -> None:
    """W + scale A B in place of W gives the same outputs and memory, whole and streamed, including FAM's recurrence;
    without the LoRA pairs they differ."""
    config = tiny.config(lora=LORA, **changes)
    params = tiny.parameters(config)
    tokens = tiny.tokens(config, 2, 13)
    plain, merged = merge(params, config)[::-1]
    assert plain == dataclasses.replace(config, lora=LoraConfig()) and "lora" not in merged["layers"]
    for run in (tiny.whole, tiny.stream):
        hidden, state = run(config, params, tokens)
        desired, desired_state = run(plain, merged, tokens)
        tiny.assert_close(hidden, desired)
        tiny.assert_same_memory(config, state, desired_state)
    base = tiny.whole(plain, without_lora(config, params)[1], tokens)[0]
    assert np.abs(np.asarray(base) - np.asarray(hidden)).max() > 0.1


def test_merging_adds_in_float32_and_keeps_the_bases_type() -> None:
    """With a bfloat16 base, LoRA is float32, and the sum is computed in float32 and rounded once."""
    config = tiny.config(lora=LORA, param_dtype="bfloat16")
    params = tiny.parameters(config)
    pairs = params["layers"]["lora"]
    assert {leaf.dtype for leaf in jax.tree.leaves(pairs)} == {jnp.dtype("float32")}
    merged, _ = merge(params, config)
    for name in LORA_PROJECTIONS:
        base, found = (np.asarray(tree["layers"][BASES[name]][name]) for tree in (params, merged))
        a, b = (np.asarray(pairs[name][part], np.float64) for part in ("a", "b"))
        for layer in range(config.num_layers):
            update = a[layer].reshape(-1, 3) @ b[layer].reshape(3, -1)
            exact = base[layer].astype(np.float64) + 2 * update.reshape(base[layer].shape)
            assert found.dtype == base.dtype
            # Half a unit in the last place of bfloat16, and the float32 rounding before it.
            assert (np.abs(found[layer] - exact) <= np.abs(exact) * (2**-8 + 1e-5) + 1e-6).all()


def test_gradients_are_those_of_a_product() -> None:
    """If dW is the gradient of W + s A B as one weight, then dA = s dW B^T and dB = s A^T dW, in every projection and
    through FAM's recurrence."""
    config = tiny.config(lora=LORA, num_heads=4, num_kv_heads=2)
    params = tiny.parameters(config)
    plain, merged = merge(params, config)[::-1]
    tokens = tiny.tokens(config, 2, 12)
    mix = np.random.default_rng(0).normal(size=(2, 12, config.d_model))

    def derivative(config: ModelConfig, params: dict) -> dict:
        loss = lambda params: (tiny.whole_untraced(config, params, tokens)[0] * mix).sum()
        gradient: dict = jax.jit(jax.grad(loss), compiler_options=tiny.COMPILE_FAST)(params)
        return gradient

    found, dense = derivative(config, params), derivative(plain, merged)
    others = [derivative(plain, tiny.perturbed(merged, seed)) for seed in range(4)]
    for name in LORA_PROJECTIONS:
        a, b = (np.asarray(params["layers"]["lora"][name][part], np.float64) for part in ("a", "b"))
        da, db = found["layers"]["lora"][name]["a"], found["layers"]["lora"][name]["b"]
        for layer in range(config.num_layers):
            flat_a, flat_b = a[layer].reshape(-1, 3), b[layer].reshape(3, -1)
            weight = lambda tree, name=name, layer=layer: np.asarray(tree["layers"][BASES[name]][name][layer], float)
            flat = [weight(tree).reshape(len(flat_a), -1) for tree in (dense, *others)]
            desired_a, *others_a = (2 * dw @ flat_b.T for dw in flat)
            desired_b, *others_b = (2 * flat_a.T @ dw for dw in flat)
            tiny.assert_equal_up_to_rounding(da[layer].reshape(flat_a.shape), desired_a, others_a)
            tiny.assert_equal_up_to_rounding(db[layer].reshape(flat_b.shape), desired_b, others_b)
    prompts = [tree["fam"]["prompt"] for tree in (dense, *others)]
    tiny.assert_equal_up_to_rounding(found["fam"]["prompt"], prompts[0], prompts[1:])


def test_layers_before_the_first_have_no_pairs() -> None:
    """With `first_layer` 1 the result is that of pairs which are 0 in layer 0, whole, streamed and merged; layer 0's
    pairs have no gradient."""
    config = tiny.config(lora=dataclasses.replace(LORA, first_layer=1))
    params = tiny.parameters(config)
    pairs = jax.tree.map(lambda leaf: leaf.at[0].set(0), params["layers"]["lora"])
    zeroed = params | {"layers": params["layers"] | {"lora": pairs}}
    every = dataclasses.replace(config, lora=LORA)
    tokens = tiny.tokens(config, 2, 13)
    for run in (tiny.whole, tiny.stream):
        found, expected = run(config, params, tokens), run(every, zeroed, tokens)
        tiny.assert_close(found[0], expected[0])
    jax.tree.map(tiny.assert_close, merge(params, config)[0], merge(zeroed, every)[0])
    loss = lambda params: (tiny.whole_untraced(config, params, tokens)[0] ** 2).sum()
    for leaf in jax.tree.leaves(jax.grad(loss)(params)["layers"]["lora"]):
        assert (leaf[0] == 0).all() and (leaf[1] != 0).any()
    with pytest.raises(ConfigError, match="first_layer is 2, but the model has only 2 layers"):
        tiny.config(lora=LoraConfig(rank=1, first_layer=2)).validate()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_unrolled_layers_before_the_first_have_no_backward_pass(remat: str) -> None:
    """With LoRA and FAM in the last of three layers, the gradient of LoRA, prefix and gate has the products of one
    layer's backward pass less for each of the others."""

    def products(first: int) -> int:
        memory = {"fam_layers": "-" * first + "+" * (3 - first), "fam_init": "prefix", "fam_gate": True}
        lora = LoraConfig(rank=1, first_layer=first)
        config = tiny.config(num_layers=3, scan_layers=False, remat=remat, lora=lora, **memory)
        params, tokens = tiny.parameters(config), tiny.tokens(config, 1, 8)

        def loss(lora: Any, fam: Any) -> Any:
            whole = params | {"layers": params["layers"] | {"lora": lora}, "fam": fam}
            return tiny.build(config, whole)(tokens)[0].sum()

        gradient = jax.grad(loss, argnums=(0, 1))
        return str(jax.make_jaxpr(gradient)(params["layers"]["lora"], params["fam"])).count("dot_general")

    forward = tiny.config(num_layers=1, fam_length=0)
    params, tokens = tiny.parameters(forward), tiny.tokens(forward, 1, 8)
    one = str(jax.make_jaxpr(lambda: tiny.build(forward, params)(tokens)[0])()).count("dot_general")
    all_three, two, last = map(products, range(3))
    assert all_three - two == two - last > one


def test_chosen_projections() -> None:
    """Only the named projections have pairs, in the layer's order; a gate projection only if the layer has one."""
    config = tiny.config(lora=LoraConfig(rank=1, projections=["up", "query", "gate"]), gated_ff=False)
    assert list(models.parameter_shapes(config)["layers"]["lora"]) == ["query", "up"]
    again = ModelConfig.from_json(config.to_json())
    assert again == config and again.lora.scale == 1.0
    with pytest.raises(ConfigError, match="`gate` alone, but the model is not gated"):
        tiny.config(lora=LoraConfig(rank=1, projections=("gate",)), gated_ff=False).validate()


def test_dropout_has_the_same_mean_and_its_own_draws() -> None:
    """Outputs depend on the key, are reproducible, and average over keys to those without dropout (within 5 standard
    errors); without a key there is no dropout."""
    config = tiny.config(lora=LoraConfig(rank=3, dropout=0.5, projections=("down",)), num_layers=1, fam_length=0)
    params = tiny.parameters(config)
    tokens = tiny.tokens(config, 1, 4)

    @jax.jit
    def hidden(key: Any) -> Any:
        model = tiny.build(config, params)
        # Before the norm, so that the output is linear in the dropped values.
        model._final_norm = lambda x: x
        return model(tokens, key=key)[0]

    dropped, kept = hidden, lambda: np.asarray(hidden(None))

    draws = np.stack([dropped(jax.random.key(seed)) for seed in range(400)])
    np.testing.assert_array_equal(draws[7], dropped(jax.random.key(7)))
    assert (draws[0] != draws[1]).any()
    error = draws.std(axis=0) / 20
    assert (np.abs(draws.mean(axis=0) - kept()) < 5 * error + 1e-6).all() and error.max() > 0.01
