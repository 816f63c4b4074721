"""`famjax launch --target tpu-vm` against a `gcloud` that records its calls and fails on demand."""

import json
import os
import shlex
import subprocess
import tarfile

import pytest

from famjax.cli import main
from famjax.cli.gin_config import load_train_config
from famjax.launch import tpu_vm
from tests.launch.standins import HOSTILE, install

PLACE = ["--zone=us-east5-a", "--project=p1", "--quiet"]
ACTIVE = [0, '{"state": {"state": "ACTIVE"}}', ""]
READY = "w0: famjax 0.1, libtpu 1, Python 3.11\nw1: famjax 0.1, libtpu 1, Python 3.11\n"
LOST = [1, "", "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255]."]
ALL = ["create", "describe", "scp", "setup", "start", "follow"]


def state(name: str, error: str = "") -> list:
    failed = {"failedData": {"error": {"message": error}}} if error else {}
    return [0, json.dumps({"state": {"state": name, **failed}}), ""]


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """The stand-in; time passes only in sleeps."""
    found = install(tmp_path, monkeypatch, "gcloud")
    clock = [0.0]
    monkeypatch.setattr(tpu_vm.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(tpu_vm.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    return found


def launch(gin: list[str], *flags: str) -> int:
    words = ["--name", "fam-1", "--zone", "us-east5-a", "--project", "p1", "--topology", "v5p:4x2x2", "--bucket", "b"]
    return main.main(["launch", "--target", "tpu-vm", *words, *gin, *flags])


def said(capfd) -> str:
    """The last line on standard error."""
    return capfd.readouterr().err.splitlines()[-1]


def test_all_steps_in_their_order(gcloud, gin, capfd):
    """Create, wait, set up, start, follow: every command and flag; the TPU is kept at the end, which is reported."""
    gcloud.answer(describe=[state("WAITING_FOR_RESOURCES"), state("PROVISIONING"), ACTIVE], setup=[[0, READY, ""]])
    assert launch(gin, "--spot", "--network", "net-1") == 0
    assert gcloud.asked == ["create", "describe", "describe", "describe", "scp", "setup", "start", "follow"]
    calls = {key: words for key, words, _ in gcloud.calls}
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    create = [*queued, "create", "fam-1", "--accelerator-type=v5p-32", "--runtime-version=v2-alpha-tpuv5"]
    assert calls["create"] == [*create, "--node-id=fam-1", "--spot", "--network=net-1", *PLACE]
    assert calls["describe"] == [*queued, "describe", "fam-1", "--format=json(state)", *PLACE]
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "fam-1"]
    script = "bash famjax-fam-1/launch/tpu_vm/worker.sh"
    old = "famjax-fam-1/famjax famjax-fam-1/gin famjax-fam-1/launch"
    busy = "kill -0 $(cat famjax-fam-1/job/pid 2>/dev/null) 2>/dev/null"
    unpack = f"if {busy}; then echo 'a job runs here: --do stop first' >&2; exit 1; fi; "
    unpack += f"mkdir -p famjax-fam-1 && rm -rf {old} && tar -xzf famjax-fam-1.tar.gz -C famjax-fam-1"
    assert calls["setup"] == [*ssh, "--worker=all", f"--command={unpack} && {script} setup b", *PLACE]
    assert calls["start"] == [*ssh, "--worker=all", f"--command={script} start", *PLACE]
    assert calls["follow"] == [*ssh, "--worker=0", f"--command={script} follow +1", *PLACE]
    assert calls["scp"][:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert calls["scp"][6:] == ["fam-1:famjax-fam-1.tar.gz", "--worker=all", *PLACE]
    delete = shlex.join([*queued, "delete", "fam-1", "--force", *PLACE])
    assert said(capfd) == (
        f"famjax launch: the training is finished; fam-1 is kept and billed until it is deleted: {delete}"
    )


def test_slices_are_nodes_of_one_request(gcloud, gin):
    """Two slices: one queued resource of two nodes, each of which is set up and started; one log."""
    gcloud.answer(describe=[ACTIVE])
    assert launch(gin, "--topology", "v5p:2x2x2", "--num-slices", "2") == 0
    create = gcloud.calls[0][1]
    assert {"--accelerator-type=v5p-16", "--node-count=2", "--node-prefix=fam-1"} <= set(create)
    assert not any(word.startswith("--node-id") for word in create)
    nodes = {key: sorted(words[5] for k, words, _ in gcloud.calls if k == key) for key in ("setup", "start", "follow")}
    assert nodes == {"setup": ["fam-1-0", "fam-1-1"], "start": ["fam-1-0", "fam-1-1"], "follow": ["fam-1-0"]}


def test_settings_never_become_part_of_a_command(gcloud, gin, tmp_path):
    """Quotes, dollars, blanks and line breaks of a training's settings travel in a file, and mean the same there."""
    sources = ("/gcs/b/a'b\".txt", "/gcs/b/$(touch oops)\n`id`.txt")
    bindings = [f"MODEL_DIR={HOSTILE!r}", "MIXTURE_OR_TASK_NAME='text'", f"DataConfig.sources={sources!r}"]
    gcloud.answer(describe=[ACTIVE])
    assert launch(gin, *(f"--gin.{binding}" for binding in bindings)) == 0
    assert all("oops" not in word and "`" not in word for _, words, _ in gcloud.calls for word in words)
    with tarfile.open(tmp_path / "bundle.tar.gz") as tar:
        tar.extractall(tmp_path / "there", filter="data")
    words = (tmp_path / "there/job/words").read_bytes().split(b"\0")[:-1]
    assert words[:6] == [b"launch", b"--target", b"local", b"--processes", b"1", b"--supervise"]
    assert words[-2:] == [b"--gin_file", b"job/run.gin"]
    there, _ = load_train_config([str(tmp_path / "there/job/run.gin")])
    assert there.model_dir == HOSTILE and there.data.sources == sources
    assert there == load_train_config(gin[1:], (), bindings)[0]
    for name in ("famjax/cli/main.py", "gin/runs/pretrain.gin", "requirements-tpu.txt", tpu_vm.WORKER):
        assert (tmp_path / "there" / name).is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name", "it's $(id)"], "--name \"it's $(id)\" is not a valid job name; use up to 40 of a-z, 0-9 and -"),
        (["--zone", "a b"], "--zone 'a b' has invalid characters"),
        (["--bucket", "b;rm"], "--bucket 'b;rm' has invalid characters"),
        (["--topology", "v5p:4x4x4"], "MESH (data 2 x fsdp 8 x tensor 1) is for 16 devices, but the chips of v5p:4x4x4 "
         "have 64; --gin.MESH='{\"data\": 2, \"fsdp\": 32, \"tensor\": 1}' would fit"),
        (["--topology", "v5p:2x2x2", "--num-slices", "2", "--gin.MESH={'fsdp': 16}"],
         "MESH has data 1, which runs across slices and must be a multiple of their number, 2"),
        (["--topology", "tpu7x:2x2x2"], "there are no TPU VMs of tpu7x; use --target gke"),
        (["--accelerator-type", "v5p-32"], "name the TPU once: --topology v5p:4x2x2, or --accelerator-type v5p-32"),
        (["--gin.MODEL_DIR='runs/a'"], "MODEL_DIR runs/a is not in the bucket, which is mounted at /gcs/b; set "
         "--gin.MODEL_DIR=\"'/gcs/b/a'\""),
        (["--gin.MIXTURE_OR_TASK_NAME='text'", "--gin.DataConfig.sources=('~/books/*.txt',)"],
         "~ is another folder on the target; write the whole path: "
         "DataConfig.sources = ('~/books/*.txt',)"),
        (["--bucket", "", "--gin.MODEL_DIR='runs/a'"], "MODEL_DIR runs/a is relative, so each host would have its own"),
        (["--processes", "2"], "--processes is not a flag of target tpu-vm; famjax launch --help lists its flags"),
        (["--delete-after", "failure"], "--delete-after 'failure' is not one of never, success, always"),
        (["--gin.TRAIN_STEPS=0"], "TRAIN_STEPS is 0; it must be at least 1"),
        (["--wait-minutes", "nan"], "--wait-minutes is nan; it must be at least 1"),
        (["--do", "start"], "--gin_file has no effect with --do start; leave it out"),
        (["--do", "setup", "--delete-after", "always"], "--delete-after always has no effect with --do setup"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_asked_for(gcloud, gin, capfd, flags, message):
    """One line, exit code 2, and gcloud is never called."""
    assert launch(gin, *flags) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"famjax launch: {message}") and err.count("\n") == 1
    assert gcloud.calls == []


def test_a_refusal_for_lack_of_quota(gcloud, gin, capfd):
    """The error has gcloud's message, a remedy, and that nothing is billed; nothing else is called."""
    gcloud.answer(create=[[1, "", "ERROR: (gcloud) Quota limit 'TPUS_V5P' exceeded\nmore\n"]])
    assert launch(gin) == 1
    assert said(capfd) == (
        "famjax launch: fam-1 was not created: ERROR: (gcloud) Quota limit 'TPUS_V5P' exceeded; request more quota in "
        "this zone, or use another --zone, --topology or --spot; nothing is left that is billed"
    )
    assert gcloud.asked == ["create"]


def test_a_name_that_is_taken_deletes_nothing(gcloud, gin, capfd):
    """Another job of that name is left alone, also if deletion was requested."""
    gcloud.answer(create=[[1, "", "ERROR: ALREADY_EXISTS: fam-1"]])
    assert launch(gin, "--delete-after", "always") == 1
    assert "use another --name, or continue with the existing one: --do setup" in said(capfd)
    assert gcloud.asked == ["create"]


def test_a_request_that_fails(gcloud, gin, capfd):
    """Google Cloud's own words, and what is left."""
    gcloud.answer(describe=[state("WAITING_FOR_RESOURCES"), state("FAILED", "internal trouble")])
    assert launch(gin) == 1
    assert "fam-1 is failed: internal trouble; fam-1 is kept and billed until it is deleted: gcloud" in said(capfd)


def test_no_capacity_within_the_limit(gcloud, gin, capfd):
    """After --wait-minutes the request is deleted if so configured; otherwise it may still be granted and billed."""
    gcloud.answer(describe=[state("WAITING_FOR_RESOURCES")])
    assert launch(gin, "--wait-minutes", "5", "--delete-after", "always") == 1
    assert said(capfd) == (
        "famjax launch: there was no capacity for fam-1 within 5 minutes; try another --zone or --topology, or wait "
        "longer (--wait-minutes); fam-1 is deleted"
    )
    assert 10 <= gcloud.asked.count("describe") <= 12 and gcloud.asked[-1] == "delete"


@pytest.mark.parametrize("describe", [[state("SUSPENDED"), ACTIVE], [state("SUSPENDING"), ACTIVE]])
def test_preempted_while_it_waits(gcloud, gin, capfd, describe):
    """It is deleted and requested again; the training starts on the second one."""
    gcloud.answer(describe=describe)
    assert launch(gin) == 0
    assert gcloud.asked == ["create", "describe", "delete", *ALL]
    assert "was preempted before it was ready" in capfd.readouterr().err


def test_preempted_while_it_trains(gcloud, gin, capfd):
    """The connection and the TPU are lost: it is requested, set up and started again, and the training resumes."""
    gcloud.answer(describe=[ACTIVE, state("SUSPENDED"), ACTIVE], follow=[LOST, [0, "", ""]])
    assert launch(gin, "--delete-after", "success") == 0
    assert gcloud.asked == [*ALL, "describe", "delete", *ALL, "delete"]
    assert said(capfd) == "famjax launch: the training is finished; fam-1 is deleted"


def test_preempted_too_often(gcloud, gin, capfd):
    """At the limit it ends, with nothing left."""
    gcloud.answer(describe=[state("SUSPENDED")])
    assert launch(gin, "--restarts", "1") == 1
    assert gcloud.asked == ["create", "describe", "delete"] * 2
    assert said(capfd).endswith("2 times; fam-1 is deleted; the same command resumes from the last checkpoint")


def test_a_lost_connection_is_made_again(gcloud, gin, capfd):
    """The TPU is ready, so only the end of the log is requested again; the job's exit code arrives."""
    gcloud.answer(describe=[ACTIVE], follow=[LOST, [255, "", ""], [101, "", ""]])
    assert launch(gin) == 1
    assert gcloud.asked == [*ALL, "describe", "follow", "describe", "follow"]
    assert gcloud.calls[-1][1][-4].endswith("follow 20")
    assert "the training ended with exit code 1; fam-1 is kept and billed" in said(capfd)


def test_a_connection_that_stays_lost(gcloud, gin, capfd, monkeypatch):
    """Then the launcher gives up; the training does not."""
    monkeypatch.setattr(tpu_vm, "RECONNECTS", 3)
    gcloud.answer(describe=[ACTIVE], follow=[LOST])
    assert launch(gin) == 1
    assert gcloud.asked.count("follow") == tpu_vm.RECONNECTS + 1
    line = said(capfd)
    assert "the connection to worker 0 is lost; the training still runs there: --do logs follows it" in line
    assert "billed" in line and "delete" not in gcloud.asked


def test_a_log_without_access_is_not_tried_again(gcloud, capfd):
    """Nobody is logged in: 20 more attempts, each with gcloud's error, would take minutes."""
    gcloud.answer(describe=[[1, "", "ERROR: You do not currently have an active account selected."]], follow=[LOST])
    assert main.main(["launch", "--target", "tpu-vm", "--name", "fam-1", "--zone", "us-east5-a", "--do", "logs"]) == 1
    assert gcloud.asked == ["follow", "describe"]
    assert "the log of fam-1 cannot be read: ERROR: You do not" in (line := said(capfd)) and "gcloud auth login" in line


@pytest.mark.parametrize("code", [175, 176])
def test_a_worker_that_stopped_is_started_again(gcloud, gin, code):
    """A VM that was restarted, or a SIGTERM on one: the same job again on all workers."""
    gcloud.answer(describe=[ACTIVE], follow=[[code, "", ""], [0, "", ""]])
    assert launch(gin) == 0
    assert gcloud.asked == [*ALL, "start", "follow"]


def test_ssh_that_fails_in_the_first_minutes(gcloud, gin, capfd):
    """Set-up is retried; after three attempts the error also says what stays billed."""
    gcloud.answer(describe=[ACTIVE], setup=[LOST, LOST, [0, READY, ""]])
    assert launch(gin) == 0
    assert gcloud.asked.count("setup") == 3
    gcloud.answer(describe=[ACTIVE], setup=[LOST] * 9, delete=[[1, "", "ERROR: try later"]])
    assert launch(gin, "--delete-after", "always") == 1
    line = said(capfd)
    assert "the workers could not be set up: ERROR: (gcloud.compute.tpus.tpu-vm.ssh)" in line
    assert "fam-1 could not be deleted and may still be billed (ERROR: try later): gcloud compute tpus" in line


def test_workers_of_other_versions_are_not_started(gcloud, gin, capfd):
    """Workers with different libtpu are reported before the job is started."""
    gcloud.answer(describe=[ACTIVE], setup=[[0, READY + "w2: famjax 0.1, libtpu 2, Python 3.11\n", ""]])
    assert launch(gin) == 1
    assert "the workers have different versions: famjax 0.1, libtpu 1, Python 3.11 and famjax 0.1, libtpu 2" in said(
        capfd
    )
    assert "start" not in gcloud.asked


def test_modules_of_tasks_and_their_requirements_go_along(gcloud, gin, tmp_path, monkeypatch):
    """From the current directory, where famjax seeks them: a file, a package; and what they need installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_tasks.py", "mine/__init__.py", "mine/more.py", "by_gin.py", "by/__init__.py", "by/gin.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "more.txt").write_text("seqio==0.0.20\n")
    monkeypatch.chdir(tmp_path)
    gcloud.answer(describe=[ACTIVE])
    modules = ("my_tasks", "mine.more", "json")
    (tmp_path / "imports.gin").write_text("import by_gin\nfrom by import gin\n")
    words = ["--gin_file", "imports.gin", f"--gin.DataConfig.modules={modules!r}", "--requirements", "more.txt"]
    assert launch(gin, *words) == 0
    with tarfile.open(tmp_path / "bundle.tar.gz") as tar:
        names = set(tar.getnames())
        assert tar.extractfile("job/requirements.txt").read() == b"seqio==0.0.20\n"
    assert {"my_tasks.py", "mine/__init__.py", "mine/more.py", "by_gin.py", "by/gin.py"} <= names
    assert "json.py" not in names


def test_parts_need_no_settings(gcloud, capfd):
    """They work from the name and the place alone, and refuse what they do not read."""
    gcloud.answer(describe=[ACTIVE])
    words = ["launch", "--target", "tpu-vm", "--name", "fam-1", "--zone", "us-east5-a", "--do"]
    asks = {"logs": ["follow"], "status": ["describe", "status"]}
    for action in ("start", "logs", "status", "stop", "delete"):
        asked = asks.get(action, [action])
        (gcloud.folder / "calls").unlink(missing_ok=True)
        assert main.main([*words, action]) == 0
        assert gcloud.asked == asked
        for flags in (["--topology", "v5p:4x2x2"], ["--hang-seconds", "5"], ["--gin.TRAIN_STEPS=3"]):
            assert main.main([*words, action, *flags]) == 2 and gcloud.asked == asked
        assert main.main([*words, action, "--restarts", "0", "--dry-run"]) == (0 if action == "logs" else 2)


def test_a_shape_that_is_not_the_most_cubic_one_is_what_is_requested(gcloud, gin):
    """v5p-512 would be 4x8x8 chips: an accelerator type only counts them."""
    for shape, words in (("4x8x8", ["--accelerator-type=v5p-512"]), ("16x4x4", ["--type=v5p", "--topology=4x4x16"])):
        (gcloud.folder / "calls").unlink(missing_ok=True)
        flags = ["--topology", f"v5p:{shape}", "--gin.MESH={'data': 16, 'fsdp': 16}", "--gin.BATCH_SIZE=256"]
        gcloud.answer(create=[[1, "", "no quota"]])
        assert launch(gin, *flags) == 1
        (_, create, _) = gcloud.calls[0]
        assert create[6 : 6 + len(words) + 1] == [*words, "--runtime-version=v2-alpha-tpuv5"]


def test_the_files_of_a_job_that_runs_are_not_replaced(gcloud, gin, tmp_path):
    """Set up again, with other settings: the remote command fails while the job's process lives."""
    gcloud.answer(describe=[ACTIVE])
    assert launch(gin) == 0
    (command,) = [w.removeprefix("--command=") for key, words, _ in gcloud.calls if key == "setup" for w in words[7:8]]
    home = tmp_path / "home"
    (home / "famjax-fam-1/job").mkdir(parents=True)
    (home / "famjax-fam-1/famjax").mkdir()
    for pid, kept in ((os.getpid(), True), (2**22 + 1, False)):
        (home / "famjax-fam-1/job/pid").write_text(f"{pid}\n")
        done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False)
        assert ("a job runs here: --do stop first" in done.stderr) == kept and done.returncode
        assert (home / "famjax-fam-1/famjax").exists() == kept


def test_dry_run_shows_all_and_runs_nothing(gcloud, gin, capfd):
    """The commands that a real run gives, in its order, each pasteable; and the files that it copies."""
    assert launch(gin, "--dry-run") == 0
    assert gcloud.calls == []
    out = capfd.readouterr().out
    lines = [shlex.split(line) for line in out.splitlines() if line.startswith("gcloud ")]
    gcloud.answer(describe=[ACTIVE])
    launch(gin, "--delete-after", "always")
    real = [words for _, words, _ in gcloud.calls]
    real[2][5] = lines[2][5]  # the bundle lies in a folder of its own
    assert lines == real
    assert "TRAIN_STEPS = 2400" in out and "apt_install python3.11" in out


def test_without_gcloud(tmp_path, monkeypatch, gin, capfd):
    """One line reports it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch(gin) == 1
    assert said(capfd) == (
        "famjax launch: there is no program gcloud here; install it, or see the commands with --dry-run; nothing is "
        "left that is billed"
    )
