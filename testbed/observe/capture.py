"""Captured packets: where they were seen, when, and their bytes. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

_RECORD = struct.Struct("<QIIBB")  # testbed.agent.capture


@dataclass(frozen=True, kw_only=True, slots=True)
class Packet:
    """One packet, at one place."""

    time_ns: int
    """CLOCK_MONOTONIC."""
    place: int
    """Its number among the capture's places."""
    data: bytes
    """The kept bytes, from the Ethernet header on."""
    length_bytes: int
    """Length on the wire, without the frame check sequence."""
    left: bool = False
    """Whether it left the engine's kernel through that interface; else it came in."""

    @property
    def whole(self) -> bool:
        """Whether all of it was kept."""
        return len(self.data) == self.length_bytes


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where packets were seen."""

    name: str
    """Such as ``server@lan before the impairment``."""
    description: str = ""
    side: str = "after"
    """For packets toward the host: ``before`` its impairment or ``after`` it; ``after`` too where there is none."""
    lost: int = 0
    """Packets that the capture could not keep up with."""
    overwritten: int = 0
    """Early packets that were overwritten, because the capture's size is limited."""


@dataclass(frozen=True, kw_only=True)
class Capture:
    """The packets of one port."""

    places: tuple[Place, ...]
    packets: tuple[Packet, ...]
    """In the order of their time."""
    realtime_minus_monotonic_ns: int = 0
    """Offset from CLOCK_MONOTONIC to the time of day, which the file has."""
    ended_ns: int | None = field(default=None, compare=False)
    """When it ended; CLOCK_MONOTONIC. None if unknown, as for a file."""
    comment: str = ""
    """A line about the capture."""

    @property
    def complete(self) -> bool:
        """Whether no packet was lost, overwritten or cut off."""
        return not self.missing and all(packet.whole for packet in self.packets)

    @property
    def missing(self) -> str:
        """How many packets passed and are not in it, by place; empty if none."""
        problems = [
            f"{count} {what} ({place.name})"
            for place in self.places
            for count, what in ((place.lost, "came too fast to be kept"), (place.overwritten, "gave way to later ones"))
            if count
        ]
        return ", ".join(problems)

    def at(self, side: str) -> list[Packet]:
        """The packets seen at the places on one side of the impairment: ``before`` or ``after``."""
        wanted = {number for number, place in enumerate(self.places) if place.side == side}
        return [packet for packet in self.packets if packet.place in wanted]


def packets(records: bytes, *, realtime_minus_monotonic_ns: int) -> tuple[Packet, ...]:
    """The packets in the agent's records. Raises ValueError if these end in the middle of one."""
    packets = []
    at = 0
    while at < len(records):
        if at + _RECORD.size > len(records):
            raise ValueError(f"the records end within a head, at byte {at} of {len(records)}")
        moment, length, kept, place, left = _RECORD.unpack_from(records, at)
        at += _RECORD.size + kept
        if at > len(records):
            raise ValueError(f"the records end within a packet of {kept} bytes, at byte {at} of {len(records)}")
        packets.append(
            Packet(
                time_ns=moment - realtime_minus_monotonic_ns,
                place=place,
                data=records[at - kept : at],
                length_bytes=length,
                left=bool(left),
            )
        )
    return tuple(packets)
