"""Everything that was observed while a block ran, on one time axis. Pure.

Every time is of CLOCK_MONOTONIC on the engine's machine, in nanoseconds: that of TCP_INFO, of packets, and of what
programs in containers record with ``time.monotonic_ns()``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from testbed.errors import LabError
from testbed.observe.capture import Capture
from testbed.observe.counters import Counters
from testbed.observe.passages import Passage, crossing
from testbed.observe.tcp_info import TcpSocket
from testbed.observe.wire import Flow, flows_at
from testbed.spec.links import PortRef


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How often the sockets were read."""

    samples: int
    ran_s: float
    cpu_s: float
    """What it took of a core."""
    left_out: int
    """Socket states that were not kept for lack of room."""

    @property
    def every_s(self) -> float:
        """The mean time between two looks."""
        return self.ran_s / self.samples if self.samples else 0.0

    @property
    def cpu_ratio(self) -> float:
        """Share of one core."""
        return self.cpu_s / self.ran_s if self.ran_s else 0.0


@dataclass(frozen=True, kw_only=True)
class HostObservation:
    """What was seen of one host."""

    name: str
    addresses: tuple[str, ...]
    counters: Counters
    sockets: tuple[TcpSocket, ...]
    sampling: Sampling

    @property
    def connections(self) -> tuple[TcpSocket, ...]:
        """Its sockets without the listeners."""
        return tuple(socket for socket in self.sockets if not socket.is_listener)

    def connection(self, *, local_port: int | None = None, remote_port: int | None = None) -> TcpSocket:
        """The only connection with these ports. Raises LabError listing them if there is not exactly one."""
        sockets = [
            socket
            for socket in self.connections
            if local_port in (None, socket.local.port) and remote_port in (None, socket.remote.port)
        ]
        if len(sockets) != 1:
            raise LabError(
                f"`{self.name}`: {len(sockets)} connections with local_port={local_port}, remote_port={remote_port}; "
                f"seen: {'; '.join(map(str, self.connections)) or 'none'}"
            )
        return sockets[0]


@dataclass(kw_only=True)
class Observation:
    """Everything that was observed; filled at the end of the block."""

    began_ns: int = 0
    ended_ns: int = 0
    realtime_minus_monotonic_ns: int = 0
    """Offset from CLOCK_MONOTONIC to the time of day (nanoseconds since 1970)."""
    hosts: dict[str, HostObservation] = field(default_factory=dict)
    captures: dict[PortRef, Capture] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Why a host or a port was not observed, for example because it was started again."""

    def host(self, name: str) -> HostObservation:
        """The observation of a host. Raises LabError with the reason if there is none."""
        if name not in self.hosts:
            raise LabError(f"`{name}` was not observed: {self._why(name, self.hosts)}")
        return self.hosts[name]

    def capture(self, port: str) -> Capture:
        """The packets of a port, ``server@lan``, or ``server`` if it is the only one of that host."""
        return self.captures[self._named(port)]

    def flows(self, port: str, side: str = "before", *, partial: bool = False) -> list[Flow]:
        """The TCP connections at a port, as seen ``before`` its impairment or ``after`` it; see `wire.flows_at`.

        Raises LabError if packets are missing, unless ``partial`` allows it.
        """
        return flows_at(self.capture(port), side, partial=partial)

    def passages(self, port: str) -> list[Passage]:
        """The fate of each packet toward a port's host, between the two sides of its impairment.

        Raises LabError if packets are missing, and if the port was not impaired when the observing began.
        """
        return crossing(self.capture(port), self.host(self._named(port).host).addresses)

    def seconds(self, time_ns: int) -> float:
        """A time as seconds since the observing began."""
        return (time_ns - self.began_ns) / 1e9

    def _named(self, port: str) -> PortRef:
        refs = [ref for ref in self.captures if port in (str(ref), ref.host)]
        if len(refs) != 1:
            raise LabError(f"port {port!r}: {self._why(port, map(str, self.captures))}")
        return refs[0]

    def _why(self, name: str, there: Iterable[str]) -> str:
        return self.missing.get(name) or f"there are: {', '.join(there) or 'none'}"
