"""What is evaluated: models, tasks, lengths, where data sets are."""

import dataclasses
from typing import Any

from famjax.config.checks import ConfigError, at_least, one_of, probability
from famjax.config.mesh import check_mesh
from famjax.config.model import DTYPES


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One evaluation: of some models on some tasks.

    Attributes:
      model_dirs: the models, evaluated on the same documents.
      output_dir: where `results.json` and the plot go; empty is the first model's directory.
      task: names of tasks, several with commas between them: `passkey`, which needs no data, `text`: how well
        each token of some documents is predicted, by its position in the document, and those that
        `famjax eval --list` shows.
      sources: documents of the task `text`: paths, or `SourceConfig`s.
      longest: tokens that are read of a document, or of an example's context, at most; 0 reads all.
      lengths: of the generated tasks, in tokens of each model; exact.
      depths: 0..1, where the needle lies; the examples of a length take turns in them.
      examples: examples of each length, or of a data set the first so many; 0 is the task's own number.
      data: where data sets are: `PATH` for the only one, or `TASK=PATH` for each.
      split: part of a data set that has several; empty is the one that the task is usually told by.
      filler: text files (a path or glob) whose sentences hide the needles; empty is the pass key's filler.
      chat: questions of the tasks with instructions are put in the model's chat template, if it has one.
      max_new_tokens: made for an answer at most; 0 is the task's own number.
      modules: Python modules that register seqio tasks.
      again: answers everything anew, even where an interrupted evaluation left answers.
      part: `I/N`: only part I of N is asked, for N processes on as many machines; empty asks all, and makes results.
      filler_blocks: lengths of the filler, in blocks of each model; 0 is less than a block.
      keys: keys for each alignment of the filler against the block; a length has block_size * keys
        documents, or
      alignments: so many alignments, spread evenly; 0 is all of them.
      key_digits: digits of a key.
      batch_size: documents read side by side.
      mesh: devices along `data`, `fsdp` and `tensor`, as in training.
      seed: of the keys; training draws its own.
      block_size, memory_segments, fam_length: other memory settings than the models'; None keeps them.
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
    batch_size: int = 64
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    seed: int = 1
    block_size: int | None = None
    memory_segments: int | None = None
    fam_length: int | None = None
    dtype: str | None = None

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        if not self.model_dirs:
            raise ConfigError("no model to evaluate; add --model DIR")
        if not self.tasks:
            raise ConfigError("no task to evaluate; add --task NAME (famjax eval --list shows them)")
        if "text" in self.tasks and not self.sources:
            raise ConfigError("no texts to evaluate on; add --texts 'FOLDER/*.txt'")
        check_mesh(self.mesh)
        if self.dtype is not None:
            one_of("dtype", self.dtype, DTYPES)
        for name in ("longest", "examples", "max_new_tokens", "alignments"):
            at_least(name, getattr(self, name), 0)
        if not self.lengths or not self.depths:
            raise ConfigError("lengths and depths need a value each; for example --lengths 1k,4k --depths 0,0.5,1")
        for length in self.lengths:
            at_least("lengths", length, 1)
        for depth in self.depths:
            probability("depths", depth)
        _ = self.part_of
        if not self.filler_blocks:
            raise ConfigError("filler_blocks is empty; give lengths in blocks, for example 1,4,16,64")
        for blocks in self.filler_blocks:
            at_least("filler_blocks", blocks, 0)
        for name in ("keys", "key_digits", "batch_size"):
            at_least(name, getattr(self, name), 1)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of `task`."""
        return tuple(dict.fromkeys(name.strip() for name in self.task.split(",") if name.strip()))

    @property
    def part_of(self) -> tuple[int, int]:
        """(I, N) of `part`; (1, 1) is all. Raises `ConfigError` where it is no part."""
        number, slash, count = (self.part or "1/1").partition("/")
        if not slash or not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
            raise ConfigError(f"--part {self.part} is none; write 1/4 to 4/4 for four processes")
        return int(number), int(count)

    def data_of(self, task: str) -> str:
        """Where a task's data set is; empty where nothing was said."""
        named = dict(given.partition("=")[::2] for given in self.data if "=" in given)
        alone = [given for given in self.data if "=" not in given]
        return named.get(task, alone[0] if alone else "")
