"""What a model is and what its memory: every variant of the paper is a value of a field here."""

import dataclasses
import json

from famjax.config.checks import ConfigError, at_least, check_types, known_fields, nearest_multiples, one_of
from famjax.config.memory import LAYER_KINDS, MemoryConfig

ACTIVATIONS = ("silu", "gelu", "gelu_exact", "relu")
NORMS = ("rmsnorm", "layernorm")
DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "dots", "full")
ATTENTION_KERNELS = ("auto", "xla", "fused", "interpret")
KERNEL_LANES = 128  # the fused kernel cuts blocks into tiles of a multiple of so many tokens
# Fields of earlier versions that changed how a model was computed, never what.
RETIRED = ("attention_budget_mib", "layer_chunk")
ROPE_SCALINGS = ("none", "linear", "llama3")
LORA_PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")


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
        check_types(self)
        at_least("LORA_RANK", self.rank, 0)
        at_least("LoraConfig.alpha", self.alpha, 0)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"LoraConfig.dropout is {self.dropout}; it must be at least 0 and less than 1")
        for name in self.projections:
            one_of("LoraConfig.projections:", name, LORA_PROJECTIONS)
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
      unroll_blocks: blocks of a layer's scan that are unrolled into one turn of its loop: faster on a CPU, for a
        longer compilation.
      remat: what the forward pass keeps of a layer for the backward pass, which computes the rest
        again: `none` keeps everything; `dots` the results of all matrix products; `minimal` those of
        products with weights (queries, keys, values, feed-forward), whatever the window; `full` only
        what enters each block's step, and recomputes block by block.
      attention_kernel: the attention implementation, in training and whole documents: `xla` computes arrays
        of scores; `fused` is a kernel for TPU that computes none (`attention/fused.py`), for blocks of a multiple
        of 128 tokens; `auto` uses `fused` where it can; `interpret` is the fused kernel on any platform,
        step by step: very slow, for tests.
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
    unroll_blocks: int = 1
    remat: str = "none"
    attention_kernel: str = "auto"
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
    def is_noisy(self) -> bool:
        """A training step draws random numbers within the layers: dropout of LoRA, or noise on FAM."""
        return bool((self.lora.rank and self.lora.dropout) or (self.memory.fam_length and self.memory.fam_noise))

    @property
    def layer_period(self) -> int:
        """The least number of layers after which their settings repeat; 1 where all layers are alike."""
        layers = [self.layer(index) for index in range(self.num_layers)]
        alike = lambda period: all(layers[i] == layers[i - period] for i in range(period, self.num_layers))
        return next(period for period in range(1, self.num_layers + 1) if alike(period))

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        for name in ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim"):
            at_least(name, getattr(self, name), 1)
        if self.num_heads % self.num_kv_heads:
            use = nearest_multiples(self.num_heads, self.num_kv_heads)
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}; use {use}, so "
                f"that every key/value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd: RoPE turns pairs; use {self.head_dim + 1}")
        one_of("activation", self.activation, ACTIVATIONS)
        one_of("norm", self.norm, NORMS)
        one_of("dtype", self.dtype, DTYPES)
        one_of("param_dtype", self.param_dtype, DTYPES)
        one_of("remat", self.remat, REMAT_POLICIES)
        at_least("unroll_blocks", self.unroll_blocks, 1)
        one_of("attention_kernel", self.attention_kernel, ATTENTION_KERNELS)
        if self.attention_kernel in ("fused", "interpret") and self.memory.block_size % KERNEL_LANES:
            use = nearest_multiples(self.memory.block_size, KERNEL_LANES)
            raise ConfigError(
                f"attention_kernel {self.attention_kernel!r} takes blocks of a multiple of {KERNEL_LANES} tokens, not "
                f"block_size {self.memory.block_size}; use {use}, or attention_kernel 'auto'"
            )
        for name in ("norm_eps", "embedding_std", "attention_scale", "attention_cap", "logit_cap"):
            at_least(name, getattr(self, name), 0)
        self._check_rope()
        self._check_layers()

    def _check_rope(self) -> None:
        if self.rope_base <= 1:
            raise ConfigError(f"rope_base is {self.rope_base}; it must be greater than 1")
        if self.local_rope_base and self.local_rope_base <= 1:
            raise ConfigError(f"local_rope_base is {self.local_rope_base}; it must be greater than 1, or 0")
        one_of("rope_scaling", self.rope_scaling, ROPE_SCALINGS)
        at_least("rope_factor", self.rope_factor, 1)
        at_least("rope_original_length", self.rope_original_length, 1)
        if self.rope_high_frequency_factor <= self.rope_low_frequency_factor:
            raise ConfigError(
                f"rope_high_frequency_factor {self.rope_high_frequency_factor} must be greater than "
                f"rope_low_frequency_factor {self.rope_low_frequency_factor}"
            )

    def _check_layers(self) -> None:
        if not self.layer_pattern:
            raise ConfigError('layer_pattern is empty; use ("global",) for layers that are all alike')
        for kind in self.layer_pattern:
            one_of("layer_pattern:", kind, LAYER_KINDS)
        at_least("local_window", self.local_window, 1 if "local" in self.layer_pattern else 0)
        self.memory.validate()
        self.lora.validate()
        if self.lora.rank and self.lora.projections == ("gate",) and not self.gated_ff:
            raise ConfigError("LoraConfig.projections has `gate` alone, but the model has no gate; name others")
        self.memory.check_model(self.attention_kernel, self.local_window if "local" in self.layer_pattern else 0)
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
        for name in RETIRED:
            fields.pop(name, None)
        for name, section in (("memory", memory), ("lora", lora)):
            if not isinstance(section, dict):
                raise ConfigError(f"model.json: `{name}` does not hold an object; is the file whole?")
        config = cls(
            **known_fields(cls, fields),
            memory=MemoryConfig.from_fields(memory),
            lora=LoraConfig(**known_fields(LoraConfig, lora)),
        )
        config.validate()
        return config
