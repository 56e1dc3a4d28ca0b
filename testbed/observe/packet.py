"""The headers of one packet, field by field. Pure."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from testbed.errors import LabError
from testbed.observe.capture import Capture, Packet

_IPV4, _IPV6, _ARP = 0x0800, 0x86DD, 0x0806
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
"""Protocols of IP."""
_FLAG_NAMES = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_MOST_HEADERS_BYTES = 14 + 60 + 60  # Ethernet, IPv4 and TCP with all options


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a packet: a header, or the payload."""

    name: str
    """Ethernet, IPv4, IPv6, TCP, UDP or payload."""
    data: bytes
    """Its bytes, without those of inner layers."""
    offset: int
    """Its position in the packet."""
    fields: tuple[tuple[str, str], ...] = ()
    """Names as in the RFC, and readable values."""


def layers(packet: Packet | bytes) -> tuple[Layer, ...]:
    """A packet taken apart: its layers' bytes, one after the other, are the packet again.

    Ethernet (IEEE 802.3), IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP (RFC 768); what is none of these, or
    was cut off, is payload. Padding of short frames is a layer of that name.
    """
    data = packet if isinstance(packet, bytes) else packet.data
    stack: list[Layer] = []
    taken = 0
    end = len(data)

    def take(name: str, length: int, *fields: tuple[str, object]) -> None:
        nonlocal taken
        texts = tuple((field_name, str(value)) for field_name, value in fields)
        stack.append(Layer(name=name, data=data[taken : taken + length], offset=taken, fields=texts))
        taken += length

    kind = None
    if len(data) >= 14:
        (kind,) = struct.unpack_from(">H", data, 12)
        take("Ethernet", 14, ("destination", _mac(data[:6])), ("source", _mac(data[6:12])), ("type", f"0x{kind:04x}"))
    ip = ip_of(data)
    if ip is not None:
        end = min(end, 14 + ip.total_bytes)
        name = "IPv4" if ip.version == 4 else "IPv6"
        take(name, ip.header_bytes, *_ip_fields(data, ip))
        at = 14 + ip.header_bytes
        if ip.first_fragment and ip.protocol == TCP and end - at >= 20 and end - at >= (data[at + 12] >> 4) * 4 >= 20:
            take("TCP", (data[at + 12] >> 4) * 4, *_tcp_fields(data, at))
        elif ip.first_fragment and ip.protocol == UDP and end - at >= 8:
            source, destination, length, checksum = struct.unpack_from(">HHHH", data, at)
            take(
                "UDP",
                8,
                ("source port", source),
                ("destination port", destination),
                ("length", length),
                ("checksum", f"0x{checksum:04x}"),
            )
    if taken < end:
        take("payload", end - taken)
    if taken < len(data):
        take("padding", len(data) - taken)
    return tuple(stack)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ip:
    """The fields of an IP header that identify the packet's link and its length."""

    version: int
    header_bytes: int
    total_bytes: int
    protocol: int
    src: bytes
    dst: bytes
    identification: int
    first_fragment: bool


def ip_of(data: bytes) -> Ip | None:
    """The IP header of an Ethernet frame, or None if it has none that is whole."""
    if len(data) < 34:
        return None
    (kind,) = struct.unpack_from(">H", data, 12)
    if kind == _IPV4 and data[14] >> 4 == 4:
        header = (data[14] & 15) * 4
        total, identification, fragment = struct.unpack_from(">HHH", data, 16)
        if header < 20 or len(data) < 14 + header or total < header:
            return None
        return Ip(
            version=4,
            header_bytes=header,
            total_bytes=total,
            protocol=data[23],
            src=data[26:30],
            dst=data[30:34],
            identification=identification,
            first_fragment=not fragment & 0x1FFF,
        )
    if kind == _IPV6 and len(data) >= 54 and data[14] >> 4 == 6:
        (length,) = struct.unpack_from(">H", data, 18)
        return Ip(
            version=6,
            header_bytes=40,
            total_bytes=40 + length,
            protocol=data[20],
            src=data[22:38],
            dst=data[38:54],
            identification=0,
            first_fragment=True,
        )
    return None


def _ip_fields(data: bytes, ip: Ip) -> list[tuple[str, object]]:
    src, dst = ipaddress.ip_address(ip.src), ipaddress.ip_address(ip.dst)
    if ip.version == 6:
        first, length, following, hops = struct.unpack_from(">IHBB", data, 14)
        return [
            ("version", 6),
            ("traffic class", f"0x{first >> 20 & 255:02x}"),
            ("flow label", f"0x{first & 0xFFFFF:05x}"),
            ("payload length", length),
            ("next header", following),
            ("hop limit", hops),
            ("source", src),
            ("destination", dst),
        ]
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
    options = tcp_options(data[at + 20 : at + header])
    return [
        ("source port", sport),
        ("destination port", dport),
        ("sequence number", seq),
        ("acknowledgment number", ack),
        ("data offset", header),
        ("flags", ", ".join(flag_names(flags)) or "none"),
        ("window", window),
        ("checksum", f"0x{checksum:04x}"),
        ("urgent pointer", urgent),
        *((f"option {name}", value) for name, value in options.items()),
    ]


def _mac(data: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in data)


def flag_names(flags: int) -> list[str]:
    """The names of the TCP flags that are set."""
    return [name for number, name in enumerate(_FLAG_NAMES) if flags >> number & 1]


def tcp_options(data: bytes) -> dict[str, object]:
    """Maximum segment size, window scale, SACK permitted, SACK blocks, time stamps (RFC 9293, 7323, 2018)."""
    options: dict[str, object] = {}
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
                options["maximum segment size"] = int.from_bytes(value, "big")
            case 3, 1:
                options["window scale"] = value[0]
            case 4, 0:
                options["SACK permitted"] = True
            case 5, size if size % 8 == 0:
                edges = struct.unpack(f">{size // 4}I", value)
                options["SACK"] = tuple(zip(edges[::2], edges[1::2], strict=True))
            case 8, 8:
                options["timestamps"] = struct.unpack(">II", value)
            case kind, _:
                options[f"{kind}"] = value.hex()
        at += length
    return options


def refuse_missing(capture: Capture, *advice: str) -> None:
    """Raise LabError if packets passed that are not in the capture."""
    if capture.missing:
        what = ", ".join(("keep more with limit_bytes=, or less of each packet with snap_bytes=", *advice))
        raise LabError(f"the capture is incomplete: {capture.missing}; {what}")


def refuse_cut_headers(packet: Packet) -> None:
    """Raise LabError if a packet was cut off within its IP or TCP header: its connection is unknown."""
    data = packet.data
    kind = struct.unpack_from(">H", data, 12)[0] if len(data) >= 14 else None
    ip = ip_of(data)
    needed = len(data)
    if ip is not None and ip.protocol == TCP and ip.first_fragment:
        at = 14 + ip.header_bytes
        needed = at + ((data[at + 12] >> 4) * 4 if len(data) > at + 12 else 20)
    elif ip is None and kind in (None, _IPV4, _IPV6):
        needed = len(data) + 1
    if len(data) < min(needed, packet.length_bytes):
        raise LabError(
            f"a packet of {packet.length_bytes} bytes was cut off at byte {len(data)}, within its headers; capture "
            f"with snap_bytes={_MOST_HEADERS_BYTES} or more, or None"
        )
