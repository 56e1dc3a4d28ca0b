"""TCP flows and their events, from packets. Pure.

Each statement concerns one capture point. A segment that was dropped behind that point was seen there, and so was its
retransmission.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from testbed.errors import InvalidValueError, LabError
from testbed.observe.capture import Capture, Packet
from testbed.observe.packet import TCP, flag_names, ip_of, refuse_cut_headers, refuse_missing, tcp_options
from testbed.observe.tcp_info import Endpoint

_FIN, _SYN, _RST, _PSH, _ACK, _URG, _ECE, _CWR = 1, 2, 4, 8, 16, 32, 64, 128
_HALF = 1 << 31
_WHOLE = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One TCP segment at one capture point."""

    time_ns: int
    """CLOCK_MONOTONIC."""
    packet: Packet
    src: Endpoint
    dst: Endpoint
    seq: int
    """As on the wire; `Flow.position` counts from the flow's begin."""
    ack: int
    """Meaningless without the flag ACK."""
    flags: int
    window: int
    """As on the wire, not scaled."""
    payload_bytes: int
    payload: bytes
    """As much of it as was kept."""
    identification: int
    """Of the IPv4 packet; a duplicate made by the network has the same."""
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
        """Number of sequence numbers that it takes: its payload, and one each for SYN and FIN."""
        return self.payload_bytes + self.syn + self.fin

    def __str__(self) -> str:
        names = ",".join(flag_names(self.flags))
        return (
            f"{self.src} > {self.dst} [{names}] seq {self.seq} ack {self.ack} win {self.window} {self.payload_bytes} B"
        )


def segment(packet: Packet) -> Segment | None:
    """The TCP segment in a packet, or None if there is none; options that were cut off are left out."""
    data = packet.data
    ip = ip_of(data)
    if ip is None or ip.protocol != TCP or not ip.first_fragment:
        return None
    at = 14 + ip.header_bytes
    if len(data) < at + 20:
        return None
    sport, dport, seq, ack, offset, flags, window, _, _ = struct.unpack_from(">HHIIBBHHH", data, at)
    header = (offset >> 4) * 4
    payload_bytes = ip.total_bytes - ip.header_bytes - header
    if header < 20 or payload_bytes < 0:
        return None
    options = tcp_options(data[at + 20 : at + header])
    sack, stamps = options.get("SACK", ()), options.get("timestamps")
    mss, scale = options.get("maximum segment size"), options.get("window scale")
    return Segment(
        time_ns=packet.time_ns,
        packet=packet,
        src=Endpoint(address=str(ipaddress.ip_address(ip.src)), port=sport),
        dst=Endpoint(address=str(ipaddress.ip_address(ip.dst)), port=dport),
        seq=seq,
        ack=ack,
        flags=flags,
        window=window,
        payload_bytes=payload_bytes,
        payload=data[at + header : at + header + payload_bytes],
        identification=ip.identification,
        sack_blocks=sack if isinstance(sack, tuple) else (),
        timestamp=stamps[0] if isinstance(stamps, tuple) else None,
        mss=mss if isinstance(mss, int) else None,
        window_scale=scale if isinstance(scale, int) else None,
    )


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
    """Number of SYNs; more than one if the first or its answer was lost."""
    syn_acks: int

    @property
    def complete(self) -> bool:
        """Whether all three were seen."""
        return None not in (self.syn_ns, self.syn_ack_ns, self.ack_ns)

    @property
    def round_trip_s(self) -> float | None:
        """From the first SYN to the acknowledgment of its answer: one round trip, at any point of the path."""
        return None if self.syn_ns is None or self.ack_ns is None else (self.ack_ns - self.syn_ns) / 1e9


@dataclass(kw_only=True)
class Direction:
    """The segments of one side of a connection, in the order of the wire."""

    src: Endpoint
    segments: list[Segment] = field(default_factory=list)
    originals: list[Segment] = field(default_factory=list)
    """Segments with new data, SYN or FIN."""
    retransmissions: list[Segment] = field(default_factory=list)
    """Segments whose sequence numbers were all seen before, except copies; SYN and FIN included."""
    copies: list[Segment] = field(default_factory=list)
    """Duplicates made by the network: IPv4 identification, numbers and time stamp equal an earlier segment's.

    Where there is no identification (IPv6, and the SYN-ACKs of Linux) copies count as retransmissions: follow the
    packets by `passages` instead.
    """
    out_of_order: list[Segment] = field(default_factory=list)
    """Originals that came after a later one: they were reordered, or retransmitted, before this point."""
    duplicate_acks: list[Segment] = field(default_factory=list)
    """As RFC 5681 section 2 defines them: same number and window, no payload, while data is outstanding."""
    with_sack: list[Segment] = field(default_factory=list)
    """Segments that report data beyond a gap (RFC 2018)."""
    zero_windows: list[Segment] = field(default_factory=list)
    """Segments that announce a window of zero."""
    window_updates: list[Segment] = field(default_factory=list)
    """Segments without payload and without a new acknowledgment that enlarge the window."""
    window_probes: list[Segment] = field(default_factory=list)
    """Segments without payload or with a byte of it, one number back, while the other side's window is zero."""
    resets: list[Segment] = field(default_factory=list)
    fins: list[Segment] = field(default_factory=list)
    initial_seq: int | None = None
    """The sequence number of its SYN; None if that was not seen."""
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
        """Position and length of each payload, in the order of the wire."""
        return [
            (self.position(segment.seq), segment.payload_bytes) for segment in self.segments if segment.payload_bytes
        ]

    @property
    def payload_bytes(self) -> int:
        """Number of distinct payload bytes that were seen."""
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
        for segment in self.segments:
            if segment.payload:
                begin = self.position(segment.seq)
                if len(pieces.get(begin, b"")) < len(segment.payload):
                    pieces[begin] = segment.payload
        whole = bytearray()
        for begin, piece in sorted(pieces.items()):
            if begin > len(whole):
                break
            whole += piece[max(len(whole) - begin, 0) :]
        passed = next((end for begin, end in self._payload_ranges() if begin <= 0 < end), 0)
        if len(whole) < passed:
            longest = max(len(segment.packet.data) for segment in self.segments)
            raise LabError(
                f"payload from {self.src}: {passed} bytes passed, and byte {len(whole)} was not kept: the capture kept "
                f"at most {longest} bytes of each packet; capture or observe with snap_bytes=None"
            )
        return bytes(whole)

    def _note(self, segment: Segment, other: Direction) -> None:
        """Take a segment in."""
        self.segments.append(segment)
        if segment.syn and self.initial_seq is None:
            self.initial_seq = segment.seq
            self._base, self._edge = (segment.seq + 1) % _WHOLE, -1
        elif self._base is None:
            self._base = segment.seq
        if segment.rst:
            self.resets.append(segment)
        if segment.fin:
            self.fins.append(segment)
        if segment.sack_blocks:
            self.with_sack.append(segment)
        self._note_sequence(segment, other)
        if segment.acks and not segment.rst:
            self._note_window(segment, other)

    def _note_sequence(self, segment: Segment, other: Direction) -> None:
        begin = self.position(segment.seq)
        probe = other._window == 0 and segment.payload_bytes <= 1 and not segment.flags & (_SYN | _FIN | _RST)
        if probe and begin == self._edge - 1 + (segment.payload_bytes and begin == self._edge):
            self.window_probes.append(segment)
            return
        if not segment.length:
            return
        key = (segment.identification, segment.seq, segment.length, segment.timestamp)
        end = begin + segment.length
        if segment.identification and key in self._keys:
            self.copies.append(segment)
        elif _covers(self._seen, begin, end):
            self.retransmissions.append(segment)
        else:
            self.originals.append(segment)
            if begin < self._edge:
                self.out_of_order.append(segment)
        self._keys.add(key)
        _cover(self._seen, begin, end)
        self._edge = max(self._edge, end)

    def _note_window(self, segment: Segment, other: Direction) -> None:
        acked = other.position(segment.ack)
        if segment.window == 0:
            self.zero_windows.append(segment)
        if self._acked == acked and not segment.length:
            outstanding = other._edge > acked
            if segment.window == self._window and outstanding:
                self.duplicate_acks.append(segment)
            elif self._window is not None and segment.window > self._window:
                self.window_updates.append(segment)
        if self._acked is None or acked >= self._acked:
            self._acked, self._window = acked, segment.window


@dataclass(kw_only=True)
class Flow:
    """One TCP connection at one capture point."""

    client: Direction
    """The side that opened it; if it was open before, the side that sent first."""
    server: Direction

    @property
    def segments(self) -> list[Segment]:
        """Of both directions, in the order of time."""
        return sorted([*self.client.segments, *self.server.segments], key=lambda segment: segment.time_ns)

    @property
    def handshake(self) -> Handshake:
        """How it began."""
        syns = [segment for segment in self.client.segments if segment.syn]
        answers = [segment for segment in self.server.segments if segment.syn and segment.acks]
        done = None
        if answers:
            number = (answers[0].seq + 1) % _WHOLE
            done = next(
                (
                    segment.time_ns
                    for segment in self.client.segments
                    if segment.acks and not segment.syn and (segment.ack - number) % _WHOLE < _HALF
                ),
                None,
            )
        return Handshake(
            syn_ns=syns[0].time_ns if syns else None,
            syn_ack_ns=answers[0].time_ns if answers else None,
            ack_ns=done,
            syns=len(syns),
            syn_acks=len(answers),
        )

    def __str__(self) -> str:
        return f"{self.client.src} -> {self.server.src}"


def flows(packets: Iterable[Packet]) -> list[Flow]:
    """The TCP connections among packets of one place, in the order in which they began.

    A SYN with another sequence number begins a new one between the same two ports. Raises LabError for a packet whose
    headers were cut off.
    """
    conversations: list[Flow] = []
    latest: dict[frozenset[Endpoint], Flow] = {}
    for packet in packets:
        new = segment(packet)
        if not packet.whole:
            refuse_cut_headers(packet)
        if new is None:
            continue
        key = frozenset((new.src, new.dst))
        flow = latest.get(key)
        opens = new.syn and not new.acks
        if flow is None or (opens and _is_new(flow, new)):
            opener, other = (new.dst, new.src) if new.syn and new.acks else (new.src, new.dst)
            flow = latest[key] = Flow(client=Direction(src=opener), server=Direction(src=other))
            conversations.append(flow)
        ours, theirs = (flow.client, flow.server) if new.src == flow.client.src else (flow.server, flow.client)
        ours._note(new, theirs)
    return conversations


def flows_at(capture: Capture, side: str, *, partial: bool = False) -> list[Flow]:
    """The TCP connections of a capture, as seen ``before`` its port's impairment or ``after`` it.

    Where a port has no impairment there is one place alone, which counts as both. Raises LabError if packets are
    missing, of which the counts of a flow would say nothing, unless ``partial`` allows it.
    """
    if side not in ("before", "after"):
        raise InvalidValueError(f"side {side!r}: must be 'before' or 'after'")
    if not partial:
        refuse_missing(capture, "or take what there is with partial=True")
    there = any(place.side == side for place in capture.places)
    return flows(capture.at(side if there else "after"))


def _is_new(flow: Flow, syn: Segment) -> bool:
    earlier = flow.client if syn.src == flow.client.src else flow.server
    return earlier.initial_seq != syn.seq


def _covers(ranges: Sequence[tuple[int, int]], begin: int, end: int) -> bool:
    """Whether one of the ranges holds all of this one; ranges are apart from each other and sorted."""
    return any(first <= begin and end <= last for first, last in reversed(ranges))


def _cover(ranges: list[tuple[int, int]], begin: int, end: int) -> None:
    """Add a range, and join those that it touches. Searches from the end, where new data mostly lies."""
    at = len(ranges)
    while at and ranges[at - 1][1] >= begin:
        at -= 1
    last = at
    while last < len(ranges) and ranges[last][0] <= end:
        begin, end = min(begin, ranges[last][0]), max(end, ranges[last][1])
        last += 1
    ranges[at:last] = [(begin, end)]
