"""What a model's memory is: every variant of the paper, and every other memory, is a value of a field here."""

import dataclasses
from typing import Any

from famjax.config.checks import ConfigError, at_least, check_types, known_fields, one_of, probability

MEMORY_KINDS = ("fam", "sinks", "infini", "deltanet")
FAM_POSITIONS = ("last", "float", "zero")
FAM_INITS = ("prompt", "prefix")
LAYER_KINDS = ("global", "local")


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Block sliding window attention and the feedback attention memory (paper sections 2 and 3).

    Attributes:
      block_size: S, tokens of a block.
      memory_segments: M, how many previous blocks' keys and values are kept.
      fam_length: F, feedback activations of each layer; 0 is plain BSWA.
      kind: what a layer remembers beside its window: `fam` (the paper's, or nothing if `fam_length` is 0), or another
        memory of `attention/memories/`, with a `fam_length` of 0: `sinks` (StreamingLLM), `infini`
        (Infini-attention), `deltanet` (the gated delta rule).
      sinks: of kind `sinks`: how many of a document's first tokens stay.
      infini_delta: of kind `infini`: its matrix takes up what it does not recall yet (the delta rule), or all.
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
      random_state_passing_from: steps before which this does not happen.
      zero_first_residual: the paper's first update, which adds no residual. False is a departure from the paper:
        the first update adds the initial FAM, as every later one adds the FAM before it.
      fam_max_rms: a departure from the paper, 0 (off) by default: each new feedback activation whose root mean square
        over D is more than this is scaled down to it, so that FAM does not grow without end.
      fam_gate: a departure from the paper, off by default: every layer has a weight g for each head, which starts at 0,
        and a token's attention is (1 - g) of that without FAM and g of that with it. At 0 the model is the one without
        FAM; at 1 it is the paper's. A pretrained model that is given a memory starts there, since a FAM
        that was never trained destroys it.
      fam_noise: a departure from the paper, 0 by default: in training, the standard deviation of Gaussian noise that is
        added to each new feedback activation.
    """

    block_size: int = 1024
    memory_segments: int = 3
    fam_length: int = 64
    kind: str = "fam"
    sinks: int = 4
    infini_delta: bool = True
    fam_position: str = "last"
    fam_init: str = "prompt"
    previous_fams: int = 1
    fam_layers: str = "all"
    token_window: int = 0
    stop_gradient: bool = False
    random_position_offset: float = 0.5
    random_state_passing: float = 0.8
    random_state_passing_from: int = 0
    zero_first_residual: bool = True
    fam_max_rms: float = 0.0
    fam_noise: float = 0.0
    fam_gate: bool = False

    @property
    def has_gate(self) -> bool:
        """There is a FAM, and a gate before it."""
        return self.fam_gate and self.fam_length > 0

    @property
    def window(self) -> int:
        """Tokens that the last token of a block sees at most, itself included."""
        return self.token_window or (self.memory_segments + 1) * self.block_size

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        at_least("block_size", self.block_size, 1)
        at_least("memory_segments", self.memory_segments, 0)
        at_least("fam_length", self.fam_length, 0)
        if self.fam_length > self.block_size:
            raise ConfigError(
                f"fam_length {self.fam_length} is longer than block_size {self.block_size}: FAM carries the last "
                f"positions of a block; use a fam_length of at most {self.block_size}"
            )
        self._check_kind()
        one_of("fam_position", self.fam_position, FAM_POSITIONS)
        one_of("fam_init", self.fam_init, FAM_INITS)
        at_least("previous_fams", self.previous_fams, 1)
        if not self.fam_layers or self.fam_layers.strip("+-"):
            one_of("fam_layers", self.fam_layers, ("all", *LAYER_KINDS))
        at_least("token_window", self.token_window, 0)
        longest = self.memory_segments * self.block_size + 1
        if self.token_window > longest:
            raise ConfigError(
                f"token_window {self.token_window} is more than every token of a block can see: with "
                f"{self.memory_segments} memory segments of {self.block_size} use at most {longest}, or "
                f"memory_segments {-(-(self.token_window - 1) // self.block_size)}"
            )
        probability("random_position_offset", self.random_position_offset)
        probability("random_state_passing", self.random_state_passing)
        at_least("random_state_passing_from", self.random_state_passing_from, 0)
        at_least("fam_max_rms", self.fam_max_rms, 0)
        at_least("fam_noise", self.fam_noise, 0)

    def _check_kind(self) -> None:
        """Memories that stand beside the window do not go together with FAM."""
        one_of("MemoryConfig.kind", self.kind, MEMORY_KINDS)
        if self.kind == "fam":
            return
        if self.fam_length:
            raise ConfigError(
                f"fam_length {self.fam_length} with kind {self.kind!r}: a layer has one memory; set fam_length "
                f"(FAM_LENGTH) to 0, or kind to 'fam'"
            )
        if self.fam_layers != "all":
            raise ConfigError(f"fam_layers {self.fam_layers!r} with kind {self.kind!r}: every layer has it; use 'all'")
        at_least("sinks", self.sinks, 1)
        if self.kind == "sinks" and self.sinks > self.block_size:
            raise ConfigError(
                f"sinks {self.sinks} with block_size {self.block_size}: sinks are tokens of the first block; use at "
                f"most {self.block_size}"
            )

    def check_model(self, attention_kernel: str, local_window: int) -> None:
        """Raises `ConfigError` if a model with this kernel and local layers of this window cannot have the memory."""
        if self.kind != "sinks":
            return
        for name, window in (("token_window", self.token_window), ("local_window", local_window)):
            if window:
                raise ConfigError(
                    f"{name} {window} with kind 'sinks': sinks stand before whole blocks; set {name} to 0, and the "
                    f"window by memory_segments"
                )
        if attention_kernel in ("fused", "interpret"):
            raise ConfigError(
                f"attention_kernel {attention_kernel!r} with kind 'sinks': the kernel has no place for sinks; use "
                f"'auto' or 'xla'"
            )

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "MemoryConfig":
        """Of settings by name. A missing one has its default; an unknown one raises `ConfigError`."""
        return cls(**known_fields(cls, fields))
