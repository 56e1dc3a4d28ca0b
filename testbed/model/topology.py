"""Hosts and networks, as the Compose file declares them; and the links a user may name.

Pure: the input is the JSON of ``docker compose config``. A *host* is one replica of a service; its name is
the service's, with ``[n]`` behind it where there are several. A *link* is an ordered pair of hosts on a
network; the user writes ``client -> server``, ``client <-> server`` for both directions, and adds
``on NETWORK`` where two hosts share several.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from testbed.errors import InvalidComposeError, InvalidValueError
from testbed.model.impairment import unknown

_LINK = re.compile(r"\s*(?P<a>\S+?)\s*(?P<arrow><->|->)\s*(?P<b>\S+?)(?:\s+on\s+(?P<network>\S+))?\s*")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A layer-2 segment."""

    name: str
    """Its key in the Compose file."""
    engine_name: str
    """Its name on the engine."""
    driver: str = "bridge"
    """The engine's network driver; a port can be impaired on ``bridge`` alone."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service, and what of it matters to a lab."""

    name: str
    networks: tuple[str, ...] = ()
    network_mode: str | None = None
    replicas: int = 1
    image: str | None = None
    build: Mapping[str, Any] | None = None

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of its replicas."""
        if self.replicas == 1:
            return (self.name,)
        return tuple(f"{self.name}[{index}]" for index in range(1, self.replicas + 1))


@dataclass(frozen=True, order=True)
class LinkRef:
    """The name of a link: where packets come from, where they go, on which network."""

    src: str
    dst: str
    network: str

    def __str__(self) -> str:
        return f"{self.src} -> {self.dst}"


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The hosts and networks of one stack."""

    services: Mapping[str, Service]
    networks: Mapping[str, Network]

    @classmethod
    def from_compose(cls, config: Mapping[str, Any]) -> Topology:
        """Read the object that ``docker compose config --format json`` prints.

        Raises InvalidComposeError if there is no service.
        """
        services = {
            name: Service(
                name=name,
                networks=tuple(body.get("networks") or ()),
                network_mode=body.get("network_mode"),
                replicas=_replicas(body),
                image=body.get("image"),
                build=body.get("build"),
            )
            for name, body in (config.get("services") or {}).items()
        }
        if not services:
            raise InvalidComposeError(
                "the Compose file has no active service; if its services carry `profiles:`, "
                "activate one with --compose-profile NAME or COMPOSE_PROFILES"
            )
        networks = {
            name: Network(
                name=name,
                engine_name=(body or {}).get("name", name),
                driver=(body or {}).get("driver") or "bridge",
            )
            for name, body in (config.get("networks") or {}).items()
        }
        return cls(services=services, networks=networks)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host's name, in the order of the Compose file."""
        return tuple(host for service in self.services.values() for host in service.hosts)

    def service_of(self, host: str) -> Service | None:
        """The service whose replica a host is, or None if there is no such host."""
        return next((service for service in self.services.values() if host in service.hosts), None)

    def links(self, text: str) -> tuple[LinkRef, ...]:
        """The links that the user's words name: one for ``a -> b``, two for ``a <-> b``.

        Raises InvalidValueError with every problem: unknown ends, no common network, several of them.
        """
        match = _LINK.fullmatch(text)
        if match is None:
            raise InvalidValueError(
                f'link {text!r}: write "client -> server" for one direction, "client <-> server" for both, '
                f'and "client -> server on lan" where two hosts share several networks'
            )
        a, b, network = match["a"], match["b"], match["network"]
        problems = [problem for end in dict.fromkeys((a, b)) if (problem := self._cannot_end_a_link(end))]
        if not problems and a == b:
            problems.append("a host has no link to itself")
        if not problems:
            network, problem = self._common_network(a, b, network)
            problems += [problem] if problem else []
        if problems or network is None:
            raise InvalidValueError(f"link {text!r}: {problem}" for problem in problems)
        pairs = ((a, b),) if match["arrow"] == "->" else ((a, b), (b, a))
        return tuple(LinkRef(src, dst, network) for src, dst in pairs)

    def links_between(self, *groups: Iterable[str]) -> tuple[LinkRef, ...]:
        """Every link between hosts of different groups, both ways, on every bridge network that they share.

        Raises InvalidValueError with every problem: fewer than two groups, unknown hosts, a host in two groups.
        """
        sides = [tuple(dict.fromkeys([group] if isinstance(group, str) else group)) for group in groups]
        everyone = [host for side in sides for host in side]
        problems = [f"host {host!r}: {unknown(host, self.hosts)}" for host in everyone if host not in self.hosts]
        problems += [f"host {host!r} is in two groups" for host in dict.fromkeys(everyone) if everyone.count(host) > 1]
        if len(sides) < 2:
            problems.append('a partition needs two groups of hosts: partition({"a", "b"}, {"c"})')
        if problems:
            raise InvalidValueError(problems)
        return tuple(
            LinkRef(src, dst, network)
            for side, other in permutations(sides, 2)
            for src in side
            for dst in other
            for network in self._networks_of(src)
            if network in self._networks_of(dst) and self.networks[network].driver == "bridge"
        )

    def _cannot_end_a_link(self, host: str) -> str | None:
        service = self.service_of(host)
        if service is None:
            if host in self.services:
                replicas = self.services[host].replicas
                hint = f"name one, for example {host}[1]" if replicas else "there is no host to link"
                return f"{host!r} has {replicas} replicas; {hint}"
            return f"host {host!r}: {unknown(host, self.hosts)}"
        if service.network_mode:
            return (
                f"host {host!r} has `network_mode: {service.network_mode}` and so no port of its own to impair; "
                f"give the service a network under `networks:`"
            )
        if not service.networks:
            return f"host {host!r} is on no network; give the service one under `networks:`"
        return None

    def _common_network(self, a: str, b: str, wanted: str | None) -> tuple[str | None, str | None]:
        """The network that carries the link, or what is wrong."""
        on_a, on_b = (self._networks_of(host) for host in (a, b))
        common = [name for name in on_a if name in on_b]
        if not common:
            return None, f"{a} (on {', '.join(on_a)}) and {b} (on {', '.join(on_b)}) share no network"
        if wanted is not None and wanted not in common:
            if wanted in self.networks:
                off = a if wanted not in on_a else b
                return None, f"{off} is not on network {wanted!r}; {a} and {b} share: {', '.join(common)}"
            return (
                None,
                f"network {wanted!r}: {unknown(wanted, common)} (the networks that {a} and {b} share)",
            )
        if wanted is None and len(common) > 1:
            return None, f'{a} and {b} share several networks; add " on NETWORK": {", ".join(common)}'
        chosen = self.networks[wanted or common[0]]
        if chosen.driver != "bridge":
            return (
                None,
                f"network {chosen.name!r} has driver {chosen.driver!r}; only a bridge has ports to impair",
            )
        return chosen.name, None

    def _networks_of(self, host: str) -> tuple[str, ...]:
        service = self.service_of(host)
        return service.networks if service else ()


def _replicas(service: Mapping[str, Any]) -> int:
    replicas = (service.get("deploy") or {}).get("replicas")
    return int(replicas if replicas is not None else service.get("scale", 1))
