"""Answers at a tap: frames through a pair of sockets in its place, and the counts."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.agent import answers, devices, rejecting
from testbed.agent import taps as agent_taps
from testbed.agent.protocol import Refused
from tests.unit.frames import RST, SYN, ipv4, tcp
from tests.unit.test_answers import summed

SYN_FRAME = summed(ipv4("10.0.0.1", "10.0.0.2", 6, tcp(40000, 80, seq=1, flags=SYN)))
RST_FRAME = summed(ipv4("10.0.0.1", "10.0.0.2", 6, tcp(40000, 80, seq=1, flags=RST)))


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> dict[str, socket.socket]:
    """The other end of each tap, by its name."""
    ends: dict[str, socket.socket] = {}

    def open_tap(name: str) -> int:
        ends[name], ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends[name].settimeout(5)
        ours.setblocking(False)
        return ours.detach()

    monkeypatch.setattr(rejecting, "open_tap", open_tap)
    monkeypatch.setattr(devices, "mac", lambda _name: b"\2\2\2\2\2\2")
    return ends


@pytest.fixture
def taps(wires: dict[str, socket.socket]) -> Iterator[rejecting.Rejecting]:
    rejects = rejecting.Rejecting()
    yield rejects
    rejects.close()
    for end in wires.values():
        end.close()


def test_what_comes_is_answered_at_the_same_tap_and_counted(
    taps: rejecting.Rejecting, wires: dict[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, unset = os.write, threading.Event()

    def interrupted(descriptor: int, data: bytes) -> int:
        """As on a busy machine: the reply has arrived long before this thread goes on."""
        count = write(descriptor, data)
        unset.wait(0.1)
        return count

    monkeypatch.setattr(os, "write", interrupted)
    for key, name in ((7, "one"), (8, "other")):
        assert taps.open(key, name).name == name
    assert taps.open(7, "anew").name == "one"  # it is there already
    wires["one"].send(RST_FRAME)
    wires["one"].send(SYN_FRAME[:6] + b"\2\2\2\2\2\2" + SYN_FRAME[12:])  # the machine's own: no packet of the sender
    wires["one"].send(SYN_FRAME)
    reply = answers.answer(SYN_FRAME)
    assert reply is not None
    assert wires["one"].recv(9999) == reply.frame
    assert taps.counts(7) == {"read": 2, "reset": 1, "error": 0, "unanswered": 1, "failed": 0}
    assert taps.counts(8) == {"read": 0, "reset": 0, "error": 0, "unanswered": 0, "failed": 0}
    assert taps.counts(9) is None


def test_a_tap_that_dies_is_let_go_and_the_others_serve_on(
    taps: rejecting.Rejecting, wires: dict[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = taps.open(7, "one")
    read = os.read

    def deleted(descriptor: int, length: int) -> bytes:
        if descriptor == dead.descriptor:
            raise OSError(77, "File descriptor in bad state")
        return read(descriptor, length)

    monkeypatch.setattr(os, "read", deleted)
    wires["one"].send(SYN_FRAME)
    taps.open(8, "other")
    wires["other"].send(SYN_FRAME)
    assert wires["other"].recv(9999)
    taps.shut(7)
    assert taps.keys == [8]


def test_closing_ends_the_thread_and_lets_every_tap_go(wires: dict[str, socket.socket]) -> None:
    rejects = rejecting.Rejecting()
    rejects.open(7, "one")
    rejects.close()
    assert wires["one"].recv(9) == b""  # the other end is closed
    assert "rejecting" not in [thread.name for thread in threading.enumerate()]


def test_a_tap_that_cannot_be_had_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_taps, "TUN", Path("/dev/nothing-of-this-name"))
    with pytest.raises(Refused, match="/dev/nothing-of-this-name: No such file or directory"):
        agent_taps.open_tap("tb0r0")
