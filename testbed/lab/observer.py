"""Observe a lab while it runs: start and end captures and readings, and fetch their results."""

from __future__ import annotations

import base64
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed import units
from testbed.errors import AgentError, InvalidValueError, LabError
from testbed.lab import beyond
from testbed.lab.backend import Backend, Spot
from testbed.lab.channel import Channel
from testbed.lab.host import Host
from testbed.lab.impairer import Impairer
from testbed.lab.ports import Port, Ports
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.netem import readback
from testbed.observe import pcapng
from testbed.observe.capture import Capture, Packet, Place, packets
from testbed.observe.counters import Counters
from testbed.observe.observation import HostObservation, Observation, Sampling
from testbed.observe.packet import ip_of
from testbed.observe.passages import Passage, crossing
from testbed.observe.tcp_info import sockets
from testbed.observe.wire import Flow, flows_at
from testbed.spec.links import LinkRef, PortRef
from testbed.spec.words import unknown
from testbed.writing import write_whole

LIMIT_BYTES = 16 << 20
"""Bytes kept of a port's packets by default; the latest are kept."""
SNAP_BYTES = 256
"""Bytes kept of each packet by default: headers, and the beginning of a message."""
MOST_CPU = 0.02
"""Share of one core that reading the sockets of a host may take."""
_WHOLE = 0x40000


def spots_of_port(
    backend: Backend,
    agent: Channel,
    *,
    host: str,
    network: str,
    src: str | None,
    members: Sequence[str],
    end: Callable[[str], int],
    attached: bool,
) -> list[Spot]:
    """Where the packets of a port pass. ``members``: hosts on the network; ``end``: the ifindex of their switch ports.

    ``attached``: whether the port was made impairable.
    """
    name = str(PortRef(host, network))
    sides = agent.call("sides", port=name)
    sources = _sources(backend, src, network)
    impaired = attached and sides["after"] is not None
    if sides["before"] is not None:
        return _at_taps(name, host, sides, sources, "; packets from it pass it unimpaired")
    ours = {"ifindex": end(host)}
    if not impaired:
        place = Place(name=name, description=f"the host-side veth of {host}, which no netem impairs")
        return [Spot(place=place, interface=ours, addresses=sources)]
    after = Place(
        name=f"{name} after the impairment",
        description=f"the host-side veth of {host}: packets toward it have passed the netem, packets from it are "
        f"as it sent them",
    )
    spots = [Spot(place=after, interface=ours, addresses=sources)]
    others = [src] if src is not None else [other for other in members if other != host]
    for other in others:
        before = Place(
            name=f"{name} before the impairment, from {other}",
            side="before",
            description=f"the host-side veth of {other}: packets from it as it sent them, packets toward it after "
            f"its own impairment",
        )
        theirs = {"ifindex": end(other)}
        spots.append(Spot(place=before, interface=theirs, addresses=backend.hosts[host].source_addresses(network)))
    return spots


def _sources(backend: Backend, src: str | None, network: str) -> tuple[str, ...]:
    """The addresses of the packets to keep, if only one host's are wanted.

    Packets that a router forwards have other hosts' addresses, so all packets of its port are kept.
    """
    service = None if src is None else backend.topology.service_of(src)
    routed = service is not None and service.router
    return () if src is None or routed else backend.hosts[src].source_addresses(network)


def _at_taps(name: str, host: str, sides: Mapping[str, str], sources: tuple[str, ...], remark: str = "") -> list[Spot]:
    return [
        Spot(
            place=Place(
                name=f"{name} {side} the impairment",
                side=side,
                description=f"{sides[side]}, the tap on the {where} side of the carried kernel that has the netem for "
                f"packets toward {host}{remark}",
            ),
            interface={"device": sides[side]},
            addresses=sources,
        )
        for side, where in (("before", "bridge's"), ("after", "container's"))
    ]


def spots_within(
    backend: Backend, *, port: PortRef, src: str | None, sides: Mapping[str, str | None], interface: Mapping[str, Any]
) -> list[Spot]:
    """Where packets toward a host pass in its own network namespace; its own packets are not among them at the taps.

    ``interface``: the host's, on the port's network.
    """
    sources = _sources(backend, src, port.network)
    taps = {side: device for side, device in sides.items() if device is not None}
    if taps:
        return _at_taps(str(port), port.host, taps, sources)
    place = Place(name=str(port), description=f"{interface['name']}, the interface of {port.host}")
    return [Spot(place=place, interface={"ifindex": interface["ifindex"]}, addresses=sources)]


_TAKEN_WITHIN_S = 0.5
"""How long packets may wait for the port's kernel until a capture ends without them."""
_SHARED_QUEUE_S = 2.0
"""How long packets may wait in a bottleneck's queue until a capture ends without them."""


class PortCapture:
    """A port's packets, captured while the block runs.

    ::

        with lab.capture("client -> server") as capture:
            …
        assert not any(flow.client.retransmissions for flow in capture.flows("after"))
        capture.save("server.pcapng")
    """

    def __init__(
        self,
        backend: Backend,
        ports: Ports,
        impairer: Impairer,
        text: str,
        *,
        limit_bytes: int = LIMIT_BYTES,
        snap_bytes: int | None = None,
    ) -> None:
        """Nothing is started yet. Raises InvalidValueError for a port that does not exist."""
        if limit_bytes <= 0 or (snap_bytes is not None and not 0 < snap_bytes <= _WHOLE):
            raise InvalidValueError(
                f"capture({text!r}, limit_bytes={limit_bytes}, snap_bytes={snap_bytes}): both are numbers of bytes "
                f"above 0, and snap_bytes at most {_WHOLE}"
            )
        self.port, self._src = port_of(backend, text)
        self._link = _beyond(backend, text)
        self._end: beyond.FarEnd | None = None
        """What tells the packets of a link whose other end is beyond the stack."""
        self._backend, self._ports, self._impairer = backend, ports, impairer
        self._text = text
        self._limit_bytes = limit_bytes
        self._snap_bytes = snap_bytes or _WHOLE
        self._id = secrets.token_hex(4)
        self._spots: list[Spot] = []
        self._ended: Mapping[str, Any] | None = None
        self._channel: Channel | None = None
        self._capture: Capture | None = None

    # --- begin and end ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to capture; once it returns, no packet is missed."""
        if self._link is not None:
            self._end = self._far_end(self._link)
        self._spots = self._backend.spots(self.port.host, self.port.network, self._src)
        if self._link is not None and self._backend.netem_engine == "host":
            # What comes from beyond passes no other port.
            self._spots = [spot for spot in self._spots if spot.place.side == "after"]
        if self._link is not None and self._link.beyond == "dst":
            self._spots = list(map(_outward, self._spots))
        self._channel = self._backend.capture_agent(self.port.host)
        self._channel.call(
            "capture",
            name=self._id,
            snap_bytes=self._snap_bytes,
            limit_bytes=self._limit_bytes // len(self._spots),
            interfaces=[{**spot.interface, "addresses": spot.addresses} for spot in self._spots],
        )

    def _far_end(self, link: LinkRef) -> beyond.FarEnd:
        def packed(*names: str) -> frozenset[bytes]:
            hosts = [self._backend.hosts[name] for name in names]
            known = [address for host in hosts for address in (*host.addresses(), *host.source_addresses(link.network))]
            return frozenset(ip_address(address).packed for address in known)

        own = self._backend.own_addresses()
        return beyond.FarEnd(
            far=link.far,
            host=packed(*link.hosts),
            members=packed(*self._backend.hosts),
            machine=frozenset(ip_address(address).packed for address in own),
            machine_is_ours=self._backend.machine_is_ours,
        )

    def end(self, *, at_once: bool = False) -> None:
        """End the capture; its packets stay at the agent until they are fetched.

        Packets that still wait before the port's netem, or in it, would be missing behind it. So this waits until none
        need do so; ``at_once``: until the port's kernel has taken them, which is not asked.
        """
        if self._channel is not None and self._ended is None:
            port = self._ports.at(self.port.host, self.port.network)
            if port is not None:
                self._await_taken(port)
            if not at_once:
                self._await_passed(port)
            self._ended = self._channel.call("end", name=self._id)

    def _await_taken(self, port: Port) -> None:
        # Suppressed: hosts may go on sending, and an agent that has died is reported by others.
        with suppress(NotSeenError, AgentError):
            await_condition(
                lambda: self._ports.untaken(port), lambda packets: not packets, deadline_s=_TAKEN_WITHIN_S, every_s=0.01
            )

    def _await_passed(self, port: Port | None) -> None:
        end = self.port if self._link is None else self._link.receivers_port
        ours = {
            ref: impairment
            for ref, impairment in self._impairer.impairments().items()
            if ref.receivers_port == end and self._src in (None, ref.src)
        }
        shared = port is not None and port.last is not None
        if not ours and not shared:
            return
        waits = [(impairment.delay_s or 0.0) + 4 * (impairment.jitter_s or 0.0) for impairment in ours.values()]
        longest_s = max([*waits, *([_SHARED_QUEUE_S] if shared else [])])

        def queued() -> int:
            seen = [readback.counters(netem) for ref in ours if (netem := self._ports.netem(ref)) is not None]
            waiting = self._ports.waiting(port) if port is not None else 0
            return waiting + sum(netem.queued_packets for netem in seen)

        # Suppressed: a host that goes on sending keeps the queue filled; what came in before has passed by now.
        with suppress(NotSeenError):
            await_condition(queued, lambda packets: not packets, deadline_s=longest_s + 0.2, every_s=0.01)

    def drop(self) -> None:
        """End it and forget the packets."""
        if self._channel is not None and self._capture is None:
            self._channel.call("drop", name=self._id)
            self._channel = None

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.end()
        if kind is None:
            _ = self.capture  # while the lab is up

    # --- what was captured -----------------------------------------------------------------------

    @property
    def capture(self) -> Capture:
        """The captured packets. Raises LabError if the capture has not ended."""
        if self._capture is None:
            if self._channel is None or self._ended is None:
                raise LabError(f"capture of {self.port}: its packets can be read only once it has ended")
            channel, ended = self._channel, self._ended
            offset = min(ended["realtime_minus_monotonic_ns"])
            records = fetch(lambda at: channel.call("fetch", name=self._id, offset=at))
            channel.call("drop", name=self._id)
            self._capture = Capture(
                places=tuple(
                    replace(spot.place, lost=interface["lost"], overwritten=interface["overwritten"])
                    for spot, interface in zip(self._spots, ended["interfaces"], strict=True)
                ),
                packets=tuple(
                    packet
                    for packet in packets(records, realtime_minus_monotonic_ns=offset)
                    if self._end is None or self._end.has(ip_of(packet.data))
                ),
                realtime_minus_monotonic_ns=offset,
                ended_ns=ended["ended_ns"],
                comment=f"{self._text}: packets at the port of {self.port.host} on {self.port.network}",
            )
        return self._capture

    @property
    def packets(self) -> tuple[Packet, ...]:
        """The packets of both sides, in order of time."""
        return self.capture.packets

    def flows(self, side: str = "before", *, partial: bool = False) -> list[Flow]:
        """The TCP connections, as seen ``before`` the port's impairment or ``after`` it; see `Observation.flows`."""
        return flows_at(self.capture, side, partial=partial)

    def passages(self) -> list[Passage]:
        """The fate of each packet toward the host between the two sides; see `Observation.passages`.

        Of a link that ends beyond the stack, of each packet that the host sends there.
        """
        if self._link is not None and self._backend.netem_engine == "host":
            raise LabError(
                f"capture {self._text!r}: what is beyond the stack reaches a netem of the machine's own kernel by no "
                f"port where it could be captured before: use --netem carried"
            )
        outward = self._link is not None and self._link.beyond == "dst"
        own = self._backend.hosts[self.port.host].addresses(self.port.network)
        return crossing(self.capture, own, outward=outward)

    def save(self, path: str | Path, *, below: Path | None = None) -> Path:
        """Write a pcapng file, which Wireshark opens; its folder is made if needed.

        The file must not be a symbolic link; nor may a folder between ``below`` and it, if given. Raises OSError.
        """
        path = Path(path)
        write_whole(path, pcapng.write(self.capture), below=below or path.parent)
        return path


def port_of(backend: Backend, text: str) -> tuple[PortRef, str | None]:
    """The port and, for a link, the source of ``"server"``, ``"server on lan"`` or ``"client -> server"``.

    Raises InvalidValueError.
    """
    if "->" in text:
        refs = backend.topology.links(text)
        if len(refs) > 1:
            raise InvalidValueError(
                f'capture {text!r}: one port at a time; "{refs[0]}" has the packets of both directions at that of '
                f"{refs[0].dst}"
            )
        if refs[0].beyond:
            return PortRef(refs[0].hosts[0], refs[0].network), None
        return refs[0].receivers_port, refs[0].src
    host, _, network = (part.strip() for part in text.replace("@", " on ").partition(" on "))
    if host not in backend.hosts:
        raise InvalidValueError(f"capture {text!r}: host {host!r}: {unknown(host, backend.hosts)}")
    service = backend.topology.service_of(host)
    networks = service.networks if service else ()
    if network and network not in networks:
        raise InvalidValueError(f"capture {text!r}: network {network!r}: {unknown(network, networks)}")
    if not network and len(networks) != 1:
        among = ", ".join(networks) or "none"
        raise InvalidValueError(f'capture {text!r}: of which network? Write "{host} on NETWORK"; it is on: {among}')
    return PortRef(host, network or networks[0]), None


def _beyond(backend: Backend, text: str) -> LinkRef | None:
    """The link of this name, if one of its ends is beyond the stack."""
    return next((ref for ref in backend.topology.links(text) if ref.beyond), None) if "->" in text else None


def _outward(spot: Spot) -> Spot:
    """A capture point as packets from the host meet it: those toward it come from the other side."""
    sides = {"before": "after", "after": "before"}
    side, named = sides[spot.place.side], f" {spot.place.side} the impairment"
    name = spot.place.name.replace(named, f" {side} the impairment")
    return replace(spot, place=replace(spot.place, side=side, name=name)) if name != spot.place.name else spot


def fetch(piece: Callable[[int], Mapping[str, Any]]) -> bytes:
    """All pieces of an answer that an agent gives in pieces."""
    whole = []
    offset: int | None = 0
    while offset is not None:
        answer = piece(offset)
        whole.append(zlib.decompress(base64.b64decode(answer["data"])))
        offset = answer["next"]
    return b"".join(whole)


class Observer:
    """Observes a lab while it runs."""

    def __init__(self, ports: Ports, impairer: Impairer, backend: Backend) -> None:
        self._ports = ports
        self._impairer = impairer
        self._backend = backend

    def capture(self, text: str, *, limit_bytes: int = LIMIT_BYTES, snap_bytes: int | None = None) -> PortCapture:
        """See `Lab.capture`."""
        return PortCapture(
            self._backend, self._ports, self._impairer, text, limit_bytes=limit_bytes, snap_bytes=snap_bytes
        )

    @contextmanager
    def observe(
        self,
        *,
        hosts: Iterable[Host],
        captures: Iterable[str] | None,
        snap_bytes: int | None,
        limit_bytes: int,
        every: str,
        keep: Callable[[Observation], None] = lambda _seen: None,
    ) -> Iterator[Observation]:
        """Observe while the block runs; see `Lab.observe`. ``keep`` is given what was seen, once it is complete."""
        every_s = units.parse_time(every, name="every")
        if every_s <= 0:
            raise InvalidValueError(f"every={every!r}: must be above 0")
        if captures is None:
            refs = (*self._ports.impaired, *self._ports.cut)
            captures = dict.fromkeys(f"{ref.receivers_port.host} on {ref.network}" for ref in refs)
        ports = [self.capture(text, snap_bytes=snap_bytes, limit_bytes=limit_bytes) for text in captures]
        seen = Observation()
        with ExitStack() as stack:
            stack.callback(keep, seen)
            for port in ports:
                port.begin()
                stack.callback(_finish_port, port, seen)
            for host in hosts:
                channel = host.inside()
                before = channel.call("counters")
                clocks = channel.call("watch_tcp", every_s=every_s, most_cpu=MOST_CPU)
                seen.began_ns = seen.began_ns or clocks["monotonic_ns"]
                seen.realtime_minus_monotonic_ns = clocks["realtime_ns"] - clocks["monotonic_ns"]
                stack.callback(_finish_host, host, host.addresses(), channel, before, seen)
            yield seen


def _finish_port(capture: PortCapture, seen: Observation) -> None:
    try:
        capture.end()
        seen.captures[capture.port] = capture.capture
    except AgentError as error:
        seen.missing[str(capture.port)] = str(error)


def _finish_host(
    host: Host, addresses: tuple[str, ...], channel: Channel, before: Mapping[str, Any], seen: Observation
) -> None:
    name = host.name
    try:
        if host.inside() is not channel:
            seen.missing[name] = f"`{name}` was started again meanwhile: its kernel counts anew"
            return
        answer = channel.call("end_watch_tcp")
        counters = Counters.between(before, channel.call("counters"))
        records = fetch(lambda offset: channel.call("fetch_tcp", offset=offset))
    except (AgentError, ValueError) as error:
        seen.missing[name] = str(error)
        return
    seen.ended_ns = max(seen.ended_ns, answer["monotonic_ns"])
    seen.hosts[name] = HostObservation(
        name=name,
        addresses=addresses,
        counters=counters,
        sockets=tuple(sockets(records)),
        sampling=Sampling(
            samples=answer["samples"], ran_s=answer["ran_s"], cpu_s=answer["cpu_s"], left_out=answer["left_out"]
        ),
    )
