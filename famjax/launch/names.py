"""Normalises names of Google Cloud and Kubernetes resources that users paste as URLs or paths."""

import re
from collections.abc import Callable
from typing import Any

from famjax.config import ConfigError
from famjax.launch.job import MOUNT, check_plain, near

_BUCKET_PLACES = (
    "gs://", "gcs://", "https://storage.googleapis.com/", "https://storage.cloud.google.com/",
    "https://console.cloud.google.com/storage/browser/", f"{MOUNT}/",
)  # fmt: skip


def bucket(text: str) -> str:
    """Returns `b` for `gs://b/`. Raises `ConfigError` for a folder in a bucket, or for other invalid names."""
    place = next((place for place in _BUCKET_PLACES if text.lower().startswith(place)), "")
    name, _, folder = text[len(place) :].partition("?")[0].strip().strip("/").partition("/")
    if "://" in text and not place:
        raise ConfigError(f"--bucket {text!r} is not a Google Cloud Storage bucket; write its name, as in gs://NAME")
    check_plain("--bucket", name)
    if name != name.lower() or ":" in name or "@" in name:
        raise ConfigError(f"--bucket {text!r} is not a valid bucket name; use a-z, 0-9 and . _ -, for example "
                          f"{re.sub('[:@]', '-', name.lower())}")  # fmt: skip
    if folder := folder.strip("/"):
        raise ConfigError(f"--bucket {text!r} is a folder in a bucket; write --bucket {name} and "
                          f"--gin.MODEL_DIR=\"'{MOUNT}/{name}/{folder}/RUN'\"")  # fmt: skip
    return name


def zone(text: str) -> str:
    """Returns `us-east5-a` for `US-East5-A` or `projects/P/zones/us-east5-a`. Raises `ConfigError` for a region."""
    name = _last(text, "zones").lower()
    check_plain("--zone", name)
    if re.fullmatch(r"[a-z]+-[a-z]+\d+", name):
        raise ConfigError(f"--zone {text!r} is a region; name one of its zones, such as {name}-a: "
                          f"gcloud compute tpus locations list shows them")  # fmt: skip
    if name and not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z][a-z0-9]*", name):
        raise ConfigError(f"--zone {text!r} is not a zone; write one such as us-east5-a: gcloud compute tpus locations "
                          f"list shows them")  # fmt: skip
    return name


def project(text: str) -> str:
    """Returns `P` for `projects/P`. Raises `ConfigError` for a project's display name."""
    name = _last(text, "projects")
    if name and not re.fullmatch(r"([a-z0-9.-]+:)?[a-z0-9][a-z0-9-]*", name):
        raise ConfigError(f"--project {text!r} is not a project id, which has only a-z, 0-9 and -; gcloud projects "
                          f"list shows the ids")  # fmt: skip
    return name


def kubernetes(flag: str) -> Callable[[str], str]:
    """Returns a function that normalises a Kubernetes name, or raises `ConfigError` with a suggestion."""

    def read(text: str) -> str:
        name = text.strip().strip("/")
        check_plain(flag, name)
        if name and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", name):
            raise ConfigError(f"{flag} {text!r} is not a Kubernetes name; use up to 63 of a-z, 0-9 and -, such as "
                              f"{near(name.rpartition('/')[2])}")  # fmt: skip
        return name

    return read


def image(text: str) -> str:
    """Returns `reg.io/p/x:1` for `docker://reg.io/p/x:1`. Raises `ConfigError` for capitals before the tag."""
    name = re.sub(r"^(docker|https?)://", "", text.strip()).rstrip("/")
    repository = re.split(r"@|:[^/]*$", name)[0]
    if repository != repository.lower():
        small = repository.lower() + name[len(repository) :]
        raise ConfigError(f"--image {text!r} has capitals, which no image can be pulled by; write {small}")
    return name


def _last(text: str, kind: str) -> str:
    """Returns the name after `KIND/` in a Google Cloud path or URL, or all of the text if there is no `KIND/`."""
    parts = text.strip().rstrip("/").split("/")
    return parts[parts.index(kind) + 1] if kind in parts[:-1] else "/".join(parts)


READ: dict[str, Callable[[str], str]] = {
    "bucket": bucket, "zone": zone, "project": project, "image": image, "topology": lambda text: text.strip().lower(),
    "accelerator_type": lambda text: text.strip().lower(), "namespace": kubernetes("--namespace"),
    "queue": kubernetes("--queue"),
}  # fmt: skip


def normalised(name: str, value: Any) -> Any:
    """Returns the value of option `name` as the cloud accepts it. Raises `ConfigError` with a suggestion."""
    return READ[name](value) if name in READ and isinstance(value, str) else value
