"""The meaning of a config.json, and settings that are refused rather than ignored."""

import dataclasses
import math

import pytest

from famjax.cli.import_hf import imported_memory
from famjax.config import ConfigError, MemoryConfig, ModelConfig
from famjax.pretrained.config_json import architecture, config_json, describes, memory_of, model_config, with_memory

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100, "num_hidden_layers": 2,
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
}  # fmt: skip
GEMMA3 = LLAMA | {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 26, "sliding_window": 512,
}  # fmt: skip
GEMMA2 = LLAMA | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "sliding_window": 512}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 2}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 2}


def test_a_sparse_config_json_means_what_transformers_means() -> None:
    """Llama 2's files have neither rope_theta nor head_dim nor the number of key/value heads."""
    config = model_config(LLAMA)
    assert (config.rope_base, config.head_dim, config.num_kv_heads) == (10000.0, 8, 4)
    assert not config.tie_embeddings


def test_gemma3_files_without_layer_types() -> None:
    """Every sixth layer is global with its own RoPE base; 26 layers end within a period."""
    config = model_config(GEMMA3)
    assert config.layer_pattern == ("local",) * 5 + ("global",)
    assert (config.rope_base, config.local_rope_base, config.local_window) == (1e6, 1e4, 512)
    assert (config.layer(5).rope.base, config.layer(5).memory.token_window) == (1e6, 0)
    assert (config.layer(25).rope.base, config.layer(25).memory.token_window) == (1e4, 512)
    assert config.layer_period == 6


def test_windows_that_are_switched_off() -> None:
    """Qwen's files give a window and then do not use it."""
    assert model_config(QWEN2 | {"use_sliding_window": False, "sliding_window": 4096}).layer_pattern == ("global",)
    used = model_config(QWEN2 | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1})
    assert (used.layer_pattern, used.local_window) == (("global", "local"), 64)


def test_rope_that_is_said_twice() -> None:
    """`rope_scaling` takes precedence over `rope_parameters`, as in transformers 5; for Gemma 3 in global layers."""
    both = {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}, "rope_theta": 7.0}
    config = model_config(LLAMA | both | {"rope_scaling": {"type": "linear", "factor": 4.0}})
    assert (config.rope_base, config.rope_scaling, config.rope_factor) == (7.0, "linear", 4.0)
    assert model_config(LLAMA | both | {"rope_scaling": None}).rope_base == 50.0
    nested = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    config = model_config(GEMMA3 | {"rope_parameters": nested, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert (config.rope_base, config.local_rope_base, config.rope_factor) == (1e6, 1e4, 8.0)


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
BAD = [
    ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not known; known are LlamaForCausalLM, Mistral"),
    ({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}, "Gemma3ForConditionalGeneration"),
    ({"quantization_config": {"bits": 4}}, "the weights are quantised; take the model's folder with unquantised"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE of type 'yarn' is not known"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "RoPE of type 'dynamic' is not known"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "RoPE of type llama3 lacks 'low_freq_factor'"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is not 1"),
    (
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        "'yarn' is not",
    ),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
    ({"is_causal": False}, "is_causal is not known here and may change results"),
    ({"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config is not known here"),
    ({"hidden_act": "mish"}, "the activation 'mish' is not known"),
    ({"hidden_size": None}, "has no hidden_size"),
    ({"vocab_size": "many"}, "vocab_size is 'many'; it must be a number"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan; it must be a finite number"),
    ({"hidden_size": math.inf}, "hidden_size is inf; it must be a finite number"),
    ({"intermediate_size": 10**400}, "; it must be a finite number"),
    ({"rope_theta": math.inf}, "rope_theta is inf; it must be a finite number"),
    ({"rope_scaling": {"type": "linear", "factor": math.nan}}, "factor is nan; it must be a finite number"),
    ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "RoPE's settings have a value that is not a number"),
    ({"rope_parameters": LLAMA3 | {"low_freq_factor": -math.inf}}, "low_freq_factor is -inf; it must be a finite"),
    ({"rope_parameters": LLAMA3 | {"high_freq_factor": "nan"}}, "high_freq_factor is nan; it must be a finite"),
    (
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": math.inf}},
        "original_max_position_embeddings is inf; it must be a finite number",
    ),
    (GEMMA3 | {"rope_local_base_freq": math.inf}, "rope_local_base_freq is inf; it must be a finite number"),
    (QWEN2 | {"layer_types": ["full_attention", "sliding_attention"]}, "null or unused, but some layers slide"),
    (GEMMA2 | {"layer_types": [[1], [1]]}, "layer_types must be 2 of sliding_attention and full_attention"),
    (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, which Gemma3ForCausalLM ignores"),
    (GEMMA2 | {"query_pre_attn_scalar": 6.5}, "query_pre_attn_scalar is 6.5; it must be a whole number"),
    *(
        (one | {key: "false"}, f"{key} is 'false'; it must be true or false")
        for key, one in (
            ("tie_word_embeddings", {}),
            ("attention_bias", {}),
            ("mlp_bias", {}),
            ("use_sliding_window", QWEN2),
        )
    ),
    ({"num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
    ({"head_dim": 7}, "head_dim 7 is odd"),
]


POSITIVE = [
    *((name, {}) for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")),
    *((name, {}) for name in ("num_attention_heads", "num_key_value_heads", "rope_theta")),
    *((name, GEMMA2) for name in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")),
    *((name, GEMMA3) for name in ("rope_local_base_freq", "sliding_window_pattern", "query_pre_attn_scalar")),
]


@pytest.mark.parametrize("value", [0, -1, -0.5])
@pytest.mark.parametrize(("name", "family"), POSITIVE)
def test_what_must_be_positive(name: str, family: dict, value: float) -> None:
    """Division by it, or a length: transformers fails, or computes NaN."""
    with pytest.raises(ConfigError, match=rf"{name} is {value}; it must be more than 0"):
        model_config(LLAMA | family | {name: value})


def test_parameters_of_rope_must_be_positive() -> None:
    """Each of them alone, as they divide lengths and frequencies."""
    for name, value in LLAMA3.items():
        if isinstance(value, (int, float)):
            with pytest.raises(ConfigError, match=f"{name} is -1; it must be more than 0"):
                model_config(LLAMA | {"rope_parameters": LLAMA3 | {name: -1}})


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_cannot_be_imported_is_named(change: dict, message: str) -> None:
    """One line names it; a setting that would change results is never ignored."""
    with pytest.raises(ConfigError) as error:
        model_config(LLAMA | change)
    assert message in str(error.value)


@pytest.mark.parametrize("hf", [LLAMA, GEMMA3, QWEN2, MISTRAL])
def test_written_again_it_says_the_same(hf: dict) -> None:
    """From a model back to a config.json that describes it."""
    config = model_config(hf)
    again = config_json(config)
    assert describes(again, config)
    assert architecture(model_config(again)) == architecture(config)
    assert not describes(again, ModelConfig())


def test_memory_section() -> None:
    """The memory's settings in config.json, both ways; a damaged section is reported."""
    memory = MemoryConfig(block_size=64, memory_segments=1, fam_length=8, fam_layers="-----+")
    assert memory_of(with_memory(LLAMA, memory)) == memory
    assert memory_of(LLAMA) is None
    with pytest.raises(ConfigError, match="famjax: MemoryConfig has no field 'blok'"):
        memory_of(LLAMA | {"famjax": {"memory": {"blok": 4}}})
    with pytest.raises(ConfigError, match="famjax: fam_max_rms is inf; it must be a finite number"):
        memory_of(LLAMA | {"famjax": {"memory": {"fam_max_rms": math.inf}}})
    with pytest.raises(ConfigError, match="fam_length 9 is longer than block_size 4"):
        memory_of(LLAMA | {"famjax": {"memory": {"fam_length": 9, "block_size": 4}}})


def test_memory_covers_the_models_own_windows() -> None:
    """Three segments as in the paper, more if a local layer was trained with a larger window; flags take precedence."""
    mistral = model_config(MISTRAL)
    assert mistral.local_window == 4096
    assert imported_memory(mistral, None, {}).memory_segments == 4
    assert imported_memory(mistral, None, {"block_size": 2048}).memory_segments == 3
    assert imported_memory(mistral, None, {"memory_segments": 1}).memory_segments == 1
    kept = MemoryConfig(block_size=16, memory_segments=0, fam_length=4)
    assert imported_memory(mistral, kept, {}) == kept
    with pytest.raises(ConfigError, match="the folder's FAM has 4 rows; use at most 4"):
        imported_memory(mistral, kept, {"fam_length": 5})


def test_fam_in_some_layers() -> None:
    """--fam-layers global: every sixth of Gemma 3's layers has a FAM."""
    config = model_config(GEMMA3)
    memory = imported_memory(config, None, {"fam_layers": "global"})
    attached = dataclasses.replace(config, memory=memory)
    assert [i for i in range(26) if attached.layer(i).memory.fam_length] == [5, 11, 17, 23]
