"""What packets say: headers, TCP flows and what happened in them, and what became of each packet on its way. Pure.

Everything is said of one place at a time: a segment that was dropped behind that place was seen there, and the one that
repaired it too.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from testbed.errors import InvalidValueError, LabError
from testbed.observe.capture import Capture, Packet
from testbed.observe.tcp_info import Endpoint
from testbed.spec.topology import MULTICAST_LISTENERS, NEIGHBOUR_DISCOVERY

_IPV4, _IPV6, _ARP = 0x0800, 0x86DD, 0x0806
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_OF_EVERY_LINK = (*NEIGHBOUR_DISCOVERY, *MULTICAST_LISTENERS)
_HOP_BY_HOP = 0
_FIN, _SYN, _RST, _PSH, _ACK, _URG, _ECE, _CWR = 1, 2, 4, 8, 16, 32, 64, 128
_FLAG_NAMES = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_MOST_HEADERS_BYTES = 14 + 60 + 60  # Ethernet, IPv4 and TCP with all options
_HALF = 1 << 31
_WHOLE = 1 << 32


# --- one packet ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a packet: its header, or at the end what it carries."""

    name: str
    """Ethernet, IPv4, IPv6, TCP, UDP or payload."""
    data: bytes
    """Its bytes alone, without those of the layers in it."""
    offset: int
    """Where these begin in the packet."""
    fields: tuple[tuple[str, str], ...] = ()
    """Names as in the RFC, and values as one reads them."""


def layers(packet: Packet | bytes) -> tuple[Layer, ...]:
    """A packet taken apart: its layers' bytes, one after the other, are the packet again.

    Ethernet (IEEE 802.3), IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP (RFC 768); what is none of these, or
    was cut off, is payload. Padding of short frames is a layer of that name.
    """
    data = packet if isinstance(packet, bytes) else packet.data
    found: list[Layer] = []
    taken = 0
    end = len(data)

    def take(name: str, length: int, *fields: tuple[str, object]) -> None:
        nonlocal taken
        said = tuple((field_name, str(value)) for field_name, value in fields)
        found.append(Layer(name=name, data=data[taken : taken + length], offset=taken, fields=said))
        taken += length

    kind = None
    if len(data) >= 14:
        (kind,) = struct.unpack_from(">H", data, 12)
        take("Ethernet", 14, ("destination", _mac(data[:6])), ("source", _mac(data[6:12])), ("type", f"0x{kind:04x}"))
    ip = _ip(data)
    if ip is not None:
        end = min(end, 14 + ip.total_bytes)
        name = "IPv4" if ip.version == 4 else "IPv6"
        take(name, ip.header_bytes, *_ip_fields(data, ip))
        at = 14 + ip.header_bytes
        if ip.first_fragment and ip.protocol == _TCP and end - at >= 20 and end - at >= (data[at + 12] >> 4) * 4 >= 20:
            take("TCP", (data[at + 12] >> 4) * 4, *_tcp_fields(data, at))
        elif ip.first_fragment and ip.protocol == _UDP and end - at >= 8:
            source, destination, length, checksum = struct.unpack_from(">HHHH", data, at)
            take(
                "UDP", 8, ("source port", source), ("destination port", destination), ("length", length),
                ("checksum", f"0x{checksum:04x}"),
            )  # fmt: skip
    if taken < end:
        take("payload", end - taken)
    if taken < len(data):
        take("padding", len(data) - taken)
    return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ip:
    version: int
    header_bytes: int
    total_bytes: int
    protocol: int
    src: bytes
    dst: bytes
    identification: int
    first_fragment: bool


def _ip(data: bytes) -> _Ip | None:
    """The IP header of an Ethernet frame, or None if it has none that is whole."""
    if len(data) < 34:
        return None
    (kind,) = struct.unpack_from(">H", data, 12)
    if kind == _IPV4 and data[14] >> 4 == 4:
        header = (data[14] & 15) * 4
        total, identification, fragment = struct.unpack_from(">HHH", data, 16)
        if header < 20 or len(data) < 14 + header or total < header:
            return None
        return _Ip(
            version=4, header_bytes=header, total_bytes=total, protocol=data[23], src=data[26:30], dst=data[30:34],
            identification=identification, first_fragment=not fragment & 0x1FFF,
        )  # fmt: skip
    if kind == _IPV6 and len(data) >= 54 and data[14] >> 4 == 6:
        (length,) = struct.unpack_from(">H", data, 18)
        return _Ip(
            version=6, header_bytes=40, total_bytes=40 + length, protocol=data[20], src=data[22:38], dst=data[38:54],
            identification=0, first_fragment=True,
        )  # fmt: skip
    return None


def _ip_fields(data: bytes, ip: _Ip) -> list[tuple[str, object]]:
    src, dst = ipaddress.ip_address(ip.src), ipaddress.ip_address(ip.dst)
    if ip.version == 6:
        first, length, following, hops = struct.unpack_from(">IHBB", data, 14)
        return [
            ("version", 6), ("traffic class", f"0x{first >> 20 & 255:02x}"), ("flow label", f"0x{first & 0xFFFFF:05x}"),
            ("payload length", length), ("next header", following), ("hop limit", hops),
            ("source", src), ("destination", dst),
        ]  # fmt: skip
    _, service, total, identification, fragment, ttl, protocol, checksum = struct.unpack_from(">BBHHHBBH", data, 14)
    return [
        ("version", 4), ("header length", ip.header_bytes), ("type of service", f"0x{service:02x}"),
        ("total length", total), ("identification", identification), ("don't fragment", fragment >> 14 & 1),
        ("more fragments", fragment >> 13 & 1), ("fragment offset", (fragment & 0x1FFF) * 8), ("time to live", ttl),
        ("protocol", protocol), ("header checksum", f"0x{checksum:04x}"), ("source", src), ("destination", dst),
        *([("options", data[34 : 14 + ip.header_bytes].hex())] if ip.header_bytes > 20 else []),
    ]  # fmt: skip


def _tcp_fields(data: bytes, at: int) -> list[tuple[str, object]]:
    sport, dport, seq, ack, offset, flags, window, checksum, urgent = struct.unpack_from(">HHIIBBHHH", data, at)
    header = (offset >> 4) * 4
    options = _tcp_options(data[at + 20 : at + header])
    return [
        ("source port", sport), ("destination port", dport), ("sequence number", seq),
        ("acknowledgment number", ack), ("data offset", header), ("flags", ", ".join(_names(flags)) or "none"),
        ("window", window), ("checksum", f"0x{checksum:04x}"), ("urgent pointer", urgent),
        *((f"option {name}", value) for name, value in options.items()),
    ]  # fmt: skip


def _mac(data: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in data)


def _names(flags: int) -> list[str]:
    return [name for number, name in enumerate(_FLAG_NAMES) if flags >> number & 1]


def _tcp_options(data: bytes) -> dict[str, object]:
    """Maximum segment size, window scale, SACK permitted, SACK blocks, time stamps (RFC 9293, 7323, 2018)."""
    found: dict[str, object] = {}
    at = 0
    while at < len(data) and data[at]:
        if data[at] == 1:
            at += 1
            continue
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2 or at + length > len(data):
            break
        value = data[at + 2 : at + length]
        match data[at], len(value):
            case 2, 2:
                found["maximum segment size"] = int.from_bytes(value, "big")
            case 3, 1:
                found["window scale"] = value[0]
            case 4, 0:
                found["SACK permitted"] = True
            case 5, size if size % 8 == 0:
                edges = struct.unpack(f">{size // 4}I", value)
                found["SACK"] = tuple(zip(edges[::2], edges[1::2], strict=True))
            case 8, 8:
                found["timestamps"] = struct.unpack(">II", value)
            case kind, _:
                found[f"{kind}"] = value.hex()
        at += length
    return found


# --- TCP -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One TCP segment as it was seen at one place."""

    time_ns: int
    """CLOCK_MONOTONIC."""
    packet: Packet
    src: Endpoint
    dst: Endpoint
    seq: int
    """As on the wire; `Flow.position` counts from the flow's begin."""
    ack: int
    """Of no meaning without the flag ACK."""
    flags: int
    window: int
    """As on the wire, not scaled."""
    payload_bytes: int
    payload: bytes
    """As much of it as was kept."""
    identification: int
    """Of the IPv4 packet: a copy that the network made has its original's."""
    sack_blocks: tuple[tuple[int, int], ...] = ()
    """Sequence numbers, begin and end, that the sender of this segment reports to have (RFC 2018)."""
    timestamp: int | None = None
    """TSval (RFC 7323)."""
    mss: int | None = None
    window_scale: int | None = None

    @property
    def syn(self) -> bool:
        """Whether it opens a connection."""
        return bool(self.flags & _SYN)

    @property
    def fin(self) -> bool:
        """Whether it closes its direction."""
        return bool(self.flags & _FIN)

    @property
    def rst(self) -> bool:
        """Whether it resets the connection."""
        return bool(self.flags & _RST)

    @property
    def acks(self) -> bool:
        """Whether its acknowledgment number counts."""
        return bool(self.flags & _ACK)

    @property
    def length(self) -> int:
        """How many sequence numbers it takes: its payload, and one each for SYN and FIN."""
        return self.payload_bytes + self.syn + self.fin

    def __str__(self) -> str:
        names = ",".join(_names(self.flags))
        return (
            f"{self.src} > {self.dst} [{names}] seq {self.seq} ack {self.ack} win {self.window} {self.payload_bytes} B"
        )


def segment(packet: Packet) -> Segment | None:
    """The TCP segment in a packet, or None if there is none; options that were cut off are left out."""
    data = packet.data
    ip = _ip(data)
    if ip is None or ip.protocol != _TCP or not ip.first_fragment:
        return None
    at = 14 + ip.header_bytes
    if len(data) < at + 20:
        return None
    sport, dport, seq, ack, offset, flags, window, _, _ = struct.unpack_from(">HHIIBBHHH", data, at)
    header = (offset >> 4) * 4
    payload_bytes = ip.total_bytes - ip.header_bytes - header
    if header < 20 or payload_bytes < 0:
        return None
    options = _tcp_options(data[at + 20 : at + header])
    sack, stamps = options.get("SACK", ()), options.get("timestamps")
    mss, scale = options.get("maximum segment size"), options.get("window scale")
    return Segment(
        time_ns=packet.time_ns, packet=packet,
        src=Endpoint(address=str(ipaddress.ip_address(ip.src)), port=sport),
        dst=Endpoint(address=str(ipaddress.ip_address(ip.dst)), port=dport),
        seq=seq, ack=ack, flags=flags, window=window, payload_bytes=payload_bytes,
        payload=data[at + header : at + header + payload_bytes], identification=ip.identification,
        sack_blocks=sack if isinstance(sack, tuple) else (),
        timestamp=stamps[0] if isinstance(stamps, tuple) else None,
        mss=mss if isinstance(mss, int) else None, window_scale=scale if isinstance(scale, int) else None,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Handshake:
    """How a connection began (RFC 9293 section 3.5), at one place; a time is None if that segment was not seen."""

    syn_ns: int | None
    """Of the first SYN."""
    syn_ack_ns: int | None
    """Of the first SYN-ACK."""
    ack_ns: int | None
    """Of the first segment that acknowledges it."""
    syns: int
    """How many SYNs there were: more than one if the first was lost, or its answer."""
    syn_acks: int

    @property
    def complete(self) -> bool:
        """Whether all three were seen."""
        return None not in (self.syn_ns, self.syn_ack_ns, self.ack_ns)

    @property
    def round_trip_s(self) -> float | None:
        """From the first SYN to the acknowledgment of its answer: one round trip, wherever one stands on the path."""
        return None if self.syn_ns is None or self.ack_ns is None else (self.ack_ns - self.syn_ns) / 1e9


@dataclass(kw_only=True)
class Direction:
    """What one side of a connection sent, in the order of the wire."""

    src: Endpoint
    segments: list[Segment] = field(default_factory=list)
    originals: list[Segment] = field(default_factory=list)
    """Segments that brought something new."""
    retransmissions: list[Segment] = field(default_factory=list)
    """Segments that take sequence numbers which had all been seen here before, and are no copies; SYN and FIN too."""
    copies: list[Segment] = field(default_factory=list)
    """Segments that the network doubled: IPv4 identification, numbers and time stamp are those of an earlier one.

    Where there is no identification (IPv6, and the SYN-ACKs of Linux) copies count as retransmissions: follow the
    packets by `passages` instead.
    """
    out_of_order: list[Segment] = field(default_factory=list)
    """Of the originals, those that came after a later one: on the way here they were overtaken, or repaired."""
    duplicate_acks: list[Segment] = field(default_factory=list)
    """As RFC 5681 section 2 defines them: same number and window, no payload, while data is outstanding."""
    with_sack: list[Segment] = field(default_factory=list)
    """Segments that report what arrived beyond a gap (RFC 2018)."""
    zero_windows: list[Segment] = field(default_factory=list)
    """Segments that allow nothing more to be sent."""
    window_updates: list[Segment] = field(default_factory=list)
    """Segments with no payload that acknowledge nothing new and allow more than the one before."""
    window_probes: list[Segment] = field(default_factory=list)
    """Segments without payload or with a byte of it, one number back, while the other side's window is zero."""
    resets: list[Segment] = field(default_factory=list)
    fins: list[Segment] = field(default_factory=list)
    initial_seq: int | None = None
    """Of its SYN; None if that was not seen."""
    _base: int | None = None
    _edge: int = 0
    _seen: list[tuple[int, int]] = field(default_factory=list)
    _keys: set[tuple[int, int, int, int | None]] = field(default_factory=set)
    _acked: int | None = None
    _window: int | None = None

    def position(self, seq: int) -> int:
        """A sequence number as the count of payload bytes before it: 0 is the first byte that this side sends.

        Without a SYN it counts from the first segment seen. Wrapping around is allowed for (RFC 9293 section 3.4).
        """
        base = self._base if self._base is not None else seq
        near = self._edge
        offset = (seq - base) % _WHOLE
        return offset + _WHOLE * round((near - offset) / _WHOLE)

    @property
    def wire_order(self) -> list[tuple[int, int]]:
        """Position and length of each payload, as they passed."""
        return [(self.position(each.seq), each.payload_bytes) for each in self.segments if each.payload_bytes]

    @property
    def payload_bytes(self) -> int:
        """How many different bytes of payload were seen."""
        return sum(end - begin for begin, end in self._payload_ranges())

    def _payload_ranges(self) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for begin, length in self.wire_order:
            _cover(ranges, begin, begin + length)
        return ranges

    def payload(self) -> bytes:
        """What was sent, put in order, up to the first gap on the wire. Of bytes that came twice the first count.

        Raises LabError if bytes that passed here were not kept.
        """
        pieces: dict[int, bytes] = {}
        for each in self.segments:
            if each.payload:
                begin = self.position(each.seq)
                if len(pieces.get(begin, b"")) < len(each.payload):
                    pieces[begin] = each.payload
        whole = bytearray()
        for begin, piece in sorted(pieces.items()):
            if begin > len(whole):
                break
            whole += piece[max(len(whole) - begin, 0) :]
        passed = next((end for begin, end in self._payload_ranges() if begin <= 0 < end), 0)
        if len(whole) < passed:
            longest = max(len(each.packet.data) for each in self.segments)
            raise LabError(
                f"payload from {self.src}: {passed} bytes passed, and byte {len(whole)} was not kept: the capture kept "
                f"at most {longest} bytes of each packet; capture or observe with snap_bytes=None"
            )
        return bytes(whole)

    def _note(self, each: Segment, other: Direction) -> None:
        """Take a segment in."""
        self.segments.append(each)
        if each.syn and self.initial_seq is None:
            self.initial_seq = each.seq
            self._base, self._edge = (each.seq + 1) % _WHOLE, -1
        elif self._base is None:
            self._base = each.seq
        if each.rst:
            self.resets.append(each)
        if each.fin:
            self.fins.append(each)
        if each.sack_blocks:
            self.with_sack.append(each)
        self._note_sequence(each, other)
        if each.acks and not each.rst:
            self._note_window(each, other)

    def _note_sequence(self, each: Segment, other: Direction) -> None:
        begin = self.position(each.seq)
        probe = other._window == 0 and each.payload_bytes <= 1 and not each.flags & (_SYN | _FIN | _RST)
        if probe and begin == self._edge - 1 + (each.payload_bytes and begin == self._edge):
            self.window_probes.append(each)
            return
        if not each.length:
            return
        key = (each.identification, each.seq, each.length, each.timestamp)
        end = begin + each.length
        if each.identification and key in self._keys:
            self.copies.append(each)
        elif _covers(self._seen, begin, end):
            self.retransmissions.append(each)
        else:
            self.originals.append(each)
            if begin < self._edge:
                self.out_of_order.append(each)
        self._keys.add(key)
        _cover(self._seen, begin, end)
        self._edge = max(self._edge, end)

    def _note_window(self, each: Segment, other: Direction) -> None:
        acked = other.position(each.ack)
        if each.window == 0:
            self.zero_windows.append(each)
        if self._acked == acked and not each.length:
            outstanding = other._edge > acked
            if each.window == self._window and outstanding:
                self.duplicate_acks.append(each)
            elif self._window is not None and each.window > self._window:
                self.window_updates.append(each)
        if self._acked is None or acked >= self._acked:
            self._acked, self._window = acked, each.window


@dataclass(kw_only=True)
class Flow:
    """One TCP connection as it was seen at one place."""

    client: Direction
    """The side that opened it; of a connection that was open before, the one that was seen sending first."""
    server: Direction

    @property
    def segments(self) -> list[Segment]:
        """Of both directions, in the order of time."""
        return sorted([*self.client.segments, *self.server.segments], key=lambda each: each.time_ns)

    @property
    def handshake(self) -> Handshake:
        """How it began."""
        syns = [each for each in self.client.segments if each.syn]
        answers = [each for each in self.server.segments if each.syn and each.acks]
        done = None
        if answers:
            number = (answers[0].seq + 1) % _WHOLE
            done = next(
                (
                    each.time_ns
                    for each in self.client.segments
                    if each.acks and not each.syn and (each.ack - number) % _WHOLE < _HALF
                ),
                None,
            )
        return Handshake(
            syn_ns=syns[0].time_ns if syns else None, syn_ack_ns=answers[0].time_ns if answers else None, ack_ns=done,
            syns=len(syns), syn_acks=len(answers),
        )  # fmt: skip

    def sent_by(self, address: str) -> Direction:
        """What the side with this address sent. Raises ValueError if neither has it."""
        for each in (self.client, self.server):
            if each.src.address == address:
                return each
        raise ValueError(f"{address} is no side of {self}")

    def __str__(self) -> str:
        return f"{self.client.src} -> {self.server.src}"


def flows(packets: Iterable[Packet]) -> list[Flow]:
    """The TCP connections among packets of one place, in the order in which they began.

    A SYN with another sequence number begins a new one between the same two ports. Raises LabError for a packet whose
    headers were cut off.
    """
    found: list[Flow] = []
    latest: dict[frozenset[Endpoint], Flow] = {}
    for packet in packets:
        each = segment(packet)
        if not packet.whole:
            _refuse_cut_headers(packet)
        if each is None:
            continue
        key = frozenset((each.src, each.dst))
        flow = latest.get(key)
        opens = each.syn and not each.acks
        if flow is None or (opens and _is_new(flow, each)):
            opener, other = (each.dst, each.src) if each.syn and each.acks else (each.src, each.dst)
            flow = latest[key] = Flow(client=Direction(src=opener), server=Direction(src=other))
            found.append(flow)
        ours, theirs = (flow.client, flow.server) if each.src == flow.client.src else (flow.server, flow.client)
        ours._note(each, theirs)
    return found


def flows_at(capture: Capture, side: str, *, partial: bool = False) -> list[Flow]:
    """The TCP connections of a capture, as seen ``before`` its port's impairment or ``after`` it.

    Where a port has no impairment there is one place alone, which counts as both. Raises LabError if packets are
    missing, of which the counts of a flow would say nothing, unless ``partial`` allows it.
    """
    if side not in ("before", "after"):
        raise InvalidValueError(f"side {side!r}: must be 'before' or 'after'")
    if not partial:
        _refuse_missing(capture, "or take what there is with partial=True")
    there = any(place.side == side for place in capture.places)
    return flows(capture.at(side if there else "after"))


def _refuse_missing(capture: Capture, *advice: str) -> None:
    """Raise LabError if packets that passed while it ran are not in a capture."""
    if capture.missing:
        what = ", ".join(("keep more with limit_bytes=, or less of each packet with snap_bytes=", *advice))
        raise LabError(f"the capture has not all packets: {capture.missing}; {what}")


def _refuse_cut_headers(packet: Packet) -> None:
    """Raise LabError if a packet was cut off within its IP or TCP header: it cannot be told whose it is."""
    data = packet.data
    kind = struct.unpack_from(">H", data, 12)[0] if len(data) >= 14 else None
    ip = _ip(data)
    needed = len(data)
    if ip is not None and ip.protocol == _TCP and ip.first_fragment:
        at = 14 + ip.header_bytes
        needed = at + ((data[at + 12] >> 4) * 4 if len(data) > at + 12 else 20)
    elif ip is None and kind in (None, _IPV4, _IPV6):
        needed = len(data) + 1
    if len(data) < min(needed, packet.length_bytes):
        raise LabError(
            f"a packet of {packet.length_bytes} bytes was kept to its byte {len(data)}, within its headers; capture "
            f"with snap_bytes={_MOST_HEADERS_BYTES} or more, or None"
        )


def _is_new(flow: Flow, syn: Segment) -> bool:
    earlier = flow.client if syn.src == flow.client.src else flow.server
    return earlier.initial_seq != syn.seq


def _covers(ranges: Sequence[tuple[int, int]], begin: int, end: int) -> bool:
    """Whether one of the ranges holds all of this one; ranges are apart from each other and sorted."""
    return any(first <= begin and end <= last for first, last in reversed(ranges))


def _cover(ranges: list[tuple[int, int]], begin: int, end: int) -> None:
    """Add a range, joining those that it touches. New data mostly lies at the end: looked at from there."""
    at = len(ranges)
    while at and ranges[at - 1][1] >= begin:
        at -= 1
    last = at
    while last < len(ranges) and ranges[last][0] <= end:
        begin, end = min(begin, ranges[last][0]), max(end, ranges[last][1])
        last += 1
    ranges[at:last] = [(begin, end)]


# --- what became of packets ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Passage:
    """What became of one packet between two places."""

    before: Packet
    after: tuple[Packet, ...]
    """As it was seen again: once if all went well, not at all if it was lost, more often if it was doubled."""

    @property
    def lost(self) -> bool:
        """Whether it was not seen again: also one that was corrupted, or still waited when the capture ended."""
        return not self.after

    @property
    def delay_s(self) -> float | None:
        """How long it took (RFC 7679), by one clock; None if it was lost (RFC 7680)."""
        return (self.after[0].time_ns - self.before.time_ns) / 1e9 if self.after else None


def passages(before: Iterable[Packet], after: Iterable[Packet]) -> list[Passage]:
    """Follow each packet from one place to the other: those that entered, in order, and what became of them.

    A packet is known again by its IP packet without the checksums, which a kernel fills in as late as it can. Among
    equal ones (the same datagram sent twice with identification 0) the first one seen is the first one sent.
    """
    arrived: dict[bytes, deque[Packet]] = defaultdict(deque)
    for packet in after:
        arrived[_identity(packet)].append(packet)
    entered: dict[bytes, list[Packet]] = defaultdict(list)
    order: list[tuple[bytes, Packet]] = []
    for packet in before:
        identity = _identity(packet)
        entered[identity].append(packet)
        order.append((identity, packet))
    left = {identity: len(packets) for identity, packets in entered.items()}
    found = []
    for identity, packet in order:
        copies = arrived[identity]
        left[identity] -= 1
        # The last of equal packets takes all that is there, as doubled packets do; the others one each.
        count = len(copies) if not left[identity] else min(1, len(copies))
        found.append(Passage(before=packet, after=tuple(copies.popleft() for _ in range(count))))
    return found


def crossing(capture: Capture, toward: Iterable[str]) -> list[Passage]:
    """What became of each packet toward one of these addresses, between the two sides of a port's impairment.

    Raises LabError if packets are missing, which would count as lost, and if the port had no impairment when the
    capture began: then there are no two sides.
    """
    _refuse_missing(capture)
    if not {"before", "after"} <= {place.side for place in capture.places}:
        raise LabError(
            f"the capture has one place alone, {', '.join(place.name for place in capture.places) or 'none'}: its port "
            f"was not impaired when it began; impair first"
        )
    for packet in capture.packets:
        if not packet.whole:
            _refuse_cut_headers(packet)
    wanted = {ipaddress.ip_address(address).packed for address in toward}

    def chosen(packets: Iterable[Packet]) -> list[Packet]:
        return [packet for packet in packets if (ip := _ip(packet.data)) is not None and ip.dst in wanted]

    return passages(chosen(capture.at("before")), chosen(capture.at("after")))


def losses(
    capture: Capture,
    sources: Iterable[str],
    *,
    protocol: str = "",
    port: int = 0,
    longest_s: float = 0.0,
    since_ns: int = 0,
) -> tuple[int, list[int]] | None:
    """How many packets a link carried, and the numbers of those that were not seen behind its impairment.

    A link's packets are those from ``sources`` (IP or MAC addresses), of a ``protocol`` (tcp, udp, icmp) and with a
    ``port`` at either end if these are given; neighbour discovery and multicast listeners' reports are not among them.
    They are counted from 1, as `drop_packets` counts them, and from ``since_ns`` on (CLOCK_MONOTONIC).
    What may still have been under way when the capture ended, ``longest_s`` after it came, is left out. None if the
    capture has not all of them, or has one side of the impairment alone.
    """
    if capture.missing or not any(place.side == "before" for place in capture.places):
        return None
    wanted = {
        bytes.fromhex(each.replace(":", "")) if _MAC.fullmatch(each) else ipaddress.ip_address(each).packed
        for each in sources
    }

    def chosen(side: str) -> list[Packet]:
        return [packet for packet in capture.at(side) if _is_of_link(packet, wanted, protocol, port)]

    last_ns = max((packet.time_ns for packet in capture.packets), default=0)
    until_ns = max(last_ns, capture.ended_ns or 0) - round(longest_s * 1e9)
    passed = [
        each for each in passages(chosen("before"), chosen("after")) if since_ns <= each.before.time_ns <= until_ns
    ]
    return len(passed), [number for number, each in enumerate(passed, start=1) if each.lost]


def _is_of_link(packet: Packet, sources: set[bytes], protocol: str, port: int) -> bool:
    ip = _ip(packet.data)
    if ip is None or (ip.src not in sources and packet.data[6:12] not in sources):
        return False
    if ip.version == 6 and _icmpv6_kind(packet.data, ip) in _OF_EVERY_LINK:
        return False
    at = 14 + ip.header_bytes
    if protocol and ip.protocol not in {"tcp": (_TCP,), "udp": (_UDP,)}.get(protocol, (_ICMP, _ICMPV6)):
        return False
    if not port or not ip.first_fragment:  # a later fragment has no port, and goes with those that may have it
        return True
    ends = packet.data[at : at + 4]
    return port in (int.from_bytes(ends[:2]), int.from_bytes(ends[2:]))


def _icmpv6_kind(data: bytes, ip: _Ip) -> int | None:
    """The type of an ICMPv6 message, also behind hop-by-hop options, which listeners' reports have (RFC 8200, 4.3)."""
    protocol, at = ip.protocol, 14 + ip.header_bytes
    if protocol == _HOP_BY_HOP and len(data) >= at + 2:
        protocol, at = data[at], at + 8 * (data[at + 1] + 1)
    return data[at] if protocol == _ICMPV6 and at < len(data) else None


def _identity(packet: Packet) -> bytes:
    data = packet.data
    ip = _ip(data)
    if ip is None:
        return data[14:]
    whole = bytearray(data[14 : 14 + ip.total_bytes])
    if ip.version == 4:
        whole[10:12] = b"\0\0"
    at = ip.header_bytes + {_TCP: 16, _UDP: 6, _ICMP: 2}.get(ip.protocol, len(whole))
    if ip.first_fragment and at + 2 <= len(whole):
        whole[at : at + 2] = b"\0\0"
    return bytes(whole)
