"""Packets that a link lost in a test without netem: before a carried kernel, or at a port on the host's engine.

A tap's queue holds the packets that its kernel has not yet read, of all links of a port. A packet of a link passes two
taps: the one at its sender's own port, if that is carried, and the one at its receiver's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from testbed.errors import AgentError
from testbed.evidence.proof import AtTaps
from testbed.lab.channel import Channel
from testbed.lab.ports import Port
from testbed.spec.links import LinkRef, PortRef

_NONE = AtTaps(0, 0)

_AT_PORT = "at port"


def _ways(counts: Mapping[str, Mapping[str, int]]) -> dict[str, AtTaps]:
    """Of a carried port, by way."""
    return {
        way: AtTaps(counters["in_packets"] + counters["refused_packets"], counters["refused_packets"])
        for way, counters in counts.items()
    }


class Taps:
    """The packets that came to each port since a test began, and those it lost."""

    def __init__(self) -> None:
        self._before: dict[tuple[PortRef, str], AtTaps] = {}
        """By port and direction: packets that do not belong to the test."""
        self._now: dict[tuple[PortRef, str], AtTaps] = {}

    def begin(self, ports: Iterable[Port]) -> None:
        """A test begins: the packets so far do not belong to it."""
        self._now.clear()
        self.look(ports)
        self._before = dict(self._now)

    def look(self, ports: Iterable[Port]) -> None:
        """Read the counters of these ports; those of a port whose agent is gone stay as they were."""
        by_channel: dict[tuple[int, bool], tuple[Channel, dict[str, PortRef]]] = {}
        for port in ports:
            if port.ref.out:  # the other direction of one that is read
                continue
            key = id(port.channel), port.kernel is not None
            by_channel.setdefault(key, (port.channel, {}))[1][port.name] = port.ref
        for (_, carried), (channel, refs) in by_channel.items():
            try:
                answer = channel.call("carried" if carried else "dropped", ports=list(refs))
            except AgentError:
                continue  # whoever needs it says so
            for name, counts in answer.items():
                for way, now in (_ways(counts) if carried else {_AT_PORT: AtTaps(**counts)}).items():
                    if now.came_packets < self._now.get((refs[name], way), _NONE).came_packets:
                        self._before.pop((refs[name], way), None)  # a port that was attached anew counts from 0
                    self._now[refs[name], way] = now

    @contextmanager
    def leaving_out(self, ports: Sequence[Port]) -> Iterator[None]:
        """Packets that come to these ports in this block do not belong to the test: they are our probes."""
        self.look(ports)
        so_far = {key: self._grown(key) for key in self._now}
        try:
            yield
        finally:
            self.look(ports)
            self._before = {key: now - so_far.get(key, _NONE) for key, now in self._now.items()}

    def refused(self, ref: LinkRef) -> AtTaps | None:
        """The packets of a link at its taps, as last read; None where no kernel is carried."""
        ways = ((ref.receivers_port, "to_host"), (ref.senders_port, "from_host"))
        grown = [self._grown(key) for key in ways if key in self._now]
        return (
            AtTaps(sum(tap.came_packets for tap in grown), sum(tap.refused_packets for tap in grown)) if grown else None
        )

    def dropped(self, ref: LinkRef) -> AtTaps | None:
        """The packets at the receiver's port, by its own device; None where a kernel is carried."""
        key = (ref.receivers_port, _AT_PORT)
        return self._grown(key) if key in self._now else None

    def _grown(self, key: tuple[PortRef, str]) -> AtTaps:
        return self._now[key] - self._before.get(key, _NONE)
