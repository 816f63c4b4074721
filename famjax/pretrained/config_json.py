"""Converts a `config.json` of transformers to a `ModelConfig` and back, by the table of families.

A setting that would change results and has no field in `ModelConfig` is rejected by name, never ignored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from famjax.config import ConfigError, MemoryConfig, ModelConfig
from famjax.config.checks import finite, known_fields, positive
from famjax.pretrained.families import FAMILIES, Family, family_of

# The section of an exported config.json with the memory's settings.
SECTION = "famjax"

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "gelu": "gelu_exact",
    "relu": "relu",
}  # fmt: skip
# Sizes: the key in config.json, and our field.
NUMBERS = {
    "vocab_size": "vocab_size", "num_hidden_layers": "num_layers", "hidden_size": "d_model",
    "intermediate_size": "d_ff", "num_attention_heads": "num_heads",
}  # fmt: skip
# Keys without effect on a forward pass, in any family: settings of training, generation, saving and other heads.
# `tests/pretrained/test_every_key.py` changes each and compares the logits of transformers.
NO_EFFECT = frozenset({
    # saving
    "architectures", "model_type", "transformers_version", "_name_or_path", "name_or_path", "auto_map", "dtype",
    "torch_dtype", "tokenizer_class", "unsloth_version", "unsloth_fixed", "library_name", "model_name",
    # generation
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "cache_implementation",
    "use_cache", "max_position_embeddings", "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p",
    "num_beams", "repetition_penalty", "length_penalty", "early_stopping", "no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "generation_config", "forced_bos_token_id", "forced_eos_token_id", "prefix",
    "task_specific_params", "suppress_tokens", "begin_suppress_tokens", "typical_p", "diversity_penalty",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "num_beam_groups", "remove_invalid_values",
    # training and execution
    "initializer_range", "attention_dropout", "pretraining_tp", "gradient_checkpointing", "_attn_implementation",
    "attn_implementation", "_attn_implementation_autoset", "_experts_implementation", "torchscript", "use_bfloat16",
    "tf_legacy_loss", "pruned_heads",
    # other outputs and heads
    "output_hidden_states", "output_attentions", "return_dict", "return_dict_in_generate", "output_scores",
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "is_encoder_decoder",
    "chunk_size_feed_forward", "is_decoder", "add_cross_attention", "cross_attention_hidden_size",
    "tie_encoder_decoder", "classifier_dropout",
})  # fmt: skip
# Keys of some families. They have no effect in families whose transformers code does not read them.
OF_FAMILIES = frozenset({
    "attention_bias", "mlp_bias", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "hidden_act", "hidden_activation", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
    "sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq", "rope_scaling", "rope_theta",
})  # fmt: skip
CAPS = {"attn_logit_softcapping": "attention_cap", "final_logit_softcapping": "logit_cap"}
SLIDING, FULL = "sliding_attention", "full_attention"
# Fields of a ModelConfig that do not define the architecture: memory, LoRA, execution and training.
NOT_THE_MODEL = (
    "memory", "lora", "embedding_std", "dtype", "param_dtype", "scan_layers", "unroll_blocks", "remat",
    "attention_kernel",
)  # fmt: skip


def model_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Returns the model that a `config.json` describes, with default memory and dtypes. Raises `ConfigError` if the
    architecture or a setting is unknown, or a setting is missing or invalid."""
    family = family_of(hf)
    if hf.get("quantization_config"):
        raise ConfigError("config.json: the weights are quantised; take the model's folder with unquantised weights")
    says = _Says({**family.silent, **hf})
    fields: dict[str, Any] = {ours: says.size(theirs) for theirs, ours in NUMBERS.items()}
    fields["num_kv_heads"] = says.size("num_key_value_heads", fields["num_heads"])
    fields["head_dim"] = says.size("head_dim", fields["d_model"] // fields["num_heads"])
    fields["norm_eps"] = float(says.number("rms_norm_eps", 1e-6))
    fields["tie_embeddings"] = says.flag("tie_word_embeddings")
    fields["activation"] = _activation(str(says(family.activation) or "silu"), family)
    if says("use_bidirectional_attention"):
        raise ConfigError("config.json: use_bidirectional_attention is set; only causal models can be imported")
    if "attention_bias" in family.optional and says.flag("attention_bias"):
        fields |= {"qkv_bias": True, "output_bias": True}
    if "mlp_bias" in family.optional:
        fields["ff_bias"] = says.flag("mlp_bias")
    if "query_pre_attn_scalar" in family.optional:
        scale = says.size("query_pre_attn_scalar") ** -0.5  # transformers refuses fractions
        fields["attention_scale"] = 0.0 if scale == fields["head_dim"] ** -0.5 else scale
    for theirs, ours in CAPS.items():
        if theirs in family.optional:
            fields[ours] = 0.0 if says(theirs) is None else float(says.positive(theirs))
    for key in family.ignored:
        if says(key) is not None:
            raise ConfigError(f"config.json: {key} is {says(key)}, which {family.architecture} ignores; set it to null")
    fields |= _layers(says, family, fields["num_layers"])
    try:
        fields |= _rope(says, family, "local" in fields["layer_pattern"])
    except ConfigError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"config.json: RoPE's settings have a value that is not a number ({error})") from None
    unread = sorted(key for key in set(hf) - says.read - NO_EFFECT - OF_FAMILIES - {SECTION} if hf[key] is not None)
    if unread:
        raise ConfigError(
            f"config.json: {', '.join(unread)} is not known here and may change results; remove it if it does not"
        )
    config = ModelConfig(**fields | dict(family.fixed))
    try:
        config.validate()
    except ConfigError as error:
        raise ConfigError(f"config.json: {error}") from error
    return config


class _Says:
    """Reads a config.json with the defaults of its family.

    Attributes:
      read: keys that were read.
      all: all values by key.
    """

    def __init__(self, values: Mapping[str, Any]):
        self._values = values
        self.read = {"quantization_config", "partial_rotary_factor"}
        self.all = values

    def __call__(self, name: str) -> Any:
        self.read.add(name)
        return self._values.get(name)

    def number(self, name: str, default: Any = None) -> Any:
        """Returns a number, or `default` if it is null or missing. Raises `ConfigError` if it has no default, or is
        invalid."""
        value = self(name)
        value = default if value is None else value
        if value is None:
            raise ConfigError(f"config.json has no {name}; is it the config.json of a causal language model?")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"config.json: {name} is {value!r}; it must be a number")
        finite(f"config.json: {name}", value)
        return value

    def flag(self, name: str) -> bool:
        """Returns true or false; null and missing are false. Raises `ConfigError` for anything else."""
        value = self(name)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"config.json: {name} is {value!r}; it must be true or false")
        return bool(value)

    def positive(self, name: str, default: Any = None) -> Any:
        """Returns a number above 0; otherwise as `number`."""
        positive(f"config.json: {name}", value := self.number(name, default))
        return value

    def whole(self, name: str, default: Any = None) -> int:
        """Returns an integer; otherwise as `number`."""
        value = self.number(name, default)
        if value != int(value):
            raise ConfigError(f"config.json: {name} is {value!r}; it must be a whole number")
        return int(value)

    def size(self, name: str, default: Any = None) -> int:
        """Returns an integer above 0; otherwise as `number`."""
        self.positive(name, default)
        return self.whole(name, default)


def _activation(name: str, family: Family) -> str:
    if name not in ACTIVATIONS:
        raise ConfigError(f"config.json: the activation {name!r} is not known; known are {', '.join(ACTIVATIONS)}")
    # Files of the first Gemma have gelu, but its code uses the approximation.
    return "gelu" if family.model_type == "gemma" and name == "gelu" else ACTIVATIONS[name]


def _layers(says: _Says, family: Family, num_layers: int) -> dict[str, Any]:
    """Returns the fields `layer_pattern` and `local_window` of a `ModelConfig`."""
    types = says("layer_types") if family.windows != "all" else None
    from_layer = family.windows == "from_layer"
    used = says("sliding_window") is not None and (not from_layer or says.flag("use_sliding_window"))
    if family.windows is None or not used:
        slides = isinstance(types, list) and SLIDING in types
        if from_layer and slides or isinstance(family.windows, int) and types != [FULL] * num_layers:
            raise ConfigError("config.json: sliding_window is null or unused, but some layers slide; give their window "
                              "in tokens")  # fmt: skip
        return {"layer_pattern": ("global",)}
    window = says.whole("sliding_window")
    if types is not None:
        if not isinstance(types, list) or len(types) != num_layers or any(t not in (SLIDING, FULL) for t in types):
            raise ConfigError(f"config.json: layer_types must be {num_layers} of {SLIDING} and {FULL}")
        local = [name == SLIDING for name in types]
    elif family.windows == "all":
        local = [True] * num_layers
    elif from_layer:
        local = [layer >= says.whole("max_window_layers") for layer in range(num_layers)]
    else:
        period = says.size("sliding_window_pattern", max(family.windows, 1))
        if period != family.windows and "sliding_window_pattern" not in family.optional:  # transformers ignores it
            raise ConfigError(f"config.json: sliding_window_pattern is {period}, but every second layer of Gemma 2 has "
                              f"a sliding window; remove it, or give layer_types")  # fmt: skip
        local = [(layer + 1) % period > 0 for layer in range(num_layers)]
    kinds = ["local" if one else "global" for one in local]
    period = next(p for p in range(1, num_layers + 1) if all(kinds[i] == kinds[i - p] for i in range(p, num_layers)))
    pattern = tuple(kinds[:period])
    return {"layer_pattern": pattern, "local_window": window if "local" in pattern else 0}


def _rope(says: _Says, family: Family, has_local: bool) -> dict[str, Any]:
    """Returns the fields of RoPE's base and scaling."""
    parameters, local = _rope_by_kind(says) if "rope_local_base_freq" in family.optional else (_rope_of_all(says), {})
    if local.get("rope_type", "default") != "default":
        raise ConfigError(f"config.json: RoPE of sliding layers is scaled ({local['rope_type']}), which is not known")
    fields: dict[str, Any] = {"rope_base": _positive(parameters, "rope_theta")}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if any(float(one.get("partial_rotary_factor") or 1.0) != 1.0 for one in (parameters, local, says.all)):
        raise ConfigError("config.json: partial_rotary_factor is not 1; only RoPE over whole heads is known")
    try:
        if kind in ("linear", "llama3"):
            fields |= {"rope_scaling": kind, "rope_factor": _positive(parameters, "factor")}
        elif kind != "default":
            raise ConfigError(f"config.json: RoPE of type {kind!r} is not known; known are default, linear and llama3")
        if kind == "llama3":
            fields |= {
                "rope_low_frequency_factor": _positive(parameters, "low_freq_factor"),
                "rope_high_frequency_factor": _positive(parameters, "high_freq_factor"),
                "rope_original_length": int(_positive(parameters, "original_max_position_embeddings")),
            }
    except KeyError as missing:
        raise ConfigError(f"config.json: RoPE of type {kind} lacks {missing}") from None
    if has_local and local and (kind != "default" or _positive(local, "rope_theta") != fields["rope_base"]):
        fields["local_rope_base"] = _positive(local, "rope_theta")
    return fields


def _positive(parameters: Mapping[str, Any], name: str) -> float:
    """Returns one of RoPE's parameters as a float. Raises `ConfigError` if it is not finite and above 0."""
    positive(f"config.json: {name}", value := float(parameters[name]))
    return value


def _rope_of_all(says: _Says) -> dict[str, Any]:
    """Returns RoPE's parameters of all layers, from `rope_parameters` (transformers 5) or the older keys `rope_theta`
    and `rope_scaling`, which take precedence."""
    parameters, scaling = says("rope_parameters"), says("rope_scaling")
    if isinstance(parameters, dict) and {FULL, SLIDING} & set(parameters) and not scaling:
        raise ConfigError(
            "config.json: rope_parameters differ by kind of layer, which this architecture does not have; give one set"
        )
    found = dict(parameters or {}) if not scaling else dict(scaling)
    found.setdefault("rope_theta", says.positive("rope_theta", 10000.0))
    return found


def _rope_by_kind(says: _Says) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns RoPE's parameters of full and of sliding layers, as Gemma 3's configuration of transformers does: a part
    that is missing has the base of the older key, and `rope_scaling` is of full layers."""
    given, scaling = dict(says("rope_parameters") or {}), says("rope_scaling") or {}
    if "type" in scaling and "rope_type" not in scaling:
        raise ConfigError("config.json: rope_scaling has a type, which this architecture ignores; call it rope_type")
    full = {**(given.pop(FULL, None) or {}), **scaling}
    local = dict(given.pop(SLIDING, None) or {})
    full.setdefault("rope_theta", says.positive("rope_theta"))
    local.setdefault("rope_theta", says.positive("rope_local_base_freq"))
    # Parameters for all layers at once are ignored by transformers.
    without_effect = {"rope_theta": full["rope_theta"], "rope_type": "default"}
    if ignored := sorted(key for key, value in given.items() if without_effect.get(key) != value):
        raise ConfigError(
            f"config.json: rope_parameters has {', '.join(ignored)} beside {FULL} and {SLIDING}, or without them; this "
            f"architecture reads only these two parts"
        )
    return full, local


# --- to config.json -------------------------------------------------------------------------------


def config_json(config: ModelConfig) -> dict[str, Any]:
    """Returns a `config.json` for a model that was not imported. Raises `ConfigError` if no family fits it."""
    for family in FAMILIES:
        hf = _written(config, family)
        if describes(hf, config):
            return hf
    raise ConfigError(
        "no family of transformers has this model's combination of settings (known are "
        f"{', '.join(family.architecture for family in FAMILIES)}); it cannot be exported"
    )


def describes(hf: Mapping[str, Any], config: ModelConfig) -> bool:
    """Whether a `config.json` describes the architecture of this model, apart from its memory."""
    try:
        described = model_config(hf)
    except ConfigError:
        return False
    return architecture(described) == architecture(config)


def architecture(config: ModelConfig) -> ModelConfig:
    """Returns a configuration for comparison, in which fields that do not define the model have their defaults."""
    plain = ModelConfig()
    same = {name: getattr(plain, name) for name in NOT_THE_MODEL}
    # Equivalent patterns, such as repeated ones, become equal.
    kinds = tuple(map(config.kind_of, range(config.num_layers)))
    scale = config.attention_scale or config.head_dim**-0.5
    return dataclasses.replace(config, **same, layer_pattern=kinds, attention_scale=scale)


def _written(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Returns the family's `config.json` for this model, which may be incomplete; `describes` checks that."""
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    local = [config.kind_of(i) == "local" for i in range(config.num_layers)]
    hf: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{theirs: getattr(config, ours) for theirs, ours in NUMBERS.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": float(config.norm_eps),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": float(config.embedding_std),
        "dtype": config.param_dtype,
        family.activation: activations[config.activation],
    }
    if "attention_bias" in family.optional:
        hf["attention_bias"] = config.output_bias
    if "mlp_bias" in family.optional:
        hf["mlp_bias"] = config.ff_bias
    if "query_pre_attn_scalar" in family.optional:
        scalar = config.attention_scale**-2 if config.attention_scale else config.head_dim
        hf["query_pre_attn_scalar"] = round(scalar) if abs(scalar - round(scalar)) < 1e-9 else scalar
    hf |= {theirs: float(getattr(config, ours)) or None for theirs, ours in CAPS.items() if theirs in family.optional}
    if family.windows is not None:
        hf["sliding_window"] = config.local_window if any(local) else None
    if family.windows == "from_layer":
        hf["use_sliding_window"] = any(local)
    if family.windows not in (None, "all"):
        hf["layer_types"] = [SLIDING if one else FULL for one in local]
    rope: dict[str, Any] = {"rope_theta": config.rope_base, "rope_type": "default"}
    if config.rope_scaling != "none":
        rope |= {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling == "llama3":
        rope |= {
            "low_freq_factor": config.rope_low_frequency_factor,
            "high_freq_factor": config.rope_high_frequency_factor,
            "original_max_position_embeddings": config.rope_original_length,
        }
    if "rope_local_base_freq" in family.optional:
        base = config.local_rope_base or config.rope_base
        rope = {FULL: rope, SLIDING: {"rope_theta": base, "rope_type": "default"}}
    return hf | {"rope_parameters": rope}


def with_tokens(hf: Mapping[str, Any], bos: int | None, eos: int | None) -> dict[str, Any]:
    """Returns a `config.json` for another vocabulary: with its tokens that begin and end a text, and without what
    described an earlier one."""
    plain = {key: value for key, value in hf.items() if not key.endswith("_token_id") and key != "tokenizer_class"}
    return plain | {"bos_token_id": bos, "eos_token_id": eos}


# --- the memory -----------------------------------------------------------------------------------


def with_memory(hf: Mapping[str, Any], memory: MemoryConfig) -> dict[str, Any]:
    """Returns a `config.json` with the memory's settings in the section `SECTION`."""
    return dict(hf) | {SECTION: {"memory": dataclasses.asdict(memory)}}


def memory_of(hf: Mapping[str, Any]) -> MemoryConfig | None:
    """Returns the memory's settings in an exported `config.json`, or None if it lacks the section. Raises `ConfigError`
    if the section has no memory settings, or invalid ones."""
    section = hf.get(SECTION)
    if section is None:
        return None
    memory = section.get("memory") if isinstance(section, dict) else None
    if not isinstance(memory, dict):
        raise ConfigError(f"config.json: {SECTION} has no memory settings; leave the section out or restore it")
    try:
        for name, value in memory.items():
            if isinstance(value, float):
                finite(name, value)
        found = MemoryConfig(**known_fields(MemoryConfig, memory))
        found.validate()
    except ConfigError as error:
        raise ConfigError(f"config.json: {SECTION}: {error}") from error
    return found
