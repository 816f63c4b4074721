"""Sampling settings. Does not import jax, so that flags can be checked before anything is loaded."""

import dataclasses
import numbers
from typing import Any

from famjax.config import ConfigError

# Number of recent tokens that a session stores: the range of the repetition penalty, and the maximum length of a stop
# sequence.
RECENT = 128
# Allowed absolute values of settings that are not 0: in float32, they and their reciprocals are neither 0 nor infinite.
FLOATS = (1e-30, 1e30)
# Maximum number of tokens of an answer, and of top-k: both are int32 on the device.
MOST_TOKENS = 2**31 - 1


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Raises `ConfigError` unless the value is a whole number, not a bool, from `least` to `most`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise ConfigError(f"{name} is {value}; it must be {bound}")


def check_float(name: str, value: Any) -> None:
    """Raises `ConfigError` unless the value is a number, not a bool, and its size is 0 or within `FLOATS`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number:
        raise ConfigError(f"{name} is {value!r}; it must be a number")
    least, most = FLOATS
    if value != 0 and not least <= abs(value) <= most:
        raise ConfigError(f"{name} is {value}; it must be 0, or {least:g} to {most:g}")


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
        for name in ("temperature", "top_p", "repetition_penalty"):
            check_float(name, getattr(self, name))
        check_whole("top_k", self.top_k, 0, MOST_TOKENS)
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (all tokens)")
        if self.repetition_penalty <= 0:
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty}; it must be a positive number; 1 disables it"
            )
