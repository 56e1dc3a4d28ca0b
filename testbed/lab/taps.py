"""What found the queue before a carried kernel full in a test, by link: it was lost, and no netem made it so.

A tap's queue takes what its kernel has not yet taken in, of all that use a port. A packet of a link passes two: the
one at its sender's own port, if that is carried, and the one at its receiver's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from testbed.errors import AgentError
from testbed.evidence.proof import AtTaps
from testbed.lab.channel import Channel
from testbed.lab.ports import Port
from testbed.spec.links import LinkRef, PortRef

_NONE = AtTaps(0, 0)


class Taps:
    """What was refused at each carried port since a test began."""

    def __init__(self) -> None:
        self._before: dict[tuple[PortRef, str], AtTaps] = {}
        """By port and way: what came and what was refused that is none of the test's."""
        self._now: dict[tuple[PortRef, str], AtTaps] = {}

    def begin(self, ports: Iterable[Port]) -> None:
        """What was refused so far is none of the test's."""
        self._now.clear()
        self.look(ports)
        self._before = dict(self._now)

    def look(self, ports: Iterable[Port]) -> None:
        """Read the counters of these ports now; those of one whose agent is gone stay as they were."""
        by_channel: dict[int, tuple[Channel, dict[str, PortRef]]] = {}
        for port in ports:
            if port.kernel is not None:
                by_channel.setdefault(id(port.channel), (port.channel, {}))[1][port.name] = port.ref
        for channel, refs in by_channel.values():
            try:
                told = channel.call("carried", ports=list(refs))
            except AgentError:
                continue  # whoever needs it says so
            for name, ways in told.items():
                ref = refs[name]
                for way, counts in ways.items():
                    lost = counts["refused_packets"]
                    now = AtTaps(counts["in_packets"] + lost, lost)
                    if now.came_packets < self._now.get((ref, way), _NONE).came_packets:
                        self._before.pop((ref, way), None)  # attached anew, it counts from 0
                    self._now[ref, way] = now

    @contextmanager
    def leaving_out(self, ports: Sequence[Port]) -> Iterator[None]:
        """What comes to these ports meanwhile is none of the test's: probes of ours."""
        self.look(ports)
        so_far = {key: self._grown(key) for key in self._now}
        try:
            yield
        finally:
            self.look(ports)
            self._before = {key: now - so_far.get(key, _NONE) for key, now in self._now.items()}

    def refused(self, ref: LinkRef) -> AtTaps | None:
        """Of a link's way, as of the last look; None where nothing on it is carried."""
        ways = ((ref.receivers_port, "to_host"), (ref.senders_port, "from_host"))
        grown = [self._grown(key) for key in ways if key in self._now]
        return (
            AtTaps(sum(each.came_packets for each in grown), sum(each.refused_packets for each in grown))
            if grown
            else None
        )

    def _grown(self, key: tuple[PortRef, str]) -> AtTaps:
        return self._now[key] - self._before.get(key, _NONE)
