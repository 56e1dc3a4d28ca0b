"""The names of links, of ports and of parts of a link's traffic. Pure.

A *link* is an ordered pair of hosts on a network. ``client -> server tcp/8888`` narrows it to part of its *traffic*.
`testbed.spec.topology` reads the user's notation, which may name several links at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.errors import InvalidValueError
from testbed.spec.words import unknown
from testbed.text import shown

_BARE_PORT = re.compile(r"(?P<port>\d+)(?:/(?P<protocol>tcp|udp))?")
_WITH_PORTS = ("tcp", "udp")
_PROTOCOLS = (*_WITH_PORTS, "icmp")
NEIGHBOUR_DISCOVERY = range(133, 138)
"""ICMPv6 types that are never part of a link's traffic: without them, as without ARP, there is no link (RFC 4861)."""
MULTICAST_LISTENERS = (130, 131, 132, 143)
"""ICMPv6 types that are no part of it either: hosts report their groups at any time (RFC 2710, RFC 3810)."""


@dataclass(frozen=True, order=True)
class Traffic:
    """A part of a link's packets: all, those of a protocol, or those from or to one of its ports."""

    protocol: str = ""
    """``tcp``, ``udp``, ``icmp`` (ICMPv6 included), or empty for all."""
    port: int = 0
    """The port at either end; 0 for all."""

    def __str__(self) -> str:
        return f"{self.protocol}/{self.port}" if self.port else self.protocol

    @classmethod
    def parse(cls, text: str) -> Traffic:
        """``tcp/8888``, ``udp``, ``icmp``, or nothing. Raises InvalidValueError."""
        protocol, slash, port = text.partition("/")
        if bare := _BARE_PORT.fullmatch(text):
            named = " or ".join(f"{name}/{bare['port']}" for name in _WITH_PORTS if bare["protocol"] in (None, name))
            raise InvalidValueError(f"{shown(text)} is no part of a link: write {named}")
        if protocol not in _PROTOCOLS and protocol.lower() in _PROTOCOLS:
            raise InvalidValueError(f"{shown(text)}: write it in small letters: {text.lower()}")
        if text and protocol not in _PROTOCOLS:
            raise InvalidValueError(f"{shown(text)}: {unknown(protocol, _PROTOCOLS)}, with a port as in tcp/8888")
        if slash and protocol not in _WITH_PORTS:
            raise InvalidValueError(f"{shown(text)}: {protocol} has no ports")
        if slash and not (port.isdecimal() and 0 < int(port) < 65536):
            raise InvalidValueError(f"{shown(text)}: a port is a number from 1 to 65535, as in {protocol}/8888")
        return cls(protocol, int(port or 0))

    def covers(self, other: Traffic) -> bool:
        """Whether all packets of the other part belong to this one."""
        return self.protocol in ("", other.protocol) and self.port in (0, other.port)


ALL_TRAFFIC = Traffic()


@dataclass(frozen=True, order=True)
class PortRef:
    """The name of a port: the end of a network toward one host; ``str()`` writes it as ``server@lan``."""

    host: str
    network: str

    def __str__(self) -> str:
        return f"{self.host}@{self.network}"


@dataclass(frozen=True, order=True)
class LinkRef:
    """The name of a link: source host, destination host, network, and part of the traffic."""

    src: str
    dst: str
    network: str
    traffic: Traffic = ALL_TRAFFIC
    to: str = ""
    """Only packets that a router forwards to this host; empty for all."""

    def __str__(self) -> str:
        target = f"{self.to} over {self.dst}" if self.to else self.dst
        return f"{self.src} -> {target} {self.traffic}".rstrip()

    @property
    def senders_port(self) -> PortRef:
        """The port toward the host that sends."""
        return PortRef(self.src, self.network)

    @property
    def receivers_port(self) -> PortRef:
        """The port toward the host that receives: the one that is impaired."""
        return PortRef(self.dst, self.network)

    def state(self) -> dict[str, str]:
        """The name as JSON."""
        return {**vars(self), "traffic": str(self.traffic)}

    @classmethod
    def from_state(cls, state: Mapping[str, str]) -> LinkRef:
        """The name from the JSON of another process."""
        traffic = Traffic.parse(state["traffic"])
        return cls(state["src"], state["dst"], state["network"], traffic, to=state.get("to", ""))

    def covers(self, other: LinkRef) -> bool:
        """Whether all packets of the other link belong to this one."""
        ends = (self.src, self.dst, self.network) == (other.src, other.dst, other.network)
        return ends and self.to in ("", other.to) and self.traffic.covers(other.traffic)
