"""Runs several training runs in parallel, each in its own process on its own cores, and shows their progress."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from famjax.cli.flags import gin_words
from famjax.cli.resumed import changed
from famjax.config import ConfigError, TrainConfig
from famjax.process import cpu, interrupts
from famjax.process.progress import clock
from famjax.storage import lock
from famjax.storage.model_dir import METRICS_JSONL

POLL_SECONDS = 0.5
# Seconds that runs get to save a checkpoint after one of them has failed, or after SIGTERM. After Ctrl-C this process
# ends sooner (`interrupts.GRACE_SECONDS`), and they save without it.
END_SECONDS = 30.0


class Job(NamedTuple):
    """One training run in its own process, whose output is written to `log`."""

    name: str
    config: TrainConfig
    command: list[str]
    log: Path


def job(
    name: str, gin_files: str | list[str], bindings: list[str], output: Path, search_paths: Sequence[str] = ()
) -> Job:  # fmt: skip
    """Returns the training run of gin files with MODEL_DIR `output/name`. Raises `ConfigError` for bad settings."""
    from famjax.cli.gin_config import load_train_config

    bindings = [f"MODEL_DIR={str(output / name)!r}", *bindings]
    files = [gin_files] if isinstance(gin_files, str) else gin_files
    config, _ = load_train_config(files, search_paths, bindings)
    config.validate()
    command = [sys.executable, "-m", "famjax", "train", *gin_words(files, search_paths, bindings)]
    return Job(name, config, command, output / f"{name}.log")


def check_same(jobs: Iterable[Job]) -> None:
    """Raises `ConfigError` if a directory has a training with other settings: resumed, it would be neither of the two,
    and finished, it would be reported as what it is not."""
    for one in jobs:
        if differs := changed(one.config):
            raise ConfigError(f"{one.config.model_dir} was trained with other settings: {'; '.join(differs[:4])}; use "
                              f"another output directory, or delete it to train it again")  # fmt: skip


class TrainingFailed(RuntimeError):
    """A run failed. The others have ended too: `finished` those that were done by then, in full."""

    def __init__(self, job: Job, finished: list[Job]):
        super().__init__(f"the training of {job.name} failed: {_last_line(job.log)} (log: {job.log})")
        self.job, self.finished = job, finished


def train(jobs: list[Job], at_once: int = 0) -> None:
    """Runs all jobs, at most `at_once` in parallel (0: all), and shows their progress.

    Small models gain little from more threads, so each run gets its own cores if there are enough. After SIGTERM or
    Ctrl-C all runs save a checkpoint and end.

    Raises:
      ConfigError: a directory has a training with other settings (`check_same`).
      TrainingFailed: a run failed; all others have ended too.
      RuntimeError: a run was stopped by a signal; all others have ended too.
    """
    check_same(jobs)
    places = min(len(jobs), at_once or len(jobs))
    cores = cpu.cores()
    free = [cores[i::places] if len(cores) >= places else [] for i in range(places)]
    running: list[_Running] = []
    resumes = "the same command resumes from the last checkpoints"
    stopping = lambda number: "stops all trainings, which save a checkpoint"
    with interrupts.handled("famjax", signal.SIGTERM), interrupts.held(lambda: resumes, stopping):
        try:
            _watch(jobs, free, running)
        finally:
            _end(running)
        if interrupts.requested():
            raise RuntimeError(f"stopped by {signal.Signals(interrupts.requested()).name}; {resumes}")
    for job in jobs:  # a run that is stopped by a signal saves and also exits with 0
        if (step := _news(job)[0]) < job.config.steps:
            raise RuntimeError(f"the training of {job.name} was stopped at step {step}; the same command resumes it")


def _end(running: "list[_Running]") -> None:
    """Terminates the running jobs, which then save a checkpoint, and kills those still running after `END_SECONDS`."""
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
    """Starts a training process, pinned to these cores if any are given."""
    environment = cpu.environment(os.environ) | {"PYTHONUNBUFFERED": "1"}
    with lock.held(job.config.model_dir):  # else the log would be that of a training which is running
        pass
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "w", encoding="utf-8") as log:
        # A terminal sends Ctrl-C to its whole process group. In a group of its own a run gets SIGTERM alone, from
        # `_end`; after Ctrl-C that would be the second signal, at which it ends without saving.
        process = subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=0)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores)
    return _Running(job, process, cores)


class _Display:
    """Shows the progress of all runs: bars on a terminal, else a line per run every `SECONDS`."""

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
        self._began: dict[str, tuple[float, int]] = {}  # when each run was first shown, and its step then
        self._printed = dict.fromkeys(self._bars, time.perf_counter())

    def show(self, job: Job, done: bool) -> None:
        """Shows the current step of a run."""
        step, news = _news(job)
        self.progress.update(self._bars[job.name], completed=job.config.steps if done else step, news=news)
        now = time.perf_counter()
        began, first = self._began.setdefault(job.name, (now, step))
        if self.progress.disable and now - self._printed[job.name] > self.SECONDS:
            self._printed[job.name] = now
            left = f"  {clock((now - began) / (step - first) * (job.config.steps - step))} left" if step > first else ""
            print(f"train {job.name}: step {step}/{job.config.steps}  {news}{left}", file=sys.stderr, flush=True)


def _watch(jobs: list[Job], free: list[list[int]], running: list[_Running]) -> None:
    """Starts a job whenever a set of cores is `free`, adds it to `running`, and returns when all are done."""
    waiting, finished = list(jobs), list[Job]()
    display = _Display(jobs)
    with display.progress:
        while (waiting or running) and interrupts.requested() != signal.SIGTERM:
            while waiting and free:
                running.append(_begin(waiting.pop(0), free.pop(0)))
            for one in list(running):
                code = one.process.poll()
                if code:
                    raise TrainingFailed(one.job, finished)
                display.show(one.job, done=code == 0)
                if code == 0:
                    running.remove(one)
                    finished.append(one.job)
                    free.append(one.cores)
            interrupts.check()
            # At once after a signal: a second one ends this process, and the runs would go on without it.
            interrupts.wait(POLL_SECONDS)


def _news(job: Job) -> tuple[int, str]:
    """Returns the last logged step of a run (0 before the first) and a summary of its metrics."""
    path = Path(job.config.model_dir) / METRICS_JSONL
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        last = json.loads(lines[-1])
        # Null if the steps since the last line were skipped.
        shown = lambda name, digits=2: "none" if last[name] is None else f"{last[name]:.{digits}f}"
        news = f"loss {shown('loss', 3)}"
        if "exact_match" in last:
            news += f"  exact match {shown('exact_match')} at up to {last['filler_blocks']} blocks"
        elif "accuracy" in last:
            news += f"  accuracy {shown('accuracy')}"
        return int(last["step"]), news
    except (IndexError, ValueError, KeyError):
        return 0, "compiling"


def _last_line(log: Path) -> str:
    """Returns famjax's own error line, else the last line: threads of libraries may still print after it."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("famjax train: ")]
    return (own or lines or ["no output"])[-1]
