"""What is launched: a training whose settings were checked here, and the places where its devices are."""

import dataclasses
import math
import re
from pathlib import PurePosixPath

from famjax.config import MESH_AXES, ConfigError, TrainConfig
from famjax.config.tpu import Topology

# Names in Google Cloud, Kubernetes and Slurm alike; nothing in it needs quoting anywhere.
NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")
# A bucket is mounted here on every host, so that MODEL_DIR is an ordinary path.
MOUNT = "/gcs"


@dataclasses.dataclass(frozen=True)
class Training:
    """A training, checked and ready to be started somewhere.

    Attributes:
      words: `train` and its flags, as they run on this machine.
      config: what they mean.
      gin: the same settings as the text of one gin file, for machines that have none of this one's files.
    """

    words: tuple[str, ...]
    config: TrainConfig
    gin: str


def check_name(name: str) -> None:
    """Raises `ConfigError` unless a job can have this name."""
    if not name:
        raise ConfigError("the job has no name; add --name NAME, for example --name fam-1b")
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} cannot be a job's name; use up to 40 of a-z, 0-9 and -, a letter first, "
                          f"for example {near(name)}")  # fmt: skip


def near(text: str) -> str:
    """A name that clouds take, for one that they do not: `fam-1b` for `Fam_1B`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).lstrip("0123456789-")[:40].strip("-") or "fam-1b"


def check_plain(flag: str, text: str) -> None:
    """Raises `ConfigError` on a value with letters that names in a cloud do not have; empty is fine."""
    if text and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", text):
        raise ConfigError(f"{flag} {text!r} has letters that no such name has; use a-z, 0-9 and . _ - / : @")


def check_mesh(training: Training, devices: int, where: str) -> None:
    """Raises `ConfigError` unless the mesh has as many devices as there are; `where` says how many of what."""
    sizes = training.config.mesh_sizes
    if math.prod(sizes) == devices:
        return
    mesh = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    data, _, tensor = sizes
    fitting = {"data": data, "fsdp": devices // (data * tensor), "tensor": tensor}
    hint = f"--gin.MESH='{written(fitting)}' would fit" if math.prod(fitting.values()) == devices else "change MESH"
    raise ConfigError(f"MESH ({mesh}) is for {math.prod(sizes)} devices, but {where} have {devices}; {hint}")


def written(mesh: dict[str, int]) -> str:
    """A mesh as gin has it on a command line."""
    return "{" + ", ".join(f'"{axis}": {size}' for axis, size in mesh.items()) + "}"


def check_slices(training: Training, topology: Topology) -> None:
    """Raises `ConfigError` where a mesh does not fit the slices: their number and chips, and what runs across them."""
    slices = f"{topology.slices} slices of {topology}" if topology.slices > 1 else f"the chips of {topology}"
    check_mesh(training, topology.devices, slices)
    data = training.config.mesh_sizes[0]
    if data % topology.slices:
        raise ConfigError(f"MESH has data {data}, which runs across slices and must be a multiple of their number, "
                          f"{topology.slices}")  # fmt: skip


def check_model_dir(training: Training, bucket: str) -> None:
    """Raises `ConfigError` where MODEL_DIR cannot be a directory that all hosts share and that outlives them."""
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
        raise ConfigError(f"MODEL_DIR {path} is relative, and each host has a directory of its own of that name; add "
                          f"--bucket NAME and set --gin.MODEL_DIR=\"'{MOUNT}/NAME/{path.name or 'run'}'\", or name "
                          f"an absolute path that all hosts share")  # fmt: skip
