"""Families of pretrained models: names of their tensors, and fixed settings, in one table per family.

    ours                     [axes]          theirs                     [axes]
    layers/attention/query   [L, D, K*G, H]  model.layers.N.self_attn.q_proj.weight [K*G*H, D], one for each N

`config_json.py` converts their `config.json` to a `ModelConfig` and back, by the same table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from famjax.config import ConfigError

# Layout of their tensor relative to ours.
SAME = "same"  # the shape of ours
INTO = "into"  # theirs [all other axes of ours, first axis of ours]: products with the input, [out, in]
FROM = "from"  # theirs [last axis of ours, all other axes of ours]: products with output width D
JOINED = "joined"  # theirs [all axes of ours, flattened]: biases of heads

_LAYER = "model.layers.{}."

# Our path: (tensor name, layout). {} is the index of the layer.
LLAMA: Mapping[str, tuple[str, str]] = {
    "embedding": ("model.embed_tokens.weight", SAME),
    "unembedding": ("lm_head.weight", INTO),
    "final_norm/scale": ("model.norm.weight", SAME),
    "layers/attention_norm/scale": (_LAYER + "input_layernorm.weight", SAME),
    "layers/ff_norm/scale": (_LAYER + "post_attention_layernorm.weight", SAME),
    "layers/attention/query": (_LAYER + "self_attn.q_proj.weight", INTO),
    "layers/attention/key": (_LAYER + "self_attn.k_proj.weight", INTO),
    "layers/attention/value": (_LAYER + "self_attn.v_proj.weight", INTO),
    "layers/attention/output": (_LAYER + "self_attn.o_proj.weight", FROM),
    "layers/attention/query_bias": (_LAYER + "self_attn.q_proj.bias", JOINED),
    "layers/attention/key_bias": (_LAYER + "self_attn.k_proj.bias", JOINED),
    "layers/attention/value_bias": (_LAYER + "self_attn.v_proj.bias", JOINED),
    "layers/attention/output_bias": (_LAYER + "self_attn.o_proj.bias", SAME),
    "layers/attention/query_norm/scale": (_LAYER + "self_attn.q_norm.weight", SAME),
    "layers/attention/key_norm/scale": (_LAYER + "self_attn.k_norm.weight", SAME),
    "layers/feed_forward/gate": (_LAYER + "mlp.gate_proj.weight", INTO),
    "layers/feed_forward/up": (_LAYER + "mlp.up_proj.weight", INTO),
    "layers/feed_forward/down": (_LAYER + "mlp.down_proj.weight", INTO),
    "layers/feed_forward/gate_bias": (_LAYER + "mlp.gate_proj.bias", SAME),
    "layers/feed_forward/up_bias": (_LAYER + "mlp.up_proj.bias", SAME),
    "layers/feed_forward/down_bias": (_LAYER + "mlp.down_proj.bias", SAME),
}

# Gemma 2 and 3 have norms before and after attention and feed-forward. `post_attention_layernorm` is here what its name
# says; in Llama it is the norm before the feed-forward layer.
GEMMA2: Mapping[str, tuple[str, str]] = {
    **LLAMA,
    "layers/post_attention_norm/scale": (_LAYER + "post_attention_layernorm.weight", SAME),
    "layers/ff_norm/scale": (_LAYER + "pre_feedforward_layernorm.weight", SAME),
    "layers/post_ff_norm/scale": (_LAYER + "post_feedforward_layernorm.weight", SAME),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """The common properties of models of one `model_type`.

    Attributes:
      model_type, architecture: names of the family in `config.json`.
      names: our weight paths, each with (tensor name, layout).
      fixed: fields of `ModelConfig` that transformers has in the family's code, not in `config.json`.
      silent: defaults of keys that `config.json` may omit.
      activation: key of the activation in `config.json`.
      optional: keys of `config.json` that this family has and others lack.
      ignored: keys that its configuration in transformers has, but its code does not read.
      windows: which layers have a sliding window: `all` (Mistral); `from_layer`: those from `max_window_layers` on
        (Qwen); a number n: all but every n-th layer. `layer_types`, if given, takes precedence, except for `all`. None:
        none.
    """

    model_type: str
    architecture: str
    names: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=lambda: LLAMA)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    silent: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    activation: str = "hidden_act"
    optional: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    windows: str | int | None = None


_GEMMA = {"norm_plus_one": True, "scale_embeddings": True}
_UNTIED = {"tie_word_embeddings": False, "hidden_act": "silu"}
_GEMMA2 = {
    "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "head_dim": 256, "num_key_value_heads": 4,
}  # fmt: skip
_SCALES = ("query_pre_attn_scalar", "final_logit_softcapping")

FAMILIES: tuple[Family, ...] = (
    Family("llama", "LlamaForCausalLM", silent=_UNTIED, optional=("attention_bias", "mlp_bias")),
    Family(
        "mistral", "MistralForCausalLM",
        silent=_UNTIED | {"sliding_window": 4096, "num_key_value_heads": 8}, windows="all",
    ),
    Family(
        "qwen2", "Qwen2ForCausalLM", fixed={"qkv_bias": True},
        silent=_UNTIED | {"sliding_window": 4096, "max_window_layers": 28, "num_key_value_heads": 32},
        windows="from_layer",
    ),
    Family(
        "qwen3", "Qwen3ForCausalLM", fixed={"qk_norm": True},
        silent=_UNTIED
        | {"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28, "num_key_value_heads": 32},
        optional=("attention_bias",), windows="from_layer",
    ),
    Family(
        "gemma", "GemmaForCausalLM", fixed=_GEMMA,
        silent={
            "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256, "num_key_value_heads": 16,
        },
        optional=("attention_bias",),
    ),
    Family(
        "gemma2", "Gemma2ForCausalLM", GEMMA2, fixed=_GEMMA | {"post_norms": True},
        silent=_GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        activation="hidden_activation", optional=("attention_bias", "attn_logit_softcapping", *_SCALES), windows=2,
    ),
    Family(
        "gemma3_text", "Gemma3ForCausalLM", GEMMA2, fixed=_GEMMA | {"post_norms": True, "qk_norm": True},
        silent=_GEMMA2 | {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        activation="hidden_activation",
        optional=("attention_bias", *_SCALES, "rope_local_base_freq", "sliding_window_pattern"),
        ignored=("attn_logit_softcapping",), windows=6,
    ),
)  # fmt: skip


def family_of(hf: Mapping[str, Any]) -> Family:
    """Returns the family of a `config.json`. Raises `ConfigError` if it is not known."""
    known = ", ".join(family.architecture for family in FAMILIES)
    architectures = hf.get("architectures") or []
    if architectures:
        name = str(architectures[0]) if isinstance(architectures, list) else str(architectures)
        found = [family for family in FAMILIES if family.architecture == name]
    else:
        name = str(hf.get("model_type"))
        found = [family for family in FAMILIES if family.model_type == name]
    if not found or hf.get("model_type", found[0].model_type) != found[0].model_type:
        raise ConfigError(f"config.json: the architecture {name!r} is not known; known are {known}")
    return found[0]
