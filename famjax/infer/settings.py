"""Sampling settings. Does not import jax, so that flags can be checked before anything is loaded."""

import dataclasses
import math

from famjax.config import ConfigError

# Number of recent tokens that a session stores: the range of the repetition penalty, and the maximum length of a stop
# sequence.
RECENT = 128


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is sampled from the logits: penalty, temperature, top-k and top-p, in this order.

    Attributes:
      repetition_penalty: logits of recent tokens are divided by it (multiplied if negative), so
        that values above 1 make repetition less likely; 1 disables it.
      temperature: logits are divided by it; 0 is greedy, and top-k and top-p have no effect.
      top_k: sample from the k most likely tokens; 0 allows all.
      top_p: nucleus sampling: the smallest set of tokens with total probability p; 1 allows all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def validate(self) -> None:
        """Raises `ConfigError` on the first invalid setting."""
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"temperature is {self.temperature:g}; it must be 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p:g}; it must be above 0 and at most 1 (all tokens)")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty:g}; it must be a positive number; 1 disables it"
            )
