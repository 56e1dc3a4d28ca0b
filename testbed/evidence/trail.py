"""What passed at every port of a lab during a test, as digests, and where two runs part. Pure.

A port's digest takes in each packet's time, length, direction and bytes, in order. Values of it that were kept on the
way, the marks, say up to which packet two runs are the same.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from testbed.errors import InvalidValueError
from testbed.text import shown

_MARK = struct.Struct("<QI")  # testbed.agent.trails
_KEYS = ("packets", "bytes", "digest", "lost", "every", "marks")


@dataclass(frozen=True, kw_only=True)
class Trail:
    """What passed at one port."""

    packets: int
    size_bytes: int
    digest: str
    """Of all packets; hexadecimal."""
    lost: int
    """Packets that came too fast for the digest."""
    every: int
    """Between two marks lie so many packets."""
    marks: tuple[tuple[int, int], ...]
    """After each of these packets: its time since the beginning in ns, and a part of the digest's value."""

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Trail:
        """From the agent's answer, or from a results file. Raises InvalidValueError."""
        try:
            packets, size_bytes, digest, lost, every, marks = (content[key] for key in _KEYS)
            pairs = tuple(
                (time_ns, value) for time_ns, value in _MARK.iter_unpack(zlib.decompress(base64.b64decode(marks)))
            )
            numbers = (packets, size_bytes, lost, every)
            if not all(isinstance(number, int) for number in numbers) or not isinstance(digest, str) or every < 1:
                raise ValueError("a value of another kind")
        except (KeyError, TypeError, ValueError, zlib.error, struct.error) as error:
            raise InvalidValueError(f"digests of packets {shown(dict(content))}: cannot be read: {error}") from None
        return cls(packets=packets, size_bytes=size_bytes, digest=digest, lost=lost, every=every, marks=pairs)

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        marks = base64.b64encode(zlib.compress(b"".join(_MARK.pack(*mark) for mark in self.marks), 9)).decode()
        values = (self.packets, self.size_bytes, self.digest, self.lost, self.every, marks)
        return dict(zip(_KEYS, values, strict=True))

    def marks_at(self, packets: int) -> tuple[tuple[int, int], ...]:
        """The marks after multiples of this number of packets, itself a multiple of ``every``."""
        step = packets // self.every
        return self.marks[step - 1 :: step]


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What passed at all ports during one test."""

    since_ns: int
    """When it began: time of day, in ns since 1970."""
    ports: Mapping[str, Trail]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Passed:
        """From a results file. Raises InvalidValueError."""
        if not isinstance(content.get("since_ns"), int) or not isinstance(content.get("ports"), Mapping):
            raise InvalidValueError(f"packets {shown(dict(content))}: must have since_ns and ports")
        return cls(
            since_ns=content["since_ns"],
            ports={port: Trail.read(trail) for port, trail in content["ports"].items()},
        )

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {"since_ns": self.since_ns, "ports": {port: trail.as_json() for port, trail in self.ports.items()}}


@dataclass(frozen=True, kw_only=True)
class PortParting:
    """Where two runs part at a port: packets up to ``same`` are the same, and one up to ``until`` is not."""

    port: str
    same: int
    until: int
    time_ns: int
    """The time of the first mark that differs, since the beginning; at most this late do the runs part."""

    def __str__(self) -> str:
        which = (
            f"packet {self.until}" if self.until == self.same + 1 else f"one of packets {self.same + 1} to {self.until}"
        )
        return f"{self.port}: {which} differs, by {self.time_ns / 1e9:.6f} s" + (
            f"; the first {self.same} are the same" if self.same else ""
        )


def partings(one: Passed, other: Passed) -> list[PortParting]:
    """Where two runs part, by port, the earliest first; empty if all packets are the same."""
    return sorted(_partings(one, other), key=lambda parting: (parting.time_ns, parting.port))


def _partings(one: Passed, other: Passed) -> Iterator[PortParting]:
    for port in dict.fromkeys((*one.ports, *other.ports)):
        ours, theirs = one.ports.get(port), other.ports.get(port)
        if ours is None or theirs is None:
            present = ours or theirs
            first_ns = present.marks[0][0] if present is not None and present.marks else 0
            yield PortParting(port=port, same=0, until=present.packets if present is not None else 0, time_ns=first_ns)
        elif (ours.digest, ours.packets) != (theirs.digest, theirs.packets):
            yield _parting(port, ours, theirs)


def _parting(port: str, ours: Trail, theirs: Trail) -> PortParting:
    every = max(ours.every, theirs.every)
    both = [trail.marks_at(every) for trail in (ours, theirs)]
    equal = next(
        (number for number, (mine, its) in enumerate(zip(*both, strict=False)) if mine != its), min(map(len, both))
    )
    times = [marks[equal][0] for marks in both if equal < len(marks)] or [marks[-1][0] for marks in both if marks]
    until = min((equal + 1) * every, max(ours.packets, theirs.packets))
    return PortParting(port=port, same=equal * every, until=until, time_ns=min(times, default=0))


class Abreast(NamedTuple):
    """The same packet of two runs, by number."""

    number: int
    """From 1; where digests have fewer marks than packets, the last one of several."""
    differs: bool
    """Whether the runs part there."""
    one_ns: int | None
    """Its time in the one run, since the beginning; None if the run has no such packet."""
    other_ns: int | None


_BEFORE, _MOST_ABREAST = 2, 6


def around(parting: PortParting, one: Passed, other: Passed) -> list[Abreast]:
    """The packets around the place where two runs part."""
    trails = [passed.ports.get(parting.port) for passed in (one, other)]
    every = max(trail.every for trail in trails if trail is not None)
    ours, theirs = ([] if trail is None else trail.marks_at(every) for trail in trails)
    equal = parting.same // every
    first = max(equal - _BEFORE, 0)
    return [
        Abreast(
            (at + 1) * every,
            at == equal,
            ours[at][0] if at < len(ours) else None,
            theirs[at][0] if at < len(theirs) else None,
        )
        for at in range(first, min(max(len(ours), len(theirs)), first + _MOST_ABREAST))
    ]
