"""What the kernel counted while programs ran: on each host, and on each impaired link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CounterGroups = Mapping[str, Mapping[str, int]]
"""A host's counters by group, as `Host.counters` returns them: ``["Udp"]["RcvbufErrors"]``."""


@dataclass(frozen=True, kw_only=True)
class LinkCounts:
    """What the netem of a link counted between two moments."""

    sent_packets: int
    dropped_packets: int
    """Lost on the link, by injected loss, a full queue or a cut."""
    queued_packets: int = 0
    """Still in the queue at the end."""
    duplicates: bool = False
    """Whether it sends packets twice; if a copy is dropped, nothing is missing."""


@dataclass(frozen=True, kw_only=True)
class KernelEvidence:
    """What kernels counted during a run. What was not observed is absent, not zero."""

    kernel: Mapping[str, CounterGroups] = field(default_factory=dict)
    """By host: the growth of its counters."""
    links: Mapping[tuple[str, str], LinkCounts] = field(default_factory=dict)
    """By source and destination host."""

    def counted(self, host: str, group: str, name: str) -> int | None:
        """The growth of a host's counter; None if the host was not observed or its kernel has no such counter."""
        return self.kernel.get(host, {}).get(group, {}).get(name)


def difference(before: CounterGroups, after: CounterGroups) -> dict[str, dict[str, int]]:
    """The growth of every counter."""
    return {
        group: {name: value - before.get(group, {}).get(name, 0) for name, value in counters.items()}
        for group, counters in after.items()
    }
