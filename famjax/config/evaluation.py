"""What is evaluated."""

import dataclasses
from typing import Any

from famjax.config.checks import ConfigError, at_least, one_of


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One evaluation: of the pass key task, or of texts.

    Attributes:
      model_dirs: the models, evaluated on the same documents.
      output_dir: where `results.json` and the plot go; empty is the first model's directory.
      task: `passkey`, which needs no data, or `text`: how well each token of some documents is predicted,
        by its position in the document.
      sources: documents of the task `text`: paths, or `SourceConfig`s.
      longest: tokens that are read of a document at most; 0 reads all.
      filler_blocks: lengths of the filler, in blocks of each model.
      keys: keys for each alignment of the filler against the block; a length has block_size * keys
        documents, or
      alignments: so many alignments, spread evenly; 0 is all of them.
      key_digits: digits of a key.
      batch_size: documents read side by side.
      seed: of the keys; training draws its own.
      block_size, memory_segments, fam_length: other memory settings than the models'; None keeps them.
    """

    model_dirs: tuple[str, ...] = ()
    output_dir: str = ""
    task: str = "passkey"
    sources: tuple[Any, ...] = ()
    longest: int = 0
    filler_blocks: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32, 64)
    keys: int = 1
    alignments: int = 0
    key_digits: int = 5
    batch_size: int = 64
    seed: int = 1
    block_size: int | None = None
    memory_segments: int | None = None
    fam_length: int | None = None

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        if not self.model_dirs:
            raise ConfigError("no model to evaluate; add --model DIR")
        one_of("MIXTURE_OR_TASK_NAME", self.task, ("passkey", "text"))
        if self.task == "text" and not self.sources:
            raise ConfigError("no texts to evaluate on; add --texts 'FOLDER/*.txt'")
        at_least("longest", self.longest, 0)
        if not self.filler_blocks:
            raise ConfigError("filler_blocks is empty; give lengths in blocks, for example 1,4,16,64")
        for blocks in self.filler_blocks:
            at_least("filler_blocks", blocks, 1)
        for name in ("keys", "key_digits", "batch_size"):
            at_least(name, getattr(self, name), 1)
        at_least("alignments", self.alignments, 0)
