"""Options of target `tpu-vm`, and its commands: calls of `gcloud`, some of which run `worker.sh` on the workers."""

import dataclasses
import shlex
from pathlib import Path

from famjax.config import ConfigError
from famjax.config.checks import at_least, flag_of, one_of
from famjax.config.tpu import Topology, of_accelerator_type, parse
from famjax.launch.commands import Command
from famjax.launch.job import Training, check_model_dir, check_name, check_plain, check_slices
from famjax.launch.supervisor import Supervision

ACTIONS = ("all", "create", "setup", "start", "logs", "status", "stop", "delete")
# Actions that do not need the settings of a training. Those of `start` are on the workers, where `setup` put them.
LATER = ("start", "logs", "status", "stop", "delete")
DELETE_AFTER = ("never", "success", "always")
WORKER = "launch/tpu_vm/worker.sh"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of target `tpu-vm`.

    Attributes:
      name: name of the queued resource and its nodes.
      do: `all`, or one action of `ACTIONS`.
      topology, accelerator_type: topology of a slice, such as v5p:4x2x2 or v5p-32; exactly one must be given.
      num_slices: number of slices, which are the nodes of the queued resource.
      zone, project: Google Cloud zone and project; an empty project: gcloud's default.
      runtime_version: software version of the VMs; empty: the default of the TPU version.
      spot, reserved: use spot capacity, or a reservation.
      network, subnetwork, service_account: settings of the VMs; empty: Google Cloud's defaults.
      requirements: requirements file that the workers install in addition to famjax's; empty: none.
      bucket: bucket to mount at /gcs/BUCKET on every worker.
      wait_minutes: maximum time in the queue for capacity.
      delete_after: when to delete the TPU automatically: `never`, `success` or `always`.
      supervision: restarts and hang detection on each worker; `restarts` also limits preemptions.
    """

    name: str = ""
    do: str = "all"
    topology: str = ""
    accelerator_type: str = ""
    num_slices: int = 1
    zone: str = ""
    project: str = ""
    runtime_version: str = ""
    spot: bool = False
    reserved: bool = False
    network: str = ""
    subnetwork: str = ""
    service_account: str = ""
    requirements: str = ""
    bucket: str = ""
    wait_minutes: float = 1440.0
    delete_after: str = "never"
    supervision: Supervision = dataclasses.field(default_factory=Supervision)

    @property
    def slices(self) -> Topology:
        """The topology of all slices. Raises `ConfigError` unless it is given exactly once."""
        if bool(self.topology) == bool(self.accelerator_type):
            raise ConfigError("name the TPU once: --topology v5p:4x2x2, or --accelerator-type v5p-32")
        if self.topology:
            return parse(self.topology, self.num_slices)
        return of_accelerator_type(self.accelerator_type, self.num_slices)

    @property
    def nodes(self) -> list[str]:
        """Names of the TPU VMs, one per slice, as the queued resource assigns them."""
        return [self.name] if self.num_slices == 1 else [f"{self.name}-{i}" for i in range(self.num_slices)]

    @property
    def needs_training(self) -> bool:
        """Whether the action needs the settings of a training."""
        return self.do not in LATER

    @property
    def read_later(self) -> tuple[str, ...]:
        """Flags that actions without a training read; to follow the log is also to start a stopped job again."""
        return ("zone", "project", "num_slices", *(("restarts",) if self.do == "logs" else ()))

    def validate(self, training: Training | None) -> None:
        """Raises `ConfigError` for the first invalid option."""
        check_name(self.name)
        one_of("--do", self.do, ACTIONS)
        one_of("--delete-after", self.delete_after, DELETE_AFTER)
        if not self.zone:
            raise ConfigError("no zone; add --zone ZONE: gcloud compute tpus locations list shows them")
        for field in ("zone", "project", "runtime_version", "network", "subnetwork", "service_account"):
            check_plain(flag_of(field), getattr(self, field))
        if self.service_account and "@" not in self.service_account:
            raise ConfigError(f"--service-account {self.service_account!r} is not an account's address; write "
                              f"{self.service_account}@PROJECT.iam.gserviceaccount.com")  # fmt: skip
        if self.delete_after != "never" and self.do != "all":
            raise ConfigError(f"--delete-after {self.delete_after} has no effect with --do {self.do}; add --do delete "
                              f"when the training is finished")  # fmt: skip
        if self.spot and self.reserved:
            raise ConfigError("capacity is --spot or --reserved, not both")
        at_least("--wait-minutes", self.wait_minutes, 1)
        at_least("--num-slices", self.num_slices, 1)
        self.supervision.validate()
        if training is None:
            return
        if self.requirements and not Path(self.requirements).is_file():
            raise ConfigError(f"--requirements {self.requirements} is not a file")
        if not self.slices.chip.runtime:
            raise ConfigError(f"there are no TPU VMs of {self.slices.chip.name}; use --target gke")
        check_slices(training, self.slices)
        check_model_dir(training, self.bucket)


class Commands:
    """Builds the commands of one job.

    Attributes:
      home: name of the job's folder in the user's home on every worker.
    """

    def __init__(self, options: Options, folder: Path):
        """Stores the options; `folder` is the local folder of the bundle."""
        self.options, self.folder = options, folder
        self.place = [
            f"--zone={options.zone}",
            *([f"--project={options.project}"] if options.project else []),
            "--quiet",
        ]
        self.home = f"famjax-{options.name}"

    def queued(self, verb: str, why: str, *more: str) -> Command:
        """Returns a gcloud command for the queued resource."""
        words = ["gcloud", "compute", "tpus", "queued-resources", verb, self.options.name, *more, *self.place]
        return Command(words, why)

    def creation(self) -> Command:
        """Returns the command that requests the TPU."""
        options, slices = self.options, self.options.slices
        more = [f"--accelerator-type={slices.accelerator_type}"]
        if sorted(of_accelerator_type(slices.accelerator_type).shape) != sorted(slices.shape):
            # The accelerator type counts chips; it would give them in the most cubic shape.
            more = [f"--type={slices.chip.accelerator}", f"--topology={slices.gke_topology}"]
        more.append(f"--runtime-version={options.runtime_version or slices.chip.runtime}")
        if options.num_slices == 1:
            more.append(f"--node-id={options.name}")
        else:
            more += [f"--node-count={options.num_slices}", f"--node-prefix={options.name}"]
        more += [f"--{kind}" for kind in ("spot", "reserved") if getattr(options, kind)]
        for name in ("network", "subnetwork", "service_account"):
            if value := getattr(options, name):
                more.append(f"{flag_of(name)}={value}")
        what = f"{slices.slices} x {slices}" if slices.slices > 1 else str(slices)
        return self.queued("create", f"request {what}: {slices.chips} chips, {slices.hosts} hosts", *more)

    def description(self) -> Command:
        """Returns the command that prints the state of the queued resource as JSON."""
        return self.queued("describe", "its state", "--format=json(state)")

    def deletion(self) -> Command:
        """Returns the command that deletes the TPU with its VMs."""
        return self.queued("delete", "delete it", "--force")

    def copies(self) -> list[Command]:
        """Returns the commands that copy the bundle to all workers of each node."""
        source = str(self.folder / f"{self.home}.tar.gz")
        return [self._tpu_vm("scp", node, f"copy famjax and the job to all workers of {node}", source,
                             f"{node}:{self.home}.tar.gz", "--worker=all")
                for node in self.options.nodes]  # fmt: skip

    def on_workers(
        self, why: str, *verb: str, worker: str = "all", first: str = "", nodes: int | None = None
    ) -> list[Command]:
        """Returns for each node the command that runs `worker.sh VERB` there over ssh.

        Its words are constants of this file, or checked names.

        Args:
          why: purpose, for `Command.why`.
          verb: verb of `worker.sh`, and its arguments.
          worker: index of the worker of a node, or `all`.
          first: shell command to run before, which ends with `&&`.
          nodes: number of nodes, the first ones; None: all.
        """
        remote = f"{first}bash {shlex.join([f'{self.home}/{WORKER}', *verb])}"
        return [self._tpu_vm("ssh", node, f"{why} ({node})", node, f"--worker={worker}", f"--command={remote}")
                for node in self.options.nodes[:nodes]]  # fmt: skip

    def _tpu_vm(self, verb: str, node: str, why: str, *words: str) -> Command:
        return Command(["gcloud", "compute", "tpus", "tpu-vm", verb, *words, *self.place], why)

    def setups(self) -> list[Command]:
        """Returns the commands that unpack the bundle, install packages and mount the bucket."""
        old = " ".join(f"{self.home}/{folder}" for folder in ("famjax", "gin", "launch"))  # remove an earlier version
        busy = f"kill -0 $(cat {self.home}/job/pid 2>/dev/null) 2>/dev/null"  # its files must stay as they are
        first = f"if {busy}; then echo 'a job runs here: --do stop first' >&2; exit 1; fi; "
        first += f"mkdir -p {self.home} && rm -rf {old} && tar -xzf {self.home}.tar.gz -C {self.home} && "
        more = [self.options.bucket] if self.options.bucket else []
        return self.on_workers("unpack, install pinned packages with libtpu", "setup", *more, first=first)

    def starts(self) -> list[Command]:
        """Returns the commands that start the job in the background on every worker."""
        return self.on_workers("start on all workers", "start")

    def following(self, lines: str = "+1") -> Command:
        """Returns the command that follows the log of process 0 to its end."""
        return self.on_workers("follow the log of process 0", "follow", lines, worker="0", nodes=1)[0]
