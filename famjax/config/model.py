"""Settings of a model and its memory. Every variant of the paper is a value of a field here."""

import dataclasses
import json
import math
from typing import Any

from famjax.config.checks import ConfigError, at_least, check_types, known_fields, nearest_multiples, one_of
from famjax.config.memory import LAYER_KINDS, MemoryConfig

ACTIVATIONS = ("silu", "gelu", "gelu_exact", "relu")
NORMS = ("rmsnorm", "layernorm")
DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "dots", "full")
ATTENTION_KERNELS = ("auto", "xla", "fused", "interpret")
# A norm of zeros is 0, and its gradient, which has factors norm_eps^-1.5, is finite in float32: the first FAM update of
# parallel layers normalises its residual, zeros.
LEAST_NORM_EPS = 1e-20
KERNEL_LANES = 128  # the fused kernel tiles blocks by multiples of 128 tokens
# Fields of earlier versions that did not change a model's outputs; ignored in model.json.
RETIRED = ("attention_budget_mib", "layer_chunk")
# Beyond this base of RoPE, random position offsets of up to 2 pi times it would leave texts less than 2^30 positions.
MOST_BASE_OF_OFFSETS = 2**30 / (2 * math.pi)
ROPE_SCALINGS = ("none", "linear", "llama3")
LORA_PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding of queries and keys (`attention/rope.py`).

    Attributes:
      base: the pair (i, i + H/2) of a head is rotated by `position * base ** (-2i / H)`.
      scaling: `none`; `linear` divides all frequencies by `factor`; `llama3` divides frequencies with less
        than `low_frequency_factor` rotations in `original_length` tokens, keeps those with more than
        `high_frequency_factor`, and interpolates between them.
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
    """The settings that differ between layers.

    Attributes:
      rope: position embedding.
      memory: memory settings of this layer: a local layer has its own `token_window`, a layer without FAM
        a `fam_length` of 0.
      lora: whether the layer has low-rank updates.
    """

    rope: Rope
    memory: MemoryConfig
    lora: bool = False


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of projections (`nn/lora.py`; arXiv 2106.09685).

    Attributes:
      rank: r; 0 disables LoRA. The paper fine-tunes with 64.
      alpha: the low-rank update is scaled by alpha / rank; 0 means alpha = rank, a factor of 1.
      dropout: dropout rate of the inputs of the low-rank updates in training.
      projections: projections with a low-rank update; `gate` only if the model has a gated feed-forward layer.
      first_layer: the first layer with low-rank updates; pairs of layers before it are stored, but not used. Without
        FAM in those layers either (`fam_layers`), a step that unrolls the layers (`scan_layers` False) has no backward
        pass of tokens through them; only the prompt's own pass has one.
    """

    rank: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    projections: tuple[str, ...] = LORA_PROJECTIONS
    first_layer: int = 0

    def __post_init__(self) -> None:
        """Normalises `projections`: a list, as in JSON, becomes a tuple in the standard order."""
        if isinstance(self.projections, (list, tuple)) and set(self.projections) <= set(LORA_PROJECTIONS):
            ordered = tuple(name for name in LORA_PROJECTIONS if name in self.projections)
            object.__setattr__(self, "projections", ordered)

    @property
    def scale(self) -> float:
        """The factor alpha / rank of the low-rank update x A B."""
        return (self.alpha or self.rank) / self.rank

    def in_layer(self, index: int) -> bool:
        """Whether layer `index` has low-rank updates."""
        return self.rank > 0 and index >= self.first_layer

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        at_least("LORA_RANK", self.rank, 0)
        at_least("LoraConfig.alpha", self.alpha, 0)
        at_least("LoraConfig.first_layer", self.first_layer, 0)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"LoraConfig.dropout is {self.dropout}; it must be at least 0 and less than 1")
        for name in self.projections:
            one_of("LoraConfig.projections:", name, LORA_PROJECTIONS)
        if not self.projections:
            raise ConfigError("LoraConfig.projections is empty; name some, or set LORA_RANK to 0")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer with its memory.

    Attributes:
      vocab_size: rows of the embedding.
      num_layers, d_model, d_ff: L, D, E.
      num_heads, num_kv_heads: query heads and key/value heads; equal is multi-head, 1 is
        multi-query, between is grouped-query.
      head_dim: H; even, because RoPE rotates pairs.
      activation, gated_ff: `silu` and gated is SwiGLU, `gelu` and gated is GeGLU; `gelu` is the tanh
        approximation, `gelu_exact` the exact function.
      norm, norm_eps: normalisation before attention, before the feed-forward layer and at the end.
      norm_plus_one: norms multiply by 1 + weight instead of weight, as in Gemma.
      post_norms: also normalise the outputs of attention and feed-forward before they are added.
      parallel_layers: PaLM's layers: attention and feed-forward read the same normalised input, and both
        outputs are added to the residual. The first FAM update, which has no residual, then has no
        feed-forward part.
      qk_norm: RMS-normalise queries and keys of each head, with a learned scale [H].
      qkv_bias, output_bias, ff_bias: biases of the query, key and value projections, of attention's output
        projection, and of the feed-forward layer.
      attention_scale: factor of the attention scores; 0 is 1/sqrt(H).
      attention_cap, logit_cap: soft caps of attention scores and of logits: cap * tanh(x / cap); 0 is no cap.
      rope_base: RoPE's base in global layers; 10000 in the paper.
      rope_scaling, rope_factor, rope_low_frequency_factor, rope_high_frequency_factor,
        rope_original_length: see `Rope`.
      layer_pattern: kinds of layers, repeated over the layers: `global` layers see the whole window,
        `local` ones the last `local_window` tokens of it, the query's own included.
      local_window: exact window of local layers in tokens, at most what the memory segments hold.
      local_rope_base: RoPE's base in local layers, without scaling; 0 is that of global layers.
      tie_embeddings: use the embedding as the output projection.
      scale_embeddings: multiply token embeddings and FAM's prompt by sqrt(D).
      embedding_std: standard deviation of the initial embedding and of the initial FAM prompt.
      dtype: of activations; softmax, norms, FAM and the loss are always float32.
      param_dtype: of the stored weights, except FAM's prompt and LoRA, which are float32.
      scan_layers: compile one layer and scan over it (compile time independent of depth), or unroll
        (faster steps for shallow models).
      unroll_blocks: blocks per iteration of the scan over blocks: faster on a CPU, but slower to
        compile.
      remat: what the forward pass saves for the backward pass, which rematerialises the rest: `none` saves
        everything; `dots` the outputs of all matrix products; `minimal` those of products with weights
        (queries, keys, values, feed-forward), independent of the window; `full` only the input of each
        block's step, and rematerialises block by block.
      attention_kernel: the attention implementation in training and for whole documents: `xla` materialises
        the scores; `fused` is a TPU kernel that does not (`attention/fused.py`), for block sizes that are
        multiples of 128; `auto` uses `fused` if possible; `interpret` runs the fused kernel in interpret
        mode on any platform: very slow, for tests.
      memory: memory settings.
      lora: LoRA settings.
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
        """Converts `layer_pattern` to a tuple if it is a list, as in JSON."""
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

    def with_memory(self, **changes: Any) -> "ModelConfig":
        """Returns a copy with some of the memory's settings changed."""
        return dataclasses.replace(self, memory=dataclasses.replace(self.memory, **changes))

    def kind_of(self, index: int) -> str:
        """Returns the kind of layer `index` in `layer_pattern`: `global` or `local`."""
        return self.layer_pattern[index % len(self.layer_pattern)]

    def layer(self, index: int) -> LayerSettings:
        """Returns the settings of layer `index`, counted from 0."""
        local = self.kind_of(index) == "local"
        window = self.memory.token_window
        if local:
            window = min(window or self.local_window, self.local_window)
        memory = dataclasses.replace(
            self.memory, token_window=window, fam_length=self.memory.fam_length if self.has_fam(index) else 0
        )
        rope = Rope(self.local_rope_base) if local and self.local_rope_base else self.rope
        return LayerSettings(rope, memory, self.lora.in_layer(index))

    def has_fam(self, index: int) -> bool:
        """Whether a layer has feedback activations."""
        which = self.memory.fam_layers
        if not self.memory.fam_length:
            return False
        if which in LAYER_KINDS:
            return self.kind_of(index) == which
        return which == "all" or which[index % len(which)] == "+"

    @property
    def layers_with_fam(self) -> list[int]:
        """The layers that have feedback activations, counted from 0."""
        return [index for index in range(self.num_layers) if self.has_fam(index)]

    @property
    def is_noisy(self) -> bool:
        """Whether layers use random numbers in training: dropout of LoRA, or noise on FAM or its gates."""
        memory = self.memory
        on_fam = memory.fam_length and (memory.fam_noise or memory.fam_update_noise)
        return bool((self.lora.rank and self.lora.dropout) or on_fam)

    @property
    def layer_period(self) -> int:
        """The smallest number of layers after which their settings repeat; 1 if all layers are alike."""
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
            raise ConfigError(f"head_dim {self.head_dim} is odd: RoPE rotates pairs; use {self.head_dim + 1}")
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
                f"attention_kernel {self.attention_kernel!r} needs a block_size that is a multiple of {KERNEL_LANES}, "
                f"not {self.memory.block_size}; use {use}, or attention_kernel 'auto'"
            )
        at_least("norm_eps", self.norm_eps, LEAST_NORM_EPS)
        for name in ("embedding_std", "attention_scale", "attention_cap", "logit_cap"):
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
        self._check_unused()
        memory = self.memory
        is_shifted = memory.fam_length and memory.fam_position == "zero" and memory.random_position_offset
        if is_shifted and self.rope_base > MOST_BASE_OF_OFFSETS:
            raise ConfigError(
                f"random_position_offset {memory.random_position_offset} with rope_base {self.rope_base}: offsets up "
                f"to 2 pi rope_base do not fit into 32 bits; set random_position_offset to 0"
            )

    def _check_unused(self) -> None:
        """Raises `ConfigError` on a setting of scaled RoPE or of local layers in a model that has none."""
        llama3, local = self.rope_scaling == "llama3", "local" in self.layer_pattern
        of_llama3, of_local = "rope_scaling 'llama3'", "local layers in layer_pattern"
        for name, is_used, by in (
            ("rope_factor", self.rope_scaling != "none", "rope_scaling 'linear' or 'llama3'"),
            ("rope_low_frequency_factor", llama3, of_llama3), ("rope_high_frequency_factor", llama3, of_llama3),
            ("rope_original_length", llama3, of_llama3),
            ("local_window", local, of_local), ("local_rope_base", local, of_local),
        ):  # fmt: skip
            value, usual = getattr(self, name), getattr(ModelConfig, name)
            if value != usual and not is_used:
                raise ConfigError(f"{name} {value} has no effect without {by}; add that, or use {usual}")

    def _check_layers(self) -> None:
        if not self.layer_pattern:
            raise ConfigError('layer_pattern is empty; use ("global",) for layers that are all alike')
        for kind in self.layer_pattern:
            one_of("layer_pattern:", kind, LAYER_KINDS)
        at_least("local_window", self.local_window, 1 if "local" in self.layer_pattern else 0)
        self.memory.validate()
        self.lora.validate()
        if self.lora.rank and self.lora.projections == ("gate",) and not self.gated_ff:
            raise ConfigError("LoraConfig.projections is `gate` alone, but the model is not gated; name others")
        if self.lora.rank and not self.lora.in_layer(self.num_layers - 1):
            raise ConfigError(
                f"LoraConfig.first_layer is {self.lora.first_layer}, but the model has only {self.num_layers} layers, "
                f"counted from 0; use at most {self.num_layers - 1}"
            )
        self.memory.check_model(self.attention_kernel, "local" in self.layer_pattern)
        if self.memory.fam_length and not self.layers_with_fam:
            raise ConfigError(
                f"fam_layers {self.memory.fam_layers!r} selects none of the {self.num_layers} layers; use `all`, or "
                f"set fam_length to 0"
            )

    def to_json(self) -> str:
        """Returns the full configuration as the text of `model.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Parses the text of `to_json`. A missing field has its default; an unknown one raises `ConfigError`."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"model.json is not JSON ({error}); is the file complete?") from None
        if not isinstance(fields, dict):
            raise ConfigError("model.json is not a JSON object; is it a model's configuration?")
        memory, lora = fields.pop("memory", {}), fields.pop("lora", {})
        for name in RETIRED:
            fields.pop(name, None)
        for name, section in (("memory", memory), ("lora", lora)):
            if not isinstance(section, dict):
                raise ConfigError(f"model.json: `{name}` is not a JSON object; is the file complete?")
        config = cls(
            **known_fields(cls, fields),
            memory=MemoryConfig(**known_fields(MemoryConfig, memory)),
            lora=LoraConfig(**known_fields(LoraConfig, lora)),
        )
        config.validate()
        return config
