"""Trainings side by side, each in a process of its own with cores of its own, and how far they are."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from famjax.config import TrainConfig
from famjax.process import cpu, interrupts
from famjax.process.progress import clock

POLL_SECONDS = 0.5
# How long trainings have to save when one of them has failed, or after Ctrl-C.
END_SECONDS = 5.0


class Job(NamedTuple):
    """One training in a process of its own."""

    name: str
    config: TrainConfig
    command: list[str]
    log: Path


def job(name: str, gin_files: str | list[str], bindings: list[str], output: Path) -> Job:
    """A training from a gin file, or several, into `output/name`, checked here before anything starts."""
    from famjax.cli.gin_config import load_train_config

    bindings = [f"MODEL_DIR={str(output / name)!r}", *bindings]
    files = [gin_files] if isinstance(gin_files, str) else gin_files
    config, _ = load_train_config(files, (), bindings)
    config.validate()
    flags = [*(f"--gin_file={path}" for path in files), *(f"--gin.{binding}" for binding in bindings)]
    command = [sys.executable, "-m", "famjax", "train", *flags]
    return Job(name, config, command, output / f"{name}.log")


def train(jobs: list[Job], at_once: int = 0) -> None:
    """Runs all trainings, so many at once (0: all), and shows how far they are.

    So small a model gains little from more threads: each training has cores of its own where there are enough.
    Raises `RuntimeError` if one fails or is stopped.
    """
    places = min(len(jobs), at_once or len(jobs))
    cores = cpu.cores()
    free = [cores[i::places] if len(cores) >= places else [] for i in range(places)]
    running: list[_Running] = []
    with interrupts.held(lambda: "the same command goes on from what the trainings have saved"):
        try:
            _watch(jobs, free, running)
        finally:
            _end(running)
    for job in jobs:  # who is told to stop saves and leaves with 0 too
        if (step := _news(job)[0]) < job.config.steps:
            raise RuntimeError(f"the training of {job.name} was stopped at step {step}; the same command goes on")


def _end(running: "list[_Running]") -> None:
    """Asks the trainings that still run to save and to end, and ends those that take too long for it."""
    deadline = time.monotonic() + END_SECONDS
    for one in running:
        if one.process.poll() is None:
            one.process.terminate()
    for one in running:
        try:
            one.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()


class _Running(NamedTuple):
    job: Job
    process: "subprocess.Popen[bytes]"
    cores: list[int]


def _begin(job: Job, cores: list[int]) -> _Running:
    """A training in a process of its own, on these cores, or on any where none are named."""
    environment = cpu.environment(os.environ) | {"PYTHONUNBUFFERED": "1"}
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "w", encoding="utf-8") as log:
        process = subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores)
    return _Running(job, process, cores)


class _Display:
    """How far all trainings are: bars on a terminal, else a line each from time to time."""

    SECONDS = 10.0

    def __init__(self, jobs: list[Job]):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.completed:>4.0f}/{task.total:.0f}"), TextColumn("{task.fields[news]}"),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        console = Console(file=sys.stderr)
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bars = {
            job.name: self.progress.add_task(f"train {job.name}", total=job.config.steps, news="waiting")
            for job in jobs
        }
        self._began = time.perf_counter()
        self._told = dict.fromkeys(self._bars, time.perf_counter())

    def show(self, job: Job, done: bool) -> None:
        """What a training has reached by now."""
        step, news = _news(job)
        self.progress.update(self._bars[job.name], completed=job.config.steps if done else step, news=news)
        if self.progress.disable and time.perf_counter() - self._told[job.name] > self.SECONDS:
            self._told[job.name] = time.perf_counter()
            elapsed = time.perf_counter() - self._began
            left = f"  {clock(elapsed / step * (job.config.steps - step))} left" if step else ""
            print(f"train {job.name}: step {step}/{job.config.steps}  {news}{left}", file=sys.stderr, flush=True)


def _watch(jobs: list[Job], free: list[list[int]], running: list[_Running]) -> None:
    """Begins each training when one of the places is `free`; `running` is told of each. Returns when all are done."""
    waiting = list(jobs)
    display = _Display(jobs)
    with display.progress:
        while waiting or running:
            while waiting and free:
                running.append(_begin(waiting.pop(0), free.pop(0)))
            for one in list(running):
                code = one.process.poll()
                if code:
                    raise RuntimeError(
                        f"the training of {one.job.name} failed: {_last_line(one.job.log)} (log: {one.job.log})"
                    )
                display.show(one.job, done=code == 0)
                if code == 0:
                    running.remove(one)
                    free.append(one.cores)
            interrupts.check()
            time.sleep(POLL_SECONDS)


def _news(job: Job) -> tuple[int, str]:
    """The last logged step of a training, and what it says."""
    path = Path(job.config.model_dir) / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        last = json.loads(lines[-1])
        news = f"loss {last['loss']:.3f}"
        if "exact_match" in last:
            news += f"  exact match {last['exact_match']:.2f} at up to {last['filler_blocks']} blocks"
        return int(last["step"]), news
    except (IndexError, ValueError, KeyError):
        return 0, "compiling"


def _last_line(log: Path) -> str:
    """The line with which famjax left, or the last one: libraries' threads may write on after it."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("famjax train: ")]
    return (own or lines or ["no output"])[-1]
