"""Settings that the training tasks with a question after filler have in common: a curriculum over the filler."""

import dataclasses

from famjax.config.checks import ascending, at_least, probability


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """A curriculum over blocks of filler, and the loss on text other than the answer.

    Lengths are in tokens of the model's vocabulary.

    Attributes:
      stages: the curriculum, as the maximum blocks of filler of each stage. A stage opens when the exact
        match of the previous one reaches `open_at`.
      open_at: exact match from 0 to 1, averaged over recent documents of the newest stage.
      newest_share: share of documents drawn from the newest open stage, if the rest of the row has room for it; the
        others are spread evenly over all open stages.
      straddle_share: share of documents whose filler is chosen such that the answer straddles a block boundary. Few
        do by chance, and they are the hardest: the memory must hold how much of the answer was already given.
      straddle_behind: allow the answers of those documents to start in one of the first N tokens after the block
        boundary; 0: not. Then only the memory holds that a question was asked.
      text_weight, text_tokens: loss weight, and number per row, of the random tokens of other text that carry a loss;
        all of it if a row has fewer.
    """

    stages: tuple[int, ...] = (1, 2, 4, 8, 16)
    open_at: float = 0.9
    newest_share: float = 0.6
    straddle_share: float = 0.0
    straddle_behind: int = 0
    text_weight: float = 0.05
    text_tokens: int = 32

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing, and why."""
        if self.straddle_share or not self.straddle_behind:
            return {}
        return {f"straddle_behind {self.straddle_behind}": f"{type(self).__name__}.straddle_share is 0"}

    def check_curriculum(self) -> None:
        """Raises `ConfigError` on the first of these settings that cannot work."""
        ascending("stages", self.stages, "blocks of filler")
        for name in ("open_at", "newest_share", "straddle_share"):
            probability(name, getattr(self, name))
        for name in ("straddle_behind", "text_weight", "text_tokens"):
            at_least(name, getattr(self, name), 0)
