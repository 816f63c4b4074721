"""The training to launch, and checks of its name, mesh and directories against a target."""

import dataclasses
import math
import re
from pathlib import PurePosixPath

from famjax.config import MESH_AXES, ConfigError, TrainConfig
from famjax.config.tpu import Topology

# Names that are valid in Google Cloud, Kubernetes and Slurm, and never need quoting.
NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")
# Mount point of buckets on every host, so that MODEL_DIR is an ordinary path.
MOUNT = "/gcs"


@dataclasses.dataclass(frozen=True)
class Training:
    """A validated training that is ready to start.

    Attributes:
      words: `train` and its flags, for this machine.
      config: the configuration that these flags give.
      gin: the same configuration as the text of one gin file, for machines that lack this machine's gin files.
    """

    words: tuple[str, ...]
    config: TrainConfig
    gin: str


def check_name(name: str) -> None:
    """Raises `ConfigError` unless the name is valid for a job."""
    if not name:
        raise ConfigError("the job has no name; add --name NAME, for example --name fam-1b")
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} is not a valid job name; use up to 40 of a-z, 0-9 and -, a letter first, "
                          f"for example {near(name)}")  # fmt: skip


def near(text: str) -> str:
    """Returns a valid name close to an invalid one: `fam-1b` for `Fam_1B`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).lstrip("0123456789-")[:40].strip("-") or "fam-1b"


def check_plain(flag: str, text: str) -> None:
    """Raises `ConfigError` if a value has characters that cloud names cannot have; empty is valid."""
    if text and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", text):
        raise ConfigError(f"{flag} {text!r} has invalid characters; use a-z, 0-9 and . _ - / : @")


def check_mesh(training: Training, devices: int, where: str) -> None:
    """Raises `ConfigError` unless the mesh has `devices` devices; the message describes the target as `where`."""
    sizes = training.config.mesh_sizes
    if math.prod(sizes) == devices:
        return
    mesh = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    data, _, tensor = sizes
    fitting = {"data": data, "fsdp": devices // (data * tensor), "tensor": tensor}
    hint = f"--gin.MESH='{written(fitting)}' would fit" if math.prod(fitting.values()) == devices else "change MESH"
    raise ConfigError(f"MESH ({mesh}) is for {math.prod(sizes)} devices, but {where} have {devices}; {hint}")


def written(mesh: dict[str, int]) -> str:
    """Returns a mesh in gin's syntax for a command line."""
    return "{" + ", ".join(f'"{axis}": {size}' for axis, size in mesh.items()) + "}"


def check_slices(training: Training, topology: Topology) -> None:
    """Raises `ConfigError` unless the mesh has the devices of the slices, and `data` is a multiple of their number."""
    slices = f"{topology.slices} slices of {topology}" if topology.slices > 1 else f"the chips of {topology}"
    check_mesh(training, topology.devices, slices)
    data = training.config.mesh_sizes[0]
    if data % topology.slices:
        raise ConfigError(f"MESH has data {data}, which runs across slices and must be a multiple of their number, "
                          f"{topology.slices}")  # fmt: skip


def check_model_dir(training: Training, bucket: str) -> None:
    """Raises `ConfigError` unless MODEL_DIR is in the bucket or, without a bucket, an absolute path."""
    path = PurePosixPath(training.config.model_dir)
    if bucket:
        check_plain("--bucket", bucket)
        root = PurePosixPath(MOUNT) / bucket
        if root not in path.parents or ".." in path.parts:
            given = training.config.model_dir
            remote = given.partition(f"gs://{bucket}/")[2].strip("/")
            raise ConfigError(f"MODEL_DIR {given} is not in the bucket, which is mounted at {root}; "
                              f"set --gin.MODEL_DIR=\"'{root}/{remote or path.name or 'run'}'\"")  # fmt: skip
    elif not path.is_absolute():
        raise ConfigError(f"MODEL_DIR {path} is relative, so each host would have its own; add --bucket NAME and set "
                          f"--gin.MODEL_DIR=\"'{MOUNT}/NAME/{path.name or 'run'}'\", or name an absolute path that "
                          f"all hosts share")  # fmt: skip
