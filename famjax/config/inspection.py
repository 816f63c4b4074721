"""What `famjax inspect` looks at."""

import dataclasses

from famjax.config.checks import ConfigError, at_least


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """One inspection of one model.

    Attributes:
      model_dir: the model.
      output_dir: gets `inspect.json`, `inspect.html` and `inspect.png`.
      input: a text file; empty inspects the pass key task.
      answer: text that is put behind the input, whose probability is told by itself; empty is none.
      other: a text file whose FAM is put in the input's place; empty swaps nothing.
      filler_blocks: lengths of the pass key task's filler, in blocks. The longest one is looked at closely.
      documents: of each length, at alignments of the filler against the block that are spread evenly.
      key_digits: digits of a key.
      places: block edges of a text where FAM is taken away, spread evenly.
      longest: tokens that are read of a text at most; 0 reads all.
      batch_size: documents read side by side.
      seed: of the keys.
    """

    model_dir: str
    output_dir: str
    input: str = ""
    answer: str = ""
    other: str = ""
    filler_blocks: tuple[int, ...] = ()
    documents: int = 16
    key_digits: int = 5
    places: int = 8
    longest: int = 0
    batch_size: int = 16
    seed: int = 1

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        if bool(self.input) == bool(self.filler_blocks):
            raise ConfigError("give either --input FILE, a text, or --passkey N N ..., lengths of filler in blocks")
        if self.filler_blocks and (self.answer or self.other):
            raise ConfigError("--answer and --other belong to --input; the pass key task has its own")
        for blocks in self.filler_blocks:
            at_least("passkey", blocks, 1)
        for name in ("key_digits", "places", "batch_size"):
            at_least(name, getattr(self, name), 1)
        at_least("documents", self.documents, 2)
        at_least("longest", self.longest, 0)
