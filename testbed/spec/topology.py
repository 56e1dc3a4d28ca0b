"""Hosts and networks, as the Compose file declares them; and the links a user may name.

Pure: the input is the JSON of ``docker compose config``. A *host* is one replica of a service; its name is
the service's, with ``[n]`` behind it where there are several. A *link* is an ordered pair of hosts on a
network; the user writes ``client -> server``, ``client <-> server`` for both directions, and adds
``on NETWORK`` where two hosts share several. ``client -> server tcp/8888`` narrows a link to part of its *traffic*.
An end may stand for several hosts: ``client[*]``, ``client[1..20]``, ``client,worker``, ``*``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any

from testbed.errors import InvalidComposeError, InvalidValueError
from testbed.spec.topologies import is_router
from testbed.spec.words import listing, unknown
from testbed.text import shown

_LINK = re.compile(r"\s*(?P<a>\S+?)\s*(?P<arrow><->|->)\s*(?P<b>\S+?)(?:\s+(?P<rest>\S.*?))?\s*")
_BLANKS_AT_COMMA = re.compile(r"\s+,\s*|,\s+")
_REPLICA = re.compile(r"(?P<service>[^\[\]]+)\[\d+\]")
_BARE_PORT = re.compile(r"(?P<port>\d+)(?:/(?P<protocol>tcp|udp))?")
_REPLICAS = re.compile(r"(?P<service>[^\[\]]+)\[(?:(?P<all>\*)|(?P<first>\d+)\.\.(?P<last>\d+))\]")
_MACHINE = ("localhost", "host", "127.0.0.1", "::1", "0.0.0.0", "host.docker.internal", "host-gateway")  # noqa: S104  # words
_OUTSIDE = ("internet", "outside", "external", "world", "wan")
_STAND_IN = "have a service stand in for it, a proxy or a fake one, and name that"
_ADDRESS = re.compile(r"\d+(?:\.\d+){3}|[0-9a-fA-F]*:[0-9a-fA-F:.]*:[0-9a-fA-F.]*")
_MOST_HOSTS = 10_000
_LONGEST_LINK = 10_000
_PORTS = ("tcp", "udp")
_PROTOCOLS = (*_PORTS, "icmp")


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
    router: bool = False
    """Whether its hosts pass on what is not meant for them."""
    also: frozenset[str] = frozenset()
    """What else it is called on its networks: aliases, addresses, the names of its container and of its machine."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of its replicas."""
        if self.replicas == 1:
            return (self.name,)
        return tuple(f"{self.name}[{index}]" for index in range(1, self.replicas + 1))


@dataclass(frozen=True, order=True)
class Traffic:
    """Which of a link's packets are meant: all, those of a protocol, or those from or to a port of it."""

    protocol: str = ""
    """``tcp``, ``udp``, ``icmp`` (also ICMPv6), or empty for all."""
    port: int = 0
    """The port at either end; 0 for all."""

    def __str__(self) -> str:
        return f"{self.protocol}/{self.port}" if self.port else self.protocol

    @classmethod
    def parse(cls, text: str) -> Traffic:
        """``tcp/8888``, ``udp``, ``icmp``, or nothing. Raises InvalidValueError."""
        protocol, slash, port = text.partition("/")
        if bare := _BARE_PORT.fullmatch(text):
            named = " or ".join(f"{each}/{bare['port']}" for each in _PORTS if bare["protocol"] in (None, each))
            raise InvalidValueError(f"{shown(text)} is no part of a link: say {named}")
        if protocol not in _PROTOCOLS and protocol.lower() in _PROTOCOLS:
            raise InvalidValueError(f"{shown(text)}: write it in small letters: {text.lower()}")
        if text and protocol not in _PROTOCOLS:
            raise InvalidValueError(f"{shown(text)}: {unknown(protocol, _PROTOCOLS)}, with a port as in tcp/8888")
        if slash and protocol not in _PORTS:
            raise InvalidValueError(f"{shown(text)}: {protocol} has no ports")
        if slash and not (port.isdecimal() and 0 < int(port) < 65536):
            raise InvalidValueError(f"{shown(text)}: a port is a number from 1 to 65535, as in {protocol}/8888")
        return cls(protocol, int(port or 0))

    def covers(self, other: Traffic) -> bool:
        """Whether all packets of the other are also of this."""
        return self.protocol in ("", other.protocol) and self.port in (0, other.port)


ALL_TRAFFIC = Traffic()

NEIGHBOUR_DISCOVERY = range(133, 138)
"""ICMPv6 types without which there is no link to impair, as without ARP (RFC 4861, 3792): never among its packets."""

MULTICAST_LISTENERS = (130, 131, 132, 143)
"""Nor are those that tell which groups a host listens to, at moments of its own (RFC 2710, RFC 3810)."""


@dataclass(frozen=True, order=True)
class PortRef:
    """The name of a port: the end of a network toward one host; ``str()`` writes it as ``server@lan``."""

    host: str
    network: str

    def __str__(self) -> str:
        return f"{self.host}@{self.network}"


@dataclass(frozen=True, order=True)
class LinkRef:
    """The name of a link: where packets come from, where they go, on which network, and which of them."""

    src: str
    dst: str
    network: str
    traffic: Traffic = ALL_TRAFFIC
    to: str = ""
    """Of what a host sends to a router, only that which goes on to this host; empty for all."""

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
        """As JSON."""
        return {**vars(self), "traffic": str(self.traffic)}

    @classmethod
    def from_state(cls, state: Mapping[str, str]) -> LinkRef:
        """As another process wrote it."""
        traffic = Traffic.parse(state["traffic"])
        return cls(state["src"], state["dst"], state["network"], traffic, to=state.get("to", ""))

    def covers(self, other: LinkRef) -> bool:
        """Whether all packets of the other are also of this."""
        ends = (self.src, self.dst, self.network) == (other.src, other.dst, other.network)
        return ends and self.to in ("", other.to) and self.traffic.covers(other.traffic)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The hosts and networks of one stack."""

    services: Mapping[str, Service]
    networks: Mapping[str, Network]
    inactive: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Services that are not here, and the Compose profiles that have them."""

    @classmethod
    def from_compose(
        cls, config: Mapping[str, Any], *, inactive: Mapping[str, tuple[str, ...]] | None = None
    ) -> Topology:
        """Read the object that ``docker compose config --format json`` prints.

        ``inactive``: services that it leaves out, and their Compose profiles. Raises InvalidComposeError if there is no
        service, and for more hosts than any machine has.
        """
        services = {
            name: Service(
                name=name,
                networks=tuple(body.get("networks") or ()),
                network_mode=body.get("network_mode"),
                replicas=_replicas(body),
                image=body.get("image"),
                build=body.get("build"),
                router=is_router(body),
                also=frozenset(_also(body)),
            )
            for name, body in (config.get("services") or {}).items()
        }
        if not services:
            raise InvalidComposeError(
                "the Compose file has no active service; if its services carry `profiles:`, "
                "activate one with --compose-profile NAME or COMPOSE_PROFILES"
            )
        if (asked := sum(service.replicas for service in services.values())) > _MOST_HOSTS:
            most = max(services.values(), key=lambda each: each.replicas)
            raise InvalidComposeError(
                f"the Compose file asks for {shown(asked)} hosts, {shown(most.replicas)} of them {shown(most.name)}; "
                f"a lab has at most {_MOST_HOSTS}"
            )
        networks = {
            name: Network(
                name=name,
                engine_name=(body or {}).get("name", name),
                driver=(body or {}).get("driver") or "bridge",
            )
            for name, body in (config.get("networks") or {}).items()
        }
        left_out = {name: profiles for name, profiles in (inactive or {}).items() if name not in services}
        return cls(services=services, networks=networks, inactive=left_out)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host's name, in the order of the Compose file."""
        return tuple(host for service in self.services.values() for host in service.hosts)

    def service_of(self, host: str) -> Service | None:
        """The service whose replica a host is, or None if there is no such host."""
        return next((service for service in self.services.values() if host in service.hosts), None)

    def links(self, text: str) -> tuple[LinkRef, ...]:
        """The links that the user's words name: one for ``a -> b``, two for ``a <-> b``, more for several hosts.

        Raises InvalidValueError with every problem: unknown ends, no common network, several of them.
        """
        forward, reverse = self.directions(text)
        return forward + reverse

    def directions(self, text: str) -> tuple[tuple[LinkRef, ...], tuple[LinkRef, ...]]:
        """The same, apart: the links in the direction that is written, and, for ``<->``, those back."""
        if len(text) > _LONGEST_LINK:
            raise InvalidValueError(f"link {shown(text)}: {len(text)} characters; at most {_LONGEST_LINK}")
        said, match = _LINK.fullmatch(text), _LINK.fullmatch(without := _BLANKS_AT_COMMA.sub(",", text))
        if match is None:
            raise InvalidValueError(
                f'link {shown(text)}: write "client -> server" for one direction, "client <-> server" for both, '
                f'and "client -> server on lan" where two hosts share several networks'
            )
        problems: list[str] = []
        if said is None or said["b"] != match["b"]:
            problems.append(f"write several hosts without blanks: {without.strip()}")
        ends = f"{match['a']} {match['arrow']} {match['b']}"
        traffic, wanted = self._narrowed(ends, (match["rest"] or "").split(), problems)
        sources, targets = (self._hosts_named(match[end], problems) for end in ("a", "b"))
        problems += [problem for end in dict.fromkeys(sources + targets) if (problem := self._cannot_end_a_link(end))]
        forward: list[LinkRef] = []
        # Of several hosts, those pairs that can have a link; of one to one, that it cannot is a mistake.
        several = "*" in (match["a"], match["b"])
        for src, dst in product(sources, targets) if not problems else ():
            if src == dst:
                continue
            network, problem = self._common_network(src, dst, wanted)
            if network is not None:
                forward.append(LinkRef(src, dst, network, traffic))
            elif problem and not several:
                problems.append(problem)
        if not problems and not forward:
            problems.append("a host has no link to itself" if not several else "no two of these hosts share a network")
        if problems:
            raise InvalidValueError(f"link {shown(text)}: {problem}" for problem in dict.fromkeys(problems))
        known = set(forward)
        back = [LinkRef(ref.dst, ref.src, ref.network, ref.traffic) for ref in forward]
        reverse = [ref for ref in back if ref not in known] if match["arrow"] == "<->" else []
        return tuple(forward), tuple(reverse)

    def _narrowed(self, ends: str, words: list[str], problems: list[str]) -> tuple[Traffic, str | None]:
        """What stands behind the ends of a link: which part of its traffic, and on which network."""
        on = words.index("on") if "on" in words else len(words)
        parts, networks = [part for word in words[:on] for part in word.split(",")], words[on + 1 :]
        traffic = ALL_TRAFFIC
        if len(parts) > 1:
            problems.append(f"{shown(' '.join(words[:on]))}: one part at a time; write a link for each")
        try:
            traffic = Traffic.parse(parts[0]) if len(parts) == 1 else ALL_TRAFFIC
        except InvalidValueError as error:
            said = parts[0]
            problems += [f'{shown(said)} is a network; write "on {said}"'] if said in self.networks else error.problems
        if on < len(words) and not networks:
            problems.append(f'which network? Write "{ends} on lan"')
        elif len(networks) > 1:
            late = " ".join(networks[1:]).lower()
            problems.append(
                f"the part stands before `on`: {ends} {late} on {networks[0]}" if _is_traffic(late)
                else f"{shown(' '.join(words[on:]))}: one network at a time"
            )  # fmt: skip
        return traffic, networks[0] if networks else None

    def _hosts_named(self, text: str, problems: list[str]) -> tuple[str, ...]:
        """The hosts that one end of a link stands for; names that are none are left for the caller to refuse."""
        if text == "*":
            return tuple(host for host in self.hosts if self._cannot_end_a_link(host) is None)
        hosts: list[str] = []
        for part in text.split(","):
            match = _REPLICAS.fullmatch(part)
            service = self.services.get(match["service"]) if match else None
            if match is None or service is None:
                hosts.append(part)
                continue
            first, last = (1, service.replicas) if match["all"] else (int(match["first"]), int(match["last"]))
            if not 1 <= min(first, last) <= max(first, last) <= service.replicas:
                problems.append(f"{shown(part)}: {service.name} has {service.replicas} replicas, counted from 1")
                continue
            if last < first:
                problems.append(f"{shown(part)}: the range runs backwards; write {service.name}[{last}..{first}]")
                continue
            hosts += service.hosts[first - 1 : last]
        return tuple(dict.fromkeys(hosts))

    def links_between(self, *groups: Iterable[str], traffic: Traffic = ALL_TRAFFIC) -> tuple[LinkRef, ...]:
        """Every link between hosts of different groups, both ways, on every network that they share.

        Where routers lead from one to the other all the same: what the one sends on to the other, at each router beside
        it. Raises InvalidValueError with every problem: fewer than two groups, an empty one, unknown hosts, a host in
        two groups, hosts that share a network without ports, and groups that nothing joins.
        """
        problems: list[str] = []
        sides = [self._members(group, problems) for group in groups]
        everyone = [host for side in sides for host in side]
        problems += [problem for host in dict.fromkeys(everyone) if (problem := self._cannot_end_a_link(host))]
        problems += [
            f"host {shown(host)} is in two groups" for host in dict.fromkeys(everyone) if everyone.count(host) > 1
        ]
        if len(sides) < 2:
            problems.append('a partition needs two groups of hosts: partition({"a", "b"}, {"c"})')
        elif not all(sides) and not problems:
            problems.append("a group of a partition is empty: there is nobody to be cut off")
        links: list[LinkRef] = []
        if not problems:
            side_of = {host: number for number, side in enumerate(sides) for host in side}
            for side, other in permutations(sides, 2):
                for src, dst in product(side, other):
                    links += self._links_to_cut(src, dst, traffic, side_of, problems)
        if not problems and not links:
            where = "; ".join(f"{host} is on {', '.join(self.networks_of(host))}" for host in everyone)
            problems.append(
                f"nothing to cut: these groups share no network, and no router joins them: {where}. A service that "
                "passes packets on has links of its own to cut"
            )
        if problems:
            raise InvalidValueError(dict.fromkeys(problems))
        return tuple(links)

    def links_around(self, text: str, *, traffic: Traffic = ALL_TRAFFIC) -> tuple[LinkRef, ...]:
        """Every link of one host, or of each of several, as `links_between` has them. Raises InvalidValueError."""
        problems: list[str] = []
        alone = self._members([text], problems)
        problems += [problem for host in alone if (problem := self._cannot_end_a_link(host))]
        if problems:
            raise InvalidValueError(dict.fromkeys(problems))
        rest = [host for host in self._hosts_named("*", problems) if host not in alone]
        groups = [*([host] for host in alone), *([rest] if rest else [])]
        if len(groups) < 2:
            raise InvalidValueError(f"{shown(text)}: nothing to cut: there is no other host")
        return self.links_between(*groups, traffic=traffic)

    def _members(self, group: Iterable[str], problems: list[str]) -> tuple[str, ...]:
        """The hosts of a group, in which each may be named as the end of a link is."""
        words = [group] if isinstance(group, str) else list(group)
        problems += [f"{shown(word)} is no host's name: it must be text" for word in words if not isinstance(word, str)]
        words = [word for word in words if isinstance(word, str)]
        return tuple(dict.fromkeys(host for word in words for host in self._hosts_named(word, problems)))

    def _links_to_cut(
        self, src: str, dst: str, traffic: Traffic, side_of: Mapping[str, int], problems: list[str]
    ) -> Iterator[LinkRef]:
        """What must be cut to part one host from another, all links between other groups being cut too."""
        mine, others = self.networks_of(src), self.networks_of(dst)
        for network in mine:
            if network not in others:
                continue
            if (driver := self.networks[network].driver) != "bridge":
                first, second = sorted((src, dst))
                problems.append(
                    f"{first} and {second} share network {shown(network)} of driver {shown(driver)}, which has no "
                    f"ports to cut"
                )
            yield LinkRef(src, dst, network, traffic)
        beyond = {network for network in others if network not in mine}
        for network in mine:
            for router in self._routers_on(network):
                if router not in (src, dst) and self._leads_on(src, router, dst, beyond, side_of):
                    yield LinkRef(src, router, network, traffic, to=dst)

    def _leads_on(self, src: str, router: str, dst: str, networks: set[str], side_of: Mapping[str, int]) -> bool:
        """Whether what a host gives a router reaches one of another host's networks, over no link that is cut."""

        def cut(one: str, other: str) -> bool:
            return one in side_of and other in side_of and side_of[one] != side_of[other]

        if cut(src, router):
            return False
        found = [router]
        for each in found:
            if not cut(each, dst) and networks.intersection(self.networks_of(each)):
                return True
            around = {near for network in self.networks_of(each) for near in self._routers_on(network)}
            found += [near for near in around if near not in (*found, src, dst) and not cut(each, near)]
        return False

    def _routers_on(self, network: str) -> list[str]:
        return [host for each in self.services.values() if each.router and network in each.networks
                for host in each.hosts]  # fmt: skip

    def _cannot_end_a_link(self, host: str) -> str | None:
        service = self.service_of(host)
        if service is None:
            if host in self.services:
                replicas = self.services[host].replicas
                hint = f"name one, as {host}[1], or all, {host}[*]" if replicas else "there is no host to link"
                return f"{shown(host)} has {replicas} replicas; {hint}"
            match = _REPLICA.fullmatch(host)
            several = self.services.get(match["service"]) if match else None
            if several is not None and several.replicas > 1:
                return f"{shown(host)}: {several.name} has {several.replicas} replicas, counted from 1"
            return f"host {shown(host)}: {self.unknown_host(host)}"
        if service.network_mode:
            said = (
                f"host {shown(host)} has `network_mode: {service.network_mode}` and so no port of its own to impair; "
            )
            kind, _, other = service.network_mode.partition(":")
            if kind == "service" and other in self.services:
                return f"{said}its packets are those of {other}: name {other}"
            return f"{said}write `networks:` in its place"
        if not service.networks:
            return f"host {shown(host)} is on no network; give the service one under `networks:`"
        return None

    def unknown_host(self, name: str) -> str:
        """What to say of a name that is no host's: what was meant by it, where that can be told."""
        host, _, port = name.rpartition(":")
        if profiles := self.inactive.get(name.partition("[")[0]):
            return (
                f"belongs to the Compose profile {' or '.join(map(shown, profiles))}, which is not active; activate "
                f"it: --compose-profile {profiles[0]}"
            )
        if port.isdecimal() and (host in self.hosts or host in self.services):
            return f'a port stands behind the link: "a -> {host} tcp/{port}"'
        for service in self.services.values():
            if name in service.also or re.fullmatch(rf".+[-_]{re.escape(service.name)}[-_]\d+", name):
                return f"that is a name or an address of {service.name}; call it {_any_of(service)}"
        if name.lower() in _MACHINE:
            return (
                f"that is the machine itself, or a host's own loopback, and no link has its end there: what it sends "
                f"to a published port is never impaired; run its program in a service of the stack, or name a host: "
                f"{listing(self.hosts)}"
            )
        if name.lower() in _OUTSIDE:
            return f"no link leads out of the stack; {_STAND_IN}, or name a host: {listing(self.hosts)}"
        if _ADDRESS.fullmatch(name):
            return (
                f"an address that the Compose file gives to nobody; name a host: {listing(self.hosts)}. If it is "
                f"outside the stack, {_STAND_IN}"
            )
        return unknown(name, self.hosts)

    def _common_network(self, a: str, b: str, wanted: str | None) -> tuple[str | None, str | None]:
        """The network that carries the link, or what is wrong."""
        on_a, on_b = (self.networks_of(host) for host in (a, b))
        common = [name for name in on_a if name in on_b]
        if not common:
            return None, f"{a} (on {', '.join(on_a)}) and {b} (on {', '.join(on_b)}) share no network"
        if wanted is not None and wanted not in common:
            if wanted in self.networks:
                off = a if wanted not in on_a else b
                return None, f"{off} is not on network {shown(wanted)}; {a} and {b} share: {', '.join(common)}"
            return (
                None,
                f"network {shown(wanted)}: {unknown(wanted, common)} (the networks that {a} and {b} share)",
            )
        if wanted is None and len(common) > 1:
            return None, f'{a} and {b} share several networks; add " on NETWORK": {", ".join(common)}'
        chosen = self.networks[wanted or common[0]]
        if chosen.driver != "bridge":
            return (
                None,
                f"network {shown(chosen.name)} has driver {shown(chosen.driver)}; only a bridge has ports to impair",
            )
        return chosen.name, None

    def networks_of(self, host: str) -> tuple[str, ...]:
        """The networks that a host is on."""
        service = self.service_of(host)
        return service.networks if service else ()


def _is_traffic(text: str) -> bool:
    try:
        Traffic.parse(text)
    except InvalidValueError:
        return False
    return True


def _any_of(service: Service) -> str:
    return service.name if service.replicas == 1 else f"{service.name}[1], or {service.name}[*]"


def _also(body: Mapping[str, Any]) -> Iterator[str]:
    """What a service is called besides its name."""
    yield from (str(body[key]) for key in ("container_name", "hostname") if body.get(key))
    networks = body.get("networks")
    for joined in networks.values() if isinstance(networks, Mapping) else ():
        for key in ("ipv4_address", "ipv6_address"):
            if (joined or {}).get(key):
                yield str(joined[key])
        yield from map(str, filter(None, (joined or {}).get("aliases") or ()))


def _replicas(service: Mapping[str, Any]) -> int:
    replicas = (service.get("deploy") or {}).get("replicas")
    return int(replicas if replicas is not None else service.get("scale", 1))
