"""From a Compose file to what a local lab builds: hosts, addresses, programs; and all that it cannot honour.

Reads Dockerfiles and looks up the files that they copy; starts nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations
from pathlib import Path
from typing import Any

from testbed.errors import InvalidComposeError
from testbed.labs import buildcontext, dockerfile
from testbed.labs.buildcontext import Entry
from testbed.labs.composefile import ComposeFile, Where
from testbed.labs.dockerfile import HealthCheck, Image
from testbed.labs.routing import Route, Routing
from testbed.model import topologies
from testbed.model.impairment import unknown
from testbed.model.topology import Topology

# Where Docker's own networks lie (moby, ipamutils): nothing outside can clash with ours, so theirs are as good.
_POOL = [IPv4Network(f"172.{number}.0.0/16") for number in range(18, 32)]
_POOL += list(IPv4Network("192.168.0.0/16").subnets(new_prefix=20))
_MTU_OPTION = "com.docker.network.driver.mtu"

_HONOURED = {
    "build", "image", "command", "entrypoint", "environment", "working_dir", "user", "networks", "ports", "volumes",
    "depends_on", "healthcheck", "deploy", "scale", "stop_signal", "stop_grace_period", "ulimits", "sysctls",
    "hostname", "container_name", "extra_hosts", "cap_add", "cap_drop", "tmpfs", "x-testbed",
}  # fmt: skip
_HARMLESS = {
    "labels", "annotations", "logging", "init", "stdin_open", "tty", "expose", "pull_policy", "platform", "profiles",
    "attach", "read_only", "domainname",
}  # fmt: skip
_REASONS = {
    "network_mode": "a host of a local lab has a network of its own, nothing else; name `networks:`",
    "privileged": "a local lab gives Docker's usual capabilities; name the ones needed under `cap_add:`",
    "restart": "a local lab does not start a program again",
    "devices": "a local lab's hosts have no devices of the machine",
    "secrets": "a local lab has none; use `volumes:` or `environment:`",
    "configs": "a local lab has none; use `volumes:`",
}
# A packet may come in where the way back would not go out.
_FORWARDING = {
    "net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1", "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.*.rp_filter": "0",
}  # fmt: skip
_LOCAL_WORDS = ("path", "python")
_OUR_WORDS = ("local", topologies.ROUTER)
_WAY_OUT = "or run it with --lab compose"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A host's end of a cable."""

    network: str
    name: str
    mac: str
    addresses: tuple[str, ...]
    """With prefix: ``172.18.0.2/16``."""

    @property
    def plain(self) -> tuple[str, ...]:
        """The addresses without prefix."""
        return tuple(cidr.partition("/")[0] for cidr in self.addresses)

    @property
    def link_local(self) -> tuple[str, ...]:
        """The address that the kernel makes of the MAC address where there is IPv6 (RFC 4291, appendix A)."""
        if not any(":" in cidr for cidr in self.addresses):
            return ()
        mac = bytes.fromhex(self.mac.replace(":", ""))
        identifier = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
        return (str(ip_address(bytes.fromhex("fe80" + "00" * 6) + identifier)),)


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """A bridge."""

    name: str
    subnets: tuple[IPv4Network | IPv6Network, ...]
    gateways: tuple[str, ...]
    """With prefix; the bridge's own addresses."""
    mtu: int = 1500


@dataclass(frozen=True, kw_only=True)
class Published:
    """A port of a host that the machine's loopback shows."""

    host_ip: str
    port: int
    """On the machine; 0 lets the kernel choose."""
    target: int
    protocol: str = "tcp"


@dataclass(frozen=True, kw_only=True)
class ServicePlan:
    """What every replica of a service runs, and sees."""

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
    published: tuple[Published, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By the name of Python's resource module: ``RLIMIT_NOFILE``."""
    capabilities_added: tuple[str, ...] = ()
    capabilities_dropped: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    """Folders of each replica's own, writable."""
    files: tuple[Entry, ...] = ()
    """What its image puts among the machine's files, before all the others; in this order."""
    binds: tuple[tuple[str, str, bool], ...] = ()
    """Shown as well: what, where, whether read-only."""
    volumes: tuple[tuple[str, str], ...] = ()
    """Folders that the lab's hosts share: name, where."""
    python: bool = False


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """One replica."""

    name: str
    service: str
    hostname: str
    interfaces: tuple[Interface, ...]
    names: Mapping[str, tuple[str, ...]]
    """By network, the names that it has there."""
    extra_hosts: tuple[tuple[str, str], ...] = ()
    routes: tuple[Route, ...] = ()
    reached: tuple[str, ...] = ()
    """The networks that it is not on and that routers lead to."""
    router: bool = False
    """Whether it passes on what is not meant for it."""

    @property
    def hears_of(self) -> tuple[str, ...]:
        """Every network whose hosts it knows by name, the nearest first."""
        return (*(each.network for each in self.interfaces), *self.reached)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a local lab builds."""

    topology: Topology
    networks: tuple[NetworkPlan, ...]
    services: Mapping[str, ServicePlan]
    """In an order in which each comes after those that it depends on."""
    hosts: tuple[HostPlan, ...]

    def hosts_file(self, host: HostPlan) -> str:
        """What /etc/hosts says in a host: itself, and every name on a network that it reaches; hosts(5)."""
        lines = [self.hosts_head(host), *("\n".join(self.names_on(network)) for network in host.hears_of)]
        return "\n".join(lines) + "\n"

    def hosts_head(self, host: HostPlan) -> str:
        """What is a host's own in its /etc/hosts."""
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
        own = host.interfaces[0].plain[0] if host.interfaces else "127.0.0.1"
        lines.append(f"{own} {host.hostname}")
        lines += [f"{address} {name}" for name, address in host.extra_hosts]
        return "\n".join(lines)

    def names_on(self, network: str) -> list[str]:
        """The lines for everybody on a network."""
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


class _Problems:
    """What is wrong with a file, by line."""

    def __init__(self, file: ComposeFile) -> None:
        self._file = file
        self._found: list[tuple[int, str]] = []

    def add(self, where: Where, text: str) -> None:
        self._found.append((self._file.line(*where) or 1, text))

    def raise_if_any(self) -> None:
        if self._found:
            found = sorted(dict.fromkeys(self._found), key=lambda each: each[0])
            raise InvalidComposeError(f"{self._file.path}:{line}: {text}" for line, text in found)


def make(file: ComposeFile, topology: Topology) -> Plan:
    """The plan of a Compose file. Raises InvalidComposeError naming all that a local lab cannot honour, by line."""
    problems = _Problems(file)
    for name, body in file.config.get("volumes", {}).items():
        for key in ("driver", "external"):
            if (body or {}).get(key) not in (None, False, "local"):
                problems.add(("volumes", name), f"volume {name!r}: `{key}: {body[key]}` needs an engine; {_WAY_OUT}")
    services = {
        name: _service(name, body, file, problems) for name, body in file.config["services"].items()
    }  # fmt: skip
    networks = _networks(file, problems)
    hosts = _routed(_hosts(file, topology, networks, problems), networks)
    order = _order({name: service.depends_on for name, service in services.items() if service is not None}, problems)
    problems.raise_if_any()
    planned = {name: service for name in order if (service := services.get(name)) is not None}
    return Plan(topology=topology, networks=tuple(networks.values()), services=planned, hosts=hosts)


# --- services ----------------------------------------------------------------------------------------


def _service(name: str, body: Mapping[str, Any], file: ComposeFile, problems: _Problems) -> ServicePlan | None:
    at: Where = ("services", name)

    def wrong(key: str, text: str) -> None:
        problems.add((*at, key), f"service {name!r}: {text}")

    for key, value in body.items():
        if key in _HONOURED or key in _HARMLESS or key.startswith("x-") or value in (None, [], {}, False):
            continue
        if key == "restart" and value == "no":
            continue
        reason = _REASONS.get(key, "a local lab cannot honour it")
        wrong(key, f"`{key}: {value}`: {reason}; leave it out, {_WAY_OUT}")
    deploy = {key for key, value in (body.get("deploy") or {}).items() if value not in (None, [], {}, False)}
    for key in sorted(deploy - {"replicas", "mode", "labels", "endpoint_mode"}):
        problems.add(
            (*at, "deploy", key), f"service {name!r}: `deploy: {key}`: a local lab cannot honour it; {_WAY_OUT}"
        )
    ours = body.get("x-testbed") or {}
    for word in ours if isinstance(ours, Mapping) else ():
        if word not in _OUR_WORDS:
            problems.add(
                (*at, "x-testbed", word), f"service {name!r}: x-testbed: {word!r}: {unknown(str(word), _OUR_WORDS)}"
            )
    if not isinstance(ours, Mapping) or not isinstance(ours.get(topologies.ROUTER, False), bool):
        wrong("x-testbed", f"x-testbed: {ours!r}: write {{router: true}} or {{local: {{path: FOLDER}}}}")
        return None
    # Where the image cannot be had, the rest is judged all the same.
    described, files, binds = _image(body, file, wrong) or (Image(command=("unknown",)), [], [])
    folders: list[str] = []
    # As the engine merges them (moby, daemon/commit.go): an empty entrypoint is none, an empty command the image's.
    asked = body.get("entrypoint")
    entrypoint = described.entrypoint if asked is None else tuple(map(str, asked))
    command = tuple(map(str, body.get("command") or (() if asked else described.command)))
    if not (entrypoint + command) and "local" not in (body.get("x-testbed") or {}):
        wrong("build" if "build" in body else "image", "no `command:`, and no CMD in a Dockerfile: nothing to run")
    volumes = []
    for number, volume in enumerate(body.get("volumes", ())):
        match volume.get("type", "volume"):
            case "bind":
                if not Path(volume["source"]).exists():
                    problems.add((*at, "volumes", number), f"service {name!r}: {volume['source']!r} does not exist")
                binds.append((volume["source"], volume["target"], bool(volume.get("read_only"))))
            case "volume":
                volumes.append((str(volume.get("source") or f"{name}-{number}"), volume["target"]))
            case "tmpfs":
                folders.append(volume["target"])
            case kind:
                problems.add((*at, "volumes", number), f"service {name!r}: a volume of type {kind!r}; {_WAY_OUT}")
    folders += [str(each).partition(":")[0] for each in body.get("tmpfs") or ()]
    workdir = str(body.get("working_dir") or described.workdir)
    places = [*(target for _, target, _ in binds), *(each.target for each in files if not each.source)]
    if workdir != "/" and not _is_there(workdir, folders, places):
        folders.append(workdir)
    return ServicePlan(
        name=name,
        argv=entrypoint + command,
        environment={**described.environment, **{k: v for k, v in (body.get("environment") or {}).items()
                                                 if v is not None}},
        workdir=workdir,
        user=str(body.get("user") or described.user),
        depends_on=_depends_on(body, file, wrong),
        health_check=_health_check(body.get("healthcheck"), described, wrong),
        stop_signal=_stop_signal(body.get("stop_signal"), described, wrong),
        published=tuple(_published(name, body, problems)),
        sysctls={**(_FORWARDING if topologies.is_router(body) else {}), **_sysctls(body, wrong)},
        limits=_limits(body, wrong),
        capabilities_added=tuple(_capability(each) for each in body.get("cap_add") or ()),
        capabilities_dropped=tuple(_capability(each) for each in body.get("cap_drop") or ()),
        folders=tuple(dict.fromkeys(folders)),
        files=tuple(files),
        binds=tuple(binds),
        volumes=tuple(volumes),
        python=described.python,
    )  # fmt: skip


_Contents = tuple[Image, list[Entry], list[tuple[str, str, bool]]]


def _image(body: Mapping[str, Any], file: ComposeFile, wrong: Any) -> _Contents | None:
    """What stands in for a service's image: its settings, what it puts among the files, folders shown."""
    said = (body.get("x-testbed") or {}).get("local")
    if said is not None:
        if not isinstance(said, Mapping) or set(said) - set(_LOCAL_WORDS):
            odd = sorted(set(said) - set(_LOCAL_WORDS))[0] if isinstance(said, Mapping) else str(said)
            wrong("x-testbed", f"x-testbed.local: {unknown(odd, _LOCAL_WORDS)}; write {{path: FOLDER, python: true}}")
            return None
        workdir = str(body.get("working_dir") or "/app")
        binds: list[tuple[str, str, bool]] = []
        if "path" in said:
            path = (file.path.parent / str(said["path"])).resolve()
            if not path.is_dir():
                wrong("x-testbed", f"x-testbed.local.path {said['path']!r}: {path} is no folder")
                return None
            binds.append((str(path), workdir, True))
        return Image(workdir=workdir, python=bool(said.get("python", True))), [], binds
    if "build" in body:
        return _built(body["build"], wrong)
    reference = str(body.get("image", ""))
    if (base := dockerfile.base(reference)) is not None and base.python:
        return base, [], []
    wrong(
        "image",
        f"`image: {reference}` is of unknown content: a local lab takes programs from this machine. Say which: "
        f"`x-testbed: {{local: {{path: FOLDER, python: true}}}}` and `command:`, {_WAY_OUT}",
    )
    return None


def _built(build: Mapping[str, Any], wrong: Any) -> _Contents | None:
    context = Path(build["context"])
    for key in sorted(set(build) - {"context", "dockerfile", "args", "labels", "tags"}):
        wrong("build", f"`build: {key}`: a local lab cannot honour it; {_WAY_OUT}")
    path = context / str(build.get("dockerfile", "Dockerfile"))
    if not path.is_file():
        wrong("build", f"{path} does not exist")
        return None
    arguments = {name: str(value) for name, value in (build.get("args") or {}).items() if value is not None}
    text = path.read_text(encoding="utf-8", errors="replace")
    image, found = dockerfile.read(text, arguments=arguments)
    entries, missing = buildcontext.entries(context, path, image.layers)
    for problem in sorted(found + missing, key=_line_of):
        wrong("build", f"{path}, {problem}")
    return None if found or missing else (image, entries, [])


def _line_of(problem: str) -> int:
    match = re.match(r"line (\d+)", problem)
    return int(match[1]) if match else 0


def _is_there(path: str, folders: Iterable[str], binds: Iterable[str]) -> bool:
    places = [*folders, *binds]
    return any(path == each or path.startswith(f"{each}/") for each in places) or os.path.isdir(path)


def _depends_on(body: Mapping[str, Any], file: ComposeFile, wrong: Any) -> dict[str, str]:
    found = {}
    services = file.config["services"]
    for name, how in body["depends_on"].items():
        condition = str((how or {}).get("condition", "service_started"))
        if name not in services:
            if (how or {}).get("required", True):
                wrong("depends_on", f"depends on {name!r}: {unknown(name, services)}")
        elif condition not in ("service_started", "service_healthy", "service_completed_successfully"):
            wrong("depends_on", f"condition {condition!r} of {name!r} is none of Compose's")
        else:
            found[name] = condition
    return found


def _stop_signal(said: Any, described: Image, wrong: Any) -> str:
    try:
        return described.stop_signal if said is None else dockerfile.signal_name(str(said))
    except ValueError as error:
        wrong("stop_signal", f"`stop_signal`: {error}")
        return described.stop_signal


def _health_check(said: Any, described: Image, wrong: Any) -> HealthCheck | None:
    if not said:
        return described.health_check
    test = said.get("test")
    if said.get("disable") or test in (["NONE"], "NONE"):
        return None
    base = described.health_check or HealthCheck(test=())
    argv = base.test
    if test:
        argv = (*described.shell, str(test[1])) if test[0] == "CMD-SHELL" else tuple(map(str, test[1:]))
    try:
        times = {
            field_name: dockerfile.duration_s(str(said[key]))
            for field_name, key in (
                ("interval_s", "interval"), ("timeout_s", "timeout"), ("start_period_s", "start_period"),
            )
            if key in said
        }  # fmt: skip
    except ValueError as error:
        wrong("healthcheck", str(error))
        return None
    kept = {"interval_s": base.interval_s, "timeout_s": base.timeout_s, "start_period_s": base.start_period_s}
    return HealthCheck(test=argv, retries=int(said.get("retries", base.retries)), **{**kept, **times})


def _published(name: str, body: Mapping[str, Any], problems: _Problems) -> Iterator[Published]:
    for number, port in enumerate(body["ports"]):
        where = ("services", name, "ports", number)
        published = str(port.get("published") or "0")
        if port.get("protocol", "tcp") != "tcp":
            problems.add(where, f"service {name!r}: a local lab publishes TCP ports alone, not {port['protocol']}")
        elif not published.isdecimal():
            problems.add(where, f"service {name!r}: published port {published!r}: name one port")
        else:
            yield Published(
                host_ip=str(port.get("host_ip") or "127.0.0.1"), port=int(published), target=int(port["target"])
            )


def _sysctls(body: Mapping[str, Any], wrong: Any) -> dict[str, str]:
    found = {}
    for name, value in (body.get("sysctls") or {}).items():
        if name.startswith("net."):
            found[name] = str(value)
        else:
            wrong("sysctls", f"sysctl {name!r}: a host has its own `net.*` alone; {_WAY_OUT}")
    return found


_LIMITS = {"core", "cpu", "fsize", "data", "stack", "rss", "nproc", "nofile", "memlock", "as", "msgqueue", "nice",
           "rtprio", "sigpending"}  # fmt: skip


def _limits(body: Mapping[str, Any], wrong: Any) -> dict[str, tuple[int, int]]:
    found = {}
    for name, value in (body.get("ulimits") or {}).items():
        if name not in _LIMITS:
            wrong("ulimits", f"ulimit {name!r}: {unknown(name, _LIMITS)}")
            continue
        both = value if isinstance(value, Mapping) else {"soft": value, "hard": value}
        found[f"RLIMIT_{name.upper()}"] = (int(both["soft"]), int(both["hard"]))
    return found


def _capability(name: Any) -> str:
    return str(name).upper().removeprefix("CAP_")


def _order(depends_on: Mapping[str, Mapping[str, str]], problems: _Problems) -> list[str]:
    """Services, each after those that it depends on."""
    order: list[str] = []
    left = dict(depends_on)
    while left:
        ready = [name for name, needs in left.items() if not set(needs) & set(left)]
        if not ready:
            problems.add(("services",), f"{', '.join(left)} depend on each other in a circle")
            break
        order += ready
        for name in ready:
            del left[name]
    return order


# --- networks and addresses --------------------------------------------------------------------------


def _networks(file: ComposeFile, problems: _Problems) -> dict[str, NetworkPlan]:
    plans: dict[str, NetworkPlan] = {}
    taken = [subnet for body in file.config["networks"].values() for subnet in _asked_subnets(body)]
    pool = (each for each in _POOL if not any(each.overlaps(other) for other in taken if other.version == 4))
    for name, body in file.config["networks"].items():
        body = body or {}
        at: Where = ("networks", name)
        if body.get("external"):
            problems.add(at, f"network {name!r} is external: a local lab's networks are its own; {_WAY_OUT}")
        if body.get("driver", "bridge") not in (None, "bridge"):
            problems.add(
                (*at, "driver"), f"network {name!r}: driver {body['driver']!r}; a local lab has bridges; {_WAY_OUT}"
            )
        subnets = _asked_subnets(body, problems, at)
        if not any(each.version == 4 for each in subnets):
            chosen = next(pool, None)
            if chosen is None:
                problems.add(at, f"network {name!r}: no subnet is left; name one under `ipam:`")
                continue
            subnets.insert(0, chosen)
        if body.get("enable_ipv6") and not any(each.version == 6 for each in subnets):
            subnets.append(IPv6Network(f"fd00:0:0:{len(plans) + 1:x}::/64"))
        said = {
            str(each.get("gateway")) for each in (body.get("ipam") or {}).get("config") or () if each.get("gateway")
        }
        gateways = [
            next((text for text in said if ip_address(text) in subnet), str(subnet.network_address + 1))
            + f"/{subnet.prefixlen}"
            for subnet in subnets
        ]
        mtu = int((body.get("driver_opts") or {}).get(_MTU_OPTION, 1500))
        plans[name] = NetworkPlan(name=name, subnets=tuple(subnets), gateways=tuple(gateways), mtu=mtu)
    for one, other in combinations(plans.values(), 2):
        for a, b in ((a, b) for a in one.subnets for b in other.subnets if a.version == b.version and a.overlaps(b)):
            problems.add(("networks", other.name), f"networks {one.name!r} and {other.name!r} overlap: {a} and {b}")
    return plans


def _asked_subnets(body: Any, problems: _Problems | None = None, at: Where = ()) -> list[IPv4Network | IPv6Network]:
    found: list[IPv4Network | IPv6Network] = []
    for each in ((body or {}).get("ipam") or {}).get("config") or ():
        if "subnet" not in each:
            continue
        try:
            found.append(ip_network(str(each["subnet"])))
        except ValueError as error:
            if problems is not None:
                problems.add((*at, "ipam"), f"network {at[-1]!r}: subnet {each['subnet']!r}: {error}")
    return found


def _routed(hosts: Iterable[HostPlan], networks: Mapping[str, NetworkPlan]) -> tuple[HostPlan, ...]:
    """The hosts with their routes: through routers where there are some, else to the first network's gateway."""
    known = {host.name: host for host in hosts}
    routing = Routing(
        subnets={name: network.subnets for name, network in networks.items()},
        ends={name: {each.network: each.plain for each in host.interfaces} for name, host in known.items()},
        routers=[name for name, host in known.items() if host.router],
    )
    made = []
    for name, host in known.items():
        routes = list(routing.routes(name))
        outward = networks[host.interfaces[0].network].gateways if host.interfaces and not host.router else ()
        for everywhere, gateway in ((_everywhere(each), each.partition("/")[0]) for each in outward):
            if not any(destination == everywhere for destination, _ in routes):
                routes.append((everywhere, gateway))
        made.append(replace(host, routes=tuple(routes), reached=tuple(routing.reached(name))))
    return tuple(made)


def _everywhere(cidr: str) -> str:
    return "::/0" if ":" in cidr else "0.0.0.0/0"


def _hosts(
    file: ComposeFile, topology: Topology, networks: Mapping[str, NetworkPlan], problems: _Problems
) -> Iterator[HostPlan]:
    static = _static_addresses(file, topology, networks, problems)
    free = {
        name: [_free(subnet, {*static.get(name, {}), *(each.partition("/")[0] for each in plan.gateways)})
               for subnet in plan.subnets]
        for name, plan in networks.items()
    }  # fmt: skip
    for service in topology.services.values():
        body = file.config["services"][service.name]
        joined = dict(body.get("networks") or {})
        order = sorted(joined, key=lambda each: (-int((joined[each] or {}).get("priority", 0)), each))
        for number, host in enumerate(service.hosts, start=1):
            interfaces: list[Interface] = []
            names: dict[str, tuple[str, ...]] = {}
            for network in order:
                if network not in networks:
                    if network not in file.config["networks"]:
                        where = ("services", service.name, "networks")
                        problems.add(
                            where, f"service {service.name!r}: network {network!r}: {unknown(network, networks)}"
                        )
                    continue
                addresses = []
                for subnet, pool in zip(networks[network].subnets, free[network], strict=True):
                    asked = (joined[network] or {}).get(f"ipv{subnet.version}_address")
                    given = str(asked) if asked and _is_address(str(asked)) else next(pool, None)
                    if given is None:
                        problems.add(("networks", network), f"network {network!r}: {subnet} has no address left")
                        break
                    addresses.append(f"{given}/{subnet.prefixlen}")
                if not addresses:
                    continue
                interfaces.append(
                    Interface(
                        network=network,
                        name=f"eth{len(interfaces)}",
                        mac=_mac(addresses[0]),
                        addresses=tuple(addresses),
                    )
                )
                project = file.config.get("name", "default")
                own = body.get("container_name") or f"{project}-{service.name}-{number}"
                aliases = (joined[network] or {}).get("aliases") or ()
                hostname = [str(body["hostname"])] if body.get("hostname") else []
                names[network] = tuple(dict.fromkeys([service.name, str(own), *map(str, aliases), *hostname]))
            extra = tuple((name, address) for name, _, address in
                          (each.partition("=") for each in body.get("extra_hosts", ())))  # fmt: skip
            readable = re.sub(r"[^A-Za-z0-9-]+", "-", host).strip("-")
            yield HostPlan(
                name=host, service=service.name, hostname=str(body.get("hostname") or readable),
                interfaces=tuple(interfaces), names=names, extra_hosts=extra, router=topologies.is_router(body),
            )  # fmt: skip


def _static_addresses(
    file: ComposeFile, topology: Topology, networks: Mapping[str, NetworkPlan], problems: _Problems
) -> dict[str, dict[str, str]]:
    """Every address that a service names, by network: checked against the subnet, the gateway and each other."""
    taken: dict[str, dict[str, str]] = {}
    for name, body in file.config["services"].items():
        for network, joined in (body.get("networks") or {}).items():
            if network not in networks:
                continue
            for version in (4, 6):
                asked = (joined or {}).get(f"ipv{version}_address")
                if not asked:
                    continue
                where = ("services", name, "networks", network, f"ipv{version}_address")
                try:
                    parsed = ip_address(str(asked))
                except ValueError:
                    problems.add(where, f"service {name!r}: {asked!r} is no address")
                    continue
                plan = networks[network]
                others = taken.setdefault(network, {})
                if not any(parsed in subnet for subnet in plan.subnets):
                    listed = ", ".join(map(str, plan.subnets))
                    problems.add(where, f"service {name!r}: {asked} is not in network {network!r} ({listed})")
                elif str(parsed) in (gateway.partition("/")[0] for gateway in plan.gateways):
                    problems.add(where, f"service {name!r}: {asked} is the gateway of network {network!r}")
                elif str(parsed) in others:
                    problems.add(where, f"service {name!r}: {asked} is taken by {others[str(parsed)]!r}")
                elif topology.services[name].replicas > 1:
                    problems.add(
                        where, f"service {name!r}: one address for {topology.services[name].replicas} replicas"
                    )
                others.setdefault(str(parsed), name)
    return taken


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False  # told by `_static_addresses`
    return True


def _free(subnet: IPv4Network | IPv6Network, taken: set[str]) -> Iterator[str]:
    return (text for each in subnet.hosts() if (text := str(each)) not in taken)


def _mac(cidr: str) -> str:
    """A locally administered address out of the IP address, as Docker makes them."""
    packed = ip_address(cidr.partition("/")[0]).packed[-4:]
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x42, *packed))
