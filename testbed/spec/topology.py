"""Hosts and networks of a Compose file, and the links that a user may name.

Pure: the input is the JSON of ``docker compose config``. A *host* is one replica of a service; its name is the
service's, followed by ``[n]`` if there are several. The user writes a link as ``client -> server``, both directions as
``client <-> server``, and adds ``on NETWORK`` if two hosts share several networks. An end may stand for several hosts:
``client[*]``, ``client[1..20]``, ``client,worker``, ``*``. One end may be beyond the stack: see `testbed.spec.beyond`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any

from testbed.errors import InvalidComposeError, InvalidValueError
from testbed.spec.beyond import canonical, is_beyond, misnamed
from testbed.spec.drawings import is_router
from testbed.spec.links import ALL_TRAFFIC, LOCALHOST, LinkRef, Traffic
from testbed.spec.words import listing, unknown
from testbed.text import shown

_LINK = re.compile(r"\s*(?P<a>\S+?)\s*(?P<arrow><->|->)\s*(?P<b>\S+?)(?:\s+(?P<rest>\S.*?))?\s*")
_BLANKS_AT_COMMA = re.compile(r"\s+,\s*|,\s+")
_REPLICA = re.compile(r"(?P<service>[^\[\]]+)\[\d+\]")
_REPLICAS = re.compile(r"(?P<service>[^\[\]]+)\[(?:(?P<all>\*)|(?P<first>\d+)\.\.(?P<last>\d+))\]")
_MOST_HOSTS = 10_000
_LONGEST_LINK = 10_000


@dataclass(frozen=True, kw_only=True)
class Network:
    """A layer-2 segment."""

    name: str
    """Its key in the Compose file."""
    engine_name: str
    """The engine's name for it."""
    driver: str = "bridge"
    """The engine's network driver; only ports of a ``bridge`` can be impaired."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service of the Compose file."""

    name: str
    networks: tuple[str, ...] = ()
    network_mode: str | None = None
    replicas: int = 1
    image: str | None = None
    build: Mapping[str, Any] | None = None
    router: bool = False
    """Whether its hosts forward packets."""
    also: frozenset[str] = frozenset()
    """Its other names: aliases, addresses, container name and host name."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of its replicas."""
        if self.replicas == 1:
            return (self.name,)
        return tuple(f"{self.name}[{index}]" for index in range(1, self.replicas + 1))


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The hosts and networks of one stack."""

    services: Mapping[str, Service]
    networks: Mapping[str, Network]
    inactive: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Services that are not active, and the Compose profiles that have them."""
    no_way_out: str = ""
    """Why hosts reach nothing outside; empty if they do."""

    @classmethod
    def from_compose(
        cls,
        config: Mapping[str, Any],
        *,
        inactive: Mapping[str, tuple[str, ...]] | None = None,
        no_way_out: str = "",
    ) -> Topology:
        """The topology of the object that ``docker compose config --format json`` prints.

        ``inactive``: services that are not in it, and their Compose profiles. Raises InvalidComposeError if there is no
        service, or too many hosts.
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
        if (count := sum(service.replicas for service in services.values())) > _MOST_HOSTS:
            largest = max(services.values(), key=lambda service: service.replicas)
            raise InvalidComposeError(
                f"the Compose file has {shown(count)} hosts, {shown(largest.replicas)} of them {shown(largest.name)}; "
                f"a lab has at most {_MOST_HOSTS}"
            )
        bodies = ((name, body or {}) for name, body in (config.get("networks") or {}).items())
        networks = {
            name: Network(name=name, engine_name=body.get("name", name), driver=body.get("driver") or "bridge")
            for name, body in bodies
        }
        left_out = {name: profiles for name, profiles in (inactive or {}).items() if name not in services}
        return cls(services=services, networks=networks, inactive=left_out, no_way_out=no_way_out)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of all hosts, in the order of the Compose file."""
        return tuple(host for service in self.services.values() for host in service.hosts)

    def service_of(self, host: str) -> Service | None:
        """The service of a host, or None if there is no such host."""
        return next((service for service in self.services.values() if host in service.hosts), None)

    def links(self, text: str) -> tuple[LinkRef, ...]:
        """The links that a text names: one for ``a -> b``, two for ``a <-> b``, more for several hosts.

        Raises InvalidValueError with every problem: unknown ends, no common network, several of them.
        """
        forward, reverse = self.directions(text)
        return forward + reverse

    def directions(self, text: str) -> tuple[tuple[LinkRef, ...], tuple[LinkRef, ...]]:
        """The same in two parts: the links in the written direction and, for ``<->``, those back."""
        if len(text) > _LONGEST_LINK:
            raise InvalidValueError(f"link {shown(text)}: {len(text)} characters; at most {_LONGEST_LINK}")
        written, match = _LINK.fullmatch(text), _LINK.fullmatch(without := _BLANKS_AT_COMMA.sub(",", text))
        if match is None:
            raise InvalidValueError(
                f'link {shown(text)}: write "client -> server" for one direction, "client <-> server" for both, '
                f'and "client -> server on lan" where two hosts share several networks'
            )
        problems: list[str] = []
        if written is None or written["b"] != match["b"]:
            problems.append(f"write several hosts without blanks: {without.strip()}")
        ends = f"{match['a']} {match['arrow']} {match['b']}"
        traffic, on_network = self._narrowed(ends, (match["rest"] or "").split(), problems)
        sources, targets = (self._hosts_named(match[end], problems) for end in ("a", "b"))
        problems += [problem for end in dict.fromkeys(sources + targets) if (problem := self._cannot_end_a_link(end))]
        forward: list[LinkRef] = []
        # With ``*``, pairs that cannot have a link are left out; otherwise they are problems.
        several = "*" in (match["a"], match["b"])
        for src, dst in product(sources, targets) if not problems else ():
            if src == dst:
                continue
            refs, problem = self._links_of(src, dst, on_network, traffic)
            forward += refs
            if problem and not several:
                problems.append(problem)
        if not problems and not forward:
            problems.append("a host has no link to itself" if not several else "no two of these hosts share a network")
        if problems:
            raise InvalidValueError(f"link {shown(text)}: {problem}" for problem in dict.fromkeys(problems))
        known = set(forward)
        back = [ref.back() for ref in forward]
        reverse = [ref for ref in back if ref not in known] if match["arrow"] == "<->" else []
        return tuple(forward), tuple(reverse)

    def _narrowed(self, ends: str, words: list[str], problems: list[str]) -> tuple[Traffic, str | None]:
        """The part of the traffic and the network, from the words behind the ends of a link."""
        on = words.index("on") if "on" in words else len(words)
        parts, networks = [part for word in words[:on] for part in word.split(",")], words[on + 1 :]
        traffic = ALL_TRAFFIC
        if len(parts) > 1:
            problems.append(f"{shown(' '.join(words[:on]))}: one part at a time; write one link per part")
        try:
            traffic = Traffic.parse(parts[0]) if len(parts) == 1 else ALL_TRAFFIC
        except InvalidValueError as error:
            name = parts[0]
            problems += [f'{shown(name)} is a network; write "on {name}"'] if name in self.networks else error.problems
        if on < len(words) and not networks:
            problems.append(f'which network? Write "{ends} on lan"')
        elif len(networks) > 1:
            late = " ".join(networks[1:]).lower()
            is_part = f"the part stands before `on`: {ends} {late} on {networks[0]}"
            problems.append(is_part if _is_traffic(late) else f"{shown(' '.join(words[on:]))}: one network at a time")
        return traffic, networks[0] if networks else None

    def _hosts_named(self, text: str, problems: list[str]) -> tuple[str, ...]:
        """The hosts that one end of a link stands for; unknown names are among them, for the caller to refuse."""
        if text == "*":
            return tuple(host for host in self.hosts if self._cannot_end_a_link(host) is None)
        hosts: list[str] = []
        for part in text.split(","):
            match = _REPLICAS.fullmatch(part)
            service = self.services.get(match["service"]) if match else None
            if match is None or service is None:
                hosts.append(part if part in self.services else canonical(part))
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
        """Every link between hosts of different groups, in both directions, on every network that they share.

        If routers join two hosts, too: the packets from one host to the other, at each router next to the sender.
        Raises InvalidValueError with every problem: fewer than two groups, an empty group, unknown hosts, a host in two
        groups, a shared network without ports, and groups that nothing joins.
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
            problems.append("a group of a partition is empty: no host to cut off")
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
                "forwards packets has links of its own to cut"
            )
        if problems:
            raise InvalidValueError(dict.fromkeys(problems))
        return tuple(links)

    def links_around(self, text: str, *, traffic: Traffic = ALL_TRAFFIC) -> tuple[LinkRef, ...]:
        """Every link of the hosts that a text names; see `links_between`. Raises InvalidValueError."""
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
        """The hosts of a group; they are named as the ends of links are."""
        words = [group] if isinstance(group, str) else list(group)
        problems += [
            f"{shown(word)} is not the name of a host: write a text" for word in words if not isinstance(word, str)
        ]
        words = [word for word in words if isinstance(word, str)]
        return tuple(dict.fromkeys(host for word in words for host in self._hosts_named(word, problems)))

    def _links_to_cut(
        self, src: str, dst: str, traffic: Traffic, side_of: Mapping[str, int], problems: list[str]
    ) -> Iterator[LinkRef]:
        """The links to cut between two hosts, if all links between other groups are cut, too."""
        if self._is_beyond(src) or self._is_beyond(dst):
            yield from self._links_beyond(src, dst, None, traffic)
            return
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
        """Whether packets that a host sends to a router reach another host's networks over links that are not cut."""

        def cut(one: str, other: str) -> bool:
            return one in side_of and other in side_of and side_of[one] != side_of[other]

        if cut(src, router):
            return False
        reached = [router]
        for hop in reached:
            if not cut(hop, dst) and networks.intersection(self.networks_of(hop)):
                return True
            neighbours = {near for network in self.networks_of(hop) for near in self._routers_on(network)}
            reached += [near for near in neighbours if near not in (*reached, src, dst) and not cut(hop, near)]
        return False

    def _routers_on(self, network: str) -> list[str]:
        routers = (service for service in self.services.values() if service.router and network in service.networks)
        return [host for service in routers for host in service.hosts]

    def _is_beyond(self, name: str) -> bool:
        return is_beyond(name, self.services)

    def _cannot_end_a_link(self, host: str) -> str | None:
        if self._is_beyond(host) and not any(host in service.also for service in self.services.values()):
            return None if host == LOCALHOST or not self.no_way_out else f"{shown(host)}: {self.no_way_out}"
        service = self.service_of(host)
        if service is None:
            if host in self.services:
                replicas = self.services[host].replicas
                hint = f"name one, as {host}[1], or all, {host}[*]" if replicas else "there is no host to link"
                return f"{shown(host)} has {replicas} replicas; {hint}"
            match = _REPLICA.fullmatch(host)
            replicated = self.services.get(match["service"]) if match else None
            if replicated is not None and replicated.replicas > 1:
                return f"{shown(host)}: {replicated.name} has {replicated.replicas} replicas, counted from 1"
            return f"host {shown(host)}: {self.unknown_host(host)}"
        if service.network_mode:
            no_port = (
                f"host {shown(host)} has `network_mode: {service.network_mode}`, and so no port of its own to impair; "
            )
            kind, _, other = service.network_mode.partition(":")
            if kind == "service" and other in self.services:
                return f"{no_port}its packets are those of {other}: name {other}"
            return f"{no_port}write `networks:` instead"
        if not service.networks:
            return f"host {shown(host)} is on no network; give the service one under `networks:`"
        return None

    def unknown_host(self, name: str) -> str:
        """The report of a name that no host has, with what was probably meant."""
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
        return misnamed(name) or unknown(name, self.hosts)

    def _links_of(self, src: str, dst: str, named: str | None, traffic: Traffic) -> tuple[list[LinkRef], str | None]:
        """The links from one end to another, or what is wrong; from or to a host alone there is one."""
        if self._is_beyond(src) or self._is_beyond(dst):
            refs = list(self._links_beyond(src, dst, named, traffic))
            host = dst if self._is_beyond(src) else src
            if refs:
                return refs, None
            if self._is_beyond(host):
                return [], f"one end of a link is a host of the stack: {listing(self.hosts)}"
            on = ", ".join(self.networks_of(host))
            return [], f"{host} is on no bridge network" + (f" {shown(named)}; it is on {on}" if named else f": {on}")
        network, problem = self._common_network(src, dst, named)
        return [] if network is None else [LinkRef(src, dst, network, traffic)], problem

    def _links_beyond(self, src: str, dst: str, named: str | None, traffic: Traffic) -> Iterator[LinkRef]:
        """The links between a host and something beyond the stack: one for each network of the host, or the named."""
        beyond, host = ("src", dst) if self._is_beyond(src) else ("dst", src)
        for network in self.networks_of(host):
            if named in (None, network) and self.networks[network].driver == "bridge":
                yield LinkRef(src, dst, network, traffic, beyond=beyond)

    def _common_network(self, a: str, b: str, named: str | None) -> tuple[str | None, str | None]:
        """The network of the link from a to b, or what is wrong."""
        on_a, on_b = (self.networks_of(host) for host in (a, b))
        common = [name for name in on_a if name in on_b]
        if not common:
            return None, f"{a} (on {', '.join(on_a)}) and {b} (on {', '.join(on_b)}) share no network"
        if named is not None and named not in common:
            if named in self.networks:
                off = a if named not in on_a else b
                return None, f"{off} is not on network {shown(named)}; {a} and {b} share: {', '.join(common)}"
            return None, f"network {shown(named)}: {unknown(named, common)} (the networks that {a} and {b} share)"
        if named is None and len(common) > 1:
            return None, f'{a} and {b} share several networks; add " on NETWORK": {", ".join(common)}'
        network = self.networks[named or common[0]]
        if network.driver != "bridge":
            driver = shown(network.driver)
            return None, f"network {shown(network.name)} has driver {driver}; only a bridge has ports to impair"
        return network.name, None

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
