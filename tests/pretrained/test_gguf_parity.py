"""GGUF files of every family against transformers: the same configuration, the same weights, the same logits."""

import json
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from flax import nnx

from famjax.infer.load import load
from famjax.nn.weights import parameter_shapes
from famjax.storage.checkpoint import load_model
from famjax.storage.model_dir import read_config
from tests import slow, tiny
from tests.pretrained import gguf_files, ours, theirs
from tests.pretrained.theirs import Case

TOLERANCE = 1e-4
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
LINEAR = {"rope_type": "linear", "rope_theta": 50.0, "factor": 4.0}
CASES = {
    name: theirs.CASES[name]
    for name in ("llama2-untied", "llama3-grouped-tied", "mistral-window", "qwen2-grouped", "qwen3-grouped",
                 "qwen3-tied-biases", "gemma-multi-query", "gemma3")
} | {
    "llama-biases-linear": Case(
        "Llama", SMALL | {"attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR}
    ),
    "gemma2": Case(
        "Gemma2", SMALL | {"head_dim": 8, "sliding_window": 5, "num_hidden_layers": 3, "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
}  # fmt: skip


# Its loader supports neither caps nor windows nor biases, nor the width of heads.
READ_BY_TRANSFORMERS = ("llama2-untied", "qwen2-grouped")


def logits(model_dir: Path, tokens_BT: np.ndarray) -> np.ndarray:
    """Returns [B, T, V] without FAM, at once; `test_parity` compares that with streaming."""
    model = load(model_dir, fam_length=0)
    graphdef, params = nnx.split(model)

    def whole(params, tokens_BT):
        model = nnx.merge(graphdef, params)
        return model.logits(model(tokens_BT, count=np.array(theirs.LENGTHS, np.int32))[0])

    return np.asarray(jax.jit(whole, compiler_options=tiny.COMPILE_FAST)(params, tokens_BT))


def desired(model: Any, tokens_BT: np.ndarray) -> np.ndarray:
    """Returns the logits of a model of transformers."""
    import torch

    mask = torch.arange(tokens_BT.shape[1])[None] < torch.tensor(theirs.LENGTHS)[:, None]
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens_BT, dtype=torch.long), attention_mask=mask.long())
    return np.asarray(out.logits.float())


def loaded_by_transformers(folder: Path) -> Any:
    """Returns transformers' model of the folder's file."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf", dtype="float32")
    return model.eval()


def assert_equal_logits(found: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-4 relative at every position."""
    for row in theirs.relative_errors(found, expected):
        assert row.max() <= TOLERANCE


@pytest.mark.parametrize("name", slow.but(CASES, "mistral-window", "qwen3-tied-biases", "llama-biases-linear"))
def test_logits_and_configuration(name: str, tmp_path: Path) -> None:
    """The model of a float32 file has the configuration and the weights of its folder's import, and the logits of
    transformers; also those of transformers' loader of GGUF files, if it supports all settings."""
    model = gguf_files.write(tmp_path / "tiny.gguf", CASES[name])
    model_dir = ours.imported(tmp_path / "tiny.gguf", tmp_path / "ours")
    text = theirs.tokens(61)
    made = logits(model_dir, text)
    assert_equal_logits(made, desired(model, text))
    if name in READ_BY_TRANSFORMERS:
        assert_equal_logits(made, desired(loaded_by_transformers(tmp_path), text))
    model.save_pretrained(tmp_path / "theirs")
    folder = ours.imported(tmp_path / "theirs", tmp_path / "of_folder")
    found, expected = read_config(model_dir), read_config(folder)
    assert found == expected
    weights, same = (load_model(place, parameter_shapes)[1] for place in (model_dir, folder))
    exact = np.testing.assert_array_equal
    nearly = lambda one, other: np.testing.assert_allclose(one, other, atol=1.2e-7)  # 1 + w was rounded
    jax.tree.map(nearly if "gemma" in name else exact, weights, same)


QUANTISED = {
    "Q8_0": gguf_files.all_of(gguf.GGMLQuantizationType.Q8_0),
    "Q4_0 and Q8_0": lambda name, array: (
        gguf_files.F32 if array.ndim < 2
        else gguf.GGMLQuantizationType.Q8_0 if name in ("token_embd.weight", "output.weight")
        else gguf.GGMLQuantizationType.Q4_0
    ),
    "F16": gguf_files.all_of(gguf_files.F16),
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_tensors(kind: str, tmp_path: Path) -> None:
    """The logits are those of transformers with the file's values, and those of its own loader."""
    model = gguf_files.write(tmp_path / "tiny.gguf", Case("Llama", WIDE), QUANTISED[kind])
    model_dir = ours.imported(tmp_path / "tiny.gguf", tmp_path / "ours")
    assert read_config(model_dir).param_dtype == "float32"
    text = theirs.tokens(61)
    found = logits(model_dir, text)
    assert_equal_logits(found, desired(model, text))
    if kind != "F16":
        assert_equal_logits(found, desired(loaded_by_transformers(tmp_path), text))


def test_an_export_of_mixed_types_keeps_its_values(tmp_path: Path) -> None:
    """float16 embeddings beside quantised matrices: transformers loads the export in float32, without rounding."""
    import transformers

    from famjax.cli.main import main

    kind = lambda name, array: (
        gguf_files.F32 if array.ndim < 2
        else gguf_files.F16 if name in ("token_embd.weight", "output.weight")
        else gguf.GGMLQuantizationType.Q8_0
    )  # fmt: skip
    model = gguf_files.write(tmp_path / "tiny.gguf", Case("Llama", WIDE), kind)
    model_dir = ours.imported(tmp_path / "tiny.gguf", tmp_path / "ours")
    assert main(["export-hf", str(model_dir), str(tmp_path / "back")]) == 0
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    for name, weight in model.state_dict().items():
        np.testing.assert_array_equal(loaded[name].numpy(), weight.numpy())


def test_bfloat16_stays(tmp_path: Path) -> None:
    """Matrices in bfloat16, vectors in float32 with values exact in bfloat16: a bfloat16 model, exported bit for bit;
    with one other value, a float32 model."""
    import torch

    case = Case("Llama", WIDE)
    model = theirs.build(case).to(torch.bfloat16).float()
    gguf_files.write(tmp_path / "tiny.gguf", case, gguf_files.all_of(gguf_files.BF16), model=model)
    assert read_config(ours.imported(tmp_path / "tiny.gguf", tmp_path / "ours")).param_dtype == "bfloat16"
    weights = load_model(tmp_path / "ours", parameter_shapes)[1]
    np.testing.assert_array_equal(
        np.asarray(weights["final_norm"]["scale"], np.float32), model.model.norm.weight.detach().numpy()
    )
    model.model.norm.weight.data[3] = 1.0001
    gguf_files.write(tmp_path / "tiny.gguf", case, gguf_files.all_of(gguf_files.BF16), model=model)
    assert read_config(ours.imported(tmp_path / "tiny.gguf", tmp_path / "again")).param_dtype == "float32"


def test_only_file_of_a_folder_and_export(tmp_path: Path) -> None:
    """A folder with one GGUF file is imported; exported, transformers loads it, with the same logits and tokens."""
    import transformers

    from famjax.cli.main import main

    (tmp_path / "download").mkdir()
    model = gguf_files.write(tmp_path / "download" / "tiny.gguf", CASES["llama3-grouped-tied"])
    model_dir = ours.imported(tmp_path / "download", tmp_path / "ours", "--fam-text", "abc")
    assert main(["export-hf", str(model_dir), str(tmp_path / "back")]) == 0
    text = theirs.tokens(61)
    assert_equal_logits(theirs.logits(tmp_path / "back", text), desired(model, text))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer("abc")["input_ids"] == [1, 3, 4, 5, 6]
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
