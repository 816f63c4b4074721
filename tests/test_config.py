"""Configurations explain themselves: errors say what is wrong and what to do instead, before any work."""

import dataclasses
import json
import math
import re
import sys

import pytest

from famjax.config import (
    BabiConfig,
    ConfigError,
    DataConfig,
    EvalConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    MqarConfig,
    OptimizerConfig,
    PassKeyConfig,
    SourceConfig,
    TrainConfig,
    check_sequence_length,
)
from tests import tiny

BAD_MODELS = [
    ({"vocab_size": 0}, "vocab_size is 0; it must be at least 1"),
    ({"num_layers": -1}, "num_layers is -1; it must be at least 1"),
    ({"d_ff": 0}, "d_ff is 0; it must be at least 1"),
    ({"num_kv_heads": 0}, "num_kv_heads is 0; it must be at least 1"),
    ({"num_heads": 7, "num_kv_heads": 2}, "num_heads 7 is not a multiple of num_kv_heads 2; use 6 or 8"),
    ({"num_heads": 2, "num_kv_heads": 4}, "num_heads 2 is not a multiple of num_kv_heads 4; use 4"),
    ({"head_dim": 5}, "head_dim 5 is odd: RoPE rotates pairs; use 6"),
    ({"activation": "sillu"}, "activation 'sillu' is not one of silu, gelu, gelu_exact, relu; did you mean 'silu'?"),
    ({"norm": "batch"}, "norm 'batch' is not one of rmsnorm, layernorm"),
    ({"dtype": "bfloat"}, "dtype 'bfloat' is not one of float32, bfloat16; did you mean 'bfloat16'?"),
    ({"param_dtype": "int8"}, "param_dtype 'int8' is not one of float32, bfloat16"),
    ({"remat": "all"}, "remat 'all' is not one of none, minimal, dots, full"),
    ({"logit_cap": -1.0}, "logit_cap is -1.0; it must be at least 0"),
    ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be at least 1e-20"),
    ({"embedding_std": -0.1}, "embedding_std is -0.1; it must be at least 0"),
    ({"rope_base": 1.0}, "rope_base is 1.0; it must be greater than 1"),
    ({"local_rope_base": 0.5}, "local_rope_base is 0.5; it must be greater than 1, or 0"),
    ({"rope_scaling": "yarn"}, "rope_scaling 'yarn' is not one of none, linear, llama3"),
    ({"rope_factor": 0.5}, "rope_factor is 0.5; it must be at least 1"),
    ({"rope_low_frequency_factor": 4.0}, "rope_high_frequency_factor 4.0 must be greater than"),
    ({"rope_factor": 4.0}, "rope_factor 4.0 has no effect without rope_scaling 'linear' or 'llama3'; .* use 1.0"),
    (
        {"rope_scaling": "linear", "rope_original_length": 64},
        "rope_original_length 64 has no effect without rope_scaling 'llama3'; add that, or use 8192",
    ),
    ({"local_window": 3}, "local_window 3 has no effect without local layers in layer_pattern; add that, or use 0"),
    ({"local_rope_base": 9.0}, "local_rope_base 9.0 has no effect without local layers in layer_pattern"),
    (
        {"rope_base": 3.6e9, "memory": MemoryConfig(fam_position="zero")},
        "random_position_offset 0.5 with rope_base 3600000000.0: .* set random_position_offset to 0",
    ),
    ({"lora": LoraConfig(rank=2, first_layer=2)}, "LoraConfig.first_layer is 2, but .* use at most 1"),
    ({"attention_cap": -1.0}, "attention_cap is -1.0; it must be at least 0"),
    ({"layer_pattern": ()}, "layer_pattern is empty"),
    ({"layer_pattern": ("global", "lokal")}, "layer_pattern: 'lokal' is not one of global, local; did you mean"),
    ({"layer_pattern": ("local",)}, "local_window is 0; it must be at least 1"),
    ({"memory": MemoryConfig(fam_layers="local")}, "fam_layers 'local' selects none of the 2 layers; use `all`"),
    ({"d_model": 64.0}, "ModelConfig.d_model is 64.0; it must be of type int"),
    ({"scan_layers": 1}, "ModelConfig.scan_layers is 1; it must be of type bool"),
    ({"num_layers": True}, "ModelConfig.num_layers is True; it must be of type int"),
]
BAD_MEMORIES = [
    ({"block_size": 0}, "block_size is 0; it must be at least 1"),
    ({"memory_segments": -1}, "memory_segments is -1; it must be at least 0"),
    ({"fam_length": -2}, "fam_length is -2; it must be at least 0"),
    ({"block_size": 8, "fam_length": 9}, "fam_length 9 is longer than block_size 8: .* use a fam_length of at most 8"),
    ({"fam_position": "first"}, "fam_position 'first' is not one of last, float, zero"),
    ({"fam_init": "prompts"}, "fam_init 'prompts' is not one of prompt, prefix; did you mean 'prompt'?"),
    ({"fam_update_noise": 0.5}, "fam_update_noise 0.5 with fam_update 'feedback'.* use 0, or fam_update 'gated'"),
    ({"fam_update": "gated", "fam_update_noise": -1.0}, "fam_update_noise is -1.0; it must be at least 0"),
    ({"fam_diversity_loss": -0.1}, "fam_diversity_loss is -0.1; it must be at least 0"),
    ({"fam_reconstruction_loss": -0.1}, "fam_reconstruction_loss is -0.1; it must be at least 0"),
    ({"previous_fams": 0}, "previous_fams is 0; it must be at least 1"),
    ({"fam_layers": "globall"}, "fam_layers 'globall' is not one of all, global, local; did you mean 'global'?"),
    ({"fam_layers": ""}, "fam_layers '' is not one of all, global, local"),
    ({"token_window": -1}, "token_window is -1; it must be at least 0"),
    (
        {"block_size": 8, "fam_length": 2, "memory_segments": 2, "token_window": 18},
        "token_window 18 is more than .* with 2 memory segments of 8 use at most 17, or memory_segments 3",
    ),
    ({"random_position_offset": 1.5}, "random_position_offset is 1.5; it must be between 0 and 1"),
    ({"random_state_passing_from": 2**31}, "random_state_passing_from is 2147483648; it must be below"),
    ({"random_state_passing": -0.1}, "random_state_passing is -0.1; it must be between 0 and 1"),
    ({"block_size": "64"}, "MemoryConfig.block_size is '64'; it must be of type int"),
]
BAD_TRAININGS = [
    ({"model_dir": ""}, "MODEL_DIR is not set; add --gin.MODEL_DIR"),
    ({"model_dir": "gs://b/run"}, "MODEL_DIR gs://b/run is not a file system path; mount the bucket"),
    ({"initial_checkpoint": "gs://b/run"}, "INITIAL_CHECKPOINT_PATH gs://b/run is not a file system path"),
    ({"sequence_length": 1000}, "sequence length 1000 is not a multiple of block_size 64; use 960 or 1024"),
    ({"batch_size": 0}, "BATCH_SIZE is 0; it must be at least 1"),
    ({"steps": 0}, "TRAIN_STEPS is 0; it must be at least 1"),
    (
        {"task": "passkeys"},
        "MIXTURE_OR_TASK_NAME 'passkeys' is not one of passkey, babi, mqar, parity, s3, s5, text; "
        "did you mean 'passkey'?",
    ),
    ({"mesh": {"dat": 1}}, "MESH axis 'dat' is not one of data, fsdp, tensor; did you mean 'data'?"),
    ({"mesh": {"data": 0}}, "MESH axis data is 0; it must be at least 1"),
    (
        {"mesh": {"data": 2, "fsdp": 2, "tensor": 5}, "batch_size": 18, "microbatches": 3},
        "BATCH_SIZE 18 does not divide over 3 microbatches of data x fsdp = 4 devices; use 12 or 24",
    ),
    ({"checkpoint_minutes": -1}, "CHECKPOINT_MINUTES is -1; it must be at least 0"),
    ({"keep_checkpoints": 0}, "KEEP_CHECKPOINTS is 0; it must be at least 1"),
    ({"keep_best": 0}, "keep_best is 0; it must be at least 1"),
    ({"keep_best_mode": "mx"}, "keep_best_mode 'mx' is not one of min, max; did you mean 'max'?"),
    ({"keep_best": 3}, "keep_best and keep_best_mode have no effect without keep_best_metric"),
    ({"keep_best_mode": "max"}, "keep_best and keep_best_mode have no effect without keep_best_metric"),
    ({"keep_period": 250, "checkpoint_period": 100}, "keep_period 250 is not a multiple of .* 100, .*; use 200 or 300"),
    ({"keep_period": 250}, "keep_period 250 is not a multiple of CHECKPOINT_PERIOD 0"),
    ({"microbatches": 0}, "MICROBATCHES is 0; it must be at least 1"),
    ({"loss_chunk": -1}, "loss_chunk is -1; it must be at least 0"),
    ({"z_loss": -1e-4}, "z_loss is -0.0001; it must be at least 0"),
    ({"optimizer": OptimizerConfig(name="adam")}, "optimizer 'adam' is not one of adamw, .*; did you mean 'adamw'?"),
    (
        {"optimizer": OptimizerConfig(parameters={"fam/*": {"freeze": True}})},
        "parameters 'fam/.*': 'freeze' is not one of learning_rate, weight_decay, frozen; did you mean 'frozen'?",
    ),
    (
        {"optimizer": OptimizerConfig(parameters={"fam/*": {"frozen": 1}})},
        "parameters 'fam/.*': frozen is 1; it must be True or False",
    ),
    (
        {"optimizer": OptimizerConfig(parameters={"fam/*": {"learning_rate": True}})},
        "parameters 'fam/.*': learning_rate is True; it must be a number",
    ),
    (
        {
            "distillation": 0.5,
            "model": ModelConfig(lora=LoraConfig(rank=2)),
            "optimizer": OptimizerConfig(parameters={"*/scale": {"frozen": False}}),
        },
        "distillation compares the model with its frozen base, which parameters '[*]/scale' trains",
    ),
    (
        {
            "model": ModelConfig(memory=MemoryConfig(fam_gate=True)),
            "optimizer": OptimizerConfig(parameters={"fam/g*": {"frozen": False}}),
        },
        "parameters has 'fam/g[*]', but fam_opening_steps opens it; set that to 0",
    ),
    ({"optimizer": OptimizerConfig(parameters={1: {}})}, "parameters has 1; it must be a pattern in quotes"),
    ({"optimizer": OptimizerConfig(parameters={"fam/*": 3})}, "parameters 'fam/.*': 3 must be settings"),
    ({"optimizer": OptimizerConfig(learning_rate=-1.0)}, "learning_rate is -1.0; it must be at least 0"),
    ({"optimizer": OptimizerConfig(schedule="linea")}, "schedule 'linea' is not one of .*; did you mean 'linear'?"),
    ({"optimizer": OptimizerConfig(beta2=1.1)}, "beta2 is 1.1; it must be between 0 and 1"),
    ({"optimizer": OptimizerConfig(beta1=1.0)}, "beta1 is 1.0, with which a moment never changes"),
    ({"passkey": PassKeyConfig(stages=(4, 1))}, re.escape("stages (4, 1) must be blocks of filler in ascending order")),
    ({"passkey": PassKeyConfig(key_digits=0)}, "key_digits is 0; it must be at least 1"),
    ({"passkey": PassKeyConfig(open_at=2.0)}, "open_at is 2.0; it must be between 0 and 1"),
    (
        {"passkey": PassKeyConfig(stages=(1, 2.5))},
        re.escape("PassKeyConfig.stages is (1, 2.5): an item is 2.5; it must be of type int"),
    ),
    ({"mqar": MqarConfig(pairs=("4",))}, ".*pairs is \\('4',\\): an item is '4'; it must be of type int"),
    ({"seed": 2**32 + 5}, "RANDOM_SEED is 4294967301; it must be at least 0 and below 2\\^32"),
    ({"seed": -1}, "RANDOM_SEED is -1; it must be at least 0"),
    ({"steps": 2**31}, "TRAIN_STEPS is 2147483648; it must be below 2\\^31, since steps are counted in 32 bits"),
    ({"optimizer": OptimizerConfig(warmup_steps=2**31)}, "warmup_steps is 2147483648; it must be below"),
    (
        {"optimizer": OptimizerConfig(parameters={"fam/*": {"learning_rate": math.nan}})},
        "parameters 'fam/.*': learning_rate is nan; it must be a finite number",
    ),
    (
        {"eval_period": 1, "evaluation": EvalConfig(filler_blocks=4)},
        "EvalConfig.filler_blocks is 4; .* tuple: write \\(4,\\)",
    ),
    ({"eval_period": 1, "evaluation": EvalConfig(lengths=4)}, "EvalConfig.lengths is 4; it must be of type tuple"),
    ({"eval_period": 1, "evaluation": EvalConfig(chat="False")}, "EvalConfig.chat is 'False'; it must be of type bool"),
]


def assert_refused(config: ModelConfig | MemoryConfig | TrainConfig, message: str) -> None:
    """The error is one line that begins as given."""
    with pytest.raises(ConfigError) as error:
        config.validate()
    assert re.match(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def training(**changes: object) -> TrainConfig:
    model = ModelConfig(memory=MemoryConfig(block_size=64, fam_length=8))
    return dataclasses.replace(TrainConfig(model_dir="somewhere", model=model), **changes)


def test_defaults_are_valid() -> None:
    """The defaults are valid."""
    ModelConfig().validate()
    MemoryConfig().validate()
    training().validate()


@pytest.mark.parametrize(("changes", "message"), BAD_MODELS)
def test_bad_model(changes: dict, message: str) -> None:
    """The error has the setting, its value and a remedy."""
    assert_refused(ModelConfig(**changes), message)


@pytest.mark.parametrize(("changes", "message"), BAD_MEMORIES)
def test_bad_memory(changes: dict, message: str) -> None:
    """The same if the memory is part of a model."""
    assert_refused(MemoryConfig(**changes), message)
    assert_refused(ModelConfig(memory=MemoryConfig(**changes)), message)


@pytest.mark.parametrize(("changes", "message"), BAD_TRAININGS)
def test_bad_training(changes: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors name training settings by the gin macros that users set."""
    monkeypatch.delitem(sys.modules, "seqio", raising=False)  # if seqio is imported, tasks may have other names
    assert_refused(training(**changes), message)


def test_training_checks_its_model() -> None:
    """Training with an invalid model reports the model's error."""
    assert_refused(training(model=ModelConfig(head_dim=3)), "head_dim 3 is odd")


@pytest.mark.parametrize(
    ("length", "block_size", "use"),
    [(8500, 1024, "8192 or 9216"), (1000, 1024, "1024"), (0, 64, "64"), (-5, 64, "64"), (65, 64, "64 or 128")],
)
def test_sequence_length_that_does_not_fit(length: int, block_size: int, use: str) -> None:
    """The message has the nearest lengths that fit, shorter and longer."""
    with pytest.raises(ConfigError) as error:
        check_sequence_length(length, block_size)
    assert str(error.value) == f"sequence length {length} is not a multiple of block_size {block_size}; use {use}"


@pytest.mark.parametrize("length", [64, 128, 6400])
def test_sequence_length_that_fits(length: int) -> None:
    """Whole blocks are accepted."""
    check_sequence_length(length, 64)


@pytest.mark.parametrize(
    ("memory", "window"),
    [
        (MemoryConfig(block_size=8, fam_length=2, memory_segments=3), 32),
        (MemoryConfig(block_size=8, fam_length=2, memory_segments=0), 8),
        (MemoryConfig(block_size=8, fam_length=2, memory_segments=3, token_window=20), 20),
    ],
)
def test_window(memory: MemoryConfig, window: int) -> None:
    """The last token of a block sees M + 1 whole blocks, unless the window is exact."""
    assert memory.window == window


# --- model.json -----------------------------------------------------------------------------------


def test_model_json_round_trip() -> None:
    """Every setting is preserved, including the memory's."""
    config = tiny.config(
        num_layers=3, num_heads=4, num_kv_heads=1, activation="gelu", gated_ff=False, norm="layernorm",
        norm_eps=1e-5, qk_norm=True, rope_base=5e5, tie_embeddings=False, embedding_std=0.3, dtype="float32",
        param_dtype="bfloat16", scan_layers=False, unroll_blocks=2, remat="dots", attention_kernel="xla",
        memory_segments=2, fam_position="float", fam_init="prefix",
        norm_plus_one=True, post_norms=True, parallel_layers=True, qkv_bias=True, output_bias=True, ff_bias=True,
        attention_scale=0.1, attention_cap=3.0, logit_cap=4.0, rope_scaling="llama3", rope_factor=2.0,
        rope_low_frequency_factor=2.0, rope_high_frequency_factor=5.0, rope_original_length=7, scale_embeddings=True,
        layer_pattern=("local", "global"), local_window=3, local_rope_base=9.0, fam_layers="-+",
        previous_fams=2, token_window=5, stop_gradient=True, random_position_offset=0.1, random_state_passing=0.2,
        random_state_passing_from=3, zero_first_residual=False, fam_max_rms=2.0, fam_noise=0.1,
        fam_update_noise=0.2, fam_gate=True, sinks=3, infini_delta=False, memory_tokens=3, summary_blocks=5,
        memory_key_dim=7, retrieval_blocks=9, retrieval_top_k=3,
        fam_update="gated", segments_hold="outputs",
        fam_diversity_loss=0.3, fam_reconstruction_loss=0.4, fam_gradient_blocks=4,
        lora=LoraConfig(rank=2, alpha=3.0, dropout=0.1, projections=("up", "query"), first_layer=1),
    )  # fmt: skip
    for part, default in ((config, ModelConfig()), (config.memory, MemoryConfig()), (config.lora, LoraConfig())):
        same = [f.name for f in dataclasses.fields(part) if getattr(part, f.name) == getattr(default, f.name)]
        assert same in ([], ["kind"]), "this test has to change every setting"
    other = tiny.config(kind="infini", fam_length=0)
    assert [ModelConfig.from_json(one.to_json()) for one in (config, other)] == [config, other]


def test_model_json_may_leave_out_what_is_default() -> None:
    """A file of an older version, or a hand-written one, gets the defaults."""
    assert ModelConfig.from_json('{"num_layers": 5, "memory": {"fam_length": 3}}') == ModelConfig(
        num_layers=5, memory=MemoryConfig(fam_length=3)
    )


CLASSES = (
    BabiConfig, DataConfig, LoraConfig, MemoryConfig, ModelConfig, MqarConfig, OptimizerConfig, PassKeyConfig,
    SourceConfig, TrainConfig,
)  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_every_number_must_be_finite(value: float) -> None:
    """NaN passes every comparison with a bound, so each is refused by its type, with its name."""
    for kind in CLASSES:
        for field in dataclasses.fields(kind):
            if field.type in (float, float | None):
                assert_refused(
                    dataclasses.replace(kind(), **{field.name: value}),
                    f"{kind.__name__}.{field.name} is .*; it must be a finite number",
                )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rope_base": NaN}', "ModelConfig.rope_base is nan; it must be a finite number"),
        ('{"memory": {"fam_max_rms": Infinity}}', "MemoryConfig.fam_max_rms is inf; it must be a finite number"),
        ('{"lora": {"alpha": NaN}}', "LoraConfig.alpha is nan; it must be a finite number"),
        ('{"num_layer": 5}', "ModelConfig has no field 'num_layer'; did you mean 'num_layers'?"),
        (
            '{"memory": {"memory_segment": 1}}',
            "MemoryConfig has no field 'memory_segment'; did you mean 'memory_segments'?",
        ),
        ('{"xyzzy": 5}', "ModelConfig has no field 'xyzzy'"),
        ('{"num_layers": 5', "model.json is not JSON"),
        ("[1, 2]", "model.json is not a JSON object"),
        ('{"memory": 3}', "model.json: `memory` is not a JSON object"),
        ('{"num_layers": "5"}', "ModelConfig.num_layers is '5'; it must be of type int"),
        ('{"head_dim": 7}', "head_dim 7 is odd"),
    ],
)
def test_bad_model_json(text: str, message: str) -> None:
    """A damaged or foreign file is reported as such, with the nearest field name."""
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_json(text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_model_json_is_readable() -> None:
    """One setting per line, so that models can be compared with diff."""
    text = ModelConfig().to_json()
    assert json.loads(text)["memory"]["fam_length"] == 64
    assert len(text.splitlines()) > len(dataclasses.fields(ModelConfig)) + len(dataclasses.fields(MemoryConfig))


def test_layers_differ_as_the_patterns_say() -> None:
    """Windows and RoPE depend on the layer's kind, FAM on the kind or on its own pattern; patterns repeat."""
    model = ModelConfig(
        num_layers=7, layer_pattern=("local", "local", "global"), local_window=5, local_rope_base=100.0,
        rope_base=1000.0, rope_scaling="linear", rope_factor=4.0, memory=MemoryConfig(8, 2, 4, fam_layers="global"),
    )  # fmt: skip
    layers = [model.layer(i) for i in range(7)]
    assert [layer.memory.token_window for layer in layers] == [5, 5, 0, 5, 5, 0, 5]
    assert [layer.memory.fam_length for layer in layers] == [0, 0, 4, 0, 0, 4, 0]
    assert [layer.rope.base for layer in layers] == [100.0, 100.0, 1000.0] * 2 + [100.0]
    assert [layer.rope.scaling for layer in layers[:3]] == ["none", "none", "linear"]
    assert model.layer_period == 3
    by_pattern = dataclasses.replace(model, memory=MemoryConfig(8, 2, 4, fam_layers="-+", token_window=3))
    assert [by_pattern.has_fam(i) for i in range(7)] == [False, True] * 3 + [False]
    assert [by_pattern.layer(i).memory.token_window for i in range(3)] == [3, 3, 3]
    assert by_pattern.layer_period == 6
    assert ModelConfig(num_layers=5).layer_period == 1
