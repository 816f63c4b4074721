"""The initial state of a training: its newest checkpoint, another model's weights, or random weights."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from famjax.config import ConfigError, ModelConfig, TrainConfig
from famjax.data.batch import Batch, Progress, Task
from famjax.data.generated import make_generated_task
from famjax.data.text_task import files_to_keep, make_text_task, vocabulary_and_files, vocabulary_folder
from famjax.data.vocabulary import has_vocabulary, vocabulary_files
from famjax.jobs import distributed
from famjax.mesh import sharding
from famjax.nn.weights import parameter_axes, parameter_shapes
from famjax.pretrained.config_json import with_tokens
from famjax.pretrained.folder import KEPT_CONFIG, chat_templates, files_of_import, json_bytes, json_object
from famjax.storage import base as bases
from famjax.storage import checkpoint
from famjax.storage.base import Base
from famjax.storage.model_dir import MODEL_JSON, check_same_model, split_step
from famjax.train import initial, optim
from famjax.train import state as states
from famjax.train.state import TrainState


def make_task(config: TrainConfig, rows: Sequence[int] | np.ndarray) -> Task:
    """Returns the task that `config.task` names, for a process that provides these rows of the global batch."""
    return make_text_task(config, rows) if config.generated is None else make_generated_task(config)


def first_batch(config: TrainConfig) -> Batch:
    """Returns the first batch of a task that generates its documents; all its batches have the same shape."""
    # Rows of text have the same shape, and their files need not be opened.
    without_text = dataclasses.replace(config, data=dataclasses.replace(config.data, text_share=0.0))
    task = make_task(without_text, np.arange(config.batch_size))
    return task.batch(0, task.start())[0]


def targets_of_row(config: TrainConfig) -> int:
    """Returns W, the number of loss positions per row. Documents of a text task are not opened."""
    return first_batch(config).targets.shape[1] if config.generated is not None else config.sequence_length


def files_beside(config: TrainConfig) -> dict[str, bytes]:
    """Returns the files of the task's vocabulary for the model directory, by name, with the chat templates beside it;
    none for bytes.

    If the run starts from an imported model, the files that an export restores are added: its config.json and, if the
    vocabulary is the same, all its tokenizer files. Otherwise config.json gets the vocabulary's tokens that begin and
    end a text. A resumed run, which does not read that model, has them already.

    Raises:
      ConfigError: the model directory has a model with another vocabulary, or the import's config.json is not JSON.
    """
    kept = files_to_keep(config)
    if kept and (Path(config.model_dir) / MODEL_JSON).exists() and not has_vocabulary(config.model_dir):
        raise ConfigError(f"the model in {config.model_dir} was trained on bytes, not with the vocabulary of the data; "
                          f"set --gin.VOCABULARY=\"'bytes'\", or use an empty MODEL_DIR")  # fmt: skip
    if checkpoint.latest_step(config.model_dir) is not None:
        return kept
    folder = vocabulary_folder(config)
    templates = {} if folder is None else chat_templates(folder)
    if not config.initial_checkpoint:
        return kept | templates
    start_dir = split_step(config.initial_checkpoint)[0]
    base = files_of_import(start_dir)
    if kept == (vocabulary_files(str(start_dir)) if has_vocabulary(start_dir) else {}):
        return base | templates
    if KEPT_CONFIG not in base:
        return kept | templates
    vocabulary, _ = vocabulary_and_files(config)
    with_own = with_tokens(json_object(start_dir / KEPT_CONFIG), vocabulary.bos, vocabulary.eos)
    return kept | templates | {KEPT_CONFIG: json_bytes(with_own)}


class Start(NamedTuple):
    """The state from which a training starts or resumes.

    Attributes:
      state: the training state, sharded over the mesh.
      progress: the progress of the task.
      logged: the result of `Watch.to_save` in the checkpoint; empty at the first step.
      base: the model with the frozen weights, which checkpoints omit; None: checkpoints have all weights.
    """

    state: TrainState
    progress: Progress
    logged: dict[str, Any]
    base: Base | None = None


def start(config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh, task: Task) -> Start:
    """Returns the newest intact checkpoint of this run, else the weights of another model, else random ones.

    Arrays are read directly into their sharding, also if they were written from another mesh. Damaged checkpoints are
    reported on standard error and deleted at the next save. Raises `ConfigError` if the model directory or the initial
    checkpoint has another model or no intact step, the progress to resume from is of other data, a pattern of
    `OptimizerConfig.parameters` matches no weight, or processes see different directories.
    """
    shapes = functools.partial(sharded_shapes, mesh=mesh)
    optim.check_patterns(config.tuning, shapes(config.model))
    check_same_model(config.model_dir, config.model)
    distributed.require_same(
        f"the newest step in {config.model_dir}", checkpoint.latest_step(config.model_dir),
        "MODEL_DIR must be a directory that all hosts share",
    )  # fmt: skip
    where = states.abstract(config, tx, mesh)
    found, damaged = checkpoint.restore_training(config.model_dir, shapes(config.model), states.to_save(where))
    first = jax.process_index() == 0
    if found is not None:
        if damaged and first:
            print(f"{damaged}; step {found.step}, the one before, is intact", file=sys.stderr, flush=True)
        if first:
            print(f"continuing {config.model_dir} from step {found.step}", flush=True)
        progress = progress_of(config, task, found.step, found.progress)
        state = states.from_saved(found.step, found.params, found.training, where)
        return Start(state, progress, found.progress["logged"], bases.read(config.model_dir))
    base = _base_of(config)
    state = states.create(config, tx, mesh)
    if config.initial_checkpoint:
        params, report = initial.adopt(config.initial_checkpoint, config.model, state.params, shapes)
        state = dataclasses.replace(state, params=params)
        if first:
            print(report, flush=True)
    return Start(state, task.start(), {}, base)


def progress_of(config: TrainConfig, task: Task, step: int, saved: dict[str, Any]) -> Progress:
    """Returns the progress of the task in the JSON of a step. Raises `ConfigError` if it is of other data."""
    name = saved.get("name", config.task)  # older ones have no name
    if name != config.task:
        raise ConfigError(f"{config.model_dir} was trained on the task {name!r}, not on {config.task!r}; start in "
                          f"an empty MODEL_DIR from its weights (INITIAL_CHECKPOINT_PATH)")  # fmt: skip
    # Refuses the progress of other data while nothing is written yet; a batch has no effect.
    progress: Progress = saved["task"]
    task.batch(step, progress)
    return progress


def _base_of(config: TrainConfig) -> Base | None:
    """Returns the base with the weights that checkpoints omit, the same in all processes, or None."""
    if not config.saves_a_part:
        return None
    base = bases.of(config.initial_checkpoint)
    distributed.require_same(
        f"the step to start from in {config.initial_checkpoint}", [base.step, base.record],
        "INITIAL_CHECKPOINT_PATH must be a directory that all hosts share",
    )  # fmt: skip
    return base


def sharded_shapes(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """Returns the shapes of the weights, each with its sharding."""
    shapes = parameter_shapes(config)
    return sharding.with_shardings(shapes, sharding.shardings(parameter_axes(config), shapes, mesh))
