#!/usr/bin/env python3
"""Starts one famjax job as several processes on this machine.

    python launch/local.py --processes 2 -- train --gin_file F --gin.MESH='{"data": 2}' ...

Everything behind -- goes to `famjax` in each process. Each is told where the first one listens and which one it is
(JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), and takes one of the GPUs, if there are any
(JAX_LOCAL_DEVICE_IDS). Their output appears with the process's number in front. SIGTERM and SIGINT are passed on.
When one fails, the others have GRACE seconds to end by themselves, then they are ended. The exit code is that of
the first process that was killed (128 + the signal's number), else of the first that failed, or 0.

For trying things out, and for a machine with several GPUs; on more machines the scheduler starts the processes,
see README.md here.
"""

import argparse
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

GRACE = 60.0  # seconds that processes have to leave after one has failed
POLL = 0.1


def main() -> int:
    """Starts the processes and waits for all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="how many")
    parser.add_argument("--port", type=int, default=0, metavar="P", help="where the first one listens (a free one)")
    parser.add_argument("command", nargs="+", metavar="-- VERB ...", help="what each of them runs")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error("--processes must be at least 1")
    coordinator = f"127.0.0.1:{args.port or free_port()}"
    processes = [start(i, args.processes, coordinator, args.command) for i in range(args.processes)]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: send(processes, received))
    pids = ", ".join(str(process.pid) for process in processes)
    print(f"{args.processes} processes meet at {coordinator}; their pids are {pids}", file=sys.stderr, flush=True)
    printers = [threading.Thread(target=show, args=(i, p.stdout)) for i, p in enumerate(processes)]
    for printer in printers:
        printer.start()
    code = wait(processes)
    for printer in printers:
        printer.join()
    return code


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def start(i: int, n: int, coordinator: str, command: list[str]) -> "subprocess.Popen[str]":
    """Process i of n. It is no longer in the terminal's group, so that a Ctrl-C reaches it once, from here."""
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": str(n), "JAX_PROCESS_ID": str(i),
        "JAX_LOCAL_DEVICE_IDS": str(i), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "famjax", *command], env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip


def show(i: int, lines: IO[str] | None) -> None:
    """Passes lines on, with the process's number."""
    for line in lines or ():
        print(f"[{i}] {line}", end="", flush=True)


def send(processes: "list[subprocess.Popen[str]]", number: int) -> None:
    """A signal to all that still run."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def wait(processes: "list[subprocess.Popen[str]]") -> int:
    """Waits for all; after a failure the rest has `GRACE` seconds, then SIGTERM and as long again, then SIGKILL."""
    ended: queue.Queue[int] = queue.Queue()
    for process in processes:
        threading.Thread(target=lambda process=process: ended.put(process.wait()), daemon=True).start()
    codes: list[int] = []
    failed_at, sent = 0.0, 0
    for _ in processes:
        while True:
            try:
                code = ended.get(timeout=POLL)
                break
            except queue.Empty:
                if failed_at and time.monotonic() - failed_at > GRACE * (sent + 1):
                    send(processes, (signal.SIGTERM, signal.SIGKILL)[min(sent, 1)])
                    sent += 1
        if code and not sent:
            codes.append(code)
            failed_at = failed_at or time.monotonic()
    # Who is killed is the cause; the others leave because of that, often in the same moment.
    return exit_code(next((code for code in codes if code < 0), codes[0])) if codes else 0


def exit_code(returned: int) -> int:
    """As a shell would have it."""
    return returned if returned > 0 else 128 - returned


if __name__ == "__main__":
    sys.exit(main())
