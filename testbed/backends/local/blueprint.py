"""The plan of a local lab: networks, hosts, and the service that each host runs. Pure values."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address
from typing import NamedTuple

from testbed.backends.local.routing import Route
from testbed.images.found import FoundImage
from testbed.images.settings import HealthCheck
from testbed.spec.topology import Topology

AddressInSubnet = IPv4Interface | IPv6Interface
"""An address and its prefix: ``172.18.0.2/16``."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A host's end of a cable."""

    network: str
    name: str
    mac: str
    addresses: tuple[AddressInSubnet, ...]
    gateway_priority: int = 0
    """The default route leaves through the interface with the highest."""

    @property
    def plain(self) -> tuple[str, ...]:
        """The addresses without prefix."""
        return tuple(str(address.ip) for address in self.addresses)

    @property
    def link_local(self) -> tuple[str, ...]:
        """The address that the kernel derives from the MAC address, if it has IPv6 (RFC 4291, appendix A)."""
        if not any(address.version == 6 for address in self.addresses):
            return ()
        mac = bytes.fromhex(self.mac.replace(":", ""))
        identifier = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
        return (str(ip_address(bytes.fromhex("fe80" + "00" * 6) + identifier)),)


def mac_of(address: AddressInSubnet) -> str:
    """A locally administered address out of the IP address, as Docker makes them."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x42, *address.packed[-4:]))


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """A bridge."""

    name: str
    subnets: tuple[IPv4Network | IPv6Network, ...]
    gateways: tuple[AddressInSubnet, ...]
    """The bridge's own addresses."""
    mtu: int = 1500
    ranges: tuple[IPv4Network | IPv6Network, ...] = ()
    """By subnet: the part of it from which hosts get addresses."""
    reserved: frozenset[str] = frozenset()
    """Addresses that no host gets."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A port of a host that is published on the machine."""

    host_ip: str
    port: int
    """On the machine; 0 lets the kernel choose."""
    target: int
    last: int = 0
    """The last port of a range, of which the first free one is taken; 0 if there is no range."""
    protocol: str = "tcp"


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Whether a service that ends is started again, by itself."""

    when: str = "no"
    """As in Compose: ``no``, ``always``, ``unless-stopped`` or ``on-failure``."""
    most: int = 0
    """How often after failures; 0 for no end."""

    def follows(self, exit_code: int, restarts: int) -> bool:
        """Whether a start follows this end, after so many restarts."""
        if self.when == "on-failure":
            return exit_code != 0 and (not self.most or restarts < self.most)
        return self.when != "no"


class Given(NamedTuple):
    """A file that the lab writes into a host: a secret or a config."""

    target: str
    content: str
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class ServicePlan:
    """What every replica of a service runs and sees."""

    name: str
    argv: tuple[str, ...]
    """Empty: a host where nothing runs until a test starts it."""
    environment: Mapping[str, str]
    workdir: str
    user: str = ""
    depends_on: Mapping[str, str] = field(default_factory=dict)
    """Service to condition."""
    health_check: HealthCheck | None = None
    stop_signal: str = "SIGTERM"
    signal_named: bool = False
    """Whether the file names the stop signal; if so, other signals leave `restart:` as it is."""
    stop_grace_s: float | None = None
    """How long it may take to stop; None if the file does not say."""
    published: tuple[Published, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By the name of Python's resource module: ``RLIMIT_NOFILE``."""
    capabilities_added: tuple[str, ...] = ()
    capabilities_dropped: tuple[str, ...] = ()
    """``ALL`` stands for itself."""
    folders: tuple[str, ...] = ()
    """Folders of each replica's own, writable."""
    binds: tuple[tuple[str, str, bool], ...] = ()
    """Files and folders of the machine: source, target, whether read-only."""
    volumes: tuple[tuple[str, str, bool], ...] = ()
    """Named folders that hosts share: name, target, whether read-only. A name with a colon is each host's own."""
    python: bool = False
    image: FoundImage | None = None
    """Whose files its hosts have; None: the machine's."""
    restart: Restart = Restart()
    shm_bytes: int = 64 << 20
    """The size of /dev/shm."""
    resolver: str = ""
    """The text of /etc/resolv.conf; empty: no name server."""
    given: tuple[Given, ...] = ()
    read_only: bool = False
    """Whether its root file system is."""
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    """Options, by folder of ``folders`` that has some."""
    new_folders: tuple[str, ...] = ()
    """Folders of the machine that are made for its binds, as the engine makes them."""

    @property
    def asks_name_servers(self) -> bool:
        """Whether a resolv.conf is bound into its hosts, so that they know others' names by that alone."""
        return any(posixpath.normpath(target) == "/etc/resolv.conf" for _, target, _ in self.binds)


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """One replica."""

    name: str
    service: str
    hostname: str
    interfaces: tuple[Interface, ...]
    names: Mapping[str, tuple[str, ...]]
    """Its names on each network."""
    extra_hosts: tuple[tuple[str, str], ...] = ()
    routes: tuple[Route, ...] = ()
    reached: tuple[str, ...] = ()
    """Networks that it reaches through routers."""
    router: bool = False
    """Whether it forwards packets."""
    net_of: str = ""
    """The host in whose network namespace it is; empty: it has its own."""
    ipc_of: str = ""
    """Likewise of its IPC namespace, with its /dev/shm."""

    @property
    def hears_of(self) -> tuple[str, ...]:
        """Every network whose hosts it knows by name, the nearest first."""
        return (*(interface.network for interface in self.interfaces), *self.reached)


@dataclass(frozen=True, kw_only=True)
class LabPlan:
    """Everything that a local lab builds."""

    topology: Topology
    networks: tuple[NetworkPlan, ...]
    services: Mapping[str, ServicePlan]
    """Each after those that it depends on."""
    hosts: tuple[HostPlan, ...]
    notes: tuple[str, ...] = ()
    """What the file asks for and is not kept, a line each."""

    def hosts_file(self, host: HostPlan) -> str:
        """The text of a host's /etc/hosts: itself, and every name on a network that it reaches; hosts(5)."""
        networks = self.owner(host).hears_of
        lines = [self.hosts_head(host), *("\n".join(self.names_on(network)) for network in networks)]
        return "\n".join(lines) + "\n"

    @cached_property
    def whose_memory_is_shared(self) -> frozenset[str]:
        """Hosts in whose IPC namespace others are."""
        return frozenset(host.ipc_of for host in self.hosts)

    def owner(self, host: HostPlan) -> HostPlan:
        """The host in whose network namespace a host is."""
        return next((other for other in self.hosts if other.name == host.net_of), host) if host.net_of else host

    def hosts_head(self, host: HostPlan) -> str:
        """The lines about a host itself in its /etc/hosts."""
        host = self.owner(host)
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
        own = host.interfaces[0].plain[0] if host.interfaces else "127.0.0.1"
        lines.append(f"{own} {host.hostname}")
        lines += [f"{address} {name}" for name, address in host.extra_hosts]
        return "\n".join(lines)

    def names_on(self, network: str) -> list[str]:
        """The lines of all hosts on a network."""
        cached: dict[str, list[str]] = self.__dict__.setdefault("_names", {})
        if network not in cached:
            cached[network] = [
                f"{address} {' '.join(other.names[network])}"
                for other in self.hosts
                for interface in other.interfaces
                if interface.network == network
                for address in interface.plain
            ]
        return cached[network]
