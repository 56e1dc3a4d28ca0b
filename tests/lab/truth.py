"""Faults and impairments in every combination: what is done to a running test, and whether its network was in force.

For the matrix of `test_truth` and `benchmarks.truth`. A cell is one test's worth: impair, send datagrams, do the fault
among them, verify; then whether the next test finds all in order.
"""

from __future__ import annotations

import contextlib
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

import docker

from testbed import ComposeLab, ImpairmentNotAppliedError, Lab, LabError, LocalLab
from testbed.judge import lateness
from testbed.lab.host import Program
from testbed.lab.ports import Port
from testbed.lab.waiting import await_condition
from testbed.spec.links import LinkRef
from tests.lab.test_local_death import alive, relatives

STACK = Path(__file__).parent / "stacks" / "shared.yaml"
"""Two hosts that share a second network, too."""
PORT = 5005
_OTHER_NETWORK = "side"
LINK = "client -> server on lan"
_NARROWED = f"client -> server udp/{PORT} on lan"
COUNT, PACE_S = 40, 0.02
_COUNT_AFTER = 10
_FAULT_AFTER_S = 0.25
_KNOWN_WITHIN_S = 150.0
_MOST_LATE_RATIO = 0.25
"""Of the datagrams, by more than the least tolerance: of so few, chance may have so many late where 1 % are."""

_RECEIVE = """
import socket, struct, sys
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); heard.bind(("", int(sys.argv[1])))
SO_TIMESTAMPNS = 35  # asm-generic/socket.h: the kernel says when each came, however late we are to read it
heard.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
print("ready", flush=True)
while True:
    data, ((_, _, stamp), *_), *_ = heard.recvmsg(4096, 64)
    seconds, nanoseconds = struct.unpack("=qq", stamp)
    print(*struct.unpack_from("!Id", data), seconds + nanoseconds / 1e9, flush=True)
"""
_SEND = """
import socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
spare = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(sys.argv[7]), int(sys.argv[7]) + int(sys.argv[3])):
    try: spare.bind((sys.argv[6], 0))
    except OSError: pass  # the host does not have that address, or not yet
    else: s = spare
    data = struct.pack("!Id", number, time.time()).ljust(int(sys.argv[5]), b"\\0")
    try: s.sendto(data, (sys.argv[1], int(sys.argv[2])))
    except OSError: pass
    time.sleep(float(sys.argv[4]))
"""


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """The datagrams that arrived: number, and how long each took in seconds."""

    delays_s: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An impairment, and a check of what arrived."""

    name: str
    put: Callable[[Lab], object]
    in_force: Callable[[Arrivals], bool]


def _all_within(least_s: float, most_s: float) -> Callable[[Arrivals], bool]:
    """All arrived, none early, and no more late than the tolerance of a passing test allows."""

    def told(seen: Arrivals) -> bool:
        late_s = [delay_s - most_s for delay_s in seen.delays_s.values()]
        late = sum(lateness_s > lateness.LEAST_TOLERANCE_S for lateness_s in late_s)
        return (
            len(late_s) == COUNT
            and min(seen.delays_s.values()) >= least_s - 1e-4
            and late <= COUNT * _MOST_LATE_RATIO
            and max(late_s) <= lateness.AT_ONCE_S + lateness.LEAST_TOLERANCE_S
        )

    return told


def _none(seen: Arrivals) -> bool:
    return not seen.delays_s


def _some_of_each(seen: Arrivals) -> bool:
    """For a link that flaps every 100 ms: in each 400 ms some arrived, and some did not."""
    parts = [range(start, start + COUNT // 2) for start in (0, COUNT // 2)]
    return all(0 < sum(number in seen.delays_s for number in part) < len(part) for part in parts)


IMPAIRMENTS = (
    Asked(name="delay", put=lambda lab: lab.impair(LINK, delay="40ms"), in_force=_all_within(0.04, 0.04)),
    Asked(name="loss 100%", put=lambda lab: lab.impair(LINK, loss="100%"), in_force=_none),
    Asked(name="cut", put=lambda lab: lab.cut(LINK), in_force=_none),
    Asked(name="narrowed cut", put=lambda lab: lab.cut(_NARROWED), in_force=_none),
    Asked(name="flap", put=lambda lab: lab.flap(LINK, up="100ms", down="100ms"), in_force=_some_of_each),
    Asked(
        name="timeline",
        put=lambda lab: lab.impair(LINK, [{"at": "0s", "delay": "20ms"}, {"at": "400ms", "delay": "60ms"}]),
        in_force=_all_within(0.02, 0.06),
    ),
)


# --- faults -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a fault is injected: the port toward the server, and the processes of its carried kernel."""

    lab: Lab
    ref: LinkRef
    port: Port
    kernel: tuple[int, ...]
    target: str
    """The receiver's address."""
    spare: str
    """An address from which the sender sends as soon as its host has it."""

    def send(self, target: str) -> None:
        """Send more datagrams, to another address of the receiver's."""
        self.lab.host(self.ref.src).run(_sending(self.lab, target, self.spare, count=COUNT // 2, first=COUNT))

    def beside(self, *argv: str) -> bytes:
        """Run a program in the network namespace of the switch; what it printed."""
        return _enter(self.kernel[0], *argv)

    @property
    def veth(self) -> Any:
        """The receiver's veth, on the switch's side."""
        ifindex = self.lab.port_of_sender(self.ref.dst, self.ref.network)  # nothing else tells it of both labs
        return next(row["ifname"] for row in json.loads(self.beside("ip", "-j", "link")) if row["ifindex"] == ifindex)

    @property
    def taps(self) -> tuple[str, str]:
        """The taps of the port, on the bridge's side and on the host's."""
        sides = self.port.channel.call("sides", port=self.port.name)
        return sides["before"], sides["after"]

    @property
    def sender(self) -> int:
        """The process that sends, as this machine numbers it."""
        ours = self.lab.run_id.encode()  # another run's hosts may have the same addresses

        def pids_of_it() -> list[int]:
            return [pid for pid, words in _processes() if _SEND.encode() in words and ours in words]

        return await_condition(pids_of_it, lambda pids: bool(pids), deadline_s=10)[0]

    def signal(self, number: int) -> None:
        """Send the carried kernel a signal; one that stops it has done so then."""
        os.kill(self.kernel[0], number)
        if number == signal.SIGSTOP:
            stat = Path(f"/proc/{self.kernel[0]}/stat")
            await_condition(lambda: stat.read_text().rpartition(")")[2].split()[0], "Tt".__contains__, deadline_s=10)


def place(lab: Lab, *, network: str = "lan") -> Place:
    """Where to inject a fault, once `LINK` is impaired or cut; ``network``: where datagrams are sent."""
    ref = lab.link(LINK).ref
    port = next(port for port in lab.ports if port.ref == ref.receivers_port)
    target = next(address for address in lab.host(ref.dst).addresses(network) if "." in address)
    spare = str(ipaddress.ip_address(target) + 100)
    return Place(lab=lab, ref=ref, port=port, kernel=kernel_of(port.kernel or ""), target=target, spare=spare)


def _enter(whose: int | Sequence[int], *argv: str) -> bytes:
    """Run a program in the network namespace of a process, or of descriptors of its and its owner's; what it printed.

    Another's namespaces are entered by way of the user namespace that owns them; root is in that one already.
    """
    descriptors: tuple[int, ...]
    if isinstance(whose, int):
        ways, descriptors = ["-t", str(whose), "--net", "--user"], ()
    else:
        ways, descriptors = (
            [f"--{kind}=/proc/self/fd/{descriptor}" for kind, descriptor in zip(("net", "user"), whose, strict=True)],
            tuple(whose),
        )
    chosen = [way for way in ways if os.geteuid() or "user" not in way]
    own = ["--preserve-credentials"] if os.geteuid() else []
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    argv = ("nsenter", *chosen, *own, *argv)
    return subprocess.run(
        argv, check=True, capture_output=True, timeout=10, env=environment, pass_fds=descriptors
    ).stdout


def _starved(_at: Place) -> None:
    """Keep every processor busy with four processes for half a second."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        time.sleep(0.5)
    finally:
        for process in burning:
            process.kill()
            process.wait()


def _kernel_starved(at: Place) -> None:
    """Let the kernel run for a quarter of half a second, 10 ms at a time: less than its share under any policy."""
    for _ in range(12):
        _frozen(0.03)(at)
        time.sleep(0.01)


def _frozen(seconds: float) -> Callable[[Place], object]:
    def fault(at: Place) -> None:
        at.signal(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            at.signal(signal.SIGCONT)

    return fault


def _address_added(at: Place) -> Callable[[], object]:
    """Give the sender's host another address; returns what removes it."""
    sender = at.sender
    namespaces = [os.open(f"/proc/{sender}/ns/{kind}", os.O_RDONLY) for kind in ("net", "user")]  # outlive the sender
    device = json.loads(_enter(namespaces, "ip", "-j", "route", "get", at.target))[0]["dev"]
    _enter(namespaces, "ip", "address", "add", f"{at.spare}/32", "dev", device)

    def undo() -> None:
        try:
            _enter(namespaces, "ip", "address", "delete", f"{at.spare}/32", "dev", device)
        finally:
            for namespace in namespaces:
                os.close(namespace)

    return undo


def _host(compose: Callable[[Any], object], local: Callable[[Any], object]) -> Callable[[Place], object]:
    """What others do to the receiver's host, by kind of lab."""
    return lambda at: (compose if isinstance(at.lab, ComposeLab) else local)(at.lab)


def _recreate(lab: ComposeLab) -> None:
    """As `docker compose up --force-recreate server`, in another process."""
    assert lab.stack.config_up is not None
    words = ["up", "--detach", "--force-recreate", "--no-build", "--no-deps", "server"]
    assert lab.composer.with_config(lab.stack.config_up, words, 60) is None


def _restart(lab: LocalLab) -> None:
    """End all processes in the host: only testbed restarts a namespace."""
    lab.kill_host("server", "SIGKILL")


def _kill_agent(at: Place) -> None:
    """End the agent that holds the ports; of a local lab everything ends with it."""
    if isinstance(at.lab, ComposeLab):
        at.lab.agent_container.kill()
        return
    assert isinstance(at.lab, LocalLab)
    everyone = relatives(at.lab.agent.child.pid)
    os.kill(at.lab.agent.child.pid, signal.SIGKILL)
    await_condition(lambda: alive(everyone), lambda left: not left, deadline_s=5)


def capturing(lab: Lab) -> set[int]:
    """The processes of the agent that captures, and watches how late packets are, as this machine numbers them."""
    if isinstance(lab, ComposeLab):
        (container,) = lab.engine.containers(testbed_run=lab.run_id, testbed_role="capture")
        return {int(lab.engine.state(container)["State"]["Pid"])}
    assert isinstance(lab, LocalLab)
    pipe = f"pipe:[{os.fstat(lab.capture_agent().stream.fileno()).st_ino}]"  # type: ignore[attr-defined]
    return {
        pid
        for pid in relatives(lab.agent.child.pid)
        if any(os.readlink(path) == pipe for path in Path(f"/proc/{pid}/fd").iterdir())
    }


def _kill_capturing(at: Place) -> None:
    """End the agent that captures."""
    if isinstance(at.lab, ComposeLab):
        (container,) = at.lab.engine.containers(testbed_run=at.lab.run_id, testbed_role="capture")
        container.kill()
        return
    ends = capturing(at.lab)
    os.kill(min(ends), signal.SIGKILL)
    await_condition(lambda: alive(ends), lambda left: not left, deadline_s=5)


@contextlib.contextmanager
def connected(lab: ComposeLab, *hosts: str) -> Iterator[str]:
    """Hosts on another network, as `docker network connect` puts them; its name."""
    client = docker.from_env()
    network = client.networks.create(f"{lab.composer.project}-stray", labels={"testbed.run": lab.run_id})
    ends = [lab.hosts[name].container for name in hosts]
    try:
        for end in ends:
            network.connect(end)
        yield str(network.name)
    finally:
        for end in ends:
            network.disconnect(end, force=True)
        network.remove()


@contextlib.contextmanager
def rewritten(lab: ComposeLab, network: str) -> Iterator[None]:
    """A rule of a network that is gone, which gives this network's packets the gateway's address."""
    name = lab.topology.networks[network].engine_name
    (pool, *_) = docker.from_env().networks.get(name).attrs["IPAM"]["Config"]
    rule = f"POSTROUTING -s {pool['Subnet']} ! -o br-testbed-gone -j MASQUERADE".split()
    nat = ["iptables", "-w", "-t", "nat"]
    subprocess.run([*nat, "-I", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run([*nat, "-D", *rule], check=True)


def _connect(at: Place) -> Callable[[], None]:
    """Connect both hosts to another network, and send there; returns what undoes it."""
    assert isinstance(at.lab, ComposeLab)
    with contextlib.ExitStack() as undo:
        name = undo.enter_context(connected(at.lab, at.ref.src, at.ref.dst))
        container = at.lab.hosts[at.ref.dst].container
        container.reload()
        at.send(container.attrs["NetworkSettings"]["Networks"][name]["IPAddress"])
        return undo.pop_all().close


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
    "kernel starved": _kernel_starved,
    "agent killed": _kill_agent,
    "capturing agent killed": _kill_capturing,
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
    "stray network": lambda _at: None,
    "stray network, connected meanwhile": _connect,
    "kernel killed": lambda at: at.signal(signal.SIGKILL),
}


OF_CONTAINERS = frozenset({"stray network, connected meanwhile"})
"""Faults of containers alone: a local lab's namespaces nobody but the lab connects to a network."""


def faults(lab: type[Lab]) -> list[str]:
    """The faults that are possible in a lab of this kind."""
    return [fault for fault in FAULTS if issubclass(lab, ComposeLab) or fault not in OF_CONTAINERS]


_BYTES = {"fragments": 4000}
"""Of each datagram, where not 64: above an MTU it comes in pieces."""
_NETWORK = {"stray network": _OTHER_NETWORK}
"""Where all of them go, where not over the link's."""


def _processes() -> Iterator[tuple[int, list[bytes]]]:
    """Every process, and the words of its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended while we looked


def kernel_of(name: str) -> tuple[int, ...]:
    """The processes of a carried kernel, the kernel itself first and then those of its programs."""
    umid = f"umid={name}".encode()
    return tuple(sorted(pid for pid, words in _processes() if words[0].endswith(b"linux.uml") and umid in words))


# --- a cell -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The result of one impairment under one fault."""

    fault: str
    impairment: str
    verdict: str
    """``PASSED``, ``INVALID``, or ``FAILED``: something else than a link that was not in force broke it."""
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
    def told(self) -> str:
        """``WRONG``, or the verdict; of a passed test also whether the impairment was in force."""
        outcome = "PASSED, in force" if self.verdict == "PASSED" and self.in_force else self.verdict
        return outcome if self.right else f"WRONG ({outcome}; next {self.next_verdict.partition(':')[0]})"

    @property
    def right(self) -> bool:
        """Whether no test passed that should not, the next test was in order, and a test without a fault passed."""
        invalid = self.verdict == "INVALID" and self.fault != "none"
        return (invalid or (self.verdict == "PASSED" and self.in_force)) and self.mended


def cell(lab: Lab, fault: str, request: Asked) -> Cell:
    """Run one test and the next; repeat if only lateness of the machine spoiled a test without a fault.

    Then nothing is known of the fault: the cell is run again, for `_KNOWN_WITHIN_S`; the last run counts as it is.
    """
    late, deadline = 0, time.monotonic() + _KNOWN_WITHIN_S
    while True:
        seen, verdict, reason = _test(lab, request, fault)
        spoiled = fault == "none" and _only_late(lab)
        next_verdict, after = "PASSED", ""
        if not spoiled:
            _, next_verdict, after = _test(lab, request, "none", after=True)
            spoiled = next_verdict == "INVALID" and _only_late(lab)
        result = Cell(
            fault=fault,
            impairment=request.name,
            verdict=verdict,
            reason=reason,
            in_force=seen is not None and request.in_force(seen),
            late=late,
            next_verdict=f"{next_verdict}: {after}" if after else next_verdict,
        )
        if not spoiled or time.monotonic() > deadline:
            return result
        late += 1


def _only_late(lab: Lab) -> bool:
    """Whether the last test failed only because the carrier, or steps of a timeline, were late.

    A step that is passed over leaves the next one nothing to undo, which fails, too.
    """
    failed = {check.field for link in lab.ledger.evidence for check in link.failures}
    passed_over = any(step.passed_over for link in lab.ledger.evidence for step in link.steps)
    return failed <= {"lateness"} and (bool(failed) or passed_over)


def await_frames(lab: Lab, count: int) -> None:
    """Wait until so many frames have shown how late each carried kernel is."""

    def seen() -> list[int]:
        kernels = lab.capture_agent().call("passages")["kernels"].values()
        return [len(kernel["passages_ns"]) for kernel in kernels]

    await_condition(seen, lambda counts: bool(counts) and min(counts) >= count, deadline_s=20)


def _test(lab: Lab, request: Asked, fault: str, *, after: bool = False) -> tuple[Arrivals | None, str, str]:
    """What arrived, the verdict as the plugin has it, and the reason; empty for a test that passed.

    ``after`` a fault, a few datagrams will do; and that the machine is late is nothing that a fault has left.
    """
    seen, verdict, reason = None, "PASSED", ""
    undo: list[object] = []
    try:
        lab.carriage.warn_only = after  # whatever this suite's other tests are run with
        lab.lifecycle.begin("truth")
        try:
            request.put(lab)
            lab.carriage.settle()
            receiver = _send(lab, fault, undo, count=_COUNT_AFTER if after else COUNT)
            lab.verifier.verify()
            lines = receiver.stop("SIGKILL").stdout.splitlines()[1:]
            seen = Arrivals(delays_s=dict(_read(lines)))
        except ImpairmentNotAppliedError as error:
            verdict, reason = "INVALID", str(error)
        except LabError as error:  # an agent's death is none of the test's failures
            deaths = lab.succession.look()
            verdict, reason = ("INVALID", "; ".join(map(str, deaths))) if deaths else ("FAILED", str(error))
        finally:
            for callback in undo:
                if callable(callback):
                    callback()
            lab.lifecycle.end()
    except Exception as error:  # noqa: BLE001  # whatever broke, this cell is wrong and the others are run
        return None, "FAILED", f"{reason}; then {type(error).__name__}: {error}"
    return seen, verdict, reason


def _send(lab: Lab, fault: str, undo: list[object], *, count: int) -> Program:
    """The receiving program, after everything was sent; ``undo`` gets what undoes the fault, if needed."""
    at = place(lab, network=_NETWORK.get(fault, "lan"))
    receiver = lab.host(at.ref.dst).start(["python3", "-c", _RECEIVE, str(PORT)], ready="ready")
    sender = lab.host(at.ref.src).start(
        _sending(lab, at.target, at.spare, count=count, size_bytes=_BYTES.get(fault, 64))
    )
    time.sleep(min(_FAULT_AFTER_S, count * PACE_S))  # what is asked is that some datagrams pass before
    undo.append(FAULTS[fault](at))
    sender.wait("30s")
    time.sleep(0.2)  # for what is under way
    return receiver


def _sending(
    lab: Lab, target: str, spare: str, *, count: int = COUNT, size_bytes: int = 64, first: int = 0
) -> list[str]:
    """The program that sends so many datagrams to an address, numbered from ``first`` on."""
    return ["python3", "-c", _SEND, *map(str, (target, PORT, count, PACE_S, size_bytes, spare, first, lab.run_id))]


def _read(lines: Sequence[str]) -> list[tuple[int, float]]:
    return [(int(number), float(came) - float(sent)) for number, sent, came in map(str.split, lines)]
