"""Faults and impairments, each with each: what is done to a running test, and whether what was asked was in force.

For the matrix of `test_truth` and `benchmarks.truth`. A cell is one test's worth: impair, send datagrams, do the fault
among them, verify; then whether the next test finds all in order.
"""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed import ComposeLab, ImpairmentNotAppliedError, Lab, LocalLab
from testbed.labs.lab import Port, Program
from testbed.labs.waiting import await_condition
from testbed.model.topology import LinkRef

LINK = "client -> server"
PORT = 5005
COUNT, PACE_S = 50, 0.02
_FAULT_AFTER_S = 0.25
_ATTEMPTS = 3

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
spare = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(sys.argv[3])):
    try: spare.bind((sys.argv[6], 0))
    except OSError: pass  # the host does not have that address, or not yet
    else: s = spare
    data = struct.pack("!Id", number, time.monotonic()).ljust(int(sys.argv[5]), b"\\0")
    try: s.sendto(data, (sys.argv[1], int(sys.argv[2])))
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
    target: str
    """The receiver's address."""
    spare: str
    """An address from which the sender sends as soon as its host has it."""

    def beside(self, *argv: str) -> bytes:
        """Run a program in the network namespace of the switch; what it printed."""
        return _enter(self.kernel[0], *argv)

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

    @property
    def sender(self) -> int:
        """The process that sends, as this machine numbers it."""
        return next(each for each, words in _processes() if _SEND.encode() in words and self.spare.encode() in words)

    def signal(self, number: int) -> None:
        """Send the carried kernel a signal."""
        os.kill(self.kernel[0], number)


def _enter(whose: int | Sequence[int], *argv: str) -> bytes:
    """Run a program in the network namespace of a process, or of descriptors of its and its owner's; what it printed.

    Another's namespaces are entered by way of the user namespace that owns them; root is in that one already.
    """
    descriptors: tuple[int, ...]
    if isinstance(whose, int):
        ways, descriptors = ["-t", str(whose), "--net", "--user"], ()
    else:
        ways, descriptors = (
            [f"--{kind}=/proc/self/fd/{each}" for kind, each in zip(("net", "user"), whose, strict=True)],
            tuple(whose),
        )
    chosen = [way for way in ways if os.geteuid() or "user" not in way]
    own = ["--preserve-credentials"] if os.geteuid() else []
    found = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    argv = ("nsenter", *chosen, *own, *argv)
    return subprocess.run(argv, check=True, capture_output=True, timeout=10, env=found, pass_fds=descriptors).stdout


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


def _address_added(at: Place) -> Callable[[], object]:
    """Give the sender's host another address; what takes it away again."""
    device = json.loads(_enter(at.sender, "ip", "-j", "route", "get", at.target))[0]["dev"]
    _enter(at.sender, "ip", "address", "add", f"{at.spare}/32", "dev", device)
    namespaces = [
        os.open(f"/proc/{at.sender}/ns/{kind}", os.O_RDONLY) for kind in ("net", "user")
    ]  # outlive the sender

    def undo() -> None:
        try:
            _enter(namespaces, "ip", "address", "delete", f"{at.spare}/32", "dev", device)
        finally:
            for each in namespaces:
                os.close(each)

    return undo


def _host(compose: Callable[[Any], object], local: Callable[[Any], object]) -> Callable[[Place], object]:
    """What others do to the receiver's host, by the kind of lab."""
    return lambda at: (compose if isinstance(at.lab, ComposeLab) else local)(at.lab)


def _recreate(lab: ComposeLab) -> None:
    """As `docker compose up --force-recreate server`, in another process."""
    assert lab._config_up is not None
    words = ["up", "--detach", "--force-recreate", "--no-build", "--no-deps", "server"]
    assert lab.composer._with(lab._config_up, words, 60) is None


def _restart(lab: LocalLab) -> None:
    """End all in the host: a namespace is not restarted by others than us."""
    lab.kill_host("server", "SIGKILL")


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
    "container paused": _host(
        lambda lab: lab.hosts["server"].container.pause(), lambda lab: lab.channel.call("freeze_host", host="server")
    ),
    "container restarted": _host(lambda lab: lab.hosts["server"].container.restart(timeout=1), _restart),
    "container recreated": _host(_recreate, lambda lab: lab.channel.call("halt_host", host="server")),
    "container gone": _host(
        lambda lab: lab.hosts["server"].container.remove(force=True),
        lambda lab: lab.channel.call("halt_host", host="server"),
    ),
    "address added": _address_added,
    "fragments": lambda _at: None,
    "kernel killed": lambda at: at.signal(signal.SIGKILL),
}


_BYTES = {"fragments": 4000}
"""Of each datagram, where not 64: above an MTU it comes in pieces."""


def _processes() -> Iterator[tuple[int, list[bytes]]]:
    """Every process, and the words of its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended while we looked


def _kernel(name: str) -> tuple[int, ...]:
    """The processes of a carried kernel, the kernel itself first and then those of its programs."""
    umid = f"umid={name}".encode()
    return tuple(sorted(pid for pid, words in _processes() if words[0].endswith(b"linux.uml") and umid in words))


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
    late: int
    """How often the cell was run again, for the machine itself had been late where nothing else was wrong."""

    @property
    def mended(self) -> bool:
        """Whether the next test found all in order."""
        return self.next_verdict == "PASSED"

    @property
    def right(self) -> bool:
        """Whether nothing passed that should not, and the next test found all in order; without a fault, it passed."""
        told = self.in_force if self.verdict == "PASSED" else self.fault != "none"
        return told and self.mended


def cell(lab: Lab, fault: str, asked: Asked) -> Cell:
    """Run one test and the next; again where the machine was late, and that alone spoiled a test without a fault.

    Then nothing is known of the fault: the cell is run again, `_ATTEMPTS` times in all; the last counts as it is.
    """
    for late in range(_ATTEMPTS):
        seen, reason = _test(lab, asked, fault)
        spoiled = fault == "none" and _only_late(lab)
        after = ""
        if not spoiled:
            _, after = _test(lab, asked, "none")
            spoiled = bool(after) and _only_late(lab)
        found = Cell(
            fault=fault, impairment=asked.name, verdict="INVALID" if reason else "PASSED", reason=reason,
            in_force=seen is not None and asked.in_force(seen), late=late,
            next_verdict=f"INVALID: {after}" if after else "PASSED",
        )  # fmt: skip
        if not spoiled:
            break
    return found


def _only_late(lab: Lab) -> bool:
    """Whether all that failed in the test that ended last was the carrier's lateness."""
    return {check.field for link in lab.evidence for check in link.failures} == {"lateness"}


def await_frames(lab: Lab, count: int) -> None:
    """Wait until so many frames have shown how late each carried kernel is."""

    def seen() -> list[int]:
        kernels = lab.capture_agent().call("passages")["kernels"].values()
        return [len(each["passages_ns"]) for each in kernels]

    await_condition(seen, lambda counts: bool(counts) and min(counts) >= count, deadline_s=20)


def _test(lab: Lab, asked: Asked, fault: str) -> tuple[Arrivals | None, str]:
    """What arrived, and why the test is INVALID; empty if it is not."""
    seen, reason = None, ""
    lab.carriage.warn_only = False  # whatever this suite's other tests are run with
    lab.begin("truth")
    undo: object = None
    try:
        asked.put(lab)
        lab.carriage.settle()
        receiver, undo = _send(lab, fault)
        lab.verify()
        lines = receiver.stop("SIGKILL").stdout.splitlines()[1:]
        seen = Arrivals(delays_s=dict(_read(lines)), late_s=0.1)
    except ImpairmentNotAppliedError as error:
        reason = str(error)
    finally:
        if callable(undo):
            undo()
        lab.end()
    return seen, reason


def _send(lab: Lab, fault: str) -> tuple[Program, object]:
    """What receives, after all has been sent; and what undoes the fault, if that must be."""
    ref = lab.link(LINK).ref
    port = next(each for each in lab.ports if each.name == f"{ref.dst}@{ref.network}")
    server, client = lab.host(ref.dst), lab.host(ref.src)
    receiver = server.start(["python3", "-c", _RECEIVE, str(PORT)], ready="ready")
    target = next(each for each in server.addresses(ref.network) if "." in each)
    spare = str(ipaddress.ip_address(target) + 100)
    words = [target, PORT, COUNT, PACE_S, _BYTES.get(fault, 64), spare]
    sender = client.start(["python3", "-c", _SEND, *map(str, words)])
    time.sleep(_FAULT_AFTER_S)  # what is asked is that some datagrams pass before
    at = Place(lab=lab, ref=ref, port=port, kernel=_kernel(port.kernel or ""), target=target, spare=spare)
    undo = FAULTS[fault](at)
    sender.wait("30s")
    time.sleep(0.2)  # for what is under way
    return receiver, undo


def _read(lines: Sequence[str]) -> list[tuple[int, float]]:
    return [(int(number), float(came) - float(sent)) for number, sent, came in map(str.split, lines)]
