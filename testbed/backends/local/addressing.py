"""The networks of a local lab, and each host's place on them: addresses, names, routes.

What a local lab cannot honour of networks is refused, each with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from itertools import combinations
from typing import Any

from testbed.backends.local.blueprint import AddressInSubnet, HostPlan, Interface, NetworkPlan, mac_of
from testbed.backends.local.routing import Routing, Subnet
from testbed.backends.local.source import CANNOT, WAY_OUT
from testbed.compose.composefile import ComposeFile
from testbed.compose.longforms import is_address
from testbed.compose.problems import FileProblems
from testbed.reading.yamltree import Where
from testbed.spec import drawings
from testbed.spec.topology import Service, Topology
from testbed.spec.words import unknown
from testbed.text import shown

# Docker's own pool (moby, ipamutils): nothing outside reaches ours, so they cannot clash.
_POOL = [IPv4Network(f"172.{number}.0.0/16") for number in range(18, 32)]
_POOL += list(IPv4Network("192.168.0.0/16").subnets(new_prefix=20))
_MTU_OPTION = "com.docker.network.driver.mtu"
_LEAST_MTU, _MOST_MTU = 68, 65535
_SPELLED = (
    ("mac_address", re.compile("(?i)[0-9a-f]{2}(:[0-9a-f]{2}){5}"), "six bytes, as in 02:42:ac:11:00:02"),
    ("interface_name", re.compile(r"[\w.-]{1,15}"), "at most 15 letters, digits, dots and dashes"),
)
"""Words of a service's place on a network, by what they look like."""


# --- networks ----------------------------------------------------------------------------------------


def networks(file: ComposeFile, problems: FileProblems) -> dict[str, NetworkPlan]:
    """The networks that services are on, by name."""
    bodies = file.config["networks"]
    used = {name for body in file.config["services"].values() for name in body.get("networks") or {}}
    named = [subnet for name, body in bodies.items() if name in used for subnet in _named_subnets(body)]
    pool = (subnet for subnet in _POOL if not any(subnet.overlaps(other) for other in named if other.version == 4))
    plans: dict[str, NetworkPlan] = {}
    # Compose leaves unused networks out, of whatever driver. Problems of an unused bridge are reported all the same.
    for name, body in sorted(bodies.items(), key=lambda item: item[0] not in used):
        body = body or {}
        at: Where = ("networks", name)
        if name not in used and (body.get("external") or body.get("driver") not in (None, "", "bridge")):
            continue
        if body.get("external"):  # the lab's own stands in for it; see localplan
            body = {"external": True}
        _refuse_in_network(name, body, problems)
        subnets = _named_subnets(body, problems, at)
        if not any(subnet.version == 4 for subnet in subnets):
            chosen = next(pool, None)
            if chosen is None:
                problems.of_part(at, f"network {shown(name)}: no subnet is left; name one under `ipam:`")
                continue
            subnets.insert(0, chosen)
        if body.get("enable_ipv6") and not any(subnet.version == 6 for subnet in subnets):
            subnets.append(IPv6Network(f"fd00:0:0:{len(plans) + 1:x}::/64"))
        own_gateways = list(_named_gateways(name, body, subnets, problems))
        gateways = [
            _within(
                subnet, next((text for text in own_gateways if ip_address(text) in subnet), subnet.network_address + 1)
            )
            for subnet in subnets
        ]
        mtu = _mtu(name, body, problems)
        plans[name] = NetworkPlan(
            name=name,
            subnets=tuple(subnets),
            gateways=tuple(gateways),
            mtu=mtu,
            ranges=tuple(_ranges(name, body, subnets, problems)),
            reserved=frozenset(_reserved(body)),
        )
    plans_used = {name: plan for name, plan in plans.items() if name in used}
    _refuse_overlaps(plans.values(), plans_used.values(), problems)
    return plans_used


def _refuse_overlaps(plans: Iterable[NetworkPlan], used: Iterable[NetworkPlan], problems: FileProblems) -> None:
    """Refuse subnets of one network that overlap, and those of two networks that are used."""
    for plan in plans:
        for a, b in combinations(plan.subnets, 2):
            if a.overlaps(b):
                problems.of_part(
                    ("networks", plan.name), f"network {shown(plan.name)}: its subnets overlap: {a} and {b}"
                )
    for one, other in combinations(used, 2):
        for a, b in ((a, b) for a in one.subnets for b in other.subnets if a.overlaps(b)):
            problems.of_part(
                ("networks", other.name), f"networks {shown(one.name)} and {shown(other.name)} overlap: {a} and {b}"
            )


def _refuse_in_network(name: str, body: Mapping[str, Any], problems: FileProblems) -> None:
    """Refuse what Compose knows of a network and a local lab does not do."""
    at: Where = ("networks", name)
    if (driver := body.get("driver")) not in (None, "", "bridge"):
        problems.of_part(
            (*at, "driver"), f"network {shown(name)}: driver {shown(driver)}; a local lab has bridges; {WAY_OUT}"
        )
    ipam = body.get("ipam") or {}
    settings: list[tuple[Where, Any]] = [((*at, "ipam", "options"), ipam.get("options"))]
    if body.get("enable_ipv4") is False:
        settings.append(((*at, "enable_ipv4"), "false"))
    if ipam.get("driver") != "default":
        settings.append(((*at, "ipam", "driver"), ipam.get("driver")))
    for where, value in settings:
        if value:
            problems.of_part(where, f"network {shown(name)}: `{where[-1]}: {value}`: {CANNOT}")


def _refuse_in_joined(service: str, network: str, joined: Any, problems: FileProblems) -> None:
    """The same of a service's place on a network."""
    for key, pattern, write in _SPELLED:
        text = str((joined or {}).get(key) or "")
        if text and not pattern.fullmatch(text):
            where = ("services", service, "networks", network, key)
            problems.of_part(where, f"service {shown(service)}: {key} {shown(text)}: write {write}")
    for key in ("link_local_ips", "driver_opts"):
        if value := (joined or {}).get(key):
            where = ("services", service, "networks", network, key)
            problems.of_part(where, f"service {shown(service)}: network {shown(network)}: `{key}: {value}`: {CANNOT}")


def _named_gateways(name: str, body: Mapping[str, Any], subnets: list[Subnet], problems: FileProblems) -> Iterator[str]:
    for number, pool in enumerate((body.get("ipam") or {}).get("config") or ()):
        if not pool or not pool.get("gateway"):
            continue
        text, where = pool["gateway"], ("networks", name, "ipam", "config", number, "gateway")
        if not is_address(text):
            problems.of_part(where, f"network {shown(name)}: gateway {shown(text)} is no address")
            continue
        subnet = next((subnet for subnet in subnets if ip_address(text) in subnet), None)
        if subnet is None:
            listed = ", ".join(map(str, subnets))
            problems.of_part(where, f"network {shown(name)}: gateway {text} is in no subnet of its own ({listed})")
        elif (end := _end_of(subnet, text)) is not None:
            problems.of_part(where, f"network {shown(name)}: gateway {text} is the {end} address of {subnet}")
        else:
            yield str(ip_address(text))


def _end_of(subnet: Subnet, text: str) -> str | None:
    """``network`` or ``broadcast`` if that is what an address of a subnet is; None if it can be a host's."""
    address = ip_address(text)
    if subnet.prefixlen >= subnet.max_prefixlen - 1 or address.version != subnet.version:
        return None
    if address == subnet.network_address:
        return "network"
    return "broadcast" if address == subnet.broadcast_address and subnet.version == 4 else None


def _ranges(name: str, body: Mapping[str, Any], subnets: list[Subnet], problems: FileProblems) -> Iterator[Subnet]:
    """By subnet: the part of it from which hosts get addresses."""
    pools = list((body.get("ipam") or {}).get("config") or ())
    for subnet in subnets:
        of_subnet: dict[str, Any] = next(
            (pool for pool in pools if pool and str(pool.get("subnet")) == str(subnet)), {}
        )
        text = str(of_subnet.get("ip_range") or subnet)
        where = ("networks", name, "ipam", "config", pools.index(of_subnet) if of_subnet else 0, "ip_range")
        try:
            part = ip_network(text)
            if part.version != subnet.version or not (
                part.network_address in subnet and part.broadcast_address in subnet
            ):
                raise ValueError(f"is not in {subnet}")
            yield part
        except ValueError as error:
            problems.of_part(where, f"network {shown(name)}: ip_range {shown(text)}: {error}")
            yield subnet


def _reserved(body: Mapping[str, Any]) -> Iterator[str]:
    """Addresses that no host gets: the file says that something else has them."""
    for pool in (body.get("ipam") or {}).get("config") or ():
        yield from map(str, ((pool or {}).get("aux_addresses") or {}).values())


def _mtu(name: str, body: Mapping[str, Any], problems: FileProblems) -> int:
    text = str((body.get("driver_opts") or {}).get(_MTU_OPTION) or 1500)
    if re.fullmatch(r"[0-9]{1,9}", text) and _LEAST_MTU <= int(text) <= _MOST_MTU:
        return int(text)
    where = ("networks", name, "driver_opts", _MTU_OPTION)
    problems.of_part(
        where, f"network {shown(name)}: MTU {shown(text)}: must be a number from {_LEAST_MTU} to {_MOST_MTU}"
    )
    return 1500


def _named_subnets(body: Any, problems: FileProblems | None = None, at: Where = ()) -> list[Subnet]:
    subnets: list[Subnet] = []
    for number, pool in enumerate(((body or {}).get("ipam") or {}).get("config") or ()):
        if not pool or not pool.get("subnet"):
            continue
        try:
            subnet = ip_network(str(pool["subnet"]))
            if not subnet.prefixlen:
                raise ValueError("it has every address there is; give it a part of them, as in 10.0.0.0/24")
            if subnet.prefixlen == subnet.max_prefixlen:
                raise ValueError("has no room for a gateway and a host; name a larger one")
            subnets.append(subnet)
        except ValueError as error:
            if problems is not None:
                where = (*at, "ipam", "config", number, "subnet")
                problems.of_part(where, f"network {shown(at[-1])}: subnet {shown(pool['subnet'])}: {error}")
    return subnets


# --- hosts -------------------------------------------------------------------------------------------


def hosts(
    file: ComposeFile, topology: Topology, networks: Mapping[str, NetworkPlan], problems: FileProblems
) -> tuple[HostPlan, ...]:
    """The hosts, with their addresses and routes."""
    taken = _static_addresses(file, topology, networks, problems)
    free = {
        name: [
            _free(
                subnet,
                part,
                {*taken.get(name, {}), *plan.reserved, *(str(gateway.ip) for gateway in plan.gateways)},
            )
            for subnet, part in zip(plan.subnets, plan.ranges, strict=True)
        ]
        for name, plan in networks.items()
    }
    plans = [
        plan for service in topology.services.values() for plan in _hosts_of(service, file, networks, free, problems)
    ]
    by_service: dict[str, list[HostPlan]] = {}
    for plan in plans:
        by_service.setdefault(plan.service, []).append(plan)
    plans = [
        replace(plan, extra_hosts=(*plan.extra_hosts, *_linked(plan, file, by_service, problems))) for plan in plans
    ]
    return _routed([_sharing(plan, file, by_service) for plan in plans], networks)


def _linked(
    host: HostPlan, file: ComposeFile, by_service: Mapping[str, list[HostPlan]], problems: FileProblems
) -> Iterator[tuple[str, str]]:
    """The names that `links:` gives to others' addresses, for this host alone."""
    mine = {interface.network for interface in host.interfaces}
    for number, link in enumerate(file.config["services"][host.service].get("links") or ()):
        name, _, alias = str(link or "").partition(":")
        if name not in by_service:
            if link and name not in file.config["services"]:
                where = ("services", host.service, "links", number)
                problems.of_part(
                    where, f"service {shown(host.service)}: links {shown(name)}: {unknown(name, by_service)}"
                )
            continue
        for other in by_service[name]:
            for interface in other.interfaces:
                if alias and interface.network in mine:
                    yield from ((alias, address) for address in interface.plain)


def _sharing(host: HostPlan, file: ComposeFile, by_service: Mapping[str, list[HostPlan]]) -> HostPlan:
    """A host that is in the network or IPC namespace of another, with the other's name."""
    body = file.config["services"][host.service]
    containers = {other.get("container_name"): name for name, other in file.config["services"].items()}
    owners = {}
    for key in ("network_mode", "ipc"):
        kind, _, name = str(body.get(key) or "").partition(":")
        name = containers.get(name, "") if kind == "container" else name if kind == "service" else ""
        owners[key] = next(iter(by_service.get(name, ())), None)
    net, ipc = owners["network_mode"], owners["ipc"]
    return replace(
        host,
        net_of=net.name if net else "",
        ipc_of=ipc.name if ipc else "",
        hostname=net.hostname if net else host.hostname,
    )


def _hosts_of(
    service: Service,
    file: ComposeFile,
    networks: Mapping[str, NetworkPlan],
    free: Mapping[str, list[Iterator[str]]],
    problems: FileProblems,
) -> Iterator[HostPlan]:
    """The hosts of a service. ``free``: the addresses left, by network and subnet."""
    body = file.config["services"][service.name]
    joined = {name: own or {} for name, own in (body.get("networks") or {}).items()}
    for network in joined.keys() - file.config["networks"].keys():
        where = ("services", service.name, "networks", network)
        reason = unknown(network, file.config["networks"])
        problems.of_part(where, f"service {shown(service.name)}: network {shown(network)}: {reason}")
    order = sorted(joined.keys() & networks.keys(), key=lambda name: (-int(joined[name].get("priority") or 0), name))
    hostname = body.get("hostname")
    extra_hosts = (text.partition("=") for text in body.get("extra_hosts", ()))
    extra = tuple((name, address) for name, _, address in extra_hosts if address != "host-gateway")
    to_machine = [text.partition("=")[0] for text in body.get("extra_hosts", ()) if text.endswith("=host-gateway")]
    for number, host in enumerate(service.hosts, start=1):
        interfaces: list[Interface] = []
        names: dict[str, tuple[str, ...]] = {}
        container = body.get("container_name") or f"{file.config.get('name', 'default')}-{service.name}-{number}"
        for network in order:
            addresses = tuple(_addresses(networks[network], joined[network], free[network], problems))
            if not addresses:
                continue
            own = joined[network]
            given_mac = own.get("mac_address") or (body.get("mac_address") if not interfaces else None)
            interface = Interface(
                network=network,
                name=str(own.get("interface_name") or f"eth{len(interfaces)}"),
                mac=str(given_mac or mac_of(addresses[0])).lower(),
                addresses=addresses,
                gateway_priority=int(own.get("gw_priority") or 0),
            )
            interfaces.append(interface)
            aliases = filter(None, joined[network].get("aliases") or ())
            known = (service.name, container, *aliases, *([hostname] if hostname else []))
            names[network] = tuple(dict.fromkeys(map(str, known)))
        readable = re.sub(r"[^A-Za-z0-9-]+", "-", host)[-63:].strip("-")
        yield HostPlan(
            name=host,
            service=service.name,
            hostname=str(hostname or readable),
            interfaces=tuple(interfaces),
            names=names,
            extra_hosts=(*extra, *((name, _gateway(networks, interfaces)) for name in to_machine if interfaces)),
            router=drawings.is_router(body),
        )


def _gateway(networks: Mapping[str, NetworkPlan], interfaces: list[Interface]) -> str:
    """The address that stands for this machine, on which nothing answers."""
    return str(networks[interfaces[0].network].gateways[0].ip)


def _addresses(
    network: NetworkPlan, joined: Mapping[str, Any], free: list[Iterator[str]], problems: FileProblems
) -> Iterator[AddressInSubnet]:
    """A host's addresses on a network: the one that the service names, or the next that is free."""
    for subnet, pool in zip(network.subnets, free, strict=True):
        static = joined.get(f"ipv{subnet.version}_address")
        own = ip_address(static) if static and is_address(static) else None
        address = str(own) if own is not None and own.version == subnet.version else next(pool, None)
        if address is None:
            where = ("networks", network.name)
            problems.of_part(where, f"network {shown(network.name)}: {subnet} has no address left")
            return
        yield _within(subnet, address)


def _static_addresses(
    file: ComposeFile, topology: Topology, networks: Mapping[str, NetworkPlan], problems: FileProblems
) -> dict[str, dict[str, str]]:
    """Every address that a service names, by network, with the service. Refuses those that cannot be a host's."""
    owners: dict[str, dict[str, str]] = {}
    for name, body in file.config["services"].items():
        for network, joined in (body.get("networks") or {}).items():
            _refuse_in_joined(name, network, joined, problems)
            if network not in networks:
                continue
            for version in (4, 6):
                text = (joined or {}).get(f"ipv{version}_address")
                if not text:
                    continue
                where = ("services", name, "networks", network, f"ipv{version}_address")
                if not is_address(text) or (address := ip_address(text)).version != version:
                    problems.of_part(where, f"service {shown(name)}: {shown(text)} is no IPv{version} address")
                    continue
                others = owners.setdefault(network, {})
                replicas = topology.services[name].replicas
                if problem := _static_problem(text, networks[network], others):
                    problems.of_part(where, f"service {shown(name)}: {problem}")
                elif replicas > 1:
                    problems.of_part(where, f"service {shown(name)}: one address for {replicas} replicas")
                others.setdefault(str(address), name)
    return owners


def _static_problem(text: str, network: NetworkPlan, owners: Mapping[str, str]) -> str | None:
    """Why a host cannot have an address on a network, of which others have these."""
    address = ip_address(text)
    if not any(address in subnet for subnet in network.subnets):
        return f"{text} is not in network {shown(network.name)} ({', '.join(map(str, network.subnets))})"
    if address in (gateway.ip for gateway in network.gateways):
        return f"{text} is the gateway of network {shown(network.name)}"
    if end := next((end for subnet in network.subnets if (end := _end_of(subnet, text))), None):
        return f"{text} is the {end} address of network {shown(network.name)}"
    return f"{text} is taken by {shown(owners[str(address)])}" if str(address) in owners else None


def _routed(plans: Iterable[HostPlan], networks: Mapping[str, NetworkPlan]) -> tuple[HostPlan, ...]:
    """The hosts with their routes: through routers where there are some, else to the first network's gateway."""
    known = {host.name: host for host in plans}
    routing = Routing(
        subnets={name: network.subnets for name, network in networks.items()},
        ends={
            name: {interface.network: interface.plain for interface in host.interfaces} for name, host in known.items()
        },
        routers=[name for name, host in known.items() if host.router],
    )
    routed = []
    for name, host in known.items():
        routes = list(routing.routes(name))
        first = max(host.interfaces, key=lambda interface: interface.gateway_priority, default=None)
        outward = networks[first.network].gateways if first is not None and not host.router else ()
        for gateway in outward:
            everywhere = "::/0" if gateway.version == 6 else "0.0.0.0/0"
            if not any(destination == everywhere for destination, _ in routes):
                routes.append((everywhere, str(gateway.ip)))
        routed.append(replace(host, routes=tuple(routes), reached=tuple(routing.reached(name))))
    return tuple(routed)


def _free(subnet: Subnet, part: Subnet, taken: set[str]) -> Iterator[str]:
    """Addresses of a part of a subnet that hosts may have and nobody has."""
    addresses = subnet.hosts() if part == subnet else (address for address in part if not _end_of(subnet, str(address)))
    return (text for address in addresses if (text := str(address)) not in taken)


def _within(subnet: Subnet, address: object) -> AddressInSubnet:
    return ip_interface(f"{address}/{subnet.prefixlen}")
