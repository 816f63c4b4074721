"""The training: batches in, model directory out. Read it from top to bottom."""

from collections.abc import Callable
from pathlib import Path

from flax import nnx

from famjax.config import TrainConfig
from famjax.data.batch import Progress
from famjax.nn.model import Transformer
from famjax.runtime import checkpoint, sharding
from famjax.runtime.mesh import make_mesh
from famjax.runtime.model_dir import CONFIG_GIN, write_text
from famjax.train import optim
from famjax.train import state as states
from famjax.train.feed import Feed
from famjax.train.start import make_task, start
from famjax.train.state import TrainState
from famjax.train.step import compilations, jit_step
from famjax.train.summary import summarise
from famjax.train.watch import Watch

# From a model and the steps behind it to numbers, which are logged as `eval/NAME`.
Evaluate = Callable[[Transformer, int], dict[str, float]]
# In a checkpoint's progress: what the watch has of the steps since its last line.
LOGGED = "logged"


def train(config: TrainConfig, config_text: str, evaluate: Evaluate | None = None) -> None:
    """Trains, from the newest checkpoint in `config.model_dir` where there is one.

    Args:
      config: the run.
      config_text: its gin settings, kept as `config.gin` in the model directory.
      evaluate: called every `config.eval_period` steps; a training with it is the training without it.

    Raises:
      ConfigError: a setting that cannot work, before anything is written.
      FloatingPointError: the loss is no number; says where that begins. The last checkpoint stays as it is.
    """
    config.validate()
    mesh = make_mesh(config.mesh_sizes)
    task = make_task(config, sharding.local_rows(mesh, config.batch_size))
    tx = optim.optimizer(config.optimizer, config.steps)
    state, progress = start(config, tx, mesh, task)
    graphdef = states.structure(config.model)
    first_step = int(state.step)
    if first_step >= config.steps:
        print(f"{config.model_dir} is trained already: {first_step} steps")
        return
    write_text(Path(config.model_dir) / CONFIG_GIN, config_text)
    summarise(config, tx, mesh)
    step_fn = jit_step(config, tx, mesh)
    watch = Watch(config, mesh, first_step, progress.pop(LOGGED, {}))
    with watch, Feed(task, mesh, config.batch_size, first_step, progress) as feed:
        for step in range(first_step + 1, config.steps + 1):
            batch = feed.next()
            watch.before(step, state, batch.arrays)
            state, metrics = step_fn(state, batch.arrays)
            good = watch.after(step, metrics, state, batch.arrays)
            if task.observes and good:
                feed.observe(metrics["correct"])
            if evaluate is not None and config.evaluates(step):
                watch.evaluate(evaluate, nnx.merge(graphdef, state.params), step)
            if config.logs(step):
                watch.log(step, metrics, task.report(feed.progress), compilations(step_fn))
            if step == config.steps or (config.checkpoint_period and step % config.checkpoint_period == 0):
                _save(config, state, feed.progress | {LOGGED: watch.to_save()})
    watch.finish()


def _save(config: TrainConfig, state: TrainState, progress: Progress) -> None:
    checkpoint.save_model(
        config.model_dir, config.model, state.params, step=int(state.step), training=states.to_save(state),
        progress=progress,
    )  # fmt: skip
