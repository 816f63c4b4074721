"""Target `tpu-vm`: runs a job on Cloud TPU VMs, requested as a queued resource.

    create -> wait -> set up -> start -> follow its log -> delete

Every step can be run alone (`--do`) and repeated. The commands are `gcloud`'s; the workers run
`launch/tpu_vm/worker.sh`, which reads the job's command from a file, so settings are never part of a shell command.
"""

import json
import math
import re
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from famjax.launch import bundle, commands
from famjax.launch.commands import Command, Failed, Result, say, shown, stream, together
from famjax.launch.job import Training
from famjax.launch.supervisor import UNFINISHED
from famjax.launch.tpu_vm_commands import WORKER, Commands, Options

__all__ = ["Options", "run", "show"]

READY, TAKEN, BROKEN = "ACTIVE", ("SUSPENDING", "SUSPENDED", "DELETING"), "FAILED"
# `worker.sh follow` exits with the job's code plus ABOVE; lower codes and 255 mean a lost connection.
ABOVE, GONE = 100, 76
POLL_SECONDS, RETRY_SECONDS, NEWS_SECONDS = 30.0, 15.0, 600.0
TRIES, RECONNECTS = 3, 20
ABSENT = "not.found"
# Errors that no other attempt resolves.
NO_ACCESS = "permission.denied|not have permission|active account"
# Parts of gcloud's error messages, each with a remedy.
HINTS = (
    ("quota", "request more quota in this zone, or use another --zone, --topology or --spot"),
    ("already.exists", "use another --name, or continue with the existing one: --do setup, start, logs or delete"),
    ("permission.denied|not have permission", "gcloud auth login, and ask the project's owner for the role TPU Admin"),
    ("active account", "gcloud auth login"),
    ("has not been used in project", "gcloud services enable tpu.googleapis.com"),
    (ABSENT, "list them: gcloud compute tpus queued-resources list"),
)


class Taken(Exception):
    """Raised if the TPU was preempted; checkpoints remain."""


class Job(Commands):
    """Runs the steps of one job; its methods are in the order of the steps.

    Attributes:
      words: arguments of `famjax` on each worker.
      created: whether resources exist that are billed.
    """

    def __init__(self, training: Training | None, options: Options, folder: Path):
        super().__init__(options, folder)
        self.training = training
        self.words = bundle.worker_words(bundle.RUN_GIN, options.supervision)
        self.created = options.do not in ("all", "create")

    def create(self) -> None:
        """Requests the TPU. Raises `Failed` if the request is rejected."""
        result = commands.run(self.creation())
        if result.code:
            raise Failed(_explained(f"{self.options.name} was not created", result.reason))
        self.created = True
        say(f"{self.options.name} is requested; waiting for it (state: --do status, cancel: --do delete)")

    def state(self) -> tuple[str, str]:
        """Returns (state, Google Cloud's message); an empty state if the query failed."""
        result = commands.run(self.description())
        if result.code:
            return ("ABSENT" if _absent(result) else ""), result.reason
        try:
            found = json.loads(result.out)["state"]
            return str(found["state"]), str(found.get("failedData", {}).get("error", {}).get("message", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return "", "gcloud's description has an unknown format"

    def wait(self) -> None:
        """Waits until the TPU is ready. Raises `Failed`, for example after `wait_minutes`, or `Taken` if preempted."""
        began, printed, before, silent = time.monotonic(), time.monotonic(), "", 0
        while True:
            state, why = self.state()
            if state == READY:
                say(f"{self.options.name} is ready")
                return
            if state in TAKEN:
                raise Taken(f"{self.options.name} was preempted before it was ready (state {state})")
            if state in (BROKEN, "ABSENT"):
                raise Failed(_explained(f"{self.options.name} is {state.lower()}", why))
            silent = silent + 1 if not state else 0
            if silent > TRIES:
                raise Failed(f"{self.options.name}'s state cannot be queried: {why}; check the connection, then "
                             f"continue with --do setup, start and logs")  # fmt: skip
            waited = time.monotonic() - began
            if state and (state != before or time.monotonic() - printed > NEWS_SECONDS):
                say(f"{self.options.name}: {state} ({waited / 60:.0f} of {self.options.wait_minutes:g} minutes)")
                before, printed = state, time.monotonic()
            if waited > 60 * self.options.wait_minutes:
                raise Failed(f"there was no capacity for {self.options.name} within {self.options.wait_minutes:g} "
                             f"minutes; try another --zone or --topology, or wait longer (--wait-minutes)")  # fmt: skip
            time.sleep(POLL_SECONDS)

    def set_up(self) -> None:
        """Installs code and packages on all workers and compares their versions. Raises `Failed`."""
        assert self.training is not None
        files = bundle.contents(self.training, self.words, self.options.requirements)
        bundle.write(self.folder / f"{self.home}.tar.gz", files)
        self._on_all(self.copies(), "the job could not be copied to the workers")
        results = self._on_all(self.setups(), "the workers could not be set up")
        ready = {line.split(": ", 1)[1] for r in results for line in r.out.splitlines() if ": famjax " in line}
        if len(ready) > 1:
            raise Failed(f"the workers have different versions: {' and '.join(sorted(ready))}; --do setup again, or "
                         f"use a new TPU")  # fmt: skip
        say("all workers are set up" + "".join(f": {line}" for line in ready))

    def start(self) -> None:
        """Starts the job in the background on all workers. Raises `Failed` or `Taken`."""
        self._on_all(self.starts(), "the job could not be started on all workers")
        say("started; Ctrl-C leaves it running")

    def _on_all(self, commands: list[Command], what: str) -> list[Result]:
        """Runs commands in parallel and returns their results. Raises `Failed` or `Taken`.

        Failed commands are retried, since ssh is unreliable in the first minutes of a VM.
        """
        done: dict[int, Result] = {}
        for attempt in range(TRIES):
            left = [i for i in range(len(commands)) if i not in done]
            results = together([commands[i] for i in left])
            done |= {i: result for i, result in zip(left, results, strict=True) if not result.code}
            failed = [result for result in results if result.code]
            if not failed:
                return [done[i] for i in range(len(commands))]
            state, _ = self.state()
            if state in TAKEN or state == "ABSENT":
                raise Taken(f"{self.options.name} was preempted (state {state})")
            if attempt + 1 < TRIES:
                say(f"{what}: {failed[0].reason}; retrying")
                time.sleep(RETRY_SECONDS)
        raise Failed(_explained(what, failed[0].reason))

    def follow(self) -> int:
        """Prints the log of process 0 until the job ends, and returns its exit code. Raises `Failed` or `Taken`.

        A job that was stopped on a worker is started again, at most `restarts` times; lost connections are renewed.
        """
        lines, lost, again = "+1", 0, 0
        while True:
            began = time.monotonic()
            code = stream(self.following(lines))
            if code == 0:
                return 0
            if code > ABOVE and code != 255:
                code -= ABOVE
                if code not in (UNFINISHED, GONE) or again >= self.options.supervision.restarts:
                    return code
                again += 1
                say("the job was stopped on a worker; restarting it from its last checkpoint")
                self.start()
                lines = "20"
                continue
            state, why = self.state()
            if not state and re.search(NO_ACCESS, why, re.IGNORECASE):
                raise Failed(_explained(f"the log of {self.options.name} cannot be read", why))
            if state in TAKEN or state in (BROKEN, "ABSENT"):
                raise Taken(f"{self.options.name} was preempted (state {state})")
            lost = lost + 1 if time.monotonic() - began < 10 * RETRY_SECONDS else 1
            if lost > RECONNECTS:
                raise Failed("the connection to worker 0 is lost; the training still runs there: --do logs follows it")
            say("the connection to worker 0 was lost; reconnecting, the training continues meanwhile")
            lines = "20"
            time.sleep(RETRY_SECONDS)

    def everything(self) -> int:
        """Runs all steps, and repeats them if the TPU is preempted, at most `restarts` times. Returns the exit code."""
        supervision = self.options.supervision
        taken = 0
        while True:
            try:
                self.create()
                self.wait()
                self.set_up()
                self.start()
                code = self.follow()
            except Taken as error:
                outcome, taken = self.delete(), taken + 1
                if taken > supervision.restarts:
                    raise Failed(f"{error}, {taken} times; {outcome}; the same command resumes from the last "
                                 f"checkpoint") from error  # fmt: skip
                pause = supervision.pause(taken)
                say(f"{error}; {outcome}; requesting again in {pause:g} s to resume from the last checkpoint")
                time.sleep(pause)
                continue
            except Failed as error:
                raise Failed(f"{error}; {self.left(failed=True)}") from error
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"interrupted; {self.left(failed=True, keep=True)}") from None
            say(f"the training {'is finished' if code == 0 else f'ended with exit code {code}'}; "
                f"{self.left(failed=code != 0)}")  # fmt: skip
            return code

    def delete(self) -> str:
        """Deletes the TPU. Returns the outcome as text for a message."""
        result = commands.run(self.deletion())
        if result.code and not _absent(result):
            return (f"{self.options.name} could not be deleted and may still be billed ({result.reason}): "
                    f"{shlex.join(self.deletion().words)}")  # fmt: skip
        self.created = False
        return f"{self.options.name} is deleted"

    def left(self, failed: bool, keep: bool = False) -> str:
        """Deletes the TPU if `delete_after` requires it and not `keep`. Returns text on what is still billed."""
        if not self.created:
            return "nothing is left that is billed"
        wished = self.options.delete_after == "always" or (self.options.delete_after == "success" and not failed)
        if wished and not keep:
            return self.delete()
        return f"{self.options.name} is kept and billed until it is deleted: {shlex.join(self.deletion().words)}"

    def one(self, action: str) -> int:
        """Runs one action of `ACTIONS` and returns an exit code."""
        if action == "delete":
            say(self.delete())
            return 1 if self.created else 0
        if action == "status":
            state, why = self.state()
            say(f"{self.options.name}: {state or 'unknown'}{f' ({why})' if why else ''}")
            if state != READY:
                return 0 if state else 1
            return max(stream(command) for command in self.on_workers("status of the workers", "status"))
        steps = {"create": (self.create, self.wait), "setup": (self.set_up,), "start": (self.start,),
                 "logs": (), "stop": ()}  # fmt: skip
        try:
            for step in steps[action]:
                step()
            if action == "stop":
                self._on_all(self.on_workers("SIGTERM: the step is finished and saved", "stop"), "it was not stopped")
            return self.follow() if action == "logs" else 0
        except Taken as error:
            raise Failed(f"{error}; --do delete, then repeat the full command") from error
        except Failed as error:
            raise Failed(f"{error}; {self.left(failed=True, keep=True)}") from error


def show(training: Training | None, options: Options) -> str:
    """Returns all commands in order, and the contents of the files that they copy, as text."""
    job = Job(training, options, Path("/tmp"))
    asked = [job.creation(), job.description()] if training else []
    status = [job.description(), *job.on_workers("status of the workers", "status")]
    steps: dict[str, Sequence[Command]] = {
        "create": asked, "setup": [*job.copies(), *job.setups()], "start": job.starts(), "logs": [job.following()],
        "status": status, "stop": job.on_workers("SIGTERM", "stop"), "delete": [job.deletion()],
    }  # fmt: skip
    wanted = ["create", "setup", "start", "logs", "delete"] if options.do == "all" else [options.do]
    parts = []
    for name in wanted:
        if name == "create":
            parts.append("# --- requested, then described until its state is ACTIVE")
        if name == "delete":
            parts.append(f"# --- delete after: {options.delete_after}")
        parts += [shown(command) for command in steps[name]]
    if "setup" in wanted and training is not None:
        parts += _copied(job, training)
    return "\n".join(parts)


def _copied(job: Job, training: Training) -> list[str]:
    files = bundle.contents(training, job.words, job.options.requirements)
    size = math.ceil(sum(map(len, files.values())) / 1024)
    return [
        f"# --- {job.home}.tar.gz: {len(files)} files, {size} KiB: famjax/, gin/, launch/, requirements and the job:",
        f"# {bundle.WORDS}, words terminated by zero bytes; a worker runs:\n{shlex.join(['famjax', *job.words])}",
        f"# {bundle.RUN_GIN}\n{training.gin.rstrip()}",
        f"# {WORKER}\n{files[WORKER].decode().rstrip()}",
    ]


def run(training: Training | None, options: Options) -> int:
    """Runs the action `options.do`. Returns an exit code. Raises `Failed` with a remedy and what is still billed."""
    with tempfile.TemporaryDirectory(prefix="famjax-") as folder:
        job = Job(training, options, Path(folder))
        return job.everything() if options.do == "all" else job.one(options.do)


def _absent(result: Result) -> bool:
    return re.search(ABSENT, result.err, re.IGNORECASE) is not None


def _explained(what: str, reason: str) -> str:
    hint = commands.remedy(reason, HINTS)
    return f"{what}: {reason}{f'; {hint}' if hint else ''}"
