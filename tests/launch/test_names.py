"""Names as Google's pages and consoles show them: one meaning is taken, two are refused with what to write."""

import itertools

import pytest

from famjax.config import ConfigError
from famjax.config.tpu import CHIPS, of_accelerator_type, parse
from famjax.launch import names
from famjax.launch.job import check_name

PLACES = ("", "gs://", "GS://", "https://storage.googleapis.com/", "https://console.cloud.google.com/storage/browser/",
          "/gcs/")  # fmt: skip
PROJECT_PATH = "projects/my-project-1"


@pytest.mark.parametrize(("place", "end"), list(itertools.product(PLACES, ("", "/", "//", " "))))
def test_buckets(place: str, end: str) -> None:
    """Any notation of a bucket gives its name; a folder belongs into MODEL_DIR, which the error says."""
    for name in ("b", "my-bucket", "a.b_c-1", "example.com"):
        assert names.bucket(f"{place}{name}{end}") == name
        with pytest.raises(ConfigError, match=f"--bucket {name} and --gin.MODEL_DIR=\"'/gcs/{name}/runs/a/RUN'\""):
            names.bucket(f"{place}{name}/runs/a{end}")
    with pytest.raises(ConfigError, match="use a-z, 0-9 and . _ -, for example my-bucket"):
        names.bucket(f"{place}My-Bucket{end}")


@pytest.mark.parametrize("text", ["s3://b", "az://b/x", "https://example.com/b", "memory://b", "hdfs://b"])
def test_other_clouds_buckets(text: str) -> None:
    """Only Google's are mounted."""
    with pytest.raises(ConfigError, match="is not a Google Cloud Storage bucket; write its name"):
        names.bucket(text)


ZONES = (
    "us-east5-a",
    "us-central2-b",
    "europe-west4-a",
    "asia-northeast1-b",
    "northamerica-northeast1-c",
    "us-south1-ai1b",
)


@pytest.mark.parametrize("zone", ZONES)
def test_zones(zone: str) -> None:
    """In capitals, as a path, with a trailing slash; a region is refused, with one of its zones suggested."""
    region = zone.rpartition("-")[0]
    for before, change, end in itertools.product(
        ("", "zones/", f"{PROJECT_PATH}/zones/", f"https://www.googleapis.com/compute/v1/{PROJECT_PATH}/zones/"),
        (str, str.upper), ("", "/", " "),
    ):  # fmt: skip
        assert names.zone(f"{before}{change(zone)}{end}") == zone
        with pytest.raises(ConfigError, match=f"is a region; name one of its zones, such as {region}-a"):
            names.zone(f"{before}{change(region)}{end}")


@pytest.mark.parametrize(
    "text", ["us", "east5-a", "us-east-a", "useast5a", "us-east5-1", "us_east5_a", "a b", "us-east5-a;ls"]
)
def test_what_is_no_zone(text: str) -> None:
    """One line, with a zone to write."""
    with pytest.raises(ConfigError, match="is not a zone; write one such as us-east5-a|has invalid characters"):
        names.zone(text)


def test_projects() -> None:
    """An id, also of a domain, a number, or a path with one; a display name is refused."""
    for text in ("my-project-1", f"{PROJECT_PATH}/", PROJECT_PATH, f"{PROJECT_PATH}/zones/us-east5-a"):
        assert names.project(text) == "my-project-1"
    assert names.project("example.com:p1") == "example.com:p1" and names.project("123456") == "123456"
    for text in ("My Project", "MyProject", "my_project", "p;ls"):
        with pytest.raises(ConfigError, match="is not a project id, .*gcloud projects list"):
            names.project(text)


def test_kubernetes_and_images() -> None:
    """Queues and namespaces without slashes and capitals; images without a protocol."""
    queue = names.READ["queue"]
    assert queue("user-queue/") == queue(" user-queue") == "user-queue" and queue("") == ""
    for text, near in (("User_Queue", "user-queue"), ("team/User-Queue", "user-queue"), ("q" * 64, "q" * 40)):
        with pytest.raises(ConfigError, match=f"--queue .* is not a Kubernetes name; .*such as {near}$"):
            queue(text)
    assert queue("q" * 63) == "q" * 63
    for text in ("docker://reg.io/p/x:1", "https://reg.io/p/x:1/", "reg.io/p/x:1"):
        assert names.image(text) == "reg.io/p/x:1"
    for text in ("localhost:5000/p/x:V1", "reg.io/p/x@sha256:AB", "reg.io:5000/x"):
        assert names.image(text) == text
    with pytest.raises(
        ConfigError, match="--image 'reg.io:5/Team/x@sha256:AB' has .*; write reg.io:5/team/x@sha256:AB"
    ):
        names.image("reg.io:5/Team/x@sha256:AB")


def test_job_names_say_what_is_near() -> None:
    """The near name is one that passes."""
    for text, near in {
        "Fam_1B": "fam-1b",
        "1b fam": "b-fam",
        "fam.1b": "fam-1b",
        "FAM-": "fam",
        "x" * 50: "x" * 40,
    }.items():
        with pytest.raises(ConfigError, match=f"a letter first, for example {near}$"):
            check_name(text)
        check_name(near)


def test_slices_in_capitals_and_by_their_other_names() -> None:
    """V5P:4x2x2, v5e-16 for v5litepod-16, and an accelerator type given as a topology."""
    assert str(parse(" V5P:4X2X2 ")) == "v5p:4x2x2"
    for chip in CHIPS.values():
        number = 16 * (chip.cores if chip.counts_cores else 1)
        wanted = of_accelerator_type(f"{chip.accelerator}-{number}")
        for name in (f"{chip.name}-{number}", f"{chip.accelerator.upper()}-{number}"):
            assert of_accelerator_type(name) == wanted
            with pytest.raises(ConfigError, match=f"is not written VERSION:SHAPE; {wanted} would be"):
                parse(name)
    with pytest.raises(ConfigError, match="is not one of .*v5litepod-N"):
        of_accelerator_type("tpu-v5-lite-podslice")
