"""Configurations of models, training, evaluation and inference: frozen dataclasses with a `validate` method.

Nothing here imports jax: a configuration is built, checked and written to `model.json` in milliseconds.
Only `famjax/cli` imports gin, which binds these classes.
"""

from famjax.config.babi import BabiConfig
from famjax.config.checks import ConfigError, check_sequence_length
from famjax.config.data import (
    GENERATED,
    PACKINGS,
    SOURCE_KINDS,
    SOURCE_ROWS,
    TASKS,
    DataConfig,
    PassKeyConfig,
    SourceConfig,
)
from famjax.config.evaluation import EvalConfig
from famjax.config.inference import InferConfig
from famjax.config.memory import FAM_INITS, FAM_POSITIONS, LAYER_KINDS, MEMORY_KINDS, MemoryConfig
from famjax.config.mesh import MESH_AXES, check_mesh, mesh_sizes
from famjax.config.model import (
    ACTIVATIONS,
    ATTENTION_KERNELS,
    DTYPES,
    KERNEL_LANES,
    LORA_PROJECTIONS,
    NORMS,
    REMAT_POLICIES,
    ROPE_SCALINGS,
    LayerSettings,
    LoraConfig,
    ModelConfig,
    Rope,
)
from famjax.config.optimizer import OPTIMIZERS, PARAMETER_SETTINGS, SCHEDULES, TRAINED, OptimizerConfig
from famjax.config.synthetic import MqarConfig, TrackingConfig
from famjax.config.train import TrainConfig

__all__ = [
    "BabiConfig",
    "ACTIVATIONS",
    "ATTENTION_KERNELS",
    "ConfigError",
    "DTYPES",
    "DataConfig",
    "EvalConfig",
    "FAM_INITS",
    "FAM_POSITIONS",
    "GENERATED",
    "InferConfig",
    "KERNEL_LANES",
    "LAYER_KINDS",
    "LORA_PROJECTIONS",
    "LayerSettings",
    "LoraConfig",
    "MEMORY_KINDS",
    "MESH_AXES",
    "MemoryConfig",
    "ModelConfig",
    "MqarConfig",
    "NORMS",
    "OPTIMIZERS",
    "OptimizerConfig",
    "PACKINGS",
    "PARAMETER_SETTINGS",
    "PassKeyConfig",
    "REMAT_POLICIES",
    "ROPE_SCALINGS",
    "Rope",
    "SCHEDULES",
    "SOURCE_KINDS",
    "SOURCE_ROWS",
    "SourceConfig",
    "TASKS",
    "TrackingConfig",
    "TRAINED",
    "TrainConfig",
    "check_mesh",
    "check_sequence_length",
    "mesh_sizes",
]
