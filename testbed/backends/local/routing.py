"""Static routes through a lab's routers: the fewest hops, the same each time. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network

Subnet = IPv4Network | IPv6Network
Ends = Mapping[str, tuple[str, ...]]
"""A host's addresses on each network that it is on, without prefix."""
Route = tuple[str, str]
"""Destination, gateway."""


class Routing:
    """The way from every host to every network."""

    def __init__(
        self, *, subnets: Mapping[str, tuple[Subnet, ...]], ends: Mapping[str, Ends], routers: Iterable[str]
    ) -> None:
        """``subnets`` of each network; ``ends`` of each host; ``routers``: the hosts that pass packets on."""
        self._subnets = subnets
        self._ends = ends
        self._routers = tuple(routers)
        self._hops = {network: self._hops_to(network) for network in subnets} if self._routers else {}

    def _hops_to(self, destination: str) -> dict[str, int]:
        """The distance of each router from a network, in networks; 0 on it. Only routers that can reach it."""
        hops = {router: 0 for router in self._routers if destination in self._ends[router]}
        newest = list(hops)
        while newest:
            around = {network for router in newest for network in self._ends[router]}
            nearer = hops[newest[0]]
            newest = [
                router for router in self._routers if router not in hops and around.intersection(self._ends[router])
            ]
            hops.update(dict.fromkeys(newest, nearer + 1))
        return hops

    def reached(self, host: str) -> list[str]:
        """Every network that a host is not on and that routers lead to, the nearest first."""
        ways = {network: self._way(host, network) for network in self._hops if network not in self._ends[host]}
        return [name for _, name in sorted((way[0], name) for name, way in ways.items() if way is not None)]

    def _way(self, host: str, destination: str) -> tuple[int, str, str] | None:
        """Hops from the next router on, the next router, and the network that it is reached on."""
        hops = self._hops[destination]
        ways = [
            (hops[router], router, network)
            for router in self._routers
            if router != host and router in hops
            for network in self._ends[router]
            if network in self._ends[host]
        ]
        return min(ways, key=lambda way: (way[0], self._routers.index(way[1])), default=None)

    def routes(self, host: str) -> tuple[Route, ...]:
        """A route to each network that a host is not on.

        Of a host that is no router, the gateway that most of them share is the default one.
        """
        ways: list[tuple[Subnet, str]] = []
        for destination in self.reached(host):
            way = self._way(host, destination)
            if way is None:
                continue
            _, router, network = way
            for subnet in self._subnets[destination]:
                via = [address for address in self._ends[router][network] if (":" in address) == (subnet.version == 6)]
                ways += [(subnet, address) for address in via[:1]]
        if host in self._routers:
            return tuple((str(subnet), via) for subnet, via in ways)
        routes: list[Route] = []
        for version, everywhere in ((4, "0.0.0.0/0"), (6, "::/0")):
            those = [(subnet, via) for subnet, via in ways if subnet.version == version]
            if those:
                ((default, _),) = Counter(via for _, via in those).most_common(1)
                routes.append((everywhere, default))
                routes += [(str(subnet), via) for subnet, via in those if via != default]
        return tuple(routes)
