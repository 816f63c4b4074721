"""Settings of `famjax inspect`."""

import dataclasses

from famjax.config.checks import ConfigError, at_least, seed


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """One inspection of one model.

    Attributes:
      model_dir: model directory.
      output_dir: directory for `inspect.json`, `inspect.html` and `inspect.png`.
      input: text file; empty inspects the pass-key task.
      answer: text appended to the input and scored separately; empty is none.
      other: text file whose FAM replaces that of the input; empty replaces nothing.
      filler_blocks: filler lengths of the pass-key task, in blocks. One document of the longest is traced.
      documents: documents per length, at evenly spaced offsets of the filler relative to the block boundaries.
      key_digits: digits of a key.
      places: evenly spaced block boundaries of a text at which FAM is knocked out.
      longest: maximum tokens of each text, `input` and `other`; longer ones are truncated. 0: no limit.
      batch_size: documents per batch.
      seed: seed of the keys.
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
            raise ConfigError("--answer and --other need --input; the pass-key task has its own")
        for blocks in self.filler_blocks:
            at_least("passkey", blocks, 1)
        for name in ("key_digits", "places", "batch_size"):
            at_least(name, getattr(self, name), 1)
        at_least("documents", self.documents, 2)
        at_least("longest", self.longest, 0)
        seed("--seed", self.seed)
