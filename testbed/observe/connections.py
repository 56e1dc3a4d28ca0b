"""Connections that outlive the test that made them: which are over, and what earlier ones sent on a link. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.observe.tcp_info import Endpoint
from testbed.spec.links import Traffic

_CLOSING = ("FIN_WAIT1", "CLOSING", "LAST_ACK", "SYN_RECV")
"""States in which the kernel sends again, by itself, what no program waits for any more."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One end of a TCP connection, as its kernel tells it."""

    host: str
    id: str
    """Tells it from every other, also from a later one of the same ends."""
    local: Endpoint
    remote: Endpoint
    state: str
    owned: bool
    """Whether a program has it."""
    unacknowledged_bytes: int
    segments_sent: int | None

    def __str__(self) -> str:
        return f"{self.local} — {self.remote} on `{self.host}` ({self.state})"


@dataclass(frozen=True, kw_only=True)
class Table:
    """The connections of one host."""

    connections: tuple[Connection, ...]
    routes: bool = False
    """Whether it passes packets of others on."""

    @classmethod
    def read(cls, host: str, answer: Mapping[str, Any]) -> Table:
        """From the agent's answer (`testbed.agent.connections`)."""
        connections = [
            Connection(**{**fields, "host": host, "local": _end(*fields["local"]), "remote": _end(*fields["remote"])})
            for fields in answer["connections"]
        ]
        return cls(connections=tuple(connections), routes=answer["routes"])


def _end(address: str, port: int) -> Endpoint:
    """With an IPv4 address as such, also where the socket is one of IPv6 (RFC 4291, 2.5.5.2)."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return Endpoint(address=str(mapped or parsed), port=port)


@dataclass(frozen=True, kw_only=True)
class Over:
    """A connection that is over for its program, and that its kernel still works on."""

    connection: Connection
    unheard: bool
    """Whether no program is at its other end either: nobody notices that it is destroyed."""


def over(tables: Mapping[str, Table], earlier: Collection[str], host_of: Mapping[str, str]) -> list[Over]:
    """Which connections that are not among ``earlier`` (their ids) only the kernels still work on.

    Those that their program has closed, or never had; and those that have sent what nobody acknowledges to a host that
    does not know them any more. Not what a program goes on with, nor what may be somebody's behind a router.
    ``host_of``: whose each address is.
    """
    ends = {
        (connection.local, connection.remote): connection
        for table in tables.values()
        for connection in table.connections
    }
    ending = []
    for table in tables.values():
        for connection in table.connections:
            if connection.id in earlier:
                continue
            other, peer = ends.get((connection.remote, connection.local)), host_of.get(connection.remote.address, "")
            gone = other is None and peer in tables and not tables[peer].routes
            if not connection.owned and connection.state in _CLOSING:
                ending.append(Over(connection=connection, unheard=gone or (other is not None and not other.owned)))
            elif gone and connection.unacknowledged_bytes and connection.state != "SYN_SENT":
                ending.append(Over(connection=connection, unheard=False))
    return ending


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """What connections that began before a test sent on a link during it."""

    packets: int
    at_least: bool
    """Whether there may be more: one of them has ended meanwhile, or its kernel does not count."""
    connections: tuple[str, ...]

    def __str__(self) -> str:
        bound = "at least " if self.at_least else ""
        return f"{bound}{self.packets} packets of {', '.join(self.connections)}"


def crossed(
    before: Sequence[Connection],
    now: Iterable[Connection],
    *,
    sources: Collection[str],
    targets: Collection[str],
    traffic: Traffic,
) -> Crossed | None:
    """What connections of the link's sender sent on it between two looks; None if they sent nothing there."""
    if traffic.protocol not in ("", "tcp"):
        return None
    latest = {connection.id: connection for connection in now}
    packets, at_least, senders = 0, False, list[str]()
    for connection in before:
        on_link = connection.local.address in sources and connection.remote.address in targets
        if not on_link or (traffic.port and traffic.port not in (connection.local.port, connection.remote.port)):
            continue
        last = latest.get(connection.id)
        if last is None or last.segments_sent is None or connection.segments_sent is None:
            at_least = True
            senders.append(f"{connection.local} — {connection.remote}")
        elif last.segments_sent != connection.segments_sent:
            packets += last.segments_sent - connection.segments_sent
            senders.append(f"{connection.local} — {connection.remote}")
    return Crossed(packets=packets, at_least=at_least, connections=tuple(senders)) if senders else None
