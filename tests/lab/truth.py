"""Faults and impairments, each with each: what is done to a running test, and whether what was asked was in force.

For the matrix of `test_truth` and `benchmarks.truth`. A cell is one test's worth: impair, send datagrams, do the fault
among them, verify; then whether the next test finds all in order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed import ImpairmentNotAppliedError, Lab
from testbed.labs.lab import Port
from testbed.labs.waiting import await_condition
from testbed.model.topology import LinkRef

LINK = "client -> server"
PORT = 5005
COUNT, PACE_S = 50, 0.02
_FAULT_AFTER_S = 0.25

_RECEIVE = """
import socket, struct, sys, time
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); heard.bind(("", int(sys.argv[1]))); print("ready", flush=True)
while True:
    data = heard.recv(4096)
    print(*struct.unpack_from("!Id", data), time.monotonic(), flush=True)
"""
_SEND = """
import socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(sys.argv[3])):
    try: s.sendto(struct.pack("!Id", number, time.monotonic()).ljust(64), (sys.argv[1], int(sys.argv[2])))
    except OSError: pass
    time.sleep(float(sys.argv[4]))
"""


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """The datagrams that arrived: number, and how long each took in seconds."""

    delays_s: Mapping[int, float]
    late_s: float
    """How late one may be on an honest machine that is as busy as this."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An impairment, and whether what arrived bears it out."""

    name: str
    put: Callable[[Lab], object]
    in_force: Callable[[Arrivals], bool]


def _all_within(least_s: float, most_s: float) -> Callable[[Arrivals], bool]:
    def told(seen: Arrivals) -> bool:
        times = seen.delays_s.values()
        return len(times) == COUNT and all(least_s - 1e-4 <= each <= most_s + seen.late_s for each in times)

    return told


def _none(seen: Arrivals) -> bool:
    return not seen.delays_s


def _some_of_each(seen: Arrivals) -> bool:
    """Of a link that comes and goes every 100 ms: in each 400 ms some arrived, and some did not."""
    parts = [range(start, start + COUNT // 2) for start in (0, COUNT // 2)]
    return all(0 < sum(number in seen.delays_s for number in part) < len(part) for part in parts)


IMPAIRMENTS = (
    Asked(name="delay", put=lambda lab: lab.impair(LINK, delay="40ms"), in_force=_all_within(0.04, 0.04)),
    Asked(name="loss 100%", put=lambda lab: lab.impair(LINK, loss="100%"), in_force=_none),
    Asked(name="cut", put=lambda lab: lab.cut(LINK), in_force=_none),
    Asked(name="narrowed cut", put=lambda lab: lab.cut(f"{LINK} udp/{PORT}"), in_force=_none),
    Asked(name="flap", put=lambda lab: lab.flap(LINK, up="100ms", down="100ms"), in_force=_some_of_each),
    Asked(
        name="timeline",
        put=lambda lab: lab.impair(LINK, [{"at": "0s", "delay": "20ms"}, {"at": "500ms", "delay": "60ms"}]),
        in_force=_all_within(0.02, 0.06),
    ),
)


# --- faults -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a fault is done: the port toward the server, and the processes of the kernel that carries it."""

    lab: Lab
    ref: LinkRef
    port: Port
    kernel: tuple[int, ...]

    def beside(self, *argv: str) -> bytes:
        """Run a program in the network namespace of the switch; what it printed."""
        there = ["nsenter", "-t", str(self.kernel[0]), "-n", *argv]
        return subprocess.run(there, check=True, capture_output=True, timeout=10).stdout

    @property
    def veth(self) -> Any:
        """The receiver's veth, on the switch's side."""
        ifindex = self.lab._prepare_source(self.ref.dst, self.ref.network)  # nothing else tells it of both labs
        return next(
            each["ifname"] for each in json.loads(self.beside("ip", "-j", "link")) if each["ifindex"] == ifindex
        )

    @property
    def taps(self) -> tuple[str, str]:
        """The taps of the port, on the bridge's side and on the host's."""
        sides = self.port.channel.call("sides", port=self.port.name)
        return sides["before"], sides["after"]

    def signal(self, number: int) -> None:
        """Send the carried kernel a signal."""
        os.kill(self.kernel[0], number)


def _starved(_at: Place) -> None:
    """Have every processor compute for others, four times over, for half a second."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        time.sleep(0.5)
    finally:
        for each in burning:
            each.kill()
            each.wait()


def _frozen(seconds: float) -> Callable[[Place], object]:
    def fault(at: Place) -> None:
        at.signal(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            at.signal(signal.SIGCONT)

    return fault


FAULTS: Mapping[str, Callable[[Place], object]] = {
    "none": lambda _at: None,
    "link down at the veth": lambda at: at.beside("ip", "link", "set", at.veth, "down"),
    "qdisc deleted": lambda at: at.port.channel.call(
        "tc", port=at.port.name, lines=[f"qdisc delete dev {at.port.device} root"]
    ),
    "splice deleted": lambda at: at.beside("tc", "qdisc", "delete", "dev", at.veth, "ingress"),
    "tap off the bridge": lambda at: at.beside("ip", "link", "set", at.taps[0], "nomaster"),
    "tap down": lambda at: at.beside("ip", "link", "set", at.taps[1], "down"),
    "redirect in the kernel deleted": lambda at: at.port.channel.call(
        "tc", port=at.port.name, lines=[f"qdisc delete dev {at.port.entry} ingress"]
    ),
    "kernel frozen 0.3 s": _frozen(0.3),
    "kernel frozen 3 s": _frozen(3.0),
    "kernel stopped": lambda at: at.signal(signal.SIGSTOP),
    "machine starved": _starved,
    "kernel killed": lambda at: at.signal(signal.SIGKILL),
}


def _kernel(name: str) -> tuple[int, ...]:
    """The processes of a carried kernel, the kernel itself first and then those of its programs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended while we looked
        if words[0].endswith(b"linux.uml") and f"umid={name}".encode() in words:
            found.append(int(path.parent.name))
    return tuple(sorted(found))


# --- a cell -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What came of one impairment under one fault."""

    fault: str
    impairment: str
    verdict: str
    """``PASSED`` or ``INVALID``."""
    in_force: bool
    """Whether the datagrams that arrived bear out what was asked."""
    reason: str
    next_verdict: str
    """Of the same impairment in the next test, without a fault: ``PASSED``, or why not."""
    next_late: bool
    """Whether the carrier's lateness alone spoiled the next test."""

    @property
    def mended(self) -> bool:
        """Whether the next test found all in order; that the machine was too busy for it is none of the fault's."""
        return self.next_verdict == "PASSED" or self.next_late

    @property
    def right(self) -> bool:
        """Whether nothing passed that should not, and the next test found all in order."""
        return (self.verdict == "INVALID" or self.in_force) and self.mended


def cell(lab: Lab, fault: str, asked: Asked) -> Cell:
    """Run one test and the next."""
    seen, reason = _test(lab, asked, FAULTS[fault])
    _, after = _test(lab, asked, FAULTS["none"])
    failing = {check.field for link in lab.evidence for check in link.failures}
    return Cell(
        fault=fault, impairment=asked.name, verdict="INVALID" if reason else "PASSED", reason=reason,
        in_force=seen is not None and asked.in_force(seen), next_verdict=f"INVALID: {after}" if after else "PASSED",
        next_late=failing == {"lateness"},
    )  # fmt: skip


def await_frames(lab: Lab, count: int) -> None:
    """Wait until so many frames have shown how late each carried kernel is."""

    def seen() -> list[int]:
        kernels = lab.capture_agent().call("passages")["kernels"].values()
        return [len(each["passages_ns"]) for each in kernels]

    await_condition(seen, lambda counts: bool(counts) and min(counts) >= count, deadline_s=20)


def _test(lab: Lab, asked: Asked, fault: Callable[[Place], object]) -> tuple[Arrivals | None, str]:
    """What arrived, and why the test is INVALID; empty if it is not."""
    seen, reason = None, ""
    lab.begin("truth")
    try:
        asked.put(lab)
        lab.carriage.settle()
        seen = _send(lab, fault)
        lab.verify()
    except ImpairmentNotAppliedError as error:
        reason = str(error)
    finally:
        lab.end()
    return seen, reason


def _send(lab: Lab, fault: Callable[[Place], object]) -> Arrivals:
    ref = lab.link(LINK).ref
    port = next(each for each in lab.ports if each.name == f"{ref.dst}@{ref.network}")
    server, client = lab.host(ref.dst), lab.host(ref.src)
    receiver = server.start(["python3", "-c", _RECEIVE, str(PORT)], ready="ready")
    target = server.addresses(ref.network)[0]
    sender = client.start(["python3", "-c", _SEND, target, str(PORT), str(COUNT), str(PACE_S)])
    time.sleep(_FAULT_AFTER_S)  # what is asked is that some datagrams pass before
    fault(Place(lab=lab, ref=ref, port=port, kernel=_kernel(port.kernel or "")))
    sender.wait("30s")
    time.sleep(0.2)  # for what is under way
    lines = receiver.stop("SIGKILL").stdout.splitlines()[1:]
    return Arrivals(delays_s=dict(_read(lines)), late_s=0.1)


def _read(lines: Sequence[str]) -> list[tuple[int, float]]:
    return [(int(number), float(came) - float(sent)) for number, sent, came in map(str.split, lines)]
