"""Every key of a config.json: if it changes results in transformers, it changes them here, or it is refused."""

import dataclasses
from typing import Any

import pytest

from famjax.config import ConfigError
from famjax.pretrained.config_json import NO_EFFECT, OF_FAMILIES, model_config
from famjax.pretrained.families import FAMILIES, Family

SHAPE = {
    "vocab_size": 61, "num_hidden_layers": 3, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WINDOWS = {"mistral": {"sliding_window": 6}, "gemma2": {"sliding_window": 6}, "gemma3_text": {"sliding_window": 6},
           "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}
VALUES: dict[str, list[Any]] = {
    "rope_scaling": [LINEAR, {"type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}, {}, None],
    "rope_parameters": [{"rope_theta": 50.0, **LINEAR}, {"rope_type": "default", "rope_theta": 50.0}, None],
    "layer_types": [["full_attention"] * 3, ["sliding_attention", "full_attention", "sliding_attention"]],
    "dtype": ["float32", None], "torch_dtype": ["float32"], "hidden_act": ["relu", "gelu", "silu"],
    "hidden_activation": ["relu", "gelu", None], "problem_type": ["regression"], "id2label": [{"0": "a", "1": "b"}],
    "per_layer_config": [{"0": {"head_dim": 8}}, {"1": {"rms_norm_eps": 0.1}}], "is_causal": [False],
    "architectures": [], "model_type": [], "quantization_config": [{"quant_method": "gptq", "bits": 4}],
    "attn_implementation": ["eager"], "_attn_implementation": ["eager"], "partial_rotary_factor": [0.5, 1.0],
    "transformers_version": ["4.30.0"], "attn_logit_softcapping": [2.0, None], "final_logit_softcapping": [2.0, None],
    "cache_implementation": ["hybrid"], "label2id": [{"a": 0}], "generation_config": [{"eos_token_id": 1}],
}  # fmt: skip
USUAL: list[Any] = [True, False, 1, 2, 0.5, 7, "something", [1], None]
BESIDE = (
    "is_causal",
    "tie_last_hidden_states",
    "logit_scale",
    "rope_scaling_factor",
    "partial_rotary_factor",
    "made_up",
)


def config_of(family: Family, hf: dict[str, Any]) -> Any:
    import transformers

    return transformers.AutoConfig.for_model(**{"model_type": family.model_type, **hf})


def logits(config: Any, weights: Any) -> Any:
    """Returns the logits of 17 tokens with these weights, or None if the weights do not fit."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if {name: value.shape for name, value in model.state_dict().items()} != {n: v.shape for n, v in weights.items()}:
        return None
    model.load_state_dict(weights)
    with torch.no_grad():
        return model(torch.arange(3, 20)[None], return_dict=True).logits.float()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_what_a_key_changes(family: Family) -> None:
    """If transformers has other logits, or another shape, the model here differs too, or is refused."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    base = SHAPE | {"architectures": [family.architecture], "model_type": family.model_type}
    base |= WINDOWS.get(family.model_type, {})
    model = transformers.AutoModelForCausalLM.from_config(config_of(family, base)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    weights = model.state_dict()
    want, ours = logits(config_of(family, base), weights), model_config(base)
    fields = {field.name for field in dataclasses.fields(type(config_of(family, base)))}
    assert {"rms_norm_eps", "rope_parameters"} <= fields
    changed = 0
    for key in sorted(fields | NO_EFFECT | OF_FAMILIES | set(BESIDE)):
        compared = 0
        for value in VALUES.get(key, USUAL):
            hf = base | {key: value}
            try:
                same = model_config(hf) == ours
            except ConfigError:
                continue
            changed += not same
            if same and compared < (len(VALUES[key]) if key in VALUES else 1 + (key in fields)):
                found = differs(family, hf, weights, want)
                assert not found, (key, value)
                compared += found is not None
    assert changed >= 8


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_what_a_config_json_may_omit(family: Family) -> None:
    """Defaults of keys, and which layers have a window, are those of the family's configuration in transformers."""
    theirs = config_of(family, {"use_sliding_window": True} if family.windows == "from_layer" else {})
    defaults = {key: getattr(theirs, key, None) for key in family.silent}
    if "rope_local_base_freq" in defaults:
        rope = {kind: theirs.rope_parameters[f"{kind}_attention"]["rope_theta"] for kind in ("full", "sliding")}
        defaults |= {"rope_theta": rope["full"], "rope_local_base_freq": rope["sliding"]}
    assert defaults == family.silent
    if isinstance(family.windows, int):
        local = [(layer + 1) % family.windows > 0 for layer in range(theirs.num_hidden_layers)]
        assert [kind == "sliding_attention" for kind in theirs.layer_types] == local


def differs(family: Family, hf: dict[str, Any], weights: Any, want: Any) -> bool | None:
    """Whether transformers has other logits; None if it refuses the key."""
    try:
        got = logits(config_of(family, hf), weights)
    except Exception:
        return None
    return got is None or float((got - want).abs().max()) > 1e-5 * float(want.abs().max())
