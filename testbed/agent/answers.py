"""How a firewall that rejects a packet answers its sender: frame in, frame out. Pure: no device, no clock.

TCP gets a reset, everything else an ICMP or ICMPv6 error, as from Linux' own REJECT
(net/ipv4/netfilter/nf_reject_ipv4.c and its IPv6 twin). The answer's source is the packet's destination.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ANSWERER = bytes.fromhex("027462726a00")
"""Source of every answer's frame, locally administered (IEEE 802). No filter relies on it: anyone can send from it."""

RESET, ERROR = "reset", "error"

_ETHERNET_BYTES = 14
_IPV4, _IPV6 = 0x0800, 0x86DD
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_HOPS = 64
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_TCP_BYTES, _UDP_BYTES, _IPV6_BYTES = 20, 8, 40

# RFC 792 and 1812 5.2.7.1: type 3, code 3 and 13; RFC 4443 3.1: type 1, code 4 and 1.
_UNREACHABLE_V4, _PORT_V4, _PROHIBITED_V4 = 3, 3, 13
_UNREACHABLE_V6, _PORT_V6, _PROHIBITED_V6 = 1, 4, 1
# RFC 1812 4.3.2.3: as much of the packet as makes 576 bytes in all; RFC 4443 2.4 (c): 1280.
_QUOTED_V4, _QUOTED_V6 = 576 - 20 - 8, 1280 - _IPV6_BYTES - 8
# RFC 1812 4.3.2.5: precedence 6, internetwork control.
_ERROR_TOS = 0xC0
# RFC 792, 1256 and 1122 3.2.2: destination unreachable, source quench, redirect, time exceeded, parameter problem.
_ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})
_ICMPV6_FIRST_QUERY = 128  # RFC 4443 2.1: smaller types are errors

# RFC 8200 4.1, and 4302 for the authentication header, which counts its length differently.
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS = 0, 43, 44, 51, 60
_EXTENSIONS = frozenset({_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS})


@dataclass(frozen=True)
class Answer:
    """The answer to one packet."""

    kind: str
    """`RESET` or `ERROR`."""
    frame: bytes


@dataclass(frozen=True)
class _IpPacket:
    """The parts of an IP packet that an answer needs."""

    version: int
    source: bytes
    target: bytes
    whole: bytes
    """Without Ethernet's header and padding."""
    protocol: int
    payload: bytes
    """From the protocol's own header on."""
    is_fragment: bool
    """Whether it is a first fragment; later ones are not answered (RFC 1122 3.2.2)."""


def answer(frame: bytes) -> Answer | None:
    """The answer to a rejected Ethernet frame; None if there must be none.

    There is none to a packet that is truncated or has a wrong checksum; to a reset, an ICMP error, or a later fragment;
    and to one whose source or destination is not a single host (RFC 1122 3.2.2, RFC 4443 2.4 (e), RFC 9293 3.10.7.1).
    """
    if len(frame) < _ETHERNET_BYTES or frame[0] & 1 or frame[6] & 1:
        return None
    packet = _read(int.from_bytes(frame[12:14]), frame[_ETHERNET_BYTES:])
    if packet is None:
        return None
    reply = _reset(packet) if packet.protocol == _TCP else _error(packet)
    if reply is None:
        return None
    kind = RESET if packet.protocol == _TCP else ERROR
    return Answer(kind, frame[6:12] + ANSWERER + frame[12:14] + reply)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 for intact data that contains its own checksum.

    The sum of 16-bit words with end-around carry is the remainder modulo 0xFFFF, because 2¹⁶ modulo 0xFFFF is 1.
    """
    if len(data) % 2:
        data += b"\0"
    return 0xFFFF - (int.from_bytes(data) % 0xFFFF or (0xFFFF if any(data) else 0))


def _read(kind: int, data: bytes) -> _IpPacket | None:
    packet = _read_v4(data) if kind == _IPV4 else _read_v6(data) if kind == _IPV6 else None
    return packet if packet is not None and _is_sound(packet) else None


def _read_v4(data: bytes) -> _IpPacket | None:
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    header_bytes, length = (data[0] & 0xF) * 4, int.from_bytes(data[2:4])
    if not 20 <= header_bytes <= length <= len(data) or checksum(data[:header_bytes]):
        return None
    fragment = int.from_bytes(data[6:8])
    source, target = data[12:16], data[16:20]
    # RFC 1122 3.2.1.3: this network, multicast, reserved and broadcast addresses are not a single host.
    if fragment & 0x1FFF or source[0] == 0 or source[0] >= 224 or target[0] >= 224:
        return None
    return _IpPacket(4, source, target, data[:length], data[9], data[header_bytes:length], bool(fragment & 0x2000))


def _read_v6(data: bytes) -> _IpPacket | None:
    if len(data) < _IPV6_BYTES or data[0] >> 4 != 6:
        return None
    length = _IPV6_BYTES + int.from_bytes(data[4:6])
    source, target = data[8:24], data[24:40]
    if length > len(data) or not any(source) or source[0] == 0xFF or target[0] == 0xFF:
        return None
    whole, protocol, start, is_fragment = data[:length], data[6], _IPV6_BYTES, False
    while protocol in _EXTENSIONS:
        if start + 8 > length:
            return None
        if protocol == _FRAGMENT:
            fragment = int.from_bytes(whole[start + 2 : start + 4])
            if fragment & 0xFFF8:
                return None
            is_fragment = is_fragment or bool(fragment & 1)
            size = 8
        else:
            size = (whole[start + 1] + 2) * 4 if protocol == _AUTHENTICATION else (whole[start + 1] + 1) * 8
        protocol, start = whole[start], start + size
    return None if start > length else _IpPacket(6, source, target, whole, protocol, whole[start:], is_fragment)


def _is_sound(packet: _IpPacket) -> bool:
    """Whether its transport header is complete and its checksum correct, as far as one packet shows."""
    data = packet.payload
    if packet.protocol == _TCP:
        if len(data) < _TCP_BYTES or not _TCP_BYTES <= (data[12] >> 4) * 4 <= len(data):
            return False
    elif packet.protocol == _UDP:
        if len(data) < _UDP_BYTES:
            return False
        if packet.version == 4 and not any(data[6:8]):
            return True  # RFC 768: it has no checksum
    else:
        return True
    return packet.is_fragment or not checksum(_pseudo_header(packet, packet.protocol, len(data)) + data)


def _pseudo_header(packet: _IpPacket, protocol: int, length: int) -> bytes:
    """RFC 9293 3.1 and RFC 8200 8.1; the same for both directions, because a sum does not depend on order."""
    if packet.version == 4:
        return packet.source + packet.target + struct.pack("!BBH", 0, protocol, length)
    return packet.source + packet.target + struct.pack("!II", length, protocol)


def _reset(packet: _IpPacket) -> bytes | None:
    """RFC 9293 3.10.7.1: a reset with the sequence number that the sender expects, or that acknowledges all it sent."""
    data = packet.payload
    source_port, target_port, sequence, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", data)
    if flags & _RST:
        return None
    if flags & _ACK:
        numbers, flags_back = (acknowledged, 0), _RST
    else:
        length = len(data) - (offset >> 4) * 4 + bool(flags & _SYN) + bool(flags & _FIN)
        numbers, flags_back = (0, (sequence + length) % 2**32), _RST | _ACK
    segment = struct.pack("!HHIIBBHHH", target_port, source_port, *numbers, (_TCP_BYTES // 4) << 4, flags_back, 0, 0, 0)
    sums = checksum(_pseudo_header(packet, _TCP, len(segment)) + segment)
    return _ip_back(packet, _TCP, segment[:16] + sums.to_bytes(2) + segment[18:])


def _error(packet: _IpPacket) -> bytes | None:
    kind = packet.payload[0] if packet.payload else None
    if packet.version == 4:
        if packet.protocol == _ICMP and (kind is None or kind in _ICMP_ERRORS):
            return None
        code = _PORT_V4 if packet.protocol == _UDP else _PROHIBITED_V4
        message = struct.pack("!BBHI", _UNREACHABLE_V4, code, 0, 0) + packet.whole[:_QUOTED_V4]
        sums = checksum(message)
        return _ip_back(packet, _ICMP, message[:2] + sums.to_bytes(2) + message[4:], tos=_ERROR_TOS)
    if packet.protocol == _ICMPV6 and (kind is None or kind < _ICMPV6_FIRST_QUERY):
        return None
    code = _PORT_V6 if packet.protocol == _UDP else _PROHIBITED_V6
    message = struct.pack("!BBHI", _UNREACHABLE_V6, code, 0, 0) + packet.whole[:_QUOTED_V6]
    sums = checksum(_pseudo_header(packet, _ICMPV6, len(message)) + message)
    return _ip_back(packet, _ICMPV6, message[:2] + sums.to_bytes(2) + message[4:], tos=_ERROR_TOS)


def _ip_back(packet: _IpPacket, protocol: int, payload: bytes, *, tos: int = 0) -> bytes:
    """An IP packet from the packet's destination to its source."""
    if packet.version == 4:
        fields = (0x45, tos, 20 + len(payload), 0, 0x4000, _HOPS, protocol, 0)
        header = struct.pack("!BBHHHBBH", *fields) + packet.target + packet.source
        return header[:10] + checksum(header).to_bytes(2) + header[12:] + payload
    header = struct.pack("!IHBB", 6 << 28 | tos << 20, len(payload), protocol, _HOPS)
    return header + packet.target + packet.source + payload
