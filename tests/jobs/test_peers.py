"""Rendezvous and failure detection, with the processes of a job as threads."""

import contextlib
import socket
import threading
import time

import pytest

from famjax.config import ConfigError
from famjax.jobs import peers as module
from famjax.jobs.peers import Job, Loss, Peers


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Member:
    """One process: its `Peers`, and the reports that it received."""

    def __init__(self, port: int, processes: int, process: int, same: dict[str, str], seconds: float):
        self.peers = Peers(Job(f"127.0.0.1:{port}", processes, process), same, seconds)
        self.error, self.loss, self.told = "", None, threading.Event()
        self.thread = threading.Thread(target=self._call)
        self.thread.start()

    def _call(self) -> None:
        try:
            self.peers.call()
        except ConfigError as error:
            self.error = str(error)

    def lost(self, loss: Loss) -> None:
        self.loss = loss
        self.told.set()


def called(processes: int, arriving=None, same=None, seconds: float = 20.0, port: int = 0) -> list[Member]:
    """Returns the processes that arrive, after the rendezvous. `same` has the values of each."""
    port = port or free_port()
    same = same or {}
    numbers = range(processes) if arriving is None else arriving
    members = [Member(port, processes, i, same.get(i, {"settings": "a"}), seconds) for i in numbers]
    for member in members:
        member.thread.join(30)
        assert not member.thread.is_alive()
    return members


@pytest.fixture
def watched(monkeypatch):
    """Three processes that watch each other, with short intervals."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(module, "SILENT_SECONDS", 2.0)
    members = called(3)
    assert [member.error for member in members] == ["", "", ""]
    for member in members:
        member.peers.watch(member.lost)
    yield members
    for member in members:
        member.peers.leave()


def dies(member: Member) -> None:
    """Closes the connections as the kernel does for a killed process."""
    member.peers._closing = True
    for line in member.peers.lines.values():
        line.connection.shutdown(socket.SHUT_RDWR)


def test_everyone_knows_every_host_and_the_port_is_free_afterwards():
    """The rendezvous ends for all when the last process arrives, and its port is free for JAX."""
    port = free_port()
    members = called(3, port=port)
    assert [member.error for member in members] == ["", "", ""]
    assert all(member.peers.hosts == dict.fromkeys(range(3), socket.gethostname()) for member in members)
    socket.create_server(("", port)).close()
    for member in members:
        member.peers.leave()


def test_who_does_not_come_is_named():
    """Both sides name the missing processes: process 0, and those that wait with it."""
    first, other = called(4, arriving=(0, 2), seconds=1.0)
    assert first.error.startswith("processes 1 and 3 of 4 did not arrive within 1 s at 127.0.0.1:")
    assert other.error == first.error


def test_a_missing_coordinator_is_named():
    """Without process 0 there is no rendezvous, so each of the others reports its address."""
    (only,) = called(2, arriving=(1,), seconds=1.0)
    assert only.error.startswith("process 0 of 2 did not arrive within 1 s at 127.0.0.1:")


@pytest.mark.parametrize(
    "same, what",
    [
        ({"settings": "b"}, "has different settings than process 0: b, not a; start all processes alike"),
        ({"settings": "b" * 64}, "has different settings than process 0; start all processes alike"),
        ({}, "has different settings than process 0: None, not a"),
    ],
)
def test_processes_that_are_not_alike_do_not_start(same, what):
    """All of them report which process differs in what; long values are not shown."""
    members = called(2, same={1: same})
    assert members[0].error.startswith(f"process 1 (host {socket.gethostname()}) {what}")
    assert members[1].error == members[0].error


def test_two_processes_of_one_number():
    """They would train the same rows twice."""
    members = called(3, arriving=(0, 1, 1))
    assert all("there are two processes 1" in member.error for member in members)


def test_a_process_that_was_started_again_before_all_were_there():
    """The connection of a process that has gone does not block its successor; nor does an unrelated one."""
    port = free_port()
    first = Member(port, 3, 0, {"settings": "a"}, 20.0)
    gone = Peers(Job(f"127.0.0.1:{port}", 3, 1), {"settings": "a"}, 20.0)
    line = gone._reach(time.monotonic() + 5)
    line.send(gone.me)
    time.sleep(0.3)
    line.close()
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        others = called(3, arriving=(1, 2), port=port)
    first.thread.join(20)
    assert [member.error for member in (first, *others)] == ["", "", ""]


def test_a_port_that_is_taken():
    """One line, instead of an error in C++."""
    with socket.create_server(("", 0)) as server:
        (only,) = called(2, arriving=(0,), port=server.getsockname()[1])
    assert "is in use" in only.error


@pytest.mark.parametrize("victim", [0, 2])
def test_a_death_is_told_to_all_others_at_once(watched, victim):
    """Any process, including the coordinator; the message names process and host."""
    dies(watched[victim])
    role = ", the coordinator," if victim == 0 else ""
    for member in watched:
        if member is not watched[victim]:
            assert member.told.wait(1.0)
            who = f"process {victim} of 3 (host {socket.gethostname()}){role}"
            assert member.loss == Loss(f"{who} has died", 0)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_process_that_falls_silent_is_lost(watched, monkeypatch, victim):
    """A host that goes down does not close its connections; it only stops sending."""
    monkeypatch.setattr(watched[victim].peers, "_send_to_all", lambda message: None)
    for member in watched:
        if member is not watched[victim]:
            assert member.told.wait(6.0)
            assert f"process {victim} of 3" in member.loss.message
            assert "has not been heard from for 2 s" in member.loss.message


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_fails_says_why_and_with_which_code(watched, victim):
    """The others end with its reason and its code, though it has ended by then."""
    watched[victim].peers.fail("disk full", 2)
    dies(watched[victim])
    for member in watched:
        if member is not watched[victim]:
            assert member.told.wait(1.0)
            assert member.loss.message.startswith(f"process {victim} of 3 (host ")
            assert member.loss.message.endswith(" stopped: disk full")
            assert member.loss.code == 2


def test_who_leaves_as_it_should_is_not_mourned(watched):
    """At the end processes leave one after the other; the remaining ones exchange heartbeats meanwhile."""
    watched[2].peers.leave()
    time.sleep(3.0)
    watched[0].peers.leave()
    time.sleep(0.5)
    assert [member.loss for member in watched] == [None, None, None]
