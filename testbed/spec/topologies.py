"""Topologies from code: a star, a chain of routers, a dumbbell. Pure: numbers in, the words of a Compose file out.

::

    with LocalLab(topologies.chain(5)) as lab:
        lab.impair("r2 -> r3", delay="20ms")
        assert lab.host("left").run(["ping", "-c1", "right"]).ok

The same in a Compose file, whose services say what the ends run::

    x-testbed: {topology: {chain: 5, ends: [client, server]}}

A service that joins networks of any other shape is a router by ``x-testbed: {router: true}``. Routers forward, and
every host has a static route to each network that can be reached; `backends.local.routing` finds them.
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
"""The word under a service's ``x-testbed`` that makes it one."""
SHAPES = ("star", "chain", "dumbbell")
WORDS = (*SHAPES, "host", "ends", "ipv6")

_POOL = IPv4Network("10.0.0.0/8")
_POOL_V6 = IPv6Network("fd10::/48")
_LEAST_PREFIX, _RESERVED = 24, 3
"""No subnet is smaller; network, gateway and broadcast addresses are no host's."""
_EMPTY: Mapping[str, Any] = {"x-testbed": {"local": {"python": True}}}
"""A host that runs nothing until it is told to, and has this machine's programs."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Hosts and how they are joined, in the words of a Compose file."""

    name: str
    """How it is called: ``chain(5)``."""
    services: Mapping[str, Mapping[str, Any]]
    networks: Mapping[str, Mapping[str, Any]]


Services = Mapping[str, Mapping[str, Any]]
"""What hosts run: a service's words as in a Compose file, by its name."""


def star(hosts: int, *, host: str = "host", ipv6: bool = False, services: Services | None = None) -> Drawing:
    """So many hosts around one switch: ``host[1]`` … ``host[N]`` on the network ``lan``.

    Raises InvalidValueError for a number below 1, and for services that are none of its hosts.
    """
    _check("star", [hosts], [host], services)
    return _drawn(f"star({hosts})", [("lan", {host: hosts})], services or {}, ipv6=ipv6)


def chain(
    routers: int, *, ends: Sequence[str] = ("left", "right"), ipv6: bool = False, services: Services | None = None
) -> Drawing:
    """Two hosts with so many routers between them: ``left``, ``r1`` … ``rN``, ``right``.

    Each hop is a network of its own, named after its ends: ``left-r1``, ``r1-r2``, … Raises InvalidValueError.
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
    ``bottleneck``. (One host alone is called ``left``, as a service's only replica is.) Raises InvalidValueError.
    """
    _check("dumbbell", [left, right], ends, services)
    joined = [
        (ends[0], {ends[0]: left, "r1": 1}), ("bottleneck", {"r1": 1, "r2": 1}), (ends[1], {ends[1]: right, "r2": 1}),
    ]  # fmt: skip
    return _drawn(f"dumbbell({left}, {right})", joined, services or {}, routers=["r1", "r2"], ipv6=ipv6)


def from_words(said: object, services: Services) -> Drawing:
    """What ``x-testbed: {topology: …}`` of a Compose file asks for, with the file's own services for its hosts.

    Raises InvalidValueError with every problem.
    """
    if not isinstance(said, Mapping):
        raise InvalidValueError(f"topology {shown(said)}: write {{chain: 5}}, {{star: 100}} or {{dumbbell: [10, 10]}}")
    problems = [f"topology: {shown(word)}: {unknown(str(word), WORDS)}" for word in said if word not in WORDS]
    shapes = [shape for shape in SHAPES if shape in said]
    if len(shapes) != 1:
        problems.append(f"topology: name one of {', '.join(SHAPES)}, not {len(shapes)}")
    if problems:
        raise InvalidValueError(problems)
    (shape,) = shapes
    sizes = said[shape] if isinstance(said[shape], list) else [said[shape]]
    if len(sizes) != (wanted := 2 if shape == "dumbbell" else 1):
        raise InvalidValueError(
            f"topology {shape}: {shown(said[shape])}: give {'two numbers' if wanted > 1 else 'a number'}"
        )
    extra: dict[str, Any] = {"ipv6": bool(said.get("ipv6", False))}
    misplaced = "ends" if shape == "star" else "host"
    if misplaced in said:
        raise InvalidValueError(f"topology {shape}: `{misplaced}:` is not for it")
    if "host" in said:
        extra["host"] = str(said["host"])
    if "ends" in said:
        extra["ends"] = said["ends"]
    makers = {"star": star, "chain": chain, "dumbbell": dumbbell}
    hosts = makers[shape](*sizes, **extra).services  # type: ignore[operator]  # each takes its own
    own = {name: services[name] for name in hosts if name in services}
    drawn: Drawing = makers[shape](*sizes, **extra, services=own)  # type: ignore[operator]  # likewise
    return drawn


def asked_of_compose(config: Mapping[str, Any]) -> Iterator[str]:
    """What a Compose file asks for that only a local lab does: routes are none of Docker's, nor are shapes."""
    if "topology" in (config.get("x-testbed") or {}):
        yield "`x-testbed: {topology: …}`"
    for name, body in (config.get("services") or {}).items():
        if isinstance(body, Mapping) and is_router(body):
            yield f"service {shown(name)}: `x-testbed: {{router: true}}`"


def is_router(body: Mapping[str, Any]) -> bool:
    """Whether a service passes on what is not meant for it."""
    said = body.get("x-testbed")
    return isinstance(said, Mapping) and said.get(ROUTER) is True


def _check(shape: str, sizes: Sequence[object], ends: object, services: Services | None) -> None:
    problems = [
        f"{shape}({shown(size)}): must be a whole number from 1"
        for size in sizes
        if not isinstance(size, int) or isinstance(size, bool) or size < 1
    ]
    named = [str(each) for each in ends] if isinstance(ends, list | tuple) else []
    if not named or (shape != "star" and len(set(named)) != 2) or any(not each for each in named):
        problems.append(f"{shape}: ends {shown(ends)}: give two different names")
    if not problems and sum(size for size in sizes if isinstance(size, int)) > _MOST_HOSTS:
        problems.append(f"{shape}({', '.join(map(shown, sizes))}): at most {_MOST_HOSTS} hosts and routers")
    if shape != "star" and (taken := [each for each in named if each[:1] == "r" and each[1:].isdecimal()]):
        problems.append(f"{shape}: {shown(taken[0])} is a router's name")
    for name, body in (services or {}).items():
        if name not in named:
            problems.append(f"{shape}: service {shown(name)}: {unknown(name, named)}")
        problems += [
            f"{shape}: service {shown(name)}: `{word}:` is the topology's to say"
            for word in ("networks", "network_mode", "scale", "deploy")
            if word in body
        ]
    if problems:
        raise InvalidValueError(problems)


def _drawn(
    name: str, joined: Sequence[tuple[str, Mapping[str, int]]], services: Services, *, ipv6: bool,
    routers: Iterable[str] = (),
) -> Drawing:  # fmt: skip
    """``joined``: each network with the number of hosts that every service has on it."""
    made: dict[str, dict[str, Any]] = {}
    networks: dict[str, dict[str, Any]] = {}
    subnets = _subnets([sum(members.values()) for _, members in joined])
    for number, ((network, members), subnet) in enumerate(zip(joined, subnets, strict=True)):
        config = [{"subnet": str(subnet)}]
        if ipv6:
            config.append({"subnet": str(IPv6Network((int(_POOL_V6.network_address) + (number << 64), 64)))})
        networks[network] = {"ipam": {"config": config}, **({"enable_ipv6": True} if ipv6 else {})}
        for service, count in members.items():
            body = made.setdefault(service, {**services.get(service, _EMPTY), "networks": {}, "scale": count})
            body["networks"][network] = None
    for router in routers:
        made[router]["x-testbed"] = {**_EMPTY["x-testbed"], ROUTER: True}
    return Drawing(name=name, services=made, networks=networks)


def _subnets(sizes: Iterable[int]) -> Iterator[IPv4Network]:
    """A subnet for each number of hosts, one after the other."""
    at = int(_POOL.network_address)
    for size in sizes:
        prefix = min(_LEAST_PREFIX, 32 - (size + _RESERVED - 1).bit_length())
        length = 1 << (32 - prefix)
        at = -(-at // length) * length
        if at + length > int(_POOL.broadcast_address) + 1:
            raise InvalidValueError(f"{_POOL} has no room for so many hosts and networks")
        yield IPv4Network((at, prefix))
        at += length
