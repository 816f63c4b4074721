"""Export of LoRA: merged into the folder, or separately in peft's format."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from famjax.cli.main import main
from famjax.config import LoraConfig
from famjax.nn.lora import merge
from famjax.nn.weights import parameter_shapes
from famjax.storage import base
from famjax.storage.arrays import leaves
from famjax.storage.checkpoint import load_model, save_model
from famjax.storage.model_dir import write_text
from tests import tiny

LORA = LoraConfig(rank=3, alpha=6.0)
# Grouped heads, biases: a Qwen 2.
CONFIG = tiny.config(vocab_size=61, qkv_bias=True, num_heads=4, num_kv_heads=2, fam_length=3, lora=LORA)


def exported(source: Path, target: Path, *flags: str) -> dict[str, np.ndarray]:
    """Returns the tensors of `famjax export-hf`, without FAM's."""
    assert main(["export-hf", str(source), str(target), *flags]) == 0
    files = [file for file in target.glob("*.safetensors") if file.name != "fam.safetensors"]
    assert len(files) == 1
    return safetensors.numpy.load_file(files[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_export_is_merged_and_the_adapter_alone_is_what_was_merged(dtype: str, tmp_path: Path) -> None:
    """Merged tensors are those of `merge`, bit for bit, and of peft's formula, W + alpha/r B A, in NumPy on the export
    of the base without LoRA; every projection has an A and a B, and nothing else is in the adapter."""
    config = dataclasses.replace(CONFIG, param_dtype=dtype)
    params = tiny.parameters(config)
    save_model(tmp_path / "model", config, params)
    whole = exported(tmp_path / "model", tmp_path / "merged")
    plain_params, plain = merge(params, config)
    save_model(tmp_path / "ours", plain, plain_params)
    for name, tensor in exported(tmp_path / "ours", tmp_path / "again").items():
        # numpy and jax may sum a product of rank 3 in different orders.
        tiny.assert_close(tensor, whole[name], 1e-6 if dtype == "float32" else 2**-8)
    without = {k: v for k, v in params["layers"].items() if k != "lora"}
    save_model(tmp_path / "base", plain, params | {"layers": without})
    bare = exported(tmp_path / "base", tmp_path / "bare")
    found = exported(tmp_path / "model", tmp_path / "adapter", "--adapter-only", "--base-model", "someone/base")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["peft_type"], said["r"], said["lora_alpha"], said["bias"]) == ("LORA", 3, 6.0, "none")
    assert said["base_model_name_or_path"] == "someone/base"
    modules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(said["target_modules"]) == modules and len(found) == 2 * 7 * 2
    query = "base_model.model.model.layers.1.self_attn.q_proj"
    assert found[f"{query}.lora_A.weight"].shape == (3, 12) and found[f"{query}.lora_B.weight"].shape == (16, 3)
    adapted = 0
    for name, tensor in bare.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        expected = tensor.astype(np.float32)
        if f"{module}.lora_A.weight" in found:
            adapted += 1
            expected = expected + 2 * found[f"{module}.lora_B.weight"] @ found[f"{module}.lora_A.weight"]
        tiny.assert_close(whole[name], expected.astype(tensor.dtype), 1e-6 if dtype == "float32" else 2**-8)
    assert adapted == 14
    prompts = [safetensors.numpy.load_file(tmp_path / name / "fam.safetensors") for name in ("adapter", "merged")]
    for fam in prompts:
        np.testing.assert_array_equal(fam["fam_prompt"], params["fam"]["prompt"])
    memory = json.loads((tmp_path / "adapter" / "famjax.json").read_text())["memory"]
    assert memory == json.loads((tmp_path / "merged" / "config.json").read_text())["famjax"]["memory"]


def test_layers_without_pairs_are_not_in_the_adapter(tmp_path: Path) -> None:
    """With `first_layer` 1 the adapter has layer 1 alone, and says so to peft; merged, layer 0 is the base."""
    config = dataclasses.replace(CONFIG, lora=dataclasses.replace(CONFIG.lora, first_layer=1))
    save_model(tmp_path / "model", config, tiny.parameters(config))
    found = exported(tmp_path / "model", tmp_path / "adapter", "--adapter-only")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["layers_to_transform"] == [1] and len(found) == 7 * 2
    assert all(name.startswith("base_model.model.model.layers.1.") for name in found)
    merged, params = exported(tmp_path / "model", tmp_path / "merged"), tiny.parameters(config)
    same = lambda layer: np.array_equal(
        merged[f"model.layers.{layer}.mlp.up_proj.weight"], params["layers"]["feed_forward"]["up"][layer].T
    )
    assert same(0) and not same(1)


def test_the_export_of_a_small_checkpoint_is_that_of_the_whole_model(tmp_path: Path) -> None:
    """LoRA and FAM on a base in another directory: the folder equals that of the same weights in one directory, bit for
    bit; imported again, it is the merged model."""
    params = tiny.parameters(CONFIG)
    save_model(tmp_path / "whole", CONFIG, params)
    own = base.part(params, lambda path: path.startswith(("fam/", "layers/lora/")))
    rest = base.part(params, lambda path: not path.startswith("layers/lora/"))
    save_model(tmp_path / "base", dataclasses.replace(CONFIG, lora=LoraConfig()), rest)
    save_model(tmp_path / "small", CONFIG, own)
    base.write(tmp_path / "small", base.of(tmp_path / "base"))
    one, other = (exported(tmp_path / name, tmp_path / f"{name} out") for name in ("whole", "small"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert main(["import-hf", str(tmp_path / "small out"), str(tmp_path / "again")]) == 0
    plain_params, plain = merge(params, CONFIG)
    again, weights = load_model(tmp_path / "again", parameter_shapes)
    assert again == plain
    for found, desired in zip(leaves(weights).values(), leaves(plain_params).values(), strict=True):
        tiny.assert_close(found, desired, 1e-6)


@pytest.mark.parametrize("stages", [1, 2])
def test_an_adapter_has_all_that_was_trained_or_is_refused(stages: int, tmp_path: Path, capsys) -> None:
    """A training that also trained norms, and one of LoRA alone after it: an adapter without these norms would be
    another model. An export of the whole model has them."""
    params = tiny.parameters(CONFIG)
    rest = base.part(params, lambda path: not path.startswith("layers/lora/"))
    save_model(tmp_path / "0", dataclasses.replace(CONFIG, lora=LoraConfig()), rest)
    for stage, more in enumerate([("final_norm/",), ()][:stages], 1):
        own = base.part(params, lambda path, more=more: path.startswith(("fam/", "layers/lora/", *more)))
        save_model(tmp_path / str(stage), CONFIG, own, step=4)
        base.write(tmp_path / str(stage), base.of(tmp_path / str(stage - 1)))
    source = str(tmp_path / str(stages))
    assert main(["export-hf", source, str(tmp_path / "out"), "--adapter-only"]) == 2
    error = capsys.readouterr().err
    assert "was not trained by LoRA alone: an adapter cannot have final_norm/scale; leave" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert "model.norm.weight" in exported(Path(source), tmp_path / "whole")


def test_an_adapter_of_a_model_without_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and no folder."""
    config = dataclasses.replace(CONFIG, lora=LoraConfig())
    write_text(tmp_path / "model" / "model.json", config.to_json())
    assert main(["export-hf", str(tmp_path / "model"), str(tmp_path / "out"), "--adapter-only"]) == 2
    error = capsys.readouterr().err
    assert "has no LoRA (its rank is 0); leave --adapter-only out" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
