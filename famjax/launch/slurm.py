"""Target `slurm`: a job on a cluster of GPUs, one process a GPU, as a batch script.

Slurm starts all processes with one `srun`; each finds its place in SLURM_*, and is watched by a supervisor of its own.
"""

import dataclasses
import re
import shlex
import sys
from pathlib import Path

from famjax.config import ConfigError
from famjax.config.checks import at_least, one_of
from famjax.launch import commands
from famjax.launch.bundle import worker_words
from famjax.launch.commands import Command, Failed, say, shown
from famjax.launch.job import Training, check_mesh, check_name, check_plain
from famjax.launch.shipped import PACKAGE, find
from famjax.launch.supervisor import UNFINISHED, Supervision
from famjax.storage.model_dir import write_text

ACTIONS = ("all", "status", "delete")
# Before the time limit: so long there is to finish a step and save it.
SIGTERM_SECONDS = 180
FOLDER = "launch"
TEMPLATE = "launch/slurm/job.sh"


@dataclasses.dataclass(frozen=True)
class Options:
    """Where a job runs.

    Attributes:
      name: of the job.
      do: `all` submits; `status`, `delete`.
      nodes, gpus_per_node: what it runs on.
      time: limit of one run, as Slurm writes it; empty is the partition's.
      partition, account, qos: empty are the cluster's own.
      cpus_per_task: None is the cluster's.
      setup: a shell script that is sourced before (modules, an environment).
      sbatch: further options, each `--NAME=VALUE`.
      supervision: of each process; `restarts` is also how often the job is queued again.
    """

    name: str = ""
    do: str = "all"
    nodes: int = 1
    gpus_per_node: int = 8
    time: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    cpus_per_task: int | None = None
    setup: str = ""
    sbatch: tuple[str, ...] = ()
    supervision: Supervision = dataclasses.field(default_factory=Supervision)

    @property
    def needs_training(self) -> bool:
        """Whether what is done has to do with a training's settings."""
        return self.do == "all"

    def validate(self, training: Training | None) -> None:
        """Raises `ConfigError` on the first thing that cannot work."""
        check_name(self.name)
        one_of("--do", self.do, ACTIONS)
        for field in ("partition", "account", "qos"):
            check_plain(f"--{field}", getattr(self, field))
        if self.time and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time):
            raise ConfigError(f"--time {self.time!r} is no time of Slurm's; for example 24:00:00 or 2-12:00")
        for flag in self.sbatch:
            if not re.fullmatch(r"--[a-z][a-z-]*(=[^\s\"'\\]+)?", flag):
                raise ConfigError(f"--sbatch {flag!r} is no --NAME=VALUE without blanks and quotes")
        for name in ("nodes", "gpus_per_node"):
            at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        at_least("--cpus-per-task", self.cpus_per_task or 1, 1)
        self.supervision.validate()
        if training is None:
            return
        if self.setup and not Path(self.setup).is_file():
            raise ConfigError(f"--setup {self.setup} is no file")
        check_mesh(training, self.nodes * self.gpus_per_node, f"{self.nodes} nodes with {self.gpus_per_node} GPUs")


def folder(training: Training) -> Path:
    """Where the script, the settings and the log lie; Slurm reads them on other hosts."""
    return Path(training.config.model_dir).absolute() / FOLDER


def script(training: Training, options: Options) -> str:
    """The batch script. All that comes from elsewhere is quoted for the shell that reads it."""
    lines = [
        f"--job-name={options.name}", f"--nodes={options.nodes}", f"--ntasks-per-node={options.gpus_per_node}",
        f"--gpus-per-node={options.gpus_per_node}", "--open-mode=append", "--requeue",
        f"--signal=TERM@{SIGTERM_SECONDS}",
    ]  # fmt: skip
    given = {name: getattr(options, name) for name in ("time", "partition", "account", "qos", "cpus_per_task")}
    lines += [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value]
    lines += options.sbatch
    gin = str(folder(training) / f"{options.name}.gin")
    filled = {
        "SBATCH": "\n".join(f"#SBATCH {line}" for line in lines),
        "SETUP": f"source {shlex.quote(str(Path(options.setup).absolute()))}" if options.setup else "",
        "CODE": shlex.quote(str(PACKAGE.parent)),
        "COMMAND": shlex.join([sys.executable, "-m", "famjax", *worker_words(gin, options.supervision)]),
        "UNFINISHED": str(UNFINISHED),
        "RESTARTS": str(options.supervision.restarts),
    }
    template = find(TEMPLATE).read_text(encoding="utf-8")
    return re.sub("@([A-Z]+)@", lambda match: filled[match[1]], template)


def submission(training: Training, options: Options) -> Command:
    """Hands the script to Slurm."""
    place = folder(training)
    # In file names Slurm takes %j for the job's number, and %% for %.
    log = f"{str(place / options.name).replace('%', '%%')}-%j.log"
    return Command(["sbatch", "--parsable", f"--output={log}", str(place / f"{options.name}.sh")], "submit it")


def later(options: Options) -> Command:
    """What is done with a job that was submitted."""
    if options.do == "delete":
        return Command(["scancel", f"--name={options.name}", "--me"], "end it")
    return Command(["squeue", f"--name={options.name}", "--me"], "what became of it")


def show(training: Training | None, options: Options) -> str:
    """The command and the files."""
    if training is None:
        return shown(later(options))
    place = folder(training)
    return "\n".join([
        shown(submission(training, options)),
        f"# {place / options.name}.sh\n{script(training, options).rstrip()}",
        f"# {place / options.name}.gin\n{training.gin.rstrip()}",
    ])  # fmt: skip


def run(training: Training | None, options: Options) -> int:
    """Writes the files and submits, or does what `options.do` says. Raises `Failed` in one line."""
    if training is None:
        return commands.stream(later(options))
    place = folder(training)
    try:
        write_text(place / f"{options.name}.gin", training.gin)
        write_text(place / f"{options.name}.sh", script(training, options))
    except OSError as error:
        raise ConfigError(f"MODEL_DIR {place.parent} cannot be written here: {error.strerror}") from error
    result = commands.run(submission(training, options))
    if result.code:
        raise Failed(f"{options.name} was not submitted: {result.reason}; nothing runs")
    number = result.out.strip().split(";")[0]
    say(f"{options.name} is submitted as job {number}; its log: {place / options.name}-{number}.log; "
        f"end it: scancel {number}")  # fmt: skip
    return 0
