"""Examples of seqio tasks and mixtures. seqio and tensorflow are imported in functions, only if a task needs them.

Examples have the feature `targets`, and optionally `inputs`, which carry no loss. Packing and streaming are done by
famjax, so no feature converter of seqio is used.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from famjax.config import ConfigError, DataConfig
from famjax.config.checks import nearest, reason_of
from famjax.data.examples import Examples, weights_of
from famjax.data.rows import Example

# `tfds:NAME:VERSION` names a TFDS dataset with the feature `text` (or `inputs` and `targets`); no task is registered.
TFDS = "tfds:"


def load_seqio(modules: tuple[str, ...] = ()) -> Any:
    """Imports seqio and the modules that register tasks, and hides accelerators from tensorflow; returns seqio. Raises
    `ConfigError` if an import fails, or tensorflow has initialised the accelerators already."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf

        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
        import seqio
    except ImportError as error:
        raise ConfigError(f"tasks of seqio need more packages ({error}): pip install -e '.[data]'") from error
    except RuntimeError as error:  # a module that a gin file imports has initialised the accelerators already
        raise ConfigError(
            "a module used tensorflow when it was imported, before accelerators were hidden from it; name the module "
            "in DataConfig.modules, or let it only register tasks"
        ) from error
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"DataConfig.modules: cannot import {name} ({error})") from error
    return seqio


def find_task(name: str, data: DataConfig) -> Any:
    """Returns a registered task or mixture of seqio, or the task of a TFDS dataset. Raises `ConfigError` if there is
    none of that name, or it does not have the split, cache or features that are needed."""
    seqio = load_seqio(tuple(data.modules))
    if data.cache_dirs:
        seqio.add_global_cache_dirs(list(data.cache_dirs))
    if name.startswith(TFDS):
        return _tfds_task(seqio, name.removeprefix(TFDS), data)
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        hint = nearest(name, known) or "; name its module in DataConfig.modules"
        raise ConfigError(f"no seqio task or mixture is registered as {name!r}{hint}")
    found = seqio.get_mixture_or_task(name)
    _check(found, name, data)
    return found


def _check(found: Any, name: str, data: DataConfig) -> None:
    tasks = getattr(found, "tasks", [found])
    for task in tasks:
        if "targets" not in task.output_features:
            raise ConfigError(f"the seqio task {task.name!r} has no feature 'targets'")
        if data.split not in task.splits:
            splits = ", ".join(task.splits)
            raise ConfigError(f"the seqio task {task.name!r} has no split {data.split!r}; it has {splits}")
        if data.use_cached and task.supports_caching and not task.cache_dir:
            raise ConfigError(
                f"the seqio task {task.name!r} is not cached; run seqio_cache_tasks and name its output in "
                f"DataConfig.cache_dirs, or set USE_CACHED_TASKS to False"
            )
        if task.requires_caching and not data.use_cached:
            raise ConfigError(f"the seqio task {task.name!r} must be read from its cache; set USE_CACHED_TASKS to True")
        features = [task.output_features[key] for key in ("inputs", "targets") if key in task.output_features]
        if any(feature.vocabulary != features[-1].vocabulary for feature in features):
            raise ConfigError(
                f"the features 'inputs' and 'targets' of the seqio task {task.name!r} have different vocabularies, but "
                f"a row is one text; give them the same"
            )
    vocabularies = [task.output_features["targets"].vocabulary for task in tasks]
    if any(vocabulary != vocabularies[0] for vocabulary in vocabularies):
        raise ConfigError(f"the tasks of the mixture {name!r} have different vocabularies")


def _tfds_task(seqio: Any, name: str, data: DataConfig) -> Any:
    """Returns a task for a TFDS dataset, with the vocabulary of `data`, its BOS and EOS. Raises `ConfigError`."""
    import tensorflow as tf

    from famjax.data.seqio_vocabulary import FileVocabulary

    try:
        source = seqio.TfdsDataSource(name)  # requires a version: NAME:1.0.0
        features = source.tfds_dataset.info.features
    except Exception as error:  # TFDS raises many types
        raise ConfigError(f"{TFDS}{name}: {reason_of(error)}") from error
    keys = {"targets": "text"} if "text" in features else {"inputs": "inputs", "targets": "targets"}
    if missing := [key for key in keys.values() if key not in features]:
        raise ConfigError(f"the TFDS dataset {name!r} has no {' and '.join(missing)}; it has {', '.join(features)}")
    vocabulary = FileVocabulary(data.vocabulary or "bytes")
    add_eos = data.eos and vocabulary.eos_id is not None
    one = lambda key: seqio.Feature(vocabulary, add_eos=add_eos and key == "targets")
    rename = lambda ds: ds.map(lambda row: {ours: row[theirs] for ours, theirs in keys.items()})
    first, bos = next(iter(keys)), vocabulary.bos_id
    begin = lambda ds: ds.map(lambda row: row | {first: tf.concat([[bos], row[first]], axis=0)})
    prepend_bos = [begin] if data.bos and bos is not None else []
    preprocessors = [rename, seqio.preprocessors.tokenize, *prepend_bos, seqio.preprocessors.append_eos]
    return seqio.Task(
        f"tfds_{name.replace('/', '_').replace(':', '_')}", source, {key: one(key) for key in keys}, preprocessors
    )


def kinds_of(found: Any, data: DataConfig, lanes: int, seed: list[int]) -> tuple[list[Examples], list[float]]:
    """Returns the examples of a task, or of each task of a mixture, for `lanes` lanes, and the mixing rate of each.

    famjax mixes the tasks, by their rates, so that each task has its own epochs and positions. A mixture's `sample_fn`
    is not used.
    """
    tasks = getattr(found, "tasks", [found])
    kinds = [TaskExamples(task, data, lanes, [*seed, i]) for i, task in enumerate(tasks)]
    rates = [float(found.get_rate(task)) for task in tasks] if len(tasks) > 1 else [1.0]
    return list(kinds), rates


class TaskExamples:
    """Examples of one seqio task.

    The task is split into n shards (`DataConfig.data_shards`, or one per lane). Lane r reads shard r % n, and each of
    the m lanes of a shard takes every m-th of its examples. Order and epochs depend on the seed, n and the number of
    lanes.

    The position of a lane: [epoch, index in its shard's epoch]. seqio cannot start in the middle of an epoch: a resumed
    run reads (and tokenizes) the epoch again from its start, and discards the examples before its position.

    Args:
      task: a `seqio.Task`; `data` has its split, cache, shuffling and shards.
      lanes: number of lanes of the group that reads this task.
      seed: seed of every epoch's order.
    """

    def __init__(self, task: Any, data: DataConfig, lanes: int, seed: list[int]):
        self._task, self._data, self._seed, self._lanes = task, data, seed, lanes
        self._shards = min(data.data_shards or lanes, lanes)
        self._open: dict[tuple[int, int], _Epoch] = {}
        self._at: dict[int, int] = {}

    def __len__(self) -> int:
        return 0

    def begin(self, lane: int) -> list[int]:
        """See `Examples`."""
        return [0, self._first(lane, 0)]

    def example(self, lane: int, where: list[int]) -> tuple[Example, list[int]]:
        """See `Examples`. Raises `ConfigError` if a shard has no examples."""
        shard, step = lane % self._shards, self._lanes_of(lane % self._shards)
        epoch, number = where
        for _ in range(step + 1):  # with fewer examples than lanes, some lanes have none in an epoch
            self._enter(lane, epoch)
            found = self._epoch(shard, epoch).take(number, step)
            if found is not None:
                return found, [epoch, number + step]
            epoch += 1
            number = self._first(lane, epoch)
        raise ConfigError(
            f"the seqio task {self._task.name!r} has no examples for shard {shard} of {self._shards}; use a "
            f"smaller DataConfig.data_shards"
        )

    def epochs(self, lane: int, where: list[int]) -> float:
        """Returns the number of epochs that this lane has finished."""
        return float(where[0])

    def _lanes_of(self, shard: int) -> int:
        return -(-(self._lanes - shard) // self._shards)

    def _first(self, lane: int, epoch: int) -> int:
        """Returns a lane's first index in an epoch; the lanes of a shard take turns with index 0."""
        return (lane // self._shards + epoch) % self._lanes_of(lane % self._shards)

    def _enter(self, lane: int, epoch: int) -> None:
        """Closes epochs that no lane reads any more."""
        if self._at.get(lane) == epoch:
            return
        self._at[lane] = epoch
        for shard, old in list(self._open):
            ends = [at for other, at in self._at.items() if other % self._shards == shard]
            if old not in range(min(ends, default=old), max(ends, default=old) + 1):
                del self._open[shard, old]

    def _epoch(self, shard: int, epoch: int) -> "_Epoch":
        if (shard, epoch) not in self._open:
            self._open[shard, epoch] = _Epoch(lambda: self._iterate(shard, epoch))
        return self._open[shard, epoch]

    def _iterate(self, shard: int, epoch: int) -> Iterator[Example]:
        seqio = load_seqio()
        import tensorflow as tf

        # The same seed in every shard: sources that are sharded by examples must use the same order in all of them.
        seed = int(np.random.SeedSequence([*self._seed, epoch]).generate_state(1)[0] >> 2)
        try:
            ds = self._task.get_dataset(
                None, self._data.split, use_cached=self._data.use_cached, shuffle=self._data.shuffle, seed=seed,
                shard_info=seqio.ShardInfo(shard, self._shards), num_epochs=1, trim_output_features=False,
            )  # fmt: skip
        except ValueError as error:  # seqio's message on what a task lacks
            raise ConfigError(f"the seqio task {self._task.name!r}: {reason_of(error)}") from error
        except TypeError as error:  # such as None["targets"]
            raise ConfigError(
                f"the seqio task {self._task.name!r} has a preprocessor that fails without sequence_length "
                f"({reason_of(error)}); give it its lengths itself: rows here have several examples, or parts"
            ) from error
        options = tf.data.Options()
        options.deterministic = True
        ds = ds.map(lambda row: {key: row[key] for key in ("inputs", "targets") if key in row}).with_options(options)
        return map(_example, ds.as_numpy_iterator())


def _example(row: dict[str, np.ndarray]) -> Example:
    inputs = row.get("inputs", row["targets"][:0])
    tokens = np.concatenate([inputs, row["targets"]]).astype(np.int32)
    return Example(tokens, weights_of(len(inputs), len(tokens)))


class _Epoch:
    """One epoch of a shard, read sequentially. Examples that other lanes will take are kept in memory."""

    def __init__(self, iterate: Callable[[], Iterator[Example]]):
        self._iterate = iterate
        self._live: Iterator[Example] | None = None
        self._position, self._end = 0, -1
        self._kept: dict[int, Example] = {}
        self._residues: set[int] = set()

    def take(self, number: int, step: int) -> Example | None:
        """Returns example `number` for the lane that takes every `step`-th one; None after the end."""
        if 0 <= self._end <= number:
            return None
        residue = number % step
        self._residues.add(residue)
        for old in [n for n in self._kept if n % step == residue and n < number]:
            del self._kept[old]
        if number in self._kept:
            return self._kept.pop(number)
        if self._live is None or number < self._position:
            self._live, self._position = self._iterate(), 0
        with contextlib.suppress(StopIteration):
            while True:
                example = next(self._live)
                self._position += 1
                if self._position - 1 == number:
                    return example
                if (self._position - 1) % step in self._residues - {residue}:
                    self._kept[self._position - 1] = example
        self._end = self._position
        return None
