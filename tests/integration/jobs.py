"""Jobs of several real processes on this machine for the tests: how they are started, watched and ended.

A process is a `famjax train` as a user starts it. All compile for themselves, with one cache on disk.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240.0  # seconds that any job may take, on a busy machine
SETTINGS = """
include 'gin/models/fam_tiny.gin'
include 'gin/runs/pretrain.gin'
TASK_FEATURE_LENGTHS = {'targets': 384}
BATCH_SIZE = 4
LOG_PERIOD = 1
CHECKPOINT_PERIOD = 2
LEARNING_RATE = 1e-3
PassKeyConfig.stages = (1,)
PassKeyConfig.text_tokens = 8
MemoryConfig.random_state_passing = 0.5
ModelConfig.num_layers = 1
ModelConfig.d_model = 16
ModelConfig.d_ff = 16
OptimizerConfig.schedule = 'constant'
OptimizerConfig.warmup_steps = 0
"""
FOREVER = 10**6


def environment(place: Path, devices: int = 1) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(place / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    return os.environ | cache | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def words(place: Path, name: str, steps: int, devices: int, *more: str, axis: str = "fsdp") -> list[str]:
    """`famjax train` on so many devices: along `fsdp` every one of them has a part of each weight to save."""
    return [
        "train", "--gin_file", str(place / "run.gin"), f"--gin.MODEL_DIR={str(place / name)!r}",
        f"--gin.TRAIN_STEPS={steps}", f'--gin.MESH={{"{axis}": {devices}}}', *more,
    ]  # fmt: skip


class Running:
    """A process, and all the processes below it, that do not outlive the test."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self.process = subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.communicate()

    def end(self, seconds: float = LIMIT) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


def job(place: Path, processes: int, *command: str) -> Running:
    """`famjax` in so many processes, by the launcher that users have."""
    launcher = [sys.executable, "launch/local.py", "--processes", str(processes), "--", *command]
    return Running(launcher, environment(place))


def alone(place: Path, devices: int, *command: str) -> Running:
    """`famjax` in one process with so many simulated devices."""
    return Running([sys.executable, "-m", "famjax", *command], environment(place, devices))


def trained(running: Running, seconds: float = LIMIT) -> str:
    with running:
        code, out, err = running.end(seconds)
    assert code == 0, out + err
    return out


def metrics(place: Path, name: str) -> list[dict]:
    path = place / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(place: Path, name: str) -> np.ndarray:
    lines = metrics(place, name)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    names = ("loss", "gradient_norm", "accuracy", "exact_match")
    return np.array([[line.get(name, 0) for name in names] for line in lines])


def killed(place: Path, running: Running, name: str, victim: int, steps: int = 5) -> tuple[float, int, str]:
    """Kills one process after some steps: seconds until all have ended, the launcher's exit code, the output."""
    pids = running.process.stderr.readline().split("pids are ")[1].split(", ")
    began = time.monotonic()
    while len(metrics_so_far(place, name)) < steps:
        assert time.monotonic() - began < LIMIT and running.process.poll() is None
        time.sleep(0.05)
    os.kill(int(pids[victim]), signal.SIGKILL)
    began = time.monotonic()
    code, out, _ = running.end(60.0)
    assert not any(Path(f"/proc/{pid.strip()}").exists() for pid in pids)
    return time.monotonic() - began, code, out


def launched(place: Path, processes: int, words: list[str], *flags: str, **variables: str) -> Running:
    """`famjax launch` of these words of `famjax train`."""
    command = ["launch", "--target", "local", "--processes", str(processes), *flags, *words[1:]]
    return Running([sys.executable, "-m", "famjax", *command], environment(place) | variables)


def kill_one(place: Path, running: Running, name: str, victim: int, beyond: int = 0) -> None:
    """SIGKILL for one process of the first attempt, some steps behind `beyond`."""
    pids = running.process.stderr.readline().split("pids are ")[1].split(", ")
    began = time.monotonic()
    while len(metrics_so_far(place, name)) < beyond + 3:
        assert time.monotonic() - began < LIMIT and running.process.poll() is None
        time.sleep(0.01)
    os.kill(int(pids[victim]), signal.SIGKILL)


def metrics_so_far(place: Path, name: str) -> list[str]:
    path = place / name / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def newest(place: Path, name: str) -> int:
    return max(int(path.name) for path in (place / name / "checkpoints").iterdir() if path.name.isdigit())
