"""The job of a process, from its flags and its environment."""

import pytest

from famjax.config import ConfigError
from famjax.jobs import distributed
from famjax.jobs.distributed import find_job, scheduler
from famjax.jobs.peers import Job

TOLD = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {
    "SLURM_JOB_ID": "4242", "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_NTASKS": "8", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_chips(monkeypatch):
    monkeypatch.setattr(distributed.os.path, "exists", lambda path: False)


def test_flags_and_environment_say_the_same():
    """Launchers set variables, people give flags; a flag takes precedence."""
    assert find_job(environment=TOLD) == find_job("10.0.0.1:8476", 4, 2, {}) == Job("10.0.0.1:8476", 4, 2)
    assert find_job(process_id=0, environment=TOLD).process_id == 0
    assert find_job(environment=TOLD | {"JAX_LOCAL_DEVICE_IDS": "0,3"}).local_devices == (0, 3)
    assert find_job("[fe80::1]:8476", 4, 2, {}).address == ("fe80::1", 8476)


def test_a_process_of_its_own():
    """Without settings, or with one process, there is no job; nor for a single Slurm task."""
    assert find_job(environment={}) is None
    assert find_job(num_processes=1, environment=SLURM) is None
    assert find_job(environment=SLURM | {"SLURM_NTASKS": "1"}) is None


@pytest.mark.parametrize(
    "flags, environment, message",
    [
        ((None, 4, 2), {}, "needs all three"),
        (("10.0.0.1:8476", None, None), {}, "needs all three"),
        (("10.0.0.1", 4, 2), {}, "is not HOST:PORT"),
        (("10.0.0.1:99999", 4, 2), {}, "is not HOST:PORT"),
        (("10.0.0.1:8476", 4, 4), {}, "the processes of a job are 0 to 3"),
        ((None, None, None), TOLD | {"JAX_PROCESS_ID": "two"}, "JAX_PROCESS_ID=two is not a process number"),
        ((None, None, None), TOLD | {"JAX_LOCAL_DEVICE_IDS": "0,a"}, "JAX_LOCAL_DEVICE_IDS=0,a is no list of device"),
    ],
)
def test_a_job_that_cannot_be(flags, environment, message):
    """One line says what to give, before any process waits."""
    with pytest.raises(ConfigError, match=message):
        find_job(*flags, environment)


@pytest.mark.parametrize(
    "environment, name",
    [
        (SLURM, "Slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "a TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "a TPU pod"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, "Kubernetes"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, ""),  # a shell in an allocation, not a task
    ],
)
def test_schedulers_are_told_by_their_variables(environment, name):
    """Schedulers are detected only if they started several processes."""
    assert scheduler(environment) == name


def test_slurm_tells_the_job(monkeypatch):
    """Process 0 is on the first node; a task uses the node's GPU of its local number."""
    for key, value in SLURM.items():
        monkeypatch.setenv(key, value)
    job = find_job()
    assert (job.address[0], job.num_processes, job.process_id, job.local_devices) == ("node07", 8, 3, (1,))


def test_a_scheduler_that_jax_does_not_know_here(monkeypatch):
    """It is refused rather than run as one training per process, each with the same MODEL_DIR."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="one of several started by Open MPI, but JAX"):
        find_job()
