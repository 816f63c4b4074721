"""The training loop: batches in, model directory out. Read it from top to bottom."""

import signal
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from famjax.config import ConfigError, TrainConfig
from famjax.jobs import distributed
from famjax.jobs.liveness import Beat
from famjax.mesh import sharding
from famjax.mesh.devices import make_mesh
from famjax.nn.model import Transformer
from famjax.process import interrupts
from famjax.storage.model_dir import CONFIG_GIN, write_bytes, write_text
from famjax.train import optim
from famjax.train.feed import Feed
from famjax.train.saving import Saver, only_training
from famjax.train.start import files_beside, make_task, start
from famjax.train.step import build, compilations, jit_step
from famjax.train.watching.summary import summarise
from famjax.train.watching.watch import Watch

# Maps (model, steps done) to numbers, which are logged as `eval/NAME`.
Evaluate = Callable[[Transformer, int], dict[str, float]]


def train(config: TrainConfig, config_text: str, evaluate: Evaluate | None = None) -> None:
    """Trains a model; resumes from the newest intact checkpoint in `config.model_dir` if there is one.

    Args:
      config: the run.
      config_text: the same settings as gin text, written to `config.gin` in the model directory.
      evaluate: called every `config.eval_period` steps.

    Raises:
      ConfigError: invalid settings, before anything is written.
      FloatingPointError: a non-finite loss, gradient or update; the last checkpoint is untouched.
    """
    config.validate()
    if (evaluate is None) == bool(config.eval_period):
        given = "given" if evaluate else "not given"
        raise ConfigError(f"EVAL_PERIOD is {config.eval_period}, and `evaluate` is {given}; an evaluation needs both")
    mesh = make_mesh(config.mesh_sizes)
    with interrupts.handled("famjax train", signal.SIGTERM), only_training(config.model_dir):
        _train(config, config_text, mesh, evaluate)


def _train(config: TrainConfig, config_text: str, mesh: Mesh, evaluate: Evaluate | None) -> None:
    task = make_task(config, sharding.local_rows(mesh, config.batch_size))
    kept = files_beside(config)
    tx = optim.optimizer(config.optimizer, config.steps)
    state, progress, logged, base = start(config, tx, mesh, task)
    first_step = int(state.step)
    if first_step >= config.steps:
        print(f"{config.model_dir} is trained already: {first_step} steps")
        Beat(config.steps).step(config.steps)
        return
    if distributed.is_primary():
        write_text(Path(config.model_dir) / CONFIG_GIN, config_text)
        for name, content in kept.items():
            write_bytes(Path(config.model_dir) / name, content)
    summarise(config, tx, mesh)
    step_fn = jit_step(config, tx, mesh)
    saver, watch = Saver(config, first_step, base), Watch(config, mesh, first_step, logged)
    feed = Feed(task, mesh, config.batch_size, first_step, progress)
    with interrupts.held(saver.saved), saver, watch, feed:
        for step in range(first_step + 1, config.steps + 1):
            batch = feed.next()
            watch.before(step, state, batch)
            state, metrics = step_fn(state, batch)
            good = watch.after(step, metrics, state, batch)
            if task.observes and good:
                feed.observe(metrics["correct"])
            if evaluate is not None and config.evaluates(step):
                watch.evaluate(evaluate, build(config, mesh, state.params), step)
            if config.logs(step):
                watch.log(step, metrics, task.report(feed.progress), compilations(step_fn))
            if saver.due(step):
                progress = distributed.merge_progress(feed.progress)
                saved = {"name": config.task, "task": progress, "logged": watch.to_save()}
                saver.save(state, saved, watch.last)
            if saver.stopping:
                break
            interrupts.check()
    if saver.stopping and step < config.steps:
        print(f"stopped by SIGTERM after step {step} of {config.steps}; {saver.saved()}")
        return
    watch.finish()
