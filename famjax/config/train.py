"""Settings of a training run."""

import dataclasses
import fnmatch
import math
import sys

from famjax.config.babi import BabiConfig
from famjax.config.checks import (
    ConfigError,
    at_least,
    check_sequence_length,
    check_types,
    nearest,
    nearest_multiples,
    one_of,
    probability,
    seed,
    steps,
)
from famjax.config.curriculum import CurriculumConfig
from famjax.config.data import GENERATED, TASKS, DataConfig, PassKeyConfig
from famjax.config.evaluation import EvalConfig
from famjax.config.memory import OVERRIDES
from famjax.config.mesh import check_mesh, mesh_sizes
from famjax.config.model import LoraConfig, ModelConfig
from famjax.config.optimizer import LORA, MEMORY, OptimizerConfig
from famjax.config.synthetic import MqarConfig, TrackingConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
      model_dir: directory for `model.json`, checkpoints, `metrics.jsonl` and `config.gin`.
      model: the model.
      task: `passkey`, `mqar`, `parity`, `s3` or `s5`, which need no data; `babi`, stories in books; `text`, the
        sources of `data`; or a registered seqio task or mixture.
      passkey, babi, mqar: settings of the tasks of these names.
      tracking: settings of the tasks `parity`, `s3` and `s5`.
      data: settings of every other task: sources of text, and how documents are laid out in rows.
      sequence_length: tokens per row, a multiple of the block size.
      batch_size: rows per step.
      steps: optimizer steps.
      seed: seed of weights, data and random state passing.
      optimizer: optimizer settings.
      initial_checkpoint: model directory with the initial weights; empty for random initialisation.
      log_period: steps between two lines of `metrics.jsonl`.
      checkpoint_period: steps between two checkpoints; 0 (and `checkpoint_minutes` 0) saves only at the end.
      checkpoint_minutes: also save if this many minutes have passed since the last checkpoint; 0 disables it.
      keep_checkpoints: number of newest checkpoints to keep. With 2 there is a fallback if the newest is
        damaged; the disk must hold one more, while a new one is written.
      keep_period: checkpoints at multiples of this many steps are kept permanently; 0 disables it.
      keep_best_metric: name of a logged metric, for example `loss`; the checkpoints with its best values are
        kept too, and listed in `best.json`. Empty disables it.
      keep_best, keep_best_mode: number of best checkpoints, and whether `min` or `max` is best.
      diagnostics_period: steps between two memory diagnostics (docs/training.md), each of which costs less
        than a step; 0 disables them, None is every ten `log_period`s.
      eval_period: steps between two evaluations during training; 0 disables them.
      evaluation: settings of these evaluations, except those of models, directories, `part` and `again`.
      profile_steps: (n, m) profiles steps n to m, both included, into `profile/`; () disables profiling.
      skip_bad_steps: number of consecutive steps with non-finite loss or gradients to skip; one more stops
        the run. 0 stops at the first.
      mesh: devices along each mesh axis: `data` (replicas of the model, each with its share of the batch),
        `fsdp` (shards the batch and every weight), `tensor` (shards heads, feed-forward width and
        vocabulary). A missing axis has size 1.
      microbatches: number of sequential gradient-accumulation steps per batch. Results are those of the
        whole batch; activation memory is that of a microbatch.
      loss_chunk: maximum tokens per device whose logits are materialised at once; 0 is no limit.
      z_loss: weight of log(Z)^2, Z being the softmax normaliser, which keeps logits from drifting.
      carried_fam_rms: not in the paper, 0 (off) by default. A FAM that is carried to the next step is scaled down to
        at most this root mean square over D. Layers normalise FAM, so its content is unchanged, but later updates
        move it more. FAM grows with every update and therefore moves less and less: with rescaling, a few training
        steps cover the dynamics of very many updates (docs/memory.md).
      carried_fam_share: share of rows, the first ones, whose carried FAM is rescaled.
      fam_opening_steps: number of steps over which FAM's gate (`MemoryConfig.fam_gate`) opens linearly; None is a
        tenth of all steps, 0 learns the gate like other weights. A gate that is further open is not closed.
      distillation: weight of a second loss, 0 (off) by default: the KL divergence of each token's prediction from that
        of the same model without FAM and LoRA and with full attention over the row. It needs no labels, teaches
        content beyond the window, and preserves the model's behaviour. Tokens of documents that began in an earlier
        step are left out: the model has a memory of their beginning, the other has not.
      fam_growth_loss: not in the paper, 0 (off) by default. Weight of the per-block growth of FAM's root mean square,
        in rows that continue a document: growth dilutes what FAM holds.
    """

    model_dir: str = ""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    task: str = "passkey"
    passkey: PassKeyConfig = dataclasses.field(default_factory=PassKeyConfig)
    babi: BabiConfig = dataclasses.field(default_factory=BabiConfig)
    mqar: MqarConfig = dataclasses.field(default_factory=MqarConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    sequence_length: int = 1024
    batch_size: int = 8
    steps: int = 1000
    seed: int = 0
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    initial_checkpoint: str = ""
    log_period: int = 10
    checkpoint_period: int = 0
    checkpoint_minutes: float = 0.0
    keep_checkpoints: int = 2
    keep_period: int = 0
    keep_best_metric: str = ""
    keep_best: int = 1
    keep_best_mode: str = "min"
    diagnostics_period: int | None = None
    eval_period: int = 0
    evaluation: EvalConfig = dataclasses.field(
        default_factory=lambda: EvalConfig(filler_blocks=(1, 4, 16), alignments=16)
    )
    profile_steps: tuple[int, ...] = ()
    skip_bad_steps: int = 0
    mesh: dict[str, int] = dataclasses.field(default_factory=lambda: {"data": 1, "fsdp": 1, "tensor": 1})
    microbatches: int = 1
    loss_chunk: int = 2048
    z_loss: float = 0.0
    fam_growth_loss: float = 0.0
    fam_opening_steps: int | None = None
    distillation: float = 0.0
    carried_fam_rms: float = 0.0
    carried_fam_share: float = 1.0

    @property
    def carries_memory(self) -> bool:
        """Whether documents continue across steps, so that their memory is part of the training state."""
        questions = self.generated is not None and self.generated.stream_share > 0
        text = (self.generated is None or self.text_rows > 0) and self.data.stream_share > 0
        return questions or text

    @property
    def text_rows(self) -> int:
        """Number of rows, the last ones of a batch, that are text beside a task that generates its documents."""
        return round(self.data.text_share * self.batch_size) if self.generated is not None else 0

    @property
    def generated(self) -> PassKeyConfig | BabiConfig | MqarConfig | TrackingConfig | None:
        """The settings of the task if it generates its documents; None if it reads data."""
        if self.task not in GENERATED:
            return None
        if self.task == "babi":
            return self.babi
        if self.task == "passkey":
            return self.passkey
        return self.mqar if self.task == "mqar" else self.tracking

    @property
    def longest_filler(self) -> int:
        """Maximum tokens of filler between key and question in one row of the task `passkey`."""
        return (self.passkey.stages[-1] + 1) * self.model.memory.block_size - 1

    @property
    def mesh_sizes(self) -> tuple[int, int, int]:
        """Devices along `data`, `fsdp` and `tensor`."""
        return mesh_sizes(self.mesh)

    def validate(self) -> None:
        """Raises `ConfigError` on the first setting that cannot work."""
        check_types(self)
        if not self.model_dir:
            raise ConfigError("MODEL_DIR is not set; add --gin.MODEL_DIR=\"'DIR'\"")
        for name, path in (("MODEL_DIR", self.model_dir), ("INITIAL_CHECKPOINT_PATH", self.initial_checkpoint)):
            if "://" in path:
                raise ConfigError(f"{name} {path} is not a file system path; mount the bucket (famjax launch does so "
                                  f"with --bucket) and name it as /gcs/BUCKET/...")  # fmt: skip
        self.model.validate()
        self.optimizer.validate()
        for part in (self.passkey, self.babi, self.mqar, self.tracking, self.data):
            part.validate()
        self._check_task()
        check_sequence_length(self.sequence_length, self.model.memory.block_size)
        at_least("BATCH_SIZE", self.batch_size, 1)
        steps("TRAIN_STEPS", self.steps, 1)
        seed("RANDOM_SEED", self.seed)
        at_least("LOG_PERIOD", self.log_period, 1)
        self._check_checkpoints()
        self._check_watching()
        self._check_trained()
        check_mesh(self.mesh)
        at_least("MICROBATCHES", self.microbatches, 1)
        for name in ("loss_chunk", "z_loss", "fam_growth_loss", "carried_fam_rms", "distillation"):
            at_least(name, getattr(self, name), 0)
        steps("fam_opening_steps", self.fam_opening_steps or 0, 0)
        probability("carried_fam_share", self.carried_fam_share)
        self._check_rows()
        self._check_text_rows()
        if isinstance(self.generated, PassKeyConfig):
            self.generated.check_rows(self.batch_size - self.text_rows)
        if self.generated is None or self.text_rows:
            self.data.check_rows(self.text_rows or self.batch_size)
        if isinstance(self.generated, (MqarConfig, TrackingConfig)):
            self.generated.check_length(self.sequence_length, self.model.memory.block_size)

    @property
    def tuning(self) -> OptimizerConfig:
        """The optimizer's settings with `trained` resolved: which weights are frozen depends on the model."""
        auto = "lora" if self.model.lora.rank else "all"
        trained = auto if self.optimizer.trained == "auto" else self.optimizer.trained
        # A gate that a schedule opens is not trained.
        table = self.optimizer.parameters | ({"fam/gate": {"frozen": True}} if self.opening_steps else {})
        return dataclasses.replace(self.optimizer, trained=trained, parameters=table)

    @property
    def opening_steps(self) -> int:
        """`fam_opening_steps` with None resolved; 0 if there is no gate, or it is learned."""
        if not self.model.memory.has_gate:
            return 0
        return max(1, self.steps // 10) if self.fam_opening_steps is None else self.fam_opening_steps

    @property
    def teacher(self) -> ModelConfig:
        """The teacher of `distillation`: the model without FAM and LoRA, with full attention over the row."""
        segments = max(1, self.sequence_length // self.model.memory.block_size) - 1
        memory = dataclasses.replace(
            self.model.memory, fam_length=0, kind="fam", memory_segments=segments, token_window=0,
            segments_hold="inputs",
        )  # fmt: skip
        return dataclasses.replace(self.model, memory=memory, lora=LoraConfig())

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings of memory and data that are on but change nothing here, as in twins without FAM, and why."""
        memory = self.model.memory
        found = {
            f"{one.name} {getattr(memory, one.name)!r}": memory.unused(one.name)
            for one in dataclasses.fields(memory)
            if getattr(memory, one.name) not in (one.default, 0)
        }
        reason = memory.unused("fam_max_rms") if self.carries_memory else "no document continues in the next step"
        for name in ("carried_fam_rms", "fam_growth_loss"):
            if value := getattr(self, name):
                found[f"{name} {value!r}"] = reason
        blocks = -(-self.sequence_length // memory.block_size)
        if memory.fam_gradient_blocks >= blocks and not self.carries_memory:
            reason = memory.unused("fam_gradient_blocks") or f"documents have at most {blocks} blocks"
            found[f"fam_gradient_blocks {memory.fam_gradient_blocks}"] = reason
        # The share and the weight of something that is off.
        if self.carried_fam_share != TrainConfig.carried_fam_share and not self.carried_fam_rms:
            found[f"carried_fam_share {self.carried_fam_share!r}"] = "carried_fam_rms is 0"
        if self.data.repeat_weight != DataConfig.repeat_weight and not self.data.repeat_segment:
            found[f"repeat_weight {self.data.repeat_weight!r}"] = "repeat_segment is 0"
        if isinstance(self.generated, CurriculumConfig):
            found |= self.generated.without_effect
        return {setting: reason for setting, reason in found.items() if reason}

    @property
    def saves_a_part(self) -> bool:
        """Whether checkpoints omit the frozen weights, which are in `initial_checkpoint`."""
        return bool(self.initial_checkpoint) and self.tuning.trained in ("lora", "prompt")

    def _check_trained(self) -> None:
        trained = self.optimizer.trained
        if self.fam_opening_steps and not self.model.memory.has_gate:
            raise ConfigError("fam_opening_steps is set, but the model has no FAM gate (fam_gate); set it to 0")
        if self.distillation and self.tuning.trained not in ("lora", "prompt"):
            raise ConfigError(
                f"distillation compares the model with its frozen base, but all of its weights are trained "
                f"(OptimizerConfig.trained is {trained!r}); set LORA_RANK, or distillation to 0"
            )
        for pattern, settings in self.optimizer.parameters.items():
            of_gate = fnmatch.fnmatchcase("fam/gate", pattern) and not fnmatch.fnmatchcase("fam/prompt", pattern)
            if of_gate and self.opening_steps:
                raise ConfigError(
                    f"parameters has {pattern!r}, but fam_opening_steps opens it; set that to 0, or leave it out"
                )
            base = not pattern.startswith((LORA, *MEMORY))
            if self.distillation and base and settings.get("frozen") is False:
                raise ConfigError(f"distillation compares the model with its frozen base, which parameters {pattern!r} "
                                  f"trains; leave it out, or set distillation to 0")  # fmt: skip
        if trained == "lora" and not self.model.lora.rank:
            raise ConfigError("OptimizerConfig.trained is 'lora', but LORA_RANK is 0; set it, for example to 64")
        if trained == "prompt" and not self.model.memory.fam_length and self.model.memory.kind == "fam":
            raise ConfigError("OptimizerConfig.trained is 'prompt', but FAM_LENGTH is 0: there is no prompt to train")

    def _check_task(self) -> None:
        """Raises `ConfigError` for a task that is neither built in nor possibly registered with seqio."""
        # If seqio is already imported, a gin file imported it, and its module may have registered the task.
        named = self.task in TASKS or self.task.startswith("tfds:")
        if not named and not self.data.modules and "seqio" not in sys.modules:
            hint = nearest(self.task, TASKS, 1, repr) or "; a seqio task needs its module in DataConfig.modules"
            raise ConfigError(f"MIXTURE_OR_TASK_NAME {self.task!r} is not one of {', '.join(TASKS)}{hint}")
        if self.task == "babi":
            self.babi.check_files_named()
        if self.task == "text" and not self.data.sources:
            raise ConfigError("the task 'text' has no sources; set --gin.DataConfig.sources=\"('books/*.txt',)\"")

    def _check_text_rows(self) -> None:
        """Raises `ConfigError` unless text rows stand beside rows of a task that can have them."""
        share = self.data.text_share
        if not share:
            if self.data.sources and self.task != "text":
                raise ConfigError(f"DataConfig.sources has no effect on the task {self.task!r}: 'text' reads it, and "
                                  f"passkey and babi with DataConfig.text_share; leave it out")  # fmt: skip
            for name in ("stream_share", "repeat_segment"):
                if self.generated is not None and getattr(self.data, name):
                    own = name == "stream_share" and self.task == "passkey"
                    use = "set PassKeyConfig.stream_share" if own else "leave it out"
                    raise ConfigError(f"DataConfig.{name} has no effect on the task {self.task!r}, which reads no "
                                      f"text; {use}")  # fmt: skip
            return
        if not isinstance(self.generated, CurriculumConfig):
            raise ConfigError(
                f"DataConfig.text_share adds rows of text to the tasks passkey and babi, not to {self.task!r}; set it "
                f"to 0"
            )
        if not self.data.sources:
            raise ConfigError(
                f"DataConfig.text_share is {share}, but there is no text; set "
                "--gin.DataConfig.sources=\"('books/*.txt',)\""
            )
        if not 0 < self.text_rows < self.batch_size:
            raise ConfigError(
                f"DataConfig.text_share {share} of BATCH_SIZE {self.batch_size} is {self.text_rows} rows; at least one "
                f"row must be text and one not, for example {1 / self.batch_size:g}"
            )

    def _check_checkpoints(self) -> None:
        for name in ("checkpoint_period", "checkpoint_minutes"):
            at_least(name.upper(), getattr(self, name), 0)
        at_least("KEEP_CHECKPOINTS", self.keep_checkpoints, 1)
        at_least("keep_period", self.keep_period, 0)
        at_least("keep_best", self.keep_best, 1)
        one_of("keep_best_mode", self.keep_best_mode, ("min", "max"))
        if not self.keep_best_metric and (self.keep_best, self.keep_best_mode) != (1, "min"):
            raise ConfigError("keep_best and keep_best_mode have no effect without keep_best_metric; set it, for "
                              "example to 'loss'")  # fmt: skip
        if self.keep_period and (not self.checkpoint_period or self.keep_period % self.checkpoint_period):
            use = (
                f"; use {nearest_multiples(self.keep_period, self.checkpoint_period)}" if self.checkpoint_period else ""
            )
            raise ConfigError(
                f"keep_period {self.keep_period} is not a multiple of CHECKPOINT_PERIOD {self.checkpoint_period}, so "
                f"no checkpoint is written at those steps{use}"
            )

    def diagnoses(self, step: int) -> bool:
        """Whether to run memory diagnostics in this step (counted from 1); never without FAM."""
        period = 10 * self.log_period if self.diagnostics_period is None else self.diagnostics_period
        return bool(period and step % period == 0 and self.model.memory.fam_length)

    def evaluates(self, step: int) -> bool:
        """Whether to evaluate after this step: every `eval_period` steps, and at the end."""
        return bool(self.eval_period and (step % self.eval_period == 0 or step == self.steps))

    def logs(self, step: int) -> bool:
        """Whether to log this step: every `log_period`, at the end, and with diagnostics or evaluations."""
        last = step == self.steps
        return last or step % self.log_period == 0 or self.diagnoses(step) or self.evaluates(step)

    def _check_watching(self) -> None:
        at_least("DIAGNOSTICS_PERIOD", self.diagnostics_period or 0, 0)
        at_least("EVAL_PERIOD", self.eval_period, 0)
        at_least("skip_bad_steps", self.skip_bad_steps, 0)
        if self.eval_period:
            dataclasses.replace(self.evaluation, model_dirs=(self.model_dir,)).validate()
            for name in (*OVERRIDES, "dtype", "mesh", "part", "again", "model_dirs", "output_dir"):
                if getattr(self.evaluation, name) != getattr(EvalConfig(), name):
                    raise ConfigError(
                        f"in_training/EvalConfig.{name} has no effect: EVAL_PERIOD evaluates the model as it is "
                        f"trained; leave it out, and use famjax eval"
                    )
            digits, asked = self.passkey.key_digits, self.evaluation.key_digits
            if self.task == "passkey" and "passkey" in self.evaluation.tasks and asked != digits:
                raise ConfigError(
                    f"EVAL_PERIOD evaluates keys of {asked} digits, but those of the training have {digits} "
                    f"(PassKeyConfig.key_digits); set --gin.in_training/EvalConfig.key_digits={digits} too"
                )
            if self.evaluation.task == "passkey" and self.model.vocab_size < 128:
                raise ConfigError(
                    f"EVAL_PERIOD evaluates the pass key, which needs ASCII bytes, but vocab_size is "
                    f"{self.model.vocab_size}; set EVAL_PERIOD to 0"
                )
        first_last = self.profile_steps
        whole = all(isinstance(step, int) and not isinstance(step, bool) for step in first_last)
        if first_last and (not whole or len(first_last) != 2 or not 1 <= first_last[0] <= first_last[1]):
            raise ConfigError(f"PROFILE_STEPS is {first_last!r}; write (first, last), counted from 1, such as (11, 13)")
        if first_last and first_last[1] > self.steps:
            raise ConfigError(f"PROFILE_STEPS {first_last} ends after the last step, TRAIN_STEPS {self.steps}; name "
                              f"earlier steps")  # fmt: skip

    def _check_rows(self) -> None:
        """Raises `ConfigError` unless every device has the same number of rows in every microbatch."""
        data, fsdp, _ = self.mesh_sizes
        unit = math.prod((data, fsdp, self.microbatches))
        if self.batch_size % unit:
            parts = [f"{self.microbatches} microbatches"] * (self.microbatches > 1)
            parts += [f"data x fsdp = {data * fsdp} devices"] * (data * fsdp > 1)
            raise ConfigError(
                f"BATCH_SIZE {self.batch_size} does not divide over {' of '.join(parts)}; "
                f"use {nearest_multiples(self.batch_size, unit)}"
            )
