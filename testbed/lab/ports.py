"""The ports of a lab: which are attached, what the kernel reports of them, and where tc runs.

They know the agents' channels and the backend, but not tests. A part whose lines must be written again when a port
begins anew is a tenant.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from testbed.errors import (
    AgentError,
    ImpairmentNotAppliedError,
    LabError,
)
from testbed.judge import counting
from testbed.lab import beyond, severed
from testbed.lab.backend import Attached, Backend
from testbed.lab.channel import Channel
from testbed.lab.notapplied import LinkNotAppliedError
from testbed.lab.perpacket import PerPacket
from testbed.lab.playback import Playback
from testbed.netem import fragments, qdisc, readback, rejecting, translated
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef, PortRef, Traffic

HELD = "It was in force when it was put there"


@dataclass
class Source:
    """A sender, or a part of its traffic, with a class of its own at a port."""

    minor: int
    """Of its class on the port."""
    ifindex: int
    """Of its own port on the engine's machine; a host that is started again has another."""
    addresses: tuple[str, ...]
    """The addresses by which its packets are recognized; see `Host.marks`."""
    part: int = 0
    """The number of this part among the parts of its sender's traffic; see `qdisc.filters`."""
    targets: tuple[str, ...] = ()
    """The destination addresses, if only some are meant; see `LinkRef.to`."""
    gateway: qdisc.Gateway | None = None
    """For a link from or to something beyond the stack: what its packets pass. The addresses are those behind it."""
    spared: tuple[str, ...] = ()
    """Addresses behind the gateway that are not of the link."""
    led: bool = False
    """Filters verified by read-back."""
    counted: bool = False
    """Whether a chain counts its packets."""
    spare: bool = False
    """Whether its netem has the spare handle (`qdisc.leaf`)."""
    impairment: Impairment | None = None
    sent_before: int = 0
    """Packets that its netem had sent before the impairment; a netem that is changed in place keeps its count."""
    dropped_before: int = 0
    """Likewise, dropped."""
    bytes_before: int = 0
    """Likewise, bytes sent."""
    beyond_before: int | None = None
    """By how much the root's count exceeded the port's arrivals when duplicates were first asked for."""
    since_s: float = 0.0
    """When its link was first impaired or cut, or the test began; on the machine's monotonic clock."""
    cut: severed.Cut | None = None
    rejected_packets: int = 0
    """Packets rejected by cuts that were mended since."""
    met_cut: bool = False
    """Whether packets met a cut that was mended since the test began."""
    running: Playback | None = None
    """The timeline whose beginning ``impairment`` is."""

    def filters(self, traffic: Traffic, *, by_number: bool = False) -> list[qdisc.Filter]:
        """What leads its packets to its class; see `qdisc.filters`."""
        return qdisc.filters(
            self.minor, self.addresses, traffic, part=self.part, by_number=by_number, gateway=self.gateway
        )

    def spares(self) -> list[qdisc.Filter]:
        """What keeps packets that are not of the link from these filters."""
        return [] if self.gateway is None else qdisc.spared(self.gateway, self.spared)

    def ways(self, how: str, traffic: Traffic) -> tuple[qdisc.Filter, ...]:
        """What leads its packets into a cut; see `severed.ways`."""
        return severed.ways(
            how, self.minor, self.addresses, traffic, self.targets, part=self.part, gateway=self.gateway
        )

    def others(self, filters: Sequence[Mapping[str, Any]]) -> int | None:
        """Fragmented datagrams of other traffic in its class since it was impaired or cut; None if not counted."""
        return fragments.counted(filters, self.minor)

    def lost_by_number(self, filters: Sequence[Mapping[str, Any]]) -> int | None:
        """Number of packets lost by their number, if they are counted."""
        if not self.counted:
            return None
        return readback.dropped_by_number([filter_ for filter_ in filters if filter_.get("chain", 0) == self.minor])


@dataclass
class Port:
    """The switch's egress toward one host: its kernel, its device, its sources."""

    ref: PortRef
    name: str
    """What the agent calls it."""
    channel: Channel
    device: str
    """Which has the senders' qdiscs."""
    last: str | None = None
    """The device behind that, which has the qdiscs of bottlenecks; None where there is none."""
    rooted: bool = False
    """Whether it has its classful root."""
    stored: dict[str, str] = field(default_factory=dict)
    """Files that the agent keeps for tc: name and path."""
    sources: dict[LinkRef, Source] = field(default_factory=dict)
    entry: str | None = None
    """The device whose redirect feeds it and counts refused packets; None if there is none."""
    refused: int = 0
    """Packets that it had refused when the test began."""
    kernel: str | None = None
    """The carried kernel that has its qdiscs; None where it is the engine's own."""
    ifindex: int = 0
    """Of the host's own port on the engine's machine; a host that is started again has another."""
    mtu: int = 0
    """Bytes; 0 if unknown."""
    gateway: Mapping[str, Any] | None = None
    """The MAC address and the addresses of the network's gateway, if it is the bridge."""
    watched: bool = False
    """Whether packets are counted whose source address was rewritten to the gateway's."""
    rewritten: int = 0
    """How many had been counted when the links here were last verified."""
    original: Mapping[str, Any] = field(default_factory=dict)
    """The original state of the host's own port, for another agent to restore: `agent.leftover`."""
    released: bool = False
    """Whether packets pass our qdiscs by, until a link is impaired again: see `releasing`."""

    @classmethod
    def of(cls, attached: Attached) -> Port:
        """The port by the agent's account, once it is attached."""
        answer = attached.port
        return cls(
            ref=attached.ref,
            name=attached.name,
            channel=attached.channel,
            ifindex=attached.ifindex,
            original=answer.get("found", {}),
            **{key: answer[key] for key in ("device", "last", "entry", "kernel", "released", "mtu", "gateway")},
        )

    def way_out(self) -> Port:
        """The port of the other direction, out of the host. Raises AgentError if it cannot have one."""
        place = self.channel.call("way_out", port=self.name)
        other = replace(self, ref=replace(self.ref, out=True), gateway=None, last=None, **place)
        return replace(other, rooted=False, watched=False, refused=0, rewritten=0, sources={})

    def restage(self, answer: Mapping[str, Any]) -> None:
        """Note that the senders' qdiscs have another device now, which is bare; ``answer``: the agent's account."""
        self.device, self.last = answer["device"], answer["last"]
        self.refused = 0
        self._bare()

    def let_go(self) -> None:
        """Note that it was released: with the host's engine, its qdiscs are gone."""
        self.released = True
        if self.kernel is None:
            self._bare()

    def _bare(self) -> None:
        self.rooted = self.watched = False
        for source in self.sources.values():
            source.led = source.counted = source.spare = False
            source.beyond_before = None

    @property
    def applied(self) -> dict[LinkRef, Impairment]:
        """The impairment of each impaired link that ends here."""
        return {ref: source.impairment for ref, source in self.sources.items() if source.impairment is not None}

    def state(self) -> dict[str, Any]:
        """What another process must know to take the port up, as JSON."""
        sources = [
            {
                "link": ref.state(),
                "source": {
                    **vars(source),
                    "gateway": source.gateway and vars(source.gateway),
                    "impairment": source.impairment and source.impairment.words(),
                    "cut": source.cut and source.cut.state(),
                    "running": source.running and source.running.state(),
                },
            }
            for ref, source in self.sources.items()
        ]
        return {**{key: getattr(self, key) for key in _KEPT}, "sources": sources}

    @classmethod
    def from_state(cls, ref: PortRef, channel: Channel, state: Mapping[str, Any]) -> Port:
        """The port as another process left it."""
        sources = {}
        for entry in state["sources"]:
            link = LinkRef.from_state(entry["link"])
            source = entry["source"]
            gateway, cut = source.get("gateway"), source["cut"]
            sources[link] = known = Source(
                **{
                    **source,
                    **{name: tuple(source.get(name, ())) for name in ("addresses", "targets", "spared")},
                    "gateway": None if gateway is None else qdisc.Gateway(**gateway),
                    "impairment": None if source["impairment"] is None else Impairment.parse(source["impairment"]),
                    "running": None if source["running"] is None else Playback.from_state(source["running"]),
                    "cut": None,
                }
            )
            if cut is not None:
                known.cut = severed.Cut.from_state(cut, known.minor, known.ways(cut["how"], link.traffic))
        return cls(
            ref=ref,
            name=str(replace(ref, out=False)),
            channel=channel,
            sources=sources,
            **{key: state[key] for key in _KEPT if key in state},
        )


_KEPT = (
    *("device", "last", "rooted", "entry", "kernel", "ifindex", "released", "mtu", "original"),
    *("gateway", "watched", "rewritten"),
)
"""What of a port another process takes up as it is."""


@dataclass(frozen=True)
class Reading:
    """A port as tc reports it now."""

    filters: Sequence[Mapping[str, Any]]
    qdiscs: Sequence[Mapping[str, Any]]
    entry: Sequence[Mapping[str, Any]]
    """The redirect that feeds it; empty where there is none."""
    at_gate: Sequence[Mapping[str, Any]] = ()
    """The filters at its gate, if some link rejects there."""

    @property
    def refused(self) -> int | None:
        """Packets that its redirect could not hand over; None if they are not counted."""
        return counting.overflows(self.entry)


class Tenant(Protocol):
    """Who has something on ports."""

    def evict(self, port: Port) -> None:
        """The port is about to go."""

    def move_in(self, port: Port, *, but: LinkRef | None) -> None:
        """Write on the new port what the old one had; ``but``: not for this link, which is about to be written."""


class Ports:
    """The ports of a lab that are attached."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ports: dict[PortRef, Port] = {}
        self.per_packet = PerPacket()
        self.use: Callable[[Port], None] = lambda _port: None
        """Called with each port before its use; may raise ImpairmentNotAppliedError."""
        self.suspect: Callable[[Port], None] = lambda _port: None
        """Called with each port that does not hold its impairment."""
        self.tenants: list[Tenant] = []

    def __iter__(self) -> Iterator[Port]:
        return iter(list(self._ports.values()))

    # --- the registry ----------------------------------------------------------------------------

    def at(self, host: str, network: str) -> Port | None:
        """The port toward a host, if it is attached."""
        return self._ports.get(PortRef(host, network))

    def of(self, ref: LinkRef) -> Port | None:
        """The port at a link's end, if it is attached; one that began anew is another object."""
        return self._ports.get(ref.receivers_port)

    def source(self, ref: LinkRef) -> Source | None:
        """The source of a link at its port; None if it was never impaired or cut."""
        port = self.of(ref)
        return port.sources.get(ref) if port is not None else None

    def known(self, ref: LinkRef) -> tuple[Port, Source]:
        """The port at the end of a link that was impaired or cut, and the link's source there."""
        port = self._ports[ref.receivers_port]
        return port, port.sources[ref]

    @property
    def impaired(self) -> list[LinkRef]:
        """Every impaired link."""
        return [ref for port in self for ref in port.applied]

    @property
    def cut(self) -> list[LinkRef]:
        """Every link that is cut, or flaps."""
        return [ref for port in self for ref, source in port.sources.items() if source.cut]

    def attached(self, host: str, network: str, *, out: bool = False) -> Port:
        """The port toward a host, or out of it, attached now if it is not."""
        ref = PortRef(host, network, out=out)
        if ref not in self._ports:
            self._ports[ref] = (
                self.attached(host, network).way_out() if out else Port.of(self._backend.attach(host, network))
            )
        return self._ports[ref]

    def _of_cable(self, port: Port) -> list[Port]:
        """The ports of both directions of one cable."""
        return [other for other in self if replace(other.ref, out=port.ref.out) == port.ref]

    def forget(self, *ports: Port) -> None:
        """Forget ports that were removed; they are attached anew when one of their links is impaired."""
        self._ports = {ref: port for ref, port in self._ports.items() if not any(port is gone for gone in ports)}

    def clear(self) -> list[Port]:
        """Forget every port. Returns them."""
        left = list(self._ports.values())
        self._ports.clear()
        return left

    def state(self) -> list[dict[str, Any]]:
        """What another process must know of them, as JSON."""
        return [{**vars(ref), **port.state()} for ref, port in self._ports.items()]

    def take_up(self, state: Iterable[Mapping[str, Any]], channel: Channel) -> None:
        """Take over the ports that another process left; see `state`."""
        for entry in state:
            ref = PortRef(entry["host"], entry["network"], out=entry.get("out", False))
            self._ports[ref] = Port.from_state(ref, channel, entry)

    # --- ports that are made ready ---------------------------------------------------------------

    def ready(self, ref: LinkRef) -> Port:
        """The port at a link's end, with its source prepared; the first time, both at once."""
        port = self.of(ref)
        if port is None or ref not in port.sources:
            port = self._prepare(ref)
        beyond.refuse_overlap(ref, (other for other, used in port.sources.items() if used.impairment or used.cut))
        if self._backend.netem_engine == "host":  # at a carried kernel's tap, packets are segmented, whoever sends them
            hosts = self._backend.hosts
            if ref.beyond:
                port.channel.call("per_packet_from_gateway", port=port.name)
            else:
                self.per_packet.want(hosts[ref.src], ref.senders_port, port.sources[ref].ifindex)
            own = replace(port.ref, out=False)
            self.per_packet.want(hosts[own.host], own, port.ifindex)
        if port.released:
            # With its root qdisc: a device that gets one while packets pass loses some.
            answer = self.tc(port, [] if port.rooted else qdisc.root(port.device), resume=True)
            port.rooted = port.rooted or not answer["complaints"]
        self.use(port)
        return port

    def _prepare(self, ref: LinkRef) -> Port:
        port, known = self._beyond(ref) if ref.beyond else self._among_hosts(ref)
        minor = qdisc.FIRST_MINOR + len(port.sources)
        part = sum(other.src == ref.src and bool(other.traffic.protocol) for other in port.sources)
        if minor > qdisc.LAST_MINOR:
            raise LabError(f"port of {port.ref.host}: more than {len(port.sources)} sources")
        if part >= (qdisc.MOST_LAST_PARTS if ref.beyond else qdisc.MOST_PARTS):
            raise LabError(f"port of {port.ref.host}: more than {part} parts of the traffic of {ref.src}")
        port.sources[ref] = Source(minor=minor, part=part, **known)
        return port

    def _among_hosts(self, ref: LinkRef) -> tuple[Port, dict[str, Any]]:
        """The port toward the receiver, and what distinguishes the sender's packets there."""
        with ThreadPoolExecutor(1, "testbed-source") as pool:
            prepared = pool.submit(self._backend.port_of_sender, ref.src, ref.network)
            port = self.attached(ref.dst, ref.network)
            ifindex = prepared.result()
        addresses, targets = self._backend.hosts[ref.src].marks(ref.network), tuple[str, ...]()
        if ref.to:  # toward a router, packets may come from an address on another network
            own = self._backend.hosts[ref.src].addresses()
            addresses = tuple(dict.fromkeys((*own, *addresses)))
            targets = self._backend.hosts[ref.to].addresses()
        return port, {"ifindex": ifindex, "addresses": addresses, "targets": targets}

    def _beyond(self, ref: LinkRef) -> tuple[Port, dict[str, Any]]:
        """The same of a link whose other end is beyond the network's hosts: the way in, or out, of its host."""
        (host,) = ref.hosts
        inward = self.attached(host, ref.network)
        if inward.gateway is None:
            raise LabError(f"{ref}: the bridge of `{ref.network}` has no address of its own, so nothing is beyond it")
        own, ours = inward.channel.call("own_addresses"), self._backend.machine_is_ours
        known = beyond.ends(ref, inward.gateway, own, machine_is_ours=ours)
        return self.attached(host, ref.network, out=ref.beyond == "dst"), known

    def counters(self, ref: LinkRef) -> readback.NetemCounters:
        """The counters of a link's netem. Raises LabError if there is none."""
        netem = self.netem(ref)
        if netem is None:
            raise LabError(f"{ref} is not impaired, so nothing counts its packets")
        return readback.counters(netem)

    def watch(self, ref: LinkRef) -> None:
        """Begin to count what a link's evidence is about, unless the link is impaired or cut.

        That is other traffic's fragments in a narrowed link's class, and packets that NAT rewrote at the port.
        """
        port, source = self.known(ref)
        if source.impairment is not None or source.cut is not None:
            return
        lines: list[str] = []
        if port.gateway is not None and not port.watched:
            lines, port.watched, port.rewritten = translated.watch(port.device, port.gateway), True, 0
        source.since_s = time.monotonic()
        # Beyond the stack, many senders have the gateway's MAC address: fragments of their traffic are not counted.
        if not ref.beyond and (mac := self._backend.hosts[ref.src].mac(ref.network)):
            lines += fragments.watch(port.device, source.minor, mac, ref.traffic, source.targets)
        if not lines:
            return
        # A kernel that cannot count them can impair; the evidence says that they were not counted.
        root = [] if port.rooted else qdisc.root(port.device)
        failed = {complaint["line"] for complaint in self.tc(port, [*root, *lines], source)["complaints"]}
        port.rooted = port.rooted or failed.isdisjoint(root)

    def rewritten(self, ref: LinkRef, reading: Reading) -> str | None:
        """A warning if NAT rewrote packets that reached a link's end since its links were last verified.

        It is no problem of the link: a sender is known by its MAC address, too.
        """
        port, source = self.known(ref)
        packets = translated.counted(reading.filters)
        return translated.warning(
            packets - port.rewritten,
            end=f"`{ref.dst}` on `{ref.network}`",
            gateway=port.gateway,
            senders=[address for address in source.addresses if not qdisc.is_mac(address)],
        )

    def renew(self, ref: LinkRef, by: Tenant | None = None) -> None:
        """Begin a port anew after a host at it was started again, and have all tenants write again what it had.

        ``by``: the tenant that asks; it writes this link itself.
        """
        both = self._of_cable(self._ports[ref.receivers_port])
        for old in both:
            for tenant in self.tenants:
                tenant.evict(old)
        self.forget(*both)
        for old in both:
            port = self.attached(old.ref.host, old.ref.network, out=old.ref.out)
            self.tc(port, [f"qdisc delete dev {port.device} root"])  # the old one may still be there
            for tenant in self.tenants:
                tenant.move_in(old, but=ref if tenant is by else None)

    def store(self, port: Port, name: str, data: bytes) -> str:
        """Store a file for tc at the agent. Returns its path there."""
        if name not in port.stored:
            port.stored[name] = port.channel.call("store", name=name, data=base64.b64encode(data).decode())["path"]
        return port.stored[name]

    # --- tc --------------------------------------------------------------------------------------

    def tc(
        self,
        port: Port,
        lines: Sequence[qdisc.TcLine],
        source: Source | None = None,
        *,
        at_gate: bool = False,
        resume: bool = False,
    ) -> Any:
        """Run tc lines on a port, or at its gate. ``resume``: also lead a released port's packets there again.

        Refused as ``gone`` if the port, or the source's own port, has been replaced.
        """
        needs = [] if source is None else [source.ifindex]
        answer = port.channel.call("tc", port=port.name, lines=list(lines), needs=needs, at_gate=at_gate, resume=resume)
        if resume:
            for direction in (port, *self._of_cable(port)):  # a port that only counts is not among ours
                direction.released = False
        return answer

    def read(self, port: Port, refs: Sequence[LinkRef]) -> Reading:
        """The filters and qdiscs of a port, its redirect, and the filters at its gate if some of these links reject.

        Raises ImpairmentNotAppliedError naming the link whose end is gone.
        """
        lines = [qdisc.show_filters(port.device), qdisc.show(port.device), *show_entry(port)]
        needs = sorted({port.sources[ref].ifindex for ref in refs})
        gate = next((cut.device for ref in refs if (cut := port.sources[ref].cut) and cut.at_gate), None)
        try:
            answer = port.channel.call("tc", port=port.name, lines=lines, needs=needs)
            at_gate = [] if gate is None else flat(self.tc(port, [rejecting.show(gate)], at_gate=True)["shown"])
        except AgentError as error:
            ref = next((ref for ref in refs if not self._is_there(port, port.sources[ref])), refs[0])
            impairment = port.sources[ref].impairment
            what = "a cut" if impairment is None else impairment.describe()
            raise self.not_applied(ref, [], f"asked {what}; {error}", HELD) from None
        if len(answer["shown"]) != len(lines):
            raise self.not_applied(refs[0], [], f"cannot be read back: {answer['complaints']}", HELD)
        filters, qdiscs, *entry = answer["shown"]
        return Reading(filters, qdiscs, flat(entry), at_gate)

    def _is_there(self, port: Port, source: Source) -> bool:
        try:
            self.tc(port, [], source)
        except AgentError:
            return False
        return True

    def entry(self, port: Port) -> Sequence[Mapping[str, Any]]:
        """The redirect that feeds a port, if there is one."""
        return flat(self.tc(port, show_entry(port))["shown"]) if port.entry is not None else ()

    def netem(self, ref: LinkRef) -> Mapping[str, Any] | None:
        """The kernel's own account of a link's netem now, or None if there is none."""
        source = self.source(ref)
        if source is None:
            return None
        try:
            return self.leaf(ref, source.minor)
        except AgentError as error:
            if error.kind != "gone":
                raise
            return None

    def leaf(self, ref: LinkRef, minor: int) -> Mapping[str, Any] | None:
        """The kernel's account of the netem of one of a link's classes. Refused as ``gone``: see `tc`."""
        port, source = self.known(ref)
        answer = self.tc(port, [qdisc.get(port.device, minor)], source)
        return readback.find_netem(answer["shown"][-1], minor) if answer["shown"] else None

    def counts(self) -> dict[LinkRef, readback.NetemCounters]:
        """The counters of every impaired link's netem, read port by port."""
        return {ref: counted for port in self if port.applied for ref, counted in self.counts_at(port).items()}

    def counts_at(self, port: Port) -> dict[LinkRef, readback.NetemCounters]:
        """The counters of the netem of every impaired link that ends at a port."""
        shown = self.tc(port, [qdisc.show(port.device)])["shown"]
        netems = {ref: readback.find_netem(shown[-1], port.sources[ref].minor) for ref in port.applied} if shown else {}
        return {ref: readback.counters(netem) for ref, netem in netems.items() if netem is not None}

    def untaken(self, port: Port) -> int:
        """Packets that a port's carried kernel has not taken yet. That kernel is not asked."""
        return int(port.channel.call("untaken", port=port.name))

    def waiting(self, port: Port) -> int:
        """Packets that wait in the queues of a port's bottlenecks."""
        if port.last is None:
            return 0
        shown = flat(self.tc(port, [qdisc.show(port.last)])["shown"])
        return sum(int(row["qlen"]) for row in shown if row.get("root"))

    def not_applied(
        self, ref: LinkRef, differences: Sequence[readback.Difference], *context: str
    ) -> ImpairmentNotAppliedError:
        """The error of a link that does not hold its impairment."""
        return LinkNotAppliedError(ref, self._backend.netem_engine, ". ".join([*map(str, differences), *context]))

    def errors(
        self, ref: LinkRef, differences: Sequence[readback.Difference], problems: Sequence[str]
    ) -> list[ImpairmentNotAppliedError]:
        """The errors of a link that was read back: for the kernel's differences, and for other problems."""
        wrong = [self.not_applied(ref, differences, HELD)] if differences else []
        if differences and (port := self.of(ref)) is not None:
            self.suspect(port)
        return [*wrong, LinkNotAppliedError(ref, self._backend.netem_engine, *problems)] if problems else wrong


def show_entry(port: Port) -> list[str]:
    """The tc line that shows a port's redirect, if there is one."""
    if port.entry is None:
        return []
    return [f"filter show dev {port.entry} ingress" if port.last is None else f"filter show dev {port.last} egress"]


def flat(shown: Iterable[Any]) -> list[Any]:
    """The objects in all of tc's answers."""
    return [item for array in shown for item in array]
