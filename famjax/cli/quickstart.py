"""`famjax quickstart`: a memory learns, beside its twin that has none."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from famjax.config import ConfigError, TrainConfig
from famjax.runtime import cpu

NAME = "quickstart"
HELP = """Train a small TransformerFAM and its twin without memory on the pass key, then compare them.

  famjax quickstart --output runs/quickstart

Both train at the same time, one processor core each, on the same documents for the same number of
steps. Then both are asked for keys behind 1 to 64 blocks of filler, four times what they were trained
on. A second run continues where the first one stopped.
"""

EXPERIMENTS = {"fam": "gin/experiments/tiny_fam.gin", "bswa": "gin/experiments/tiny_bswa.gin"}
POLL_SECONDS = 0.5
# Exact match that is as good as none.
HARDLY = 0.05


class Job(NamedTuple):
    """One training in a process of its own."""

    name: str
    config: TrainConfig
    command: list[str]
    log: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax quickstart`."""
    parser.add_argument("--output", default="runs/quickstart", metavar="DIR", help="where everything goes")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and documents (0)")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps, other than the experiments have it")
    parser.add_argument("--keys", type=int, default=1, metavar="N", help="keys for each alignment in the evaluation")


def run(args: argparse.Namespace) -> int:
    """Trains both models, evaluates them and says what came out."""
    from famjax.config import EvalConfig

    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; name a directory")
    jobs = [_job(name, output, args) for name in EXPERIMENTS]
    began = time.perf_counter()
    _train(jobs)
    trained = time.perf_counter()

    from famjax.evals.run import run as evaluate
    from famjax.runtime.compilation_cache import enable

    enable()
    longest = (jobs[0].config.passkey.stages[-1] + 1) * jobs[0].config.model.memory.block_size - 1
    dirs = tuple(job.config.model_dir for job in jobs)
    results = evaluate(EvalConfig(model_dirs=dirs, output_dir=str(output), keys=args.keys), longest)
    minutes = [(b - a) / 60 for a, b in ((began, trained), (trained, time.perf_counter()))]
    print(f"{minutes[0]:.1f} minutes of training, {minutes[1]:.1f} of evaluation")
    print(_verdict(results, longest))
    return 0


def _job(name: str, output: Path, args: argparse.Namespace) -> Job:
    from famjax.cli.gin_config import load_train_config

    bindings = [f"MODEL_DIR={str(output / name)!r}", f"RANDOM_SEED={args.seed}"]
    bindings += [f"TRAIN_STEPS={args.steps}"] if args.steps is not None else []
    config, _ = load_train_config([EXPERIMENTS[name]], (), bindings)
    config.validate()
    flags = [f"--gin.{binding}" for binding in bindings]
    command = [sys.executable, "-m", "famjax", "train", "--gin_file", EXPERIMENTS[name], *flags]
    return Job(name, config, command, output / f"{name}.log")


def _train(jobs: list[Job]) -> None:
    """Runs all trainings at once and shows how far they are. Raises `RuntimeError` if one fails."""
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
        said = f"exact match {last['exact_match']:.2f} at up to {last['filler_blocks']} blocks"
        return int(last["step"]), f"loss {last['loss']:.3f}  {said}"
    except (IndexError, ValueError, KeyError):
        return 0, "compiling"


def _last_line(log: Path) -> str:
    """The line with which famjax left, or the last one: libraries' threads may write on after it."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("famjax train: ")]
    return (own or lines or ["no output"])[-1]


def _verdict(results: dict, longest: int) -> str:
    """What came out, in words; nothing is said that the table does not show."""
    lines = []
    for model in results["models"]:
        trained = [row for row in model["passkey"] if row["filler_tokens"] <= longest]
        beyond = [row for row in model["passkey"] if row["filler_tokens"] > longest]
        best = max(row["exact_match"] for row in model["passkey"])
        if best < HARDLY:
            lines.append(f"{model['name']}: at most {best:.2f} exact match, at any length")
            continue
        worst = min(row["exact_match"] for row in trained)
        far = ", ".join(f"{row['exact_match']:.2f} at {row['filler_blocks']}" for row in beyond)
        lines.append(
            f"{model['name']}: at least {worst:.2f} exact match up to {trained[-1]['filler_blocks']} blocks of filler, "
            f"the longest in training; beyond, {far}"
        )
    return "\n".join(lines)
