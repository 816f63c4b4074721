"""Rendezvous of a job's processes before the start, and failure detection afterwards.

JAX connects processes too, but does not name missing ones: if a process never arrives, or dies, the others abort in
C++ minutes later, with a number in a stack trace. So process 0 listens on the coordinator's port before JAX uses it,
and waits for all other processes, which keep their connections open. A killed process drops its connection at once; a
dead host stops sending heartbeats; process 0 reports to the others which one was lost.

Messages are lines of JSON. From process 0: `go`, `stop` (with a message and an exit code), `beat`, `bye`. To process 0:
first `hello`, then `beat`, `failed` (with a reason and a code) and `bye`. Nothing here computes or imports JAX.
"""

import dataclasses
import errno
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from famjax.config import ConfigError

# Interval of heartbeats, and the silence after which a process counts as lost.
BEAT_SECONDS, SILENT_SECONDS = 5.0, 40.0
# During the rendezvous: intervals between tries to reach process 0, and between lines on missing processes.
RETRY_SECONDS, NEWS_SECONDS = 0.2, 30.0
# A connection without a message for this long is not one of the job's.
HELLO_SECONDS = 10.0
LONGEST_LINE, AT_ONCE = 2**22, 2**16  # bytes; a line may hold the names of thousands of hosts


@dataclasses.dataclass(frozen=True)
class Job:
    """The address of a job, and the number of this process in it.

    Attributes:
      coordinator: host:port on which process 0 can be reached; the port must be free there.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      local_devices: numbers of this host's GPUs that this process uses; None: all that it sees.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_devices: tuple[int, ...] | None = None

    def validate(self) -> None:
        """Raises `ConfigError` if the job is invalid."""
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ConfigError(f"the coordinator {self.coordinator!r} is not HOST:PORT; for example 10.0.0.1:8476")
        if self.num_processes < 1 or not 0 <= self.process_id < self.num_processes:
            raise ConfigError(
                f"process {self.process_id} of {self.num_processes} is invalid; the processes of a job are "
                f"0 to {max(self.num_processes - 1, 0)}"
            )

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class Loss(NamedTuple):
    """The loss of another process.

    Attributes:
      message: the process that was lost, and the reason.
      code: the exit code that it reported when it stopped on an error; 0 if it died or fell silent.
    """

    message: str
    code: int


class Line:
    """A connection to another process that carries messages as lines of JSON."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self._rest = b""
        self._sending = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message. A lost connection is detected by `receive`."""
        with self._sending:
            try:
                self.connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                return

    def receive(self) -> list[dict[str, Any]] | None:
        """Returns the messages received within the connection's timeout, or None if the connection is closed."""
        try:
            data = self.connection.recv(AT_ONCE)
        except (BlockingIOError, InterruptedError, TimeoutError):
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        if not data or len(self._rest) > LONGEST_LINE or not all(isinstance(m, dict) for m in messages):
            return messages or None
        return messages

    def first(self, seconds: float) -> dict[str, Any]:
        """Returns the first message within `seconds`, or {} if there is none or the connection is closed."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.connection.settimeout(left)
            messages = self.receive()
            if messages is None:
                break
            if messages:
                return messages[0]
        return {}

    def gone(self) -> bool:
        """Whether the other side has closed the connection. Discards messages, so call it only if none is expected."""
        self.connection.setblocking(False)
        return self.receive() is None

    @property
    def address(self) -> str:
        """IP address of the other side, or `unknown`."""
        try:
            return str(self.connection.getpeername()[0])
        except OSError:
            return "unknown"

    def close(self) -> None:
        """Closes the connection; messages already sent still arrive."""
        self.connection.close()


class Peers:
    """Connects this process with the others of a job, and detects their failures.

    Args:
      job: the job.
      same: short texts that must be equal in all processes, by name.
      seconds: time limit of the rendezvous.

    Attributes:
      verdict: set when another process is lost.
      on_abort: a reference that keeps the C handler of `distributed` alive.
    """

    def __init__(self, job: Job, same: dict[str, str], seconds: float):
        self.job, self.seconds = job, seconds
        self.same, host = same, socket.gethostname()
        self.me: dict[str, Any] = {"process": job.process_id, "of": job.num_processes, "host": host, "same": same}
        self.hosts: dict[int, str] = {job.process_id: host}
        self.lines: dict[int, Line] = {}
        self.verdict = threading.Event()
        self.on_abort: Any = None
        self._left: set[int] = set()
        self._closing = False

    # --- rendezvous -------------------------------------------------------------------------------

    def call(self) -> None:
        """Waits until every process has connected. Afterwards the coordinator's port is free for JAX. Raises
        `ConfigError` if a process does not arrive in time, two have the same number, they differ in a value of `same`,
        or the port is in use."""
        if self.job.process_id == 0:
            self._call()
        else:
            self._answer()

    def _call(self) -> None:
        began = news = time.monotonic()
        with self._listen() as listener:
            listener.settimeout(RETRY_SECONDS)
            while missing := self._missing():
                now = time.monotonic()
                if now - began > self.seconds:
                    self._refuse(f"{_named(missing)} of {self.job.num_processes} did not arrive within "
                                 f"{self.seconds:.0f} s at {self.job.coordinator}; check their output, and whether "
                                 f"they can reach that address")  # fmt: skip
                if now - news > NEWS_SECONDS:
                    news = now
                    print(f"waiting for {_named(missing)} of {self.job.num_processes} "
                          f"({now - began:.0f} of {self.seconds:.0f} s)", file=sys.stderr, flush=True)  # fmt: skip
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                self._admit(Line(connection))
        for line in self.lines.values():
            line.connection.settimeout(HELLO_SECONDS)
        self._send_to_all({"go": self.hosts})

    def _listen(self) -> socket.socket:
        port = self.job.address[1]
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ConfigError(f"port {port} of this host is in use; give the coordinator another port") from error

    def _missing(self) -> list[int]:
        """Returns the processes that have not arrived, or that have left again (checked once all have arrived)."""
        missing = [i for i in range(1, self.job.num_processes) if i not in self.lines]
        if missing:
            return missing
        gone = [process for process, line in self.lines.items() if line.gone()]
        for process in gone:
            self.lines.pop(process).close()
        return gone

    def _admit(self, line: Line) -> None:
        """Registers a process whose first message is a hello; closes other connections. Raises `ConfigError` if two
        processes have the same number, or they differ in a value of `same`."""
        hello = line.first(HELLO_SECONDS)
        process, host = hello.get("process"), str(hello.get("host"))
        if not isinstance(process, int) or not isinstance(hello.get("same"), dict):
            line.close()
            return
        known = self.lines.get(process)
        if known is not None and not known.gone():
            line.send({"stop": f"there are two processes {process}; give each its own number"})
            self._refuse(f"there are two processes {process} (at {known.address} and {line.address}); "
                         f"give each its own number")  # fmt: skip
        self.lines[process], self.hosts[process] = line, host
        if difference := self._difference(hello):
            self._refuse(difference)

    def _difference(self, hello: dict[str, Any]) -> str:
        """Describes how a process differs from this one, or returns an empty string."""
        who, n = f"process {hello['process']} (host {hello['host']})", self.job.num_processes
        if hello.get("of") != n or not 0 < hello["process"] < n:
            return f"{who} is one of {hello.get('of')} processes, process 0 one of {n}; give all the same number"
        for name, value in self.same.items():
            if (other := hello["same"].get(name)) != value:
                shown = f": {other}, not {value}" if len(f"{other}{value}") < 60 else ""
                return f"{who} has different {name} than process 0{shown}; start all processes alike"
        return ""

    def _refuse(self, message: str) -> None:
        self._send_to_all({"stop": message})
        raise ConfigError(message)

    def _answer(self) -> None:
        deadline = time.monotonic() + self.seconds
        while True:
            line = self._reach(deadline)
            line.send(self.me)
            answer = line.first(self.seconds + HELLO_SECONDS)  # longer than process 0, which reports the missing
            if "go" in answer:
                self.lines[0] = line
                self.hosts = {int(process): host for process, host in answer["go"].items()}
                return
            if "stop" in answer:
                raise ConfigError(str(answer["stop"]))
            line.close()  # process 0 stopped before all had arrived; it may be started again
            time.sleep(RETRY_SECONDS)

    def _reach(self, deadline: float) -> Line:
        reason = "no answer"
        while time.monotonic() < deadline:
            try:
                return Line(socket.create_connection(self.job.address, timeout=HELLO_SECONDS))
            except OSError as error:
                reason = error.strerror or str(error) or reason
            time.sleep(RETRY_SECONDS)
        raise ConfigError(
            f"process 0 of {self.job.num_processes} did not arrive within {self.seconds:.0f} s at "
            f"{self.job.coordinator} ({reason}); start it there, or give its address"
        )

    # --- failure detection ------------------------------------------------------------------------

    def watch(self, lost: Callable[[Loss], None]) -> None:
        """Starts a thread that calls `lost` once, as soon as another process is lost."""
        selector = selectors.DefaultSelector()
        for process, line in self.lines.items():
            line.connection.settimeout(BEAT_SECONDS)
            selector.register(line.connection, selectors.EVENT_READ, process)
        threading.Thread(target=self._watch, args=(selector, lost), daemon=True, name="peers").start()

    def _watch(self, selector: selectors.BaseSelector, lost: Callable[[Loss], None]) -> None:
        heard = dict.fromkeys(self.lines, time.monotonic())
        beaten = 0.0
        while not self._closing:
            if time.monotonic() - beaten > BEAT_SECONDS:
                beaten = time.monotonic()
                self._send_to_all({"beat": 1})
            loss: Loss | None = None
            for key, _ in selector.select(BEAT_SECONDS / 5):
                heard[key.data] = time.monotonic()
                loss = loss or self._receive(key.data)
                if key.data in self._left:
                    selector.unregister(key.fileobj)
            silent = [i for i in heard if i not in self._left and time.monotonic() - heard[i] > SILENT_SECONDS]
            if silent and loss is None:
                loss = Loss(f"{self._who(silent[0])} has not been heard from for {SILENT_SECONDS:.0f} s", 0)
            if loss is not None and not self._closing:
                self._judge(loss, lost)
                return

    def _receive(self, process: int) -> Loss | None:
        """Handles the messages of a process. Returns the loss that they report, or None."""
        messages = self.lines[process].receive()
        if messages is None:
            self._left.add(process)
            return Loss(f"{self._who(process)} has died", 0)
        for message in messages:
            if "stop" in message:
                return Loss(str(message["stop"]), int(message.get("code", 0)))
            if "failed" in message:
                return Loss(f"{self._who(process)} stopped: {message['failed']}", int(message.get("code", 1)))
            if "bye" in message:
                self._left.add(process)
        return None

    def _judge(self, loss: Loss, lost: Callable[[Loss], None]) -> None:
        self.verdict.set()
        if self.job.process_id == 0:
            self._send_to_all({"stop": loss.message, "code": loss.code})
        lost(loss)

    def _who(self, process: int) -> str:
        role = ", the coordinator," if process == 0 else ""
        return f"process {process} of {self.job.num_processes} (host {self.hosts.get(process, 'unknown')}){role}"

    # --- leaving ----------------------------------------------------------------------------------

    def fail(self, reason: str, code: int) -> None:
        """Reports to the others that this process stops on an error, with the reason and the exit code."""
        self._closing = True
        me = self._who(self.job.process_id)
        message = {"stop": f"{me} stopped: {reason}"} if self.job.process_id == 0 else {"failed": reason}
        self._send_to_all(message | {"code": code})

    def leave(self) -> None:
        """Reports to the others that this process ends normally, and closes the connections."""
        self._closing = True
        self._send_to_all({"bye": os.getpid()})
        for line in self.lines.values():
            line.close()

    def _send_to_all(self, message: dict[str, Any]) -> None:
        for process, line in list(self.lines.items()):
            if process not in self._left:
                line.send(message)


def _named(processes: list[int]) -> str:
    """Returns `process 3`, `processes 1 and 3`, or `processes 1, 2, 3, 4, 5, 6 and 58 more`."""
    if len(processes) == 1:
        return f"process {processes[0]}"
    shown = [str(i) for i in processes]
    if len(shown) > 8:
        shown = [*shown[:6], f"{len(shown) - 6} more"]
    return f"processes {', '.join(shown[:-1])} and {shown[-1]}"
