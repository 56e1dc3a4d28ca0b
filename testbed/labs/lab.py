"""What every lab shares: hosts that run programs, links that can be impaired and healed.

A lab owns all resources and is a context manager. `ComposeLab` says how hosts come up; this module says what
can be done with them.
"""

from __future__ import annotations

import abc
import base64
import hashlib
import math
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, SupportsFloat, overload

from testbed import reading, units
from testbed.errors import (
    AgentError,
    EnvironmentUnfitError,
    ImpairmentNotAppliedError,
    InvalidValueError,
    LabError,
    Problems,
)
from testbed.judge import probes
from testbed.judge import statistics as exact
from testbed.labs import between, cutting, proving, releasing, sequences, strangers, suspending
from testbed.labs.carrying import Carriage, Way
from testbed.labs.channel import Channel
from testbed.labs.observing import LIMIT_BYTES, SNAP_BYTES, PortCapture, Spot, observing
from testbed.labs.succession import Succession
from testbed.labs.suspending import Suspended
from testbed.labs.taps import Taps
from testbed.labs.timelines import Running
from testbed.labs.wholeness import Wholeness
from testbed.links import fragments, indexed, proof, qdisc, rejecting
from testbed.links.buckets import refuse_small_bucket
from testbed.links.profiles import checked_side, find_profile, find_table, read_trace
from testbed.links.schedule import compile_timeline
from testbed.model.evidence import FAILS, Check, LinkEvidence
from testbed.model.hoststate import HostState
from testbed.model.impairment import CLEAN, Impairment, Profile
from testbed.model.timeline import Taken, Timeline
from testbed.model.topology import ALL_TRAFFIC, LinkRef, Topology, Traffic
from testbed.observe.connections import Table
from testbed.observe.observation import Observation
from testbed.text import shown

# A step within 10 ms of its time, and one apart from the next.
_SHORTEST_FLAP_S = 0.05
_GATE_NEEDS = {
    engine: f"To reject, the machine's own kernel must have {', '.join(names)}: modprobe -a {' '.join(names)}"
    for engine, names in {
        "host": ("cls_bpf", "act_mirred", "act_skbedit"), "carried": ("cls_bpf", "act_mirred")
    }.items()
}  # fmt: skip
_HELD = "It was in force when it was put there"


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a program in a host ended."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    duration_s: float
    """From the request to start it to the end of its output; seconds."""

    @property
    def ok(self) -> bool:
        """Whether it exited with status 0."""
        return self.exit_code == 0


class Program(abc.ABC):
    """A program running in a host."""

    @abc.abstractmethod
    def wait(self, timeout: str = "30s") -> Result:
        """Wait for its end. Raises CommandTimeoutError with its last output, leaving it running."""

    @abc.abstractmethod
    def stop(self, signal: str = "SIGTERM", timeout: str = "10s") -> Result:
        """Send a signal to it and all it started, then wait for its end; SIGKILL if it does not in time."""

    @property
    @abc.abstractmethod
    def ended(self) -> bool:
        """Whether it has ended, or at least its output has."""

    @property
    @abc.abstractmethod
    def output(self) -> str:
        """What it has printed so far, stdout and stderr as they came."""


class Host(abc.ABC):
    """A place where programs run, with network interfaces of its own."""

    name: str
    _lab: Lab

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: str = "30s",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str = "",
    ) -> Result:
        """Run a program to its end; a status other than 0 is in the result, not an exception.

        Raises CommandTimeoutError, after killing the program and all it started, if it does not end in time.
        """
        program = self.start(argv, env=env, workdir=workdir, user=user)
        try:
            return program.wait(timeout)
        except BaseException:
            program.stop("SIGKILL")
            raise

    @overload
    def start(self, *, timeout: str | None = None) -> None: ...

    @overload
    def start(
        self,
        argv: Sequence[str],
        *,
        ready: int | str | Callable[[Program], bool] | None = None,
        timeout: str | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str = "",
    ) -> Program: ...

    def start(
        self,
        argv: Sequence[str] | None = None,
        *,
        ready: int | str | Callable[[Program], bool] | None = None,
        timeout: str | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str = "",
    ) -> Program | None:
        """``start(["cmd", …])``: start a program in the host, and return at once or once it is ready.

        ``ready``: a TCP port that is listened on (and was not before), a text in its output, or a function that
        says so. Raises CommandTimeoutError if it is not after ``timeout`` (10 s), saying what was seen instead.

        ``start()``: start the host itself, after `stop` or `kill`; nothing happens if it runs. Returns once its own
        health check passes, and what impairs its links does so again: a timeline, or what flaps, begins anew. Raises
        ServiceFailedError with its last lines if it is not well after ``timeout`` (as long as a stack may take), and
        LabError if what it depends on is stopped.
        """
        if argv is not None:
            return self.launch(argv, ready=ready, timeout=timeout or "10s", env=env, workdir=workdir, user=user)
        if ready is not None or env is not None or workdir is not None or user:
            raise TypeError(f"`{self.name}`: start() without a program starts the host: it takes timeout= alone")
        self._lab.whole.start(self.name, timeout)
        return None

    @abc.abstractmethod
    def launch(
        self, argv: Sequence[str], *, ready: int | str | Callable[[Program], bool] | None, timeout: str,
        env: Mapping[str, str] | None, workdir: str | None, user: str,
    ) -> Program:  # fmt: skip
        """Start a program: see `start`."""

    # --- the host itself -------------------------------------------------------------------------

    def stop(self, *, timeout: str | None = None) -> None:
        """Stop the host: its own program is sent its stop signal, after ``timeout`` SIGKILL, and all in it ends.

        ``timeout``: its ``stop_grace_period:``, else 10 s. It is off its networks until `start`; the next test finds it
        running again. Nothing happens if it is stopped already.
        """
        self._lab.whole.stop(self.name, timeout)

    def restart(self, *, timeout: str | None = None) -> None:
        """`stop`, then `start` within ``timeout``."""
        self._lab.whole.restart(self.name, None, timeout)

    def kill(self, signal: str = "SIGKILL") -> None:
        """Send a signal to the host's own program; SIGKILL ends the host as a crash does, and this awaits the end.

        After another signal the host may end, or not, at any time in this test. Raises LabError for an unknown signal.
        """
        check_signal(signal)
        self._lab.whole.kill(self.name, signal)

    def pause(self) -> None:
        """Have nothing in the host run until `resume`; what is sent to it waits, and its links stay as they are."""
        self._lab.whole.pause(self.name)

    def resume(self) -> None:
        """Have a paused host go on; nothing happens if it runs."""
        self._lab.whole.resume(self.name)

    @abc.abstractmethod
    def logs(self) -> str:
        """What the host's main program has printed."""

    @abc.abstractmethod
    def put(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file in the host, in a folder that exists; who waits for it sees all of it at once, mode included.

        Root owns it. In the file systems that the host's programs see, a tmpfs too. Raises LabError.
        """

    @abc.abstractmethod
    def get(self, path: str) -> bytes:
        """Read a file as the host's programs see it. Raises FileNotFoundError, IsADirectoryError, LabError."""

    @abc.abstractmethod
    def addresses(self, network: str | None = None) -> tuple[str, ...]:
        """Its IP addresses, on one network or on all."""

    @abc.abstractmethod
    def counters(self) -> dict[str, dict[str, int]]:
        """The counters of its own kernel namespace, as in /proc/net/snmp and /proc/net/netstat."""

    def inside(self) -> Channel:
        """The agent in its network namespace, which observes and probes. Raises LabError if it has none."""
        raise LabError(f"`{self.name}`: no agent runs inside, so it can be neither observed nor probed")

    @abc.abstractmethod
    def connections(self) -> list[dict[str, Any]]:
        """The TCP connections that its kernel still works on, also those whose program has ended."""

    def send_per_packet(self, network: str) -> dict[str, bool]:
        """Switch segmentation offloads off on its interface; returns what they were."""
        raise LabError(f"`{self.name}`: no agent runs inside, so its offloads on {network} cannot be changed")

    def send_as_before(self, network: str, offloads: Mapping[str, bool]) -> None:
        """Set them to what they were."""
        raise LabError(f"`{self.name}`: no agent runs inside, so {offloads} cannot be set on {network}")

    @abc.abstractmethod
    def follow(self) -> Log:
        """What its main program prints, as it grows; a context manager."""


class Log(Protocol):
    """What a host's main program prints, while it does; a context manager."""

    def __enter__(self) -> Self:
        """Begin to read."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Let go of it."""

    def when(self, line: str, deadline_s: float) -> int | None:
        """Wait for a line; when it was first printed, in nanoseconds since the epoch. None if it was not in time."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """An impairment that the kernel was read back to hold."""

    link: LinkRef
    asked: Impairment
    command: str
    """The tc line that put it there."""
    kernel: Mapping[str, Any]
    """The kernel's own account of the netem, from ``tc -j qdisc show``."""
    took_s: float
    """From the call to the verified read-back; seconds."""
    timeline: Timeline | None = None
    """The timeline whose beginning ``asked`` is; `Lab.steps` has the steps that were taken."""
    profile: str = ""
    """The profile that asked it; empty if words did."""

    def describe(self) -> str:
        """What was asked, in the user's words: of a timeline, all that it takes to ask the same again."""
        said = self.asked.describe()
        if self.timeline is not None:
            said = f"{self.timeline.describe()}; begins with {said}"
        if self.profile:
            return f"{said} (profile {self.profile})"
        return said if self.timeline is None else f"{said}; asked: {self.timeline.words}"


@dataclass
class Source:
    """A host, or a part of its traffic, that a port tells apart."""

    minor: int
    """Of its class on the port."""
    ifindex: int
    """Of its own port on the engine's machine; a host that is started again has another."""
    addresses: tuple[str, ...]
    """What its packets are told by; see `Lab.marks`."""
    part: int = 0
    """Which of its sender's traffic it is, of those that the port tells apart; see `qdisc.filters`."""
    targets: tuple[str, ...] = ()
    """Where they go, if only some of them are meant; see `LinkRef.to`."""
    led: bool = False
    """Whether its filters were read back to lead to its class, or to the chain that counts its packets."""
    counted: bool = False
    """Whether there is such a chain."""
    spare: bool = False
    """Whether its netem has the spare handle (`qdisc.leaf`)."""
    impairment: Impairment | None = None
    sent_before: int = 0
    """Packets that its netem had sent when the impairment was put there: a change in place counts on."""
    dropped_before: int = 0
    """Likewise, dropped."""
    beyond_before: int | None = None
    """What the port's root had seen beyond what was brought to the port when copies were first asked for."""
    others_before: int = 0
    """How many fragmented datagrams of other traffic had gone its way when the test began; see `links.fragments`."""
    since_s: float = 0.0
    """When its link began to be impaired or cut, or the test did; on the machine's monotonic clock."""
    cut: cutting.Cut | None = None
    rejected_packets: int = 0
    """By cuts that were mended since."""
    met_cut: bool = False
    """Whether a cut that was mended since the test began had lost any."""
    running: Running | None = None
    """The timeline whose beginning ``impairment`` is."""


@dataclass
class Port:
    """The switch's egress toward one host: which kernel, which device, which sources it knows."""

    name: str
    channel: Channel
    device: str
    rooted: bool = False
    """Whether it has its classful root."""
    stored: dict[str, str] = field(default_factory=dict)
    """Files that the agent keeps for tc: name and path."""
    sources: dict[LinkRef, Source] = field(default_factory=dict)
    entry: str | None = None
    """The device whose redirect feeds it and counts what it refused; None where there is no such thing."""
    refused: int = 0
    """What it had refused when the test began."""
    kernel: str | None = None
    """The carried kernel that has its qdiscs; None where it is the engine's own."""
    ifindex: int = 0
    """Of the host's own port on the engine's machine; a host that is started again has another."""
    mtu: int = 0
    """Bytes; 0 where it is not known."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """How the agent found the host's own port, for another to put it right: `agent.leftover`."""
    released: bool = False
    """Whether packets go past what is ours here, until something is put on a link again: see `releasing`."""

    @classmethod
    def attached(cls, name: str, channel: Channel, told: Mapping[str, Any], *, ifindex: int) -> Port:
        """The port as the agent tells of it once it is attached."""
        return cls(name=name, channel=channel, device=told["device"], entry=told["entry"], kernel=told["kernel"],
                   ifindex=ifindex, released=told["released"], mtu=told["mtu"],
                   found=told.get("found", {}))  # fmt: skip

    def let_go(self) -> None:
        """It was released: of the engine's own kernel, its qdiscs are gone."""
        self.released = True
        if self.kernel is None:
            self.rooted = False
            for source in self.sources.values():
                source.led = source.counted = source.spare = False
                source.beyond_before = None

    @property
    def applied(self) -> dict[LinkRef, Impairment]:
        """What each impaired link that ends here is impaired with."""
        return {ref: each.impairment for ref, each in self.sources.items() if each.impairment is not None}

    def state(self) -> dict[str, Any]:
        """What another process must know to take the port up, as JSON."""
        sources = [
            {
                "link": ref.state(),
                "source": {
                    **vars(each),
                    "impairment": each.impairment and each.impairment.words(),
                    "cut": each.cut and each.cut.state(),
                    "running": each.running and each.running.state(),
                },
            }
            for ref, each in self.sources.items()
        ]
        return {"device": self.device, "rooted": self.rooted, "sources": sources, "entry": self.entry,
                "kernel": self.kernel, "ifindex": self.ifindex, "released": self.released, "mtu": self.mtu,
                "found": dict(self.found)}  # fmt: skip

    @classmethod
    def from_state(cls, name: str, channel: Channel, state: Mapping[str, Any]) -> Port:
        """The port as another process left it."""
        sources = {}
        for each in state["sources"]:
            ref = LinkRef.from_state(each["link"])
            source = each["source"]
            addresses, targets = tuple(source["addresses"]), tuple(source.get("targets", ()))
            minor, cut = source["minor"], source["cut"]
            ways = (
                ()
                if cut is None
                else cutting.ways(cut["how"], minor, addresses, ref.traffic, targets, part=source.get("part", 0))
            )
            sources[ref] = Source(**{
                **source, "addresses": addresses, "targets": targets,
                "impairment": None if source["impairment"] is None else Impairment.parse(source["impairment"]),
                "running": None if source["running"] is None else Running.from_state(source["running"]),
                "cut": None if cut is None else cutting.Cut.from_state(cut, minor, ways),
            })  # fmt: skip
        return cls(name=name, channel=channel, device=state["device"], rooted=state["rooted"], sources=sources,
                   entry=state.get("entry"), kernel=state.get("kernel"), ifindex=state.get("ifindex", 0),
                   released=state.get("released", False), mtu=state.get("mtu", 0),
                   found=state.get("found", {}))  # fmt: skip


class Link:
    """One direction between two hosts."""

    def __init__(self, lab: Lab, ref: LinkRef) -> None:
        self._lab = lab
        self.ref = ref

    def __repr__(self) -> str:
        return f"<Link {self.ref} on {self.ref.network}>"

    def impair(self, impairment: Impairment | Timeline | Sequence[object] | None = None, **words: object) -> Applied:
        """Put an impairment on the link and read it back; it replaces the one that was there.

        ``link.impair(delay="40ms", loss="2%")`` or ``link.impair(Impairment(delay_s=0.04))``; a list of steps or
        ``trace="…"`` is a timeline, which begins at once. Raises ImpairmentNotAppliedError if the kernel does not
        hold every field of it.
        """
        if isinstance(impairment, list | tuple):
            impairment = self._lab.side(impairment)
        if impairment is not None and words:
            raise InvalidValueError("give an Impairment or words such as delay=, not both")
        if impairment is not None and not isinstance(impairment, Impairment | Timeline):
            raise InvalidValueError(
                f'link.impair({shown(impairment)}): give words such as delay="40ms"; '
                f'for a profile write lab.impair("{self.ref} on {self.ref.network}", {shown(impairment)})'
            )
        return self._lab.apply(self.ref, impairment if impairment is not None else self._lab.side(words))

    def heal(self) -> None:
        """Take the impairment off the link, and read back that it is gone."""
        self._lab.heal_link(self.ref)

    def cut(self, *, reject: bool = False) -> None:
        """Cut the link: every IP packet is lost, silently, until `mend`; its impairment stays beneath.

        ``reject``: the sender is told, as by a firewall in between: see `Lab.cut`.
        """
        self._lab.cut_link(self.ref, reject=reject)

    def flap(self, *, up: str, down: str, reject: bool = False) -> None:
        """Have the link come and go until `mend`: see `Lab.flap`."""
        self._lab.flap_link(self.ref, up=up, down=down, reject=reject)

    def mend(self) -> None:
        """End the cut; what impaired the link before impairs it again."""
        self._lab.mend_link(self.ref)

    def lost_in_cut(self) -> int:
        """How many packets the cut has swallowed or rejected, over all the times that this link was cut."""
        return self._lab.lost_in_cut(self.ref)

    def dropped_by_number(self) -> int:
        """How many packets ``drop_packets`` and ``drop_every`` have lost since they were put there."""
        return self._lab.dropped_by_number(self.ref)

    @property
    def impairment(self) -> Impairment | None:
        """What the link is impaired with, or None."""
        return self._lab.impairments.get(self.ref)

    def steps(self) -> list[Taken]:
        """The steps that were taken on the link since `Lab.begin`, in order: of timelines, and of its flapping."""
        return self._lab.steps(self.ref)

    def counters(self) -> proof.Counters:
        """What the link's netem has seen since the link was healed last: a changed impairment counts on.

        Raises LabError if the link is not impaired.
        """
        return self._lab.read(self.ref)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A number that a test reports: `Lab.record`."""

    name: str
    value: float
    unit: str
    better: str
    """``lower`` or ``higher``."""


class Lab(abc.ABC):
    """Hosts and links that are up together."""

    run_id: str
    """What tells this run from others."""

    topology: Topology
    profiles: Mapping[str, Profile]
    tables: Mapping[str, Path]
    """Tables of delays of one's own, by the name of the file."""
    netem_engine: str
    """Who executes netem here: ``host`` or ``carried``."""

    seedable: bool
    """Whether that netem takes a seed."""

    only_one: Sequence[str] = ()
    """What keeps a second lab of the same kind from being up beside it, each with what to write instead."""

    def __init__(self) -> None:
        self._ports: dict[tuple[str, str], Port] = {}
        self.records: list[Record] = []
        self.seeds_from: str | None = None
        """What the seeds of random impairments that name none are derived from; None leaves them to the kernel."""
        self.history: list[Applied] = []
        """Every impairment that was put on a link since `begin`."""
        self._steps: dict[LinkRef, list[Taken]] = {}
        self.programs: list[Program] = []
        """Every program that was started in a host since `begin`."""
        self.putting: Callable[[LinkRef, bool], AbstractContextManager[None]] = lambda _ref, _again: nullcontext()
        """What is done around putting an impairment on a link; True where it is put again, for its sequence's sake."""
        self.probed: dict[LinkRef, list[Check]] = {}
        """What probes saw of each link that was proven since `begin`."""
        self._over: list[tuple[LinkEvidence, Sequence[ImpairmentNotAppliedError]]] = []
        self._told: set[LinkRef] = set()
        """Links that `verify` has found wrong: what it raised it does not raise again once they are healed."""
        self.evidence: list[LinkEvidence] = []
        """What `verify` found of each impaired link, last."""
        self.connections = between.Connections()
        """Those of the hosts that began before the test."""
        self.left_over = ""
        """Connections of the test that `end` could not have end; empty if there are none."""
        self.clocks_proven: set[str | None] = set()
        """The carried kernels that were seen to keep a delay."""
        self.carriage = Carriage(self)
        self.watched: dict[LinkRef, proving.Watched] = {}
        """What is counted of other paths."""
        self.whole = Wholeness(self)
        """Stops and starts hosts, and finds out who else did."""
        self.succession = Succession(self)
        """Finds out whether an agent died, and has another one start."""
        self.suspended: dict[LinkRef, Suspended] = {}
        """What impaired the links of hosts that are stopped."""
        self._say: Callable[[str], None] = lambda _text: None

        self.per_packet = releasing.PerPacket()
        self.taps = Taps()
        """Counts what found the queues before carried kernels full."""
        self._testing = False

    def begin(self, seeds_from: str | None, links: Collection[LinkRef] = ()) -> None:
        """Begin a test: heal what is left, and forget the records, the history and the programs of the one before.

        Every host is brought back that was stopped, or was not left as it was when the stack came up. Raises LabError
        saying why one cannot be. What nothing impairs any more is as if it had never been impaired; ``links``: those to
        be impaired at once, to whose ports that is not done and undone.
        """
        self._testing = True
        for known in (self.records, self.history, self.programs, self.probed, self.evidence):
            known.clear()  # first: if this fails, what is told of the test is not that of the one before
        self.succession.begin()
        self._heal_all()
        self.whole.begin()
        releasing.release(self, but=links)
        self._steps.clear()
        self._over.clear()
        self._told.clear()
        self.carriage.begin()
        proving.begin(self)
        self.connections.begin(self)
        self.left_over = ""
        self.seeds_from = seeds_from

    def end(self) -> None:
        """End a test: heal every link, kill the programs that it left running, and have their connections end."""
        if self.succession.end():
            self._testing = False
            return
        with ExitStack() as each:
            each.callback(self._settle)
            for program in self.programs:
                if not program.ended:
                    each.callback(program.stop, "SIGKILL")
            each.callback(self._heal_all)
            each.callback(self.carriage.end)
            each.callback(self.whole.resume_all)  # first: nothing in a paused host can be ended
        self._testing = False

    def _settle(self) -> None:
        self.left_over = self.connections.settle(self)

    def _seed(self, ref: LinkRef, wanted: Impairment | Timeline) -> int | None:
        """A seed of its own for each link and each time, if it is random, names none, and seeds work here."""
        if self.seeds_from is None or wanted.seed is not None or not (wanted.is_random and self.seedable):
            return wanted.seed
        earlier = sum(each.link == ref for each in self.history)
        return derived_seed(self.seeds_from, str(ref), ref.network, str(earlier))

    def read_trace(self, name: str) -> str:
        """The text of a trace, by the name in a marker, a call or a command line. Raises InvalidValueError."""
        return read_trace(name)

    def side(self, said: object) -> Impairment | Timeline:
        """What words or a list of steps ask of a link. Raises InvalidValueError with every problem."""
        return checked_side(said, self.read_trace)

    # --- what a lab must know --------------------------------------------------------------------

    @abc.abstractmethod
    def up(self) -> None:
        """Bring everything up; on failure nothing stays."""

    @abc.abstractmethod
    def down(self) -> None:
        """Take everything down; what can be removed is removed even if something fails."""

    @property
    @abc.abstractmethod
    def hosts(self) -> Mapping[str, Host]:
        """Every host, by name."""

    @abc.abstractmethod
    def _attach(self, host: str, network: str) -> Port:
        """Make the port toward a host impairable."""

    @abc.abstractmethod
    def _prepare_source(self, host: str, network: str) -> int:
        """The ifindex of the port of a host that sends into an impaired link."""

    # --- agents that died: `succession` ----------------------------------------------------------

    def agents(self) -> Mapping[str, Channel]:
        """The agents that run now, by role: see `succession.AgentDeath`."""
        return {}

    def replace_agent(self, _left: Sequence[Port]) -> None:
        """Start another agent that holds ports, and put right what the dead one left of these. Raises LabError."""
        raise LabError("the agent has died, and this kind of lab cannot start another")

    def forget_agent(self, _role: str) -> None:
        """Let go of one that is not the ports', so that another is started when it is needed."""
        return

    def forget_all(self) -> list[Port]:
        """Know no more of any port, nor of what was on it: its agent is dead. Returns the ports."""
        left = [*self._ports.values(), *(each.port for each in self.watched.values())]
        for known in (self._ports, self.watched, self.suspended, self.clocks_proven):
            known.clear()
        return left

    @property
    def tcp_hosts(self) -> Sequence[str]:
        """The hosts whose connections can be told now."""
        return ()

    def tcp_tables(self) -> dict[str, Table]:
        """The TCP connections of `tcp_hosts`; of one that is gone, none."""
        return {}

    def destroy_tcp(self, _host: str, _ids: Sequence[str]) -> str | None:
        """Destroy connections of a host; why its kernel cannot, or None. Raises AgentError if the host is gone."""
        return None

    # --- what becomes of hosts: `wholeness.Backend` ----------------------------------------------

    def host_states(self) -> Mapping[str, HostState]:
        """Every host as it is now. A lab that knows none of this has hosts that stay as they are."""
        return {}

    def may_end(self, _host: str) -> bool:
        """Whether the program of a host is meant to end."""
        return False

    def last_lines(self, _host: str) -> tuple[str, ...]:
        """The few lines that the program of a host printed last."""
        return ()

    def halt(self, host: str, _grace: str | None) -> None:
        """Stop a host."""
        raise LabError(f"`{host}`: hosts of this kind of lab cannot be stopped")

    def kill_host(self, host: str, _signal: str) -> None:
        """Send a signal to a host's own program; with SIGKILL, return once it has ended."""
        raise LabError(f"`{host}`: hosts of this kind of lab cannot be killed")

    def revive(self, host: str, _timeout: str | None) -> None:
        """Start a host, and return once it is well."""
        raise LabError(f"`{host}`: hosts of this kind of lab cannot be started")

    def freeze(self, host: str) -> None:
        """Pause a host."""
        raise LabError(f"`{host}`: hosts of this kind of lab cannot be paused")

    def thaw(self, host: str) -> None:
        """Have a paused host go on."""
        raise LabError(f"`{host}`: hosts of this kind of lab cannot be resumed")

    def bring_back(self, wrong: Mapping[str, HostState]) -> None:
        """Have these hosts run again."""
        raise LabError(f"{', '.join(wrong)}: hosts of this kind of lab cannot be brought back")

    def await_healthy(self) -> None:
        """Wait until every host is healthy that can say so. Nothing is known of health here."""
        return

    def suspend(self, host: str) -> None:
        """Take the impairments and cuts off a host's links, to be put back by `resume_links`."""
        self.suspended.update(suspending.suspend(self, host))

    def sweep(self, agent: Channel) -> None:
        """Forget the ports that went with their hosts: before anything is sent to hosts that were started again."""
        gone = set(agent.call("sweep"))
        for place, port in list(self._ports.items()):
            if port.name in gone:
                del self._ports[place]
        for path, watched in list(self.watched.items()):
            if watched.port.name in gone:
                del self.watched[path]

    def resume_links(self, _hosts: Collection[str]) -> None:
        """Put back what was suspended, as far as both ends of the links are up."""
        for ref, kept in list(self.suspended.items()):
            if all(self.whole.running(end) for end in (ref.src, ref.dst, ref.to) if end):
                del self.suspended[ref]
                suspending.resume(self, ref, kept)
        self.play()

    def there(self, refs: Iterable[LinkRef]) -> tuple[LinkRef, ...]:
        """Those of these links whose hosts have not ended: what has done its work is left out, and that is said once.

        Raises LabError if none is left.
        """
        refs = tuple(refs)
        ends = dict.fromkeys(end for ref in refs for end in (ref.src, ref.dst))
        ended = {host: state for host in ends if (state := self.whole.ended(host)) is not None}
        said = {host: f"`{host}` has ended (exit status {state.exit_code})" for host, state in ended.items()}
        left = tuple(ref for ref in refs if ref.src not in ended and ref.dst not in ended)
        if refs and not left:
            raise LabError(f"{', '.join(map(str, refs))}: {'; '.join(said.values())}: no link is left")
        for host, text in said.items():
            if self.whole.tell_once(host):
                self._say(f"{text}: its links are left out")
        return left

    def watching(self, host: str, network: str) -> Port | None:
        """The port toward a host, to count what passes it and not to impair it; None where that cannot be done."""
        return self._ports.get((host, network))

    def forget_port(self, port: Port) -> None:
        """Know no more of a port that was taken out; when a link of it is impaired again it is attached anew."""
        self._ports = {key: each for key, each in self._ports.items() if each is not port}

    @property
    def ports(self) -> Iterable[Port]:
        """Every port that is attached."""
        return self._ports.values()

    # --- context ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.down()

    # --- hosts -----------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host of that name. Raises InvalidValueError naming the nearest."""
        if name not in self.hosts:
            raise InvalidValueError(f"host {shown(name)}: {self.topology.unknown_host(name)}")
        return self.hosts[name]

    # --- links -----------------------------------------------------------------------------------

    def link(self, text: str) -> Link:
        """The link ``"client -> server"``."""
        refs = self.topology.links(text)
        if len(refs) > 1:
            raise InvalidValueError(
                f'link {shown(text)} names {len(refs)} links; use lab.impair, or name one with "->"'
            )
        return Link(self, refs[0])

    def impair(
        self,
        text: str,
        profile: str | Profile | Sequence[object] | None = None,
        *,
        prove: bool = False,
        **words: object,
    ) -> list[Applied]:
        """Impair ``"a -> b"`` or both directions of ``"a <-> b"`` with a profile, a list of steps, or words.

        A profile's forward half goes to the first direction named, its reverse half to the other. Every name and
        value is checked before anything is changed. Timelines begin at once, those of both directions together.
        ``prove``: see `prove`.
        """
        _truth("prove", prove)
        wanted = self.asked(text, profile, words)
        if prove:
            self.plan_proof(wanted)
        applied: list[Applied] = []
        try:
            for ref in self.there(wanted):
                impairment = wanted[ref]
                applied.append(self.arm(ref, impairment, profile=profile_name(profile)))
            if prove:
                self.prove(text)
            self.play()
        except BaseException:
            for done in applied:  # nothing half-applied
                self.clear(done.link)
            raise
        return applied

    def asked(
        self, text: str, profile: str | Profile | Sequence[object] | None, words: Mapping[str, object]
    ) -> dict[LinkRef, Impairment | Timeline]:
        """What is asked of each link: `impairments_of`, by this lab's hosts, profiles and tables.

        Raises InvalidValueError with every problem.
        """
        return impairments_of(
            self.topology, self.profiles, text, profile, words, side=self.side, tables=self.tables
        )  # fmt: skip

    def prove(
        self, text: str, *, alpha: float = exact.ALPHA, most_s: float = probes.MOST_S, tolerance: float | None = None
    ) -> dict[LinkRef, list[Check]]:
        """Send probes over each direction of a link, and judge what arrived against what it is impaired with.

        A few seconds a direction. The tests of one direction together condemn an honest link at most ``alpha`` of the
        time. ``most_s``: how long the probes of a direction are sent. ``tolerance``: a share (of losses, duplicates,
        …) that is off by such a part of itself is found in nine of ten proofs, 0.5 for half too many; refused before
        anything is sent where that takes longer than ``most_s``. Without it what can be found in that time is said.
        Afterwards the netem is there afresh, with its seed. Raises ImpairmentNotAppliedError naming each field that
        is not as asked.
        """
        refs = self.topology.links(text)
        self.plan_proof({ref: self.asked_now(ref) for ref in refs}, alpha=alpha, most_s=most_s, tolerance=tolerance)
        seen = {ref: self.probe(ref, alpha=alpha, most_s=most_s, tolerance=tolerance) for ref in refs}
        for ref, checks in seen.items():
            if wrong := [str(check) for check in checks if check.verdict == FAILS]:
                self.evidence = [proving.proven(self, each) for each in seen]
                raise self._not_applied(ref, [], "probes did not see what was asked", *wrong)
        return seen

    def probe(
        self, ref: LinkRef, *, alpha: float = exact.ALPHA, most_s: float = probes.MOST_S, tolerance: float | None = None
    ) -> list[Check]:
        """The same for one direction, without raising: the verdicts are in the checks, and in the evidence.

        Of an impaired link that the kernel does not hold any more nothing is sent, because what is there would be put
        there afresh for it: that raises.
        """
        asked = self.asked_now(ref)
        plans = self.plan_proof({ref: asked}, alpha=alpha, most_s=most_s, tolerance=tolerance)
        held = self.held_now(ref)
        if held is not None and held.found:
            raise self._not_applied(ref, held.found, _HELD)
        kernel = probes.kernel_words(((held and held.netem) or {}).get("options", {}))
        checks = [
            replace(check, kernel=kernel.get(check.field, check.kernel))
            for check in proving.probe(self, ref, self.impairments.get(ref, CLEAN), plans[ref], alpha=alpha)
        ]
        if held is None:
            self.clear(ref)
        self.probed[ref] = checks
        return checks

    def held_now(self, ref: LinkRef) -> proving.Held | None:
        """What an impaired link is impaired with and what the kernel holds, read now; None if it is not impaired."""
        if ref not in self.impaired:
            return None
        port = self._ports[ref.dst, ref.network]
        try:
            filters, qdiscs, _ = self._read_port(port, [ref])
        except ImpairmentNotAppliedError as error:
            asked = port.applied.get(ref, CLEAN)
            return proving.Held(asked, None, [proof.Difference("the link", "with both ends", f"{error}")])
        return self.held(ref, port, proving.Reading(filters, qdiscs, ()))

    def plan_proof(
        self,
        wanted: Mapping[LinkRef, Impairment | Timeline | None],
        *,
        alpha: float = exact.ALPHA,
        most_s: float = probes.MOST_S,
        tolerance: float | None = None,
    ) -> dict[LinkRef, probes.Plan]:
        """How links that are impaired so are probed: see `prove`; None for what is no impairment alone, but a timeline.

        Raises InvalidValueError with all that forbids it.
        """
        plans: dict[LinkRef, probes.Plan] = {}
        problems: list[str] = []
        for ref, asked in wanted.items():
            if why := proving.unfit(ref, timeline=not isinstance(asked, Impairment)):
                problems.append(why)
            if cut := self.cut_for_probes(ref):
                problems.append(f"{ref}: cannot be probed while {cut} is cut: no probe would arrive; mend it first")
            if not isinstance(asked, Impairment):
                continue
            try:
                plans[ref] = proving.planned(asked, alpha=alpha, most_s=most_s, tolerance=tolerance)
            except InvalidValueError as error:
                problems += error.problems
        if problems:
            raise InvalidValueError(list(dict.fromkeys(problems)))
        return plans

    def asked_now(self, ref: LinkRef) -> Impairment | None:
        """What a link is impaired with; None if a timeline runs there."""
        port = self._ports.get((ref.dst, ref.network))
        running = port.sources[ref].running if port is not None and ref in port.sources else None
        return None if running is not None else self.impairments.get(ref, CLEAN)

    def cut_for_probes(self, ref: LinkRef) -> LinkRef | None:
        """The cut, or the link that flaps, in which probes of this link would be lost and counted; None if none is."""
        port = self._ports.get((ref.dst, ref.network))
        sent = replace(ref, traffic=replace(ref.traffic, protocol="udp"))
        sources = port.sources.items() if port is not None else ()
        return next((other for other, source in sources if source.cut is not None and other.covers(sent)), None)

    def put_afresh(self, ref: LinkRef, impairment: Impairment) -> None:
        """Put an impairment on a link as a new netem, whose random numbers begin with its seed; not in the history."""
        self._apply(ref, impairment, time.perf_counter(), afresh=True)

    def begin_body(self) -> None:
        """The packets of a test's body come now: begin the links' sequences, then the timelines, with them."""
        self.connections.begin_body(self)
        sequences.begin(self)
        self.play()

    def restart(self, ref: LinkRef, *, keep_queue: bool) -> None:
        """Begin a link's sequence of random numbers, or of numbered packets, once more; ``keep_queue``: in place."""
        port = self._ports[ref.dst, ref.network]
        with self.putting(ref, True):
            self._apply(ref, port.applied[ref], time.perf_counter(), afresh=not keep_queue)

    def heal(self) -> None:
        """Mend every cut and take every impairment off; what stays is raised once the others are off.

        What a link was until then, and whether it held, goes into the next `verify`. Out of a test, ports and hosts are
        then as they were before they were impaired; in one, before the next test that does not impair them.
        """
        for ref in self.impaired:
            self._end_evidence(ref)
        self._heal_all()
        if not self._testing:
            self.release()

    def release(self) -> None:
        """Have ports that nothing impairs or cuts, and hosts that send to none, be as before they were impaired."""
        releasing.release(self)

    def _heal_all(self) -> None:
        self.suspended.clear()
        with ExitStack() as each:
            for ref in self.impaired:
                each.callback(self.clear, ref)
            for ref in self.cuts:
                each.callback(self.mend_link, ref)

    def cut(self, text: str, *, reject: bool = False) -> tuple[LinkRef, ...]:
        """Cut ``"a -> b"`` or both directions of ``"a <-> b"``: every IP packet is lost, silently, until `mend`.

        ``reject``: the sender hears of it at once, from the switch and in the receiver's name. TCP is answered with a
        reset (connecting: ECONNREFUSED, connected: ECONNRESET), UDP with ICMP port unreachable (ECONNREFUSED), the
        rest with ICMP administratively prohibited. Answers pass every other cut and impairment. Returns the links.
        """
        _truth("reject", reject)
        return self._cut_all(self.topology.links(text), reject=reject, cut=self.cut_link)

    def _cut_all(self, refs: tuple[LinkRef, ...], *, reject: bool, cut: Callable[..., None]) -> tuple[LinkRef, ...]:
        before = self.cuts
        refs = self.there(refs)
        with ExitStack() as undo:
            for ref in refs:
                if ref not in before:
                    undo.callback(self.mend_link, ref)
                cut(ref, reject=reject)
            undo.pop_all()
        return refs

    def flap(self, text: str, *, up: str, down: str, reject: bool = False) -> None:
        """Have ``"a -> b"`` or ``"a <-> b"`` come and go until `mend`: whole for ``up``, then cut for ``down``, again.

        The agent does it, beside the kernel, from now on, all links at the same moment; what impairs a link impairs
        what passes. What is lost is lost silently; with ``reject`` its sender is told: see `cut`. `Link.steps` has each
        step with its time.
        """
        refs, times = self.check_flap(text, up=up, down=down, reject=reject)
        how = cutting.REJECT if reject else cutting.DROP
        self._begin_flaps([self._arm_flap(ref, *times, how) for ref in self.there(refs)])

    def check_flap(
        self, text: str, *, up: str, down: str, reject: bool = False
    ) -> tuple[tuple[LinkRef, ...], tuple[float, float]]:
        """What `flap` is asked. Raises InvalidValueError with every problem."""
        problems = Problems()
        with problems.gathered():
            _truth("reject", reject)
        with problems.gathered():
            refs = self.topology.links(text)
        with problems.gathered():
            times = _flapping_times(up, down)
        problems.tell()
        return refs, times

    def mend(self, text: str | None = None) -> None:
        """End the cut of these links, or of all."""
        for ref in self.topology.links(text) if text is not None else [*self.cuts, *self.suspended]:
            self.mend_link(ref)

    def partition(self, *groups: Iterable[str], traffic: str = "", reject: bool = False) -> tuple[LinkRef, ...]:
        """Cut every link between hosts of different groups, both ways, on every network that they share.

        ``lab.partition({"a", "b"}, {"c[*]"})``; hosts in no group keep all their links, and what routers lead from one
        group to another is cut as well. ``traffic``: only this part, as in ``"tcp/8888"``; ``reject``: see `cut`.
        `mend` without words ends all of it. Raises InvalidValueError, before anything is cut, for unknown hosts, a host
        in two groups, and groups that nothing joins. Returns the links.
        """
        _truth("reject", reject)
        refs = self._part_of(traffic, lambda part: self.topology.links_between(*groups, traffic=part))
        return self._cut_all(refs, reject=reject, cut=self._cut_link)  # on every network: there is no other to watch

    def isolate(self, host: str, *, traffic: str = "", reject: bool = False) -> tuple[LinkRef, ...]:
        """Cut every link of a host, or of each of several, as in ``"a[*]"``; the rest: see `partition`."""
        _truth("reject", reject)
        refs = self._part_of(traffic, lambda part: self.topology.links_around(host, traffic=part))
        return self._cut_all(refs, reject=reject, cut=self._cut_link)

    def _part_of(self, traffic: str, links: Callable[[Traffic], tuple[LinkRef, ...]]) -> tuple[LinkRef, ...]:
        """The links, each narrowed to this traffic. Raises InvalidValueError with every problem of both."""
        problems = Problems()
        part, refs = ALL_TRAFFIC, tuple[LinkRef, ...]()
        with problems.gathered():
            if not isinstance(traffic, str):
                raise InvalidValueError(f"traffic={shown(traffic)}: must be text, as in 'tcp/8888'")
            part = Traffic.parse(traffic)
        with problems.gathered():
            refs = links(part)
        problems.tell()
        return refs

    @property
    def cuts(self) -> list[LinkRef]:
        """Every link that is cut, or flaps."""
        return [ref for port in self._ports.values() for ref, source in port.sources.items() if source.cut]

    @property
    def impairments(self) -> dict[LinkRef, Impairment]:
        """What each impaired link is impaired with; of a timeline, the step in force."""
        return {ref: self.now(ref)[0] for ref in self.impaired}

    @property
    def impaired(self) -> list[LinkRef]:
        """Every impaired link."""
        return [ref for port in self._ports.values() for ref in port.applied]

    def verify(self) -> None:
        """Read every impaired link again, and look at each step that a timeline took; what was found is in `evidence`.

        So is what was found of links as they were healed, and of cuts as they were mended, since `begin`.

        Raises ImpairmentNotAppliedError if a link does not hold any more what was asked, if a step was not taken, if
        its queue overflowed though neither a rate nor a limit was asked, if the traffic took another path, or if an
        agent died.
        """
        if deaths := self.succession.look():
            self.evidence[:] = [evidence for evidence, _ in self._over]
            raise ImpairmentNotAppliedError("\n".join(map(str, deaths)))
        self.connections.look(self)
        self.evidence[:] = [evidence for evidence, _ in self._over]
        changed = [ImpairmentNotAppliedError(str(each)) for each in self.whole.look()]
        wrong = [*changed, *(error for _, errors in self._over for error in errors)]
        self._over[:] = [(evidence, ()) for evidence, _ in self._over]  # raised once
        self.carriage.look()
        self.taps.look(self.ports)
        # A host that is stopped has no path to it; what its links had is suspended.
        standing = [port for (host, _), port in self._ports.items() if not self.whole.down(host)]
        paths = self.carriage.paths(port for port in standing if self.carriage.used(port))
        for port in self._ports.values():
            watched = [ref for ref, source in port.sources.items() if source.impairment is not None or source.cut]
            try:
                self._along(port, paths.get(port.name), watched)
                filters, qdiscs, at_gate = self._read_port(port, watched) if watched else ((), (), ())
                entry = proving.entry(port) if watched else ()
            except ImpairmentNotAppliedError as error:
                wrong.append(error)
                self._told.update(watched)
                self.evidence += [proving.lost(self, ref, asked) for ref, asked in port.applied.items()]
                continue
            for ref in watched:
                found = self._verify(ref, port, proving.Reading(filters, qdiscs, entry, at_gate))
                wrong += found
                self._told.update([ref] if found else [])
        if wrong:  # an agent that died meanwhile is why
            raise ImpairmentNotAppliedError("\n".join(map(str, self.succession.look() or wrong)))

    def _along(self, port: Port, path: Way | None, refs: Sequence[LinkRef]) -> None:
        """Raise ImpairmentNotAppliedError if packets had no whole way through a port on which these links end."""
        if path is None or not path.amiss or (path.gone and not refs):
            return
        ref = next(iter(refs or port.sources))
        raise self._not_applied(ref, [], f"the path through the port is broken: {'; '.join(path.amiss)}")

    def _read_port(self, port: Port, watched: Sequence[LinkRef]) -> tuple[Any, Any, Any]:
        """All filters and qdiscs of a port, and the filters at its gate if some of these links reject there.

        Raises ImpairmentNotAppliedError naming the link whose end is gone.
        """
        lines = [qdisc.show_filters(port.device), qdisc.show(port.device)]
        needs = sorted({port.sources[ref].ifindex for ref in watched})
        gate = next((cut.device for ref in watched if (cut := port.sources[ref].cut) and cut.at_gate), None)
        try:
            answer = port.channel.call("tc", port=port.name, lines=lines, needs=needs)
            at_gate = [] if gate is None else _flat(self._tc(port, [rejecting.show(gate)], at_gate=True)["shown"])
        except AgentError as error:
            ref = next((each for each in watched if not self._is_there(port, port.sources[each])), watched[0])
            impairment = port.sources[ref].impairment
            asked = "a cut" if impairment is None else impairment.describe()
            raise self._not_applied(ref, [], f"asked {asked}; {error}", _HELD) from None
        if len(answer["shown"]) != len(lines):
            raise self._not_applied(watched[0], [], f"cannot be read back: {answer['complaints']}", _HELD)
        filters, qdiscs = answer["shown"]
        return filters, qdiscs, at_gate

    def _is_there(self, port: Port, source: Source) -> bool:
        try:
            self._tc(port, [], source)
        except AgentError:
            return False
        return True

    def _verify(self, ref: LinkRef, port: Port, reading: proving.Reading) -> list[ImpairmentNotAppliedError]:
        source, wrong = port.sources[ref], list[ImpairmentNotAppliedError]()
        if source.impairment is not None:
            evidence, errors = self._verify_impairment(ref, port, reading)
            self.evidence.append(evidence)
            wrong += errors
        if source.cut:
            self._look_at_flapping(port, ref)
            uncut = self._cut_differences(source.cut, reading)
            evidence, late = self._cut_evidence(ref, port, source.cut, reading, uncut)
            self.evidence.append(evidence)
            wrong += self._errors(ref, uncut, [*self._step_problems(ref, cuts=True), *evidence.problems, *late])
        return wrong

    def _verify_impairment(
        self, ref: LinkRef, port: Port, reading: proving.Reading
    ) -> tuple[LinkEvidence, list[ImpairmentNotAppliedError]]:
        examined = proving.examine(self, ref, port, reading)
        asked = port.sources[ref].impairment or CLEAN
        evidence, late = self.carriage.timed(
            examined.evidence, port, asked, nothing_passes=asked.loss_ratio == 1.0 and not port.sources[ref].running
        )
        problems = [*examined.problems, *self._step_problems(ref, cuts=False), *late]
        return evidence, self._errors(ref, examined.differences, problems)

    def _step_problems(self, ref: LinkRef, *, cuts: bool) -> list[str]:
        """What went wrong with steps of a link's timeline, or of its coming and going."""
        return [
            f"the step at {step.planned_s:.3f} s of its timeline, {step.describe()}: {step.complaint}"
            for step in self._steps.get(ref, ())
            if step.complaint is not None and (step.cut is not None) == cuts
        ]

    def _errors(
        self, ref: LinkRef, found: Sequence[proof.Difference], problems: Sequence[str]
    ) -> list[ImpairmentNotAppliedError]:
        wrong = [self._not_applied(ref, found, _HELD)] if found else []
        if found and (port := self.port(ref)) is not None:
            self.carriage.suspect(port)
        return [*wrong, self._not_applied(ref, [], *problems)] if problems else wrong

    def held(self, ref: LinkRef, port: Port, reading: proving.Reading) -> proving.Held:
        """What a link is impaired with at this moment, and what the kernel holds."""
        source = port.sources[ref]
        asked = source.impairment or CLEAN
        ways = qdisc.filters(source.minor, source.addresses, ref.traffic, part=source.part, by_number=asked.by_number)
        found = proof.filter_differences(reading.filters, ways)
        if source.running is not None:
            now = self._now_checked(ref)
            return proving.Held(*now, proof.differences(*now) + found)
        netem = proof.find_netem(reading.qdiscs, source.minor)
        own = [each for each in reading.filters if each.get("chain", 0) in (0, source.minor)]
        return proving.Held(asked, netem, self._differences(asked, netem, reading.qdiscs, own) + found)

    def _now_checked(self, ref: LinkRef) -> tuple[Impairment, Mapping[str, Any] | None]:
        try:
            return self.now(ref)
        except AgentError as error:
            raise self._not_applied(ref, [], f"its timeline: {error}") from None

    def record(self, name: str, value: float, *, unit: str, better: str) -> None:
        """Report a number with the test's result; ``better`` is ``lower`` or ``higher``.

        Raises InvalidValueError with every problem, and for a number that is none or not finite.
        """
        problems = [
            f"{word}={shown(told)}: must be text" for word, told in (("name", name), ("unit", unit))
            if not isinstance(told, str)
        ]  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, SupportsFloat) or not math.isfinite(float(value)):
            problems.append(f"record({shown(name)}, {shown(value)}): must be a finite number")
        if better not in ("lower", "higher"):
            problems.append(f"better={shown(better)}: must be 'lower' or 'higher'")
        if problems:
            raise InvalidValueError(problems)
        self.records.append(Record(name=name, value=float(value), unit=unit, better=better))

    # --- observing -------------------------------------------------------------------------------

    def capture(self, port: str, *, limit_bytes: int = LIMIT_BYTES, snap_bytes: int | None = None) -> PortCapture:
        """Capture the packets at a port while a block runs, before and after its impairment.

        ``"server"`` or ``"server on lan"``: every packet from and to that host; ``"client -> server"``: those that it
        exchanges with the client. The last ``limit_bytes`` of them are kept, ``snap_bytes`` of each (None: whole).
        Impair first: a port that is not impaired has one place where packets pass, not two.
        """
        return PortCapture(self, port, limit_bytes=limit_bytes, snap_bytes=snap_bytes)

    def observe(
        self,
        *,
        hosts: Iterable[str] | None = None,
        captures: Iterable[str] | None = None,
        snap_bytes: int | None = SNAP_BYTES,
        limit_bytes: int = LIMIT_BYTES,
        every: str = "10ms",
    ) -> AbstractContextManager[Observation]:
        """Observe while a block runs: kernel counters, every TCP socket over time, and packets.

        ::

            with lab.observe() as seen:
                lab.host("client").run(["python3", "client.py", "server"])
            assert seen.host("client").counters.retransmitted_segments == 0

        ``hosts``: whose counters and sockets, None for all; ``captures``: which ports, as for `capture`, None for
        those that are impaired when it begins; ``snap_bytes``: how much of each packet, None for all of it, which takes
        more of the machine; ``limit_bytes``: how much of each port, the last of it; ``every``: how often sockets are
        looked at, if 2 % of a core allow it.
        """
        return observing(
            self, hosts=hosts, captures=captures, snap_bytes=snap_bytes, limit_bytes=limit_bytes, every=every
        )

    def port(self, ref: LinkRef) -> Port | None:
        """The port at a link's end, or None if it was not made impairable; another once it had to begin anew."""
        return self._ports.get((ref.dst, ref.network))

    def spots(self, host: str, network: str, src: str | None) -> list[Spot]:
        """Where the packets of a port pass, before its impairment and after it; only a source's if one is given."""
        whose = host if src is None else f"{src} -> {host}"
        raise LabError(f"{whose} on {network}: packets cannot be captured in this kind of lab")

    def capture_agent(self) -> Channel:
        """The agent that captures, started when it is needed first."""
        raise LabError("packets cannot be captured in this kind of lab")

    # --- how impairments get there ---------------------------------------------------------------

    def apply(self, ref: LinkRef, wanted: Impairment | Timeline) -> Applied:
        """Put an impairment on a link and read it back; a timeline begins at once. Raises ImpairmentNotAppliedError."""
        applied = self.arm(ref, wanted)
        self.play()
        return applied

    def arm(self, ref: LinkRef, wanted: Impairment | Timeline, *, profile: str = "") -> Applied:
        """Put an impairment, or a timeline's beginning, on a link and read it back; a timeline goes on with `play`.

        ``profile``: whose half it is, to be told with it.

        Raises ImpairmentNotAppliedError, and InvalidValueError where a timeline's steps cannot follow each other.
        """
        started = time.perf_counter()
        self._told.discard(ref)
        seed = self._seed(ref, wanted)
        if isinstance(wanted, Timeline):
            schedule = compile_timeline(wanted, seed=seed)
            self._halt(ref)
            applied = replace(self._applied(ref, schedule.moments[0].impairment, started), timeline=wanted)
            self._arm(ref, Running(name=f"{ref} on {ref.network}", schedule=schedule))
        else:
            self._halt(ref)
            applied = self._applied(ref, wanted if seed is None else replace(wanted, seed=seed), started)
        applied = replace(applied, profile=profile)
        self.history.append(applied)
        return applied

    def play(self) -> None:
        """Begin every timeline that is armed, all at the same moment, which is their 0 s."""
        armed: dict[int, tuple[Channel, list[Running]]] = {}
        for port in self._ports.values():
            for source in port.sources.values():
                if source.running is not None and not source.running.begun:
                    armed.setdefault(id(port.channel), (port.channel, []))[1].append(source.running)
        for channel, running in armed.values():
            channel.call("play", names=[each.name for each in running])
            for each in running:
                each.begun = True

    def steps(self, ref: LinkRef) -> list[Taken]:
        """The steps that were taken on a link since `begin`, in order: of timelines, and of its flapping."""
        port = self._ports.get((ref.dst, ref.network))
        source = port.sources.get(ref) if port is not None else None
        if port is not None and source is not None and source.running is not None:
            self._steps.setdefault(ref, []).extend(source.running.look(port.channel).taken)
        if port is not None and source is not None:
            self._look_at_flapping(port, ref)
        return self.stepped.get(ref, [])

    @property
    def stepped(self) -> dict[LinkRef, list[Taken]]:
        """The steps of every link that has or had a timeline since `begin`, as far as they were fetched."""
        return {ref: sorted(steps, key=lambda step: step.monotonic_s) for ref, steps in self._steps.items()}

    def now(self, ref: LinkRef) -> tuple[Impairment, Mapping[str, Any] | None]:
        """What an impaired link is impaired with at this moment, and the kernel's own account of it, or None."""
        port = self._ports[ref.dst, ref.network]
        source = port.sources[ref]
        asked = port.applied[ref]
        if source.running is None:
            return asked, self.netem(ref)
        look = source.running.look(port.channel)
        self._steps.setdefault(ref, []).extend(look.taken)
        if look.played and look.asked is not None:
            return look.asked, look.kernel
        return asked, self.netem(ref)

    def _arm(self, ref: LinkRef, running: Running) -> None:
        port = self._ports[ref.dst, ref.network]
        source = port.sources[ref]
        for each in running.schedule.moments:
            refuse_small_bucket(ref, each.impairment, mtu=port.mtu)
            self._store_tables(port, each.impairment)
        running.arm(
            port.channel, port=port.name, show=qdisc.get(port.device, source.minor), parent=f"1:{source.minor:x}",
            needs=[source.ifindex],
            lines=[
                [qdisc.leaf(port.device, source.minor, each.impairment, spare=source.spare)]
                for each in running.schedule.moments
            ],
        )  # fmt: skip
        source.running = running

    def _halt(self, ref: LinkRef) -> None:
        """Stop a link's timeline, if one runs, where it is."""
        port = self._ports.get((ref.dst, ref.network))
        source = port.sources.get(ref) if port is not None else None
        if port is None or source is None or source.running is None:
            return
        running, source.running = source.running, None
        look = running.halt(port.channel)
        self._steps.setdefault(ref, []).extend(look.taken)
        if look.played:
            source.impairment = look.asked

    def _interrupt(self, ref: LinkRef) -> None:
        """Stop a timeline whose port is no more: what it did is kept, and that it did not go on."""
        self._halt(ref)
        if steps := self._steps.get(ref):
            said = "the port began anew, because a host at it was started again, and the timeline ended here"
            steps.append(replace(steps[-1], complaint=said))

    def put_back(self, ref: LinkRef, impairment: Impairment, started: float, running: Running | None) -> None:
        """Put on a link again what it had, and have its timeline ready for `play`; not in the history."""
        self._applied(ref, impairment, started)
        if running is not None:
            self._arm(ref, running)

    def flap_again(self, ref: LinkRef, up_s: float, down_s: float, how: str) -> None:
        """Have a link come and go as it did."""
        self._begin_flaps([self._arm_flap(ref, up_s, down_s, how)])

    def _applied(self, ref: LinkRef, impairment: Impairment, started: float) -> Applied:
        """Put an impairment on a link, on a new port if its own is gone, and read it back."""
        proving.prove_clock(self, ref)
        try:
            applied = self._put(ref, impairment, started)
        except AgentError as error:
            if error.kind != "gone":
                raise
            self._renew(ref)
            applied = self._put(ref, impairment, started)
        proving.watch(self, ref)
        return applied

    def _put(self, ref: LinkRef, impairment: Impairment, started: float) -> Applied:
        self._ready(ref)
        with self.putting(ref, False):
            return self._apply(ref, impairment, started)

    def _renew(self, ref: LinkRef) -> None:
        """Begin a port anew after a host at it was started again: the other sources keep their impairments."""
        for each, source in self._ports[ref.dst, ref.network].sources.items():
            if source.running is not None:
                self._interrupt(each)
        old = self._ports.pop((ref.dst, ref.network))
        port = self._port(ref.dst, ref.network)
        self._tc(port, [f"qdisc delete dev {port.device} root"])  # where a source alone is new, the old tree is there
        for other, source in old.sources.items():
            if other != ref and source.impairment is not None:
                self._apply(other, source.impairment, time.perf_counter())
            if source.cut:
                self._cut_again(other, source.cut)

    def _apply(self, ref: LinkRef, impairment: Impairment, started: float, *, afresh: bool = False) -> Applied:
        port = self._ready(ref)
        self._watch_fragments(port, ref)
        source = port.sources[ref]
        refuse_small_bucket(ref, impairment, mtu=port.mtu)
        device, minor, by_number = port.device, source.minor, impairment.by_number
        self._store_tables(port, impairment)
        lines: list[str] = [] if port.rooted else qdisc.root(device)
        if not source.led:
            lines.append(qdisc.make_class(device, minor))
        spare = source.spare
        kept = source.impairment is not None and qdisc.can_change_in_place(source.impairment, impairment)
        if source.impairment is not None and (afresh or not kept):
            spare = not spare
        command = qdisc.leaf(device, minor, impairment, spare=spare)
        lines += [command, *qdisc.bucket(device, minor, impairment, spare=spare)]
        leading = qdisc.filters(minor, source.addresses, ref.traffic, part=source.part, by_number=by_number)
        if source.led and source.counted == by_number:
            leading = []
        if by_number:
            lines += qdisc.count(device, minor, self._store_count(port, impairment))
        lines += [each.put(device) for each in leading]
        if source.counted and not by_number:
            lines.append(qdisc.stop_counting(device, minor))
        lines += [qdisc.show_count(device, minor)] if by_number else []
        lines += [each.get(device) for each in leading]
        lines += [qdisc.get(device, minor), qdisc.get_bucket(device, minor, spare=spare)]
        former = None if afresh or ref in self._told else source.impairment
        before = [] if former is None else [qdisc.get(device, minor)]
        if impairment.duplicate_ratio and not (source.impairment and source.impairment.duplicate_ratio):
            proving.begin_counting_copies(port, source)
        answer = self._tc(port, [*before, *lines], source)
        failed = {each["line"] for each in answer["complaints"]}
        if former is not None and failed.isdisjoint(before):
            self._look_at_former(ref, former, proof.find_netem(answer["shown"].pop(0), minor))
        port.rooted = port.rooted or failed.isdisjoint(qdisc.root(device))
        if command not in failed:
            # The kernel holds something new for this source, whether or not it is what was asked.
            source.spare, source.impairment = spare, impairment
        source.counted = source.counted or by_number
        complaints = [f"`tc {each['line']}`: {each['text']}" for each in answer["complaints"]]
        found: list[proof.Difference] = []
        kernel: Mapping[str, Any] = {}
        if not complaints:
            *filters, leaf, behind = answer["shown"]
            shown = [*leaf, *behind]
            kernel = proof.find_netem(shown, minor) or {}
            source.sent_before, source.dropped_before = kernel.get("packets", 0), kernel.get("drops", 0)
            misled = proof.filter_differences(_flat(filters), leading)
            source.led = (source.led or bool(leading)) and not misled
            source.counted = by_number
            found = self._differences(impairment, kernel or None, shown, _flat(filters)) + misled
        if complaints or found:
            source.led = False
            self.carriage.suspect(port)
            raise self._not_applied(ref, found, *complaints, f"Command: tc {command}")
        return Applied(
            link=ref,
            asked=impairment,
            command=f"tc {command}",
            kernel=kernel,
            took_s=time.perf_counter() - started,
        )

    def _look_at_former(self, ref: LinkRef, former: Impairment, netem: Mapping[str, Any] | None) -> None:
        """Whether an impairment still held when another took its place; if not, the next `verify` says so."""
        found = proof.differences(former, netem)
        if found:
            evidence = replace(proving.lost(self, ref, former), warnings=[str(each) for each in found])
            self._over.append((evidence, [self._not_applied(ref, found, _HELD)]))

    def _differences(
        self, asked: Impairment, netem: Mapping[str, Any] | None, qdiscs: Any, filters: Any
    ) -> list[proof.Difference]:
        """Every way in which what the kernel holds for one link is not what was asked."""
        found = proof.differences(asked, netem) + proof.bucket_differences(asked, qdiscs, netem)
        return found + (proof.count_differences(asked, filters) if asked.by_number else [])

    def _store_tables(self, port: Port, impairment: Impairment) -> None:
        """Have the agent keep the tables of one's own that tc is to read. Raises InvalidValueError."""
        for name in impairment.own_tables:
            self._store(port, name, reading.read_bytes(find_table(self.tables, name)))

    def _store_count(self, port: Port, impairment: Impairment) -> str:
        name = f"{indexed.tag(impairment.drop_packets, impairment.drop_every)}.o"
        path = self._store(port, name, indexed.elf_object(impairment.drop_packets, impairment.drop_every))
        if self.netem_engine == "host" and (reason := port.channel.call("try_program", path=path)):
            raise EnvironmentUnfitError(
                f"drop_packets and drop_every load a program into the kernel, which this machine's does not take from "
                f"us: {reason}. Use --netem carried"
            )
        return path

    def _store(self, port: Port, name: str, data: bytes) -> str:
        if name not in port.stored:
            port.stored[name] = port.channel.call("store", name=name, data=base64.b64encode(data).decode())["path"]
        return port.stored[name]

    def heal_link(self, ref: LinkRef) -> None:
        """Take a link's impairment off; what it was until now, and whether it held, goes into the next `verify`."""
        self.suspended.pop(ref, None)
        self._end_evidence(ref)
        self.clear(ref)
        if not self._testing:
            self.release()

    def _end_evidence(self, ref: LinkRef) -> None:
        """Look at an impaired link for the last time. What was found wrong before is not told again."""
        port = self._ports.get((ref.dst, ref.network))
        if port is None or ref not in port.applied or ref in self._told:
            return
        try:
            filters, qdiscs, _ = self._read_port(port, [ref])
            self.taps.look(each for each in (port, self._ports.get((ref.src, ref.network))) if each is not None)
            reading = proving.Reading(filters, qdiscs, proving.entry(port))
        except ImpairmentNotAppliedError as error:
            self._over.append((proving.lost(self, ref, port.applied[ref]), [error]))
            return
        self._over.append(self._verify_impairment(ref, port, reading))

    def clear(self, ref: LinkRef) -> None:
        """Take a link's impairment off and read back that it is gone."""
        port = self._ports.get((ref.dst, ref.network))
        if port is None or ref not in port.applied:
            return
        source = port.sources[ref]
        self._halt(ref)
        lines = [qdisc.clear(port.device, source.minor)]
        if ref.traffic != ALL_TRAFFIC or source.counted:
            # A part of the traffic would be kept from what the whole link is impaired with next.
            ways = qdisc.filters(source.minor, source.addresses, ref.traffic, part=source.part)
            lines += [each.delete(port.device) for each in ways]
            lines += [qdisc.stop_counting(port.device, source.minor)] if source.counted else []
            source.led = source.counted = False
        try:
            answer = self._tc(port, [*lines, qdisc.get(port.device, source.minor)])
        except AgentError as error:
            if error.kind != "gone":
                raise
            source.impairment = None  # it went with the port
            return
        if not answer["shown"] or proof.find_netem(answer["shown"][-1], source.minor) is not None:
            raise LabError(f"{ref}: still impaired after healing; tc said: {answer['complaints']}")
        source.impairment = None

    def cut_link(self, ref: LinkRef, *, reject: bool = False) -> None:
        """Cut one direction and read it back. Raises ImpairmentNotAppliedError."""
        self._cut_link(ref, reject=reject)
        proving.watch(self, ref)

    def _cut_link(self, ref: LinkRef, *, reject: bool) -> None:
        _truth("reject", reject)
        how = cutting.REJECT if reject else cutting.DROP
        known = self._cut_of(ref)
        if known is not None and known.flapping is not None:
            self.mend_link(ref)
        try:
            self._cut(ref, how)
        except AgentError as error:
            if error.kind != "gone":
                raise
            self._renew(ref)
            self._cut(ref, how)

    def flap_link(self, ref: LinkRef, *, up: str, down: str, reject: bool = False) -> None:
        """Have one direction come and go: see `flap`."""
        _truth("reject", reject)
        how = cutting.REJECT if reject else cutting.DROP
        self._begin_flaps([self._arm_flap(ref, *_flapping_times(up, down), how)])

    def _cut_of(self, ref: LinkRef) -> cutting.Cut | None:
        port = self._ports.get((ref.dst, ref.network))
        return port.sources[ref].cut if port is not None and ref in port.sources else None

    def _cut(self, ref: LinkRef, how: str) -> None:
        port = self._ready(ref)
        source = port.sources[ref]
        if source.cut is not None and source.cut.how == how:
            return
        before, cut = source.cut, self._new_cut(port, ref, how)
        source.cut = cut  # or half of it: mending takes off what is there
        try:
            self._put_cut(port, ref, cut, [*cut.prepare(), *cut.put()], [cut.show()])
        except BaseException:
            if before is not None:
                self._take_off(port, cut)
                source.cut = before
            raise
        if before is not None:
            source.cut = before
            self.mend_link(ref)
            source.cut = cut

    def _new_cut(self, port: Port, ref: LinkRef, how: str) -> cutting.Cut:
        """A cut that is not there yet, with all that it needs. Raises InvalidValueError, EnvironmentUnfitError."""
        source = port.sources[ref]
        self._watch_fragments(port, ref)
        ways = cutting.ways(how, source.minor, source.addresses, ref.traffic, source.targets, part=source.part)
        if how == cutting.DROP:
            self._refuse_silence(port, ref)
            return cutting.Cut(how=how, device=port.device, minor=source.minor, ways=ways)
        self._refuse_rejection(port, ref)
        try:
            place = port.channel.call("rejecting", port=port.name, ifindex=source.ifindex)
        except AgentError as error:
            if error.kind == "gone":
                raise
            raise EnvironmentUnfitError(f"{ref}: to reject packets, the agent needs a tap: {error}") from None
        return cutting.Cut(how=how, device=place["gate"], minor=source.minor, ways=ways, tap=place["tap"],
                           mark=place["mark"], answered_before=place["counts"])  # fmt: skip

    def _refuse_rejection(self, port: Port, ref: LinkRef) -> None:
        """What rejects comes before what is silent: a part that is lost silently cannot be within it."""
        for other, source in port.sources.items():
            within = other != ref and ref.covers(other)
            if within and source.cut is not None and not source.cut.at_gate:
                raise InvalidValueError(
                    f"{ref} cannot reject while {other} is cut silently: mend that, or reject it too"
                )

    def _refuse_silence(self, port: Port, ref: LinkRef) -> None:
        for other, source in port.sources.items():
            around = other != ref and other.covers(ref)
            if around and source.cut is not None and source.cut.at_gate:
                raise InvalidValueError(
                    f"{ref} cannot be cut silently while {other} rejects: mend that, or reject both"
                )

    def _put_cut(self, port: Port, ref: LinkRef, cut: cutting.Cut, lines: Sequence[str], shows: Sequence[str]) -> None:
        """Run lines that cut, and read back. Raises ImpairmentNotAppliedError."""
        source = port.sources[ref]
        if not cut.at_gate:
            lines = [*([] if port.rooted else qdisc.root(port.device)), *lines]
            shows = [*shows, qdisc.get(port.device, qdisc.cut_minor(source.minor))]
        answer = self._tc(port, [*lines, *shows], source, at_gate=cut.at_gate)
        failed = {each["line"] for each in answer["complaints"]}
        port.rooted = port.rooted or (not cut.at_gate and failed.isdisjoint(qdisc.root(port.device)))
        complaints = [f"`tc {each['line']}`: {each['text']}" for each in answer["complaints"]]
        found: list[proof.Difference] = []
        if not complaints:
            filters, qdiscs = answer["shown"][0], _flat(answer["shown"][1:])
            found = cut.netem_differences(qdiscs) if cut.flapping else cut.differences(filters, qdiscs)
            cut.lost_before = cut.lost_packets((), qdiscs)
        if complaints or found:
            self.carriage.suspect(port)
            hints = [_GATE_NEEDS[self.netem_engine]] if complaints and cut.at_gate else []
            raise self._not_applied(ref, found, *complaints, f"The link was to be cut, {cut.describe()}", *hints)

    def _cut_differences(self, cut: cutting.Cut, reading: proving.Reading) -> list[proof.Difference]:
        if cut.flapping is not None:  # its steps were read back one by one
            return cut.netem_differences(reading.qdiscs)
        return cut.differences(reading.at_gate if cut.at_gate else reading.filters, reading.qdiscs)

    def _answered(self, ref: LinkRef, port: Port, cut: cutting.Cut) -> Mapping[str, int] | None:
        """How the rejected packets of a link's source were answered so far; None of a silent cut."""
        return port.channel.call("rejected", ifindex=port.sources[ref].ifindex) if cut.at_gate else None

    def _cut_evidence(
        self, ref: LinkRef, port: Port, cut: cutting.Cut, reading: proving.Reading, found: Sequence[proof.Difference]
    ) -> tuple[LinkEvidence, list[str]]:
        """What is known of a cut, and why the test does not count for its carrier's lateness."""
        answered = self._answered(ref, port, cut)
        steps = [step for step in self.stepped.get(ref, ()) if step.cut is not None]
        ways = ", ".join(f"{each} packets took `{network}`" for network, each in proving.elsewhere(self, ref).items())
        evidence = cutting.evidence(
            ref, cut, command=f"tc {cut.put()[0]}" if cut.ways else "", found=[str(each) for each in found],
            lost_packets=cut.lost_packets(reading.at_gate, reading.qdiscs, answered) - cut.lost_before, steps=steps,
            answered=answered, elsewhere=ways, another_path=proving.another_path(self, ref) if ways else "",
            others=proving.others(port.sources[ref], reading.filters), strangers=strangers.problem(self, ref, port),
        )  # fmt: skip
        return self.carriage.timed(evidence, port, None, nothing_passes=cut.flapping is None)

    def _cut_again(self, ref: LinkRef, cut: cutting.Cut) -> None:
        """Cut a link on a new port as it was on the old one."""
        if cut.flapping is None:
            self._cut(ref, cut.how)
        else:
            self.flap_again(ref, cut.up_s, cut.down_s, cut.how)

    def _arm_flap(self, ref: LinkRef, up_s: float, down_s: float, how: str) -> LinkRef:
        """Have the agent ready to let a link come and go."""
        self.mend_link(ref)
        try:
            self._flap(ref, up_s, down_s, how)
        except AgentError as error:
            if error.kind != "gone":
                raise
            self._renew(ref)
            self._flap(ref, up_s, down_s, how)
        proving.watch(self, ref)
        return ref

    def _flap(self, ref: LinkRef, up_s: float, down_s: float, how: str) -> None:
        port = self._ready(ref)
        source, cut = port.sources[ref], self._new_cut(port, ref, how)
        running = cut.flap(f"{ref} on {ref.network}", up_s, down_s)
        source.cut = cut
        self._put_cut(port, ref, cut, cut.prepare(), [cut.show()])
        running.arm(
            port.channel, port=port.name, lines=[cut.delete(), cut.put()], show=cut.show(), needs=[source.ifindex],
            filters=cut.handles(), at_gate=cut.at_gate,
        )  # fmt: skip

    def _begin_flaps(self, refs: Sequence[LinkRef]) -> None:
        """Begin those that are armed, all of one agent at the same moment."""
        armed: dict[int, tuple[Channel, list[Running]]] = {}
        for ref in refs:
            cut, channel = self._cut_of(ref), self._ports[ref.dst, ref.network].channel
            if cut is not None and cut.flapping is not None:
                armed.setdefault(id(channel), (channel, []))[1].append(cut.flapping)
        for channel, running in armed.values():
            channel.call("play", names=[each.name for each in running])
            for each in running:
                each.begun = True

    def _look_at_flapping(self, port: Port, ref: LinkRef, *, halt: bool = False) -> None:
        """Fetch the steps of a link that flaps; ``halt``: and end it, as it is."""
        cut = port.sources[ref].cut
        if cut is None or cut.flapping is None:
            return
        look = cut.flapping.halt if halt else cut.flapping.look

        def differences(asked: Impairment, seen: Any) -> list[proof.Difference]:
            return cut.step_differences(asked == qdisc.CUT, seen)

        self._steps.setdefault(ref, []).extend(look(port.channel, differences).taken)

    def mend_link(self, ref: LinkRef) -> None:
        """End the cut of one direction and read back that nothing leads into it. Raises LabError.

        What it was, and whether it held until now, goes into the next `verify`.
        """
        if ref in self.suspended:
            self.suspended[ref] = replace(self.suspended[ref], how="", down_s=0.0)
        port = self._ports.get((ref.dst, ref.network))
        if port is None or ref not in port.sources or (cut := port.sources[ref].cut) is None:
            return
        source = port.sources[ref]
        try:
            self._look_at_flapping(port, ref, halt=True)
            evidence, found, lost_packets, late = self._look_at_cut(ref, port, cut)
            answer, still = self._take_off(port, cut)
        except (AgentError, ImpairmentNotAppliedError) as error:
            if isinstance(error, AgentError) and error.kind != "gone":
                raise
            source.cut = None  # it went with the port
            gone = f"it ended before it was mended: {error}"
            evidence = cutting.evidence(ref, cut, command="", found=[gone], lost_packets=0, steps=(), answered=None)
            self._over.append((evidence, [self._not_applied(ref, [], gone)]))
            return
        if still:
            raise LabError(f"{ref}: {', '.join(still)} still cut after mending; tc said: {answer['complaints']}")
        source.met_cut = source.met_cut or lost_packets > cut.lost_before
        if cut.at_gate:
            source.rejected_packets += lost_packets
        problems = [*self._step_problems(ref, cuts=True), *evidence.problems, *late]
        self._over.append((evidence, self._errors(ref, found, problems)))
        source.cut = None

    def cut_evidence(self, ref: LinkRef) -> LinkEvidence:
        """What is known of a cut at this moment. Raises LabError if the link is not cut."""
        cut = self._cut_of(ref)
        if cut is None:
            raise LabError(f"{ref} is not cut")
        port = self._ports[ref.dst, ref.network]
        self._look_at_flapping(port, ref)
        return self._look_at_cut(ref, port, cut)[0]

    def _look_at_cut(
        self, ref: LinkRef, port: Port, cut: cutting.Cut
    ) -> tuple[LinkEvidence, list[proof.Difference], int, list[str]]:
        """What is known of a cut, how it differs from what was asked, how many packets met it, and what was late."""
        filters, qdiscs, at_gate = self._read_port(port, [ref])
        reading = proving.Reading(filters, qdiscs, (), at_gate)
        found = self._cut_differences(cut, reading)
        lost_packets = cut.lost_packets(at_gate, qdiscs, self._answered(ref, port, cut))
        evidence, late = self._cut_evidence(ref, port, cut, reading, found)
        return evidence, found, lost_packets, late

    def _take_off(self, port: Port, cut: cutting.Cut) -> tuple[Any, list[str]]:
        """Take a cut's filters off; tc's answer, and which are there still."""
        answer = self._tc(port, [*cut.delete(), cut.show()], at_gate=cut.at_gate)
        return answer, cut.left(answer["shown"][-1]) if answer["shown"] else ["nothing can be read back: perhaps"]

    def dropped_by_number(self, ref: LinkRef) -> int:
        """How many packets of a link ``drop_packets`` and ``drop_every`` have lost since they were put there."""
        port = self._ports.get((ref.dst, ref.network))
        if port is None or ref not in port.sources or not port.sources[ref].counted:
            return 0
        source = port.sources[ref]
        answer = self._tc(port, [qdisc.show_count(port.device, source.minor)], source)
        return proof.dropped_by_number(_flat(answer["shown"]))

    def lost_in_cut(self, ref: LinkRef) -> int:
        """How many packets the cuts of a link have swallowed or rejected."""
        port = self._ports.get((ref.dst, ref.network))
        if port is None or ref not in port.sources:
            return 0
        source = port.sources[ref]
        rejected = source.rejected_packets
        try:
            netem = self._leaf(port, ref, qdisc.cut_minor(source.minor))
            if source.cut is not None and source.cut.at_gate:
                shown = self._tc(port, [source.cut.show()], source, at_gate=True)["shown"]
                rejected += source.cut.lost_packets(_flat(shown), (), self._answered(ref, port, source.cut))
        except AgentError as error:
            if error.kind != "gone":  # with the port, or with the source's own, went what it had counted
                raise
            return 0
        return rejected + (0 if netem is None else proof.counters(netem).dropped_packets)

    def read(self, ref: LinkRef) -> proof.Counters:
        """The counters of a link's netem. Raises LabError if there is none."""
        netem = self.netem(ref)
        if netem is None:
            raise LabError(f"{ref} is not impaired: there is nothing that counts its packets")
        return proof.counters(netem)

    def counts(self) -> dict[LinkRef, proof.Counters]:
        """The counters of every impaired link's netem, read port by port; see `read`."""
        found: dict[LinkRef, proof.Counters] = {}
        for port in self._ports.values():
            found.update(self.counts_at(port) if port.applied else {})
        return found

    def counts_at(self, port: Port) -> dict[LinkRef, proof.Counters]:
        """The same of one port."""
        shown = self._tc(port, [qdisc.show(port.device)])["shown"]
        netems = {ref: proof.find_netem(shown[-1], port.sources[ref].minor) for ref in port.applied} if shown else {}
        return {ref: proof.counters(netem) for ref, netem in netems.items() if netem is not None}

    def netem(self, ref: LinkRef) -> Mapping[str, Any] | None:
        """The kernel's own account of a link's netem now, or None if there is none."""
        port = self._ports.get((ref.dst, ref.network))
        if port is None or ref not in port.sources:
            return None
        try:
            return self._leaf(port, ref, port.sources[ref].minor)
        except AgentError as error:
            if error.kind != "gone":
                raise
            return None

    def _leaf(self, port: Port, ref: LinkRef, minor: int) -> Mapping[str, Any] | None:
        answer = self._tc(port, [qdisc.get(port.device, minor)], port.sources[ref])
        return proof.find_netem(answer["shown"][-1], minor) if answer["shown"] else None

    def _ready(self, ref: LinkRef) -> Port:
        """The port at a link's end, with its source prepared; the first time, both at once."""
        port = self._ports.get((ref.dst, ref.network))
        if port is None or ref not in port.sources:
            port = self._prepare(ref)
        if self.netem_engine == "host":  # before a carried kernel, packets are cut at its tap, whoever sends them
            self.per_packet.want(self.hosts[ref.src], ref.network, port.sources[ref].ifindex)
            self.per_packet.want(self.hosts[ref.dst], ref.network, port.ifindex)
        if port.released:
            # With its root: a device that is given one while packets pass loses some.
            answer = self._tc(port, [] if port.rooted else qdisc.root(port.device), resume=True)
            port.rooted = port.rooted or not answer["complaints"]
        self.carriage.watch(port)
        return port

    def _prepare(self, ref: LinkRef) -> Port:
        with ThreadPoolExecutor(1, "testbed-source") as pool:
            prepared = pool.submit(self._prepare_source, ref.src, ref.network)
            port = self._port(ref.dst, ref.network)
            ifindex = prepared.result()
        minor = qdisc.FIRST_MINOR + len(port.sources)
        part = sum(each.src == ref.src and bool(each.traffic.protocol) for each in port.sources)
        if minor > qdisc.LAST_MINOR:
            raise LabError(f"port of {ref.dst}: more than {len(port.sources)} sources")
        if part >= qdisc.MOST_PARTS:
            raise LabError(f"port of {ref.dst}: more than {part} parts of the traffic of {ref.src}")
        addresses, targets = self.marks(ref.src, ref.network), tuple[str, ...]()
        if ref.to:  # of what goes to a router also what comes from an address on another network
            own = self.hosts[ref.src].addresses()
            addresses, targets = tuple(dict.fromkeys((*own, *addresses))), self.hosts[ref.to].addresses()
        port.sources[ref] = Source(minor=minor, ifindex=ifindex, addresses=addresses, part=part, targets=targets)
        return port

    def _watch_fragments(self, port: Port, ref: LinkRef) -> None:
        """Begin to count fragments of other traffic that go a narrowed link's way, unless it is impaired or cut."""
        source, mac = port.sources[ref], self.mac(ref.src, ref.network)
        if source.impairment is not None or source.cut is not None or mac is None:
            return
        source.since_s = time.monotonic()
        watch = fragments.watch(port.device, source.minor, mac, ref.traffic, source.targets)
        if not watch:
            return
        # A kernel that cannot count them impairs all the same; the evidence then says that they were not counted.
        root = [] if port.rooted else qdisc.root(port.device)
        failed = {each["line"] for each in self._tc(port, [*root, *watch], source)["complaints"]}
        port.rooted, source.others_before = port.rooted or failed.isdisjoint(root), 0

    def mac(self, _host: str, _network: str) -> str | None:
        """The MAC address of a host's interface on a network, if it is known."""
        return None

    def kernel_of(self, ref: LinkRef) -> str | None:
        """The carried kernel that has a link's netem, or will have it; None where it is the engine's own."""
        return self._ready(ref).kernel

    def source_addresses(self, host: str, network: str) -> tuple[str, ...]:
        """Every address that a host's packets on a network may come from."""
        return self.hosts[host].addresses(network)

    def marks(self, host: str, network: str) -> tuple[str, ...]:
        """What tells the packets that a host sends on a network from others': their source addresses, IP and MAC.

        The interface tells those that bear an address which nobody told us, or another host's: what it passes on.
        """
        mac = self.mac(host, network)
        return (*self.source_addresses(host, network), *(() if mac is None else (mac,)))

    def _port(self, host: str, network: str) -> Port:
        if (host, network) not in self._ports:
            self._ports[host, network] = self._attach(host, network)
        return self._ports[host, network]

    def _tc(
        self, port: Port, lines: Sequence[str], source: Source | None = None, *, at_gate: bool = False,
        resume: bool = False,
    ) -> Any:  # fmt: skip
        """Run lines on a port, or at its gate; ``resume``: and have a released port's packets come there again.

        Refused as ``gone`` if the port, or the source's own, is no more the one we know.
        """
        needs = [] if source is None else [source.ifindex]
        answer = port.channel.call("tc", port=port.name, lines=list(lines), needs=needs, at_gate=at_gate, resume=resume)
        port.released = port.released and not resume
        return answer

    def _not_applied(self, ref: LinkRef, found: Sequence[proof.Difference], *context: str) -> ImpairmentNotAppliedError:
        said = [*map(str, found), *context]
        return ImpairmentNotAppliedError(
            f"port of `{ref.dst}` on `{ref.network}` ({ref}), engine {self.netem_engine}: {'. '.join(said)}"
        )


def _flapping_times(up: str, down: str) -> tuple[float, float]:
    """How long a link that flaps is whole, and cut; seconds. Raises InvalidValueError with every problem."""
    times, problems = [], list[str]()
    for name, text in (("up", up), ("down", down)):
        try:
            time_s = units.parse_time(text, name=name)
            if time_s < _SHORTEST_FLAP_S:
                problems.append(f"{name}={shown(text)}: at least {units.format_time(_SHORTEST_FLAP_S)}")
            times.append(time_s)
        except InvalidValueError as error:
            problems += error.problems
    if problems:
        raise InvalidValueError(problems)
    return times[0], times[1]


def _flat(shown: Iterable[Any]) -> list[Any]:
    return [each for array in shown for each in array]


def derived_seed(*parts: str) -> int:
    """A seed from 0 to 2⁶³-1 that the same parts always give."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8]) >> 1


def _truth(name: str, said: object) -> None:
    """Refuse what is neither True nor False: any text would be true."""
    if not isinstance(said, bool):
        raise InvalidValueError(f"{name}={shown(said)}: must be True or False")


def impairments_of(
    topology: Topology,
    profiles: Mapping[str, Profile],
    text: str,
    profile: str | Profile | Sequence[object] | None,
    words: Mapping[str, object],
    *,
    tables: Mapping[str, Path],
    side: Callable[[object], Impairment | Timeline] = checked_side,
) -> dict[LinkRef, Impairment | Timeline]:
    """What the words of a marker, a call or a command line ask of each link; ``side`` reads the words.

    Raises InvalidValueError with every problem of the link, the profile, the words and their tables at once.
    """
    problems: list[str] = []
    forward: tuple[LinkRef, ...] = ()
    reverse: tuple[LinkRef, ...] = ()
    chosen: Profile | None = None
    try:
        forward, reverse = topology.directions(text)
    except InvalidValueError as error:
        problems += error.problems
    try:
        if profile is not None and words:
            problems.append(f"{shown(text)}: give a profile or words such as delay=, not both")
        elif isinstance(profile, Profile):
            chosen = profile
        elif isinstance(profile, list | tuple) and any(isinstance(step, Mapping) for step in profile):
            both = side(profile)
            chosen = Profile(name="", forward=both, reverse=both)
        elif profile is not None:
            chosen = find_profile(profiles, profile)
        elif not words:
            problems.append(
                f'{shown(text)}: what is it impaired with? Give a profile\'s name or words such as delay="40ms"'
            )
        else:
            same = side(words)
            chosen = Profile(name="", forward=same, reverse=same)
        for half in (chosen.forward, chosen.reverse) if chosen is not None else ():
            problems += _missing_tables(half, tables)
    except InvalidValueError as error:
        problems += error.problems
    if problems or chosen is None:
        raise InvalidValueError(list(dict.fromkeys(problems)))
    return {**dict.fromkeys(forward, chosen.forward), **dict.fromkeys(reverse, chosen.reverse)}


def profile_name(said: object) -> str:
    """Of what a marker or a call gives for a profile, its name; empty if it is words or steps."""
    return said.name if isinstance(said, Profile) else said if isinstance(said, str) else ""


def unprovable(wanted: Mapping[LinkRef, Impairment | Timeline]) -> list[str]:
    """Why some of what is asked cannot be proven by probes, however it is put there."""
    told = (proving.unfit(ref, timeline=isinstance(each, Timeline)) for ref, each in wanted.items())
    return [each for each in told if each]


def _missing_tables(half: Impairment | Timeline, tables: Mapping[str, Path]) -> list[str]:
    problems: list[str] = []
    for name in half.own_tables:
        try:
            find_table(tables, name)
        except InvalidValueError as error:
            problems += error.problems
    return problems


def check_signal(name: object) -> None:
    """Raise InvalidValueError unless this is a signal's name, as in ``"SIGTERM"``."""
    if not isinstance(name, str) or name not in signal.Signals.__members__:
        raise InvalidValueError(f"unknown signal {str(name)[:40]!r}; write it as 'SIGTERM' or 'SIGKILL'")


def seconds(text: str, name: str = "timeout") -> float:
    """A deadline in the user's words, in seconds."""
    return units.parse_time(text, name=name)
