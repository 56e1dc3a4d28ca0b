"""Connections that outlive their test: which are over, and what earlier ones sent on a link. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.observe.tcp_info import Endpoint
from testbed.spec.links import Traffic

_CLOSING = ("FIN_WAIT1", "CLOSING", "LAST_ACK", "SYN_RECV")
"""States in which the kernel retransmits by itself, and no program waits."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One end of a TCP connection, by its kernel."""

    host: str
    id: str
    """Unique, also among later connections of the same ends."""
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
class ConnectionTable:
    """The connections of one host."""

    connections: tuple[Connection, ...]
    routes: bool = False
    """Whether the host forwards packets."""

    @classmethod
    def read(cls, host: str, answer: Mapping[str, Any]) -> ConnectionTable:
        """From the agent's answer (`testbed.agent.connections`)."""
        connections = [
            Connection(**{**fields, "host": host, "local": _end(*fields["local"]), "remote": _end(*fields["remote"])})
            for fields in answer["connections"]
        ]
        return cls(connections=tuple(connections), routes=answer["routes"])


def _end(address: str, port: int) -> Endpoint:
    return Endpoint(address=_plain(address), port=port)


def _plain(address: str) -> str:
    """An IPv4 address of an IPv6 socket is written as IPv4 (RFC 4291, 2.5.5.2)."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


@dataclass(frozen=True, kw_only=True)
class Received:
    """TCP payload that a host has received from an address."""

    source: str
    """The other address."""
    size_bytes: int
    """A FIN counts as a byte."""

    @classmethod
    def read(cls, answer: Iterable[tuple[str, str, int]]) -> list[Received]:
        """From the agent's answer (`testbed.agent.payload`)."""
        return [cls(source=_plain(source), size_bytes=size) for _, source, size in answer]


@dataclass(frozen=True, kw_only=True)
class Over:
    """A connection that its program has left and its kernel still works on."""

    connection: Connection
    unheard: bool
    """Whether no program is at its other end either, so that no one notices its end."""


def over(tables: Mapping[str, ConnectionTable], earlier: Collection[str], host_of: Mapping[str, str]) -> list[Over]:
    """Connections that only kernels still work on, except ``earlier`` ones (their ids).

    A program has closed them or never had them, or they wait for an acknowledgment of a host that no longer knows them.
    Not those that a program still uses, nor those to unknown addresses, perhaps behind a router. ``host_of``: the host
    of each address.
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
    """The packets that earlier connections sent on a link during a test."""

    packets: int
    at_least: bool
    """Whether there may be more: a connection has ended meanwhile, or its kernel does not count."""
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
    """The packets that connections of a link's sender sent on it between two readings; None if none."""
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
