"""The switch of a local lab: a bridge for each network in the agent's own namespace, and a cable to each host.

A host is here a network namespace and its settings; see `hosts.Hosts.build` for those, and for a network's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import kernelcalls
from .devices import QUEUE_PACKETS
from .netlink import Netlink, NetlinkRequest, address, bridge, cable, enslave, route, up, veth
from .sysctls import Sysctls, set_sysctls

# We choose the indexes of devices, so that we need not look them up. Names have at most 15 characters (linux/if.h).
_FIRST_BRIDGE, _FIRST_VETH = 1000, 10_000
_PORTS_PER_BRIDGE = 128

# As in a container's network namespace by Docker (libnetwork, moby daemon/oci).
_NO_IPV6 = {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"}
AS_DOCKERS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ip_forward": "0"}
"""Set by Docker as well; of effect only for programs, or with several interfaces, so set no earlier."""
# Addresses that the kernel generates are usable at once, as ours are: nobody here has another's (RFC 4862 5.4).
_NO_DUPLICATES = {"net.ipv6.conf.all.accept_dad": "0", "net.ipv6.conf.default.accept_dad": "0"}
_SWITCH_SYSCTLS = {**_NO_IPV6, **_NO_DUPLICATES, "net.ipv4.ip_forward": "0"}


@dataclass(kw_only=True)
class CabledHost:
    """A host, as the switch needs it."""

    net: int
    """Descriptor of its network namespace."""
    settings: Mapping[str, Any]
    ifindexes: dict[str, int] = field(default_factory=dict)
    """By network: the index of the switch's end of the cable."""


class Switch:
    """The agent's own network namespace, which has every network's bridge."""

    def __init__(self) -> None:
        self._net = own_namespace()
        set_sysctls(_SWITCH_SYSCTLS)

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """At the end, return to the switch's network namespace from whichever was entered."""
        try:
            yield
        finally:
            kernelcalls.setns(self._net, kernelcalls.NEWNET)

    @contextlib.contextmanager
    def within(self, net: int) -> Iterator[None]:
        """Be in another network namespace; what is opened there stays there."""
        with self.left():
            kernelcalls.setns(net, kernelcalls.NEWNET)
            yield

    def connect(self, networks: Sequence[Mapping[str, Any]], hosts: Sequence[CabledHost], sysctls: Sysctls) -> None:
        """Make every network; connect every host and give it addresses; fills in `CabledHost.ifindexes`."""
        bridges = _make_bridges(networks, hosts)
        _address_gateways(networks)
        mtus = {network["name"]: network["mtu"] for network in networks}
        cables = [(host, interface) for host in hosts for interface in host.settings["interfaces"]]
        changes = []
        for number, (host, interface) in enumerate(cables):
            name, index = interface["network"], _FIRST_VETH + number
            changes.append(
                veth(
                    f"veth{number + 1}",
                    index,
                    master=next(bridges[name]),
                    peer=interface["name"],
                    peer_namespace=host.net,
                    peer_mac=interface["mac"],
                    mtu=mtus[name],
                    queue_packets=QUEUE_PACKETS,
                )
            )
            host.ifindexes[name] = index
        with Netlink() as here:
            here.apply(changes)
        for host in hosts:
            with self.within(host.net):
                _address(host.settings, sysctls)


def own_namespace() -> int:
    """The descriptor of the current network namespace."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def new_namespace(sysctls: Sysctls) -> int:
    """Enter a new network namespace; returns its descriptor."""
    kernelcalls.unshare(kernelcalls.NEWNET)
    sysctls.set(_NO_IPV6)  # before links come up and send solicitations
    return own_namespace()


def _make_bridges(networks: Sequence[Mapping[str, Any]], hosts: Sequence[CabledHost]) -> dict[str, Iterator[int]]:
    """Make every network's bridges; by network, an iterator over the bridge's index for each cable."""
    ends = Counter(interface["network"] for host in hosts for interface in host.settings["interfaces"])
    free = itertools.count(_FIRST_BRIDGE + len(networks))
    changes: list[NetlinkRequest] = []
    bridges: dict[str, Iterator[int]] = {}
    for number, network in enumerate(networks):
        creations, bridges[network["name"]] = _bridges(number, network, ends[network["name"]], free)
        changes += creations
    with Netlink() as here:
        here.apply(changes)
    return bridges


def _address_gateways(networks: Sequence[Mapping[str, Any]]) -> None:
    changes: list[NetlinkRequest] = [up(socket.if_nametoindex("lo"))]  # probes try the kernel's time stamps there
    for number, network in enumerate(networks):
        if any(":" in cidr for cidr in network["addresses"]):
            set_sysctls({f"net.ipv6.conf.br{number}.disable_ipv6": "0"})
        changes += [address(_FIRST_BRIDGE + number, cidr) for cidr in network["addresses"]]
    with Netlink() as here:
        here.apply(changes)


def _bridges(
    number: int, network: Mapping[str, Any], ends: int, free: Iterator[int]
) -> tuple[list[NetlinkRequest], Iterator[int]]:
    """The changes that make a network's switch, and the bridge for each cable; ``free``: indexes for further devices.

    One bridge, or a core bridge with further ones around it: the cost of adding a port grows with the number of ports,
    all of which the bridge examines (br_if.c, br_features_recompute), and a bridge has at most 1,023.
    """
    core, mtu = _FIRST_BRIDGE + number, network["mtu"]
    changes = [bridge(f"br{number}", core, mtu=mtu, mac=network["mac"])]
    if ends <= _PORTS_PER_BRIDGE:
        return changes, itertools.repeat(core)
    leaves = []
    for leaf in range(-(-ends // _PORTS_PER_BRIDGE)):
        index, near, far = next(free), next(free), next(free)
        leaves.append(index)
        changes.append(bridge(f"br{number}x{leaf}", index, mtu=mtu))
        changes.append(cable(f"tr{number}x{leaf}", near, f"tr{number}y{leaf}", far, mtu=mtu))
        changes += [enslave(near, core), enslave(far, index), up(near), up(far)]
    return changes, (leaf for leaf in leaves for _ in range(_PORTS_PER_BRIDGE))


def _address(settings: Mapping[str, Any], sysctls: Sysctls) -> None:
    """In a host's network namespace: set sysctls, add addresses and routes."""
    has_ipv6 = any(":" in cidr for interface in settings["interfaces"] for cidr in interface["addresses"])
    if has_ipv6:
        own = {f"net.ipv6.conf.{interface['name']}.accept_dad": "0" for interface in settings["interfaces"]}
        sysctls.set({**dict.fromkeys(_NO_IPV6, "0"), **_NO_DUPLICATES, **own})
    if len(settings["interfaces"]) > 1:
        sysctls.set(AS_DOCKERS)
    for name, value in settings["sysctls"].items():
        interfaces = [interface["name"] for interface in settings["interfaces"]] if "*" in name else [""]
        sysctls.set({name.replace("*", interface): value for interface in interfaces})
    changes = [up(socket.if_nametoindex("lo"))]
    for interface in settings["interfaces"]:
        index = socket.if_nametoindex(interface["name"])
        changes += [up(index), *(address(index, cidr) for cidr in interface["addresses"])]
    changes += [route(destination, gateway) for destination, gateway in settings["routes"]]
    with Netlink() as there:
        there.apply(changes)
