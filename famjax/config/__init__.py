"""Configurations of models, training, evaluation and inference: frozen dataclasses with a `validate` method.

Nothing here imports jax: a configuration is built, checked and written to `model.json` in milliseconds.
Only `famjax/cli` imports gin, which binds these classes.
"""

from famjax.config.babi import BabiConfig
from famjax.config.checks import ConfigError, check_sequence_length
from famjax.config.data import GENERATED, TASKS, DataConfig, PassKeyConfig, SourceConfig
from famjax.config.evaluation import EvalConfig
from famjax.config.inference import InferConfig
from famjax.config.memory import MEMORY_KINDS, OVERRIDES, MemoryConfig, memory_overrides
from famjax.config.mesh import MESH_AXES, check_mesh, mesh_sizes
from famjax.config.model import (
    DTYPES,
    KERNEL_LANES,
    LORA_PROJECTIONS,
    REMAT_POLICIES,
    LayerSettings,
    LoraConfig,
    ModelConfig,
    Rope,
)
from famjax.config.optimizer import OptimizerConfig
from famjax.config.synthetic import MqarConfig, TrackingConfig
from famjax.config.train import TrainConfig

__all__ = [
    "BabiConfig",
    "ConfigError",
    "DTYPES",
    "DataConfig",
    "EvalConfig",
    "GENERATED",
    "InferConfig",
    "KERNEL_LANES",
    "LORA_PROJECTIONS",
    "LayerSettings",
    "LoraConfig",
    "MEMORY_KINDS",
    "MESH_AXES",
    "MemoryConfig",
    "ModelConfig",
    "MqarConfig",
    "OVERRIDES",
    "OptimizerConfig",
    "PassKeyConfig",
    "REMAT_POLICIES",
    "Rope",
    "SourceConfig",
    "TASKS",
    "TrackingConfig",
    "TrainConfig",
    "check_mesh",
    "check_sequence_length",
    "memory_overrides",
    "mesh_sizes",
]
