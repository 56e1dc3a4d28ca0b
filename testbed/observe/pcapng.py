"""A capture as a pcapng file, which Wireshark opens, and back. Pure.

The format is draft-ietf-opsawg-pcapng: a section header, a description of each interface (here: each place where
packets were seen), the packets, statistics. Values without a pcapng field are JSON in the section's comment.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from testbed.observe.capture import Capture, Packet, Place

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_MAGIC = 0x1A2B3C4D
_ETHERNET = 1
_COMMENT, _USERAPPL = 1, 4  # of a section
_NAME, _DESCRIPTION, _RESOLUTION = 2, 3, 9  # of an interface
_DROPPED, _FLAGS = 5, 2  # of statistics, of a packet
_NANOSECONDS, _MICROSECONDS = 9, 6
_DIRECTION, _INBOUND, _OUTBOUND = 3, 1, 2


def write(capture: Capture) -> bytes:
    """The file."""
    comment = {
        "testbed": 1,
        "comment": capture.comment,
        "realtime_minus_monotonic_ns": capture.realtime_minus_monotonic_ns,
        "sides": [place.side for place in capture.places],
        "overwritten": [place.overwritten for place in capture.places],
    }
    body = struct.pack("<IHHq", _MAGIC, 1, 0, -1)
    blocks = [_block(_SECTION, body, {_COMMENT: json.dumps(comment).encode(), _USERAPPL: b"testbed"})]
    for place in capture.places:
        options = {
            _NAME: place.name.encode(),
            _DESCRIPTION: place.description.encode(),
            _RESOLUTION: bytes([_NANOSECONDS]),
        }
        blocks.append(_block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, 0), options))
    moment = 0
    for packet in capture.packets:
        moment = packet.time_ns + capture.realtime_minus_monotonic_ns
        head = struct.pack("<I", packet.place) + _stamp(moment)
        head += struct.pack("<II", len(packet.data), packet.length_bytes)
        direction = struct.pack("<I", _OUTBOUND if packet.left else _INBOUND)
        blocks.append(_block(_PACKET, head + _padded(packet.data), {_FLAGS: direction}))
    for number, place in enumerate(capture.places):
        body = struct.pack("<I", number) + _stamp(moment)
        blocks.append(_block(_STATISTICS, body, {_DROPPED: struct.pack("<Q", place.lost)}))
    return b"".join(blocks)


def read(data: bytes) -> Capture:
    """The capture in a file of one section, little-endian, of Ethernet: ours, or another program's.

    Without our comment in it, times stay those of the file. Raises ValueError saying what is wrong, and at which byte.
    """
    places: list[Place] = []
    per_second: list[int] = []
    packets: list[Packet] = []
    comment: dict[str, Any] = {}
    for at, kind, body in _blocks(data):
        try:
            if kind == _SECTION:
                comment = _told(_options(body[16:]).get(_COMMENT, b""))
            elif kind == _INTERFACE:
                options = _options(body[8:])
                places.append(_place(body, options))
                per_second.append(_per_second(options.get(_RESOLUTION, bytes([_MICROSECONDS]))))
            elif kind == _PACKET:
                packets.append(_packet(body, per_second))
            elif kind == _STATISTICS:
                (number,) = struct.unpack_from("<I", body)
                lost = int.from_bytes(_options(body[12:]).get(_DROPPED, b""), "little")
                places[number] = replace(places[number], lost=lost)
        except (struct.error, IndexError):
            raise ValueError(f"byte {at}: a block of type {kind} that is too short") from None
        except ValueError as error:
            raise ValueError(f"byte {at}: {error}") from None
    clock = comment.get("realtime_minus_monotonic_ns", 0)
    sides = comment.get("sides", ["after"] * len(places))
    overwritten = comment.get("overwritten", [0] * len(places))
    if not (isinstance(clock, int) and isinstance(sides, list) and isinstance(overwritten, list)):
        raise ValueError(f"the section's comment is not testbed's: {comment}")
    if not len(sides) == len(overwritten) == len(places):
        raise ValueError(f"the comment has {len(sides)} interfaces, the file has {len(places)}")
    return Capture(
        places=tuple(
            replace(place, side=side, overwritten=count)
            for place, side, count in zip(places, sides, overwritten, strict=True)
        ),
        packets=tuple(replace(packet, time_ns=packet.time_ns - clock) for packet in packets)
        if clock
        else tuple(packets),
        realtime_minus_monotonic_ns=clock,
        comment=comment.get("comment", ""),
    )


# --- blocks ----------------------------------------------------------------------------------------


def _block(kind: int, body: bytes, options: dict[int, bytes]) -> bytes:
    for code, value in options.items():
        body += struct.pack("<HH", code, len(value)) + _padded(value)
    body += bytes(4)  # the end of options
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _blocks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Each block: where it begins, its type, its body."""
    at = 0
    while at < len(data):
        if at + 12 > len(data):
            raise ValueError(f"byte {at}: the file ends within a block")
        kind, length = struct.unpack_from("<II", data, at)
        if (kind == _SECTION) != (at == 0):
            raise ValueError(f"byte {at}: there must be one section header, at the beginning")
        if kind == _SECTION and struct.unpack_from("<I", data, at + 8)[0] != _MAGIC:
            raise ValueError(f"byte {at}: not little-endian pcapng")
        if length < 12 or length % 4 or at + length > len(data):
            raise ValueError(f"byte {at}: a block of {length} bytes, where the file has {len(data) - at} more")
        if struct.unpack_from("<I", data, at + length - 4)[0] != length:
            raise ValueError(f"byte {at}: a block whose two lengths differ")
        yield at, kind, data[at + 8 : at + length - 4]
        at += length


def _options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        code, length = struct.unpack_from("<HH", data, at)
        if code == 0:
            break
        if at + 4 + length > len(data):
            raise ValueError(f"an option of {length} bytes that its block does not hold")
        options.setdefault(code, data[at + 4 : at + 4 + length])
        at += 4 + (length + 3 & ~3)
    return options


def _place(body: bytes, options: dict[int, bytes]) -> Place:
    (link,) = struct.unpack_from("<H", body)
    if link != _ETHERNET:
        raise ValueError(f"an interface of link type {link}; only Ethernet (1) can be read")
    return Place(
        name=options.get(_NAME, b"").decode(errors="replace"),
        description=options.get(_DESCRIPTION, b"").decode(errors="replace"),
    )


def _packet(body: bytes, per_second: list[int]) -> Packet:
    place, high, low, kept, length = struct.unpack_from("<IIIII", body)
    if 20 + kept > len(body):
        raise ValueError(f"a packet of {kept} bytes that its block does not hold")
    flags = int.from_bytes(_options(body[20 + (kept + 3 & ~3) :]).get(_FLAGS, b""), "little")
    return Packet(
        time_ns=(high << 32 | low) * 1_000_000_000 // per_second[place],
        place=place,
        data=body[20 : 20 + kept],
        length_bytes=length,
        left=flags & _DIRECTION == _OUTBOUND,
    )


def _per_second(resolution: bytes) -> int:
    """Units per second: a power of ten, or of two if the highest bit is set."""
    exponent = resolution[0] & 0x7F
    return int(2**exponent if resolution[0] & 0x80 else 10**exponent)


def _told(comment: bytes) -> dict[str, Any]:
    """Our fields in the comment; empty for another program's comment."""
    try:
        fields = json.loads(comment)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) and fields.get("testbed") == 1 else {}


def _stamp(moment_ns: int) -> bytes:
    return struct.pack("<II", moment_ns >> 32, moment_ns & 0xFFFFFFFF)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
