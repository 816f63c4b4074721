"""Target `gke`: runs a job as a JobSet on a cluster with TPU node pools.

A slice is an indexed Job with one pod per host. GKE sets the variables from which jax finds the other pods of a slice
(TPU_WORKER_ID, TPU_WORKER_HOSTNAMES) and the other slices (MEGASCALE_*). The settings are stored as one gin file in a
ConfigMap.
"""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from famjax.config import ConfigError
from famjax.config.checks import at_least, one_of
from famjax.config.text import read_text
from famjax.config.tpu import Topology, parse
from famjax.launch import commands
from famjax.launch.bundle import worker_words
from famjax.launch.commands import Command, Failed, say, shown
from famjax.launch.job import MOUNT, Training, check_model_dir, check_name, check_plain, check_slices
from famjax.launch.names import kubernetes
from famjax.launch.shipped import find
from famjax.launch.supervisor import Supervision

ACTIONS = ("all", "logs", "status", "delete")
TEMPLATE = "launch/gke/jobset.yaml"
# Label with the JobSet's name, which its controller gives to Jobs and pods.
NAME_LABEL = "jobset.sigs.k8s.io/jobset-name"
# A process is first restarted within its pod, which is faster; the JobSet counts its own restarts.
RESTARTS_IN_POD = 3
# Parts of kubectl's error messages, each with a remedy.
HINTS = (
    ("no matches for kind", "install JobSet in the cluster: kubectl apply --server-side -f its manifests.yaml"),
    ("already ?exists", "use another --name, or --do delete first; the training resumes from its last checkpoint"),
    ("quota", "request more quota in the namespace or the zone"),
    ("forbidden", "request permission to create JobSets and ConfigMaps in this namespace"),
    ("connection|unable to connect", "gcloud container clusters get-credentials CLUSTER, or --context"),
    ("context", "kubectl config get-contexts lists them"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of target `gke`.

    Attributes:
      name: name of the JobSet and its ConfigMap.
      do: `all` submits the job; other actions are in `ACTIONS`.
      topology, num_slices: TPU slices to run on.
      image: container image with famjax, and jax with libtpu.
      spot: use spot nodes.
      bucket: bucket to mount at /gcs/BUCKET in every pod.
      service_account: Kubernetes service account of the pods; empty: the namespace's default.
      namespace, context: kubectl's namespace and context; empty: its default.
      chips_per_host: chips per host of the node pool; None: 4, or all chips of a smaller slice.
      grace_seconds: seconds between SIGTERM and SIGKILL.
      template: JobSet template that replaces `launch/gke/jobset.yaml`.
      queue: Kueue queue; empty: submit without Kueue.
      supervision: restarts and hang detection in each pod; `restarts` also applies to the JobSet.
    """

    name: str = ""
    do: str = "all"
    topology: str = ""
    num_slices: int = 1
    image: str = ""
    spot: bool = False
    bucket: str = ""
    service_account: str = ""
    namespace: str = ""
    context: str = ""
    chips_per_host: int | None = None
    grace_seconds: int = 120
    template: str = ""
    queue: str = ""
    supervision: Supervision = dataclasses.field(default_factory=Supervision)

    @property
    def needs_training(self) -> bool:
        """Whether the action needs the settings of a training."""
        return self.do == "all"

    @property
    def slices(self) -> Topology:
        """The topology of all slices. Raises `ConfigError` if it is missing or invalid."""
        if not self.topology:
            raise ConfigError("no topology; add --topology, for example v5e:16x16 or v5p:4x4x4")
        return parse(self.topology, self.num_slices)

    @property
    def read_later(self) -> tuple[str, ...]:
        """Flags that actions without a training read."""
        return ("namespace", "context")

    @property
    def chips(self) -> int:
        """Number of chips per host. Each host runs one pod."""
        return min(self.slices.chips_per_host, 4) if self.chips_per_host is None else self.chips_per_host

    def validate(self, training: Training | None) -> None:
        """Raises `ConfigError` for the first invalid option."""
        check_name(self.name)
        one_of("--do", self.do, ACTIONS)
        for field in ("image", "context"):
            check_plain(f"--{field}", getattr(self, field))
        if "@" in self.service_account:
            raise ConfigError(f"--service-account {self.service_account!r} is a Google Cloud account; name the "
                              f"Kubernetes service account that is bound to it")  # fmt: skip
        kubernetes("--service-account")(self.service_account)
        self.supervision.validate()
        if training is None:
            return
        if not self.image:
            raise ConfigError("no image; add --image IMAGE, a container image with famjax (launch/gke/Dockerfile)")
        at_least("--grace-seconds", self.grace_seconds, 1)
        at_least("--num-slices", self.num_slices, 1)
        possible = {min(self.slices.chips_per_host, 4), self.slices.chips_per_host}
        if self.chips not in possible:
            raise ConfigError(f"--chips-per-host {self.chips} does not fit {self.slices}, whose hosts have "
                              f"{' or '.join(map(str, sorted(possible)))} chips")  # fmt: skip
        check_slices(training, self.slices)
        check_model_dir(training, self.bucket)


def manifests(training: Training, options: Options) -> list[dict[str, Any]]:
    """Returns the ConfigMap and the JobSet. Raises `ConfigError` if the template is not YAML, or lacks a field to fill
    in."""
    settings: dict[str, Any] = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(options), "data": {"run.gin": training.gin},
    }  # fmt: skip
    path = Path(options.template) if options.template else find(TEMPLATE)
    try:
        return [settings, _filled(_read(path), training, options)]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} lacks fields of {TEMPLATE} that are filled in ({error})") from error


def _read(path: Path) -> Any:
    import yaml  # type: ignore[import-untyped, unused-ignore]

    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _metadata(options: Options) -> dict[str, Any]:
    return {"name": options.name} | ({"namespace": options.namespace} if options.namespace else {})


def _filled(jobset: dict[str, Any], training: Training, options: Options) -> dict[str, Any]:
    slices, supervision = options.slices, options.supervision
    jobset["metadata"] |= _metadata(options)
    labels = jobset["metadata"].setdefault("labels", {})
    labels[NAME_LABEL] = options.name  # so that `status` also selects the JobSet itself
    if options.queue:
        labels["kueue.x-k8s.io/queue-name"] = options.queue
    jobset["spec"]["failurePolicy"]["maxRestarts"] = supervision.restarts
    replicated = jobset["spec"]["replicatedJobs"][0]
    replicated["replicas"] = slices.slices
    job = replicated["template"]["spec"]
    hosts = slices.chips // slices.slices // options.chips
    job["parallelism"] = job["completions"] = hosts
    pod = job["template"]
    pod["spec"]["terminationGracePeriodSeconds"] = options.grace_seconds
    selector = pod["spec"]["nodeSelector"]
    selector["cloud.google.com/gke-tpu-accelerator"] = slices.chip.gke
    selector["cloud.google.com/gke-tpu-topology"] = slices.gke_topology
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        pod["spec"]["tolerations"].append({"key": "cloud.google.com/gke-spot", "operator": "Exists"})
    if slices.slices > 1:  # traffic between slices (DCN) uses the hosts' network
        pod["spec"] |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    container = pod["spec"]["containers"][0]
    container["image"] = options.image
    in_pod = dataclasses.replace(supervision, restarts=min(supervision.restarts, RESTARTS_IN_POD))
    container["args"] = [escaped(word) for word in worker_words("/job/run.gin", in_pod)]
    if hosts * slices.slices == 1:
        # Otherwise famjax would try to detect the other pods, which a one-pod job does not have.
        container["env"].append({"name": "JAX_NUM_PROCESSES", "value": "1"})
    for kind in ("requests", "limits"):
        container["resources"][kind]["google.com/tpu"] = options.chips
    next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "job")["configMap"]["name"] = options.name
    if options.service_account:
        pod["spec"]["serviceAccountName"] = options.service_account
    if options.bucket:
        _mount_bucket(pod, container, options.bucket)
    return jobset


def _mount_bucket(pod: dict[str, Any], container: dict[str, Any], bucket: str) -> None:
    """Mounts the bucket with GKE's Cloud Storage FUSE driver, which adds a sidecar container."""
    pod["metadata"].setdefault("annotations", {})["gke-gcsfuse/volumes"] = "true"
    attributes = {"bucketName": bucket, "mountOptions": "implicit-dirs,rename-dir-limit=100000"}
    if pod["spec"].get("hostNetwork"):
        attributes["hostNetworkPodKSA"] = "true"
    driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
    pod["spec"]["volumes"].append({"name": "bucket", "csi": driver})
    container["volumeMounts"].append({"name": "bucket", "mountPath": f"{MOUNT}/{bucket}"})


def escaped(word: str) -> str:
    """Escapes a word of `args`, in which Kubernetes expands $(NAME) and reads $$ as $."""
    return word.replace("$", "$$")


def as_yaml(documents: list[dict[str, Any]]) -> str:
    """Returns the documents as YAML for `kubectl -f -`."""
    import yaml  # type: ignore[import-untyped, unused-ignore]

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        pass

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, default_flow_style=False, width=1000)


def kubectl(options: Options, why: str, *words: str, text: str = "") -> Command:
    """Returns a kubectl command for the job's context and namespace."""
    place = [f"--context={options.context}"] if options.context else []
    place += [f"--namespace={options.namespace}"] if options.namespace else []
    return Command(["kubectl", *words, *place], why, text)


def logs(options: Options) -> Command:
    """Returns the command that follows the log of process 0, on the first host of the first slice."""
    first = f"{NAME_LABEL}={options.name},jobset.sigs.k8s.io/job-index=0"
    selector = f"--selector={first},batch.kubernetes.io/job-completion-index=0"
    return kubectl(options, "the log of process 0", "logs", "--follow", "--tail=-1", "--container=train", selector)


def deletion(options: Options) -> Command:
    """Returns the command that deletes JobSet, pods and ConfigMap. Checkpoints remain in the bucket."""
    both = (f"jobset/{options.name}", f"configmap/{options.name}")
    return kubectl(options, "delete it", "delete", "--ignore-not-found", *both)


def status(options: Options) -> Command:
    """Returns the command that shows the JobSet and its pods."""
    return kubectl(options, "its status", "get", "jobset,job,pod", f"--selector={NAME_LABEL}={options.name}")


def submissions(training: Training, options: Options) -> list[Command]:
    """Returns (check, submission). The check is a server-side dry run, which fails before anything is created."""
    text = as_yaml(manifests(training, options))
    return [
        kubectl(options, "check with the cluster", "create", "--dry-run=server", "--filename=-", text=text),
        kubectl(options, "submit it", "create", "--filename=-", text=text),
    ]


def show(training: Training | None, options: Options) -> str:
    """Returns all commands that `run` would run, with the manifest, as text."""
    if training is None:
        return shown(LATER[options.do](options))
    check, submit = submissions(training, options)
    after = [shown(make(options)) for make in (logs, deletion)]
    return "\n".join([shown(check._replace(text="")), shown(submit), *after])


def run(training: Training | None, options: Options) -> int:
    """Submits the job, or runs the action `options.do`. Raises `Failed` with a remedy and the resources that remain."""
    if training is None:
        return commands.stream(LATER[options.do](options))
    check, submit = submissions(training, options)
    ended = f"delete what was created: {shlex.join(deletion(options).words)}"
    for command, left in ((check, "nothing was created"), (submit, ended)):
        result = commands.run(command)
        if result.code:
            hint = commands.remedy(result.reason, HINTS) or "see kubectl's message"
            raise Failed(f"{options.name} was not submitted: {result.reason}; {hint}; {left}")
    slices = options.slices
    say(f"{options.name} is submitted: {slices.slices} x {slices}; it is billed while its pods run")
    for what, make in (("its log", logs), ("its status", status), ("delete it", deletion)):
        say(f"{what}: {shlex.join(make(options).words)}")
    return 0


LATER = {"logs": logs, "status": status, "delete": deletion}
