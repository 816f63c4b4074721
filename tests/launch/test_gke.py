"""`famjax launch --target gke`: its manifests, and a `kubectl` that notes what it is told.

The Job inside of the JobSet and the ConfigMap are checked against Kubernetes' own schema. No package has the schema of
the JobSet around them; its fields that famjax fills in are written down here as JobSet's v1alpha2 has them.
"""

import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from famjax.cli import main
from famjax.cli.gin_config import load_train_config
from famjax.launch import gke
from tests.launch.standins import HOSTILE, install

KUBERNETES = "1.33"


def only(*required: str, **fields: dict) -> dict:
    """An object of these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


TEXT, WHOLE, FLAG, ANY = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "object"}
RULE = only(
    "action", "name", name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons={"type": "array", "items": TEXT}, targetReplicatedJobs={"type": "array", "items": TEXT},
)  # fmt: skip
JOBSET = only(
    "apiVersion", "kind", "metadata", "spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"}, kind={"const": "JobSet"},
    metadata=only("name", name=TEXT, namespace=TEXT, labels=ANY, annotations=ANY),
    spec=only(
        "replicatedJobs", network=only(enableDNSHostnames=FLAG, publishNotReadyAddresses=FLAG, subdomain=TEXT),
        failurePolicy=only(maxRestarts=WHOLE, rules={"type": "array", "items": RULE},
                           restartStrategy={"enum": ["Recreate", "BlockingRecreate"]}),
        replicatedJobs={"type": "array", "items": only(
            "name", "template", name=TEXT, groupName=TEXT, replicas=WHOLE,
            template=only("spec", metadata=ANY, spec=ANY),
        )},
    ),
)  # fmt: skip


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    return install(tmp_path, monkeypatch, "kubectl")


def launch(gin: list[str], *flags: str) -> int:
    words = ["--name", "fam-1", "--topology", "v5p:4x2x2", "--image", "reg.io/p/famjax:1", "--bucket", "b"]
    return main.main(["launch", "--target", "gke", *words, *gin, *flags])


def submitted(kubectl) -> tuple[dict, dict]:
    """The ConfigMap and the JobSet that kubectl was given."""
    settings, jobset = yaml.safe_load_all(kubectl.calls[-1][2])
    return settings, jobset


def job_of(jobset: dict) -> dict:
    """The Job that the JobSet makes of a slice, as a manifest of its own."""
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"},
            "spec": jobset["spec"]["replicatedJobs"][0]["template"]["spec"]}  # fmt: skip


@pytest.mark.parametrize("flags", [
    [], ["--bucket", ""],
    ["--spot", "--queue", "q1", "--namespace", "ns", "--context", "gke_p_z_c", "--service-account", "sa"],
    ["--topology", "v5p:2x2x2", "--num-slices", "2"],
    ["--topology", "v6e:2x4", "--chips-per-host", "8", "--gin.MESH={'data': 8}"],
])  # fmt: skip
def test_manifests_are_valid(kubectl, gin, flags):
    """Strictly: unknown fields count as errors."""
    assert launch(gin, *flags) == 0
    settings, jobset = submitted(kubectl)
    for manifest in (settings, job_of(jobset)):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    jsonschema.validate(jobset, JOBSET)


def test_the_validation_itself_finds_mistakes(kubectl, gin):
    """A misspelt field, and one of the wrong type."""
    launch(gin)
    job = job_of(submitted(kubectl)[1])
    job["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)
    jobset = submitted(kubectl)[1]
    for change in ({"network": {"enableDNSHostname": True}}, {"failurePolicy": {"rules": [{"action": "FailJob"}]}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(jobset | {"spec": jobset["spec"] | change}, JOBSET)


def test_slices_hosts_and_labels(kubectl, gin):
    """Two slices of 2x2x2 v5p: a Job each, two pods a Job with four chips each, on nodes of that kind and shape."""
    assert launch(gin, "--topology", "v5p:2x2x2", "--num-slices", "2", "--spot", "--grace-seconds", "90",
                  "--restarts", "7") == 0  # fmt: skip
    _, jobset = submitted(kubectl)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    # The label that `--do status` selects by: the JobSet's controller sets it on Jobs and pods only.
    assert jobset["metadata"]["labels"] == {"jobset.sigs.k8s.io/jobset-name": "fam-1"}
    rule = {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 7, "rules": [rule]}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 2, 2, 0)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice", "cloud.google.com/gke-tpu-topology": "2x2x2",
        "cloud.google.com/gke-spot": "true",
    }  # fmt: skip
    assert pod["hostNetwork"] and pod["terminationGracePeriodSeconds"] == 90 and pod["restartPolicy"] == "Never"
    container = pod["containers"][0]
    assert container["resources"] == {"requests": {"google.com/tpu": 4}, "limits": {"google.com/tpu": 4}}
    assert {volume["mountPath"] for volume in container["volumeMounts"]} == {"/dev/shm", "/job", "/gcs/b"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory"}
    assert volumes["bucket"]["csi"]["volumeAttributes"]["bucketName"] == "b"
    names = {variable["name"] for variable in container["env"]}
    assert not any(name.startswith(("MEGASCALE", "TPU_", "JAX_")) for name in names), "the platform sets them"


def test_a_single_host_is_told_that_it_is_alone(kubectl, gin):
    """So that famjax does not look for other pods of its Job."""
    assert launch(gin, "--topology", "v5e:2x2", "--gin.MESH={'data': 4}") == 0
    _, jobset = submitted(kubectl)
    env = job_of(jobset)["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "JAX_NUM_PROCESSES", "value": "1"} in env


def test_settings_travel_in_the_config_map(kubectl, gin, tmp_path):
    """Quotes, dollars and line breaks come out of YAML as they were; no part of a command."""
    assert launch(gin, f"--gin.MODEL_DIR={HOSTILE!r}") == 0
    settings, jobset = submitted(kubectl)
    assert settings["metadata"]["name"] == "fam-1" == jobset["metadata"]["name"]
    path = tmp_path / "there.gin"
    path.write_text(settings["data"]["run.gin"])
    assert load_train_config([str(path)])[0] == load_train_config(gin[1:], (), [f"MODEL_DIR={HOSTILE!r}"])[0]
    pod = job_of(jobset)["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"][-2:] == ["--gin_file", "/job/run.gin"]
    assert {"name": "job", "configMap": {"name": "fam-1"}} in pod["volumes"]


def expanded(text: str, variables: dict[str, str]) -> str:
    """Kubernetes' rule for `args`: $(NAME) of a known variable is its value, $$ is $, all else stays."""
    return re.sub(r"\$\$|\$\(([^)]*)\)",
                  lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]), text)  # fmt: skip


@pytest.mark.parametrize("word", ["$(HOME)", "$$(HOME)", "a$b", "$$", "$", "$(", "$$$(HOME)"])
def test_words_are_escaped_for_kubernetes(word):
    """What a container gets is the word itself."""
    assert expanded(gke.escaped(word), {"HOME": "oops"}) == word


def test_the_cluster_is_asked_first(kubectl, gin, capfd):
    """A dry run on the server, then the same text for real; then where to look and how to end it."""
    assert launch(gin, "--namespace", "ns", "--context", "c1") == 0
    place = ["--context=c1", "--namespace=ns"]
    (first, check, before), (second, create, text) = kubectl.calls
    assert (first, check) == ("dry-run", ["kubectl", "create", "--dry-run=server", "--filename=-", *place])
    assert (second, create) == ("create", ["kubectl", "create", "--filename=-", *place])
    assert before == text
    err = capfd.readouterr().err
    assert "fam-1 is submitted: 1 x v5p:4x2x2; it is billed while its pods run" in err
    assert "kubectl delete --ignore-not-found jobset/fam-1 configmap/fam-1 --context=c1 --namespace=ns" in err


def test_a_cluster_without_jobset(kubectl, gin, capfd):
    """Found before anything is made."""
    kubectl.answer(dry_run=[[1, "", 'error: no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"']])
    assert launch(gin) == 1
    assert len(kubectl.calls) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert "install JobSet in the cluster" in line and line.endswith("nothing was created")


def test_a_submission_that_breaks_off(kubectl, gin, capfd):
    """Part of it may have been created: the error says how to delete it."""
    kubectl.answer(create=[[1, "", "Error from server: exceeded quota"]])
    assert launch(gin) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert "exceeded quota; request more quota" in line
    assert line.endswith("kubectl delete --ignore-not-found jobset/fam-1 configmap/fam-1")


def test_later_parts(kubectl):
    """Logs, status and delete need the name alone; the log is that of process 0."""
    for action, words in (
        ("logs", ["logs", "--follow", "--tail=-1", "--container=train", "--selector="
                  "jobset.sigs.k8s.io/jobset-name=fam-1,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"]),
        ("status", ["get", "jobset,job,pod", "--selector=jobset.sigs.k8s.io/jobset-name=fam-1"]),
        ("delete", ["delete", "--ignore-not-found", "jobset/fam-1", "configmap/fam-1"]),
    ):  # fmt: skip
        assert main.main(["launch", "--target", "gke", "--name", "fam-1", "--do", action]) == 0
        assert kubectl.calls[-1][1] == ["kubectl", *words]


def test_dry_run_prints_the_manifest_and_runs_nothing(kubectl, gin, capfd):
    """What is printed between the marks is what kubectl would read."""
    assert launch(gin, "--dry-run") == 0
    assert kubectl.calls == []
    out = capfd.readouterr().out
    text = out.split("<<'END'\n")[1].split("\nEND\n")[0]
    launch(gin)
    assert list(yaml.safe_load_all(text)) == list(yaml.safe_load_all(kubectl.calls[-1][2]))


@pytest.mark.parametrize(("flags", "message"), [
    (["--image", ""], "no image; add --image IMAGE"),
    (["--image", "a b"], "--image 'a b' has invalid characters"),
    *((["--chips-per-host", str(n)], f"--chips-per-host {n} does not fit v5p:4x2x2, whose hosts have 4 chips")
      for n in (0, 1, 3, 8)),
    (["--topology", "v6e:2x4", "--chips-per-host", "1", "--gin.MESH={'data': 8}"],
     "--chips-per-host 1 does not fit v6e:2x4, whose hosts have 4 or 8 chips"),
    (["--num-slices", "0"], "--num-slices is 0; it must be at least 1"),
    (["--image", "Reg.io/P:V1"], "--image 'Reg.io/P:V1' has capitals, which no image can be pulled by"),
    (["--service-account", "Train_er"], "--service-account 'Train_er' is not a Kubernetes name; use up to 63 of"),
    (["--hang-seconds", "nan"], "--hang-seconds is nan; it must be at least 0"),
    (["--do", "logs"], "--gin_file has no effect with --do logs; leave it out"),
    (["--topology", "v5e:16x16"], "MESH (data 2 x fsdp 8 x tensor 1) is for 16 devices, but the chips of v5e:16x16"),
    (["--template", "nowhere.yaml"], "nowhere.yaml: No such file or directory"),
    (["--zone", "z"], "--zone is not a flag of target gke"),
])  # fmt: skip
def test_mistakes_are_told_first(kubectl, gin, capfd, flags, message):
    """One line, exit code 2, nothing is called."""
    assert launch(gin, *flags) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"famjax launch: {message}") and err.count("\n") == 1 and kubectl.calls == []


@pytest.mark.parametrize("text", ["[]", "a: b", "- x: [", "spec: {replicatedJobs: []}\nmetadata: {}"])
def test_a_template_that_is_none(kubectl, gin, capfd, tmp_path, text):
    """One line that names the file."""
    path = tmp_path / "t.yaml"
    path.write_text(text)
    assert launch(gin, "--template", str(path)) == 2
    assert f"famjax launch: {path} " in capfd.readouterr().err and kubectl.calls == []
    path.write_bytes(b"\xff")
    assert launch(gin, "--template", str(path)) == 2
    assert f"famjax launch: {path}: this is not UTF-8 text" in capfd.readouterr().err
