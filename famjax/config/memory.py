"""Settings of a model's memory. Every variant of the paper, and every other memory, is a value of a field here."""

import dataclasses
from typing import Any

from famjax.config.checks import ConfigError, at_least, check_types, one_of, probability, steps

MEMORY_KINDS = ("fam", "sinks", "infini", "deltanet", "rmt", "autocompressor", "armt", "retrieval")
# Kinds with memory tokens around each block, which pass through all layers; there is no window of previous blocks.
_OF_TOKENS = ("rmt", "autocompressor", "armt")
# Settings that apply only to these kinds of memory; all other settings belong to the window or to FAM.
_OF_KINDS = {
    "sinks": ("sinks",), "infini_delta": ("infini",), "memory_tokens": _OF_TOKENS, "memory_key_dim": ("armt",),
    "summary_blocks": ("autocompressor",), "retrieval_blocks": ("retrieval",), "retrieval_top_k": ("retrieval",),
}  # fmt: skip
_OF_FAM = (
    "fam_position", "fam_init", "previous_fams", "fam_layers", "random_state_passing", "random_state_passing_from",
    "fam_update", "zero_first_residual", "fam_max_rms", "fam_noise", "fam_update_noise", "fam_gate",
    "fam_diversity_loss", "fam_reconstruction_loss", "fam_gradient_blocks",
)  # fmt: skip
_NOT_NEGATIVE = (
    "memory_segments", "fam_length", "token_window", "fam_max_rms", "fam_noise", "fam_update_noise",
    "fam_diversity_loss", "fam_reconstruction_loss", "fam_gradient_blocks",
)  # fmt: skip
# Settings that a loaded model can take other values of.
OVERRIDES = ("block_size", "memory_segments", "fam_length")
FAM_POSITIONS = ("last", "float", "zero")
FAM_INITS = ("prompt", "prefix")
FAM_UPDATES = ("feedback", "gated", "static")
SEGMENTS_HOLD = ("inputs", "outputs")
LAYER_KINDS = ("global", "local")


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Block sliding window attention and the feedback attention memory (paper sections 2 and 3).

    Attributes:
      block_size: S, tokens of a block.
      memory_segments: M, number of previous blocks whose keys and values are kept.
      fam_length: F, feedback activations per layer; 0 is plain BSWA, and settings of FAM have no effect.
      kind: memory of a layer besides its window: `fam` (the paper's; none if `fam_length` is 0), or another memory of
        `attention/memories/`, with a `fam_length` of 0: `sinks` (StreamingLLM), `infini` (Infini-attention),
        `deltanet` (the gated delta rule), `rmt` (Recurrent Memory Transformer), `autocompressor` (AutoCompressors),
        `armt` (Associative Recurrent Memory Transformer), `retrieval` (the best-scoring blocks that have left the
        window: an upper bound, whose state grows with the text).
      sinks: for `sinks`: number of a document's first tokens that stay visible.
      memory_tokens: for `rmt` and `autocompressor`: n, number of tokens that pass from block to block; for `armt`: n,
        number of tokens after each block that write into the layers' matrices.
      memory_key_dim: for `armt`: width of the matrices' queries and keys, 6 features for each (DPFP-3).
      summary_blocks: for `autocompressor`: C, number of blocks whose memory tokens are kept and read; those of older
        blocks are dropped.
      retrieval_blocks: for `retrieval`: number of blocks that are kept; the oldest is dropped.
      retrieval_top_k: for `retrieval`: number of these blocks that a query attends to.
      infini_delta: for `infini`: update the matrix with the delta rule, that is with the difference between the values
        and what it recalls for their keys.
      fam_position: RoPE positions of FAM: `last` (the last F positions of the block that it compressed), `float`
        (fractional positions between two blocks), `zero` (always 0).
      fam_init: `prompt` (one learned [F, D], propagated through the layers by a forward pass) or `prefix` (a learned
        [F, D] per layer).
      previous_fams: P, number of previous blocks whose FAM is attended.
      fam_layers: layers with FAM: `all`, `global` or `local` (`ModelConfig.layer_pattern`), or a pattern of + (with)
        and - (without) that is repeated over the layers, such as `-----+`. The others are plain BSWA, and also
        propagate the prompt.
      token_window: exact number of tokens that a query sees, itself included (TransformerXL: BSWA with a mask for keys
        beyond the window); 0 is the whole window.
      stop_gradient: stop gradients into memory segments (an ablation that degrades results).
      random_position_offset: probability of a position offset, per row and training step. It has no
        effect unless `fam_position` is `zero`, since with RoPE scores depend on position differences. The paper has it.
      random_state_passing: probability per training step that all rows start from the last FAM of the previous step
        instead of the learned prompt.
      random_state_passing_from: first step with random state passing.
      fam_update: the new FAM after a full block, from F and its update U. `feedback`: F + U, the paper's. `gated`, a
        departure: (1 - g) F + g U, where each layer computes g in [0, 1] from F and U, so that FAM does not grow,
        keeps what it holds and can still be rewritten. `static`: FAM's queries are always the prompt, and the past is
        only attended to (the paper's static summary, an ablation that fails).
      segments_hold: what the keys and values of memory segments are projected from: a layer's `inputs`, or its
        `outputs` (the paper's feedback memory segments, an ablation that fails).
      zero_first_residual: the first update adds no residual, as in the paper. False, a departure, adds the initial
        FAM, as later updates add the previous one.
      fam_max_rms: a departure from the paper, 0 (off) by default: new feedback activations are scaled down to at most
        this root mean square over D, so that FAM's growth is bounded.
      fam_gate: a departure from the paper, off by default: every layer has a gate g per head, initially 0, and a
        token's attention output is (1 - g) times that without FAM plus g times that with FAM. At 0 the model is the
        one without FAM, at 1 the paper's. Imported models start at 0, since an untrained FAM degrades them.
      fam_noise: a departure from the paper, 0 (off) by default: standard deviation of Gaussian noise that is added to
        new feedback activations in training.
      fam_update_noise: of gated updates, 0 (off) by default: standard deviation of Gaussian noise that is added to the
        gates' logits in training, so that a gate which is to stay closed learns to be far from opening.
      fam_diversity_loss: weight of an auxiliary loss of training, 0 (off) by default: its sum over layers, blocks and
        rows, divided by their number. It falls as FAM's queries together attend to more of a block
        (`attention/auxiliary.py`; the paper found no gain). The logged loss does not contain it.
      fam_reconstruction_loss: likewise. It falls as what a block's queries read from the new FAM gets closer to what
        they read from the block.
      fam_gradient_blocks: N, 0 (off) by default: in training, FAM has no gradient at every Nth block of a document
        (truncated backpropagation through time), so one through FAM spans at most N updates; the memory itself lasts.
        Memory segments keep their gradient.
    """

    block_size: int = 1024
    memory_segments: int = 3
    fam_length: int = 64
    kind: str = "fam"
    sinks: int = 4
    memory_tokens: int = 8
    summary_blocks: int = 8
    memory_key_dim: int = 64
    retrieval_blocks: int = 64
    retrieval_top_k: int = 2
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
    fam_update: str = "feedback"
    segments_hold: str = "inputs"
    zero_first_residual: bool = True
    fam_max_rms: float = 0.0
    fam_noise: float = 0.0
    fam_update_noise: float = 0.0
    fam_gate: bool = False
    fam_diversity_loss: float = 0.0
    fam_reconstruction_loss: float = 0.0
    fam_gradient_blocks: int = 0

    @property
    def has_gate(self) -> bool:
        """Whether the model has FAM with a gate on its attention (`fam_gate`)."""
        return self.fam_gate and self.fam_length > 0

    @property
    def gates_updates(self) -> bool:
        """Whether the model has FAM with gated updates (`fam_update`)."""
        return self.fam_update == "gated" and self.fam_length > 0

    @property
    def window(self) -> int:
        """Maximum number of tokens that a query sees, itself included, without FAM or another memory."""
        return self.token_window or (self.memory_segments + 1) * self.block_size

    def unused(self, field: str) -> str:
        """Returns the reason if a setting has no effect on the training of this memory, else an empty string."""
        kinds = _OF_KINDS.get(field)
        if kinds and self.kind not in kinds:
            return f"it belongs to kind {' and '.join(map(repr, kinds))}, and this is {self.kind!r}"
        if field in _OF_FAM and not self.fam_length:
            return "fam_length is 0: there is no FAM"
        if field in ("stop_gradient", "segments_hold") and not self.memory_segments:
            return "memory_segments is 0: there is no segment"
        if field == "random_position_offset" and self.fam_position != "zero":
            return f"with fam_position {self.fam_position!r} all scores depend on differences of positions"
        if field == "random_state_passing_from" and not self.random_state_passing:
            return "random_state_passing is 0"
        return ""

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        for name in ("block_size", "previous_fams"):
            at_least(name, getattr(self, name), 1)
        for name in _NOT_NEGATIVE:
            at_least(name, getattr(self, name), 0)
        if self.fam_length > self.block_size:
            raise ConfigError(
                f"fam_length {self.fam_length} is longer than block_size {self.block_size}: FAM carries the last "
                f"positions of a block; use a fam_length of at most {self.block_size}"
            )
        self._check_kind()
        one_of("fam_position", self.fam_position, FAM_POSITIONS)
        one_of("fam_init", self.fam_init, FAM_INITS)
        one_of("fam_update", self.fam_update, FAM_UPDATES)
        one_of("segments_hold", self.segments_hold, SEGMENTS_HOLD)
        if self.segments_hold == "outputs" and not self.memory_segments:
            raise ConfigError(
                "segments_hold 'outputs' with memory_segments 0: there is no segment; use 'inputs', or more segments"
            )
        if self.fam_update == "static" and not self.fam_length:
            raise ConfigError(
                "fam_update 'static' with fam_length 0: there is no FAM; use 'feedback', or a longer fam_length"
            )
        if not self.fam_layers or self.fam_layers.strip("+-"):
            one_of("fam_layers", self.fam_layers, ("all", *LAYER_KINDS))
        longest = self.memory_segments * self.block_size + 1
        if self.token_window > longest:
            raise ConfigError(
                f"token_window {self.token_window} is more than every token of a block can see: with "
                f"{self.memory_segments} memory segments of {self.block_size} use at most {longest}, or "
                f"memory_segments {-(-(self.token_window - 1) // self.block_size)}"
            )
        probability("random_position_offset", self.random_position_offset)
        probability("random_state_passing", self.random_state_passing)
        steps("random_state_passing_from", self.random_state_passing_from, 0)
        if self.fam_update_noise and self.fam_update != "gated":
            raise ConfigError(
                f"fam_update_noise {self.fam_update_noise} with fam_update {self.fam_update!r}: only gated updates "
                "have gates; use 0, or fam_update 'gated'"
            )

    def _check_kind(self) -> None:
        """Raises `ConfigError` if another memory is combined with FAM, or its settings are invalid."""
        one_of("MemoryConfig.kind", self.kind, MEMORY_KINDS)
        if self.kind == "fam":
            return
        if self.fam_length:
            raise ConfigError(
                f"fam_length {self.fam_length} with kind {self.kind!r}: a layer has one memory; set fam_length "
                f"(FAM_LENGTH) to 0, or kind to 'fam'"
            )
        if self.fam_layers != "all":
            raise ConfigError(f"fam_layers {self.fam_layers!r} with kind {self.kind!r}: all layers have it; use 'all'")
        for name, usual in (("fam_update", "feedback"), ("segments_hold", "inputs")):
            if getattr(self, name) != usual:
                raise ConfigError(
                    f"{name} {getattr(self, name)!r} with kind {self.kind!r}: only kind 'fam' has that; use {usual!r}"
                )
        for name in ("sinks", "memory_tokens", "summary_blocks", "memory_key_dim"):
            at_least(name, getattr(self, name), 1)
        if self.kind in _OF_TOKENS:
            for name in ("memory_segments", "token_window"):
                if getattr(self, name):
                    raise ConfigError(
                        f"{name} {getattr(self, name)} with kind {self.kind!r}: a block sees its memory tokens and "
                        f"itself; set {name} to 0"
                    )
            self._check_most("memory_tokens", "block_size", "memory is to be smaller than what it stands for")
        if self.kind == "retrieval":
            at_least("retrieval_top_k", self.retrieval_top_k, 1)
            if self.retrieval_blocks <= self.memory_segments:
                raise ConfigError(
                    f"retrieval_blocks {self.retrieval_blocks} with memory_segments {self.memory_segments}: these are "
                    f"all in the window; use at least {self.memory_segments + 1}"
                )
            self._check_most("retrieval_top_k", "retrieval_blocks", "no more than are kept can be chosen")
        if self.kind == "sinks":
            self._check_most("sinks", "block_size", "sinks are tokens of the first block")

    def _check_most(self, name: str, most: str, why: str) -> None:
        """Raises `ConfigError` if the setting `name` is more than the setting `most`."""
        value, bound = getattr(self, name), getattr(self, most)
        if value > bound:
            raise ConfigError(f"{name} {value} with {most} {bound}: {why}; use at most {bound}")

    def check_model(self, attention_kernel: str, has_local_layers: bool) -> None:
        """Raises `ConfigError` unless the memory supports a model's attention kernel and local layers."""
        if self.kind not in ("sinks", "retrieval", *_OF_TOKENS):
            return
        if self.token_window:
            raise ConfigError(
                f"token_window {self.token_window} with kind {self.kind!r}, which counts in whole blocks; set "
                f"token_window to 0, and the window by memory_segments"
            )
        if has_local_layers:
            raise ConfigError(
                f"local layers in layer_pattern with kind {self.kind!r}, whose layers all see whole blocks; use "
                f'layer_pattern ("global",)'
            )
        if attention_kernel in ("fused", "interpret"):
            raise ConfigError(
                f"attention_kernel {attention_kernel!r} with kind {self.kind!r}: the kernel has no place for it; use "
                f"'auto' or 'xla'"
            )


def memory_overrides(settings: Any) -> dict[str, Any]:
    """Returns the attributes of `OVERRIDES` that are not None, by name."""
    return {name: value for name in OVERRIDES if (value := getattr(settings, name)) is not None}
