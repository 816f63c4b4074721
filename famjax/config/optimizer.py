"""Settings of the optimizer, and which weights are trained."""

import dataclasses
import fnmatch
from typing import Any

from famjax.config.checks import ConfigError, at_least, check_types, finite, one_of, probability, steps

OPTIMIZERS = ("adamw", "adafactor", "lion")
SCHEDULES = ("constant", "linear", "cosine", "rsqrt")
TRAINED = ("auto", "all", "lora", "prompt")
# Prefixes of the paths of the memory's own weights: FAM's, those in layers, and those of other memories.
FAM = "fam/"
MEMORY = (FAM, "layers/memory/", "memory/")
LORA = "layers/lora/"  # prefix of the paths of LoRA's pairs
PARAMETER_SETTINGS = {"learning_rate": (int, float), "weight_decay": (bool,), "frozen": (bool,)}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer with warm-up, decay and gradient clipping (`train/optim.py`).

    Attributes:
      name: `adamw`, `adafactor` or `lion`. The paper fine-tunes with `adafactor`, beta1 0.9,
        beta2 0.99 and a `constant` schedule.
      learning_rate: peak learning rate, at the end of the warm-up.
      schedule: after the warm-up: `constant`, `linear` or `cosine` to zero at the last step, or `rsqrt`,
        the peak times sqrt(warmup_steps / step), which does not depend on the last step.
      warmup_steps: steps of linear warm-up from zero; a run with fewer steps warms up until its last one.
      beta1: decay of the first moment (momentum).
      beta2: decay of the second moment; for `lion`, decay of its only momentum.
      weight_decay: weight decay, except of norms, biases and the memory's own weights.
      clip_norm: gradients are clipped to this global norm; 0 disables clipping.
      prompt_learning_rate: learning rate of the memory's own weights (`fam/*`, `layers/memory/*`, `memory/*`), as a
        multiple of `learning_rate`.
      trained: `all` weights; `lora`: LoRA and the memory's own weights; `prompt`: the latter only (prompt tuning).
        `auto` is `lora` if the model has LoRA, else `all`. Other weights are frozen, unless `parameters`
        overrides it.
      parameters: settings by patterns of weight paths (docs/architecture.md), in which `*` matches anything:
        {"layers/*": {"frozen": True}, "embedding": {"learning_rate": 0.1}}. `learning_rate` is a multiple
        of the run's, `weight_decay` is on or off, `frozen` weights are not updated and cost neither
        gradient nor optimizer memory. Later patterns override earlier ones, and all override the defaults:
        no decay of norm scales, biases and the memory's own weights, and `prompt_learning_rate` for the latter.
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
        check_types(self)
        one_of("optimizer", self.name, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("OptimizerConfig.trained", self.trained, TRAINED)
        for name in ("learning_rate", "weight_decay", "clip_norm", "prompt_learning_rate"):
            at_least(name, getattr(self, name), 0)
        steps("warmup_steps", self.warmup_steps, 0)
        for name in ("beta1", "beta2"):
            probability(name, getattr(self, name))
            if getattr(self, name) == 1:
                raise ConfigError(f"{name} is 1.0, with which a moment never changes; use less, such as 0.99")
        for pattern, settings in self.parameters.items():
            if not isinstance(pattern, str):
                raise ConfigError(f'parameters has {pattern!r}; it must be a pattern in quotes, such as "fam/*"')
            if not isinstance(settings, dict):
                raise ConfigError(f'parameters {pattern!r}: {settings!r} must be settings, such as {{"frozen": True}}')
            for name, value in settings.items():
                one_of(f"parameters {pattern!r}:", name, tuple(PARAMETER_SETTINGS))
                kinds = PARAMETER_SETTINGS[name]
                if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                    wanted = "True or False" if bool in kinds else "a number"
                    raise ConfigError(f"parameters {pattern!r}: {name} is {value!r}; it must be {wanted}")
                if name == "learning_rate":
                    finite(f"parameters {pattern!r}: learning_rate", value)
                    at_least(f"parameters {pattern!r}: learning_rate", value, 0)

    def settings_of(self, path: str) -> dict[str, Any]:
        """Returns `learning_rate`, `weight_decay` and `frozen` of a weight by its path (`layers/attention/query`)."""
        also = {"lora": (LORA, *MEMORY), "prompt": MEMORY}.get(self.trained, ("",))
        frozen = not path.startswith(also)
        settings: dict[str, Any] = {"learning_rate": 1.0, "weight_decay": True, "frozen": frozen}
        table: dict[str, dict[str, Any]] = {
            "*/scale": {"weight_decay": False},
            "*_bias": {"weight_decay": False},
            **{f"{path}*": {"weight_decay": False, "learning_rate": self.prompt_learning_rate} for path in MEMORY},
        }
        for pattern, found in [*table.items(), *self.parameters.items()]:
            if fnmatch.fnmatchcase(path, pattern):
                settings |= found
        return settings
