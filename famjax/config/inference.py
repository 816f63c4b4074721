"""How a model is used: `famjax score` and `famjax generate`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class InferConfig:
    """What scoring and generating can be told by gin as well as by flags, which win.

    Attributes:
      model_dir: the model.
      batch_size: rows side by side.
      block_size, memory_segments, fam_length: other memory settings than the model's; None keeps them.
      dtype: compute dtype, `float32` or `bfloat16`; None is the model's own, but float32 on a CPU (`infer/load.py`).
      mesh: devices along `data`, `fsdp` and `tensor`, as in training.
      seed: of the draws.
      max_tokens: made at most.
      temperature, top_k, top_p, repetition_penalty: how a token is drawn (`infer/settings.py`); a temperature of
        None is 0, or 1 where something else asks for a choice.
    """

    model_dir: str = ""
    batch_size: int = 8
    block_size: int | None = None
    memory_segments: int | None = None
    fam_length: int | None = None
    dtype: str | None = None
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    seed: int = 0
    max_tokens: int = 256
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
