"""Topologies from code (`testbed.topologies`): a star, a chain of routers, a dumbbell. Pure.

Numbers in, the words of a Compose file out.

::

    with LocalLab(topologies.chain(5)) as lab:
        lab.impair("r2 -> r3", delay="20ms")
        assert lab.host("left").run(["ping", "-c1", "right"]).ok

The same in a Compose file, whose services define what the ends run::

    x-testbed: {topology: {chain: 5, ends: [client, server]}}

In a network of any other shape, ``x-testbed: {router: true}`` makes a service a router. Routers forward packets, and
every host has a static route to each network that can be reached; `backends.local.routing` computes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from typing import Any

from testbed.errors import InvalidValueError
from testbed.spec.words import unknown
from testbed.text import shown

_MOST_HOSTS = 10_000
ROUTER = "router"
"""The word under a service's ``x-testbed`` that makes it a router."""
SHAPES = ("star", "chain", "dumbbell")
WORDS = (*SHAPES, "host", "ends", "ipv6")

_POOL = IPv4Network("10.0.0.0/8")
_POOL_V6 = IPv6Network("fd10::/48")
_LEAST_PREFIX, _RESERVED = 24, 3
"""The smallest subnet; network, gateway and broadcast addresses belong to no host."""
_EMPTY: Mapping[str, Any] = {"x-testbed": {"local": {"python": True}}}
"""A host with this machine's programs, which runs none of them by itself."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Hosts and networks in the words of a Compose file."""

    name: str
    """The call that made it: ``chain(5)``."""
    services: Mapping[str, Mapping[str, Any]]
    networks: Mapping[str, Mapping[str, Any]]


Services = Mapping[str, Mapping[str, Any]]
"""What hosts run: the words of a service of a Compose file, by its name."""


def star(hosts: int, *, host: str = "host", ipv6: bool = False, services: Services | None = None) -> Drawing:
    """N hosts around one switch: ``host[1]`` … ``host[N]`` on the network ``lan``.

    Raises InvalidValueError for a number below 1, and for services that are not among its hosts.
    """
    _check("star", [hosts], [host], services)
    return _drawn(f"star({hosts})", [("lan", {host: hosts})], services or {}, ipv6=ipv6)


def chain(
    routers: int, *, ends: Sequence[str] = ("left", "right"), ipv6: bool = False, services: Services | None = None
) -> Drawing:
    """Two hosts with N routers between them: ``left``, ``r1`` … ``rN``, ``right``.

    Each hop is a separate network, named after its ends: ``left-r1``, ``r1-r2``, … Raises InvalidValueError.
    """
    _check("chain", [routers], ends, services)
    between = [f"r{number}" for number in range(1, routers + 1)]
    hops = pairwise([ends[0], *between, ends[1]])
    joined = [(f"{one}-{other}", {one: 1, other: 1}) for one, other in hops]
    return _drawn(f"chain({routers})", joined, services or {}, routers=between, ipv6=ipv6)


def dumbbell(
    left: int,
    right: int,
    *,
    ends: Sequence[str] = ("left", "right"),
    ipv6: bool = False,
    services: Services | None = None,
) -> Drawing:
    """Hosts on either side of a bottleneck between two routers.

    ``left[1]`` … on the network ``left`` with ``r1``, ``right[1]`` … on ``right`` with ``r2``, and the routers on
    ``bottleneck``. (A single host is called ``left``, like a service's only replica.) Raises InvalidValueError.
    """
    _check("dumbbell", [left, right], ends, services)
    joined = [
        (ends[0], {ends[0]: left, "r1": 1}),
        ("bottleneck", {"r1": 1, "r2": 1}),
        (ends[1], {ends[1]: right, "r2": 1}),
    ]
    return _drawn(f"dumbbell({left}, {right})", joined, services or {}, routers=["r1", "r2"], ipv6=ipv6)


def from_words(words: object, services: Services) -> Drawing:
    """The topology of ``x-testbed: {topology: …}`` in a Compose file, with the file's services for its hosts.

    Raises InvalidValueError with every problem.
    """
    if not isinstance(words, Mapping):
        raise InvalidValueError(f"topology {shown(words)}: write {{chain: 5}}, {{star: 100}} or {{dumbbell: [10, 10]}}")
    problems = [f"topology: {shown(word)}: {unknown(str(word), WORDS)}" for word in words if word not in WORDS]
    shapes = [shape for shape in SHAPES if shape in words]
    if len(shapes) != 1:
        problems.append(f"topology: name one of {', '.join(SHAPES)}, not {len(shapes)}")
    if problems:
        raise InvalidValueError(problems)
    (shape,) = shapes
    sizes = words[shape] if isinstance(words[shape], list) else [words[shape]]
    if len(sizes) != (2 if shape == "dumbbell" else 1):
        needs = "two numbers" if shape == "dumbbell" else "a number"
        raise InvalidValueError(f"topology {shape}: {shown(words[shape])}: give {needs}")
    extra: dict[str, Any] = {"ipv6": bool(words.get("ipv6", False))}
    misplaced = "ends" if shape == "star" else "host"
    if misplaced in words:
        raise InvalidValueError(f"topology {shape}: has no `{misplaced}:`")
    if "host" in words:
        extra["host"] = str(words["host"])
    if "ends" in words:
        extra["ends"] = words["ends"]
    makers = {"star": star, "chain": chain, "dumbbell": dumbbell}
    hosts = makers[shape](*sizes, **extra).services  # type: ignore[operator]  # each takes its own
    own = {name: services[name] for name in hosts if name in services}
    drawn: Drawing = makers[shape](*sizes, **extra, services=own)  # type: ignore[operator]  # likewise
    return drawn


def only_local(config: Mapping[str, Any]) -> Iterator[str]:
    """What of a Compose file only a local lab can do: Docker has no routers and no topologies."""
    if "topology" in (config.get("x-testbed") or {}):
        yield "`x-testbed: {topology: …}`"
    for name, body in (config.get("services") or {}).items():
        if isinstance(body, Mapping) and is_router(body):
            yield f"service {shown(name)}: `x-testbed: {{router: true}}`"


def is_router(body: Mapping[str, Any]) -> bool:
    """Whether a service forwards packets."""
    extension = body.get("x-testbed")
    return isinstance(extension, Mapping) and extension.get(ROUTER) is True


def _check(shape: str, sizes: Sequence[object], ends: object, services: Services | None) -> None:
    problems = [
        f"{shape}({shown(size)}): must be a whole number from 1"
        for size in sizes
        if not isinstance(size, int) or isinstance(size, bool) or size < 1
    ]
    named = [str(end) for end in ends] if isinstance(ends, list | tuple) else []
    if not named or (shape != "star" and len(set(named)) != 2) or not all(named):
        problems.append(f"{shape}: ends {shown(ends)}: give two different names")
    if not problems and sum(size for size in sizes if isinstance(size, int)) > _MOST_HOSTS:
        problems.append(f"{shape}({', '.join(map(shown, sizes))}): at most {_MOST_HOSTS} hosts and routers")
    if shape != "star" and (taken := [end for end in named if end[:1] == "r" and end[1:].isdecimal()]):
        problems.append(f"{shape}: {shown(taken[0])} is a router's name")
    for name, body in (services or {}).items():
        if name not in named:
            problems.append(f"{shape}: service {shown(name)}: {unknown(name, named)}")
        problems += [
            f"{shape}: service {shown(name)}: `{word}:` is defined by the topology"
            for word in ("networks", "network_mode", "scale", "deploy")
            if word in body
        ]
    if problems:
        raise InvalidValueError(problems)


def _drawn(
    name: str,
    joined: Sequence[tuple[str, Mapping[str, int]]],
    services: Services,
    *,
    ipv6: bool,
    routers: Iterable[str] = (),
) -> Drawing:
    """``joined``: the networks, each with its number of hosts by service."""
    bodies: dict[str, dict[str, Any]] = {}
    networks: dict[str, dict[str, Any]] = {}
    subnets = _subnets([sum(members.values()) for _, members in joined])
    for number, ((network, members), subnet) in enumerate(zip(joined, subnets, strict=True)):
        config = [{"subnet": str(subnet)}]
        if ipv6:
            config.append({"subnet": str(IPv6Network((int(_POOL_V6.network_address) + (number << 64), 64)))})
        networks[network] = {"ipam": {"config": config}, **({"enable_ipv6": True} if ipv6 else {})}
        for service, count in members.items():
            body = bodies.setdefault(service, {**services.get(service, _EMPTY), "networks": {}, "scale": count})
            body["networks"][network] = None
    for router in routers:
        bodies[router]["x-testbed"] = {**_EMPTY["x-testbed"], ROUTER: True}
    return Drawing(name=name, services=bodies, networks=networks)


def _subnets(sizes: Iterable[int]) -> Iterator[IPv4Network]:
    """A subnet for each number of hosts, in order."""
    at = int(_POOL.network_address)
    for size in sizes:
        prefix = min(_LEAST_PREFIX, 32 - (size + _RESERVED - 1).bit_length())
        length = 1 << (32 - prefix)
        at = -(-at // length) * length
        if at + length > int(_POOL.broadcast_address) + 1:
            raise InvalidValueError(f"{_POOL} has no room for so many hosts and networks")
        yield IPv4Network((at, prefix))
        at += length
