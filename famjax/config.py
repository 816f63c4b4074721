"""What a model is, as frozen dataclasses. Every variant of the paper is a value of a field here.

Nothing in this module imports jax: a configuration can be built, checked and written to
`model.json` in milliseconds. gin binds these classes at the edge (`famjax/cli`); nothing else
knows gin.
"""

import dataclasses
import difflib
import fnmatch
import json
import math
import sys
import types
import typing
from typing import Any

ACTIVATIONS = ("silu", "gelu", "gelu_exact", "relu")
NORMS = ("rmsnorm", "layernorm")
DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "dots", "full")
FAM_POSITIONS = ("last", "float", "zero")
FAM_INITS = ("prompt", "prefix")
LAYER_KINDS = ("global", "local")
ROPE_SCALINGS = ("none", "linear", "llama3")
OPTIMIZERS = ("adamw", "adafactor", "lion")
SCHEDULES = ("constant", "linear", "cosine", "rsqrt")
LORA_PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")
TRAINED = ("auto", "all", "lora", "prompt")
PARAMETER_SETTINGS = {"learning_rate": (int, float), "weight_decay": (bool,), "frozen": (bool,)}
TASKS = ("passkey", "text")
SOURCE_KINDS = ("auto", "text", "lines", "jsonl", "dataset")
SOURCE_ROWS = ("all", "streams", "packed")
PACKINGS = ("cut", "whole")
MESH_AXES = ("data", "fsdp", "tensor")


class ConfigError(ValueError):
    """A setting that cannot work. The message says what is wrong and what to do instead."""


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name} {value!r} is not one of {', '.join(choices)}{hint}")


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")


def _nearest_multiples(number: int, unit: int) -> str:
    """The positive multiples of `unit` on both sides of a number that is none: "6 or 8"."""
    below, above = number // unit * unit, -(-max(number, 1) // unit) * unit
    return f"{below} or {above}" if below > 0 else str(above)


def _check_types(config: Any) -> None:
    """Raises `ConfigError` on a value that is not of its field's type; a number may be written 1 or 1.0."""
    for field in dataclasses.fields(config):
        value, wanted = getattr(config, field.name), _plain_type(field.type)
        more: dict[type, tuple[type, ...]] = {float: (float, int), tuple: (tuple, list)}
        allowed = more.get(wanted, (wanted,))
        if value is None and type(None) in typing.get_args(field.type):
            continue
        if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
            raise ConfigError(
                f"{type(config).__name__}.{field.name} is {value!r}; it must be of type {wanted.__name__}"
            )


def _plain_type(annotation: Any) -> type:
    """`tuple` of `tuple[int, ...]`, `int` of `int | None`."""
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return typing.cast(type, typing.get_origin(annotation) or annotation)


def _probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} is {value}; a probability lies between 0 and 1")


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Block sliding window attention and the feedback attention memory (paper sections 2 and 3).

    Attributes:
      block_size: S, tokens of a block.
      memory_segments: M, how many previous blocks' keys and values are kept.
      fam_length: F, feedback activations of each layer; 0 is plain BSWA.
      fam_position: where FAM stands for RoPE: `last` (the last F positions of the block that it
        compressed), `float` (fractional positions between two blocks), `zero` (always 0).
      fam_init: `prompt` (one learned [F, D], carried up the layers by a forward pass) or
        `prefix` (a learned [F, D] for each layer).
      previous_fams: P, how many previous blocks' FAMs are attended.
      fam_layers: the layers that have a FAM: `all`, `global` or `local` (`ModelConfig.layer_pattern`), or
        a pattern of + (has one) and - (has none) that is repeated over the layers, such as `-----+`.
        The others are plain BSWA; the prompt passes through them on its way up.
      token_window: 0, or the exact number of tokens that a query sees, itself included
        (TransformerXL: BSWA with a mask that hides keys beyond the window).
      stop_gradient: no gradient into memory segments (an ablation that hurts).
      random_position_offset: probability, for each row in training, of a position offset. With
        RoPE it changes nothing but rounding unless `fam_position` is `zero`, since scores see
        differences of positions only; the switch is kept because the paper has it.
      random_state_passing: probability, for each training step, that all rows start from the
        FAM with which the previous step ended, instead of the learned prompt.
    """

    block_size: int = 1024
    memory_segments: int = 3
    fam_length: int = 64
    fam_position: str = "last"
    fam_init: str = "prompt"
    previous_fams: int = 1
    fam_layers: str = "all"
    token_window: int = 0
    stop_gradient: bool = False
    random_position_offset: float = 0.5
    random_state_passing: float = 0.8

    @property
    def window(self) -> int:
        """Tokens that the last token of a block sees at most, itself included."""
        return self.token_window or (self.memory_segments + 1) * self.block_size

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        _check_types(self)
        _at_least("block_size", self.block_size, 1)
        _at_least("memory_segments", self.memory_segments, 0)
        _at_least("fam_length", self.fam_length, 0)
        if self.fam_length > self.block_size:
            raise ConfigError(
                f"fam_length {self.fam_length} is longer than block_size {self.block_size}: FAM carries the last "
                f"positions of a block; use a fam_length of at most {self.block_size}"
            )
        _one_of("fam_position", self.fam_position, FAM_POSITIONS)
        _one_of("fam_init", self.fam_init, FAM_INITS)
        _at_least("previous_fams", self.previous_fams, 1)
        if not self.fam_layers or self.fam_layers.strip("+-"):
            _one_of("fam_layers", self.fam_layers, ("all", *LAYER_KINDS))
        _at_least("token_window", self.token_window, 0)
        longest = self.memory_segments * self.block_size + 1
        if self.token_window > longest:
            raise ConfigError(
                f"token_window {self.token_window} is more than every token of a block can see: with "
                f"{self.memory_segments} memory segments of {self.block_size} use at most {longest}, or "
                f"memory_segments {-(-(self.token_window - 1) // self.block_size)}"
            )
        _probability("random_position_offset", self.random_position_offset)
        _probability("random_state_passing", self.random_state_passing)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "MemoryConfig":
        """Of settings by name. A missing one has its default; an unknown one raises `ConfigError`."""
        return cls(**_known(cls, fields))


@dataclasses.dataclass(frozen=True)
class Rope:
    """How positions turn queries and keys (`attention/rope.py`).

    Attributes:
      base: the pair (i, i + H/2) of a head turns by `position * base ** (-2i / H)`.
      scaling: `none`; `linear` divides all these frequencies by `factor`; `llama3` divides those of which
        less than `low_frequency_factor` turns fit into `original_length` tokens, leaves those of which
        more than `high_frequency_factor` do, and goes over smoothly between.
      factor, low_frequency_factor, high_frequency_factor, original_length: see `scaling`.
    """

    base: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class LayerSettings:
    """In what one layer may differ from another. Nothing of it is a weight.

    Attributes:
      rope: its positions.
      memory: the memory's settings as this layer sees them: a local layer has its own `token_window`,
        a layer without FAM a `fam_length` of 0.
    """

    rope: Rope
    memory: MemoryConfig


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates beside the projections of every layer (`nn/lora.py`; arXiv 2106.09685).

    Attributes:
      rank: r; 0 is a model without LoRA. The paper fine-tunes with 64.
      alpha: what the pair of matrices adds is multiplied by alpha / rank; 0 stands for the rank, a factor of 1.
      dropout: in training, the probability with which each number that goes into a pair is left out.
      projections: which ones have a pair; `gate` has one only where the model is gated.
    """

    rank: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    projections: tuple[str, ...] = LORA_PROJECTIONS

    def __post_init__(self) -> None:
        """Projections may be given as a list, as JSON has it; their order means nothing."""
        if isinstance(self.projections, (list, tuple)) and set(self.projections) <= set(LORA_PROJECTIONS):
            ordered = tuple(name for name in LORA_PROJECTIONS if name in self.projections)
            object.__setattr__(self, "projections", ordered)

    @property
    def scale(self) -> float:
        """What x A B is multiplied by."""
        return (self.alpha or self.rank) / self.rank

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        _check_types(self)
        _at_least("LORA_RANK", self.rank, 0)
        _at_least("LoraConfig.alpha", self.alpha, 0)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"LoraConfig.dropout is {self.dropout}; it must be at least 0 and less than 1")
        for name in self.projections:
            _one_of("LoraConfig.projections:", name, LORA_PROJECTIONS)
        if not self.projections:
            raise ConfigError("LoraConfig.projections is empty; name some, or set LORA_RANK to 0")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer and its memory.

    Attributes:
      vocab_size: rows of the embedding.
      num_layers, d_model, d_ff: L, D, E.
      num_heads, num_kv_heads: query heads and key/value heads; equal is multi-head, 1 is
        multi-query, between is grouped-query.
      head_dim: H; even, because RoPE turns pairs.
      activation, gated_ff: `silu` and gated is SwiGLU, `gelu` and gated is GeGLU; `gelu` is the usual
        approximation by tanh, `gelu_exact` the function itself.
      norm, norm_eps: normalisation before attention, before the feed-forward layer and at the end.
      norm_plus_one: norms multiply by 1 + their weight, as Gemma's do, instead of by the weight.
      post_norms: what attention and feed-forward return is normalised before it is added.
      parallel_layers: PaLM's layers: attention and feed-forward read the same normalised input, and both
        are added to it. The first update of FAM, which has no residual, has no feed-forward part then.
      qk_norm: RMS-normalise queries and keys of each head, with a learned scale [H].
      qkv_bias, output_bias, ff_bias: projections that also add a vector: to queries, keys and values; of
        attention's output; of the feed-forward layer.
      attention_scale: scores are query times key times this; 0 is 1/sqrt(H).
      attention_cap, logit_cap: scores of attention, logits of the vocabulary become cap * tanh(x / cap);
        0 leaves them.
      rope_base: RoPE's base; 10000 in the paper.
      rope_scaling, rope_factor, rope_low_frequency_factor, rope_high_frequency_factor,
        rope_original_length: see `Rope`.
      layer_pattern: kinds of layers, repeated over the layers: `global` layers see the whole window,
        `local` ones the last `local_window` tokens of it, themselves included.
      local_window: exact window of local layers; what the memory does not hold is not seen.
      local_rope_base: RoPE's base in local layers, without scaling; 0 is the RoPE of all layers.
      tie_embeddings: the embedding is also the output projection.
      scale_embeddings: tokens' embeddings (and FAM's prompt) are multiplied by sqrt(D) where they enter.
      embedding_std: spread of the initial embedding and of the initial FAM prompt.
      dtype: of activations; softmax, norms, FAM and the loss are float32 in any case.
      param_dtype: of the stored weights, but for FAM's prompt and LoRA, which are float32.
      scan_layers: compile one layer and loop over it (compile time flat in depth), or unroll
        (faster steps for shallow models).
      remat: what the forward pass keeps of a layer for the backward pass, which computes the rest
        again: `none` keeps everything; `dots` the results of all matrix products; `minimal` those of
        products with weights (queries, keys, values, feed-forward), whatever the window; `full` only
        what enters the layer.
      attention_budget_mib: attend as many blocks at once (or, where that is less than one block of
        all rows, as many rows) as keep their scores below this many MiB of one device; 0 attends all at
        once. On a CPU 1 or 2 keep them in the cache: 18% faster at width 256 and block 256.
      memory: the memory's settings.
      lora: trained low-rank updates of the projections, if any.
    """

    vocab_size: int = 256
    num_layers: int = 2
    d_model: int = 64
    d_ff: int = 128
    num_heads: int = 2
    num_kv_heads: int = 2
    head_dim: int = 32
    activation: str = "silu"
    gated_ff: bool = True
    norm: str = "rmsnorm"
    norm_eps: float = 1e-6
    norm_plus_one: bool = False
    post_norms: bool = False
    parallel_layers: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    ff_bias: bool = False
    attention_scale: float = 0.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    rope_base: float = 10000.0
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_low_frequency_factor: float = 1.0
    rope_high_frequency_factor: float = 4.0
    rope_original_length: int = 8192
    layer_pattern: tuple[str, ...] = ("global",)
    local_window: int = 0
    local_rope_base: float = 0.0
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    embedding_std: float = 0.02
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"
    attention_budget_mib: float = 0.0
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        """A pattern may be given as a list, as JSON has it."""
        if isinstance(self.layer_pattern, list):
            object.__setattr__(self, "layer_pattern", tuple(self.layer_pattern))

    @property
    def queries_per_kv(self) -> int:
        """G, query heads for each key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def rope(self) -> Rope:
        """RoPE of global layers."""
        return Rope(
            self.rope_base, self.rope_scaling, self.rope_factor, self.rope_low_frequency_factor,
            self.rope_high_frequency_factor, self.rope_original_length,
        )  # fmt: skip

    def layer(self, index: int) -> LayerSettings:
        """What is special about a layer."""
        local = self.layer_pattern[index % len(self.layer_pattern)] == "local"
        window = self.memory.token_window
        if local:
            window = min(window or self.local_window, self.local_window)
        memory = dataclasses.replace(
            self.memory, token_window=window, fam_length=self.memory.fam_length if self.has_fam(index) else 0
        )
        return LayerSettings(Rope(self.local_rope_base) if local and self.local_rope_base else self.rope, memory)

    def has_fam(self, index: int) -> bool:
        """Whether a layer has feedback activations."""
        which = self.memory.fam_layers
        if which in LAYER_KINDS:
            return self.layer_pattern[index % len(self.layer_pattern)] == which
        return bool(self.memory.fam_length) and (which == "all" or which[index % len(which)] == "+")

    @property
    def layer_period(self) -> int:
        """The least number of layers after which their settings repeat; 1 where all layers are alike."""
        layers = [self.layer(index) for index in range(self.num_layers)]
        alike = lambda period: all(layers[i] == layers[i - period] for i in range(period, self.num_layers))
        return next(period for period in range(1, self.num_layers + 1) if alike(period))

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        _check_types(self)
        for name in ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim"):
            _at_least(name, getattr(self, name), 1)
        if self.num_heads % self.num_kv_heads:
            use = _nearest_multiples(self.num_heads, self.num_kv_heads)
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}; use {use}, so "
                f"that every key/value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd: RoPE turns pairs; use {self.head_dim + 1}")
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("norm", self.norm, NORMS)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("param_dtype", self.param_dtype, DTYPES)
        _one_of("remat", self.remat, REMAT_POLICIES)
        for name in (
            "norm_eps", "embedding_std", "attention_budget_mib", "attention_scale", "attention_cap", "logit_cap",
        ):  # fmt: skip
            _at_least(name, getattr(self, name), 0)
        self._check_rope()
        self._check_layers()

    def _check_rope(self) -> None:
        if self.rope_base <= 1:
            raise ConfigError(f"rope_base is {self.rope_base}; it must be greater than 1")
        if self.local_rope_base and self.local_rope_base <= 1:
            raise ConfigError(f"local_rope_base is {self.local_rope_base}; it must be greater than 1, or 0")
        _one_of("rope_scaling", self.rope_scaling, ROPE_SCALINGS)
        _at_least("rope_factor", self.rope_factor, 1)
        _at_least("rope_original_length", self.rope_original_length, 1)
        if self.rope_high_frequency_factor <= self.rope_low_frequency_factor:
            raise ConfigError(
                f"rope_high_frequency_factor {self.rope_high_frequency_factor} must be greater than "
                f"rope_low_frequency_factor {self.rope_low_frequency_factor}"
            )

    def _check_layers(self) -> None:
        if not self.layer_pattern:
            raise ConfigError('layer_pattern is empty; use ("global",) for layers that are all alike')
        for kind in self.layer_pattern:
            _one_of("layer_pattern:", kind, LAYER_KINDS)
        _at_least("local_window", self.local_window, 1 if "local" in self.layer_pattern else 0)
        self.memory.validate()
        self.lora.validate()
        if self.lora.rank and self.lora.projections == ("gate",) and not self.gated_ff:
            raise ConfigError("LoraConfig.projections has `gate` alone, but the model has no gate; name others")
        if self.memory.fam_length and not any(map(self.has_fam, range(self.num_layers))):
            raise ConfigError(
                f"fam_layers {self.memory.fam_layers!r} names none of the {self.num_layers} layers; use `all`, or set "
                f"fam_length to 0"
            )

    def to_json(self) -> str:
        """The whole configuration as the text of `model.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Reads what `to_json` wrote. A missing name has its default; an unknown one raises `ConfigError`."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"model.json is not JSON ({error}); is the file whole?") from None
        if not isinstance(fields, dict):
            raise ConfigError("model.json does not hold an object; is it a model's configuration?")
        memory, lora = fields.pop("memory", {}), fields.pop("lora", {})
        for name, section in (("memory", memory), ("lora", lora)):
            if not isinstance(section, dict):
                raise ConfigError(f"model.json: `{name}` does not hold an object; is the file whole?")
        config = cls(
            **_known(cls, fields),
            memory=MemoryConfig.from_fields(memory),
            lora=LoraConfig(**_known(LoraConfig, lora)),
        )
        config.validate()
        return config


def _known(cls: type, fields: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    for name in fields:
        if name not in names:
            near = difflib.get_close_matches(name, sorted(names), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{cls.__name__} has no field {name!r}{hint}")
    return fields


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer with warm-up, decay and clipping (`train/optim.py` says what each one does).

    Attributes:
      name: `adamw`, `adafactor` or `lion`. The paper fine-tunes with `adafactor`, beta1 0.9,
        beta2 0.99 and a `constant` schedule.
      learning_rate: at the end of the warm-up.
      schedule: after the warm-up: `constant`, `linear` or `cosine` to zero at the last step, or `rsqrt`,
        the peak times sqrt(warmup_steps / step), which needs no last step.
      warmup_steps: steps of linear warm-up from zero.
      beta1: decay of the first moment (momentum).
      beta2: decay of the second moment; of `lion`, which has none, decay of its one momentum.
      weight_decay: norms and FAM are not decayed.
      clip_norm: gradients are scaled down to this global norm; 0 leaves them.
      prompt_learning_rate: of FAM's own weights, as a multiple of `learning_rate`.
      trained: `all` weights; `lora`, which is LoRA and FAM's prompt; `prompt`, that alone (prompt tuning).
        `auto` is `lora` where the model has LoRA, else `all`. The others are frozen, unless `parameters`
        has something else to say of them.
      parameters: settings of single weights by patterns of their paths (docs/architecture.md), where
        `*` stands for anything: {"layers/*": {"frozen": True}, "embedding": {"learning_rate": 0.1}}.
        `learning_rate` is a multiple of the run's, `weight_decay` on or off, `frozen` weights stay as
        they are and cost neither gradient nor optimizer memory. Later patterns win over earlier ones,
        and all of them over the defaults: norms' scales, biases and `fam/*` are not decayed, `fam/*` has
        `prompt_learning_rate`.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "linear"
    warmup_steps: int = 50
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    prompt_learning_rate: float = 1.0
    trained: str = "auto"
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        _check_types(self)
        _one_of("optimizer", self.name, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("OptimizerConfig.trained", self.trained, TRAINED)
        for name in ("learning_rate", "warmup_steps", "weight_decay", "clip_norm", "prompt_learning_rate"):
            _at_least(name, getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            _probability(name, getattr(self, name))
        for pattern, settings in self.parameters.items():
            if not isinstance(settings, dict):
                raise ConfigError(f'parameters {pattern!r}: {settings!r} must be settings, such as {{"frozen": True}}')
            for name, value in settings.items():
                _one_of(f"parameters {pattern!r}:", name, tuple(PARAMETER_SETTINGS))
                kinds = PARAMETER_SETTINGS[name]
                if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                    wanted = "True or False" if bool in kinds else "a number"
                    raise ConfigError(f"parameters {pattern!r}: {name} is {value!r}; it must be {wanted}")
                if name == "learning_rate":
                    _at_least(f"parameters {pattern!r}: learning_rate", value, 0)

    def settings_of(self, path: str) -> dict[str, Any]:
        """What the table says of a weight, for example of `layers/attention/query`."""
        also = {"lora": ("layers/lora/", "fam/"), "prompt": ("fam/",)}.get(self.trained, ("",))
        frozen = not path.startswith(also)
        settings: dict[str, Any] = {"learning_rate": 1.0, "weight_decay": True, "frozen": frozen}
        table: dict[str, dict[str, Any]] = {
            "*/scale": {"weight_decay": False},
            "*_bias": {"weight_decay": False},
            "fam/*": {"weight_decay": False, "learning_rate": self.prompt_learning_rate},
        }
        for pattern, found in [*table.items(), *self.parameters.items()]:
            if fnmatch.fnmatchcase(path, pattern):
                settings |= found
        return settings


@dataclasses.dataclass(frozen=True)
class PassKeyConfig:
    """The pass key task (paper section 5): a key at the start, filler, and a question at the end.

    Attributes:
      key_digits: digits of a key.
      stages: the curriculum, most blocks of filler in each stage. A stage opens when the exact
        match of the one before it passes `open_at`.
      open_at: exact match, averaged over recent documents of the newest stage.
      newest_share: share of the batches that come from the newest open stage; the rest are spread
        over the stages before it.
      straddle_share: share of the documents whose answer is made to straddle a block's edge. By chance
        few do, and there the memory is tested hardest: it must tell how much was already said.
      mention_weight: loss weight of the key's second mention, before the filler.
      text_weight, text_tokens: loss weight of, and how many, random tokens of the other text.
    """

    key_digits: int = 5
    stages: tuple[int, ...] = (1, 2, 4, 8, 16)
    open_at: float = 0.9
    newest_share: float = 0.6
    straddle_share: float = 0.0
    mention_weight: float = 1.0
    text_weight: float = 0.05
    text_tokens: int = 32

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        _check_types(self)
        _at_least("key_digits", self.key_digits, 1)
        if not self.stages or list(self.stages) != sorted(set(self.stages)) or self.stages[0] < 1:
            raise ConfigError(f"stages {self.stages} must be blocks of filler in rising order, for example (1, 4, 16)")
        _probability("open_at", self.open_at)
        _probability("newest_share", self.newest_share)
        _probability("straddle_share", self.straddle_share)
        for name in ("mention_weight", "text_weight", "text_tokens"):
            _at_least(name, getattr(self, name), 0)


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Documents of one kind, on local disk or remote (`gs://...`, whatever fsspec reads).

    Attributes:
      path: a file, or a glob such as `books/*.txt`; `.gz` is unpacked.
      kind: `text`: a file is a document; `lines`: a line is; `jsonl`: a line is a JSON object; `dataset`: a
        folder that `save_to_disk` of Hugging Face datasets wrote. `auto` tells by the name.
      weight: how often a document is drawn from here, in proportion to the other sources' weights.
      rows: which rows read it: `streams`, `packed` or `all`.
      text_field: name of the text in a JSON object or a column.
      inputs_field, targets_field: names of what is given, read without a loss, and of what is learned.
      separator: put between inputs and targets.
      part_bytes: of `text`: cut longer files at ends of lines into documents of about so many bytes; 0 cuts
        none. A row holds its whole document in memory, and one file alone is one document.
    """

    path: str = ""
    kind: str = "auto"
    weight: float = 1.0
    rows: str = "all"
    text_field: str = "text"
    inputs_field: str = "inputs"
    targets_field: str = "targets"
    separator: str = ""
    part_bytes: int = 0

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        _check_types(self)
        if not self.path:
            raise ConfigError("a source has no path; set SourceConfig.path, for example 'books/*.txt'")
        _one_of(f"kind of {self.path}:", self.kind, SOURCE_KINDS)
        _one_of(f"rows of {self.path}:", self.rows, SOURCE_ROWS)
        _at_least(f"weight of {self.path}", self.weight, 0)
        _at_least(f"part_bytes of {self.path}", self.part_bytes, 0)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text to train on, and how it is laid out in rows (docs/data.md has pictures).

    Attributes:
      sources: of the task `text`: `SourceConfig`s, or just paths.
      vocabulary: `bytes`, or the path of a `tokenizer.json` or of a SentencePiece `.model`; empty is that of
        INITIAL_CHECKPOINT_PATH, and bytes where there is none. A task of seqio brings its own.
      stream_share: share of the rows that are document streams: each reads one document after another,
        block after block across training steps, and carries its memory along. The other rows are packed:
        documents side by side, without masks between them, and none goes on in the next step.
      packing: `cut`: packed rows are full, and a document that does not fit goes on in a later row, without
        its beginning; `whole`: it starts the next row, and what is longer than a row loses its end.
      repeat_segment: so many consecutive random tokens of every packed row are repeated at its end, behind
        the text `[repeat random segment]:` (paper section 5, which has 256); 0 repeats none.
      repeat_weight: loss weight of these.
      bos, eos: begin and end documents with the vocabulary's tokens for it, where it has them.
      shuffle: another order in every epoch; False keeps that of the files.
      modules: Python modules that register seqio tasks, imported before one is looked up.
      split: of a seqio task.
      use_cached: read what `seqio_cache_tasks` wrote, from the directories in `cache_dirs`.
      cache_dirs: where cached seqio tasks lie.
      data_shards: into how many parts a seqio task is cut, each of which is read by the lanes r, r + n, ...;
        0 is one for each row. The order depends on it, but not on the number of hosts.
    """

    sources: tuple[Any, ...] = ()
    vocabulary: str = ""
    stream_share: float = 0.0
    packing: str = "cut"
    repeat_segment: int = 0
    repeat_weight: float = 0.1
    bos: bool = True
    eos: bool = True
    shuffle: bool = True
    modules: tuple[str, ...] = ()
    split: str = "train"
    use_cached: bool = False
    cache_dirs: tuple[str, ...] = ()
    data_shards: int = 0

    def all_sources(self) -> list[SourceConfig]:
        """The sources, paths made into `SourceConfig`s."""
        return [SourceConfig(source) if isinstance(source, str) else source for source in self.sources]

    def stream_rows(self, batch_size: int) -> int:
        """How many rows of a batch, the first ones, are document streams."""
        return round(self.stream_share * batch_size)

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        _check_types(self)
        for source in self.sources:
            if not isinstance(source, (str, SourceConfig)):
                raise ConfigError(f"sources has {source!r}; it must be a path, in quotes, or a SourceConfig")
        for source in self.all_sources():
            source.validate()
        _probability("stream_share", self.stream_share)
        _one_of("packing", self.packing, PACKINGS)
        for name in ("repeat_segment", "repeat_weight", "data_shards"):
            _at_least(name, getattr(self, name), 0)

    def check_rows(self, batch_size: int) -> None:
        """Raises `ConfigError` where rows have nothing to read, or where a share of the rows is no row."""
        streams = self.stream_rows(batch_size)
        if self.stream_share and not streams:
            raise ConfigError(
                f"stream_share {self.stream_share} of {batch_size} rows is less than one row; use at least "
                f"{1 / batch_size:g}"
            )
        sources = self.all_sources()
        for rows, many in (("streams", streams), ("packed", batch_size - streams)):
            if sources and many and not any(s.rows in ("all", rows) and s.weight > 0 for s in sources):
                raise ConfigError(f"{many} rows are {rows}, but no source is for them; see stream_share and rows")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One evaluation: of the pass key task, or of texts.

    Attributes:
      model_dirs: the models, evaluated on the same documents.
      output_dir: where `results.json` and the plot go; empty is the first model's directory.
      task: `passkey`, which needs no data, or `text`: how well each token of some documents is predicted,
        by its position in the document.
      sources: documents of the task `text`: paths, or `SourceConfig`s.
      longest: tokens that are read of a document at most; 0 reads all.
      filler_blocks: lengths of the filler, in blocks of each model.
      keys: keys for each alignment of the filler against the block; a length has block_size * keys
        documents, or
      alignments: so many alignments, spread evenly; 0 is all of them.
      key_digits: digits of a key.
      batch_size: documents read side by side.
      seed: of the keys; training draws its own.
      block_size, memory_segments, fam_length: other memory settings than the models'; None keeps them.
    """

    model_dirs: tuple[str, ...] = ()
    output_dir: str = ""
    task: str = "passkey"
    sources: tuple[Any, ...] = ()
    longest: int = 0
    filler_blocks: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32, 64)
    keys: int = 1
    alignments: int = 0
    key_digits: int = 5
    batch_size: int = 64
    seed: int = 1
    block_size: int | None = None
    memory_segments: int | None = None
    fam_length: int | None = None

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        if not self.model_dirs:
            raise ConfigError("no model to evaluate; add --model DIR")
        _one_of("MIXTURE_OR_TASK_NAME", self.task, ("passkey", "text"))
        if self.task == "text" and not self.sources:
            raise ConfigError("no texts to evaluate on; add --texts 'FOLDER/*.txt'")
        _at_least("longest", self.longest, 0)
        if not self.filler_blocks:
            raise ConfigError("filler_blocks is empty; give lengths in blocks, for example 1,4,16,64")
        for blocks in self.filler_blocks:
            _at_least("filler_blocks", blocks, 1)
        for name in ("keys", "key_digits", "batch_size"):
            _at_least(name, getattr(self, name), 1)
        _at_least("alignments", self.alignments, 0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
      model_dir: where the run writes `model.json`, weights, `metrics.jsonl` and `config.gin`.
      model: the model.
      task: `passkey`, which needs no data; `text`, the sources of `data`; or a registered seqio task or mixture.
      passkey: settings of the task `passkey`.
      data: settings of every other task: where text comes from and how it is laid out in rows.
      sequence_length: tokens of a row, a multiple of the block size.
      batch_size: rows of a step.
      steps: optimizer steps.
      seed: of the weights, the data and the random state passing.
      optimizer: its settings.
      initial_checkpoint: model directory whose weights the run starts from; empty for random ones.
      log_period: steps between two lines of `metrics.jsonl`.
      checkpoint_period: steps between two checkpoints; 0 (and `checkpoint_minutes` 0) writes one at the end.
      checkpoint_minutes: minutes after which a checkpoint is due too; 0 counts steps alone.
      keep_checkpoints: so many of the newest stay. With 2 there is one to go back to if the newest is
        damaged, for which the disk must hold 3: the third while it is written.
      keep_period: checkpoints at multiples of so many steps stay for ever; 0 keeps none.
      keep_best_metric: name of a logged metric, for example `loss`; the checkpoints at which it was best stay
        too, and `best.json` names them. Empty watches none.
      keep_best, keep_best_mode: how many of those, and whether the `min` or the `max` is best.
      diagnostics_period: steps between two looks at the memory (docs/training.md), each of which costs less
        than a step; 0 never looks, None does so every ten `log_period`s.
      eval_period: steps between two evaluations; 0 never evaluates while it trains.
      evaluation: what is evaluated then; its `model_dirs` and `output_dir` are not used.
      profile_steps: (n, m) records what the devices do in steps n to m, in `profile/`; () records nothing.
      skip_bad_steps: so many steps in a row whose loss or gradient is no number are left out; one more ends the
        run, as the first one does where this is 0.
      mesh: devices along each axis of the mesh: `data` (copies of the model, each with its share of the
        batch), `fsdp` (shares of the batch and of every weight), `tensor` (shares of heads, of the
        feed-forward width and of the vocabulary). An axis that is left out has size 1.
      microbatches: parts of the batch whose gradients are computed one after the other and added up. The
        numbers are those of the whole batch; the memory for activations is that of a part.
      loss_chunk: tokens of one device whose logits exist at once; 0 sets no bound.
      z_loss: weight of log(Z)^2, Z the softmax's normaliser, which keeps logits from drifting.
    """

    model_dir: str = ""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    task: str = "passkey"
    passkey: PassKeyConfig = dataclasses.field(default_factory=PassKeyConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    sequence_length: int = 1024
    batch_size: int = 8
    steps: int = 1000
    seed: int = 0
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    initial_checkpoint: str = ""
    log_period: int = 10
    checkpoint_period: int = 0
    checkpoint_minutes: float = 0.0
    keep_checkpoints: int = 2
    keep_period: int = 0
    keep_best_metric: str = ""
    keep_best: int = 1
    keep_best_mode: str = "min"
    diagnostics_period: int | None = None
    eval_period: int = 0
    evaluation: EvalConfig = dataclasses.field(
        default_factory=lambda: EvalConfig(filler_blocks=(1, 4, 16), alignments=16)
    )
    profile_steps: tuple[int, ...] = ()
    skip_bad_steps: int = 0
    mesh: dict[str, int] = dataclasses.field(default_factory=lambda: {"data": 1, "fsdp": 1, "tensor": 1})
    microbatches: int = 1
    loss_chunk: int = 2048
    z_loss: float = 0.0

    @property
    def carries_memory(self) -> bool:
        """Rows go on with the documents of the step before, so their memory is part of the training's state."""
        return self.task != "passkey" and self.data.stream_share > 0

    @property
    def mesh_sizes(self) -> tuple[int, int, int]:
        """Devices along `data`, `fsdp` and `tensor`."""
        data, fsdp, tensor = (self.mesh.get(axis, 1) for axis in MESH_AXES)
        return data, fsdp, tensor

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        _check_types(self)
        if not self.model_dir:
            raise ConfigError("MODEL_DIR is not set; add --gin.MODEL_DIR=\"'DIR'\"")
        self.model.validate()
        self.optimizer.validate()
        self.passkey.validate()
        self.data.validate()
        self._check_task()
        check_sequence_length(self.sequence_length, self.model.memory.block_size)
        _at_least("BATCH_SIZE", self.batch_size, 1)
        _at_least("TRAIN_STEPS", self.steps, 1)
        _at_least("LOG_PERIOD", self.log_period, 1)
        self._check_checkpoints()
        self._check_watching()
        self._check_trained()
        for axis, size in self.mesh.items():
            _one_of("MESH axis", axis, MESH_AXES)
            if not isinstance(size, int) or isinstance(size, bool):
                raise ConfigError(f"MESH axis {axis} is {size!r}; it must be a number of devices")
            _at_least(f"MESH axis {axis}", size, 1)
        _at_least("MICROBATCHES", self.microbatches, 1)
        for name in ("loss_chunk", "z_loss"):
            _at_least(name, getattr(self, name), 0)
        self._check_rows()
        if self.task != "passkey":
            self.data.check_rows(self.batch_size)

    @property
    def tuning(self) -> OptimizerConfig:
        """The optimizer's settings with `trained` decided: which weights are frozen depends on the model."""
        auto = "lora" if self.model.lora.rank else "all"
        return dataclasses.replace(self.optimizer, trained=auto) if self.optimizer.trained == "auto" else self.optimizer

    @property
    def saves_a_part(self) -> bool:
        """Checkpoints leave out the weights that stay as they are in `initial_checkpoint`."""
        return bool(self.initial_checkpoint) and self.tuning.trained in ("lora", "prompt")

    def _check_trained(self) -> None:
        trained = self.optimizer.trained
        if trained == "lora" and not self.model.lora.rank:
            raise ConfigError("OptimizerConfig.trained is 'lora', but LORA_RANK is 0; set it, for example to 64")
        if trained == "prompt" and not self.model.memory.fam_length:
            raise ConfigError("OptimizerConfig.trained is 'prompt', but FAM_LENGTH is 0: there is no prompt to train")

    def _check_task(self) -> None:
        """A name that is not ours is one of seqio's, which something must have registered."""
        # A gin file may import that module itself, and with it seqio, which nothing else has done by now.
        named = self.task in TASKS or self.task.startswith("tfds:")
        if not named and not self.data.modules and "seqio" not in sys.modules:
            near = difflib.get_close_matches(self.task, TASKS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "a seqio task needs its module in DataConfig.modules"
            raise ConfigError(f"MIXTURE_OR_TASK_NAME {self.task!r} is not one of {', '.join(TASKS)}; {hint}")
        if self.task == "text" and not self.data.sources:
            raise ConfigError("the task 'text' has no sources; set --gin.DataConfig.sources=\"('books/*.txt',)\"")

    def _check_checkpoints(self) -> None:
        for name in ("checkpoint_period", "checkpoint_minutes"):
            _at_least(name.upper(), getattr(self, name), 0)
        _at_least("KEEP_CHECKPOINTS", self.keep_checkpoints, 1)
        _at_least("keep_period", self.keep_period, 0)
        _at_least("keep_best", self.keep_best, 1)
        _one_of("keep_best_mode", self.keep_best_mode, ("min", "max"))
        if self.keep_period and (not self.checkpoint_period or self.keep_period % self.checkpoint_period):
            use = (
                f"; use {_nearest_multiples(self.keep_period, self.checkpoint_period)}"
                if self.checkpoint_period
                else ""
            )
            raise ConfigError(
                f"keep_period {self.keep_period} is not a multiple of CHECKPOINT_PERIOD {self.checkpoint_period}, so "
                f"no checkpoint is written at those steps{use}"
            )

    def diagnoses(self, step: int) -> bool:
        """Whether the memory is looked at in this step (counted from 1); a model without FAM has none."""
        period = 10 * self.log_period if self.diagnostics_period is None else self.diagnostics_period
        return bool(period and step % period == 0 and self.model.memory.fam_length)

    def evaluates(self, step: int) -> bool:
        """Whether the model is evaluated behind this step: every `eval_period`, and at the end."""
        return bool(self.eval_period and (step % self.eval_period == 0 or step == self.steps))

    def logs(self, step: int) -> bool:
        """Whether `metrics.jsonl` gets a line: at its period, at the end, and where there is more to tell."""
        last = step == self.steps
        return last or step % self.log_period == 0 or self.diagnoses(step) or self.evaluates(step)

    def _check_watching(self) -> None:
        _at_least("DIAGNOSTICS_PERIOD", self.diagnostics_period or 0, 0)
        _at_least("EVAL_PERIOD", self.eval_period, 0)
        _at_least("skip_bad_steps", self.skip_bad_steps, 0)
        if self.eval_period:
            dataclasses.replace(self.evaluation, model_dirs=(self.model_dir,)).validate()
            if self.evaluation.task == "passkey" and self.model.vocab_size < 128:
                raise ConfigError(
                    f"EVAL_PERIOD asks for the pass key, which is written in ASCII, but vocab_size is "
                    f"{self.model.vocab_size}; set EVAL_PERIOD to 0"
                )
        first_last = self.profile_steps
        whole = all(isinstance(step, int) and not isinstance(step, bool) for step in first_last)
        if first_last and (not whole or len(first_last) != 2 or not 1 <= first_last[0] <= first_last[1]):
            raise ConfigError(
                f"PROFILE_STEPS is {first_last!r}; write (n, m), the first and the last step, from 1 on: (11, 13)"
            )

    def _check_rows(self) -> None:
        """Every device has the same number of rows in every microbatch."""
        data, fsdp, _ = self.mesh_sizes
        unit = math.prod((data, fsdp, self.microbatches))
        if self.batch_size % unit:
            parts = [f"{self.microbatches} microbatches"] * (self.microbatches > 1)
            parts += [f"data x fsdp = {data * fsdp} devices"] * (data * fsdp > 1)
            raise ConfigError(
                f"BATCH_SIZE {self.batch_size} does not divide over {' of '.join(parts)}; "
                f"use {_nearest_multiples(self.batch_size, unit)}"
            )


def check_sequence_length(length: int, block_size: int) -> None:
    """Raises `ConfigError` unless `length` (tokens) is a positive multiple of `block_size`."""
    if length > 0 and length % block_size == 0:
        return
    use = _nearest_multiples(length, block_size)
    raise ConfigError(f"sequence length {length} is not a multiple of block_size {block_size}; use {use}")
