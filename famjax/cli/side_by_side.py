"""Trainings side by side, each in a process of its own with cores of its own, and how far they are."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from famjax.config import TrainConfig
from famjax.runtime import cpu

POLL_SECONDS = 0.5


class Job(NamedTuple):
    """One training in a process of its own."""

    name: str
    config: TrainConfig
    command: list[str]
    log: Path


def job(name: str, gin_file: str, bindings: list[str], output: Path) -> Job:
    """A training from a gin file, into `output/name`, checked here before anything starts."""
    from famjax.cli.gin_config import load_train_config

    bindings = [f"MODEL_DIR={str(output / name)!r}", *bindings]
    config, _ = load_train_config([gin_file], (), bindings)
    config.validate()
    flags = [f"--gin.{binding}" for binding in bindings]
    command = [sys.executable, "-m", "famjax", "train", "--gin_file", gin_file, *flags]
    return Job(name, config, command, output / f"{name}.log")


def train(jobs: list[Job]) -> None:
    """Runs all trainings at once and shows how far they are. Raises `RuntimeError` if one fails or is stopped."""
    environment = cpu.environment(os.environ) | {"PYTHONUNBUFFERED": "1"}
    cores = cpu.cores()
    running = []
    for i, job in enumerate(jobs):
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "w", encoding="utf-8") as log:
            running.append(subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, env=environment))
        if len(cores) >= len(jobs) and hasattr(os, "sched_setaffinity"):
            # So small a model gains little from more threads: each training has cores of its own.
            os.sched_setaffinity(running[-1].pid, cores[i :: len(jobs)])
    try:
        _watch(jobs, running)
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
                process.wait()
    for job in jobs:  # who is told to stop saves and leaves with 0 too
        if (step := _news(job)[0]) < job.config.steps:
            raise RuntimeError(f"the training of {job.name} was stopped at step {step}; the same command goes on")


def _watch(jobs: list[Job], running: list[subprocess.Popen[bytes]]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24),
        TextColumn("{task.completed:>4.0f}/{task.total:.0f}"), TextColumn("{task.fields[news]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(file=sys.stderr)
    printed = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = [bar.add_task(f"train {job.name}", total=job.config.steps, news="compiling") for job in jobs]
        while True:
            alive = False
            for job, process, task in zip(jobs, running, tasks, strict=True):
                code = process.poll()
                alive |= code is None
                if code:
                    raise RuntimeError(f"the training of {job.name} failed: {_last_line(job.log)} (log: {job.log})")
                step, news = _news(job)
                bar.update(task, completed=step if code is None else job.config.steps, news=news)
                if not console.is_terminal and time.perf_counter() - printed > 20:
                    print(f"train {job.name}: step {step}/{job.config.steps}  {news}", file=sys.stderr, flush=True)
                    printed = time.perf_counter() if job is jobs[-1] else printed
            if not alive:
                return
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
