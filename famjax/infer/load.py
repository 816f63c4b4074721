"""From a model directory to a model."""

import dataclasses
from pathlib import Path

from flax import nnx

from famjax.nn.model import Transformer, create, parameter_shapes
from famjax.runtime.checkpoint import load_model


def load(model_dir: str | Path, **memory: int | None) -> Transformer:
    """The model of a directory, with other memory settings where some are given.

    Args:
      model_dir: what `famjax train` wrote.
      memory: `block_size`, `memory_segments`, `fam_length`; None changes nothing.

    Raises:
      ConfigError: see `runtime.checkpoint.load_model`.
    """
    config, params = load_model(model_dir, parameter_shapes, **memory)
    # A kernel that was asked for where it was trained need not run here.
    config = dataclasses.replace(config, attention_kernel="auto")
    model: Transformer = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: create(config))), params)
    return model
