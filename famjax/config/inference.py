"""Settings of `famjax score`, `famjax generate` and `famjax chat`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class InferConfig:
    """Settings of inference that gin can set. Flags override them.

    Attributes:
      model_dir: model directory.
      batch_size: maximum batch size.
      block_size, memory_segments, fam_length: override the model's memory settings; None keeps them.
      dtype: compute dtype, `float32` or `bfloat16`; None is the model's own, but float32 on a CPU (`infer/load.py`).
      mesh: devices along `data`, `fsdp` and `tensor`, as in training.
      seed: sampling seed.
      max_tokens: maximum tokens to generate.
      temperature, top_k, top_p, repetition_penalty: see `infer/settings.py`. A temperature of None is 0 (greedy), or 1
        if top_k, top_p or several samples imply sampling; a seed alone is then refused.
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
