"""What found the queue before a carried kernel full in a test, by link: it was lost, and no netem made it so.

A tap's queue takes what its kernel has not yet taken in, of all that use a port. A packet of a link passes two: the
one at its sender's own port, if that is carried, and the one at its receiver's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from testbed.errors import AgentError
from testbed.model.evidence import AtTaps

if TYPE_CHECKING:
    from testbed.labs.channel import Channel
    from testbed.labs.lab import Port
    from testbed.model.topology import LinkRef

_Counts = Mapping[str, Mapping[str, int]]
_NONE: _Counts = {}


class Taps:
    """What was refused at each carried port since a test began."""

    def __init__(self) -> None:
        self._before: dict[str, _Counts] = {}
        self._now: dict[str, _Counts] = {}

    def begin(self, ports: Iterable[Port]) -> None:
        """What was refused so far is none of the test's."""
        self._now.clear()
        self.look(ports)
        self._before = dict(self._now)

    def look(self, ports: Iterable[Port]) -> None:
        """Read the counters of these ports now; those of one whose agent is gone stay as they were."""
        by_channel: dict[int, tuple[Channel, list[str]]] = {}
        for port in ports:
            if port.kernel is not None:
                by_channel.setdefault(id(port.channel), (port.channel, []))[1].append(port.name)
        for channel, names in by_channel.values():
            try:
                self._now.update(channel.call("carried", ports=names))
            except AgentError:
                continue  # whoever needs it says so

    def refused(self, ref: LinkRef) -> AtTaps | None:
        """Of a link's way, as of the last look; None where nothing on it is carried."""
        ways = ((f"{ref.dst}@{ref.network}", "to_host"), (f"{ref.src}@{ref.network}", "from_host"))
        grown = [self._grown(name, way) for name, way in ways if name in self._now]
        return AtTaps(sum(came for came, _ in grown), sum(lost for _, lost in grown)) if grown else None

    def _grown(self, name: str, way: str) -> tuple[int, int]:
        now, before = self._now[name][way], self._before.get(name, _NONE).get(way, {})
        lost = now["refused_packets"] - before.get("refused_packets", 0)
        came = now["in_packets"] - before.get("in_packets", 0)
        if lost < 0 or came < 0:  # attached anew, it counts from 0
            lost, came = now["refused_packets"], now["in_packets"]
        return came + lost, lost
