"""The fate of each packet between two capture points. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from testbed.errors import LabError
from testbed.observe.capture import Capture, Packet
from testbed.observe.packet import ICMP, ICMPV6, TCP, UDP, Ip, ip_of, refuse_cut_headers, refuse_missing
from testbed.spec.links import MULTICAST_LISTENERS, NEIGHBOUR_DISCOVERY

_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_OF_EVERY_LINK = (*NEIGHBOUR_DISCOVERY, *MULTICAST_LISTENERS)
_HOP_BY_HOP = 0


@dataclass(frozen=True, kw_only=True)
class Passage:
    """The fate of one packet between two capture points."""

    before: Packet
    after: tuple[Packet, ...]
    """The packet at the second point: once normally, never if lost, several times if duplicated."""

    @property
    def lost(self) -> bool:
        """Whether it was not seen again: lost, corrupted, or still queued when the capture ended."""
        return not self.after

    @property
    def delay_s(self) -> float | None:
        """Its one-way delay (RFC 7679), by one clock; None if it was lost (RFC 7680)."""
        return (self.after[0].time_ns - self.before.time_ns) / 1e9 if self.after else None


def passages(before: Iterable[Packet], after: Iterable[Packet]) -> list[Passage]:
    """Follow each packet from the first point to the second; in order of arrival at the first.

    A packet is identified by its IP packet without checksums, which a kernel fills in late. Equal packets (the same
    datagram sent twice with identification 0) are matched in order.
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
    matched = []
    for identity, packet in order:
        copies = arrived[identity]
        left[identity] -= 1
        # Each of several equal packets gets one copy, and the last one all that remain.
        count = len(copies) if not left[identity] else min(1, len(copies))
        matched.append(Passage(before=packet, after=tuple(copies.popleft() for _ in range(count))))
    return matched


def crossing(capture: Capture, toward: Iterable[str], *, outward: bool = False) -> list[Passage]:
    """The fate of each packet toward one of these addresses, between the two sides of a port's impairment.

    ``outward``: of each packet from one of them.

    Raises LabError if packets are missing, which would count as lost, and if the port had no impairment when the
    capture began: then there are no two sides.
    """
    refuse_missing(capture)
    if not {"before", "after"} <= {place.side for place in capture.places}:
        names = ", ".join(place.name for place in capture.places) or "none"
        raise LabError(
            f"the capture has only one capture point, {names}: its port was not impaired when it began; impair first"
        )
    for packet in capture.packets:
        if not packet.whole:
            refuse_cut_headers(packet)
    wanted = {ipaddress.ip_address(address).packed for address in toward}

    def chosen(packets: Iterable[Packet]) -> list[Packet]:
        return [
            packet for packet in packets if (ip := ip_of(packet.data)) and (ip.src if outward else ip.dst) in wanted
        ]

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
        bytes.fromhex(source.replace(":", "")) if _MAC.fullmatch(source) else ipaddress.ip_address(source).packed
        for source in sources
    }

    def chosen(side: str) -> list[Packet]:
        return [packet for packet in capture.at(side) if _is_of_link(packet, wanted, protocol, port)]

    last_ns = max((packet.time_ns for packet in capture.packets), default=0)
    until_ns = max(last_ns, capture.ended_ns or 0) - round(longest_s * 1e9)
    passed = [
        passage
        for passage in passages(chosen("before"), chosen("after"))
        if since_ns <= passage.before.time_ns <= until_ns
    ]
    return len(passed), [number for number, passage in enumerate(passed, start=1) if passage.lost]


def _is_of_link(packet: Packet, sources: set[bytes], protocol: str, port: int) -> bool:
    ip = ip_of(packet.data)
    if ip is None or (ip.src not in sources and packet.data[6:12] not in sources):
        return False
    if ip.version == 6 and _icmpv6_kind(packet.data, ip) in _OF_EVERY_LINK:
        return False
    at = 14 + ip.header_bytes
    if protocol and ip.protocol not in {"tcp": (TCP,), "udp": (UDP,)}.get(protocol, (ICMP, ICMPV6)):
        return False
    if not port or not ip.first_fragment:  # a later fragment has no port, so it counts as possibly matching
        return True
    ends = packet.data[at : at + 4]
    return port in (int.from_bytes(ends[:2]), int.from_bytes(ends[2:]))


def _icmpv6_kind(data: bytes, ip: Ip) -> int | None:
    """The type of an ICMPv6 message, also behind hop-by-hop options, which listeners' reports have (RFC 8200, 4.3)."""
    protocol, at = ip.protocol, 14 + ip.header_bytes
    if protocol == _HOP_BY_HOP and len(data) >= at + 2:
        protocol, at = data[at], at + 8 * (data[at + 1] + 1)
    return data[at] if protocol == ICMPV6 and at < len(data) else None


def _identity(packet: Packet) -> bytes:
    data = packet.data
    ip = ip_of(data)
    if ip is None:
        return data[14:]
    whole = bytearray(data[14 : 14 + ip.total_bytes])
    if ip.version == 4:
        whole[10:12] = b"\0\0"
    at = ip.header_bytes + {TCP: 16, UDP: 6, ICMP: 2}.get(ip.protocol, len(whole))
    if ip.first_fragment and at + 2 <= len(whole):
        whole[at : at + 2] = b"\0\0"
    return bytes(whole)
