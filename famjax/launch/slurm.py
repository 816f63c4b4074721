"""Target `slurm`: submits a batch script to a GPU cluster, with one process per GPU.

Slurm starts all processes with one `srun`; each detects its index from SLURM_*, and has its own supervisor.
"""

import contextlib
import dataclasses
import re
import shlex
import sys
from pathlib import Path

from famjax.config import ConfigError
from famjax.config.checks import at_least, flag_of, one_of
from famjax.launch import commands
from famjax.launch.bundle import worker_words
from famjax.launch.commands import Command, Failed, say, shown
from famjax.launch.job import Training, check_mesh, check_name, check_plain
from famjax.launch.shipped import PACKAGE, find
from famjax.launch.supervisor import UNFINISHED, Supervision
from famjax.storage.model_dir import write_text

ACTIONS = ("all", "status", "delete")
# Slurm sends SIGTERM this long before the time limit, so that the training can save a checkpoint.
SIGTERM_SECONDS = 180
FOLDER = "launch"
TEMPLATE = "launch/slurm/job.sh"
# Options that the script has already, or that would not start one training here; `--sbatch` must not change them.
OWN = (
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "open-mode", "requeue", "signal", "time", "partition",
    "account", "qos", "cpus-per-task", "output", "array", "chdir", "gpus", "no-requeue", "ntasks", "wrap",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of target `slurm`.

    Attributes:
      name: name of the job.
      do: `all` submits the job; `status` prints its state, `delete` cancels it.
      nodes, gpus_per_node: number of nodes, and of GPUs per node.
      time: time limit of one run, in Slurm's notation; empty: the partition's default.
      partition, account, qos: Slurm's partition, account and QOS; empty: the cluster's defaults.
      cpus_per_task: CPU cores per process; None: the cluster's default.
      setup: shell script to source first (modules, an environment).
      sbatch: further options, each `--NAME=VALUE`.
      supervision: restarts and hang detection of each process; `restarts` also limits requeues of the job.
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
        """Whether the action needs the settings of a training."""
        return self.do == "all"

    @property
    def read_later(self) -> tuple[str, ...]:
        """Flags that actions without a training read: only the name."""
        return ()

    def validate(self, training: Training | None) -> None:
        """Raises `ConfigError` for the first invalid option."""
        check_name(self.name)
        one_of("--do", self.do, ACTIONS)
        for field in ("partition", "account", "qos"):
            check_plain(f"--{field}", getattr(self, field))
        if self.time and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time):
            raise ConfigError(f"--time {self.time!r} is not a Slurm time; write for example 24:00:00 or 2-12:00")
        for flag in self.sbatch:
            if not re.fullmatch(r"--[a-z][a-z-]*(=[^\s\"'\\]+)?", flag):
                raise ConfigError(f"--sbatch {flag!r} is not --NAME=VALUE without spaces and quotes")
            if (name := flag.removeprefix("--").partition("=")[0]) in OWN:
                raise ConfigError(f"--sbatch={flag}: the script sets what --{name} would change; leave it out, or use "
                                  f"the flag of famjax launch")  # fmt: skip
        for name in ("nodes", "gpus_per_node"):
            at_least(flag_of(name), getattr(self, name), 1)
        at_least("--cpus-per-task", 1 if self.cpus_per_task is None else self.cpus_per_task, 1)
        self.supervision.validate()
        if training is None:
            return
        if self.setup and not Path(self.setup).is_file():
            raise ConfigError(f"--setup {self.setup} is not a file")
        check_mesh(training, self.nodes * self.gpus_per_node, f"{self.nodes} nodes with {self.gpus_per_node} GPUs")


def folder(training: Training) -> Path:
    """Returns the folder for script, settings and log, in MODEL_DIR, which all hosts share."""
    return Path(training.config.model_dir).absolute() / FOLDER


def script(training: Training, options: Options) -> str:
    """Returns the batch script. All values from settings are quoted for the shell."""
    lines = [
        f"--job-name={options.name}", f"--nodes={options.nodes}", f"--ntasks-per-node={options.gpus_per_node}",
        f"--gpus-per-node={options.gpus_per_node}", "--open-mode=append", "--requeue",
        f"--signal=TERM@{SIGTERM_SECONDS}",
    ]  # fmt: skip
    given = {name: getattr(options, name) for name in ("time", "partition", "account", "qos", "cpus_per_task")}
    lines += [f"{flag_of(name)}={value}" for name, value in given.items() if value]
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
    """Returns the command that submits the script."""
    place = folder(training)
    # In file names Slurm expands %j to the job id, and %% to %.
    log = f"{str(place / options.name).replace('%', '%%')}-%j.log"
    return Command(["sbatch", "--parsable", f"--output={log}", str(place / f"{options.name}.sh")], "submit it")


def later(options: Options) -> Command:
    """Returns the command of an action on a submitted job."""
    if options.do == "delete":
        return Command(["scancel", f"--name={options.name}", "--me"], "cancel it")
    return Command(["squeue", f"--name={options.name}", "--me"], "its status")


def show(training: Training | None, options: Options) -> str:
    """Returns the command and the contents of the files that `run` would write, as text."""
    if training is None:
        return shown(later(options))
    place = folder(training)
    return "\n".join([
        shown(submission(training, options)),
        f"# {place / options.name}.sh\n{script(training, options).rstrip()}",
        f"# {place / options.name}.gin\n{training.gin.rstrip()}",
    ])  # fmt: skip


def run(training: Training | None, options: Options) -> int:
    """Writes the files and submits the job, or runs the action `options.do`. Raises `Failed` if it is rejected."""
    if training is None:
        return commands.stream(later(options))
    place = folder(training)
    there = place / f"{options.name}.gin"
    if there.is_file() and there.read_text(encoding="utf-8") != training.gin:
        raise ConfigError(f"{there} has other settings, which a job of this name reads at its start and at every "
                          f"restart; use another --name, or delete the file if that job has ended")  # fmt: skip
    files = (there, place / f"{options.name}.sh")
    created = [path for path in (*files, place, *place.parents) if not path.exists()]
    with contextlib.ExitStack() as undo:
        undo.callback(_remove, created)  # no job reads these settings then, and others may be submitted
        try:
            for path, text in zip(files, (training.gin, script(training, options)), strict=True):
                write_text(path, text)
        except OSError as error:
            raise ConfigError(f"MODEL_DIR {place.parent} cannot be written here: {error.strerror}") from error
        result = commands.run(submission(training, options))
        if result.code:
            raise Failed(f"{options.name} was not submitted: {result.reason}; nothing is running")
        undo.pop_all()
    number = result.out.strip().split(";")[0]
    say(f"{options.name} is submitted as job {number}; its log: {place / options.name}-{number}.log; "
        f"cancel it: scancel {number}")  # fmt: skip
    return 0


def _remove(created: list[Path]) -> None:
    """Removes files, then folders that are empty, the inner ones first."""
    for path in created:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
