"""Settings of an evaluation: models, tasks, lengths, paths of data sets."""

import dataclasses
from typing import Any

from famjax.config.checks import ConfigError, at_least, check_types, one_of, probability, seed
from famjax.config.mesh import check_mesh
from famjax.config.model import DTYPES
from famjax.config.synthetic import MqarConfig, TrackingConfig


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One evaluation of one or several models on one or several tasks.

    Attributes:
      model_dirs: model directories, evaluated on the same documents.
      output_dir: directory for `results.json` and plots; empty is the first model's directory.
      task: task names, separated by commas: `passkey`, which needs no data; `text`, log probabilities of the
        tokens of documents by position; and those that `famjax eval --list` shows.
      sources: documents of the task `text`: paths, or `SourceConfig`s.
      longest: maximum tokens of a document or of an example's context; longer ones are truncated. 0: no limit.
      lengths: exact lengths of generated tasks, in tokens of each model; repeated ones are dropped.
      depths: relative positions of the needle, from 0 to 1; the examples of a length cycle through them.
      examples: examples per length, or the first N of a data set; 0 is the task's default.
      data: paths of data sets: `PATH` if there is only one, or `TASK=PATH` for each.
      split: split of a data set; empty is the task's default.
      filler: text files (a path or glob) whose sentences surround the needles; empty is the pass key's filler.
      chat: format the questions of instruction tasks with the model's chat template, if it has one.
      max_new_tokens: maximum tokens per answer; 0 is the task's default.
      modules: Python modules that register seqio tasks.
      again: re-run examples that already have answers.
      part: `I/N`: evaluate only part I of N, for N processes on several machines. Only an empty `part`, which
        evaluates all, writes results.
      filler_blocks: filler lengths, in blocks of each model; 0 is less than a block.
      keys: keys per alignment, that is per offset of the filler relative to the block boundaries. There are
        alignments * keys documents per length.
      alignments: number of alignments, evenly spaced; 0 is all of them, `block_size`.
      key_digits: digits of a key.
      mqar, tracking: settings of the tasks `mqar` and `parity`, `s3`, `s5`; use those of the models' training. The
        lengths of documents are `lengths`, not their `blocks`.
      batch_size: documents per batch.
      mesh: devices along `data`, `fsdp` and `tensor`, as in training.
      seed: seed of the keys, which differ from those of training.
      block_size, memory_segments, fam_length: override the models' memory settings; None keeps them.
      dtype: compute dtype, `float32` or `bfloat16`; None is the model's own, but float32 on a CPU (`infer/load.py`).
    """

    model_dirs: tuple[str, ...] = ()
    output_dir: str = ""
    task: str = "passkey"
    sources: tuple[Any, ...] = ()
    longest: int = 0
    lengths: tuple[int, ...] = (1024, 4096, 16384)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    examples: int = 0
    data: tuple[str, ...] = ()
    split: str = ""
    filler: str = ""
    chat: bool = True
    max_new_tokens: int = 0
    modules: tuple[str, ...] = ()
    again: bool = False
    part: str = ""
    filler_blocks: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32, 64)
    keys: int = 1
    alignments: int = 0
    key_digits: int = 5
    mqar: MqarConfig = dataclasses.field(default_factory=MqarConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    batch_size: int = 64
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    seed: int = 1
    block_size: int | None = None
    memory_segments: int | None = None
    fam_length: int | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.lengths, (tuple, list)):  # else `validate` reports it
            object.__setattr__(self, "lengths", tuple(dict.fromkeys(self.lengths)))

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        if not self.model_dirs:
            raise ConfigError("no model to evaluate; add --model DIR")
        if not self.tasks:
            raise ConfigError("no task to evaluate; add --task NAME (famjax eval --list shows them)")
        if "text" in self.tasks and not self.sources:
            raise ConfigError("no texts to evaluate on; add --texts 'FOLDER/*.txt', or set EvalConfig.sources")
        self.mqar.validate()
        self.tracking.validate()
        check_mesh(self.mesh)
        if self.dtype is not None:
            one_of("dtype", self.dtype, DTYPES)
        for name in ("longest", "examples", "max_new_tokens", "alignments"):
            at_least(name, getattr(self, name), 0)
        if self.longest == 1:
            raise ConfigError("longest is 1, which leaves no token to predict; use at least 2, or 0 for no limit")
        if not self.lengths or not self.depths:
            raise ConfigError("lengths and depths need a value each; for example --lengths 1k,4k --depths 0,0.5,1")
        for length in self.lengths:
            at_least("lengths", length, 1)
        for depth in self.depths:
            probability("depths", depth)
        seed("seed", self.seed)
        _ = self.part_of
        if not self.filler_blocks:
            raise ConfigError("filler_blocks is empty; give lengths in blocks, for example 1,4,16,64")
        for blocks in self.filler_blocks:
            at_least("filler_blocks", blocks, 0)
        for name in ("keys", "key_digits", "batch_size"):
            at_least(name, getattr(self, name), 1)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task names of `task`, without duplicates."""
        return tuple(dict.fromkeys(name.strip() for name in self.task.split(",") if name.strip()))

    @property
    def part_of(self) -> tuple[int, int]:
        """(I, N) of `part`; (1, 1) if it is empty. Raises `ConfigError` if `part` is malformed."""
        number, slash, count = (self.part or "1/1").partition("/")
        if not slash or not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ConfigError(f"--part {self.part} is not I/N; write 1/4 to 4/4 for four processes")
        return int(number), int(count)

    def data_of(self, task: str) -> str:
        """Returns the path of a task's data set; empty if none was given."""
        named = dict(given.partition("=")[::2] for given in self.data if "=" in given)
        alone = [given for given in self.data if "=" not in given]
        return named.get(task, alone[0] if alone else "")
