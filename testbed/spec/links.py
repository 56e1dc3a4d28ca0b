"""The names of links, of ports and of parts of a link's traffic. Pure.

A *link* is an ordered pair of hosts on a network. ``client -> server tcp/8888`` narrows it to part of its *traffic*.
One of its ends may be *beyond* the network's hosts, behind its gateway: the engine's machine (``localhost``), all else
(``outside``), or addresses (``203.0.113.0/24``).
`testbed.spec.topology` reads the user's notation, which may name several links at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.errors import InvalidValueError
from testbed.spec.words import unknown
from testbed.text import shown

LOCALHOST, OUTSIDE = "localhost", "outside"
"""The ends of links that are no hosts: the engine's machine, and what is neither of the stack nor that."""

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
    out: bool = False
    """The other direction: the way out of the host, on the switch's side of its interface."""

    def __str__(self) -> str:
        return f"{self.host}@{self.network}{' out' if self.out else ''}"


@dataclass(frozen=True, order=True)
class LinkRef:
    """The name of a link: source host, destination host, network, and part of the traffic."""

    src: str
    dst: str
    network: str
    traffic: Traffic = ALL_TRAFFIC
    to: str = ""
    """Only packets that a router forwards to this host; empty for all."""
    beyond: str = ""
    """Which end is beyond the network's hosts: ``src`` or ``dst``; empty if none is."""

    def __str__(self) -> str:
        target = f"{self.to} over {self.dst}" if self.to else self.dst
        return f"{self.src} -> {target} {self.traffic}".rstrip()

    @property
    def senders_port(self) -> PortRef:
        """The port toward the host that sends."""
        return PortRef(self.src, self.network)

    @property
    def receivers_port(self) -> PortRef:
        """The port that is impaired: toward the host that receives, or out of the sender if none does."""
        return PortRef(self.src, self.network, out=True) if self.beyond == "dst" else PortRef(self.dst, self.network)

    @property
    def far(self) -> str:
        """Its end beyond the network's hosts; empty if there is none."""
        return {"": "", "src": self.src, "dst": self.dst}[self.beyond]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Its ends that are hosts."""
        return {"": (self.src, self.dst), "src": (self.dst,), "dst": (self.src,)}[self.beyond]

    def back(self) -> LinkRef:
        """The other direction."""
        beyond = {"": "", "src": "dst", "dst": "src"}[self.beyond]
        return LinkRef(self.dst, self.src, self.network, self.traffic, beyond=beyond)

    def state(self) -> dict[str, str]:
        """The name as JSON."""
        return {**vars(self), "traffic": str(self.traffic)}

    @classmethod
    def from_state(cls, state: Mapping[str, str]) -> LinkRef:
        """The name from the JSON of another process."""
        traffic = Traffic.parse(state["traffic"])
        more = {name: state.get(name, "") for name in ("to", "beyond")}
        return cls(state["src"], state["dst"], state["network"], traffic, **more)

    def covers(self, other: LinkRef) -> bool:
        """Whether all packets of the other link belong to this one."""
        names = ("src", "dst", "network", "beyond")
        ends = all(getattr(self, name) == getattr(other, name) for name in names)
        return ends and self.to in ("", other.to) and self.traffic.covers(other.traffic)
