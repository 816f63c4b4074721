"""How the next token is chosen. Imports no jax, so that mistakes are found before anything is loaded."""

import dataclasses
import math

from famjax.config import ConfigError

# Last tokens that a session knows: what the repetition penalty concerns, and the longest stop sequence.
RECENT = 128


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the model's scores, applied in this order.

    Attributes:
      repetition_penalty: scores of recent tokens are divided by it (multiplied where negative), so
        that values above 1 make repetition less likely; 1 does nothing.
      temperature: scores are divided by it; 0 takes the best token (greedy), whatever follows.
      top_k: only the k best tokens may be drawn; 0 allows all.
      top_p: only the smallest set of best tokens whose probabilities reach p may be drawn; 1 allows all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"temperature is {self.temperature:g}; it must be 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p:g}; it must be above 0 and at most 1 (all tokens)")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty:g}; it must be a positive number, 1 does nothing"
            )
